"""
The async face: :class:`AsyncSession`, its factories and its registry.

The only module that needs greenlet, so it is imported when first used.
"""

from __future__ import annotations

import warnings
from asyncio import CancelledError, Task, current_task
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload
from weakref import WeakSet

from sqlalchemy.ext.asyncio import AsyncSession as _AsyncSession
from sqlalchemy.ext.asyncio import async_scoped_session as _async_scoped_session
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.util import ScopedRegistry

from .. import bulk as bulks
from ..context import context_scope
from ..engines import DatabaseManager
from ..errors import SessionError
from ..routing import Choice
from .callbacks import Callback
from .exclusive import ours
from .factories import ContextRegistry, OurMethods, check_ours
from .session import Session

if TYPE_CHECKING:
    from ..bulk import AsyncSessionBulk

C = TypeVar("C", bound=Callback)
M = TypeVar("M", bound=Callable[..., Any])
A = TypeVar("A", bound=_AsyncSession)


class AsyncSession(_AsyncSession):
    """
    SQLAlchemy's ``AsyncSession``, which also knows its databases.

    Args:
        bind: As in SQLAlchemy; it comes before *routing*.
        routing: The manager asked for an engine where no bind answers.
    """

    sync_session_class = Session
    # The block that made the session.
    _tenure_scope: Any = None

    def __init__(
        self,
        bind: Any = None,
        routing: DatabaseManager | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        sync_class = kwargs.get("sync_session_class") or type(self).sync_session_class
        # A class of the user's own may know nothing of our two arguments.
        if isinstance(sync_class, type) and issubclass(sync_class, Session):
            kwargs |= {"routing": routing, "proxy": self}
        elif routing is not None:
            raise SessionError(
                f"routing needs a sync session of tenure, not {sync_class!r}"
            )
        super().__init__(bind, *args, **kwargs)
        self.routing = routing

    async def commit(self, *, expire: bool | None = None) -> None:
        """
        Commit.

        Args:
            expire: Overrides ``expire_on_commit`` for this one commit.

        Raises:
            SessionError: A joined block wrote and failed, and its error was
                swallowed; roll back first.
        """
        if expire is None:
            await super().commit()
            return
        session = self._ours("commit(expire=…)")
        await self.run_sync(lambda _: session.commit(expire=expire))

    async def __aexit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # As Session.__exit__.
        session = self.sync_session
        if not isinstance(session, Session):
            await super().__aexit__(type_, value, traceback)
            return
        session._is_patient = True
        try:
            await super().__aexit__(type_, value, traceback)
        except CancelledError:
            # Closing goes on, in a task of its own.
            raise
        except BaseException:
            session._is_patient = False
            raise
        session._is_patient = False

    def _ours(self, what: str) -> Session:
        session = self.sync_session
        if not isinstance(session, Session):
            raise SessionError(
                f"{what} needs a sync session of tenure, not {type(session).__name__}"
            )
        return session

    def on_commit(self, fn: C) -> C:
        """As :meth:`Session.on_commit`; what *fn* returns is awaited."""
        return self._ours("on_commit()").on_commit(fn)

    def on_rollback(self, fn: C) -> C:
        """As :meth:`Session.on_rollback`; what *fn* returns is awaited."""
        return self._ours("on_rollback()").on_rollback(fn)

    def on_unknown(self, fn: C) -> C:
        """As :meth:`Session.on_unknown`; what *fn* returns is awaited."""
        return self._ours("on_unknown()").on_unknown(fn)

    def explain(
        self,
        statement_or_entity: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
    ) -> Choice:
        """Return which engine would be used, and why; as :meth:`Session.explain`."""
        return self._ours("explain()").explain(
            statement_or_entity,
            execution_options=execution_options,
            bind_arguments=bind_arguments,
        )

    def bulk(self, *, proxy_reference: bool = True) -> AsyncSessionBulk:
        """Return a new bulk on this session, to be entered with ``async with``."""
        return bulks.AsyncSessionBulk(self, proxy_reference=proxy_reference)


def _gives_ours(method: M) -> M:
    """Wrap *method*, which gives a result: its errors are ours."""

    @wraps(method)
    async def call(self: AsyncSession, *args: Any, **kwargs: Any) -> Any:
        return ours(await method(self, *args, **kwargs))

    return cast(M, call)


for _name in ("stream", "stream_scalars"):
    setattr(AsyncSession, _name, _gives_ours(getattr(_AsyncSession, _name)))


class _TaskRegistry(ScopedRegistry[A]):
    """A registry that keeps nothing of a task that is done."""

    __slots__ = ("_closing", "_known")

    def __init__(
        self, createfunc: Callable[[], A], scopefunc: Callable[[], Any]
    ) -> None:
        super().__init__(createfunc, scopefunc)
        # Tasks that call back when they are done; once, however often they ask.
        self._known: WeakSet[Task[Any]] = WeakSet()
        # The loop itself refers to a task weakly.
        self._closing: set[Task[None]] = set()

    def __call__(self) -> A:
        if not self.has():
            self.set(self.createfunc())
        return super().__call__()

    def set(self, obj: A) -> None:
        key = self.scopefunc()
        self.registry[key] = obj
        if isinstance(key, Task) and key not in self._known:
            self._known.add(key)
            key.add_done_callback(self._task_done)

    def _task_done(self, task: Task[Any]) -> None:
        session = self.registry.pop(task, None)
        if session is None:
            return
        core = session.sync_session
        is_open = session.in_transaction()
        if is_open or getattr(core, "_callbacks", None):
            closing = task.get_loop().create_task(session.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        else:
            # Nothing to wait for.
            core.close()
        warnings.warn(
            f"task {task.get_name()!r} ended {'inside a transaction of' if is_open else 'without removing'} "
            f"its scoped session; await remove() at its end, or use "
            f"async_session_manager()",
            ResourceWarning,
            stacklevel=1,
        )


class async_scoped_session(OurMethods, _async_scoped_session[A]):  # noqa: N801  # SQLAlchemy's name
    """
    SQLAlchemy's ``async_scoped_session``, with ``bulk`` and ``routing``.

    The session of a task goes away with the task.

    Raises:
        SessionError: The factory makes sync sessions.
    """

    def __init__(
        self,
        session_factory: Callable[..., A],
        scopefunc: Callable[[], Any] = current_task,
    ) -> None:
        made = getattr(session_factory, "class_", None)
        if made is not None and not hasattr(made, "sync_session_class"):
            raise SessionError(
                f"async_scoped_session got a factory of {made.__name__}; "
                f"use scoped_session for sync sessions"
            )
        super().__init__(session_factory, scopefunc)  # type: ignore[arg-type]  # it only calls the factory
        if scopefunc is context_scope:
            self.registry = ContextRegistry(session_factory)
        else:
            self.registry = _TaskRegistry(session_factory, scopefunc)

    def bulk(self, *, proxy_reference: bool = True) -> AsyncSessionBulk:
        """Return a new bulk on the current session."""
        session: Any = self.registry()
        bulk: AsyncSessionBulk = session.bulk(proxy_reference=proxy_reference)
        return bulk


#: What :func:`async_session_factory` gives.
AsyncSessionFactory = (
    async_sessionmaker[AsyncSession] | async_scoped_session[AsyncSession]
)


@overload
def async_session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: Literal[False] = False,
    scopefunc: Callable[[], Any] = current_task,
    *,
    class_: type[A],
    **kwargs: Any,
) -> async_sessionmaker[A]: ...


@overload
def async_session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    *,
    scoped: Literal[True],
    scopefunc: Callable[[], Any] = current_task,
    class_: type[A],
    **kwargs: Any,
) -> async_scoped_session[A]: ...


@overload
def async_session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: Literal[False] = False,
    scopefunc: Callable[[], Any] = current_task,
    *args: Any,
    **kwargs: Any,
) -> async_sessionmaker[AsyncSession]: ...


@overload
def async_session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    *,
    scoped: Literal[True],
    scopefunc: Callable[[], Any] = current_task,
    **kwargs: Any,
) -> async_scoped_session[AsyncSession]: ...


@overload
def async_session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: bool = False,
    scopefunc: Callable[[], Any] = current_task,
    *args: Any,
    **kwargs: Any,
) -> AsyncSessionFactory: ...


def async_session_factory(
    bind: Any = None,
    routing: DatabaseManager | None = None,
    scoped: bool = False,
    scopefunc: Callable[[], Any] = current_task,
    *args: Any,
    **kwargs: Any,
) -> async_sessionmaker[Any] | async_scoped_session[Any]:
    """
    Return a factory of async sessions, or an :class:`async_scoped_session` over it.

    Every further keyword goes to the sessions.
    """
    if args:
        raise TypeError(
            f"async_session_factory() takes keywords after 'scopefunc', not {args!r}"
        )
    if routing is not None:
        check_ours(kwargs.get("class_", AsyncSession), AsyncSession)
        kwargs["routing"] = routing
    factory: async_sessionmaker[AsyncSession] = async_sessionmaker(
        bind, **{"class_": AsyncSession, **kwargs}
    )
    return async_scoped_session(factory, scopefunc) if scoped else factory
