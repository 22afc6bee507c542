"""
The async face: :class:`AsyncSession`, its factories and its registry.

The only module that needs greenlet, so it is imported when first used.
"""

from __future__ import annotations

import warnings
from asyncio import Task, current_task
from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncSession as _AsyncSession
from sqlalchemy.ext.asyncio import async_scoped_session as _async_scoped_session
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.util import ScopedRegistry

from .bulk import AsyncSessionBulk
from .engines import DatabaseManager
from .errors import SessionError
from .sessions import Session

A = TypeVar("A", bound=_AsyncSession)


class AsyncSession(_AsyncSession):
    """
    SQLAlchemy's ``AsyncSession``, which also knows its databases.

    Args:
        bind: As in SQLAlchemy; it comes before *routing*.
        routing: The manager asked for an engine where no bind answers.
    """

    sync_session_class = Session

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
                f"routing needs a sync session of seance, not {sync_class!r}"
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
        session = self.sync_session
        if not isinstance(session, Session):
            raise SessionError(
                f"commit(expire=…) needs a sync session of seance, "
                f"not {type(session).__name__}"
            )
        await self.run_sync(lambda _: session.commit(expire=expire))

    def bulk(self, *, proxy_reference: bool = True) -> AsyncSessionBulk:
        """Give a new bulk on this session, to be entered with ``async with``."""
        return AsyncSessionBulk(self, proxy_reference=proxy_reference)


class _TaskRegistry(ScopedRegistry[A]):
    """A registry that keeps nothing of a task that is done."""

    __slots__ = ("_closing",)

    def __init__(
        self, createfunc: Callable[[], A], scopefunc: Callable[[], Any]
    ) -> None:
        super().__init__(createfunc, scopefunc)
        # The loop itself refers to a task weakly.
        self._closing: set[Task[None]] = set()

    def __call__(self) -> A:
        if not self.has():
            self.set(self.createfunc())
        return super().__call__()

    def set(self, obj: A) -> None:
        key = self.scopefunc()
        self.registry[key] = obj
        if isinstance(key, Task):
            key.add_done_callback(self._task_done)

    def _task_done(self, task: Task[Any]) -> None:
        session = self.registry.pop(task, None)
        if session is None:
            return
        if not session.in_transaction():
            # Nothing to wait for.
            session.sync_session.close()
            return
        closing = task.get_loop().create_task(session.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        warnings.warn(
            f"task {task.get_name()!r} ended inside a transaction of its scoped "
            f"session; await remove() at its end, or use async_session_manager()",
            ResourceWarning,
            stacklevel=1,
        )


class async_scoped_session(_async_scoped_session[A]):  # noqa: N801  # SQLAlchemy's name
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
        self.registry = _TaskRegistry(session_factory, scopefunc)

    def bulk(self, *, proxy_reference: bool = True) -> AsyncSessionBulk:
        """Give a new bulk on the current session."""
        session: Any = self.registry()
        bulk: AsyncSessionBulk = session.bulk(proxy_reference=proxy_reference)
        return bulk

    @property
    def routing(self) -> DatabaseManager | None:
        """The manager of the current session."""
        session: Any = self.registry()
        routing: DatabaseManager | None = session.routing
        return routing


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
) -> AsyncSessionFactory:
    """
    Give a factory of async sessions, or an :class:`async_scoped_session` over it.

    Every further keyword goes to the sessions.
    """
    if args:
        raise TypeError(
            f"async_session_factory() takes keywords after 'scopefunc', not {args!r}"
        )
    if routing is not None:
        kwargs["routing"] = routing
    factory: async_sessionmaker[AsyncSession] = async_sessionmaker(
        bind, **{"class_": AsyncSession, **kwargs}
    )
    return async_scoped_session(factory, scopefunc) if scoped else factory
