"""
Upsert rows by key, and return of each whether it was created, updated, or neither.

PostgreSQL needs one statement, so that what others write comes before or after it.
SQLite has one writer. MariaDB and MySQL lock the rows that exist, update them and
insert the others; a lock by name keeps two such writers from a deadlock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Column, Connection, Integer, TwoPhaseTransaction, column, table
from sqlalchemy.exc import DBAPIError

from ..._private import is_autocommit
from ..dialects import can_copy, ensure_transaction
from ..report import Status
from .copy import copy_rows
from .locks import take_write_lock
from .rows import Row, Target
from .staging import Stage
from .tables import TableInDatabase


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
    unique = place.unique(target)
    if unique is None or place.has_sql_around_values:
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
    # The line and the mark of a row are columns as well.
    if kind is None or len(target.columns) + 2 > _MOST_COLUMNS[name]:
        return None
    return kind(
        connection, target, changing, fetched, unique=unique, has_casts=has_casts
    )


def _can_stage(connection: Connection) -> bool:
    """Return whether rows can be staged: a temporary table needs a transaction."""
    if is_autocommit(connection):
        return False
    # PostgreSQL prepares no transaction that has used such a table.
    is_two_phase = isinstance(connection.get_transaction(), TwoPhaseTransaction)
    return not (is_two_phase and connection.dialect.name == "postgresql")


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
        return self.upsert(f"{', '.join(self.elements)}, tenure_line")

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

    @property
    def grouped(self) -> list[str]:
        # A table that is created from a query has no collations in SQLite.
        dialect = self.connection.dialect
        kinds: list[Any] = [c.type.dialect_impl(dialect) for c in self.target.key]
        collations = [getattr(kind, "collation", None) for kind in kinds]
        return [
            name if collation is None else f"{name} COLLATE {collation}"
            for name, collation in zip(self.key, collations, strict=True)
        ]

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


#: How many columns a temporary table can have. Source: the manuals' pages of limits.
_MOST_COLUMNS = {"postgresql": 1_600, "sqlite": 2_000, "mysql": 1_017, "mariadb": 1_017}

_STAGES: dict[str, type[Stage]] = {
    "postgresql": _OnPostgresql,
    "sqlite": _OnSqlite,
    "mysql": _OnMysql,
    "mariadb": _OnMysql,
}
