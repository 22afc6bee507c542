"""Factories of sync sessions, and the registry of one session for each scope."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from weakref import WeakKeyDictionary

from sqlalchemy.orm import Session as _Session
from sqlalchemy.orm import close_all_sessions, sessionmaker
from sqlalchemy.orm import scoped_session as _scoped_session
from sqlalchemy.util import ScopedRegistry

from ..context import context_scope
from ..engines import DatabaseManager
from ..errors import SessionError
from ..routing import Choice
from .callbacks import Callback
from .session import Session

if TYPE_CHECKING:
    from ..bulk import SessionBulk

S = TypeVar("S", bound=_Session)
C = TypeVar("C", bound=Callback)
T = TypeVar("T")


class ContextRegistry(ScopedRegistry[T]):
    """
    A registry by :func:`context_scope`: it keeps nothing of what is gone.

    What is made inside of a block ends with the block.
    """

    __slots__ = ()

    def __init__(self, createfunc: Callable[[], T]) -> None:
        super().__init__(createfunc, context_scope)
        self.registry = WeakKeyDictionary()

    def __call__(self) -> T:
        scope = self.scopefunc()
        session: T | None = self.registry.get(scope)
        if session is None:
            session = self.registry[scope] = self.createfunc()
            if hasattr(scope, "adopt"):
                scope.adopt(self.registry)
        return session


class OurMethods:
    """What a registry passes on to its current session, beside SQLAlchemy's."""

    registry: Any

    @property
    def routing(self) -> DatabaseManager | None:
        """The manager of the current session."""
        session: Any = self.registry()
        routing: DatabaseManager | None = session.routing
        return routing

    def on_commit(self, fn: C) -> C:
        """Run *fn* after the current session was committed; as on a session."""
        session: Any = self.registry()
        session.on_commit(fn)
        return fn

    def on_unknown(self, fn: C) -> C:
        """As :meth:`Session.on_unknown` of the current session."""
        session: Any = self.registry()
        session.on_unknown(fn)
        return fn

    def on_rollback(self, fn: C) -> C:
        """Run *fn* after the current session was rolled back; as on a session."""
        session: Any = self.registry()
        session.on_rollback(fn)
        return fn

    def explain(
        self,
        statement_or_entity: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
    ) -> Choice:
        """Return which engine the current session would use; as on a session."""
        session: Any = self.registry()
        choice: Choice = session.explain(
            statement_or_entity,
            execution_options=execution_options,
            bind_arguments=bind_arguments,
        )
        return choice


class scoped_session(OurMethods, _scoped_session[S]):  # noqa: N801  # the name is SQLAlchemy's
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
        if scopefunc is context_scope:
            self.registry = ContextRegistry(session_factory)

    def bulk(self, *, proxy_reference: bool = True) -> SessionBulk:
        """Return a new bulk on the current session."""
        session: Any = self.registry()
        bulk: SessionBulk = session.bulk(proxy_reference=proxy_reference)
        return bulk

    # SQLAlchemy 2.0 has it, and a word to say about it.
    if not hasattr(_scoped_session, "close_all"):

        @classmethod
        def close_all(cls) -> None:
            """Close all sessions in memory, whoever made them."""
            close_all_sessions()

    @property
    def proxy(self) -> Any:
        """The async session that the current session serves."""
        session: Any = self.registry()
        return session.proxy

    @property
    def async_mode(self) -> bool:
        """Whether the current session serves an async one."""
        session: Any = self.registry()
        async_mode: bool = session.async_mode
        return async_mode


#: What :func:`session_factory` gives.
SessionFactory = sessionmaker[Session] | scoped_session[Session]


def check_ours(class_: Any, ours: type[Any]) -> None:
    """
    Check a class whose sessions are to know their databases.

    Raises:
        SessionError: It is none of *ours*, which would know them.
    """
    if isinstance(class_, type) and not issubclass(class_, ours):
        name = class_.__name__
        raise SessionError(
            f"routing needs sessions of tenure, and {class_.__module__}.{name} is no class "
            f"of them; derive one: class My{name}({name}, tenure.{ours.__name__})"
        )


@overload
def session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: Literal[False] = False,
    *,
    class_: type[S],
    **kwargs: Any,
) -> sessionmaker[S]: ...


@overload
def session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    *,
    scoped: Literal[True],
    class_: type[S],
    **kwargs: Any,
) -> scoped_session[S]: ...


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
) -> sessionmaker[Any] | scoped_session[Any]:
    """
    Return a factory of sessions, or a :class:`scoped_session` over it.

    Every further keyword goes to the sessions, but for ``scopefunc``, which says what
    a scope is; a thread unless given.
    """
    if args:
        raise TypeError(
            f"session_factory() takes keywords after 'scoped', not {args!r}"
        )
    scopefunc = kwargs.pop("scopefunc", None)
    if routing is not None:
        check_ours(kwargs.get("class_", Session), Session)
        kwargs["routing"] = routing
    factory: sessionmaker[Session] = sessionmaker(bind, **{"class_": Session, **kwargs})
    return scoped_session(factory, scopefunc) if scoped else factory
