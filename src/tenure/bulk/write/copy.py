"""PostgreSQL's COPY of rows into a table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from ..._private import dbapi_errors_of_asyncpg
from .rows import Processed, Row, Target, Written, as_statement_error
from .tables import TableInDatabase, unescaped

#: Seconds until what asyncpg has sent last is on its way: it says so to nobody.
_ON_ITS_WAY = 0.003


def do_nothing() -> None:
    """Do nothing meanwhile."""


class Copy(Processed):
    """
    PostgreSQL's COPY into a table, which is reached as *table* says.

    Args:
        meanwhile: Called by :meth:`write` when rows are sent, while the server writes
            them. It must not use the connection.
    """

    def __init__(
        self,
        connection: Connection,
        target: Target,
        table: TableInDatabase,
        meanwhile: Callable[[], None] = do_nothing,
    ) -> None:
        super().__init__(connection, target, has_casts=table.habits.has_casts)
        prepare = connection.dialect.identifier_preparer
        self.names = [column.name for column in target.columns]
        self.table = table
        self.meanwhile = meanwhile
        self.into = f"{self.table.name} ({', '.join(map(prepare.quote, self.names))})"

    def write(self, rows: Sequence[Row]) -> Written:
        """Write the rows."""
        self.send(rows, self.meanwhile)
        return Written(created=len(rows))

    def send(
        self, rows: Sequence[Row], meanwhile: Callable[[], None] = do_nothing
    ) -> None:
        """
        COPY rows into the table; INSERT them where a cast may change a value.

        Args:
            meanwhile: Called when they are sent, while the server writes them.
        """
        if self.has_casts:
            self.insert_rows(self.target.table, self.names, rows)
            meanwhile()
            return
        copy_rows(
            self.connection,
            self.table.schema,
            self.target.table.name,
            self.into,
            self.names,
            rows,
            meanwhile,
        )

    def send_columns(
        self,
        columns: Sequence[Sequence[Any]],
        order: Iterable[int],
        meanwhile: Callable[[], None],
    ) -> None:
        """:meth:`send` rows that are given by column, in *order*."""
        rows = self.rows(columns)
        self.send([rows[n] for n in order], meanwhile)


def draw_keys(
    connection: Connection, column: Any, sequence: str | None, count: int
) -> list[Any]:
    """
    Draw *count* keys from the sequence of a column, all at once.

    Args:
        sequence: Its name, where the column has no default of its own.
    """
    if column.default is not None:
        following = column.default.next_value()
    else:
        name = cast(bindparam("tenure_sequence", sequence), REGCLASS)
        following = func.nextval(name)
    parameter = bindparam("tenure_count", count, Integer)
    numbers = func.generate_series(1, parameter).table_valued("n", name="tenure_number")
    # As one array: fetching many rows takes longer than drawing the keys.
    drawn = select(func.array_agg(following, type_=ARRAY(column.type)))
    made: Any = connection.scalar(drawn.select_from(numbers))
    return list(made)


def copy_rows(
    connection: Connection,
    schema: str | None,
    table: str,
    into: str,
    names: Sequence[str],
    rows: Sequence[Row],
    meanwhile: Callable[[], None] = do_nothing,
) -> None:
    """
    Send rows by COPY, as text with psycopg and binary with asyncpg.

    Args:
        meanwhile: Called once when all of them are sent, while the server writes them.
            It must not use the connection.

    Raises:
        sqlalchemy.exc.StatementError: As any statement does.
        Exception: What *meanwhile* has raised, when the rows are written.
    """
    sql = f"COPY {unescaped(connection, into)} FROM STDIN"
    driver: Any = connection.connection.driver_connection
    then = _Once(meanwhile)
    try:
        if connection.dialect.driver == "asyncpg":
            if not driver.is_in_transaction():
                # SQLAlchemy begins one with the first statement that it sees.
                connection.exec_driver_sql("SELECT 1")
            await_only(_send_asyncpg(driver, schema, table, names, rows, then))
        elif type(driver).__name__.startswith("Async"):
            await_only(_send_async(driver, sql, rows, then))
        else:
            _send(driver, sql, rows, then)
    except Exception as error:
        translated = _translated(connection, sql, error)
        if translated is not error:
            raise translated from error
        with as_statement_error(sql):
            raise
    except BaseException as error:
        # Interrupted: what the driver expects next is unknown, so the connection
        # cannot be used again. SQLAlchemy does the same for its own statements.
        connection.invalidate(error)
        raise
    then()
    if then.error is not None:
        raise then.error


class _Once:
    """Calls something once; an error of it waits until the driver is done."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile: Callable[[], None] | None = meanwhile
        self.error: Exception | None = None

    def __call__(self) -> None:
        meanwhile, self._meanwhile = self._meanwhile, None
        if meanwhile is not None:
            try:
                meanwhile()
            except Exception as error:  # noqa: BLE001  # raised when the rows are written
                self.error = error


def _translated(connection: Connection, sql: str, error: Exception) -> Exception:
    dialect = connection.dialect
    adapted: Any = error
    module: Any = dialect.dbapi
    if not isinstance(error, module.Error):
        if dialect.driver != "asyncpg":
            return error
        translate = dbapi_errors_of_asyncpg(module)
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
    translated: Exception = DBAPIError.instance(
        sql,
        None,
        adapted,
        module.Error,
        connection_invalidated=disconnect,
        dialect=dialect,
    )
    return translated


def _send(driver: Any, sql: str, rows: Sequence[Row], then: _Once) -> None:
    from psycopg.copy import LibpqWriter

    with driver.cursor() as cursor:
        writer = LibpqWriter(cursor)
        with cursor.copy(sql, writer=writer) as stream:
            write = stream.write_row
            for row in rows:
                write(row)
            writer.connection = _Waiting(driver, then)  # type: ignore[assignment]  # all it needs now


async def _send_async(driver: Any, sql: str, rows: Sequence[Row], then: _Once) -> None:
    from psycopg.copy import AsyncLibpqWriter

    async with driver.cursor() as cursor:
        writer = AsyncLibpqWriter(cursor)
        async with cursor.copy(sql, writer=writer) as stream:
            write = stream.write_row
            for row in rows:
                await write(row)
            writer.connection = _Waiting(driver, then)  # type: ignore[assignment]  # as above


class _Waiting:
    """
    A connection of psycopg that waits for the end of a COPY.

    psycopg sends that end and waits for the answer in one go, by a generator which
    yields what it waits for. Where that is the answer, there is time for something else.
    """

    def __init__(self, connection: Any, then: _Once) -> None:
        self._connection = connection
        self._then = then

    def wait(self, steps: Generator[Any, Any, Any], *options: Any, **named: Any) -> Any:
        """Wait for what *steps* yields, as the connection does."""
        return self._connection.wait(self._interposed(steps), *options, **named)

    def _interposed(self, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        from psycopg.waiting import Wait

        try:
            awaited = next(steps)
            while True:
                if awaited == Wait.R:
                    self._then()
                awaited = steps.send((yield awaited))
        except StopIteration as end:
            return end.value


async def _send_asyncpg(
    driver: Any,
    schema: str | None,
    table: str,
    names: Sequence[str],
    rows: Sequence[Row],
    then: _Once,
) -> None:
    loop = asyncio.get_running_loop()
    timers = []

    def all_rows() -> Iterator[Row]:
        yield from rows
        # After this one step the driver waits for the answer.
        timers.append(loop.call_later(_ON_ITS_WAY, then))

    try:
        await driver.copy_records_to_table(
            table, records=all_rows(), columns=list(names), schema_name=schema
        )
    finally:
        for timer in timers:
            timer.cancel()
