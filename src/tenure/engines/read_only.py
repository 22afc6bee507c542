"""
Read-only transactions, which the database itself enforces.

PostgreSQL, MySQL and MariaDB: the transaction is READ ONLY. SQLite: the connection
refuses writes until the transaction ends, unless its pool shares it between users.
With AUTOCOMMIT there is no transaction, and so nothing is enforced.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.pool import SingletonThreadPool, StaticPool

_FLAG = "tenure_read_only"


def begin_reading(connection: Connection) -> None:
    """Make the transaction of *connection*, which has just begun, read-only."""
    dialect = connection.dialect.name
    if dialect in ("postgresql", "mysql", "mariadb"):
        _run(connection, "SET TRANSACTION READ ONLY")
    elif dialect == "sqlite" and not isinstance(
        connection.engine.pool, (SingletonThreadPool, StaticPool)
    ):
        # Set first: the statement may be cancelled and still take effect.
        connection.info[_FLAG] = True
        _run(connection, "PRAGMA query_only=ON")


def end_reading(connection: Connection) -> None:
    """
    Allow *connection*, given to :func:`begin_reading` before, to write again.

    If that fails, the connection is invalidated.
    """
    if connection.closed or connection.invalidated or not connection.info.get(_FLAG):
        return
    try:
        _run(connection, "PRAGMA query_only=OFF")
        del connection.info[_FLAG]
    except Exception as error:
        connection.invalidate(error)
        raise


def _run(connection: Connection, statement: str) -> None:
    # By the driver's cursor: SQLAlchemy's events are for the caller's statements.
    try:
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        cursor.close()
    except BaseException as error:
        # After a cancellation the driver may not know that it has begun a transaction.
        if not isinstance(error, Exception):
            connection.invalidate(error)
        raise
