"""
Locks that keep two transactions of ours from writing batches into one table.

Without them each could lock rows that the other one needs next: a deadlock.

A lock ends with the transaction. PostgreSQL has advisory locks that do. Those of
MariaDB and MySQL belong to the connection, so they are released when SQLAlchemy
announces the end of the transaction, right before the COMMIT; it announces nothing
after it. The next writer may start before that COMMIT is done, and then waits for the
locks of the rows. Nothing more is written before the COMMIT, so this cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from zlib import crc32

from sqlalchemy import Connection, Table, event

from ...errors import DatabaseError, DeadlineExceededError
from .tables import TableInDatabase


def take_write_lock(connection: Connection, table: str) -> None:
    """
    Be the only one to write batches into *table* until the transaction ends.

    Waits for whoever does so now. Does nothing where a database has no need of it.

    Args:
        table: Its name, as statements have it.

    Raises:
        DeadlineExceededError: It took longer than the server waits for locks.
        DatabaseError: The server cannot give the lock at all.
    """
    take = _TAKE.get(connection.dialect.name)
    if take is not None:
        take(connection, table)


def take_write_locks(connection: Connection, tables: Iterable[Table]) -> None:
    """
    Call :func:`take_write_lock` for each of *tables*, in the order of their names.

    Who writes into several tables calls this once, before the first of them: with one
    order, two never wait for each other.
    """
    for name in sorted({TableInDatabase(connection, table).name for table in tables}):
        take_write_lock(connection, name)


def _on_postgresql(connection: Connection, table: str) -> None:
    name = table.replace("'", "''")
    connection.exec_driver_sql(
        "SELECT pg_advisory_xact_lock(hashtext('tenure'), "
        f"'{name}'::regclass::oid::integer)"
    )


def _on_mysql(connection: Connection, table: str) -> None:
    # InnoDB locks gaps between keys, so that two writers could wait for each other
    # however their rows are sorted.
    name = f"tenure {crc32(f'{connection.engine.url.database}.{table}'.encode()):08x}"
    held = connection.info.setdefault(_HELD, set())
    if name in held:
        return
    asked = connection.exec_driver_sql(
        f"SELECT GET_LOCK('{name}', @@lock_wait_timeout), @@lock_wait_timeout"
    )
    is_held, seconds = asked.one()
    if is_held is None:
        raise DatabaseError(
            f"the server could not give the lock {name!r} that writing into {table} "
            f"needs: it ran out of memory, or was told to end the statement; see its "
            f"log, then write again"
        )
    if not is_held:
        raise DeadlineExceededError(
            f"others have been writing into {table} for {seconds} seconds, the "
            f"server's lock_wait_timeout; write again when their transactions have "
            f"ended, or raise that limit"
        )
    held.add(name)
    for ending in _ENDINGS:
        # Listening twice with the same function registers it once.
        event.listen(connection, ending, _release)


#: The key of ``Connection.info`` for the names of held locks.
_HELD = "tenure_locks"

# A prepared transaction runs no such statement any more, so that is an ending too.
_ENDINGS = (
    "commit",
    "rollback",
    "prepare_twophase",
    "commit_twophase",
    "rollback_twophase",
)


def _release(connection: Connection, *_: Any) -> None:
    if connection.closed or connection.invalidated:
        return  # the server has released them
    held: set[str] = connection.info.get(_HELD, set())
    for name in tuple(held):
        # Not by SQLAlchemy, which runs nothing after a savepoint that has failed. A
        # connection that is lost says so when the transaction ends.
        with suppress(Exception):
            cursor = connection.connection.cursor()
            try:
                cursor.execute(f"DO RELEASE_LOCK('{name}')")
            finally:
                cursor.close()
            held.discard(name)


_TAKE = {
    "postgresql": _on_postgresql,
    "mysql": _on_mysql,
    "mariadb": _on_mysql,
}
