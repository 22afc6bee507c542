"""
The two kinds of blocks, sync and async, and how their unit of work ends.

:func:`finish` ends it for both: the async one calls it in a greenlet, with
:class:`Waiting` around its session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only, greenlet_spawn

from ..callers import Line
from ..context import is_async
from ..errors import SessionError, TenureError, wrap
from ..sessions import Session
from .scope import Block, Ending

if TYPE_CHECKING:
    from ..sessions import AsyncSession

log = logging.getLogger("tenure")

P = ParamSpec("P")
T = TypeVar("T")


def _refuse(function: Any, kind: str, why: str) -> NoReturn:
    name = getattr(function, "__qualname__", repr(function))
    raise SessionError(f"{kind}() cannot decorate {name}, {why}")


class session_manager(Block):  # noqa: N801  # used like a function
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
        role: ``"read"``: the block refuses to write, and the database is asked for
            a read-only transaction if the block owns its session. ``"write"``: all of
            it goes where writing goes, reading as well.
        consistency: How old what is read may be; without replicas all of it is
            current.
        expire: Overrides ``expire_on_commit`` for the commit.

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
            except BaseException as failed:
                # It flushes first what the owner has left to write.
                self._close()
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


class async_session_manager(Block):  # noqa: N801  # used like a function
    """Async :class:`session_manager`."""

    kind = "async_session_manager"
    other = "session_manager"
    factory = "async_session"

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
            except BaseException as failed:
                # It flushes first what the owner has left to write.
                self._close()
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
                    close = _closer(adopted)
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


def _closer(session: Any) -> Callable[[], None]:
    """Return a function that closes *session* from inside of a greenlet."""
    return Waiting(session).close if is_async(session) else session.close


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
                error = _never_committed(core, lines)
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


def _never_committed(core: Session, lines: list[Line]) -> SessionError:
    """Return the error of an owner that does not commit what blocks counted on."""
    return SessionError(
        f"a block with auto_commit=True ({', '.join(map(str, lines))}) wrote and "
        f"succeeded, but the block that owns the session ({core._tenure_scope.line}) "
        f"ended without a commit, so what was written is rolled back; open the owner "
        f"with auto_commit=True, or the inner block with new=True, or call "
        f"session.rollback() to discard it on purpose"
    )


def info(error: BaseException | None) -> Any:
    """Return what a context manager is left with."""
    return type(error) if error is not None else None, error, None


def retire(session: Any) -> None:
    """Refuse from now on whatever would begin something on *session*."""
    # The user's factory may make sessions of SQLAlchemy's.
    own = getattr(session, "_retire", None)
    if own is not None:
        own()


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


def translate(error: BaseException) -> None:
    """Raise *error* as a :class:`DatabaseError`, if it is one of SQLAlchemy's."""
    if isinstance(error, SQLAlchemyError) and not isinstance(error, TenureError):
        raise wrap(error) from error


class Waiting:
    """An async session as :func:`finish` sees it: waiting looks like a call."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sync_session = session.sync_session

    def commit(self, **options: Any) -> None:
        await_only(self._session.commit(**options))

    def rollback(self) -> None:
        await_only(self._session.rollback())

    def close(self) -> None:
        await_only(self._session.close())

    def _retire(self) -> None:
        retire(self._session.sync_session)


async def shielded(
    step: Callable[[], Coroutine[Any, Any, None]],
    error: BaseException | None,
    again: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """
    Run *step* to its end, also while this task is being cancelled.

    It runs in a task of its own. Who cancels all tasks there are, as
    ``asyncio.run()`` does at its end, cancels that one, too; then *again* runs, or
    *step* once more.

    Args:
        error: What the block left with.

    Raises:
        CancelledError: After the end of *step*, if there was a cancellation; none
            if *error* is one already, or the like.
    """
    cancelled: asyncio.CancelledError | None = None
    for attempted in (step, again or step, again or step):
        task = asyncio.ensure_future(attempted())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as another:
                cancelled = another
        if not task.cancelled():
            break
        cancelled = cancelled or asyncio.CancelledError()
    if cancelled is None:
        task.result()
        return
    if task.cancelled():
        log.error(
            "tenure: ending a scope was cancelled each time; its connection is out"
        )
        raise cancelled
    failed = task.exception()
    if failed is not None:
        log.error("tenure: ending a cancelled scope failed", exc_info=failed)
        if isinstance(error, GeneratorExit):
            # Who closes the generator hears what it has lost.
            raise failed
    if error is None or isinstance(error, Exception):
        raise cancelled
