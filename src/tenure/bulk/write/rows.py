"""
Rows of one table as a driver takes them, and PostgreSQL's COPY of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from types import NoneType
from typing import Any, Literal, Self
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    Connection,
    String,
    Table,
    TwoPhaseTransaction,
    bindparam,
    insert,
)
from sqlalchemy import exc as sa_exc
from sqlalchemy.dialects.postgresql import CITEXT, JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper
from sqlalchemy.util import await_only

from ..lookup import bind_processors
from .tables import Place, unescaped

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


def can_copy(connection: Connection) -> bool:
    """Whether rows can be sent by COPY."""
    dialect = connection.dialect
    return dialect.name == "postgresql" and dialect.driver in _COPY


def can_stage(connection: Connection) -> bool:
    """Whether rows can go by way of a temporary table, which is for one transaction."""
    if connection._is_autocommit_isolation():
        return False
    # PostgreSQL prepares none that has used such a table.
    is_two_phase = isinstance(connection.get_transaction(), TwoPhaseTransaction)
    return not (is_two_phase and connection.dialect.name == "postgresql")


def in_key_order(rows: Sequence[int], key: Sequence[Sequence[Any]]) -> Sequence[int]:
    """
    Give *rows* in the order of their key, which is given by column.

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
        options = self.connection.get_execution_options()
        schemas = options.get("schema_translate_map")
        compiled = statement.compile(
            dialect=self.connection.dialect,
            schema_translate_map=schemas,
            render_schema_translate=bool(schemas),
        )
        return str(compiled)

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


def one_zone(values: Iterable[Any]) -> bool:
    """Whether equal times of *values* are equal in every way."""
    return len({value.tzinfo for value in values if value is not None}) < 2


class Copy(Processed):
    """PostgreSQL's COPY into a table."""

    def __init__(self, connection: Connection, target: Target) -> None:
        super().__init__(connection, target)
        prepare = connection.dialect.identifier_preparer
        self.names = [column.name for column in target.columns]
        self.place = Place(connection, target.table)
        self.into = f"{self.place.name} ({', '.join(map(prepare.quote, self.names))})"

    def write(self, rows: Sequence[Row]) -> Written:
        """COPY the rows."""
        self.send(rows)
        return Written(created=len(rows))

    def send(
        self, rows: Sequence[Row], meanwhile: Callable[[], None] | None = None
    ) -> None:
        """
        COPY rows into the table.

        Args:
            meanwhile: Called when they are sent, while the server writes them.
        """
        copy(
            self.connection,
            self.place.schema,
            self.target.table.name,
            self.into,
            self.names,
            rows,
            meanwhile,
        )


def comparable(column: Column[Any], dialect: Dialect) -> str:
    """Give the form in which values of a column are compared, all of what they say."""
    kind = column.type._unwrapped_dialect_impl(dialect)  # a decorator wraps its own
    if dialect.name == "postgresql":
        if isinstance(kind, ARRAY):
            kind = kind.item_type._unwrapped_dialect_impl(dialect)
        if isinstance(kind, (JSON, CITEXT)) and not isinstance(kind, JSONB):
            return "{0}::text"  # json is equal to nothing, and citext to too much
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
    meanwhile: Callable[[], None] | None = None,
) -> None:
    """
    Send rows by COPY, as text with psycopg and binary with asyncpg.

    Args:
        meanwhile: Called once when they are sent.

    Raises:
        sqlalchemy.exc.DBAPIError: As any statement does.
    """
    sql = f"COPY {unescaped(connection, into)} FROM STDIN"
    driver: Any = connection.connection.driver_connection
    dialect = connection.dialect
    try:
        if dialect.driver == "asyncpg" and not driver.is_in_transaction():
            # SQLAlchemy begins one with the first statement that it sees.
            connection.exec_driver_sql("SELECT 1")
        send = _COPY[dialect.driver]
        send(driver, schema, table, sql, names, rows, meanwhile or _nothing)
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


Meanwhile = Callable[[], None]


def _nothing() -> None:
    """Do nothing meanwhile."""


def _copy_psycopg(
    driver: Any,
    schema: Any,
    table: str,
    sql: str,
    names: Any,
    rows: Sequence[Row],
    meanwhile: Meanwhile,
) -> None:
    if type(driver).__name__.startswith("Async"):
        await_only(_copy_psycopg_async(driver, sql, rows, meanwhile))
        return
    with driver.cursor() as cursor, cursor.copy(sql) as stream:
        write = stream.write_row
        for row in rows:
            write(row)
        meanwhile()


async def _copy_psycopg_async(
    driver: Any, sql: str, rows: Sequence[Row], meanwhile: Meanwhile
) -> None:
    async with driver.cursor() as cursor, cursor.copy(sql) as stream:
        write = stream.write_row
        for row in rows:
            await write(row)
        meanwhile()


def _copy_asyncpg(
    driver: Any,
    schema: Any,
    table: str,
    sql: str,
    names: Any,
    rows: Sequence[Row],
    meanwhile: Meanwhile,
) -> None:
    await_only(
        driver.copy_records_to_table(
            table, records=rows, columns=list(names), schema_name=schema
        )
    )
    meanwhile()


_COPY: dict[str, Any] = {
    "psycopg": _copy_psycopg,
    "asyncpg": _copy_asyncpg,
}
