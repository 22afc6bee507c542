"""
Turns at writing into a table, where two at a time could wait for each other.

A turn ends with the transaction. PostgreSQL has locks for just that. Those of MariaDB
and MySQL belong to the connection, so they are given back when SQLAlchemy says that the
transaction is about to end: right before the COMMIT, as it says nothing after it. Who
is next may begin before that is through, and waits for the locks of the rows instead;
as nothing is written any more before the COMMIT, none of the two waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from zlib import crc32

from sqlalchemy import Connection, Table, event

from ...errors import DatabaseError, DeadlineExceededError
from .tables import TableInDatabase


def take_turn(connection: Connection, table: str) -> None:
    """
    Wait until nobody else writes batches into *table*, until the transaction ends.

    Another one may hold what this one writes next, and want what it has written.

    Args:
        table: Its name, as statements have it.

    Raises:
        DeadlineExceededError: It took longer than the server waits for locks.
        DatabaseError: The server cannot give the lock at all.
    """
    take = _TURNS.get(connection.dialect.name)
    if take is not None:
        take(connection, table)


def take_turns(connection: Connection, tables: Iterable[Table]) -> None:
    """
    :func:`take_turn` for each of *tables*.

    Whoever will write into several takes all of these turns at once: they come in one
    order then, so that two never wait for each other.
    """
    for name in sorted({TableInDatabase(connection, table).name for table in tables}):
        take_turn(connection, name)


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
        # The same function again is no second listener.
        event.listen(connection, ending, _give_back)


#: What the names of held locks are kept under, for as long as the connection lasts.
_HELD = "tenure_turns"

# A transaction that is prepared takes no such statement any more.
_ENDINGS = (
    "commit",
    "rollback",
    "prepare_twophase",
    "commit_twophase",
    "rollback_twophase",
)


def _give_back(connection: Connection, *_: Any) -> None:
    if connection.closed or connection.invalidated:
        return  # the server has taken them back
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


_TURNS = {
    "postgresql": _on_postgresql,
    "mysql": _on_mysql,
    "mariadb": _on_mysql,
}
