"""
Scopes: blocks in which one session is current.

What a block does on entry is decided by :func:`decide`, how it ends by
:func:`ending`; both are pure. One :func:`finish` ends the unit of work for the
two short drivers at the bottom.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session as _Session

from .context import SESSION_CONTEXT, current_application, restore
from .errors import SeanceError, SessionError, wrap
from .sessions import Session

if TYPE_CHECKING:
    from .async_sessions import AsyncSession

log = logging.getLogger("seance")

OnMissing = Literal["create", "raise"]


class Entry(Enum):
    """How a block gets its session."""

    JOIN = "join"
    CREATE = "create"
    SAVEPOINT = "savepoint"


class Ending(Enum):
    """How a block that owns its session ends it."""

    COMMIT = "commit"
    ROLLBACK = "rollback"
    DISCARD = "discard"


def decide(
    *, current: bool, same_factory: bool, new: bool, on_missing: str, savepoint: bool
) -> Entry:
    """
    Say how a block gets its session.

    Raises:
        SessionError: There is no session, and *on_missing* is ``"raise"``.
    """
    if current and not new and same_factory:
        return Entry.SAVEPOINT if savepoint else Entry.JOIN
    if not current and not new and on_missing == "raise":
        raise SessionError(
            "no session is current and on_missing='raise'; open one around this "
            "block with session_manager() or async_session_manager()"
        )
    return Entry.CREATE


def ending(error: BaseException | None, *, auto_commit: bool) -> Ending:
    """Say how a block ends that left with *error*."""
    if error is not None:
        return Ending.ROLLBACK
    return Ending.COMMIT if auto_commit else Ending.DISCARD


def finish(session: Any, how: Ending, expire: bool | None = None) -> None:
    """
    End the unit of work and hand the connection back, whatever happens.

    Raises what the commit raised; what a later rollback or close raises is
    logged and added to it as a note.
    """
    error: BaseException | None = None
    try:
        if how is Ending.COMMIT:
            if expire is None:
                session.commit()
            else:
                session.commit(expire=expire)
        elif how is Ending.ROLLBACK:
            session.rollback()
    except BaseException as failed:
        error = failed
        if how is Ending.COMMIT:
            _attempt(session.rollback, "rolling back", error)
    _attempt(session.close, "closing", error)
    if error is not None:
        raise error


def _attempt(step: Callable[[], None], doing: str, error: BaseException | None) -> None:
    try:
        step()
    except Exception as second:
        log.exception("seance: %s the session failed", doing)
        if error is None:
            raise
        error.add_note(f"{doing} the session failed as well: {second}")


class _Scope:
    """What both drivers share: arguments, the decision, the context."""

    kind: str
    other: str

    __slots__ = (
        "auto_commit",
        "created",
        "expire",
        "new",
        "on_missing",
        "previous",
        "registry",
        "savepoint",
        "session",
        "transaction",
        "using",
        "writes",
    )

    def __init__(
        self,
        *,
        using: Any = None,
        auto_commit: bool = False,
        new: bool = False,
        on_missing: OnMissing = "create",
        savepoint: bool = False,
        expire: bool | None = None,
    ) -> None:
        if on_missing not in ("create", "raise"):
            raise SessionError(
                f"on_missing is 'create' or 'raise', not {on_missing!r}"
            )
        if using is not None and not callable(using):
            raise SessionError(f"using is a session factory, not {using!r}")
        self.using = using
        self.auto_commit = auto_commit
        self.new = new
        self.on_missing = on_missing
        self.savepoint = savepoint
        self.expire = expire
        self.session: Any = None
        self.created = False
        self.transaction: Any = None
        self.registry: Any = None

    def open(self) -> Any:
        """Join or create; what is current is set."""
        current = SESSION_CONTEXT.get()
        if current is not None and not self.new:
            self._check_kind(current)
        using = self.using
        how = decide(
            current=current is not None,
            same_factory=using is None or _factory_of(current) is using,
            new=self.new,
            on_missing=self.on_missing,
            savepoint=self.savepoint,
        )
        self.previous = current
        if how is Entry.CREATE:
            factory = using if using is not None else self._default()
            self.session = self._make(factory)
            self.created = True
            SESSION_CONTEXT.set(self.session)
        else:
            self.session = current
            self.writes = getattr(_sync(current), "_writes", 0)
        return how

    def _default(self) -> Any:
        application = current_application()
        if application is None:
            raise SessionError(
                f"no session factory: give using=, enter a Database (with db:), or "
                f"install one with Database.install() before {self.kind}()"
            )
        return application.session if self.kind[0] == "s" else application.async_session

    def _make(self, factory: Any) -> Any:
        registry = getattr(factory, "registry", None)
        if registry is None:
            session = factory()
        elif self.new or registry.has():
            # The registry's session is in use: what a block owns has to be its own.
            session = factory.session_factory()
        else:
            session = factory()
            self.registry = registry
        self._check_made(session, factory)
        sync = _sync(session)
        if isinstance(sync, Session):
            sync._scope = factory
        return session

    def _check_made(self, session: Any, factory: Any) -> None:
        if self.kind == "session_manager":
            right = isinstance(session, _Session)
        else:
            right = hasattr(session, "sync_session")
        if not right:
            raise SessionError(
                f"{self.kind}() got {type(session).__name__} from {factory!r}; "
                f"use {self.other}() for it"
            )

    def _check_kind(self, current: Any) -> None:
        is_async = hasattr(current, "sync_session")
        if is_async is (self.kind == "async_session_manager"):
            return
        raise SessionError(
            f"{self.kind}() cannot join the current {type(current).__name__}; "
            f"use {self.other}(), or new=True for a session beside it, or run_sync() "
            f"to call sync code on an async session"
        )

    def left_joined(self, error: BaseException | None) -> None:
        """Remember that a joined block wrote and failed."""
        sync = _sync(self.session)
        if error is None or not isinstance(sync, Session):
            return
        if sync._writes != self.writes or sync.new or sync.dirty or sync.deleted:
            sync._half_done = error

    def close_context(self) -> None:
        """Make current again what was before."""
        if self.registry is not None:
            self.registry.clear()
        restore(SESSION_CONTEXT, self.session, self.previous)


def _factory_of(session: Any) -> Any:
    return getattr(_sync(session), "_scope", None)


def _sync(session: Any) -> Any:
    return getattr(session, "sync_session", session)


def _translated(error: BaseException) -> BaseException | None:
    """Give what the caller sees instead of *error*, if anything."""
    if isinstance(error, SQLAlchemyError) and not isinstance(error, SeanceError):
        return wrap(error)
    return None


class session_manager(_Scope):  # noqa: N801  # used like a function
    """
    A block with a session: the current one, or a new one that the block owns.

    A joined block neither commits, rolls back nor closes. A block that owns its
    session rolls back on an error, commits on success with *auto_commit*, and
    closes in any case. Entering does no I/O.

    Args:
        using: The factory to use; a current session made by another is not joined.
        auto_commit: Commit on success, if this block owns its session.
        new: Never join.
        on_missing: ``"raise"`` where there is no session, instead of making one.
        savepoint: Run in a SAVEPOINT of the current session.
        expire: Overrides ``expire_on_commit`` for the commit.

    Raises:
        SessionError: No session and no factory, or the current one is async.
        DatabaseError: For any error of SQLAlchemy or the driver, which keeps its
            class and is the ``__cause__``.
    """

    kind = "session_manager"
    other = "async_session_manager"
    __slots__ = ()

    def __enter__(self) -> Session:
        how = self.open()
        if how is Entry.SAVEPOINT:
            self.transaction = self.session.begin_nested()
        session: Session = self.session
        return session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.created:
                how = ending(error, auto_commit=self.auto_commit)
                try:
                    finish(self.session, how, self.expire)
                except Exception as second:
                    if error is None:
                        raise
                    error.add_note(f"ending the session failed as well: {second}")
            elif self.transaction is not None:
                if self.transaction.is_active or error is not None:
                    self.transaction.__exit__(kind, error, traceback)
            else:
                self.left_joined(error)
        except SQLAlchemyError as failed:
            seen = _translated(failed)
            if seen is None:
                raise
            raise seen from failed
        finally:
            self.close_context()
        if error is not None:
            seen = _translated(error)
            if seen is not None:
                raise seen from error


class async_session_manager(_Scope):  # noqa: N801  # used like a function
    """Async :class:`session_manager`."""

    kind = "async_session_manager"
    other = "session_manager"
    __slots__ = ()

    async def __aenter__(self) -> AsyncSession:
        how = self.open()
        if how is Entry.SAVEPOINT:
            self.transaction = await self.session.begin_nested()
        session: AsyncSession = self.session
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self.created:
                how = ending(error, auto_commit=self.auto_commit)
                try:
                    await _shielded(self._finish(how))
                except Exception as second:
                    if error is None:
                        raise
                    error.add_note(f"ending the session failed as well: {second}")
            elif self.transaction is not None:
                if self.transaction.is_active or error is not None:
                    await _shielded(
                        self.transaction.__aexit__(kind, error, traceback)
                    )
            else:
                self.left_joined(error)
        except SQLAlchemyError as failed:
            seen = _translated(failed)
            if seen is None:
                raise
            raise seen from failed
        finally:
            self.close_context()
        if error is not None:
            seen = _translated(error)
            if seen is not None:
                raise seen from error

    async def _finish(self, how: Ending) -> None:
        await self.session.run_sync(lambda sync: finish(sync, how, self.expire))


async def _shielded(step: Any) -> None:
    """
    Run *step* to its end, also while this task is being cancelled.

    Raises:
        CancelledError: After the end of *step*, if there was a cancellation.
    """
    task = asyncio.ensure_future(step)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.cancelled():
                raise
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            log.error("seance: ending a cancelled scope failed", exc_info=task.exception())
        raise cancelled
    task.result()


def current_session() -> Session:
    """
    Give the current session.

    Raises:
        SessionError: There is none, or it is async.
    """
    session: Any = SESSION_CONTEXT.get()
    if session is None:
        raise SessionError("no session is current; open one with session_manager()")
    if hasattr(session, "sync_session"):
        raise SessionError(
            f"the current session is {type(session).__name__}; "
            f"use current_async_session()"
        )
    found: Session = session
    return found


def current_async_session() -> AsyncSession:
    """
    Give the current async session.

    Raises:
        SessionError: There is none, or it is not async.
    """
    session: Any = SESSION_CONTEXT.get()
    if session is None:
        raise SessionError(
            "no session is current; open one with async_session_manager()"
        )
    if not hasattr(session, "sync_session"):
        raise SessionError(
            f"the current session is {type(session).__name__}; use current_session()"
        )
    found: AsyncSession = session
    return found
