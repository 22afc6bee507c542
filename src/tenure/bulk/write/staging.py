"""
Rows that are staged: what upserts by way of a temporary table has in common.

The rows go into a temporary table, numbered by their position in the input. All else is
done between two tables of the database, and results come back with that number. So the
database alone decides which keys and values are equal.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from sqlalchemy import Column, Connection
from sqlalchemy.orm.exc import FlushError

from ...mapping import UniqueKey
from ..dialects import any_of, comparable
from ..report import Status
from .rows import Processed, Row, Target
from .tables import TableInDatabase


class Outcome(NamedTuple):
    """The status of a row that was written, and what was fetched of it."""

    status: Status
    fetched: tuple[Any, ...]


class Stage(Processed, ABC):
    """Upserts rows by way of a temporary table."""

    def __init__(
        self,
        connection: Connection,
        target: Target,
        changing: Sequence[Column[Any]],
        fetched: Sequence[Column[Any]],
        *,
        unique: UniqueKey,
        has_casts: bool,
    ) -> None:
        super().__init__(connection, target, has_casts=has_casts)
        prepare = connection.dialect.identifier_preparer
        self.fetched = list(fetched)
        self.table = TableInDatabase(connection, target.table).name
        self.columns = [prepare.quote(column.name) for column in target.columns]
        # One for each set of columns: values of one bulk may set different ones.
        token = f"{self.table} ({', '.join(self.columns)})"
        self.name = f"tenure_stage_{crc32(token.encode()):08x}"
        self.listed = ", ".join(self.columns)
        self.key = [prepare.quote(column.name) for column in target.key]
        place = TableInDatabase(connection, target.table)
        #: What keeps the rows apart: columns, or expressions of an index.
        self.elements = [place.sql_of(element) for element in unique.elements]
        self.conflict = f"({', '.join(self.elements)})"
        if connection.dialect.name in unique.where:
            where = place.sql_of(unique.where[connection.dialect.name])
            self.conflict += f" WHERE {where}"
        self.changing = [prepare.quote(column.name) for column in changing]
        self.wanted = [prepare.quote(column.name) for column in fetched]
        #: For each changing column, the SQL that compares its values.
        self.forms = [comparable(column, connection.dialect) for column in changing]
        self.updates = target.on_conflict == "update" and bool(changing)
        #: The status of rows that exist and are not updated.
        self.left: Status = "unchanged" if target.on_conflict == "update" else "skipped"
        #: The condition under which a row of the table has the key of a staged one.
        self.matches = " AND ".join(
            f"tenure_row.{name} = tenure_new.{name}" for name in self.key
        )

    def write_each(
        self, rows: Sequence[Row], *, distinct: bool = False
    ) -> list[Outcome] | None:
        """
        Write *rows*, as :meth:`rows` makes them; return the outcome of each.

        ``None``, with nothing written, if two of them have the same key.

        Args:
            distinct: The caller knows that no two have.

        Raises:
            FlushError: Some have no row afterwards.
        """
        self.fill(rows)
        if not distinct and self._has_one_twice():
            return None
        found: list[Outcome | None] = [None] * len(rows)
        for line, status, *fetched in self.move():
            found[line] = Outcome(status, tuple(fetched))
        if None in found:
            raise FlushError(
                f"{len(rows)} rows were written into {self.table}, but for "
                f"{found.count(None)} of them no row with their key was found "
                f"afterwards; does a trigger change keys, or keep rows out?"
            )
        return [outcome for outcome in found if outcome is not None]

    def write_all(
        self, rows: Sequence[Row], *, distinct: bool = False
    ) -> Counter[Status] | None:
        """As :meth:`write_each`, but return only how many rows have each status."""
        outcomes = self.write_each(rows, distinct=distinct)
        if outcomes is None:
            return None
        return Counter(outcome.status for outcome in outcomes)

    def rounds(self) -> list[list[int]]:
        """Return the staged lines in rounds; no two rows of a round have one key."""
        key = ", ".join(self.grouped)
        order = f"OVER (PARTITION BY {key} ORDER BY tenure_line)"
        sql = f"SELECT tenure_line, row_number() {order} FROM {self.name}"
        turns: list[list[int]] = []
        for line, turn in sorted(self.run(sql).all()):
            while len(turns) < turn:
                turns.append([])
            turns[turn - 1].append(line)
        return turns

    def fill(self, rows: Sequence[Row]) -> None:
        """Insert *rows* into the temporary table, numbered from 0."""
        self.run(self.drop)
        self.run(
            f"CREATE TEMPORARY TABLE {self.name} AS SELECT 0 AS tenure_line, "
            f"0 AS tenure_known, {self.listed} FROM {self.table} WHERE 1 = 0"
        )
        marks = self.marks(["tenure_line", "tenure_known", *self.columns])
        self.connection.exec_driver_sql(
            f"INSERT INTO {self.name} (tenure_line, tenure_known, {self.listed}) "
            f"VALUES ({marks})",
            [(line, 0, *row) for line, row in enumerate(rows)],
        )

    @property
    def drop(self) -> str:
        """SQL that drops the table of an earlier batch, which may have other columns."""
        return f"DROP TABLE IF EXISTS temp.{self.name}"

    def marks(self, names: Sequence[str]) -> str:
        """Return markers for parameters that are sent by position."""
        mark = "?" if self.connection.dialect.paramstyle == "qmark" else "%s"
        return ", ".join([mark] * len(names))

    @abstractmethod
    def move(self) -> Iterable[Any]:
        """Upsert what is staged; yield line, status and fetched columns of each row."""

    def run(self, sql: str) -> Any:
        """Execute SQL as it is."""
        return self.connection.exec_driver_sql(sql)

    def differs(self, one: str, other: str) -> str:
        """Return the SQL condition that a changing column of two tables differs."""
        return any_of(
            [
                self.unequal.format(
                    form.format(f"{one}.{c}"), form.format(f"{other}.{c}")
                )
                for form, c in zip(self.forms, self.changing, strict=True)
            ]
        )

    def upsert(self, order: str) -> str:
        """
        Return the statement that inserts what is staged, or updates rows that exist.

        Args:
            order: The columns that sort the rows.
        """
        action = "DO NOTHING"
        if self.updates:
            sets = ", ".join(f"{name} = excluded.{name}" for name in self.changing)
            differs = self.differs("tenure_row", "excluded")
            action = f"DO UPDATE SET {sets} WHERE {differs}"
        return (
            f"INSERT INTO {self.table} AS tenure_row ({self.listed}) "
            # Without a WHERE, SQLite reads this ON as that of a join.
            f"SELECT {self.listed} FROM {self.name} WHERE 1 = 1 ORDER BY {order} "
            f"ON CONFLICT {self.conflict} {action}"
        )

    #: SQL for "two values differ", where NULL equals NULL.
    unequal = "{} IS DISTINCT FROM {}"

    def _has_one_twice(self) -> bool:
        key = ", ".join(self.grouped)
        twice = f"SELECT 1 FROM {self.name} GROUP BY {key} HAVING count(*) > 1 LIMIT 1"
        return self.run(twice).first() is not None

    @property
    def grouped(self) -> list[str]:
        """What keeps staged rows apart, compared as the rows are."""
        return self.elements

    def answers(self, sql: str, before: int) -> Iterable[Row]:
        """
        Return the rows of a query, the fetched columns as Python values.

        Args:
            before: How many columns come before the fetched ones.
        """
        result = self.run(sql)
        dialect = self.connection.dialect
        # Some types, as PostgreSQL's, read by the type code that the driver reports.
        kinds = [about[1] for about in result.cursor.description[before:]]
        readers: list[Any] = [
            column.type.dialect_impl(dialect).result_processor(dialect, kind)
            for column, kind in zip(self.fetched, kinds, strict=True)
        ]
        found: Sequence[Row] = result.all()
        if not any(readers):
            return found
        return [
            (
                *row[:before],
                *(
                    value if read is None else read(value)
                    for read, value in zip(readers, row[before:], strict=True)
                ),
            )
            for row in found
        ]
