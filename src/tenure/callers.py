"""
Which line of the caller's code is running: ours, another task's, another thread's.

For messages. Nothing is kept of a frame but names and numbers: a frame would keep
alive all that its function can see.
"""

from __future__ import annotations

import sys
from asyncio import Task
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

# What is between a line of the caller's and the driver.
_OURS = ("tenure", "sqlalchemy")
_MACHINERY = ("asyncio", "anyio", "concurrent", "contextlib", "greenlet", "threading")


class Line(NamedTuple):
    """A line of code, by where it is and what function it is in."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number} in {self.function}"


UNKNOWN = Line("?", 0, "?")


def caller(frame: FrameType | None = None) -> Line:
    """Return the innermost line around *frame* (or here) that is the caller's."""
    for outer in _outward(frame or sys._getframe(1)):
        if not (_is_ours(outer) or _is_machinery(outer)):
            return _line(outer)
    return UNKNOWN


def line_of_task(task: Task[Any]) -> Line:
    """Return the line at which *task* waits for us."""
    found = UNKNOWN
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None)
        # Drivers are further in than we are.
        if frame is not None and _is_ours(frame):
            break
        if frame is not None and not _is_machinery(frame):
            found = _line(frame)
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None)
    return found


def line_of_thread(ident: int) -> Line:
    """Return the line at which the thread *ident* has called us."""
    frame = sys._current_frames().get(ident)
    found = None
    while frame is not None:
        if _is_ours(frame):
            # Further out than the driver, which calls nobody.
            found = frame
        elif found is not None and not _is_machinery(frame):
            return _line(frame)
        frame = frame.f_back
    return UNKNOWN


def _outward(frame: FrameType | None) -> Iterator[FrameType]:
    """Walk from *frame* to its callers, also out of a greenlet of SQLAlchemy's."""
    yield from _callers(frame)
    # Not imported: only the async face needs it, and has it by then.
    greenlet = sys.modules.get("greenlet")
    if greenlet is None:
        return
    parent = greenlet.getcurrent().parent
    while parent is not None:
        yield from _callers(parent.gr_frame)
        parent = parent.parent


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_ours(frame: FrameType) -> bool:
    # Functions that SQLAlchemy compiles from text are in no module.
    return _package(frame) in ("", *_OURS)


def _is_machinery(frame: FrameType) -> bool:
    return _package(frame) in _MACHINERY


def _package(frame: FrameType) -> str:
    name: str = frame.f_globals.get("__name__", "")
    return name.partition(".")[0]


def _line(frame: FrameType) -> Line:
    code = frame.f_code
    return Line(code.co_filename, frame.f_lineno, code.co_name)
