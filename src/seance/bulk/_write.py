"""
Rows of one table, written in as few calls of the driver as it can take.

A writer is chosen by what the mapping needs and by dialect. Those that go
around the unit of work are used only where it would do the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from types import NoneType
from typing import Any, Literal, Protocol, Self
from uuid import UUID
from zlib import crc32

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    String,
    Table,
    bindparam,
    insert,
    inspect,
    or_,
)
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.util import await_only

from . import _values
from ._dialects import bind_processors
from ._validate import one_zone

Row = tuple[Any, ...]


@dataclass(slots=True)
class Written:
    """What became of rows, in numbers."""

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
    """Where rows go: the columns they have, and the key that conflicts go by."""

    mapper: Mapper[Any]
    columns: tuple[Column[Any], ...]
    key: tuple[Column[Any], ...]
    on_conflict: Literal["raise", "update", "skip"]

    @property
    def table(self) -> Table:
        """The table of the rows."""
        table = self.mapper.local_table
        assert isinstance(table, Table)
        return table

    @property
    def changing(self) -> list[Column[Any]]:
        """The columns an update may change."""
        return [column for column in self.columns if column not in self.key]


class Writer(Protocol):
    """Writes rows, tuples in the order of the target's columns."""

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[Row]:
        """Make rows, as :meth:`write` takes them, of values by column."""
        ...

    def write(self, rows: Sequence[Row]) -> Written:
        """Write *rows*; on an error some of them may be written."""
        ...


def writer(session: Session, connection: Connection, target: Target) -> Writer:
    """Give the fastest writer that does what the unit of work would do."""
    if needs_unit_of_work(target):
        return _UnitOfWork(session, target)
    dialect = connection.dialect
    if can_copy(connection):
        return Copy(connection, target)
    if target.on_conflict == "raise" or dialect.name == "sqlite":
        return _Insert(connection, target)
    return _UnitOfWork(session, target)


def can_copy(connection: Connection) -> bool:
    """Whether rows can be sent by COPY."""
    dialect = connection.dialect
    return dialect.name == "postgresql" and dialect.driver in _COPY


def in_key_order(rows: Sequence[int], key: Sequence[Sequence[Any]]) -> Sequence[int]:
    """
    Give *rows* in the order of their key, which is given by column.

    An index is written faster in its order, and two writers of the same rows take
    their locks in the same order.
    """
    together = list(zip(*key, strict=True)) if len(key) > 1 else key[0]
    try:
        return sorted(rows, key=together.__getitem__)
    except TypeError:
        return rows  # null, or a type without an order


_EVENTS = ("before_insert", "after_insert", "before_update", "after_update")


def needs_unit_of_work(target: Target) -> bool:
    """Whether something about the mapping is done by the unit of work only."""
    mapper = target.mapper
    if mapper.version_id_col is not None or len(mapper.tables) != 1:
        return True
    if mapper.polymorphic_on is not None or not isinstance(mapper.local_table, Table):
        return True
    if any(getattr(mapper.dispatch, name) for name in _EVENTS):
        return True
    present = set(target.columns)
    for column in mapper.local_table.columns:
        if column.onupdate is not None and target.on_conflict == "update":
            return True
        if column in present:
            continue
        default = column.default
        if default is not None and not default.is_sequence:
            return True
    return False


class _UnitOfWork:
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
        """Put rows of one key into rounds of their own, in the order they came."""
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
        # What an __init__ does for a subclass; there is none here.
        discriminate = self.target.mapper._set_polymorphic_identity
        for row in rows:
            instance = self.target.mapper.class_manager.new_instance()
            if discriminate is not None:
                discriminate(inspect(instance))
            for name, value in zip(self.names, row, strict=True):
                setattr(instance, name, value)
            instances.append(instance)
        values = [_values.Value.of(instance, entity) for instance in instances]
        report = _values.flush(
            self.session,
            values,
            on_conflict=self.target.on_conflict,
            update_fields=None,
            on_duplicate="first",
        )
        for value in values:
            # What the session knew before is the program's.
            if inspect(value.instance).persistent and not value.was_known:
                self.session.expunge(value.instance)
        return Written(report.created, report.updated, report.unchanged, report.skipped)


class Processed:
    """Rows as the driver takes them."""

    def __init__(self, connection: Connection, target: Target) -> None:
        self.connection = connection
        self.target = target
        self.processors = bind_processors(
            [column.type for column in target.columns], connection.dialect
        )

    def rows(self, columns: Sequence[Sequence[Any]]) -> list[Row]:
        """Make rows of columns, after the types' bind processors."""
        ready = [
            values if processor is None else _mapped(processor, values)
            for processor, values in zip(self.processors, columns, strict=True)
        ]
        return list(zip(*ready, strict=True))

    def sql(self, statement: Any) -> str:
        """Compile for this connection's driver, one parameter for each column."""
        return str(statement.compile(dialect=self.connection.dialect))

    def insert(self, into: Table) -> Any:
        """Give an INSERT of the target's columns, bound by position."""
        return insert(into).values(
            {column.name: bindparam(column.name) for column in self.target.columns}
        )


#: Types of which equal values are written alike; equal times may be in two zones.
_ALIKE = frozenset({str, int, bool, bytes, date, time, UUID})


def _mapped(processor: Any, values: Sequence[Any]) -> list[Any]:
    """Apply a processor to each value, once to equal ones where that is the same."""
    kinds = set(map(type, values)) - {NoneType}
    if len(kinds) != 1 or not (
        kinds <= _ALIKE or (kinds == {datetime} and one_zone(values))
    ):
        return [processor(value) for value in values]
    known = {value: processor(value) for value in set(values)}
    return [known[value] for value in values]


class _Insert(Processed):
    """The driver's ``executemany``."""

    def __init__(self, connection: Connection, target: Target) -> None:
        super().__init__(connection, target)
        statement = self.insert(target.table)
        self.named = connection.dialect.paramstyle in ("named", "pyformat")
        if target.on_conflict == "raise":
            self.first = self.sql(statement)
            return
        upsert = sqlite.insert(target.table).values(
            {column.name: bindparam(column.name) for column in target.columns}
        )
        self.first = self.sql(upsert.on_conflict_do_nothing(target.key))
        changing = target.changing
        self.second = None
        if target.on_conflict == "update" and changing:
            differs = [
                column.is_distinct_from(upsert.excluded[column.name])
                for column in changing
            ]
            self.second = self.sql(
                upsert.on_conflict_do_update(
                    target.key,
                    set_={c.name: upsert.excluded[c.name] for c in changing},
                    where=or_(*differs),
                )
            )

    def write(self, rows: Sequence[Row]) -> Written:
        """
        Insert; with a conflict policy, insert what is new, then update.

        Two passes, because one upsert does not say which of the two it did;
        the second one is left out when every row was new.
        """
        created = self._execute(self.first, rows)
        if self.target.on_conflict == "raise":
            return Written(created=len(rows))
        left = len(rows) - created
        if self.target.on_conflict == "skip":
            return Written(created=created, skipped=left)
        updated = 0
        if left and self.second is not None:
            updated = self._execute(self.second, rows)
        return Written(created=created, updated=updated, unchanged=left - updated)

    def _execute(self, sql: str, rows: Sequence[Row]) -> int:
        parameters: Any = rows
        if self.named:
            names = [column.name for column in self.target.columns]
            parameters = [dict(zip(names, row, strict=True)) for row in rows]
        return self.connection.exec_driver_sql(sql, parameters).rowcount


class Copy(Processed):
    """
    PostgreSQL's COPY: into the table, or into a temporary one where rows may
    exist already.
    """

    def __init__(self, connection: Connection, target: Target) -> None:
        super().__init__(connection, target)
        prepare = connection.dialect.identifier_preparer
        self.names = [column.name for column in target.columns]
        self.table = prepare.format_table(target.table)
        quoted = [prepare.quote(name) for name in self.names]
        columns = ", ".join(quoted)
        self.into = f"{self.table} ({columns})"
        # One for each set of columns: rows of one load may differ in what they set.
        self.staged = f"seance_stage_{crc32(self.into.encode()):08x}"
        key = ", ".join(prepare.quote(column.name) for column in target.key)
        self.create = (
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {self.staged} ON COMMIT DROP AS "
            f"SELECT 0 AS seance_line, 0 AS seance_round, {columns} "
            f"FROM {self.table} WITH NO DATA"
        )
        self.number = (
            f"UPDATE {self.staged} SET seance_round = r.n FROM (SELECT seance_line AS l, "
            f"row_number() OVER (PARTITION BY {key} ORDER BY seance_line) AS n "
            f"FROM {self.staged}) AS r WHERE seance_line = r.l"
        )
        changing = [prepare.quote(c.name) for c in target.changing]
        action = "DO NOTHING"
        if target.on_conflict == "update" and changing:
            ours = [comparable(c, connection.dialect) for c in target.changing]
            mine = ", ".join(
                f.format(f"seance_row.{c}") for f, c in zip(ours, changing, strict=True)
            )
            theirs = ", ".join(
                f.format(f"excluded.{c}") for f, c in zip(ours, changing, strict=True)
            )
            action = (
                f"DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in changing)} "
                f"WHERE ({mine}) IS DISTINCT FROM ({theirs})"
            )
        self.move = (
            f"INSERT INTO {self.table} AS seance_row ({columns}) SELECT {columns} "
            f"FROM {self.staged} {{where}} ORDER BY {key}, seance_line "
            f"ON CONFLICT ({key}) {action} RETURNING xmax = 0"
        )

    def write(self, rows: Sequence[Row]) -> Written:
        """COPY the rows; with a conflict policy, by way of a temporary table."""
        if self.target.on_conflict == "raise":
            copy(self.connection, self.target.table.schema, self.target.table.name,
                 self.into, self.names, rows)  # fmt: skip
            return Written(created=len(rows))
        self.stage(rows)
        try:
            with self.connection.begin_nested():
                created, updated = self._move("")
        except sa_exc.DBAPIError as error:
            # 21000, cardinality_violation: two rows of the batch have one key.
            if getattr(error.orig, "sqlstate", None) != "21000":
                raise
            created, updated = self._move_in_rounds()
        left = len(rows) - created - updated
        if self.target.on_conflict == "skip":
            return Written(created=created, skipped=left)
        return Written(created=created, updated=updated, unchanged=left)

    def stage(self, rows: Sequence[Row]) -> None:
        """Put *rows* into the temporary table, numbered from 0."""
        run = self.connection.exec_driver_sql
        run(self.create)
        run(f"TRUNCATE {self.staged}")
        prepare = self.connection.dialect.identifier_preparer
        names = ["seance_line", *self.names]
        into = f"{self.staged} ({', '.join(prepare.quote(name) for name in names)})"
        numbered = [(line, *row) for line, row in enumerate(rows)]
        copy(self.connection, None, self.staged, into, names, numbered)

    def _move(self, where: str) -> tuple[int, int]:
        result = self.connection.exec_driver_sql(self.move.format(where=where))
        answers = result.scalars().all()
        created = sum(answers)
        return created, len(answers) - created

    def _move_in_rounds(self) -> tuple[int, int]:
        """Write rows of one key one after the other, in the order they came."""
        run = self.connection.exec_driver_sql
        run(self.number)
        rounds = run(f"SELECT max(seance_round) FROM {self.staged}").scalar_one()
        created = updated = 0
        for number in range(1, rounds + 1):
            more = self._move(f"WHERE seance_round = {number}")
            created += more[0]
            updated += more[1]
        return created, updated


def comparable(column: Column[Any], dialect: Dialect) -> str:
    """Give the form in which values of a column are compared, all of what they say."""
    kind = column.type
    if dialect.name == "postgresql":
        if isinstance(kind, JSON) and not isinstance(kind, postgresql.JSONB):
            return "{0}::text"  # the type json has no equality of its own
        exact = 'COLLATE "C"'
    elif dialect.name == "sqlite":
        exact = "COLLATE BINARY"
    else:
        return "CAST({0} AS BINARY)" if isinstance(kind, (String, JSON)) else "{0}"
    # Equal to a collation is not the same.
    collated = isinstance(kind, String) and kind.collation is not None
    return f"{{0}} {exact}" if collated else "{0}"


def copy(
    connection: Connection,
    schema: str | None,
    table: str,
    into: str,
    names: Sequence[str],
    rows: Sequence[Row],
) -> None:
    """
    Send rows by COPY, as text with psycopg and binary with asyncpg.

    Raises:
        sqlalchemy.exc.DBAPIError: As any statement does.
    """
    sql = f"COPY {into} FROM STDIN"
    driver: Any = connection.connection.driver_connection
    dialect = connection.dialect
    try:
        if dialect.driver == "asyncpg" and not driver.is_in_transaction():
            # SQLAlchemy begins one with the first statement that it sees.
            connection.exec_driver_sql("SELECT 1")
        _COPY[dialect.driver](driver, schema, table, sql, names, rows)
    except Exception as error:
        raise _translated(connection, sql, error) from error
    except BaseException as error:
        # Interrupted: what the driver expects next is unknown, so the connection
        # is of no more use. SQLAlchemy does the same for its own statements.
        connection.invalidate(error)
        raise


def _translated(connection: Connection, sql: str, error: Exception) -> Exception:
    dialect = connection.dialect
    adapted: Any = error
    module: Any = dialect.dbapi
    if not isinstance(error, module.Error):
        # asyncpg's errors become DBAPI ones in SQLAlchemy's adapter only.
        translate = getattr(module, "_asyncpg_error_translate", {})
        for cls in type(error).__mro__:
            if cls in translate:
                message = f"{type(error)}: {error}"
                adapted = translate[cls](message, error)
                # SQLAlchemy 2.0 sets these where it raises, 2.1 in there.
                adapted.args = (message,)
                adapted.sqlstate = getattr(error, "sqlstate", None)
                break
        else:
            return error
    disconnect = dialect.is_disconnect(adapted, connection.connection, None)
    if disconnect:
        connection.invalidate(adapted)
    translated: Exception = sa_exc.DBAPIError.instance(
        sql,
        None,
        adapted,
        module.Error,
        connection_invalidated=disconnect,
        dialect=dialect,
    )
    return translated


def _copy_psycopg(
    driver: Any, schema: Any, table: str, sql: str, names: Any, rows: Sequence[Row]
) -> None:
    with driver.cursor() as cursor, cursor.copy(sql) as stream:
        write = stream.write_row
        for row in rows:
            write(row)


async def _copy_psycopg_async(driver: Any, sql: str, rows: Sequence[Row]) -> None:
    async with driver.cursor() as cursor, cursor.copy(sql) as stream:
        write = stream.write_row
        for row in rows:
            await write(row)


def _copy_psycopg_either(
    driver: Any, schema: Any, table: str, sql: str, names: Any, rows: Sequence[Row]
) -> None:
    if type(driver).__name__.startswith("Async"):
        await_only(_copy_psycopg_async(driver, sql, rows))
    else:
        _copy_psycopg(driver, schema, table, sql, names, rows)


def _copy_asyncpg(
    driver: Any, schema: Any, table: str, sql: str, names: Any, rows: Sequence[Row]
) -> None:
    await_only(
        driver.copy_records_to_table(
            table, records=rows, columns=list(names), schema_name=schema
        )
    )


_COPY: dict[str, Any] = {
    "psycopg": _copy_psycopg_either,
    "asyncpg": _copy_asyncpg,
}
