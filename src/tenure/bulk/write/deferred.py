"""
Constraints that are checked at the end of a transaction, checked for some rows before.

So that who writes rows learns which of them is refused, and not only that one is.
Foreign keys of a table to itself stay as they are: rows may come before those they name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Connection, ForeignKeyConstraint, Table, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from ..dialects import bind_processors, is_of_row
from .tables import TableInDatabase

_CONSTRAINTS = text(
    "SELECT n.nspname, c.conname FROM pg_constraint c "
    "JOIN pg_namespace n ON n.oid = c.connamespace "
    "WHERE c.conrelid = to_regclass(:tenure_table) AND c.condeferred "
    "AND c.confrelid <> c.conrelid ORDER BY 1, 2"
)


class Deferred:
    """What of the constraints of tables is deferred, unless a program said otherwise."""

    def __init__(self, connection: Connection, tables: Iterable[Any]) -> None:
        self.connection = connection
        self._foreign_keys: list[ForeignKeyConstraint] = []
        names: list[str] = []
        for table in tables:
            if not isinstance(table, Table):
                continue
            if connection.dialect.name == "postgresql":
                names += self._of_postgresql(table)
            elif _checks_foreign_keys(connection):
                self._foreign_keys += [
                    key
                    for key in table.foreign_key_constraints
                    if (key.initially or "").upper() == "DEFERRED"
                    and key.referred_table is not table
                ]
        self._names = ", ".join(names)
        if names and self._is_violated():
            # By somebody else, who may be about to write what is missing.
            self._names = ""

    def _of_postgresql(self, table: Table) -> list[str]:
        place = TableInDatabase(self.connection, table)
        found = self.connection.execute(_CONSTRAINTS, {"tenure_table": place.text})
        quote = self.connection.dialect.identifier_preparer.quote
        return [f"{quote(schema)}.{quote(name)}" for schema, name in found]

    def _is_violated(self) -> bool:
        try:
            with self.connection.begin_nested():
                self._check_now()
        except DBAPIError as error:
            # Constraint triggers raise whatever they like.
            if not is_of_row(error):
                raise
            return True
        return False

    def _check_now(self) -> None:
        for when in ("IMMEDIATE", "DEFERRED"):
            self.connection.exec_driver_sql(f"SET CONSTRAINTS {self._names} {when}")

    def check(
        self, columns: Sequence[Column[Any]], values: Iterable[Sequence[Any]]
    ) -> None:
        """
        Check what was written.

        Args:
            values: Those of *columns*, as Python has them.

        Raises:
            sqlalchemy.exc.IntegrityError: A row violates a constraint.
        """
        if self._names:
            self._check_now()
        held = list(values) if self._foreign_keys else []
        for key in self._foreign_keys:
            here = [element.parent for element in key.elements]
            if set(here) <= set(columns):
                self._check(key, [held[columns.index(column)] for column in here])

    def _check(
        self, key: ForeignKeyConstraint, values: Sequence[Sequence[Any]]
    ) -> None:
        """Look for the rows that a foreign key of SQLite names."""
        kinds = [element.parent.type for element in key.elements]
        ready = [
            column if process is None else map(process, column)
            for process, column in zip(
                bind_processors(kinds, self.connection.dialect), values, strict=True
            )
        ]
        given = [row for row in set(zip(*ready, strict=True)) if None not in row]
        if not given:
            return
        run = self.connection.exec_driver_sql
        quote = self.connection.dialect.identifier_preparer.quote
        names = [f"k{n}" for n in range(len(key.elements))]
        parent = TableInDatabase(self.connection, key.referred_table).name
        same = " AND ".join(
            f"tenure_row.{quote(element.column.name)} = {name}"
            for element, name in zip(key.elements, names, strict=True)
        )
        run("DROP TABLE IF EXISTS temp.tenure_named")
        run(f"CREATE TEMPORARY TABLE tenure_named ({', '.join(names)})")
        marks = ", ".join("?" * len(names))
        run(f"INSERT INTO temp.tenure_named VALUES ({marks})", given)
        sql = (
            f"SELECT * FROM temp.tenure_named WHERE NOT EXISTS "
            f"(SELECT 1 FROM {parent} AS tenure_row WHERE {same}) LIMIT 1"
        )
        missing = run(sql).first()
        if missing is not None:
            columns = ", ".join(element.parent.name for element in key.elements)
            values = ", ".join(map(repr, missing))
            message = (
                f"FOREIGN KEY constraint failed: ({columns}) = ({values}) is not in "
                f"{key.referred_table.name}"
            )
            error: Any = self.connection.dialect.dbapi
            raise IntegrityError(sql, None, error.IntegrityError(message))


def _checks_foreign_keys(connection: Connection) -> bool:
    """Whether SQLite has been told to check foreign keys at all."""
    if connection.dialect.name != "sqlite":
        return False
    return bool(connection.exec_driver_sql("PRAGMA foreign_keys").scalar())
