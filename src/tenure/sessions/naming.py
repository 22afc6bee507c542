"""What users of a session are called in messages, and the line each of them is at."""

from __future__ import annotations

import threading
from asyncio import AbstractEventLoop, Task
from typing import Any

from ..callers import UNKNOWN, Line, caller, line_of_task, line_of_thread
from ..errors import ConcurrentUseError

#: A thread's ident; or a task, or outside of one the event loop.
User = int | Task[Any] | AbstractEventLoop


def described(user: User | None) -> str:
    """Return what *user* is called in messages, and the line it is running."""
    line = _line(user)
    return _who(user) if line is None else f"{_who(user)} (at {line})"


def concurrent_use(doing: str, first: User | None, me: User) -> ConcurrentUseError:
    """Return the error for *me*, who wants to use what *first* is using."""
    return ConcurrentUseError(
        doing,
        first=_who(first),
        first_line=_line(first),
        second=_who(me),
        second_line=_known(caller()),
    )


def _who(user: User | None) -> str:
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
