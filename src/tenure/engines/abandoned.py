"""
Statements that nobody waits for any more: they end on the server as well.

A timeout, a cancellation or a signal interrupts the driver, not the server. There the
statement would go on, with its locks. So it is cancelled; where the server does not answer
within a second, the connection is cut off. In any case it is not used again: the answer to
the statement may still be on its way.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from asyncio import get_running_loop, timeout
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from traceback import walk_tb
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from .beside import ask, beside, uncancelled

log = logging.getLogger("tenure")

#: Seconds that a server has to end a statement.
DEADLINE = 1.0

# Of psycopg, as of libpq: a statement was sent, and its answer has not come.
_ACTIVE = 1
# Seconds that psycopg waits when it cancels a statement by itself; who calls it asks for
# more, unless told otherwise.
_BY_ITSELF = 5.0
#: Under this name a connection keeps which server it has reached: behind a proxy there
#: may be several, and each counts its own connections.
NAME = "tenure_server"
_SERVER = "SELECT CONCAT_WS(':', @@hostname, @@port, @@server_id)"
# What connections of the drivers of MySQL do before they send a statement: they put it
# together, which may fail without harm.
_PREPARING = {"literal", "escape", "escape_string"}


def watch_statements(engine: Engine) -> None:
    """Let *engine* end statements that are abandoned, on connections it opens later."""
    driver = engine.dialect.driver
    if driver not in _ENDS or event.contains(engine, "handle_error", end_abandoned):
        return
    event.listen(engine, "handle_error", end_abandoned)
    if driver == "psycopg":

        @event.listens_for(engine, "connect")
        def connected(adapted: Any, record: Any) -> None:
            hurry = _hurry_async if engine.dialect.is_async else _hurry
            hurry(record.driver_connection)

    elif driver in _MYSQL:

        @event.listens_for(engine, "connect")
        def reached(adapted: Any, record: Any) -> None:
            # Not every server that speaks this protocol knows what is asked.
            with suppress(Exception):
                record.info[NAME] = ask(adapted, _SERVER)


def end_abandoned(context: ExceptionContext) -> None:
    """End a statement on the server if its driver was interrupted."""
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    if connection.connection.driver_connection is None:
        # In a forked child: it is the parent's.
        return
    try:
        is_ended = _ENDS[connection.dialect.driver](
            connection, context.original_exception
        )
    except Exception:
        # It would take the place of the error that is being handled.
        log.exception("tenure: ending a statement on the server failed")
        return
    if is_ended:
        context.is_disconnect = True
        # It says nothing about other connections.
        context.invalidate_pool_on_disconnect = False


def _is_of_driver(connection: Connection, error: BaseException) -> bool:
    """Whether *error* is the driver's own: it knows the state of its connection."""
    return isinstance(error, connection.dialect.loaded_dbapi.Error)


# psycopg


def _end_psycopg(connection: Connection, error: BaseException) -> bool:
    driver: Any = connection.connection.driver_connection
    if driver.pgconn.transaction_status != _ACTIVE:
        # It has not been sent, or psycopg itself has ended it.
        return False
    if connection.dialect.is_async:
        await_only(uncancelled(driver.cancel_safe(timeout=DEADLINE)))
    else:
        driver.cancel_safe(timeout=DEADLINE)
    return True


def _hurry(driver: Any) -> None:
    """Let a connection of psycopg, which gives a server ten seconds, give it one."""
    # Weak: a connection that is dropped is closed at once.
    dropped, cancel = ref(driver), type(driver).cancel_safe

    def cancel_safe(*, timeout: float = 30.0) -> None:
        mine: Any = dropped()
        if timeout > _BY_ITSELF:
            cancel(mine, timeout=timeout)
            return
        later = threading.Timer(DEADLINE, _cut_off, [mine, _copy(mine)])
        later.daemon = True
        later.start()
        # Of an older libpq it has no limit of its own.
        asking = threading.Thread(target=_quietly, args=[cancel, mine], daemon=True)
        asking.start()
        asking.join(DEADLINE)

    driver.cancel_safe = cancel_safe


def _hurry_async(driver: Any) -> None:
    """As :func:`_hurry`."""
    dropped, cancel = ref(driver), type(driver).cancel_safe

    async def cancel_safe(*, timeout: float = 30.0) -> None:  # noqa: ASYNC109  # psycopg's name
        mine: Any = dropped()
        if timeout > _BY_ITSELF:
            await cancel(mine, timeout=timeout)
            return
        get_running_loop().call_later(DEADLINE, _cut_off_here, dropped)
        await uncancelled(_quietly_async(cancel, mine))

    driver.cancel_safe = cancel_safe


def _quietly(cancel: Callable[..., None], driver: Any) -> None:
    with suppress(Exception):
        cancel(driver, timeout=DEADLINE)


async def _quietly_async(cancel: Callable[..., Any], driver: Any) -> None:
    with suppress(Exception):
        async with timeout(DEADLINE):
            await cancel(driver, timeout=DEADLINE)


def _copy(driver: Any) -> socket.socket:
    """Return a copy of a socket: its own number may be used again once it is closed."""
    return socket.socket(fileno=os.dup(driver.pgconn.socket))


def _cut_off(driver: Any, copy: socket.socket) -> None:
    """Shut the socket of a connection down, if its statement has not ended."""
    with copy, suppress(Exception):
        if not driver.closed and driver.pgconn.transaction_status == _ACTIVE:
            copy.shutdown(socket.SHUT_RDWR)


def _cut_off_here(dropped: ref[Any]) -> None:
    """As :func:`_cut_off`, in the loop of the connection: nobody closes it meanwhile."""
    driver: Any = dropped()
    if driver is not None and not driver.closed:
        _cut_off(driver, _copy(driver))


# asyncpg


def _end_asyncpg(connection: Connection, error: BaseException) -> bool:
    if not in_greenlet() or _is_of_driver(connection, error):
        return False
    driver: Any = connection.connection.driver_connection
    # It has asked the server to cancel the statement, and both wait for that.
    if not isinstance(error, Exception):
        await_only(uncancelled(_closed(driver)))
        return True
    if isinstance(error, TimeoutError):
        return not await_only(uncancelled(_answers(driver)))
    return False


async def _closed(driver: Any) -> None:
    with suppress(Exception):
        await driver.close(timeout=DEADLINE)


async def _answers(driver: Any) -> bool:
    """Whether a connection is of use; if it is not, it is cut off."""
    try:
        async with timeout(DEADLINE):
            await driver.execute("SELECT 1")
    except OSError:
        # A TimeoutError is one.
        driver.terminate()
        return False
    except Exception:  # noqa: BLE001  # the server's, of a transaction that has failed
        return not driver.is_closed()
    return True


# Drivers of MySQL and MariaDB


def _end_mysql(connection: Connection, error: BaseException) -> bool:
    if _is_of_driver(connection, error):
        # The time that it was to wait for an answer is over.
        is_interrupted = isinstance(error.__context__, TimeoutError)
    else:
        is_interrupted = not isinstance(error, Exception) or _was_sent(error)
    if is_interrupted:
        pooled: Any = connection.connection
        name, number = pooled.info.get(NAME), pooled.driver_connection.thread_id()
        if name is not None:
            beside(connection.engine, partial(_kill, name, number), DEADLINE)
    return is_interrupted


def _was_sent(error: BaseException) -> bool:
    """Whether *error* was raised after a driver had begun to send a statement."""
    names = {
        # Compiled, a function has its class before its name.
        frame.f_code.co_name.rpartition(".")[2]
        for frame, _ in walk_tb(error.__traceback__)
        # asyncmy has "connection".
        if frame.f_globals.get("__name__", "").endswith((".connections", ".connection"))
    }
    # The text of a statement is encoded just before it is sent.
    is_put_together = isinstance(error, UnicodeEncodeError)
    return bool(names) and names.isdisjoint(_PREPARING) and not is_put_together


def _kill(name: str, number: int, pooled: Any) -> None:
    """End what connection *number* of the server *name* is doing."""
    if ask(pooled, _SERVER) == name:
        cursor = pooled.cursor()
        cursor.execute(f"KILL QUERY {int(number)}")
        cursor.close()


# aiosqlite


def _end_aiosqlite(connection: Connection, error: BaseException) -> bool:
    if not isinstance(error, Exception) and in_greenlet():
        # Its thread would go on to the end of the statement.
        driver: Any = connection.connection.driver_connection
        await_only(driver.interrupt())
    return False


_MYSQL = ("pymysql", "mysqldb", "asyncmy", "aiomysql")
_ENDS: dict[str, Callable[[Connection, BaseException], bool]] = {
    "psycopg": _end_psycopg,
    "asyncpg": _end_asyncpg,
    "aiosqlite": _end_aiosqlite,
    **dict.fromkeys(_MYSQL, _end_mysql),
}
