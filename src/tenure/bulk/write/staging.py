"""
Upsert rows by key, and return of each whether it was created, updated, or neither.

The rows are staged: they go into a temporary table, numbered by their position in the
input. All else is done between two tables of the database, and results come back with
that number. So the database alone decides which keys and values are equal.

PostgreSQL needs one statement, so that what others write comes before or after it.
SQLite has one writer. MariaDB and MySQL lock the rows that exist, update them and
insert the others; a lock by name keeps two such writers from a deadlock.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from zlib import crc32

from sqlalchemy import Column, Connection, Integer, TwoPhaseTransaction, column, table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm.exc import FlushError

from ..._private import is_autocommit
from ..dialects import can_copy, comparable, ensure_transaction
from ..report import Status
from .copy import copy_rows
from .locks import take_write_lock
from .rows import Processed, Row, Target
from .tables import TableInDatabase


class Outcome(NamedTuple):
    """The status of a row that was written, and what was fetched of it."""

    status: Status
    fetched: tuple[Any, ...]


def stage(
    connection: Connection,
    target: Target,
    changing: Sequence[Column[Any]],
    fetched: Sequence[Column[Any]] = (),
) -> Stage | None:
    """
    Return what upserts rows into *target* by staging; ``None`` where that is impossible.

    Args:
        changing: The columns that an update sets.
        fetched: The columns that are returned of each row.
    """
    if not _can_stage(connection):
        return None
    place = TableInDatabase(connection, target.table)
    if place.has_sql_around_values:
        return None
    name = connection.dialect.name
    has_casts = False
    if name == "postgresql":
        if not can_copy(connection):
            return None
        habits = place.habits
        # A trigger may change the key of a row, or keep the row out.
        if habits.takes_inserts_only or habits.has_trigger or habits.is_partitioned:
            return None
        has_casts = habits.has_casts
    kind = _STAGES.get(name)
    if kind is None:
        return None
    return kind(connection, target, changing, fetched, has_casts=has_casts)


def _can_stage(connection: Connection) -> bool:
    """Return whether rows can be staged: a temporary table needs a transaction."""
    if is_autocommit(connection):
        return False
    # PostgreSQL prepares no transaction that has used such a table.
    is_two_phase = isinstance(connection.get_transaction(), TwoPhaseTransaction)
    return not (is_two_phase and connection.dialect.name == "postgresql")


class Stage(Processed, ABC):
    """Upserts rows by way of a temporary table."""

    def __init__(
        self,
        connection: Connection,
        target: Target,
        changing: Sequence[Column[Any]],
        fetched: Sequence[Column[Any]],
        *,
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
        return " OR ".join(
            self.unequal.format(form.format(f"{one}.{c}"), form.format(f"{other}.{c}"))
            for form, c in zip(self.forms, self.changing, strict=True)
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
            f"ON CONFLICT ({', '.join(self.key)}) {action}"
        )

    #: SQL for "two values differ", where NULL equals NULL.
    unequal = "{} IS DISTINCT FROM {}"

    def _has_one_twice(self) -> bool:
        key = ", ".join(map(self.grouped, self.target.key))
        twice = f"SELECT 1 FROM {self.name} GROUP BY {key} HAVING count(*) > 1 LIMIT 1"
        return self.run(twice).first() is not None

    def grouped(self, column: Column[Any]) -> str:
        """Return a staged column of the key, compared as the row's column is."""
        return self.connection.dialect.identifier_preparer.quote(column.name)

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
        columns = [Column("tenure_line", Integer), *self.target.columns]
        names = [of.name for of in columns]
        into = f"{self.name} (tenure_line, {self.listed})"
        numbered = [(line, *row) for line, row in enumerate(rows)]
        if self.has_casts:
            staged = table(self.name, *(column(of.name, of.type) for of in columns))
            self.insert_rows(staged, names, numbered)
        else:
            copy_rows(self.connection, None, self.name, into, names, numbered)

    @property
    def _upsert(self) -> str:
        # Of rows with one key, the first of the input is written first.
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
            # The statement sees the rows that existed before it.
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
        for line, is_new, is_unseen, *fetched in self.answers(sql, before=3):
            if is_new is None and is_unseen:
                unseen.append(line)
            written = "created" if is_new else "updated"
            yield line, self.left if is_new is None else written, *fetched
        if unseen:
            # Another transaction has committed them since that statement began.
            wanted = "".join(f", tenure_row.{c}" for c in self.wanted)
            sql = (
                f"SELECT tenure_line{wanted} FROM {self.name} AS tenure_new "
                f"JOIN {self.table} AS tenure_row ON {self.matches} "
                f"WHERE tenure_line IN ({', '.join(map(str, unseen))})"
            )
            for line, *fetched in self.answers(sql, before=1):
                yield line, self.left, *fetched


class _OnSqlite(Stage):
    unequal = "{} IS NOT {}"

    def grouped(self, column: Column[Any]) -> str:
        # A table that is created from a query has no collations in SQLite.
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
        """Mark which staged rows exist, and whether they differ from their row."""
        same = f"CASE WHEN {self.differs('tenure_row', 'tenure_new')} THEN 2 ELSE 1 END"
        self.run(
            f"UPDATE {self.name} AS tenure_new SET tenure_known = "
            f"{same if self.updates else 1} FROM {self.table} AS tenure_row "
            f"WHERE {self.matches}"
        )

    @property
    def statuses(self) -> dict[int, Status]:
        """The status that each mark stands for."""
        return {0: "created", 1: self.left, 2: "updated"}

    def _all(self, lock: str = "") -> Iterable[Any]:
        wanted = "".join(f", tenure_row.{c}" for c in self.wanted)
        sql = (
            f"SELECT tenure_new.tenure_line, tenure_new.tenure_known{wanted} "
            f"FROM {self.name} AS tenure_new JOIN {self.table} AS tenure_row "
            f"ON {self.matches}{lock}"
        )
        statuses = self.statuses
        for line, known, *fetched in self.answers(sql, before=2):
            yield line, statuses[known], *fetched


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
        take_write_lock(self.connection, self.table)
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
