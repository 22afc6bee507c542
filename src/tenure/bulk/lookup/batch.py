"""What the steps of a look-up hand to each other: data, no decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.selectable import FromClause

from ...mapping import Shape
from ...references import Proxy
from ..report import Reason

#: The values of a key's columns.
KeyValues = tuple[Any, ...]

#: For each key, what was fetched of its row; ``None`` where there is none. With
#: ``hydrate``, the instance comes last.
Answers = list[tuple[Any, ...] | None]
#: For the position of a key that several rows have: all these rows.
Several = dict[int, list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys of one shape, with NULL in the same columns: one statement's keys."""

    shape: Shape
    #: For each column of the key, whether the row has to have NULL there.
    nulls: tuple[bool, ...]
    proxies: Sequence[Proxy]
    #: For each key, the values of the columns that are not NULL.
    values: Sequence[KeyValues]

    def part(self, start: int, end: int) -> Batch:
        """Return the keys from *start* to *end* as a batch."""
        some = slice(start, end)
        return Batch(self.shape, self.nulls, self.proxies[some], self.values[some])


@dataclass(frozen=True, slots=True)
class KeyTable:
    """Keys as a table to join with: an ordinal for each key, then its columns."""

    table: FromClause
    ordinal: ColumnElement[int]
    #: The ordinal of the first key.
    first: int
    columns: tuple[ColumnElement[Any], ...]
    parameters: dict[str, Any]
    #: Whether every key has a row in the result, empty where nothing was found.
    outer: bool = False
    #: Columns of the key whose letters the column of the row may be unable to hold.
    lossy: frozenset[int] = frozenset()


#: A table for the keys from each offset on.
KeyTables = list[tuple[int, KeyTable]]
#: Makes them, given the types of the columns of the key; ``None``: it cannot.
Builder = Callable[[Batch, Sequence[Any], Dialect], KeyTables | None]


class Unfound(NamedTuple):
    """A reference that was not found, and why."""

    proxy: Proxy
    reason: Reason
    #: The identities of the rows, if there are several.
    rows: Sequence[tuple[Any, ...]] = ()
    #: The message of the type, driver or database that refused the key.
    message: str = ""
