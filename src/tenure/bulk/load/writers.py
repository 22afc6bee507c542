"""
Rows of one table, written in as few calls of the driver as it can take.

A writer is chosen by what the mapping needs and by dialect. Those that go
around the unit of work are used only where it would do the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from sqlalchemy import (
    Column,
    Connection,
    bindparam,
    insert,
    inspect,
    text,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Session

from ...mapping import UniqueKey, new_instance
from ..dialects import any_of, can_copy, comparable
from ..save import FlushOptions, flush
from ..value import Value
from ..write import (
    Copy,
    Processed,
    Row,
    Stage,
    TableInDatabase,
    Target,
    Written,
    do_nothing,
    stage,
    take_write_lock,
    why_not_bypassed,
)


class Writer(Protocol):
    """Writes rows, tuples in the order of the target's columns."""

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[Row]:
        """Make rows, as :meth:`write` takes them, of values by column."""
        ...

    def write(self, rows: Sequence[Row]) -> Written:
        """Write *rows*; on an error some of them may be written."""
        ...


def writer(
    session: Session,
    connection: Connection,
    target: Target,
    *,
    needs_unit_of_work: bool = False,
    meanwhile: Callable[[], None] = do_nothing,
) -> Writer:
    """
    Return the fastest writer that has the effect of the unit of work.

    Args:
        meanwhile: What to do while the server writes rows, where that is possible.
    """
    if needs_unit_of_work or why_not_bypassed(
        session,
        target.mapper,
        on_conflict=target.on_conflict,
        columns=target.columns,
    ):
        return UnitOfWork(session, target)
    table = TableInDatabase(connection, target.table)
    unique = None if target.on_conflict == "raise" else table.unique(target)
    if target.on_conflict != "raise" and unique is None:
        # What keeps the rows unique cannot be named, so they are looked up.
        return UnitOfWork(session, target)
    if target.on_conflict != "raise" and connection.dialect.name != "sqlite":
        staged = stage(connection, target, target.changing)
        return UnitOfWork(session, target) if staged is None else _Staged(staged)
    if not can_copy(connection):
        return _Insert(connection, target, unique)
    if table.habits.takes_inserts_only:
        return UnitOfWork(session, target)
    return Copy(connection, target, table, meanwhile)


class UnitOfWork:
    """Rows as mapped objects, flushed and let go."""

    def __init__(self, session: Session, target: Target) -> None:
        self.session = session
        self.target = target
        self.names = [
            target.mapper.get_property_by_column(column).key
            for column in target.columns
        ]

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[Row]:
        """Make rows of columns; the unit of work applies types itself."""
        return list(zip(*columns, strict=True))

    def write(self, rows: Sequence[Row]) -> Written:
        """Add, flush and expunge one object for each row."""
        total = Written()
        for some in self._rounds(rows):
            total += self._write(some)
        return total

    def _rounds(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Split rows so that each round has a key once, in the order they came."""
        if self.target.on_conflict == "raise":
            return [list(rows)]
        key = [self.target.columns.index(column) for column in self.target.key]
        rounds: list[list[Row]] = []
        seen: Counter[Row] = Counter()
        for row in rows:
            token = tuple([row[place] for place in key])
            if seen[token] == len(rounds):
                rounds.append([])
            rounds[seen[token]].append(row)
            seen[token] += 1
        return rounds

    def _write(self, rows: Sequence[Row]) -> Written:
        entity = self.target.mapper.class_
        instances = []
        for row in rows:
            instance = new_instance(self.target.mapper)
            for name, value in zip(self.names, row, strict=True):
                setattr(instance, name, value)
            instances.append(instance)
        values = [Value.of(instance, entity) for instance in instances]
        names = [
            self.target.mapper.get_property_by_column(column).key
            for column in self.target.changing
        ]
        options = FlushOptions(
            on_conflict=self.target.on_conflict,
            on_duplicate="first",
            update_fields=names if self.target.on_conflict == "update" else None,
        )
        report = flush(self.session, values, options)
        for value in values:
            # Instances that the session had before belong to the program.
            if inspect(value.instance).persistent and not value.was_known:
                self.session.expunge(value.instance)
        return Written(report.created, report.updated, report.unchanged, report.skipped)


class _Staged:
    """Rows by way of a temporary table."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.rows = stage.rows

    def write(self, rows: Sequence[Row]) -> Written:
        """Write rows, those of one key one after the other."""
        # Two loads of several batches could wait for each other's rows.
        take_write_lock(self.stage.connection, self.stage.table)
        counts = self.stage.write_all(rows)
        if counts is None:
            counts = Counter()
            for turn in self.stage.rounds():
                some = [rows[line] for line in turn]
                counts.update(self.stage.write_all(some, distinct=True) or {})
        return Written(**{str(status): times for status, times in counts.items()})


class _Insert(Processed):
    """The driver's ``executemany``."""

    def __init__(
        self, connection: Connection, target: Target, unique: UniqueKey | None
    ) -> None:
        super().__init__(connection, target)
        self.names = [column.name for column in target.columns]
        parameters: dict[str, Any] = {n: bindparam(n) for n in self.names}
        #: What tells how many rows were inserted, where one statement also updates.
        self.newest = ""
        if unique is None:
            self.statements = [self.sql(insert(target.table).values(parameters))]
            return
        upsert = sqlite.insert(target.table).values(parameters)
        changing = target.changing
        where = unique.where.get(connection.dialect.name)
        conflict: Any = {"index_elements": unique.elements, "index_where": where}
        self.statements = [self.sql(upsert.on_conflict_do_nothing(**conflict))]
        if target.on_conflict == "skip" or not changing:
            return
        differs = [
            f"{form.format(name)} IS NOT {form.format(excluded)}"
            for form, name, excluded in self._compared(changing)
        ]
        update = self.sql(
            upsert.on_conflict_do_update(
                **conflict,
                set_={c.name: upsert.excluded[c.name] for c in changing},
                where=text(any_of(differs)),
            )
        )
        counter: Any = target.table.autoincrement_column
        if counter is None or counter in target.columns or not self._is_counted():
            self.statements.append(update)
        else:
            # Each new row has the next number.
            self.statements = [update]
            table = TableInDatabase(connection, target.table).name
            self.newest = f"SELECT coalesce(max(_rowid_), 0) FROM {table}"

    def _is_counted(self) -> bool:
        """
        Whether each new row has the number after the greatest one.

        With AUTOINCREMENT it has not, and a trigger may add rows of its own.
        """
        table = self.target.table
        if not table.dialect_options["sqlite"]["with_rowid"]:
            return False
        schema = ""
        if table.schema is not None:
            prepare = self.connection.dialect.identifier_preparer
            schema = f"{prepare.quote_schema(table.schema)}."
        sql = (
            f"SELECT sql FROM {schema}sqlite_master WHERE tbl_name = ? "
            f"COLLATE NOCASE AND type IN ('table', 'trigger')"
        )
        found = self.connection.exec_driver_sql(sql, (table.name,)).scalars().all()
        return len(found) == 1 and "autoincrement" not in found[0].lower()

    def _compared(
        self, columns: Sequence[Column[Any]]
    ) -> Iterator[tuple[str, str, str]]:
        prepare = self.connection.dialect.identifier_preparer
        table = TableInDatabase(self.connection, self.target.table).name
        for column in columns:
            name = prepare.quote(column.name)
            form = comparable(column, self.connection.dialect)
            yield form, f"{table}.{name}", f"excluded.{name}"

    def write(self, rows: Sequence[Row]) -> Written:
        """
        Insert; with a conflict policy, insert what is new and update the rest.

        Where the numbers of rows do not tell which of the two was done, in two passes.
        """
        before = self._newest()
        first, *more = [
            self.send_rows(sql, self.names, rows) for sql in self.statements
        ]
        created = self._newest() - before if self.newest else first
        left = len(rows) - created
        match self.target.on_conflict:
            case "raise":
                return Written(created=len(rows))
            case "skip":
                return Written(created=created, skipped=left)
        updated = first - created if self.newest else sum(more)
        return Written(created=created, updated=updated, unchanged=left - updated)

    def _newest(self) -> int:
        if not self.newest:
            return 0
        number: int = self.connection.exec_driver_sql(self.newest).scalar_one()
        return number
