"""``Database``: the object a program holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from sqlalchemy import Engine, MetaData, text
from sqlalchemy.engine import URL
from sqlalchemy.orm import sessionmaker

from .context import SESSION_CONTEXT, enter, install, leave, living, uninstall
from .engines import DatabaseManager, is_async_url
from .routing import DEFAULT, Choice
from .scopes import (
    BUDGET,
    LeakWatch,
    OnMissing,
    Options,
    Report,
    async_session_manager,
    session_manager,
    using,
)
from .sessions import (
    JOINED_TIMEOUT,
    OnConcurrent,
    OnJoined,
    Session,
    checked,
    checked_seconds,
    open_sessions,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from .sessions import AsyncSession


class Database:
    """
    The databases of a program, its session factories and its scopes.

    Nothing is connected before a session needs it. As a context manager it is
    the current application inside the block, and disposed of at its end; where
    blocks of it overlap, at the end of the last.

    Args:
        databases: As for :class:`DatabaseManager`; one URL is enough.
        routers: As for :class:`DatabaseManager`.
        on_concurrent: As for :class:`Session`.
        on_joined: As for :class:`Session`.
        joined_timeout: As for :class:`Session`.
        on_missing: ``"raise"``: a block makes a session only with ``new=True``, or with
            ``on_missing="create"`` of its own; all others have to join one.
        twophase: Let all databases of a transaction promise to commit before one does.
        debug: Let :meth:`report` tell the stack that opened a session, which makes
            opening one slower.
        leak_threshold: Seconds after which a session that is still open is logged,
            once.
        engine_options: Passed to ``create_engine``.
    """

    def __init__(
        self,
        databases: Mapping[str, Any]
        | str
        | URL
        | Engine
        | AsyncEngine
        | tuple[Any, ...],
        *,
        routers: Sequence[Any] = (),
        on_concurrent: OnConcurrent = "raise",
        on_joined: OnJoined = "raise",
        joined_timeout: float = JOINED_TIMEOUT,
        on_missing: OnMissing = "create",
        twophase: bool = False,
        debug: bool = False,
        leak_threshold: float | None = None,
        **engine_options: Any,
    ) -> None:
        if leak_threshold is not None:
            checked_seconds("leak_threshold", leak_threshold)
        self.manager = DatabaseManager(databases, routers, **engine_options)
        self.manager.debug = debug
        self.manager.on_missing = checked("on_missing", on_missing, OnMissing)
        self._session_options: dict[str, Any] = {"routing": self.manager}
        if on_concurrent != "raise":
            checked("on_concurrent", on_concurrent, OnConcurrent)
            self._session_options["on_concurrent"] = on_concurrent
        if on_joined != "raise":
            checked("on_joined", on_joined, OnJoined)
            checked_seconds("joined_timeout", joined_timeout)
            self._session_options["on_joined"] = on_joined
            self._session_options["joined_timeout"] = joined_timeout
        if twophase:
            self._session_options["twophase"] = True
        self.session: sessionmaker[Session] = sessionmaker(
            class_=Session, **self._session_options
        )
        if leak_threshold is not None:
            self._leaks = LeakWatch(self.manager, leak_threshold)
        self._async_session: async_sessionmaker[AsyncSession] | None = None
        self._blocks = 0
        self._lock = Lock()

    @property
    def async_session(self) -> async_sessionmaker[AsyncSession]:
        """The factory of async sessions; they do not expire on commit."""
        if self._async_session is None:
            from sqlalchemy.ext.asyncio import async_sessionmaker

            from .sessions import AsyncSession

            self._async_session = async_sessionmaker(
                class_=AsyncSession, expire_on_commit=False, **self._session_options
            )
        return self._async_session

    @property
    def is_async(self) -> bool:
        """Whether the default database has a driver that only async code can use."""
        return is_async_url(self.manager[DEFAULT])

    def __repr__(self) -> str:
        urls = self.manager.urls
        shown = [f"{alias}={url.render_as_string()}" for alias, url in urls.items()]
        return f"<{type(self).__name__}: {', '.join(shown)}>"

    def session_manager(self, **options: Unpack[Options]) -> session_manager[Session]:
        """Open a scope on this database; options as in :func:`session_manager`."""
        return session_manager(using=self.session, **options)

    def async_session_manager(
        self, **options: Unpack[Options]
    ) -> async_session_manager[AsyncSession]:
        """Async :meth:`session_manager`."""
        return async_session_manager(using=self.async_session, **options)

    def using(self, alias: str) -> using:
        """
        Open a block in which sessions of this use the database *alias*.

        Raises:
            RoutingError: There is no such database.
        """
        return using(alias, manager=self.manager)

    def explain(
        self,
        statement_or_entity: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
    ) -> Choice:
        """
        Return which engine a statement or a mapped class would go to, and why.

        Asked of the current session, if it is one of this database, else of a new
        one. Nothing is executed.

        Raises:
            RoutingError: No engine, or an unknown one.
        """
        session: Any = living(SESSION_CONTEXT.get())
        if getattr(session, "routing", None) is not self.manager:
            session = self.async_session() if self.is_async else self.session()
        choice: Choice = session.explain(
            statement_or_entity,
            execution_options=execution_options,
            bind_arguments=bind_arguments,
        )
        return choice

    def report(self) -> Report:
        """
        List the sessions that are open, those open longest first.

        A session is open in its block, and in a transaction. ``report().retries`` is how
        often this process has done a unit of work again.
        """
        found = Report(described for _, described in open_sessions(self.manager))
        found.retries = BUDGET.spent
        return found

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
