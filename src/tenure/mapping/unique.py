"""What a database keeps unique in a table: constraints and indexes, of which rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Column,
    Index,
    PrimaryKeyConstraint,
    Table,
    TextClause,
    UniqueConstraint,
    text,
)
from sqlalchemy.sql.visitors import iterate

#: Databases whose ON CONFLICT names an index of some rows, or of expressions.
_NAME_ANY = ("postgresql", "sqlite")


@dataclass(frozen=True, slots=True, eq=False)
class UniqueKey:
    """
    A unique constraint or index of a table.

    Attributes:
        name: What the database calls it, if the mapping says so.
        elements: Columns, or SQL expressions of columns.
        columns: The columns in them.
        where: The rows it is for, by the name of the dialect.
        nulls_are_equal: Whether two rows may not both have NULL, on PostgreSQL.
        is_deferrable: Whether it may be checked at the end of a transaction.
    """

    name: str | None
    elements: tuple[Any, ...]
    columns: tuple[Column[Any], ...]
    where: dict[str, Any]
    nulls_are_equal: bool = False
    is_deferrable: bool = False

    def __str__(self) -> str:
        named = ", ".join(map(str, self.elements))
        conditions = {str(where) for where in self.where.values()}
        rows = f" where {' or '.join(sorted(conditions))}" if conditions else ""
        return f"({named}){rows}"

    @property
    def is_plain(self) -> bool:
        """Whether it is of columns, and of all rows."""
        return not self.where and self.is_of_columns

    @property
    def is_of_columns(self) -> bool:
        """Whether no element is an expression."""
        return all(isinstance(element, Column) for element in self.elements)

    def why_not_named(self, dialect: str) -> str:
        """Return why an upsert cannot go by it; empty if one can."""
        if any(isinstance(element, TextClause) for element in self.elements):
            return "it is written as text, so its columns are not known"
        if not self.is_plain and dialect not in _NAME_ANY:
            return f"{dialect} has no way to name it in an upsert"
        if self.is_deferrable and dialect == "postgresql":
            return "PostgreSQL checks a deferrable constraint after the upsert"
        return ""


def primary_key(table: Table) -> UniqueKey:
    """Return the primary key of a table."""
    return _of_constraint(table.primary_key)


def unique_keys(table: Table) -> Iterator[UniqueKey]:
    """Yield the unique constraints and indexes of a table, but not its primary key."""
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield _of_constraint(constraint)
    for index in table.indexes:
        if index.unique:
            yield _of_index(index)


def _of_constraint(constraint: UniqueConstraint | PrimaryKeyConstraint) -> UniqueKey:
    columns = tuple(constraint.columns)
    return UniqueKey(
        None if constraint.name is None else str(constraint.name),
        columns,
        columns,
        {},
        nulls_are_equal=_nulls_are_equal(constraint),
        is_deferrable=bool(constraint.deferrable or constraint.initially),
    )


def _of_index(index: Index) -> UniqueKey:
    columns: dict[Column[Any], None] = {}
    elements: list[Any] = list(index.expressions)
    for element in elements:
        parts = iterate(element)
        columns |= dict.fromkeys(part for part in parts if isinstance(part, Column))
    where = {
        name: text(option["where"])
        if isinstance(option["where"], str)
        else option["where"]
        for name, option in index.dialect_options.items()
        if option.get("where") is not None
    }
    return UniqueKey(
        None if index.name is None else str(index.name),
        tuple(elements),
        tuple(columns),
        where,
        nulls_are_equal=_nulls_are_equal(index),
    )


def _nulls_are_equal(
    item: Index | UniqueConstraint | PrimaryKeyConstraint,
) -> bool:
    return bool(item.dialect_kwargs.get("postgresql_nulls_not_distinct"))


def unique_column_sets(table: Table) -> Iterator[tuple[Column[Any], ...]]:
    """
    Yield the columns of each unique constraint and unique index, the best key first.

    Keys that are never null are better, then those of fewer columns. An index of an
    expression, or of some of the rows, identifies no row.
    """
    found = [key.columns for key in unique_keys(table) if key.is_plain]
    # Table.constraints is a set: sort by name, too, so that the order is stable.
    found.sort(
        key=lambda columns: (
            any(column.nullable for column in columns),
            len(columns),
            [column.name for column in columns],
        )
    )
    yield from found
