"""
What is current: to be asked for, to register with, to choose a database for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..context import SESSION_CONTEXT, USING, is_async, living, restore
from ..errors import RoutingError, SessionError
from ..sessions import Callback
from .carrying import missing

if TYPE_CHECKING:
    from ..engines import DatabaseManager
    from ..sessions import AsyncSession, Session

C = TypeVar("C", bound=Callback)


def current_session() -> Session:
    """
    Return the current session.

    Raises:
        SessionError: There is none, or it is async.
    """
    session: Any = living(SESSION_CONTEXT.get())
    if session is None:
        raise missing("no session is current; open one with session_manager()")
    if is_async(session):
        raise SessionError(
            f"the current session is {type(session).__name__}; "
            f"use current_async_session()"
        )
    found: Session = session
    return found


def current_async_session() -> AsyncSession:
    """
    Return the current async session.

    Raises:
        SessionError: There is none, or it is not async.
    """
    session: Any = living(SESSION_CONTEXT.get())
    if session is None:
        raise missing("no session is current; open one with async_session_manager()")
    if not is_async(session):
        raise SessionError(
            f"the current session is {type(session).__name__}; use current_session()"
        )
    found: AsyncSession = session
    return found


def on_commit(fn: C) -> C:
    """
    Run *fn*, once, after the current session's outermost transaction was committed.

    As :meth:`Session.on_commit`, of whatever session is current.

    Raises:
        SessionError: No session is current.
    """
    _current("on_commit").on_commit(fn)
    return fn


def on_rollback(fn: C) -> C:
    """
    Run *fn*, once, after the current session's outermost transaction was rolled back.

    As :meth:`Session.on_rollback`, of whatever session is current.

    Raises:
        SessionError: No session is current.
    """
    _current("on_rollback").on_rollback(fn)
    return fn


def on_unknown(fn: C) -> C:
    """
    Run *fn*, once, if nobody knows whether the current session was committed.

    As :meth:`Session.on_unknown`, of whatever session is current.

    Raises:
        SessionError: No session is current.
    """
    _current("on_unknown").on_unknown(fn)
    return fn


def _current(method: str) -> Any:
    session: Any = living(SESSION_CONTEXT.get())
    if session is None:
        raise missing(
            f"{method}() needs a current session; open one with session_manager() or "
            f"async_session_manager()"
        )
    if not hasattr(session, method):
        raise SessionError(
            f"{method}() needs a session of tenure, not {type(session).__name__}"
        )
    return session


class using:  # noqa: N801  # used like a function
    """
    A block in which sessions use the database *alias*, whatever routers say.

    Only what is named by the call itself or by an execution option comes before.

    Args:
        alias: The database.
        manager: Sessions of other managers go on as if there was no block;
            ``None``: it is for all.

    Raises:
        RoutingError: The manager has no such database. Without a manager, the
            session that is used says so.
        SessionError: The block was entered before.
    """

    __slots__ = ("_has_ended", "_is_entered", "_previous", "alias", "manager")

    def __init__(self, alias: str, *, manager: DatabaseManager | None = None) -> None:
        if not isinstance(alias, str):
            raise RoutingError(f"using() takes the alias of a database, not {alias!r}")
        if manager is not None:
            # Says what is known if this is not.
            manager[alias]
        self.alias = alias
        self.manager = manager
        self._previous: Any = None
        self._is_entered = self._has_ended = False

    def alias_for(self, manager: object) -> str | None:
        """Return the alias for sessions of *manager*; ``None``: it says nothing."""
        if self.manager is None or self.manager is manager:
            return self.alias
        return None if self._previous is None else self._previous.alias_for(manager)

    def __enter__(self) -> Self:
        if self._is_entered:
            raise SessionError(
                f"this block of using({self.alias!r}) was entered before; each needs a "
                f"using() of its own"
            )
        self._is_entered = True
        self._previous = USING.get()
        USING.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._has_ended = True
        previous = self._previous
        while previous is not None and previous._has_ended:
            previous = previous._previous
        restore(USING, self, previous)
