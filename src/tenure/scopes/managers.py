"""
The two kinds of blocks, sync and async, and how their unit of work ends.

:func:`finish` ends it for both: the async one calls it in a greenlet, with
:class:`Waiting` around its session.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from inspect import (
    Parameter,
    isasyncgenfunction,
    iscoroutinefunction,
    isgeneratorfunction,
    signature,
)
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    ParamSpec,
    TypeVar,
    Unpack,
    overload,
)

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only, greenlet_spawn

from ..errors import SessionError, translate
from ..sessions import Session
from .decorated import CoroutineFunction, Function, refuse, tried, wrong_with
from .options import Options
from .scope import Block, Ending, retire
from .waiting import Waiting, closer, shielded

if TYPE_CHECKING:
    from ..sessions import AsyncSession

log = logging.getLogger("tenure")

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")
A = TypeVar("A")


class session_manager(Block, Generic[S]):  # noqa: N801  # used like a function
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
        on_missing: ``"raise"`` where there is no session, instead of making one. The
            default is that of the :class:`Database`: ``"create"``, unless it was told.
        savepoint: Run in a SAVEPOINT of the current session.
        role: ``"read"``: the block refuses to write, and the database is asked for
            a read-only transaction if the block owns its session. ``"write"``: all of
            it goes where writing goes, reading as well.
        consistency: How old what is read may be; without replicas all of it is
            current.
        expire: Overrides ``expire_on_commit`` for the commit.
        retry: Of the decorator: each call that does not join is done again, as by
            :func:`retrying`; a number is that of attempts.

    Raises:
        SessionError: No session and no factory, or the current one is async; or
            the block that owns the session has ended before this one.
        RoutingError: The block has ``role="read"``, and has changed something.
        DatabaseError: For any error of SQLAlchemy or the driver, which keeps its
            class and is the ``__cause__``.
    """

    kind = "session_manager"
    other = "async_session_manager"
    factory = "session"
    decorated = Function

    if TYPE_CHECKING:

        @overload
        def __new__(cls, function: Callable[P, T], /) -> Callable[P, T]: ...  # type: ignore[misc]  # a decorator without parentheses

        @overload
        def __new__(
            cls, *, using: Callable[..., S], **options: Unpack[Options]
        ) -> session_manager[S]: ...

        @overload
        def __new__(
            cls, *, using: None = None, **options: Unpack[Options]
        ) -> session_manager[Session]: ...

        def __new__(cls, *args: Any, **options: Any) -> Any: ...

    async def __aenter__(self) -> NoReturn:
        """Refuse: a sync block is entered by ``with``."""
        raise wrong_with(self, "async with", "with")

    async def __aexit__(self, *exc_info: object) -> None:
        """Do nothing; the block was never entered."""

    def __call__(self, function: Callable[P, T]) -> Callable[P, T]:
        """Run each call of *function* in a block with these options."""
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            refuse(function, self.kind, "a generator; open the block inside of it")
        if iscoroutinefunction(function):
            refuse(function, self.kind, f"a coroutine function; use {self.other}()")

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._again():
                return function(*args, **kwargs)

        return call if self.retry is None else tried(call, self)

    def __enter__(self) -> S:
        if self._open() == "savepoint":
            try:
                self._transaction = self.session.begin_nested()
            except BaseException as failed:
                # It flushes first what the owner has left to write.
                self._close()
                translate(failed)
                raise
        session: S = self.session
        return session

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        own: BaseException | None = None
        # The user's factory may make sessions of SQLAlchemy's.
        if error is None and (
            self._transaction is not None
            or (self.how == "create" and getattr(self._core, "_watches", None))
        ):
            own = self._refusal()
            if own is not None and self._may_wait:
                self._core._wait_for_joined(self)
                own = self._refusal()
        failed = error or own
        try:
            if self._transaction is not None:
                self._end_savepoint(failed)
            if (how := self._leave(failed)) != "leave":
                finish(self.session, how, failed, self.expire)
        except SQLAlchemyError as late:
            translate(late)
            raise
        finally:
            try:
                for adopted in self._released() if self._adopted else ():
                    attempt(adopted.close, "closing", failed)
            finally:
                self._close()
        if own is not None:
            raise own
        if error is not None:
            translate(error)

    def _end_savepoint(self, error: BaseException | None) -> None:
        with self._patient():
            attempt(
                lambda: self._transaction.__exit__(*info(error)),
                "rolling back a savepoint of",
                error,
            )


class async_session_manager(Block, Generic[A]):  # noqa: N801  # used like a function
    """Async :class:`session_manager`."""

    kind = "async_session_manager"
    other = "session_manager"
    factory = "async_session"
    decorated = CoroutineFunction

    if TYPE_CHECKING:

        @overload
        def __new__(  # type: ignore[misc]  # a decorator without parentheses
            cls, function: Callable[P, Coroutine[Any, Any, T]], /
        ) -> Callable[P, Coroutine[Any, Any, T]]: ...

        @overload
        def __new__(
            cls, *, using: Callable[..., A], **options: Unpack[Options]
        ) -> async_session_manager[A]: ...

        @overload
        def __new__(
            cls, *, using: None = None, **options: Unpack[Options]
        ) -> async_session_manager[AsyncSession]: ...

        def __new__(cls, *args: Any, **options: Any) -> Any: ...

    def __enter__(self) -> NoReturn:
        """Refuse: an async block is entered by ``async with``."""
        raise wrong_with(self, "with", "async with")

    def __exit__(self, *exc_info: object) -> None:
        """Do nothing; the block was never entered."""

    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, T]]
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Run each call of *function* in a block with these options."""
        if isgeneratorfunction(function) or isasyncgenfunction(function):
            refuse(function, self.kind, "a generator; open the block inside of it")
        if not iscoroutinefunction(function):
            refuse(function, self.kind, f"no coroutine function; use {self.other}()")

        @wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            async with self._again():
                return await function(*args, **kwargs)

        return call if self.retry is None else tried(call, self)

    async def __aenter__(self) -> A:
        if self._open() == "savepoint":
            try:
                self._transaction = await self.session.begin_nested()
            except BaseException as failed:
                # It flushes first what the owner has left to write.
                self._close()
                translate(failed)
                raise
        session: A = self.session
        return session

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        own: BaseException | None = None
        # The user's factory may make sessions of SQLAlchemy's.
        if error is None and (
            self._transaction is not None
            or (self.how == "create" and getattr(self._core, "_watches", None))
        ):
            own = self._refusal()
            if own is not None and self._may_wait:
                try:
                    await self._core._await_joined(self)
                    own = self._refusal()
                except BaseException as cancelled:  # noqa: BLE001  # raised at the end
                    own = cancelled
        failed = error or own
        try:
            if self._transaction is not None:
                await self._end_savepoint(failed)
            if (how := self._leave(failed)) != "leave":
                await self._finish(how, failed)
        except SQLAlchemyError as late:
            translate(late)
            raise
        finally:
            try:
                for adopted in self._released() if self._adopted else ():
                    close = closer(adopted)
                    await shielded(
                        partial(greenlet_spawn, attempt, close, "closing", failed),
                        failed,
                    )
            finally:
                self._close()
        if own is not None:
            raise own
        if error is not None:
            translate(error)

    async def _end_savepoint(self, error: BaseException | None) -> None:
        def end() -> None:
            await_only(self._transaction.__aexit__(*info(error)))

        with self._patient():
            await shielded(
                lambda: greenlet_spawn(
                    attempt, end, "rolling back a savepoint of", error
                ),
                error,
            )

    async def _finish(self, how: Ending, error: BaseException | None) -> None:
        core = self.session.sync_session
        if (
            how == "discard"
            and not core.in_transaction()
            and not getattr(core, "_callbacks", None)
        ):
            # Nothing to wait for, so nothing to shield. By the session's own: it may
            # be of a class of the user's.
            try:
                await self.session.close()
            finally:
                retire(core)
            return
        session = Waiting(self.session)
        if how == "commit":
            try:
                # Apart from the commit: it may be cancelled, and nothing is kept.
                await self.session.flush()
            except BaseException as failed:
                cause = failed
                await shielded(
                    lambda: greenlet_spawn(finish, session, "rollback", cause, None),
                    cause,
                )
                raise
        await shielded(
            lambda: greenlet_spawn(finish, session, how, error, self.expire),
            error,
            again=lambda: greenlet_spawn(finish, session, "rollback", error, None),
        )


def finish(
    session: Any, how: Ending, error: BaseException | None, expire: bool | None
) -> None:
    """
    End the unit of work and hand the connection back, whatever happens.

    *error* is what the block left with. Raises what the commit or the close
    raised; what a step raises after an error is logged and added to it as a note.
    """
    if how == "discard":
        try:
            session.close()
        finally:
            retire(session)
        return
    try:
        if how == "lose":
            raise SessionError(
                "the block that owns this session ended before this one, which had "
                "joined it; what was written since is lost"
            )
        if how == "owe":
            core = getattr(session, "sync_session", session)
            if lines := core._owed():
                error = core._never_committed(lines)
                raise error
        if how == "commit":
            try:
                _commit(session, expire)
            except BaseException as failed:
                error = failed
                raise
    finally:
        try:
            if error is not None:
                attempt(session.rollback, "rolling back", error)
        finally:
            try:
                attempt(session.close, "closing", error)
            finally:
                retire(session)


def info(error: BaseException | None) -> Any:
    """Return what a context manager is left with."""
    return type(error) if error is not None else None, error, None


def _commit(session: Any, expire: bool | None) -> None:
    if expire is None:
        session.commit()
    else:
        session.commit(expire=expire)


def attempt(step: Callable[[], None], doing: str, error: BaseException | None) -> None:
    """Take *step*; if it fails after *error*, that is a note of it, and logged."""
    try:
        step()
    except Exception as second:
        if error is None:
            raise
        _note(error, doing, second)


def _note(error: BaseException, doing: str, second: Exception) -> None:
    log.error("tenure: %s the session failed", doing, exc_info=second)
    error.add_note(f"{doing} the session failed as well: {second}")


# What inspect and editors show: the options, and not how a decorator is told apart.
_init = signature(Block.__init__)
_options = [
    p.replace(default="create") if p.name == "on_missing" else p
    for p in _init.parameters.values()
    if p.kind is Parameter.KEYWORD_ONLY
]
for _class in (session_manager, async_session_manager):
    setattr(_class, "__signature__", _init.replace(parameters=_options))  # noqa: B010  # unknown to type checkers
