"""
Rows written by key, with what became of each: new, changed, the same, or left alone.

The rows go into a temporary table first, each with its place in the input. The rest
is between two tables of the database, and answers come back by place, so what is equal
is for the database to say here as well.

PostgreSQL does it in one statement, so that what others write meanwhile comes before
or after. SQLite has one writer. MariaDB and MySQL lock the rows that exist, update
them and insert the others; a lock by name keeps two of these from waiting for each
other for ever.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from sqlalchemy import Column, Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import FlushError

from ..dialects import can_copy, comparable, ensure_transaction
from ..report import Status
from .copy import copy_rows
from .locks import take_turn
from .rows import Processed, Row, Target, can_stage
from .tables import TableInDatabase


class Outcome(NamedTuple):
    """What became of a row, and what was fetched of it."""

    status: Status
    fetched: tuple[Any, ...]


def stage(
    connection: Connection,
    target: Target,
    changing: Sequence[Column[Any]],
    fetched: Sequence[Column[Any]] = (),
) -> Stage | None:
    """
    Give what writes rows by way of a temporary table; ``None`` where nothing can.

    Args:
        changing: What an update sets.
        fetched: What is given back of each row.
    """
    if not can_stage(connection):
        return None
    table = TableInDatabase(connection, target.table)
    if table.has_sql_around_values:
        return None
    name = connection.dialect.name
    if name == "postgresql":
        if not can_copy(connection):
            return None
        habits = table.habits
        # What a trigger makes of a row may have another key, or be no row.
        if habits.takes_inserts_only or habits.has_trigger or habits.is_partitioned:
            return None
    kind = _STAGES.get(name)
    return None if kind is None else kind(connection, target, changing, fetched)


class Stage(Processed, ABC):
    """Writes rows by way of a temporary table."""

    def __init__(
        self,
        connection: Connection,
        target: Target,
        changing: Sequence[Column[Any]],
        fetched: Sequence[Column[Any]],
    ) -> None:
        super().__init__(connection, target)
        prepare = connection.dialect.identifier_preparer
        self.fetched = list(fetched)
        self.table = TableInDatabase(connection, target.table).name
        self.columns = [prepare.quote(column.name) for column in target.columns]
        # One for each set of columns: rows of one bulk may differ in what they set.
        token = f"{self.table} ({', '.join(self.columns)})"
        self.name = f"tenure_stage_{crc32(token.encode()):08x}"
        self.listed = ", ".join(self.columns)
        self.key = [prepare.quote(column.name) for column in target.key]
        self.changing = [prepare.quote(column.name) for column in changing]
        self.wanted = [prepare.quote(column.name) for column in fetched]
        #: How a value of each changing column is written to be compared.
        self.forms = [comparable(column, connection.dialect) for column in changing]
        self.updates = target.on_conflict == "update" and bool(changing)
        #: What becomes of rows that are there and are not updated.
        self.left: Status = "unchanged" if target.on_conflict == "update" else "skipped"
        #: The condition under which a row of the table has the key of a staged one.
        self.matches = " AND ".join(
            f"tenure_row.{name} = tenure_new.{name}" for name in self.key
        )

    def write_each(
        self, rows: Sequence[Row], *, distinct: bool = False
    ) -> list[Outcome] | None:
        """
        Write *rows*, as :meth:`rows` makes them; say of each what became of it.

        ``None``, with nothing written, where two of them have one key.

        Args:
            distinct: It is known that none have.

        Raises:
            FlushError: Some are not there afterwards.
        """
        self.fill(rows)
        if not distinct and self._has_one_twice():
            return None
        found: list[Outcome | None] = [None] * len(rows)
        for place, status, *fetched in self.move():
            found[place] = Outcome(status, tuple(fetched))
        if None in found:
            raise FlushError(
                f"{len(rows)} rows were written into {self.table} and "
                f"{found.count(None)} of them have no row of their key afterwards; is "
                f"there a trigger that changes keys, or keeps rows out?"
            )
        return [outcome for outcome in found if outcome is not None]

    def write_all(
        self, rows: Sequence[Row], *, distinct: bool = False
    ) -> Counter[Status] | None:
        """As :meth:`write_each`, but only say how often each came to be."""
        outcomes = self.write_each(rows, distinct=distinct)
        if outcomes is None:
            return None
        return Counter(outcome.status for outcome in outcomes)

    def turns(self) -> list[list[int]]:
        """Put what is staged into turns, so that no two of one have one key."""
        key = ", ".join(map(self.grouped, self.target.key))
        order = f"OVER (PARTITION BY {key} ORDER BY tenure_line)"
        sql = f"SELECT tenure_line, row_number() {order} FROM {self.name}"
        turns: list[list[int]] = []
        for line, turn in sorted(self.run(sql).all()):
            while len(turns) < turn:
                turns.append([])
            turns[turn - 1].append(line)
        return turns

    def fill(self, rows: Sequence[Row]) -> None:
        """Put *rows* into the temporary table, numbered from 0."""
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
        """What drops what an earlier batch has left, whatever columns the table had then."""
        return f"DROP TABLE IF EXISTS temp.{self.name}"

    def marks(self, names: Sequence[str]) -> str:
        """Give the markers of parameters that are sent by position."""
        mark = "?" if self.connection.dialect.paramstyle == "qmark" else "%s"
        return ", ".join([mark] * len(names))

    @abstractmethod
    def move(self) -> Iterable[Any]:
        """Write what is staged; give place, status and what was fetched of each."""

    def run(self, sql: str) -> Any:
        """Execute a statement as it stands."""
        return self.connection.exec_driver_sql(sql)

    def differs(self, one: str, other: str) -> str:
        """Say in SQL that a changing column of two tables differs."""
        return " OR ".join(
            self.unequal.format(form.format(f"{one}.{c}"), form.format(f"{other}.{c}"))
            for form, c in zip(self.forms, self.changing, strict=True)
        )

    def upsert(self, order: str) -> str:
        """
        Write the statement that inserts what is staged, or updates where it is there.

        Args:
            order: The columns by which the rows are sorted.
        """
        action = "DO NOTHING"
        if self.updates:
            sets = ", ".join(f"{name} = excluded.{name}" for name in self.changing)
            differs = self.differs("tenure_row", "excluded")
            action = f"DO UPDATE SET {sets} WHERE {differs}"
        return (
            f"INSERT INTO {self.table} AS tenure_row ({self.listed}) "
            # SQLite takes an ON after the name of a table for that of a join.
            f"SELECT {self.listed} FROM {self.name} WHERE 1 = 1 ORDER BY {order} "
            f"ON CONFLICT ({', '.join(self.key)}) {action}"
        )

    #: That two values differ, NULL being equal to NULL.
    unequal = "{} IS DISTINCT FROM {}"

    def _has_one_twice(self) -> bool:
        key = ", ".join(map(self.grouped, self.target.key))
        twice = f"SELECT 1 FROM {self.name} GROUP BY {key} HAVING count(*) > 1 LIMIT 1"
        return self.run(twice).first() is not None

    def grouped(self, column: Column[Any]) -> str:
        """Write a staged column of the key so that it is equal where the row's is."""
        return self.connection.dialect.identifier_preparer.quote(column.name)

    def answers(self, sql: str, before: int) -> Iterable[Row]:
        """
        Give the rows of a query, with what is fetched as Python has it.

        Args:
            before: How many columns come before those that are fetched.
        """
        result = self.run(sql)
        dialect = self.connection.dialect
        # Some types read by what the driver says it has got, as those of PostgreSQL do.
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


class _OnPostgresql(Stage):
    def write_all(
        self, rows: Sequence[Row], *, distinct: bool = False
    ) -> Counter[Status] | None:
        self.fill(rows)
        try:
            with self.connection.begin_nested():
                inserted = self.run(f"{self._upsert} RETURNING xmax = 0")
                answers = inserted.scalars().all()
        except DBAPIError as error:
            # 21000, cardinality_violation: two rows of the batch have one key.
            if distinct or getattr(error.orig, "sqlstate", None) != "21000":
                raise
            return None
        created = sum(answers)
        updated = len(answers) - created
        left = len(rows) - len(answers)
        return Counter({"created": created, "updated": updated, self.left: left})

    def fill(self, rows: Sequence[Row]) -> None:
        self.run(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {self.name} ON COMMIT DROP AS "
            f"SELECT 0 AS tenure_line, {self.listed} FROM {self.table} WITH NO DATA"
        )
        self.run(f"TRUNCATE {self.name}")
        names = ["tenure_line", *(column.name for column in self.target.columns)]
        into = f"{self.name} (tenure_line, {self.listed})"
        numbered = [(line, *row) for line, row in enumerate(rows)]
        copy_rows(self.connection, None, self.name, into, names, numbered)

    @property
    def _upsert(self) -> str:
        # Of rows with one key, the first to come is the first to be written.
        return self.upsert(f"{', '.join(self.key)}, tenure_line")

    def move(self) -> Iterable[Any]:
        back = [f"tenure_f{n}" for n in range(len(self.wanted))]
        returned = "".join(
            f", tenure_row.{c} AS {name}"
            for c, name in zip(self.wanted, back, strict=True)
        )
        keys = [f"tenure_k{n}" for n in range(len(self.key))]
        made = "".join(
            f", tenure_row.{c} AS {name}"
            for c, name in zip(self.key, keys, strict=True)
        )
        same = " AND ".join(
            f"tenure_written.{name} = tenure_new.{c}"
            for c, name in zip(self.key, keys, strict=True)
        )
        known = "".join(
            # Of rows that were there before, which is what this statement sees.
            f", CASE WHEN tenure_written.tenure_is_new IS NULL THEN tenure_row.{c} "
            f"ELSE tenure_written.{name} END"
            for c, name in zip(self.wanted, back, strict=True)
        )
        sql = (
            f"WITH tenure_written AS ({self._upsert} "
            f"RETURNING xmax = 0 AS tenure_is_new{made}{returned}) "
            f"SELECT tenure_new.tenure_line, tenure_written.tenure_is_new, "
            f"tenure_row.{self.key[0]} IS NULL{known} "
            f"FROM {self.name} AS tenure_new "
            f"LEFT JOIN tenure_written ON {same} "
            f"LEFT JOIN {self.table} AS tenure_row ON {self.matches}"
        )
        unseen = []
        for place, is_new, is_unseen, *fetched in self.answers(sql, before=3):
            if is_new is None and is_unseen:
                unseen.append(place)
            written = "created" if is_new else "updated"
            yield place, self.left if is_new is None else written, *fetched
        if unseen:
            # Committed by somebody else since this statement began.
            wanted = "".join(f", tenure_row.{c}" for c in self.wanted)
            sql = (
                f"SELECT tenure_line{wanted} FROM {self.name} AS tenure_new "
                f"JOIN {self.table} AS tenure_row ON {self.matches} "
                f"WHERE tenure_line IN ({', '.join(map(str, unseen))})"
            )
            for place, *fetched in self.answers(sql, before=1):
                yield place, self.left, *fetched


class _OnSqlite(Stage):
    unequal = "{} IS NOT {}"

    def grouped(self, column: Column[Any]) -> str:
        # A table made from a query there has no collations.
        kind: Any = column.type.dialect_impl(self.connection.dialect)
        collation = getattr(kind, "collation", None)
        name = super().grouped(column)
        return name if collation is None else f"{name} COLLATE {collation}"

    def move(self) -> Iterable[Any]:
        ensure_transaction(self.connection)
        # From here on nobody else writes.
        self.run(f"DELETE FROM {self.table} WHERE 1 = 0")
        self._mark()
        self.run(self.upsert("tenure_line"))
        return self._all()

    def _mark(self) -> None:
        """Note which rows exist, and whether they say the same."""
        same = f"CASE WHEN {self.differs('tenure_row', 'tenure_new')} THEN 2 ELSE 1 END"
        self.run(
            f"UPDATE {self.name} AS tenure_new SET tenure_known = "
            f"{same if self.updates else 1} FROM {self.table} AS tenure_row "
            f"WHERE {self.matches}"
        )

    @property
    def statuses(self) -> dict[int, Status]:
        """What the marks of staged rows mean."""
        return {0: "created", 1: self.left, 2: "updated"}

    def _all(self, lock: str = "") -> Iterable[Any]:
        wanted = "".join(f", tenure_row.{c}" for c in self.wanted)
        sql = (
            f"SELECT tenure_new.tenure_line, tenure_new.tenure_known{wanted} "
            f"FROM {self.name} AS tenure_new JOIN {self.table} AS tenure_row "
            f"ON {self.matches}{lock}"
        )
        statuses = self.statuses
        for place, known, *fetched in self.answers(sql, before=2):
            yield place, statuses[known], *fetched


class _OnMysql(_OnSqlite):
    unequal = "NOT ({} <=> {})"

    @property
    def drop(self) -> str:
        # Any other DROP TABLE commits.
        return f"DROP TEMPORARY TABLE IF EXISTS {self.name}"

    def write_all(
        self, rows: Sequence[Row], *, distinct: bool = False
    ) -> Counter[Status] | None:
        self.fill(rows)
        if not distinct and self._has_one_twice():
            return None
        self._write()
        known = f"SELECT tenure_known, count(*) FROM {self.name} GROUP BY tenure_known"
        return Counter({self.statuses[n]: times for n, times in self.run(known).all()})

    def move(self) -> Iterable[Any]:
        self._write()
        return self._all(" LOCK IN SHARE MODE")

    def _write(self) -> None:
        take_turn(self.connection, self.table)
        self._mark()
        both = f"{self.table} AS tenure_row JOIN {self.name} AS tenure_new"
        if self.updates:
            sets = ", ".join(f"tenure_row.{c} = tenure_new.{c}" for c in self.changing)
            self.run(
                f"UPDATE {both} ON {self.matches} SET {sets} WHERE tenure_known = 2"
            )
        self.run(
            f"INSERT INTO {self.table} ({self.listed}) SELECT {self.listed} "
            f"FROM {self.name} WHERE tenure_known = 0 ORDER BY {', '.join(self.key)}"
        )

    def _mark(self) -> None:
        same = f"IF({self.differs('tenure_row', 'tenure_new')}, 2, 1)"
        self.run(
            f"UPDATE {self.name} AS tenure_new JOIN {self.table} AS tenure_row "
            f"ON {self.matches} SET tenure_known = {same if self.updates else 1}"
        )


_STAGES: dict[str, type[Stage]] = {
    "postgresql": _OnPostgresql,
    "sqlite": _OnSqlite,
    "mysql": _OnMysql,
    "mariadb": _OnMysql,
}
