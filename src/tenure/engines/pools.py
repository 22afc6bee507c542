"""Pools whose connections stay in their event loop, and in their process."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Lock, Thread
from typing import Any

from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.util import await_only, greenlet_spawn

from .._private import HookedPool


class LoopPool(HookedPool):
    """
    One queue of connections for each event loop, closed when the loop ends.

    Drivers bind a connection to the loop in which it was opened. Sizes are those of
    one loop's queue.
    """

    # SQLAlchemy names the logger after it, and users know where its pools log.
    __module__ = AsyncAdaptedQueuePool.__module__

    def __init__(self, creator: Any, **options: Any) -> None:
        super().__init__(creator, **options)
        self._arguments = (creator, options)
        self._loops: dict[asyncio.AbstractEventLoop | None, _OneLoopPool] = {}
        self._mutex = Lock()
        self._has_connected = False
        self._first: asyncio.AbstractEventLoop | None = None
        self._firsts = 0

    def get_entry(self) -> ConnectionPoolEntry:
        # None outside of any loop, where connecting raises the error that says so.
        loop = asyncio._get_running_loop()
        return (self._loops.get(loop) or self._open(loop)).get_entry()

    def _open(self, loop: asyncio.AbstractEventLoop | None) -> _OneLoopPool:
        with self._mutex:
            closed = [
                self._loops.pop(other)
                for other in list(self._loops)
                if other is not None and other.is_closed()
            ]
            creator, options = self._arguments
            pool = self._loops[loop] = _OneLoopPool(self, loop, creator, options)
        for other_pool in closed:
            other_pool.abandon()
        return pool

    @contextmanager
    def connecting(self, loop: asyncio.AbstractEventLoop | None) -> Iterator[None]:
        """
        Allow one loop at a time to connect, until one has succeeded.

        The lock with which SQLAlchemy guards the first connection of a dialect works
        inside one loop only.
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
        """Close the idle connections, each in its own loop."""
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


class _OneLoopPool(HookedPool):
    """The connections of one event loop."""

    __module__ = AsyncAdaptedQueuePool.__module__

    def __init__(
        self,
        pools: LoopPool,
        loop: asyncio.AbstractEventLoop | None,
        creator: Any,
        options: dict[str, Any],
    ) -> None:
        self.pools = pools
        self._loop = loop
        super().__init__(creator, **options)
        # Shared, not copied: a listener may be added at any time.
        self.dispatch = pools.dispatch
        self.has_ended = False
        self._entries: weakref.WeakSet[Any] = weakref.WeakSet()
        self._ending: asyncio.Task[None] | None = None
        self._watcher = _watch(weakref.ref(self))
        if loop is not None:
            # A loop ends by closing the async generators that were started in it.
            with suppress(StopIteration):
                self._watcher.__anext__().send(None)

    @property
    def invalid_before(self) -> float:
        return self.pools.invalid_before

    @invalid_before.setter
    def invalid_before(self, time: float) -> None:
        # SQLAlchemy sets 0 in each new pool.
        self.pools.invalid_before = max(time, self.pools.invalid_before)

    def create_entry(self) -> ConnectionPoolEntry:
        with self.pools.connecting(self._loop):
            entry = super().create_entry()
        self._entries.add(entry)
        return entry

    def return_entry(self, entry: ConnectionPoolEntry) -> None:
        if self.has_ended:
            entry.close()
        else:
            super().return_entry(entry)

    def end(self) -> None:
        """Close idle connections now, those in use when they are returned."""
        self.has_ended = True
        # If two end it at the same time, the second one gets the error.
        with suppress(StopIteration, RuntimeError):
            self._watcher.aclose().send(None)
        self.dispose()

    def end_soon(self) -> None:
        """Schedule :meth:`end` in the running loop."""
        self._ending = asyncio.ensure_future(greenlet_spawn(self.end))

    def abandon(self) -> None:
        """Drop the idle connections of a loop that was closed before they were."""
        self.has_ended = True
        for entry in list(self._entries):
            if not entry.in_use and entry.dbapi_connection is not None:
                _drop(entry.driver_connection)
                entry.dbapi_connection = None


async def _watch(ref: weakref.ref[_OneLoopPool]) -> AsyncGenerator[None, None]:
    """Wait until the loop or the pool ends; close the pool's idle connections."""
    try:
        yield
    finally:
        pool = ref()
        if pool is not None and not pool.has_ended:
            pool.has_ended = True
            await greenlet_spawn(pool.dispose)


def _drop(connection: Any) -> None:
    """Close a driver's connection without its loop, as far as the driver can."""
    with suppress(Exception):
        if hasattr(connection, "pgconn"):
            connection.pgconn.finish()
        elif hasattr(connection, "stop"):
            # In a thread without a loop: else aiosqlite would report to our loop.
            stopping = Thread(target=connection.stop)
            stopping.start()
            stopping.join()
        else:
            connection.terminate()


def leave_to_parent(thing: object) -> None:
    """
    In a forked child: keep *thing* from ever being closed.

    Closing would end the parent's session on the server, or roll back in the parent's
    file. Python closes an object without references, at the latest when it exits.
    Source: SQLite, "How To Corrupt An SQLite Database File", section 2.6.
    """
    # Imported here: few programs fork, and it is slow to import.
    ctypes = import_module("ctypes")
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
