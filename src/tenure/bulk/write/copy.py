"""PostgreSQL's COPY of rows into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Integer, bindparam, cast, func, select
from sqlalchemy.dialects.postgresql import ARRAY, REGCLASS
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import await_only

from ..._private import dbapi_errors_of_asyncpg
from .rows import Processed, Row, Target, Written, as_statement_error
from .tables import TableInDatabase, unescaped


def _nothing() -> None:
    """Do nothing meanwhile."""


class Copy(Processed):
    """PostgreSQL's COPY into a table, which is reached as *table* says."""

    def __init__(
        self, connection: Connection, target: Target, table: TableInDatabase
    ) -> None:
        super().__init__(connection, target, has_casts=table.habits.has_casts)
        prepare = connection.dialect.identifier_preparer
        self.names = [column.name for column in target.columns]
        self.table = table
        self.into = f"{self.table.name} ({', '.join(map(prepare.quote, self.names))})"

    def write(self, rows: Sequence[Row]) -> Written:
        """Write the rows."""
        self.send(rows)
        return Written(created=len(rows))

    def send(
        self, rows: Sequence[Row], meanwhile: Callable[[], None] = _nothing
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
    meanwhile: Callable[[], None] = _nothing,
) -> None:
    """
    Send rows by COPY, as text with psycopg and binary with asyncpg.

    Args:
        meanwhile: Called once when they are sent.

    Raises:
        sqlalchemy.exc.StatementError: As any statement does.
    """
    sql = f"COPY {unescaped(connection, into)} FROM STDIN"
    driver: Any = connection.connection.driver_connection
    is_sent = False

    def then() -> None:
        nonlocal is_sent
        is_sent = True
        meanwhile()

    try:
        if connection.dialect.driver == "asyncpg":
            if not driver.is_in_transaction():
                # SQLAlchemy begins one with the first statement that it sees.
                connection.exec_driver_sql("SELECT 1")
            sending = driver.copy_records_to_table(
                table, records=rows, columns=list(names), schema_name=schema
            )
            await_only(sending)
            then()
        elif type(driver).__name__.startswith("Async"):
            await_only(_send_async(driver, sql, rows, then))
        else:
            _send(driver, sql, rows, then)
    except Exception as error:
        translated = _translated(connection, sql, error)
        if translated is not error:
            raise translated from error
        if is_sent:
            raise
        with as_statement_error(sql):
            raise
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
    translated: Exception = DBAPIError.instance(
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
