"""Rows of one table as a driver takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, time
from operator import attrgetter
from types import NoneType
from typing import Any, Literal, Self
from uuid import UUID

from sqlalchemy import (
    Column,
    Connection,
    Table,
    TableClause,
    bindparam,
)
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Mapper

from ...mapping import UniqueKey
from ..dialects import OF_A_VALUE, bind_processors, can_copy
from .casts import check_of

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
    #: What keeps rows unique, if it is not simply the key.
    unique: UniqueKey | None = None

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
        fixed = self.key if self.unique is None else self.unique.elements
        return [c for c in self.columns if c in may and all(c is not e for e in fixed)]


@contextmanager
def as_statement_error(
    statement: str, kinds: tuple[type[Exception], ...] = OF_A_VALUE
) -> Iterator[None]:
    """Report what a type or a driver refuses as SQLAlchemy does."""
    try:
        yield
    except kinds as error:
        what = f"({type(error).__module__}.{type(error).__qualname__}) {error}"
        raise StatementError(what, statement, None, error) from error


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
    """
    Rows as the driver takes them.

    Attributes:
        has_casts: Whether an INSERT may write a row otherwise than COPY does.
    """

    def __init__(
        self, connection: Connection, target: Target, *, has_casts: bool = False
    ) -> None:
        self.connection = connection
        self.target = target
        self.has_casts = has_casts
        dialect = connection.dialect
        self.processors = bind_processors([c.type for c in target.columns], dialect)
        self._checks = [
            check_of(column, dialect) if can_copy(connection) else None
            for column in target.columns
        ]

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[Row]:
        """
        Return rows, made of columns by the types' bind processors.

        Raises:
            sqlalchemy.exc.StatementError: A type refuses a value.
        """
        # A type may be a program's own, and raise anything.
        with as_statement_error(self.target.table.name, (Exception,)):
            ready = [
                values if processor is None else _mapped(processor, values)
                for processor, values in zip(self.processors, columns, strict=True)
            ]
        # Once is enough: an INSERT is right for all rows.
        self.has_casts = self.has_casts or not all(
            check is None or check(values)
            for check, values in zip(self._checks, ready, strict=True)
        )
        return list(zip(*ready, strict=True))

    def insert_rows(
        self, into: TableClause, names: Sequence[str], rows: Sequence[Row]
    ) -> None:
        """INSERT rows that have the columns *names*."""
        self.send_rows(
            self.sql(into.insert().values({name: bindparam(name) for name in names})),
            names,
            rows,
        )

    def send_rows(self, sql: str, names: Sequence[str], rows: Sequence[Row]) -> int:
        """Execute SQL with the parameters *names* of each row; return the rowcount."""
        parameters: Any = rows
        if self.connection.dialect.paramstyle in ("named", "pyformat"):
            parameters = [dict(zip(names, row, strict=True)) for row in rows]
        return self.connection.exec_driver_sql(sql, parameters).rowcount

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


_ZONE, _FOLD = attrgetter("tzinfo"), attrgetter("fold")


def one_zone(values: Sequence[Any]) -> bool:
    """
    Return whether the times in *values* share a zone: equal ones are the same then.

    When clocks go back, an hour comes twice, and equal times of it differ by ``fold``.
    """
    return all(len(set(map(of, filter(None, values)))) < 2 for of in (_ZONE, _FOLD))
