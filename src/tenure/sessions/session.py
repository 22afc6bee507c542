"""Sessions that know their databases, and have one user at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from os import getpid
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast
from weakref import ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session as _Session
from sqlalchemy.orm import SessionTransaction, close_all_sessions

from .. import bulk as bulks
from .._private import is_flushing, pending
from ..callers import Line, caller
from ..engines import (
    FAILED,
    Commit,
    assigned_xid,
    begin_late,
    begin_reading,
    changes,
    refuse_ended,
    watch_commits,
)
from ..errors import RoutingError, SessionError
from .binding import Binding
from .callbacks import CallsBack, Outcome
from .exclusive import (
    ENDING,
    Guard,
    Transaction,
    ends,
    flushes_by_itself,
    one_at_a_time,
)
from .naming import User
from .options import JOINED_TIMEOUT, OnConcurrent, OnJoined, checked, checked_seconds

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from ..bulk import SessionBulk
    from ..engines import DatabaseManager

M = TypeVar("M", bound=Callable[..., Any])


class Session(Binding, CallsBack):
    """
    SQLAlchemy's ``Session``, which also knows its databases.

    Args:
        bind: As in SQLAlchemy; it comes before *routing*.
        routing: The manager asked for an engine where no bind answers.
        proxy: The async session that this one serves.
        on_concurrent: What happens to a second thread or task that uses the
            session while another does: ``"raise"``, or ``"serialize"`` to wait.
        on_joined: What a block that made the session does when it ends while another
            task or thread is still in a block that has joined: ``"raise"`` rolls back
            and raises, ``"wait"`` waits first.
        joined_timeout: How many seconds it waits at most.

    Raises:
        ConcurrentUseError: From any method that may talk to the database, while
            another thread or task is inside of one.
    """

    # Class-level defaults; set on an instance only when changed, so that creating one
    # stays cheap.
    _guard: Guard
    _on_concurrent: OnConcurrent = "raise"
    # Set while a block ends: it waits for other users instead of being refused.
    _is_patient = False
    _flush_listener: ClassVar[Callable[..., None]]
    # close() does more than reset(): close_resets_only=False was given.
    _closes_for_good = False

    # Of the outermost transaction: its connections, and those made read-only; when,
    # where (None: in the block that made the session) and in which process it began;
    # what became of it, once that was tried; ids that databases gave it.
    _connected: tuple[Connection, ...] = ()
    _read_only: tuple[Connection, ...] = ()
    _begun: tuple[float, Line | None, int] | None = None
    _outcome: Outcome = "rollback"
    _commit: Commit | None = None
    _xids: Mapping[Engine, str] = MappingProxyType({})

    def __init__(
        self,
        bind: Any = None,
        routing: DatabaseManager | None = None,
        proxy: AsyncSession | None = None,
        *args: Any,
        on_concurrent: OnConcurrent = "raise",
        on_joined: OnJoined = "raise",
        joined_timeout: float = JOINED_TIMEOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(bind, *args, **kwargs)
        self._guard = Guard()
        self.routing = routing
        if proxy is not None:
            # Weak: a cycle would leave an abandoned async session to the collector.
            self._proxy = ref(proxy)
        if on_concurrent != "raise":
            self._on_concurrent = checked("on_concurrent", on_concurrent, OnConcurrent)
        if on_joined != "raise":
            checked("on_joined", on_joined, OnJoined)
            self._joined_timeout = checked_seconds("joined_timeout", joined_timeout)
        if kwargs.get("close_resets_only", True) is not True:
            self._closes_for_good = True

    def __del__(self) -> None:
        if self._begun is None:
            return
        _, line, process = self._begun
        line = line or self._tenure_scope.line
        # In a forked child it is the parent's, who may be using it.
        if process == getpid():
            warnings.warn(
                f"a session was dropped inside of a transaction that began at {line}; "
                f"close it, or use it in a block: with session_manager()",
                ResourceWarning,
                stacklevel=2,
            )

    def _transaction_ended(self) -> None:
        """Forget what belonged to the outermost transaction; callbacks become due."""
        outcome, self._outcome = self._outcome, "rollback"
        self._written = False
        self._pins = self._begun = self._failed_flush = self._commit = None
        self._streams = None
        self._connected = self._read_only = self._wrote = self._may_have_written = ()
        if self._xids:
            del self._xids
        if self._has_blocks:
            self._forget_blocks()
        if self._callbacks is not None:
            self._callbacks.make_due(outcome)

    def _savepoint_ended(
        self, savepoint: SessionTransaction, *, is_undone: bool
    ) -> None:
        """Let all that belonged to *savepoint* go where it went."""
        self._end_place(savepoint, is_undone=is_undone)
        if self._has_blocks:
            self._move_blocks(savepoint, is_undone=is_undone)
        if is_undone and self._callbacks is not None:
            self._callbacks.drop(savepoint)

    @property
    def _has_blocks(self) -> bool:
        """Whether blocks have joined, or have left something to know of them."""
        return bool(self._watches or self._ended)

    # One user at a time

    def _take_turn(self, guard: Guard, me: User, doing: str) -> None:
        """Wait for the turn, or refuse."""
        if not self._is_patient and self._on_concurrent != "serialize":
            raise guard.refusal(me, doing)
        guard.wait(me)
        if guard.has_ended:
            self._refuse_after_the_end(doing)

    def _refuse_after_the_end(self, doing: str) -> None:
        # Ending is allowed always, and a block that has joined ends what it begins.
        if doing not in ENDING and not self._watches:
            raise SessionError(
                f"{doing}() on a session whose block has ended "
                f"({self._tenure_scope.line}); nobody would end what it begins: open "
                f"a block of its own, with new=True, gather() or in the task that "
                f"needs one"
            )

    def _give_turn(self, guard: Guard, doing: str, error: BaseException | None) -> None:
        del guard.turn["user"]
        if guard.waiting:
            guard.wake()
        callbacks = self._callbacks
        if callbacks is None:
            return
        if callbacks and not self.in_transaction() and doing in ENDING:
            # Registered before any transaction, and left without one.
            callbacks.make_due("rollback")
        self._run_callbacks(callbacks, error)

    def _retire(self) -> None:
        """Refuse from now on whatever would begin something."""
        guard = self._guard
        guard.has_ended = True
        # By whoever came in, or a callback, after it was closed.
        while self.in_transaction():
            self._is_patient = True
            self._close_now()
        while guard.waiting:
            guard.wake()

    def _revive(self) -> None:
        """The factory gives the session to another block."""
        self._guard.has_ended = self._is_patient = False
        self._role = None

    def __exit__(
        self,
        type_: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Refused, because a task of the block is still inside, it would keep its
        # connection.
        self._is_patient = True
        try:
            super().__exit__(type_, value, traceback)
        finally:
            self._is_patient = False

    def begin(self, nested: bool = False) -> SessionTransaction:
        """As in SQLAlchemy."""
        if nested:
            for connection in self._connected:
                if connection.dialect.name == "sqlite":
                    begin_late(connection)
        return super().begin(nested)

    def flush(self, objects: Any = None) -> None:
        """As in SQLAlchemy."""
        # Every query asks for one; most find nothing to write.
        if any(pending(self)) or is_flushing(self):
            self._flush_now(objects)

    def _flush_now(self, objects: Any) -> None:
        wrote, before = self._wrote, [(watch, watch._wrote) for watch in self._watches]
        try:
            super().flush(objects)
        except BaseException as error:
            # All that it wrote is undone.
            self._failed_flush = error
            self._wrote = wrote
            for watch, places in before:
                watch._wrote = places
            raise

    def close(self) -> None:
        """As in SQLAlchemy."""
        if (
            self.in_transaction()
            or pending(self)[0]
            or len(self.identity_map)
            or self._callbacks is not None
            or self._closes_for_good
        ):
            self._close_now()
        # Otherwise there is nothing to close.

    def _close_now(self) -> None:
        if self._watches:
            self._refuse_to_end("close")
        super().close()

    def commit(self, *, expire: bool | None = None) -> None:
        """
        Commit.

        Args:
            expire: Overrides ``expire_on_commit`` for this one commit.

        Raises:
            SessionError: A joined block wrote and failed, and its error was
                swallowed; roll back first.
        """
        if expire is None or expire == self.expire_on_commit:
            super().commit()
            return
        before, self.expire_on_commit = self.expire_on_commit, expire
        try:
            super().commit()
        finally:
            self.expire_on_commit = before

    def _in_turn(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Do *work* as one of the methods that one user at a time is inside of."""
        return work(self, *args, **options)

    def bulk(self, *, proxy_reference: bool = True) -> SessionBulk:
        """Return a new bulk on this session, to be entered with ``with``."""
        return bulks.SessionBulk(self, proxy_reference=proxy_reference)

    # SQLAlchemy 2.0 has it, and a word to say about it.
    if not hasattr(_Session, "close_all"):

        @classmethod
        def close_all(cls) -> None:
            """Close all sessions in memory, whoever made them."""
            close_all_sessions()


def _takes(method: M) -> M:
    """Wrap *method*, which takes an instance: errors are ours, and a Spec has a hint."""

    @wraps(method)
    def call(self: Session, instance: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, instance, *args, **kwargs)
        except SQLAlchemyError as error:
            if hasattr(instance, "to_resource"):
                raise SessionError(
                    f"session.{method.__name__}() takes an instance of a mapped class, not "
                    f"{type(instance).__name__}; use bulk.add(), and the instance that it "
                    f"returns"
                ) from error
            raise self._as_ours(error) from error

    return cast(M, call)


for _name in ("add", "expire", "expunge", "is_modified"):
    setattr(Session, _name, _takes(getattr(_Session, _name)))
for _name in ("rollback", "reset", "invalidate"):
    setattr(Session, _name, ends(getattr(_Session, _name)))
for _name in ("execute", "scalar", "scalars"):
    _method = one_at_a_time(getattr(_Session, _name), executes=True, has_option=True)
    setattr(Session, _name, _method)
for _name in ("get", "get_one"):
    setattr(Session, _name, one_at_a_time(getattr(_Session, _name), has_option=True))
for _name in (
    "begin",
    "begin_nested",
    "commit",
    "connection",
    "delete",
    "delete_all",
    "invalidate",
    "merge",
    "merge_all",
    "prepare",
    "refresh",
    "reset",
    "rollback",
):
    # Some are new in SQLAlchemy 2.1.
    if hasattr(Session, _name):
        setattr(Session, _name, one_at_a_time(getattr(Session, _name)))
for _name in ("bulk_insert_mappings", "bulk_save_objects", "bulk_update_mappings"):
    _method = flushes_by_itself(getattr(_Session, _name))
    setattr(Session, _name, one_at_a_time(_method))
Session._close_now = one_at_a_time(Session._close_now, "close")  # type: ignore[method-assign]  # as those above
Session._in_turn = one_at_a_time(Session._in_turn, "bulk")  # type: ignore[method-assign]  # as those above
Session._flush_now = one_at_a_time(Session._flush_now, "flush")  # type: ignore[method-assign]  # as those above


@event.listens_for(Session, "after_transaction_create")
def _created(session: Session, transaction: SessionTransaction) -> None:
    if type(transaction) is SessionTransaction:
        transaction.__class__ = Transaction


@event.listens_for(Session, "after_begin")
def _begins(
    session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    if session._begun is None:
        scope = session._tenure_scope
        # The line of a block is known, and that of a caller takes long to find.
        line = caller() if scope is None or scope.has_ended else None
        session._begun = time.monotonic(), line, getpid()
    if transaction.nested:
        return
    session._connected = (*session._connected, connection)
    several = len(session._connected) > 1
    for each in session._connected if several else (connection,):
        # SQLite, alone in its session, has nothing to ask for.
        if several or each.dialect.name != "sqlite":
            watch_commits(each.engine)
    connection.info.pop(FAILED, None)
    if (
        session._wrote
        and connection.dialect.name == "postgresql"
        and not session.twophase
        and (xid := assigned_xid(connection)) is not None
    ):
        session._xids = {**session._xids, connection.engine: xid}
    for watch in session._watches:
        if watch._counted is not None:
            watch._counted[connection] = changes(
                connection, is_new=connection is not session._given
            )
    if connection.dialect.name == "sqlite" and session.in_nested_transaction():
        begin_late(connection)
    if session._role == "read" and connection is not session._given:
        # First: it may be cancelled, and done nevertheless.
        session._read_only = (*session._read_only, connection)
        begin_reading(connection)


@event.listens_for(Session, "before_flush")
def _flushes(session: Session, context: Any, instances: Any) -> None:
    if session._only_reads() and (written := session._written_by_readers()):
        raise RoutingError(
            f"a block with role='read' refuses to flush {written}; open the block "
            f"with role='write'"
        )
    if session._role != "read":
        session._go_to_writer()
    if session._watches or session._ended:
        session._note_flush()
    session._note_place(session._innermost, is_sure=True)


# What a bulk that bypasses the unit of work need not run: it asks the same itself.
Session._flush_listener = staticmethod(_flushes)


@event.listens_for(Session, "before_commit")
def _commit_begins(session: Session) -> None:
    if session.get_nested_transaction() is not None:
        return
    for connection in session._connected:
        if FAILED in connection.info:
            refuse_ended(connection, has_written=bool(session._wrote))
    if session._watches:
        session._refuse_to_end("commit")
    if session._ended and (cause := session._half_done()):
        raise SessionError(
            "a joined block wrote and then failed "
            f"({type(cause).__name__}: {cause}), and its error was swallowed; "
            "this work is half done: roll back, or open that block with "
            "savepoint=True"
        ) from cause


@event.listens_for(Session, "after_commit")
def _commits(session: Session) -> None:
    savepoint: Any = session.get_nested_transaction()
    if savepoint is None:
        session._outcome = "commit"
    else:
        savepoint.is_released = True
