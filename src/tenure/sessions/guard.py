"""
One user of a session at a time.

A session is in use while one of its methods that may talk to the database runs.
Its user may enter again; another thread or task is refused, or waits. Overlap is
what counts: a session may be used from many threads, one after the other.
"""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop, Future, Task, _get_running_loop, current_task
from collections import deque
from contextlib import suppress
from threading import get_ident
from typing import Any, Literal

from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from ..callers import UNKNOWN, Line, caller, line_of_task, line_of_thread
from ..errors import ConcurrentUseError, SessionError

OnConcurrent = Literal["raise", "serialize"]

#: A thread's ident; or a task, or outside of one the event loop.
User = int | Task[Any] | AbstractEventLoop


def checked(on_concurrent: str) -> OnConcurrent:
    """
    Give *on_concurrent*, if it says what to do.

    Raises:
        SessionError: It does not.
    """
    if on_concurrent not in ("raise", "serialize"):
        raise SessionError(
            f"on_concurrent is 'raise' or 'serialize', not {on_concurrent!r}"
        )
    return on_concurrent  # type: ignore[return-value]  # one of the two


def running() -> User:
    """Say who is running here: a task if there is one."""
    loop = _get_running_loop()
    return get_ident() if loop is None else current_task(loop) or loop


class Guard:
    """
    Whose turn it is on one session.

    The turn is one item of a dict: taken by ``setdefault()``, given back by ``del``.
    Either is one step, so an interrupt finds it done, with its user, or not done.
    Every call of every method does this in line.
    """

    __slots__ = ("has_ended", "turn", "waiting")

    def __init__(self) -> None:
        self.turn: dict[str, User] = {}
        #: The block that made the session has ended.
        self.has_ended = False
        #: Who is to be told when the turn is given back. Made for the first that
        #: waits; most sessions never see one.
        self.waiting: deque[Future[None] | threading.Event] | None = None

    def wait(self, me: User) -> None:
        """Take the turn as soon as it is free."""
        loop = me.get_loop() if isinstance(me, Task) and in_greenlet() else None
        waiting = self.waiting
        if waiting is None:
            # Two threads may be first.
            with _making:
                waiting = self.waiting = self.waiting or deque()
        while self.turn.get("user") != me:
            waiter = threading.Event() if loop is None else loop.create_future()
            waiting.append(waiter)
            try:
                # It may have been given back before we were seen to wait.
                if self.turn.setdefault("user", me) == me:
                    return
                if isinstance(waiter, Future):
                    await_only(waiter)
                else:
                    waiter.wait()
                self.turn.setdefault("user", me)
            except BaseException:
                # Whoever was not told because we were must be told.
                self.wake()
                raise
            finally:
                with suppress(ValueError):
                    waiting.remove(waiter)

    def wake(self) -> None:
        """Tell one who waits that the turn was given back."""
        while self.waiting:
            with suppress(IndexError):
                waiter = self.waiting.popleft()
                if isinstance(waiter, threading.Event):
                    waiter.set()
                    return
                with suppress(RuntimeError):
                    waiter.get_loop().call_soon_threadsafe(_done, waiter)
                    return
            # Its loop was closed, or another thread has told it.

    def refusal(self, me: User, doing: str) -> ConcurrentUseError:
        """Give the error for *me*, who wanted to do something out of turn."""
        first = self.turn.get("user")
        return ConcurrentUseError(
            doing,
            first=_name(first),
            first_line=_line(first),
            second=_name(me),
            second_line=_known(caller()),
        )


_making = threading.Lock()


def _done(waiter: Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


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
        return _known(line_of_task(user))
    return _known(line_of_thread(user)) if isinstance(user, int) else None


def _known(line: Line) -> Line | None:
    # A task may run nothing but a method of ours: create_task(session.execute()).
    return None if line is UNKNOWN else line
