"""Rows of one table as a driver takes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from types import NoneType
from typing import Any, Literal, Self
from uuid import UUID

from sqlalchemy import (
    Column,
    Connection,
    Table,
    bindparam,
    insert,
)
from sqlalchemy.orm import Mapper

from ..dialects import bind_processors

Row = tuple[Any, ...]


@dataclass(slots=True)
class Written:
    """How many rows had which result."""

    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0

    def __iadd__(self, other: Written) -> Self:
        self.created += other.created
        self.updated += other.updated
        self.unchanged += other.unchanged
        self.skipped += other.skipped
        return self


@dataclass(frozen=True, slots=True)
class Target:
    """A table, the columns that its rows set, and the key that finds conflicts."""

    mapper: Mapper[Any]
    columns: tuple[Column[Any], ...]
    key: tuple[Column[Any], ...]
    on_conflict: Literal["raise", "update", "skip"]
    #: What an update may change, beside the key; ``None``: all of the columns.
    given: frozenset[Column[Any]] | None = None

    @property
    def table(self) -> Table:
        """The table of the rows."""
        table = self.mapper.local_table
        assert isinstance(table, Table)
        return table

    @property
    def changing(self) -> list[Column[Any]]:
        """The columns an update may change."""
        may = self.columns if self.given is None else self.given
        return [c for c in self.columns if c in may and c not in self.key]


def in_key_order(rows: Sequence[int], key: Sequence[Sequence[Any]]) -> Sequence[int]:
    """
    Return *rows* in the order of their key; *key* has the values by column.

    An index is written faster in its order, and two writers of the same rows take
    their locks in the same order.
    """
    if not key:
        return rows
    together = list(zip(*key, strict=True)) if len(key) > 1 else key[0]
    try:
        return sorted(rows, key=together.__getitem__)
    except TypeError:
        return rows  # null, or a type without an order


class Processed:
    """Rows as the driver takes them."""

    def __init__(self, connection: Connection, target: Target) -> None:
        self.connection = connection
        self.target = target
        self.processors = bind_processors(
            [column.type for column in target.columns], connection.dialect
        )

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[Row]:
        """Return rows, made of columns by the types' bind processors."""
        ready = [
            values if processor is None else _mapped(processor, values)
            for processor, values in zip(self.processors, columns, strict=True)
        ]
        return list(zip(*ready, strict=True))

    def sql(self, statement: Any) -> str:
        """Return a statement as SQL, with one parameter for each column."""
        options = self.connection.get_execution_options()
        schemas = options.get("schema_translate_map")
        compiled = statement.compile(
            dialect=self.connection.dialect,
            schema_translate_map=schemas,
            render_schema_translate=bool(schemas),
        )
        return str(compiled)

    def insert(self, into: Table) -> Any:
        """Return an INSERT of the target's columns."""
        return insert(into).values(
            {column.name: bindparam(column.name) for column in self.target.columns}
        )


#: Types whose equal values are written alike; equal datetimes may be in two zones.
_ALIKE = frozenset({str, int, bool, bytes, date, time, UUID})


def _mapped(processor: Any, values: Sequence[Any]) -> list[Any]:
    """Apply a processor to each value; once for equal ones, where they are alike."""
    kinds = set(map(type, values)) - {NoneType}
    if len(kinds) != 1 or not (
        kinds <= _ALIKE or (kinds == {datetime} and one_zone(values))
    ):
        return [processor(value) for value in values]
    known = {value: processor(value) for value in set(values)}
    return [known[value] for value in values]


def one_zone(values: Iterable[Any]) -> bool:
    """Return whether the times in *values* share a zone: equal ones are the same then."""
    return len({value.tzinfo for value in values if value is not None}) < 2
