"""
Scopes: blocks in which one session is current.

What a block does on entry is decided by :func:`decide`, how it ends by
:func:`ending`; both are pure. One :func:`finish` ends the unit of work for the
two short drivers at the bottom.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
)

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session as _Session
from sqlalchemy.util import ScopedRegistry, await_only, greenlet_spawn

from .context import SESSION_CONTEXT, current_application, restore
from .errors import SeanceError, SessionError, wrap
from .sessions import Session, Watch

if TYPE_CHECKING:
    from .async_sessions import AsyncSession

log = logging.getLogger("seance")

P = ParamSpec("P")
T = TypeVar("T")

OnMissing = Literal["create", "raise"]


#: How a block gets its session.
Entry = Literal["create", "join", "savepoint"]

#: How a block ends, once it is left. ``"discard"``: closing undoes what was not
#: committed. ``"leave"``: the block that owns the session will end it. ``"lose"``:
#: that block has ended before; what was written since cannot be kept.
Ending = Literal["commit", "rollback", "discard", "leave", "lose"]


def decide(
    *, current: bool, same_factory: bool, new: bool, on_missing: str, savepoint: bool
) -> Entry:
    """
    Say how a block gets its session.

    Raises:
        SessionError: There is no session, and *on_missing* is ``"raise"``.
    """
    if current and not new and same_factory:
        return "savepoint" if savepoint else "join"
    if not current and not new and on_missing == "raise":
        raise SessionError(
            "no session is current and on_missing='raise'; open one around this "
            "block with session_manager() or async_session_manager()"
        )
    return "create"


def ending(
    error: BaseException | None,
    *,
    owns: bool,
    auto_commit: bool,
    owner_ended: bool = False,
    has_written: bool = False,
) -> Ending:
    """Say how a block ends that left with *error*."""
    if not owns and not owner_ended:
        return "leave"
    if error is not None:
        return "rollback"
    if owns:
        return "commit" if auto_commit else "discard"
    return "lose" if has_written else "discard"


def finish(
    session: Any, how: Ending, error: BaseException | None, expire: bool | None
) -> None:
    """
    End the unit of work and hand the connection back, whatever happens.

    *error* is what the block left with. Raises what the commit or the close
    raised; what a step raises after an error is logged and added to it as a note.
    """
    if how == "discard":
        session.close()
        return
    try:
        if how == "lose":
            raise SessionError(
                "the block that owns this session ended before this one, which had "
                "joined it; what was written since is lost"
            )
        if how == "commit":
            try:
                _commit(session, expire)
            except BaseException as failed:
                error = failed
                raise
    finally:
        try:
            if error is not None:
                _attempt(session.rollback, "rolling back", error)
        finally:
            _attempt(session.close, "closing", error)


def _commit(session: Any, expire: bool | None) -> None:
    if expire is None:
        session.commit()
    else:
        session.commit(expire=expire)


def _attempt(step: Callable[[], None], doing: str, error: BaseException | None) -> None:
    try:
        step()
    except Exception as second:
        if error is None:
            raise
        _note(error, doing, second)


def _note(error: BaseException, doing: str, second: Exception) -> None:
    log.error("seance: %s the session failed", doing, exc_info=second)
    error.add_note(f"{doing} the session failed as well: {second}")


def translate(error: BaseException) -> None:
    """Raise *error* as a :class:`DatabaseError`, if it is one of SQLAlchemy's."""
    if isinstance(error, SQLAlchemyError) and not isinstance(error, SeanceError):
        raise wrap(error) from error


class _Scope:
    """What both drivers share: arguments, the decision, the context."""

    kind: ClassVar[str]
    other: ClassVar[str]
    factory: ClassVar[str]

    __slots__ = (
        "_registry",
        "_transaction",
        "_watch",
        "auto_commit",
        "expire",
        "has_ended",
        "how",
        "new",
        "on_missing",
        "previous",
        "savepoint",
        "session",
        "using",
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
            raise SessionError(f"on_missing is 'create' or 'raise', not {on_missing!r}")
        if using is not None and not callable(using):
            raise SessionError(f"using is a session factory, not {using!r}")
        self.using = using
        self.auto_commit = auto_commit
        self.new = new
        self.on_missing = on_missing
        self.savepoint = savepoint
        self.expire = expire
        # How the block got its session; None until it is entered.
        self.how: Entry | None = None
        self.has_ended = False
        self.session: Any = None
        # What was current before, if the block made a session.
        self.previous: Any = None
        self._registry: Any = None
        self._watch: Watch | None = None
        self._transaction: Any = None

    def _again(self) -> Self:
        """Give another block with the same options."""
        return type(self)(
            using=self.using,
            auto_commit=self.auto_commit,
            new=self.new,
            on_missing=self.on_missing,
            savepoint=self.savepoint,
            expire=self.expire,
        )

    def _open(self) -> Entry:
        """Join or create; what is current is set."""
        if self.how is not None:
            raise SessionError(
                f"this block was entered before; each needs a {self.kind}() of its own"
            )
        current = SESSION_CONTEXT.get()
        if current is not None:
            current = _living(current)
        if current is not None and not self.new:
            self._check_kind(current)
        using = self.using
        how = decide(
            current=current is not None,
            same_factory=(
                current is None or using is None or _factory_of(current) == using
            ),
            new=self.new,
            on_missing=self.on_missing,
            savepoint=self.savepoint,
        )
        if how == "create":
            self.previous = current
            if using is None:
                self.using = using = self._default()
            self.session = current = self._make(using)
            current._seance_scope = self
            if self._registry is not None:
                self._registry.set(current)
            SESSION_CONTEXT.set(current)
        else:
            self.session = current
            if how == "join":
                core = getattr(current, "sync_session", current)
                self._watch = Watch(core) if isinstance(core, Session) else None
        self.how = how
        return how

    def _default(self) -> Any:
        application = current_application()
        if application is None:
            raise SessionError(
                f"no session factory: give using=, enter a Database (with db:), or "
                f"install one with Database.install() before {self.kind}()"
            )
        return getattr(application, self.factory)

    def _make(self, factory: Any) -> Any:
        registry = getattr(factory, "registry", None)
        if registry is None or not isinstance(registry, ScopedRegistry):
            session = factory()
        else:
            if registry.has() and _has_ended(registry()):
                # Its block was left in another thread, which could not reach it.
                registry.clear()
            session = factory.session_factory()
            # What a block owns has to be its own, so a session in use stays there.
            self._registry = None if self.new or registry.has() else registry
        if (
            isinstance(session, _Session)
            if self.factory == "session"
            else hasattr(session, "sync_session")
        ):
            return session
        raise SessionError(
            f"{self.kind}() got {type(session).__name__} from {factory!r}; "
            f"use {self.other}() for it"
        )

    def _check_kind(self, current: Any) -> None:
        if _is_async(current) is not (self.factory == "session"):
            return
        raise SessionError(
            f"{self.kind}() cannot join the current {type(current).__name__}; "
            f"use {self.other}(), or new=True for a session beside it, or run_sync() "
            f"to call sync code on an async session"
        )

    def _ending(self, error: BaseException | None) -> Ending:
        if self.how == "create":
            return ending(error, owns=True, auto_commit=self.auto_commit)
        return ending(
            error,
            owns=False,
            auto_commit=False,
            owner_ended=_has_ended(self.session),
            has_written=(
                self._transaction is not None
                if self._watch is None
                else self._watch.end(error)
            ),
        )

    def _close(self) -> None:
        """Make current again what was before, unless that has ended as well."""
        self.has_ended = True
        session, self.session = self.session, None
        if self.how != "create":
            return
        if self._registry is not None:
            _unregister(self._registry, session)
        if self.previous is not None:
            self.previous = _living(self.previous)
        restore(SESSION_CONTEXT, session, self.previous)


def _is_async(session: Any) -> bool:
    return hasattr(session, "sync_session")


def _factory_of(session: Any) -> Any:
    scope = getattr(session, "_seance_scope", None)
    return None if scope is None else scope.using


def _has_ended(session: Any) -> bool:
    """Whether *session* was made by a block that has ended."""
    scope = getattr(session, "_seance_scope", None)
    return scope is not None and scope.has_ended


def _living(session: Any) -> Any:
    """
    Give *session*, or what was current around it if it has ended.

    Blocks of generators end in any order, and a task may outlive the block that
    it was started in.
    """
    while session is not None and _has_ended(session):
        session = session._seance_scope.previous
    return session


def _unregister(registry: Any, session: Any) -> None:
    if registry.has() and registry() is session:
        registry.clear()
    elif isinstance(registry.registry, dict):
        for key, registered in list(registry.registry.items()):
            if registered is session:
                del registry.registry[key]


def _refuse(function: Any, kind: str, why: str) -> NoReturn:
    name = getattr(function, "__qualname__", repr(function))
    raise SessionError(f"{kind}() cannot decorate {name}, {why}")


class session_manager(_Scope):  # noqa: N801  # used like a function
    """
    A block with a session: the current one, or a new one that the block owns.

    A joined block neither commits, rolls back nor closes. A block that owns its
    session rolls back on an error, commits on success with *auto_commit*, and
    closes in any case. Entering does no I/O, unless for a SAVEPOINT. Decorates
    functions as well: each call is a block of its own.

    Args:
        using: The factory to use; a current session made by another is not joined.
        auto_commit: Commit on success, if this block owns its session.
        new: Never join.
        on_missing: ``"raise"`` where there is no session, instead of making one.
        savepoint: Run in a SAVEPOINT of the current session.
        expire: Overrides ``expire_on_commit`` for the commit.

    Raises:
        SessionError: No session and no factory, or the current one is async; or
            the block that owns the session has ended before this one.
        DatabaseError: For any error of SQLAlchemy or the driver, which keeps its
            class and is the ``__cause__``.
    """

    kind = "session_manager"
    other = "async_session_manager"
    factory = "session"
    __slots__ = ()

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Run each call of *function* in a block with these options."""
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            _refuse(function, self.kind, "a generator; open the block inside of it")
        if iscoroutinefunction(function):
            _refuse(function, self.kind, f"a coroutine function; use {self.other}()")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._again():
                return function(*args, **kwargs)

        return call

    def __enter__(self) -> Session:
        if self._open() == "savepoint":
            try:
                self._transaction = self.session.begin_nested()
            except SQLAlchemyError as failed:
                # It flushes first what the owner has left to write.
                translate(failed)
                raise
        session: Session = self.session
        return session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._transaction is not None:
                _attempt(
                    lambda: self._transaction.__exit__(kind, error, traceback),
                    "rolling back a savepoint of",
                    error,
                )
            if (how := self._ending(error)) != "leave":
                finish(self.session, how, error, self.expire)
        except SQLAlchemyError as failed:
            translate(failed)
            raise
        finally:
            self._close()
        if error is not None:
            translate(error)


class async_session_manager(_Scope):  # noqa: N801  # used like a function
    """Async :class:`session_manager`."""

    kind = "async_session_manager"
    other = "session_manager"
    factory = "async_session"
    __slots__ = ()

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]]
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Run each call of *function* in a block with these options."""
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            _refuse(function, self.kind, "a generator; open the block inside of it")
        if not iscoroutinefunction(function):
            _refuse(function, self.kind, f"no coroutine function; use {self.other}()")

        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self._again():
                return await function(*args, **kwargs)

        return call

    async def __aenter__(self) -> AsyncSession:
        if self._open() == "savepoint":
            try:
                self._transaction = await self.session.begin_nested()
            except SQLAlchemyError as failed:
                # It flushes first what the owner has left to write.
                translate(failed)
                raise
        session: AsyncSession = self.session
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._transaction is not None:
                ended = self._transaction.__aexit__(kind, error, traceback)
                await _shielded(
                    greenlet_spawn(
                        _attempt,
                        lambda: await_only(ended),
                        "rolling back a savepoint of",
                        error,
                    ),
                    error,
                )
            if (how := self._ending(error)) != "leave":
                await self._finish(how, error)
        except SQLAlchemyError as failed:
            translate(failed)
            raise
        finally:
            self._close()
        if error is not None:
            translate(error)

    async def _finish(self, how: Ending, error: BaseException | None) -> None:
        if how == "discard" and not self.session.in_transaction():
            # Nothing to wait for, so nothing to shield.
            await self.session.close()
            return
        session = _Waiting(self.session)
        if how == "commit":
            try:
                # Apart from the commit: it may be cancelled, and nothing is kept.
                await self.session.flush()
            except BaseException as failed:
                undone = greenlet_spawn(finish, session, "rollback", failed, None)
                await _shielded(undone, failed)
                raise
        await _shielded(greenlet_spawn(finish, session, how, error, self.expire), error)


class _Waiting:
    """An async session as :func:`finish` sees it: waiting looks like a call."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def commit(self, **options: Any) -> None:
        await_only(self._session.commit(**options))

    def rollback(self) -> None:
        await_only(self._session.rollback())

    def close(self) -> None:
        await_only(self._session.close())


async def _shielded(
    step: Coroutine[Any, Any, None], error: BaseException | None
) -> None:
    """
    Run *step* to its end, also while this task is being cancelled.

    Args:
        error: What the block left with.

    Raises:
        CancelledError: After the end of *step*, if there was a cancellation; none
            if *error* is one already, or the like.
    """
    task = asyncio.ensure_future(step)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as another:
            cancelled = another
    if cancelled is None:
        task.result()
        return
    failed = None if task.cancelled() else task.exception()
    if failed is not None:
        log.error("seance: ending a cancelled scope failed", exc_info=failed)
    if error is None or isinstance(error, Exception):
        raise cancelled


def current_session() -> Session:
    """
    Give the current session.

    Raises:
        SessionError: There is none, or it is async.
    """
    session: Any = _living(SESSION_CONTEXT.get())
    if session is None:
        raise SessionError("no session is current; open one with session_manager()")
    if _is_async(session):
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
    session: Any = _living(SESSION_CONTEXT.get())
    if session is None:
        raise SessionError(
            "no session is current; open one with async_session_manager()"
        )
    if not _is_async(session):
        raise SessionError(
            f"the current session is {type(session).__name__}; use current_session()"
        )
    found: AsyncSession = session
    return found
