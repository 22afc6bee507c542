"""Ctrl-C and SIGTERM: what they do to a load, in sync and in async code."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")


class Interrupts:
    """
    What a signal does: it raises ``KeyboardInterrupt`` where the program is.

    Inside an event loop it cancels the task instead, as ``asyncio.run()`` does. An
    error raised in the middle of the loop's or an async driver's own work would leave
    it in a state that nobody planned for. A task that waits for a :class:`Pipe` waits
    in a call, not at an ``await``, so there the error is raised.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._is_waiting = False
        self._is_taken = False
        self._is_held = False
        self._is_over = False

    def run(self, work: Awaitable[T]) -> T:
        """
        Run *work* in an event loop.

        Raises:
            KeyboardInterrupt: A signal has interrupted it.
        """
        try:
            # Only Python's own handler of SIGINT is replaced by this.
            return asyncio.run(self._watched(work))
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None

    async def _watched(self, work: Awaitable[T]) -> T:
        self._task = asyncio.current_task()
        return await work

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Raise inside the block when a signal comes, or came shortly before."""
        self._is_waiting = True
        try:
            if self._is_taken:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_waiting = False

    def hold(self, *_: object) -> None:
        """
        Put a signal off until :meth:`release`, while a commit is being sent.

        Interrupted there, nobody could say whether the commit has happened. A second
        signal is not put off.
        """
        self._is_held = True

    def release(self) -> None:
        """Interrupt now, if a signal was put off."""
        self._is_held = False
        if self._is_taken:
            self._interrupt()

    def over(self) -> None:
        """Ignore signals from here on: only a short clean-up is left."""
        self._is_over = True

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._is_over:
            return
        is_first, self._is_taken = not self._is_taken, True
        if not (self._is_held and is_first):
            self._interrupt()

    def _interrupt(self) -> None:
        if self._task is None or self._is_waiting:
            raise KeyboardInterrupt
        # The loop sleeps until something wakes it; a signal alone does not.
        self._task.get_loop().call_soon_threadsafe(self._task.cancel)


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """
    Take signals until the end of the block.

    One that was ignored when the program started, as in the background of a
    script, stays ignored.
    """
    interrupts = Interrupts()
    before = {
        number: signal.signal(number, interrupts)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pipe(io.RawIOBase):
    """A file whose reader may wait for a long time."""

    def __init__(self, file: io.RawIOBase, name: str, interrupts: Interrupts) -> None:
        self.name = name
        self._file = file
        self._interrupts = interrupts

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file.fileno()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what there is, or wait for it."""
        with self._interrupts.waiting():
            count: int | None = self._file.readinto(buffer)
            return count

    def close(self) -> None:
        """Close the file, too."""
        self._file.close()
        super().close()
