"""
Work on a connection beside the pool, given up after a deadline.

The connections of the pool may be lost, or all in use, and a server that does not answer
must not keep whoever asks.
"""

from __future__ import annotations

import threading
from asyncio import CancelledError, current_task, ensure_future, timeout, wait
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.util import await_only, greenlet_spawn
from sqlalchemy.util.concurrency import in_greenlet

T = TypeVar("T")


def ask(driver: Any, statement: str) -> Any:
    """Return the first value of *statement*, executed on a driver's connection."""
    # By the driver's cursor: SQLAlchemy's events are for the caller's statements.
    cursor = driver.cursor()
    try:
        cursor.execute(statement)
        (found,) = cursor.fetchone()
    finally:
        cursor.close()
    return found


def beside(engine: Engine, work: Callable[[Any], T], seconds: float) -> T | None:
    """
    Return what *work* returns; it is given a new connection, as the driver has it.

    ``None``: there is no answer in time, or an error instead of one.
    """
    if in_greenlet():
        return await_only(uncancelled(_within(seconds, engine, work)))
    answer: list[T | None] = []
    # A server that does not answer keeps only this thread.
    asking = threading.Thread(
        target=lambda: answer.append(_done(engine, work)),
        name="tenure-beside",
        daemon=True,
    )
    asking.start()
    asking.join(seconds)
    return answer[0] if answer else None


async def _within(seconds: float, engine: Engine, work: Callable[[Any], T]) -> T | None:
    with suppress(TimeoutError):
        async with timeout(seconds):
            return await greenlet_spawn(_done, engine, work)
    return None


def _done(engine: Engine, work: Callable[[Any], T]) -> T | None:
    pool = engine.pool.recreate()
    try:
        connection = pool.connect()
        try:
            return work(connection)
        finally:
            connection.close()
    except Exception:  # noqa: BLE001  # whatever it is, there is no answer
        return None
    finally:
        with suppress(Exception):
            pool.dispose()


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """
    Return what *work* returns, also if this task is cancelled meanwhile.

    The cancellation comes where the task waits next.
    """
    is_cancelled = False
    task = ensure_future(work)
    while not task.done():
        try:
            await wait([task])
        except CancelledError:
            is_cancelled = True
    me = current_task()
    if is_cancelled and me is not None:
        # Counted once, as timeouts do.
        me.uncancel()
        me.cancel()
    return task.result()
