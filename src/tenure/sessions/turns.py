"""
Methods that take turns, and the transaction that does.

What they are methods of has a guard, and says what happens when the turn is not free
and after it was given back: see :class:`tenure.Session`.
"""

from __future__ import annotations

from asyncio import _get_running_loop, current_task
from collections.abc import Callable
from functools import wraps
from threading import get_ident
from typing import Any, TypeVar, cast

from sqlalchemy import Select
from sqlalchemy.orm import SessionTransaction

from ..engines import end_reading
from ..routing import reads_plainly

M = TypeVar("M", bound=Callable[..., Any])


def one_at_a_time(
    method: M, doing: str = "", *, executes: bool = False, has_option: bool = False
) -> M:
    """
    Give *method* to one user at a time, and run afterwards what it made due.

    Args:
        doing: Its name in messages.
        executes: It takes a statement, which is looked at before.
        has_option: It has an execution option ``engine`` to see to.
    """
    doing = doing or method.__name__

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if has_option and kwargs and (options := kwargs.get("execution_options")):
            alias = options.get("engine")
            if alias is not None:
                given = kwargs.get("bind_arguments")
                kwargs["bind_arguments"] = self._with_engine(given, alias)
        loop = _get_running_loop()
        # As running(), in line.
        me = get_ident() if loop is None else current_task(loop) or loop
        guard = self._guard
        turn = guard.turn
        if turn.get("user") == me:
            if executes:
                self._look_at(args[0] if args else kwargs.get("statement"))
            return method(self, *args, **kwargs)
        try:
            if guard.has_ended:
                self._refuse_after_the_end(doing)
            if turn.setdefault("user", me) != me:
                self._take_turn(guard, me, doing)
            if executes:
                statement = args[0] if args else kwargs.get("statement")
                if type(statement) is Select and reads_plainly(statement):
                    # As _look_at(), for most statements.
                    self._last = statement
                else:
                    self._look_at(statement)
            result = method(self, *args, **kwargs)
        except BaseException as error:
            if turn.get("user") == me:
                self._give_turn(guard, doing, error)
            raise
        if self._callbacks is None and not guard.waiting:
            del turn["user"]
        else:
            self._give_turn(guard, doing, None)
        return result

    return cast(M, call)


class Transaction(SessionTransaction):
    """
    The transaction of our sessions: whatever ends it, one user does, and once.

    A block of ``session.begin()`` ends it without asking the session.
    """

    # Whether a savepoint was released.
    is_released = False

    def close(self, invalidate: bool = False) -> None:
        """Give the connections back, and settle what waits for the end."""
        session: Any = self.session
        if session is None or self.parent is not None:
            super().close(invalidate)
            # However it came to that: there is no event for a flush that failed.
            if session is not None and self.nested and not self.is_released:
                session._undo(self)
            return
        try:
            for connection in session._connected:
                end_reading(connection)
        finally:
            try:
                super().close(invalidate)
            finally:
                # Not in an event: there is none if a connection cannot be given back.
                session._settle()


def _as_its_session(method: M) -> M:
    def of_session(session: Any, *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    guarded = one_at_a_time(of_session, method.__name__)

    @wraps(method)
    def call(self: Transaction, *args: Any, **kwargs: Any) -> Any:
        # None once it is closed, which SQLAlchemy has a word for.
        session: Any = self.session
        if session is None:
            return method(self, *args, **kwargs)
        return guarded(session, self, *args, **kwargs)

    return cast(M, call)


for _name in ("commit", "rollback", "close", "prepare"):
    setattr(Transaction, _name, _as_its_session(getattr(Transaction, _name)))
