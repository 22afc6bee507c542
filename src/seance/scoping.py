"""Factories of sync sessions, and the registry of one session for each scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from sqlalchemy.orm import Session as _Session
from sqlalchemy.orm import scoped_session as _scoped_session
from sqlalchemy.orm import sessionmaker

from .bulk import SessionBulk
from .engines import DatabaseManager
from .errors import SessionError
from .sessions import Session

S = TypeVar("S", bound=_Session)


class scoped_session(_scoped_session[S]):  # noqa: N801  # the name is SQLAlchemy's
    """
    SQLAlchemy's ``scoped_session``, with ``bulk`` and ``routing``.

    Raises:
        SessionError: The factory makes async sessions.
    """

    def __init__(
        self,
        session_factory: Callable[..., S],
        scopefunc: Callable[[], Any] | None = None,
    ) -> None:
        made: Any = getattr(session_factory, "class_", None)
        if hasattr(made, "sync_session_class"):
            raise SessionError(
                f"scoped_session got a factory of {made.__name__}; "
                f"use async_scoped_session for async sessions"
            )
        super().__init__(session_factory, scopefunc)  # type: ignore[arg-type]  # it only calls the factory

    def bulk(self, *, proxy_reference: bool = True) -> SessionBulk:
        """Give a new bulk on the current session."""
        session: Any = self.registry()
        bulk: SessionBulk = session.bulk(proxy_reference=proxy_reference)
        return bulk

    @property
    def routing(self) -> DatabaseManager | None:
        """The manager of the current session."""
        session: Any = self.registry()
        routing: DatabaseManager | None = session.routing
        return routing


#: What :func:`session_factory` gives.
SessionFactory = sessionmaker[Session] | scoped_session[Session]


@overload
def session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: Literal[False] = False,
    *args: Any,
    **kwargs: Any,
) -> sessionmaker[Session]: ...


@overload
def session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    *,
    scoped: Literal[True],
    **kwargs: Any,
) -> scoped_session[Session]: ...


@overload
def session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: bool = False,
    *args: Any,
    **kwargs: Any,
) -> SessionFactory: ...


def session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: bool = False,
    *args: Any,
    **kwargs: Any,
) -> SessionFactory:
    """
    Give a factory of sessions, or a :class:`scoped_session` over it.

    Every further keyword goes to the sessions.
    """
    if args:
        raise TypeError(
            f"session_factory() takes keywords after 'scoped', not {args!r}"
        )
    if routing is not None:
        kwargs["routing"] = routing
    factory: sessionmaker[Session] = sessionmaker(bind, **{"class_": Session, **kwargs})
    return scoped_session(factory) if scoped else factory
