"""
Read-only transactions: asked of the backend, so that nothing gets past them.

PostgreSQL: the engine's transactions begin as READ ONLY. MySQL and MariaDB: the next
transaction is. SQLite: the connection refuses to write until it is given back.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.pool import PoolResetState

_ATTRIBUTE = "_seance_read_only"


def read_only(bind: Engine | Connection) -> Engine | Connection:
    """Give *bind*, or the engine beside it whose transactions only read."""
    if not isinstance(bind, Engine) or bind.dialect.name != "postgresql":
        return bind
    # One for each engine: a session holds its connections by engine.
    found: Engine | None = bind.__dict__.get(_ATTRIBUTE)
    if found is None:
        made = bind.execution_options(postgresql_readonly=True)
        found = bind.__dict__.setdefault(_ATTRIBUTE, made)
    return found


def begin_reading(connection: Connection) -> None:
    """Make the transaction of *connection*, which has just begun, one that reads."""
    dialect = connection.dialect.name
    if dialect in ("mysql", "mariadb"):
        _run(connection, "SET TRANSACTION READ ONLY")
    elif dialect == "sqlite":
        pool = connection.engine.pool
        if not event.contains(pool, "reset", _lift):
            event.listen(pool, "reset", _lift)
        _run(connection, "PRAGMA query_only=ON")
        connection.info[_ATTRIBUTE] = True


def _lift(connection: Any, record: Any, state: PoolResetState) -> None:
    # Elsewhere the connection is thrown away.
    if state.asyncio_safe and record.info.pop(_ATTRIBUTE, False):
        cursor = connection.cursor()
        cursor.execute("PRAGMA query_only=OFF")
        cursor.close()


def _run(connection: Connection, statement: str) -> None:
    # Not by SQLAlchemy: it is no statement of the caller's.
    cursor = connection.connection.cursor()
    cursor.execute(statement)
    cursor.close()
