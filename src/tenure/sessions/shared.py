"""
A session that blocks share: what each has written, and who may end its transaction.

Half a piece of work is not committed, and nothing is lost without a word. A block that
joined, wrote and failed spoils the commit. One that wrote and succeeded, with
``auto_commit=True``, makes an owner that does not commit raise. Nobody ends the
transaction of others: neither a block that joined, nor an owner while another task or
thread is still inside.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from asyncio import Event, Task, get_running_loop, timeout
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, Result
from sqlalchemy.exc import PendingRollbackError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session as _Session
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.util.concurrency import in_greenlet

from .._private import is_read
from ..callers import Line
from ..engines import changes
from ..errors import DatabaseError, PartialCommitError, SessionError, said, wrap
from .exclusive import ENDING, Writer, current_user, is_inside
from .naming import User, concurrent_use, described
from .opened import name_holders
from .watch import Past, Watch


@dataclass(frozen=True, slots=True)
class Ended:
    """A joined block that wrote and has ended: it failed, or counts on a commit."""

    past: Past
    error: BaseException | None
    #: Of the block, if it counts on a commit.
    line: Line | None
    #: As of the watch.
    counted: Any
    #: False: the database will say whether it wrote.
    is_sure: bool


class Shared(Writer, _Session):
    """A session that knows what the blocks that have joined it have written."""

    # What the classes that derive from it know.
    _connected: tuple[Connection, ...]
    _commit: Any
    _outcome: Any
    routing: Any
    _innermost: Any
    async_mode: Any

    # The block that made the session.
    _tenure_scope: Any = None
    # Seconds that the block waits, when it ends, for others that have joined; ``None``:
    # it does not wait.
    _joined_timeout: float | None = None
    # Results that are read row by row, each with its reader.
    _streams: tuple[tuple[Any, User], ...] | None = None
    # Called when one of them leaves.
    _when_left: Callable[[], object] | None = None
    # The blocks that have joined and are open, in the order they were opened.
    _watches: tuple[Watch, ...] = ()

    # Of the outermost transaction: the blocks that wrote, or may have, and have ended;
    # the error of the last flush that failed.
    _ended: tuple[Ended, ...] = ()
    _failed_flush: BaseException | None = None

    def _as_ours(self, error: SQLAlchemyError) -> DatabaseError:
        """Return an error of SQLAlchemy as a :class:`DatabaseError`."""
        if isinstance(error, PoolTimeoutError):
            name_holders(error)
        wrapped = wrap(error)
        cause = self._failed_flush
        if isinstance(error, PendingRollbackError) and cause is not None:
            wrapped.add_note(
                f"the flush that has failed: {type(cause).__name__}: {said(cause)}"
            )
        return wrapped

    @property
    def _commits_by_itself(self) -> bool:
        """Whether a block of the session commits, or counts on a commit."""
        scope = self._tenure_scope
        if scope is not None and not scope.has_ended and scope.auto_commit:
            return True
        return any(watch.auto_commit for watch in self._watches)  # type: ignore[attr-defined]  # of a block

    # What is written

    def _note_for_blocks(self, *, is_sure: bool) -> None:
        """What is done now (surely) writes, and is done by the blocks around it."""
        self._settle()
        place = self._innermost
        is_first = not (self._wrote or self._may_have_written)
        for watch in self._around(current_user()):
            if watch.reads:
                continue
            if not (is_sure or watch._wrote) and watch._counted is None:
                watch._counted = self._count(is_first=is_first)
            watch._note_place(place, is_sure=is_sure)

    def _note_flush(self) -> None:
        """A flush begins: it writes what each block has left to write."""
        self._settle()
        # What waited to be written before a block has joined is not its own.
        for watch in self._watches:
            watch.look()

    def _count(self, *, is_first: bool) -> dict[Any, int | None]:
        """Return what each connection has changed so far; *is_first*: nothing yet."""
        return {each: changes(each, is_new=is_first) for each in self._connected}

    def _around(self, me: User) -> tuple[Watch, ...]:
        """Return the open blocks that what *me* does is done in."""
        watches = self._watches
        for n in range(len(watches), 0, -1):
            if watches[n - 1].user == me:
                # Those opened before may be around it; those opened later are not.
                return watches[:n]
        scope = self._tenure_scope
        # A task that was started by one of them, unless it is the owner's.
        return () if scope is not None and scope.user == me else watches

    def _block_ended(self, watch: Watch, error: BaseException | None) -> None:
        """Remember a joined block that wrote: it failed, or counts on a commit."""
        line = watch.line if error is None else None  # type: ignore[attr-defined]  # of a block
        ended = Ended(
            Past(watch), error, line, watch._counted, is_sure=bool(watch._wrote)
        )
        for each in self._ended if line is not None and ended.is_sure else ():
            if each.line == line and each.is_sure:
                each.past.add(ended.past)
                return
        self._ended = (*self._ended, ended)

    def _settle(self) -> None:
        """Ask the database whether blocks have written that may have."""
        if all(each.is_sure for each in self._ended):
            return
        unsettled, self._ended = self._ended, ()
        self._ended = tuple(
            replace(each, is_sure=True)
            for each in unsettled
            if each.is_sure
            or (not each.past.is_empty and self._has_changed(each.counted))
        )

    def _has_changed(self, counted: dict[Any, int | None] | None) -> bool:
        # In doubt it has.
        if counted is None or (self.async_mode and not in_greenlet()):
            return True
        try:
            for connection in self._connected:
                before, now = counted.get(connection), changes(connection)
                if before is None or before != now:
                    return True
        except SQLAlchemyError:
            return True
        return False

    def _move_blocks(self, savepoint: SessionTransaction, *, is_undone: bool) -> None:
        """Take out what *savepoint* has undone; the rest is what is around it did."""
        pasts = [each.past for each in self._ended]
        for each in (*pasts, *self._watches):
            each._end_place(savepoint, is_undone=is_undone)

    def _forget_blocks(self) -> None:
        """The transaction has ended, and what was written with it."""
        self._ended = ()
        for watch in self._watches:
            watch.forget()

    # What became of it

    def _note_outcome(self, error: BaseException) -> PartialCommitError | None:
        """Remember what became of a commit; return the error if it is done in part."""
        commit = self._commit
        if commit is None or not (commit.done or commit.is_unknown):
            return None
        if commit.failed and commit.done:
            self._outcome = "unknown"
            done = [self._name_of(engine) for engine in commit.done]
            failed = [self._name_of(engine) for engine in commit.failed]
            return PartialCommitError(done, failed, error)
        self._outcome = "unknown" if commit.is_unknown else "commit"
        return None

    def _name_of(self, engine: Engine) -> str:
        """Return the alias of an engine, or its URL."""
        alias = None if self.routing is None else self.routing.alias_of(engine)
        return alias or engine.url.render_as_string()

    # Who reads a stream

    def _note_stream(self, result: Any, me: User, options: Mapping[str, Any]) -> None:
        """Remember the *result* of a statement if it is read row by row."""
        is_stream = options.get("stream_results") or options.get("yield_per")
        if is_stream and isinstance(result, Result) and not is_read(result):
            self._streams = (*(self._streams or ()), (result, me))

    def _refuse_while_streaming(self, me: User, doing: str) -> None:
        """
        Refuse to use the connection that another user reads a stream from.

        Raises:
            ConcurrentUseError: Between two rows of it.
        """
        streams = [(r, user) for r, user in self._streams or () if not is_read(r)]
        self._streams = tuple(streams) or None
        for _, user in streams if doing not in ENDING else ():
            if user != me and is_running(user):
                raise concurrent_use(doing, user, me)

    # Who may end it

    def _half_done(self) -> BaseException | None:
        """Return the error of a block that wrote and failed, if there is one."""
        self._settle()
        for each in self._ended:
            if each.error is not None and not each.past.is_empty:
                return each.error
        return None

    def _owed(self) -> list[Line]:
        """Return the lines of blocks that count on a commit."""
        self._settle()
        return [
            each.line
            for each in self._ended
            if each.line is not None and not each.past.is_empty
        ]

    def _never_committed(self, lines: list[Line]) -> SessionError:
        """Return the error of an owner that does not commit what blocks counted on."""
        return SessionError(
            f"a block with auto_commit=True ({', '.join(map(str, lines))}) wrote and "
            f"succeeded, but the block that owns the session "
            f"({self._tenure_scope.line}) ended without a commit, so what was written is "
            f"rolled back; open the owner with auto_commit=True, or the inner block with "
            f"new=True, or call session.rollback() to discard it on purpose"
        )

    def _refuse_to_end(self, doing: str) -> None:
        """
        Refuse to end what others have written.

        Raises:
            SessionError: *doing* would commit or drop it.
        """
        scope = self._tenure_scope
        if scope is not None and (scope.is_leaving or scope.has_ended):
            return
        me = current_user()
        around = self._around(me)
        mine = around[-1] if around else None
        for watch in self._watches[len(around) :]:
            if watch._wrote and watch.user != me and is_running(watch.user):
                raise SessionError(
                    f"{doing}() would end what {described(watch.user)} has written in a "
                    f"block that has joined this session and is not done; wait for it "
                    f"first, or give it a session of its own with gather() or new=True"
                )
        if doing != "commit" and mine is not None and mine._is_second():
            owner = "who made it" if scope is None else f"the block at {scope.line}"
            raise SessionError(
                f"{doing}() in a block that has joined the session of {owner} would drop "
                f"what was written before the block; open the block with savepoint=True "
                f"and let the error leave it, or with new=True"
            )

    def _unfinished(self, owner: Watch) -> SessionError | None:
        """Return the error of *owner*, if others are still inside of its session."""
        if not (inside := self._still_inside(owner)):
            return None
        return SessionError(
            f"the block that owns the session ({self._tenure_scope.line}) ended while "
            f"{', '.join(described(watch.user) for watch in inside)} was still in a "
            f"block that has joined it, so all of it is rolled back; wait for the others "
            f"inside of the block, with a task group or gather(), or let it wait, with "
            f"on_joined='wait'"
        )

    def _still_inside(self, owner: Watch) -> list[Watch]:
        """Return the blocks of other tasks and threads that have joined and are open."""
        ours = (current_user(), owner.user)
        return [
            watch
            for watch in self._watches
            if watch.user not in ours and is_running(watch.user)
        ]

    def _lost_in(self, savepoint: Any, watch: Watch) -> SessionError | None:
        """Return the error of a block that wrote in a *savepoint* that is undone."""
        places = (*watch._wrote, *watch._may_have_written)
        if not any(is_inside(place, savepoint) for place in places):
            return None
        cause = self._failed_flush
        error = SessionError(
            f"a block with savepoint=True wrote, and a flush of it failed afterwards "
            f"({type(cause).__name__}: {said(cause) if cause else ''}) and was swallowed, "
            f"so all that the block wrote is undone; let the error leave the block"
        )
        error.__cause__ = cause
        return error

    def _wait_for_joined(self, owner: Watch) -> None:
        """Wait for other threads that have joined, as long as the session allows."""
        left = threading.Event()
        deadline = time.monotonic() + (self._joined_timeout or 0.0)
        self._when_left = left.set
        try:
            while inside := self._still_inside(owner):
                left.clear()
                # A task of this thread cannot go on while it waits.
                if any(isinstance(watch.user, Task) for watch in inside) or not (
                    left.wait(max(0.0, deadline - time.monotonic()))
                ):
                    return
        finally:
            self._when_left = None

    async def _await_joined(self, owner: Watch) -> None:
        """Wait for other tasks that have joined, as long as the session allows."""
        left = Event()
        self._when_left = partial(get_running_loop().call_soon_threadsafe, left.set)
        try:
            with suppress(TimeoutError):
                async with timeout(self._joined_timeout):
                    while self._still_inside(owner):
                        left.clear()
                        await left.wait()
        finally:
            self._when_left = None


def is_running(user: User | None) -> bool:
    """Whether *user*, a task or a thread, is not done."""
    if isinstance(user, Task):
        return not user.done()
    if isinstance(user, int):
        # Threads that the threading module has not started are only in the frames.
        return (
            user in sys._current_frames()
            or any(thread.ident == user for thread in threading.enumerate())
            or ("gevent" in sys.modules and _is_greenlet(user))
        )
    return False


def _is_greenlet(user: int) -> bool:
    """Whether *user* is the id of a greenlet, gevent's threads, that is not done."""
    # Asked only of somebody who is still inside of a block, when its owner ends.
    greenlet = sys.modules["greenlet"].greenlet
    return any(
        id(each) == user and isinstance(each, greenlet) and not each.dead
        for each in gc.get_objects()
    )
