"""PostgreSQL's COPY of rows into a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy import exc as sa_exc
from sqlalchemy.util import await_only

from ..._private import dbapi_errors_of_asyncpg
from .rows import Processed, Row, Target, Written
from .tables import TableInDatabase, unescaped


def _nothing() -> None:
    """Do nothing meanwhile."""


class Copy(Processed):
    """PostgreSQL's COPY into a table."""

    def __init__(self, connection: Connection, target: Target) -> None:
        super().__init__(connection, target)
        prepare = connection.dialect.identifier_preparer
        self.names = [column.name for column in target.columns]
        self.table = TableInDatabase(connection, target.table)
        self.into = f"{self.table.name} ({', '.join(map(prepare.quote, self.names))})"

    def write(self, rows: Sequence[Row]) -> Written:
        """COPY the rows."""
        self.send(rows)
        return Written(created=len(rows))

    def send(
        self, rows: Sequence[Row], meanwhile: Callable[[], None] = _nothing
    ) -> None:
        """
        COPY rows into the table.

        Args:
            meanwhile: Called when they are sent, while the server writes them.
        """
        copy_rows(
            self.connection,
            self.table.schema,
            self.target.table.name,
            self.into,
            self.names,
            rows,
            meanwhile,
        )


def copy_rows(
    connection: Connection,
    schema: str | None,
    table: str,
    into: str,
    names: Sequence[str],
    rows: Sequence[Row],
    meanwhile: Callable[[], None] = _nothing,
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
    try:
        if connection.dialect.driver == "asyncpg":
            if not driver.is_in_transaction():
                # SQLAlchemy begins one with the first statement that it sees.
                connection.exec_driver_sql("SELECT 1")
            sending = driver.copy_records_to_table(
                table, records=rows, columns=list(names), schema_name=schema
            )
            await_only(sending)
            meanwhile()
        elif type(driver).__name__.startswith("Async"):
            await_only(_send_async(driver, sql, rows, meanwhile))
        else:
            _send(driver, sql, rows, meanwhile)
    except Exception as error:
        raise _translated(connection, sql, error) from error
    except BaseException as error:
        # Interrupted: what the driver expects next is unknown, so the connection
        # cannot be used again. SQLAlchemy does the same for its own statements.
        connection.invalidate(error)
        raise


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
    translated: Exception = sa_exc.DBAPIError.instance(
        sql,
        None,
        adapted,
        module.Error,
        connection_invalidated=disconnect,
        dialect=dialect,
    )
    return translated


def _send(
    driver: Any, sql: str, rows: Sequence[Row], meanwhile: Callable[[], None]
) -> None:
    with driver.cursor() as cursor, cursor.copy(sql) as stream:
        write = stream.write_row
        for row in rows:
            write(row)
        meanwhile()


async def _send_async(
    driver: Any, sql: str, rows: Sequence[Row], meanwhile: Callable[[], None]
) -> None:
    async with driver.cursor() as cursor, cursor.copy(sql) as stream:
        write = stream.write_row
        for row in rows:
            await write(row)
        meanwhile()
