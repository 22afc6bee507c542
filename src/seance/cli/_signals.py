"""Ctrl-C and SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """
    Have Ctrl-C and SIGTERM raise ``KeyboardInterrupt`` where the program is.

    A signal that was ignored when the program started, as for a background job
    of a script, stays ignored.
    """
    before = {
        number: signal.signal(number, _interrupt)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# asyncio.run() puts its own handler only in the place of Python's, so not in the
# place of this one. Its own asks the task to stop at its next await, and a task
# that waits for a pipe gets to none.
def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
