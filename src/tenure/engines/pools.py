"""Pools whose connections stay with their event loop, and with their process."""

from __future__ import annotations

import asyncio
import ctypes
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from threading import Lock, Thread
from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.queue import Empty


class LoopPool(AsyncAdaptedQueuePool):
    """
    A queue of connections for each event loop, which closes them before it ends.

    Drivers bind a connection to the loop it was made in. Sizes are those of one
    loop's queue.
    """

    # Their loggers are called so, and people know where SQLAlchemy's pools log.
    __module__ = AsyncAdaptedQueuePool.__module__

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **options)
        self._recipe = {k: v for k, v in options.items() if k != "_dispatch"}
        self._loops: dict[asyncio.AbstractEventLoop | None, _OneLoopPool] = {}
        self._mutex = Lock()
        self._has_connected = False
        self._first: asyncio.AbstractEventLoop | None = None
        self._firsts = 0

    def _do_get(self) -> ConnectionPoolEntry:
        return self._here()._do_get()

    def _here(self) -> _OneLoopPool:
        # None outside of any loop, where connecting will say what it needs.
        loop = asyncio._get_running_loop()
        return self._loops.get(loop) or self._open(loop)

    def _open(self, loop: asyncio.AbstractEventLoop | None) -> _OneLoopPool:
        with self._mutex:
            closed = [
                self._loops.pop(other)
                for other in list(self._loops)
                if other is not None and other.is_closed()
            ]
            pool = _OneLoopPool(self, loop, self._creator, **self._recipe)
            self._loops[loop] = pool
        for other_pool in closed:
            other_pool.abandon()
        return pool

    def _invalidate(self, *arguments: Any, **options: Any) -> None:
        super()._invalidate(*arguments, **options)
        for pool in list(self._loops.values()):
            pool._invalidate_time = self._invalidate_time

    @contextmanager
    def connecting(self, loop: asyncio.AbstractEventLoop | None) -> Iterator[None]:
        """
        Let the loops take turns until one has connected.

        What a dialect learns from its first connection is guarded by a lock that
        knows one loop only.
        """
        if self._has_connected:
            yield
            return
        while not self._is_first(loop):
            await_only(asyncio.sleep(0.001))
        try:
            yield
            self._has_connected = True
        finally:
            with self._mutex:
                self._firsts -= 1

    def _is_first(self, loop: asyncio.AbstractEventLoop | None) -> bool:
        with self._mutex:
            if self._firsts and self._first is not loop:
                return self._has_connected
            self._first = loop
            self._firsts += 1
            return True

    def dispose(self) -> None:
        """Close what is idle, each connection in its own loop."""
        here = asyncio._get_running_loop()
        with self._mutex:
            loops, self._loops = self._loops, {}
        for loop, pool in loops.items():
            if loop is here:
                pool.end()
            elif loop is not None and loop.is_closed():
                pool.abandon()
            elif loop is not None and loop.is_running():
                loop.call_soon_threadsafe(pool.end_soon)

    def checkedin(self) -> int:
        return sum(pool.checkedin() for pool in list(self._loops.values()))

    def checkedout(self) -> int:
        return sum(pool.checkedout() for pool in list(self._loops.values()))

    def overflow(self) -> int:
        pools = list(self._loops.values())
        return sum(pool.overflow() for pool in pools) if pools else super().overflow()


class _OneLoopPool(AsyncAdaptedQueuePool):
    """The connections of one event loop."""

    __module__ = AsyncAdaptedQueuePool.__module__

    def __init__(
        self,
        pools: LoopPool,
        loop: asyncio.AbstractEventLoop | None,
        creator: Any,
        **options: Any,
    ) -> None:
        super().__init__(creator, **options)
        # Not a copy: a listener may come at any time.
        self.dispatch = pools.dispatch
        self._invalidate_time = pools._invalidate_time
        self._pools = pools
        self._loop = loop
        self.has_ended = False
        self._ending: asyncio.Task[None] | None = None
        self._watcher = _watch(weakref.ref(self))
        if loop is not None:
            # A loop ends by closing the generators that were begun in it.
            with suppress(StopIteration):
                self._watcher.__anext__().send(None)

    def _create_connection(self) -> ConnectionPoolEntry:
        with self._pools.connecting(self._loop):
            return super()._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if self.has_ended:
            record.close()
        else:
            super()._do_return_conn(record)

    def end(self) -> None:
        """Close what is idle now, and what is in use when it comes back."""
        self.has_ended = True
        # Of two that end it at once, the first one does.
        with suppress(StopIteration, RuntimeError):
            self._watcher.aclose().send(None)
        self.dispose()

    def end_soon(self) -> None:
        """In the loop: do so when it has time."""
        self._ending = asyncio.ensure_future(greenlet_spawn(self.end))

    def abandon(self) -> None:
        """Drop what is idle: its loop has been closed without being told to end."""
        self.has_ended = True
        while True:
            try:
                record: Any = self._pool.get(False)
            except Empty:
                return
            _drop(record.driver_connection)
            record.dbapi_connection = None


async def _watch(ref: weakref.ref[_OneLoopPool]) -> AsyncGenerator[None, None]:
    """Wait for the end of the loop, or of the pool, whichever comes first."""
    try:
        yield
    finally:
        pool = ref()
        if pool is not None and not pool.has_ended:
            pool.has_ended = True
            await greenlet_spawn(pool.dispose)


def _drop(connection: Any) -> None:
    """Close the connection of a driver without its loop, as far as that goes."""
    with suppress(Exception):
        if hasattr(connection, "pgconn"):
            connection.pgconn.finish()
        elif hasattr(connection, "stop"):
            # Where there is no loop, lest aiosqlite's thread reports to ours.
            stopping = Thread(target=connection.stop)
            stopping.start()
            stopping.join()
        else:
            connection.terminate()


def leave_to_parent(thing: object) -> None:
    """
    In a forked child: see to it that *thing* is never closed.

    Closing would say goodbye to the parent's server, or roll back in the parent's
    file, and Python closes what nobody refers to, at the latest when it ends.
    Source: SQLite, "How To Corrupt An SQLite Database File", section 2.6.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
