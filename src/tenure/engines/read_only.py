"""
Read-only transactions: asked of the backend, so that nothing gets past them.

PostgreSQL, MySQL and MariaDB: the transaction is made READ ONLY. SQLite: the
connection refuses to write until the transaction ends. Not on a connection that
others use as well, where it would be theirs, too; nor with AUTOCOMMIT, where there is
no transaction.
"""

from __future__ import annotations

from sqlalchemy import Connection
from sqlalchemy.pool import SingletonThreadPool, StaticPool

_FLAG = "tenure_read_only"


def begin_reading(connection: Connection) -> None:
    """Make the transaction of *connection*, which has just begun, one that reads."""
    dialect = connection.dialect.name
    if dialect in ("postgresql", "mysql", "mariadb"):
        _run(connection, "SET TRANSACTION READ ONLY")
    elif dialect == "sqlite" and not isinstance(
        connection.engine.pool, (SingletonThreadPool, StaticPool)
    ):
        # First: it may be cancelled, and done nevertheless.
        connection.info[_FLAG] = True
        _run(connection, "PRAGMA query_only=ON")


def end_reading(connection: Connection) -> None:
    """Let *connection* write again; if it cannot be told so, throw it away."""
    if connection.closed or connection.invalidated or not connection.info.get(_FLAG):
        return
    try:
        _run(connection, "PRAGMA query_only=OFF")
        del connection.info[_FLAG]
    except Exception as error:
        connection.invalidate(error)
        raise


def _run(connection: Connection, statement: str) -> None:
    # Not by SQLAlchemy: it is no statement of the caller's.
    try:
        cursor = connection.connection.cursor()
        cursor.execute(statement)
        cursor.close()
    except BaseException as error:
        # Cut off, a driver may not know of the transaction that it has begun.
        if not isinstance(error, Exception):
            connection.invalidate(error)
        raise
