"""What was asked to run after a commit or a rollback."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from inspect import isawaitable, iscoroutine, iscoroutinefunction
from typing import Any, Literal, TypeVar

from sqlalchemy.orm import Session as _Session
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.util import await_only

from ..errors import SessionError
from .exclusive import is_inside

log = logging.getLogger("tenure")

#: Takes nothing; what it returns is awaited on an async session, ignored otherwise.
Callback = Callable[[], object]
#: What became of a transaction.
Outcome = Literal["commit", "rollback", "unknown"]

C = TypeVar("C", bound=Callback)


class Callbacks:
    """
    The callbacks of one session.

    They wait for the end of the outermost transaction, and are due after it. One
    that was registered inside of a savepoint is forgotten when that is rolled back.
    """

    __slots__ = ("_waiting", "due")

    def __init__(self) -> None:
        self._waiting: list[tuple[Outcome, Callback, SessionTransaction | None]] = []
        self.due: list[Callback] = []

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(
        self,
        when: Outcome,
        callback: Callback,
        transaction: SessionTransaction | None,
        *,
        async_mode: bool,
    ) -> None:
        """
        Register *callback*.

        Args:
            transaction: The innermost one; ``None``: the next.

        Raises:
            SessionError: It cannot be called, or nobody could await it.
        """
        if not callable(callback) or iscoroutine(callback):
            raise SessionError(
                f"on_{when}() takes a function without arguments, not {callback!r}"
            )
        if iscoroutinefunction(callback) and not async_mode:
            raise SessionError(
                f"on_{when}() got the coroutine function {_name(callback)}, which a "
                f"sync session cannot await; register it with an async session"
            )
        self._waiting.append((when, callback, transaction))

    def drop(self, savepoint: SessionTransaction) -> None:
        """Forget what was registered inside of *savepoint*."""
        self._waiting = [
            waiting for waiting in self._waiting if not is_inside(waiting[2], savepoint)
        ]

    def make_due(self, outcome: Outcome) -> None:
        """Make the callbacks for this end of the transaction due; drop the others."""
        waiting, self._waiting = self._waiting, []
        self.due += [callback for when, callback, _ in waiting if when == outcome]

    def run(self, error: BaseException | None, *, async_mode: bool) -> None:
        """
        Run what is due, to the last, and raise the first error.

        Args:
            error: What is being raised already; it gets a note instead.
        """
        due, self.due = self.due, []
        first: Exception | None = None
        while due:
            callback = due.pop(0)
            try:
                _call(callback, async_mode=async_mode)
            except Exception as failed:
                log.exception("tenure: %s failed after the end", _name(callback))
                first = first or failed
            except BaseException:
                if due:
                    left = ", ".join(map(_name, due))
                    log.exception("tenure: interrupted before %s", left)
                raise
        if first is not None:
            if error is None:
                raise first
            error.add_note(f"a callback failed afterwards as well: {first!r}")


class CallsBack(_Session):
    """A session that callbacks are registered with."""

    _tenure_scope: Any
    _callbacks: Callbacks | None = None
    # What the classes that derive from it know.
    async_mode: Any
    _innermost: Any

    def __init_subclass__(cls, **options: Any) -> None:
        """
        Check the order of the bases.

        Raises:
            SessionError: What another class of sessions calls would not be ours.
        """
        super().__init_subclass__(**options)
        order = cls.__mro__
        for other in order[order.index(CallsBack) + 1 : -1]:
            if issubclass(other, _Session) and other is not _Session:
                raise SessionError(
                    f"class {cls.__name__} names {other.__module__}.{other.__name__} after "
                    f"tenure.Session, whose methods would be left out by those of the other "
                    f"class; name tenure.Session last"
                )

    def on_commit(self, fn: C) -> C:
        """
        Run *fn*, once, after the outermost transaction was committed.

        Not if it is rolled back, or the savepoint that is open now. The commit is
        done when *fn* runs: if it fails, the others run nevertheless, and the first
        error is raised. On an async session what *fn* returns is awaited.

        Raises:
            SessionError: *fn* is a coroutine function, and this session is sync.
        """
        self._register("commit", fn)
        return fn

    def on_rollback(self, fn: C) -> C:
        """
        Run *fn*, once, after the outermost transaction was rolled back.

        Closing without a commit is a rollback. Otherwise as :meth:`on_commit`: one
        that was registered inside of a savepoint goes with the savepoint.
        """
        self._register("rollback", fn)
        return fn

    def on_unknown(self, fn: C) -> C:
        """
        Run *fn*, once, if nobody knows whether the transaction was committed.

        That is after a :class:`CommitOutcomeUnknownError` or a
        :class:`PartialCommitError`: neither of the other two is true then. Otherwise as
        :meth:`on_commit`.
        """
        self._register("unknown", fn)
        return fn

    def _register(self, when: Outcome, fn: Callback) -> None:
        if self._callbacks is None:
            self._callbacks = Callbacks()
        self._callbacks.add(
            when,
            fn,
            self._innermost,
            async_mode=self.async_mode,
        )

    def _run_callbacks(self, callbacks: Callbacks, error: BaseException | None) -> None:
        if callbacks.due:
            scope = self._tenure_scope
            with scope.outside() if scope is not None else _nowhere:
                callbacks.run(error, async_mode=self.async_mode)


_nowhere = nullcontext()


def _call(callback: Callback, *, async_mode: bool) -> None:
    result = callback()
    if async_mode and isawaitable(result):
        await_only(result)
    elif iscoroutine(result):
        result.close()
        raise SessionError(
            f"{_name(callback)} returned a coroutine, which a sync session cannot await"
        )


def _name(callback: Any) -> str:
    return getattr(callback, "__qualname__", None) or repr(callback)
