"""
The async face: :class:`AsyncSession`, its factories and its registry.

The only module that needs greenlet, so it is imported when first used.
"""

from __future__ import annotations

from asyncio import current_task
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncSession as _AsyncSession
from sqlalchemy.ext.asyncio import async_scoped_session as _async_scoped_session
from sqlalchemy.ext.asyncio import async_sessionmaker

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


class async_scoped_session(_async_scoped_session[A]):  # noqa: N801  # SQLAlchemy's name
    """
    SQLAlchemy's ``async_scoped_session``, with ``bulk`` and ``routing``.

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
    factory = async_sessionmaker(bind, class_=AsyncSession, routing=routing, **kwargs)
    return async_scoped_session(factory, scopefunc) if scoped else factory
