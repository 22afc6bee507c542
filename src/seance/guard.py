"""
One user of a session at a time.

A session is in use while one of its methods that may talk to the database runs.
Its user may enter again; another thread or task is refused, or waits. Overlap is
what counts: a session may be used from many threads, one after the other.
"""

from __future__ import annotations

import asyncio
import threading
from asyncio import AbstractEventLoop, Future, Task, _get_running_loop, current_task
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from threading import Lock, get_ident
from typing import Any, Literal

from sqlalchemy.util import await_only

from .callers import Line, caller, line_of_task, line_of_thread
from .errors import ConcurrentUseError

OnConcurrent = Literal["raise", "serialize"]


def running() -> User:
    """Say who is running here: a task if there is one."""
    loop = _get_running_loop()
    return get_ident() if loop is None else current_task(loop) or loop


class Ended(Enum):
    """Nobody's turn: the block that made the session has ended."""

    ENDED = auto()


ENDED = Ended.ENDED
#: A thread's ident; or a task, or outside of one the event loop.
User = int | Task[Any] | AbstractEventLoop | Ended


class Guard:
    """
    Whose turn it is on one session.

    Every call of every method takes the turn, so its callers do that in line: with
    *take* and *give*, which are those of a lock, and write themselves down as *user*.

    Args:
        is_async: Tasks are told apart, not threads: a task that uses a sync session
            cannot be left by its thread meanwhile.
    """

    __slots__ = ("give", "take", "user", "waiting", "who")

    def __init__(self, *, is_async: bool = False) -> None:
        turn = Lock()
        self.take = turn.acquire
        self.give = turn.release
        self.who: Callable[[], User] = running if is_async else get_ident
        self.user: User | None = None
        # Made for the first that waits; most sessions never see one.
        self.waiting: deque[Future[None]] | None = None

    def wait(self, me: User) -> None:
        """Take the turn as soon as it is free."""
        if isinstance(me, int):
            self.take()
        else:
            self._await()

    def wake(self) -> None:
        """Tell a task that waits that the turn was given back."""
        while self.waiting:
            with suppress(IndexError):
                waiter = self.waiting.popleft()
                with suppress(RuntimeError):
                    waiter.get_loop().call_soon_threadsafe(_done, waiter)
                    return
            # Its loop was closed, or another thread has told it.

    def refusal(self, me: User, doing: str) -> ConcurrentUseError:
        """Give the error for *me*, who wanted to do something out of turn."""
        first = self.user
        return ConcurrentUseError(
            doing,
            first=_name(first),
            first_line=_line(first),
            second=_name(me),
            second_line=caller(),
        )

    def _await(self) -> None:
        # Tasks of one loop: two cannot both be first.
        if self.waiting is None:
            self.waiting = deque()
        while True:
            waiter: Future[None] = asyncio.get_running_loop().create_future()
            self.waiting.append(waiter)
            # It may have been given back before we were seen to wait.
            if self.take(blocking=False):
                self._forget(waiter)
                return
            try:
                await_only(waiter)
            except BaseException:
                # Whoever was not told because we were must be told.
                self._forget(waiter)
                self.wake()
                raise
            if self.take(blocking=False):
                return

    def _forget(self, waiter: Future[None]) -> None:
        assert self.waiting is not None
        with suppress(ValueError):
            self.waiting.remove(waiter)


def _done(turn: Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


def _name(user: User | None) -> str:
    if isinstance(user, Task):
        return f"task {user.get_name()!r}"
    if isinstance(user, int):
        for thread in threading.enumerate():
            if thread.ident == user:
                return f"thread {thread.name!r}"
        return f"thread {user}"
    return "another user" if user is None else "an event loop's callback"


def _line(user: User | None) -> Line | None:
    if isinstance(user, Task):
        return line_of_task(user)
    return line_of_thread(user) if isinstance(user, int) else None
