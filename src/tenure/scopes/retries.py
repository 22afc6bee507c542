"""
The whole unit of work again, where that is right.

Serialization failures, deadlocks and busy locks undo a transaction for reasons that are
over a moment later. So does a connection that was lost before its COMMIT was sent.
Nothing else is tried again, and never a commit of which nobody knows whether it happened.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from random import uniform
from threading import Lock
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, overload

from sqlalchemy.exc import SQLAlchemyError

from ..context import SESSION_CONTEXT, living
from ..errors import (
    CommitOutcomeUnknownError,
    PartialCommitError,
    SessionError,
    said,
    wrap,
)
from ..sessions import checked_seconds

log = logging.getLogger("tenure")

P = ParamSpec("P")
T = TypeVar("T")

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]
#: Seconds: what the first wait is at most, and any.
FIRST, LONGEST = 0.05, 2.0


class Budget:
    """
    How many retries this process may still spend.

    A server that is in trouble is not hammered: each retry takes one, and each success at
    the first attempt gives a tenth back.
    Source: AWS SDKs, "Retry behavior", retry quota.
    """

    def __init__(self, most: int = 100) -> None:
        # In tenths.
        self._most = self._left = 10 * most
        #: Retries since the process began.
        self.spent = 0
        self._lock = Lock()

    def take(self) -> bool:
        """Spend one, if there is one."""
        with self._lock:
            if self._left < 10:
                return False
            self._left -= 10
            self.spent += 1
            return True

    def give(self) -> None:
        """Something has succeeded at once."""
        if self._left < self._most:
            with self._lock:
                self._left = min(self._most, self._left + 1)


BUDGET = Budget()
# Whether a unit of work is being tried in this context.
_trying: ContextVar[bool] = ContextVar("_trying", default=False)


class Attempt:
    """One attempt; an error that may be tried again does not leave its block."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        #: Whether there is to be another one.
        self.has_failed = False

    @property
    def number(self) -> int:
        """From 1 on."""
        return len(self._run.errors) + (not self.has_failed)

    def __enter__(self) -> Self:
        self._token = _trying.set(True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        _trying.reset(self._token)
        if error is None:
            self._run.succeeded()
            return False
        self.has_failed = self._run.tries_again(error)
        return self.has_failed

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        return self.__exit__(kind, error, traceback)


class _Run:
    """The attempts of one unit of work."""

    def __init__(self, options: Retrying) -> None:
        session: Any = living(SESSION_CONTEXT.get())
        if session is not None:
            line = getattr(getattr(session, "_tenure_scope", None), "line", "?")
            raise SessionError(
                f"retrying() inside of a block, which has a session ({line}): only the "
                f"whole unit of work can be done again; put it around that block"
            )
        self._options = options
        # One inside of another leaves the retries to that.
        self._is_inner = _trying.get()
        self._deadline = time.monotonic() + options.deadline
        self.errors: list[BaseException] = []
        self.delay = 0.0

    def succeeded(self) -> None:
        if not self.errors:
            BUDGET.give()

    def tries_again(self, error: BaseException) -> bool:
        """Say whether there is to be another attempt after *error*."""
        options = self._options
        if self._is_inner or not options.is_for(error):
            self._tell(error)
            return False
        self.errors.append(error)
        longest = min(LONGEST, FIRST * 2 ** len(self.errors))
        self.delay = uniform(0, longest)  # noqa: S311  # nothing secret
        if len(self.errors) == options.attempts:
            why = f"there were {options.attempts} attempts"
        elif time.monotonic() + self.delay > self._deadline:
            why = f"{options.deadline} seconds are over"
        elif not BUDGET.take():
            why = "this process has spent its retries"
        else:
            log.warning(
                "tenure: attempt %d of %d failed, and is made again in %.2f s: %s",
                len(self.errors),
                options.attempts,
                self.delay,
                said(error),
            )
            return True
        error.add_note(f"retrying: not tried again, since {why}")
        self._tell(error)
        return False

    def _tell(self, error: BaseException) -> None:
        """Add the errors of the attempts before."""
        for number, each in enumerate(self.errors, 1):
            if each is not error:
                error.add_note(
                    f"retrying: attempt {number} failed: {type(each).__name__}: {said(each)}"
                )


class Retrying:
    """What :func:`retrying` returns: a decorator, and an iterable of attempts."""

    def __init__(self, attempts: int, on: On, deadline: float) -> None:
        if not isinstance(attempts, int) or attempts < 1:
            raise SessionError(f"attempts is a number from 1 on, not {attempts!r}")
        self.attempts, self.on = attempts, on
        self.deadline = checked_seconds("deadline", deadline)

    def is_for(self, error: BaseException) -> bool:
        """Whether the work may be done again after *error*."""
        if not isinstance(error, Exception) or isinstance(
            error, (CommitOutcomeUnknownError, PartialCommitError)
        ):
            return False
        if isinstance(error, SQLAlchemyError):
            error = wrap(error)
        if getattr(error, "retryable", False):
            return True
        if isinstance(self.on, (type, tuple)):
            return isinstance(error, self.on)
        return bool(self.on(error))

    def __iter__(self) -> Iterator[Attempt]:
        run = _Run(self)
        while True:
            attempt = Attempt(run)
            yield attempt
            if not attempt.has_failed:
                return
            time.sleep(run.delay)

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        run = _Run(self)
        while True:
            attempt = Attempt(run)
            yield attempt
            if not attempt.has_failed:
                return
            await asyncio.sleep(run.delay)

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Run each call of *function* until it succeeds, or may not be tried again."""
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            name = getattr(function, "__qualname__", repr(function))
            raise SessionError(
                f"retrying() cannot decorate {name}, a generator: what it has given is "
                f"not taken back; use 'for attempt in retrying()' inside of it"
            )
        if iscoroutinefunction(function):

            @wraps(function)
            async def call_async(*args: Any, **kwargs: Any) -> Any:
                async for attempt in self:
                    async with attempt:
                        return await function(*args, **kwargs)
                raise AssertionError("the last attempt returns or raises")

            return call_async  # type: ignore[return-value]  # of the same kind

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            for attempt in self:
                with attempt:
                    return function(*args, **kwargs)
            raise AssertionError("the last attempt returns or raises")

        return call


@overload
def retrying(function: Callable[P, T], /) -> Callable[P, T]: ...


@overload
def retrying(*, attempts: int = 5, on: On = (), deadline: float = 30.0) -> Retrying: ...


def retrying(
    function: Callable[..., Any] | None = None,
    /,
    *,
    attempts: int = 5,
    on: On = (),
    deadline: float = 30.0,
) -> Any:
    """
    Do a whole unit of work again, in a fresh session, where that is right.

    ::

        @retrying(attempts=3)
        def transfer() -> None:
            with session_manager(auto_commit=True) as session: ...

        for attempt in retrying():
            with attempt, session_manager(auto_commit=True) as session: ...

    In async code it decorates coroutine functions, and is iterated by ``async for``. It is
    for errors that are ``retryable``; never for a commit whose outcome is unknown. Waits
    are random, up to 0.1 s before the second attempt, twice as long before each further
    one, at most 2 s (full jitter). All of a process share a budget of retries. The last
    error has notes about the others.
    Source: AWS Architecture Blog, "Exponential Backoff And Jitter".

    Args:
        attempts: How many there are at most.
        on: Further errors to try again after: classes, or a function that says so.
        deadline: Seconds after which no other attempt begins.

    Raises:
        SessionError: Inside of a block, which has a session; or around a generator.
    """
    found = Retrying(attempts, on, deadline)
    return found if function is None else found(function)
