"""``Database``: the object a program holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy import MetaData, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import sessionmaker

from .context import enter, install, leave, uninstall
from .engines import DatabaseManager, is_async_url
from .routing import DEFAULT
from .scopes import async_session_manager, session_manager
from .sessions import Session

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import async_sessionmaker

    from .async_sessions import AsyncSession


class Database:
    """
    The databases of a program, its session factories and its scopes.

    Nothing is connected before a session needs it. As a context manager it is
    the current application inside the block, and disposed of at its end; where
    blocks of it overlap, at the end of the last.

    Args:
        databases: As for :class:`DatabaseManager`; one URL is enough.
        routers: As for :class:`DatabaseManager`.
        engine_options: Passed to ``create_engine``.
    """

    def __init__(
        self,
        databases: Mapping[str, Any] | str | URL,
        *,
        routers: Sequence[Any] = (),
        **engine_options: Any,
    ) -> None:
        self.manager = DatabaseManager(databases, routers, **engine_options)
        self.session: sessionmaker[Session] = sessionmaker(
            class_=Session, routing=self.manager
        )
        self._async_session: async_sessionmaker[AsyncSession] | None = None
        self._blocks = 0
        self._lock = Lock()

    @property
    def async_session(self) -> async_sessionmaker[AsyncSession]:
        """The factory of async sessions; they do not expire on commit."""
        if self._async_session is None:
            from sqlalchemy.ext.asyncio import async_sessionmaker

            from .async_sessions import AsyncSession

            self._async_session = async_sessionmaker(
                class_=AsyncSession, routing=self.manager, expire_on_commit=False
            )
        return self._async_session

    @property
    def is_async(self) -> bool:
        """Whether the default database has a driver that only async code can use."""
        return is_async_url(self.manager[DEFAULT])

    def session_manager(self, **options: Any) -> session_manager:
        """Open a scope on this database; options as in :func:`session_manager`."""
        return session_manager(using=self.session, **options)

    def async_session_manager(self, **options: Any) -> async_session_manager:
        """Async :meth:`session_manager`."""
        return async_session_manager(using=self.async_session, **options)

    def install(self) -> Self:
        """Make this the process default, used where no application is current."""
        install(self)
        return self

    def create_all(self, metadata: MetaData, *, alias: str = DEFAULT) -> None:
        """Create the tables of *metadata* that are not there, and commit."""
        metadata.create_all(self.manager.engines[alias])

    async def acreate_all(self, metadata: MetaData, *, alias: str = DEFAULT) -> None:
        """Async :meth:`create_all`."""
        async with self.manager.async_engines[alias].begin() as connection:
            await connection.run_sync(metadata.create_all)

    def ping(self) -> dict[str, bool]:
        """
        Ask every database for an answer.

        Raises:
            sqlalchemy.exc.DBAPIError: One gave none.
        """
        for engine in self.manager.engines.values():
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        return dict.fromkeys(self.manager, True)

    async def aping(self) -> dict[str, bool]:
        """Async :meth:`ping`."""
        for engine in self.manager.async_engines.values():
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        return dict.fromkeys(self.manager, True)

    def dispose(self) -> None:
        """Close the connections of the sync engines."""
        uninstall(self)
        self.manager.dispose()

    async def adispose(self) -> None:
        """Close the connections of all engines."""
        uninstall(self)
        await self.manager.adispose()

    def _enter(self) -> None:
        with self._lock:
            self._blocks += 1
        enter(self)

    def _leave(self) -> bool:
        leave(self)
        with self._lock:
            self._blocks -= 1
            return self._blocks == 0

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._leave():
            self.dispose()

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._leave():
            await self.adispose()
