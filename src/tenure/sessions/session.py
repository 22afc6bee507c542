"""Sessions that know their databases, and have one user at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from operator import attrgetter
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast
from weakref import ref

from sqlalchemy import Connection, event, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import InstanceState, Mapper, SessionTransaction, close_all_sessions
from sqlalchemy.orm import Session as _Session

from .. import bulk as bulks
from ..callers import Line, caller
from ..context import READING, USING
from ..engines import begin_late, begin_reading
from ..errors import RoutingError, SessionError
from ..routing import BY_DEFAULT, Choice, Role, Rule, choose, effect, writes
from .callbacks import Callback, Callbacks, When, is_inside
from .guard import Guard, OnConcurrent, User, checked
from .joined import Watch
from .turns import Transaction, one_at_a_time

if TYPE_CHECKING:
    from ..bulk import SessionBulk
    from ..engines import DatabaseManager
    from .aio import AsyncSession

C = TypeVar("C", bound=Callback)
M = TypeVar("M", bound=Callable[..., Any])

# What get_bind() found: the engine, the rule, and what is to be said of it.
_Found = tuple[Any, Rule, str]


class Session(_Session):
    """
    SQLAlchemy's ``Session``, which also knows its databases.

    Args:
        bind: As in SQLAlchemy; it comes before *routing*.
        routing: The manager asked for an engine where no bind answers.
        proxy: The async session that this one serves.
        on_concurrent: What happens to a second thread or task that uses the
            session while another does: ``"raise"``, or ``"serialize"`` to wait.

    Raises:
        ConcurrentUseError: From any method that may talk to the database, while
            another thread or task is inside of one.
    """

    # On the class until they differ: most sessions are made for a statement or two.
    _guard: Guard
    _on_concurrent: OnConcurrent = "raise"
    _proxy: ref[AsyncSession] | None = None
    # The block that made the session, and the role it was opened for.
    _tenure_scope: Any = None
    _role: Role | None = None
    # Set while a block ends: whoever uses the session still is waited for.
    _is_patient = False
    _callbacks: Callbacks | None = None
    _watches: tuple[Watch, ...] = ()
    _flush_listener: ClassVar[Callable[..., None]]

    # Of the outermost transaction, until its end: whether it has written; the engine
    # it uses for each mapper; its connections; when, where and in which process it
    # has begun; the joined blocks that wrote and failed, and in which transaction;
    # whether it was committed.
    _written = False
    _pins: dict[Any, Any] | None = None
    _connected: tuple[Connection, ...] = ()
    _begun: tuple[float, Line, int] | None = None
    _half_done: tuple[tuple[BaseException, SessionTransaction | None], ...] = ()
    _committed = False

    # A connection that was handed in: others use it, too.
    _given: Connection | None = None
    # What was executed last.
    _last: Any = None

    def __init__(
        self,
        bind: Any = None,
        routing: DatabaseManager | None = None,
        proxy: AsyncSession | None = None,
        *args: Any,
        on_concurrent: OnConcurrent = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(bind, *args, **kwargs)
        self._guard = Guard()
        self.routing = routing
        if proxy is not None:
            # Weak: a cycle would leave an abandoned async session to the collector.
            self._proxy = ref(proxy)
        if on_concurrent != "raise":
            self._on_concurrent = checked(on_concurrent)

    def __del__(self) -> None:
        if self._begun is None:
            return
        _, line, process = self._begun
        # In a forked child it is the parent's, who may be using it.
        if process == getpid():
            warnings.warn(
                f"a session was dropped inside of a transaction that began at {line}; "
                f"close it, or use it in a block: with session_manager()",
                ResourceWarning,
                stacklevel=2,
            )

    @property
    def proxy(self) -> AsyncSession | None:
        """The async session that this one serves."""
        return None if self._proxy is None else self._proxy()

    @property
    def async_mode(self) -> bool:
        """Whether this session serves an async one."""
        return self._proxy is not None

    # Which engine

    def get_bind(
        self,
        mapper: Any = None,
        *args: Any,
        clause: Any = None,
        bind: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        Give the engine for a mapper or a statement.

        The first of these that answers: *bind*; the execution option ``engine`` of
        the statement or the session; a :func:`using` block; ``binds`` and ``bind``
        as in SQLAlchemy; what this transaction has used for the mapper before; the
        routers; the database ``default``. Once a transaction has written, all of it
        goes where writing goes.

        Raises:
            RoutingError: No engine, or an unknown one.
        """
        if bind is None:
            return self._find(mapper, clause)[0]
        self._note_given(bind)
        return bind

    def _note_given(self, bind: Any) -> None:
        if isinstance(bind, Connection):
            self._given = bind

    def _find(self, mapper: Any, clause: Any) -> _Found:
        """Give the engine, and which rule chose it."""
        options = getattr(clause, "_execution_options", None)
        if options and "engine" in options:
            return self._named(
                options["engine"], "execution option", "the statement's options"
            )
        if (options := _execution_options(self)) and "engine" in options:
            return self._named(
                options["engine"], "execution option", "the session's options"
            )
        using = USING.get()
        if using is not None and (alias := using.alias_for(self.routing)) is not None:
            return self._named(alias, "using()", f"using({alias!r})")
        if self.bind is not None or self.routing is None or _binds(self):
            return self._bound(mapper, clause)
        pins = self._pins
        if pins is not None and mapper in pins and self._transaction is not None:
            return pins[mapper], "pinned", "used by this transaction before"
        return self._routed(mapper, clause)

    def _named(self, alias: str, rule: Rule, why: str) -> _Found:
        if self.routing is None:
            raise RoutingError(
                f"database {alias!r} was asked for ({why}), but this session has no "
                f"DatabaseManager; give it routing="
            )
        engine = self.routing.engine(alias, async_mode=self.async_mode, by=why)
        return engine.sync_engine if self.async_mode else engine, rule, why

    def _bound(self, mapper: Any, clause: Any) -> _Found:
        binds = _binds(self)
        if not binds and self.bind is not None:
            self._note_given(self.bind)
            return self.bind, "bind", "the session's bind"
        try:
            found = super().get_bind(mapper, clause=clause)
        except UnboundExecutionError:
            if self.routing is None:
                raise
            return self._routed(mapper, clause)
        self._note_given(found)
        if found is self.bind and found not in binds.values():
            return found, "bind", "the session's bind"
        return found, "binds", "the session's binds"

    def _routed(self, mapper: Any, clause: Any) -> _Found:
        routing = self.routing
        assert routing is not None
        role: Role = "read"
        if (
            self._written
            or self._flushing
            or self._role == "write"
            or (clause is not None and self._goes_to_writer(clause))
        ):
            role = "write"
        async_mode = self._proxy is not None
        in_transaction = self._transaction is not None
        # A class, if somebody asks who is not a statement.
        resource = getattr(mapper, "class_", mapper)
        alias, by = choose(
            routing.routers,
            resource,
            role,
            self.proxy if async_mode else self,
            clause,
            in_transaction,
        )
        engine = routing.engine(alias, async_mode, by)
        if async_mode:
            engine = engine.sync_engine
        if mapper is not None:
            if in_transaction and self._pins is not None:
                self._pins[mapper] = engine
            else:
                # What is chosen right before a transaction begins belongs to it.
                self._pins = {mapper: engine}
        return engine, "default" if by is BY_DEFAULT else "router", by

    def explain(
        self,
        statement_or_entity: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
    ) -> Choice:
        """
        Say which engine a statement or a mapped class would go to, and why.

        Nothing is executed, and nothing is remembered.
        """
        clause, mapper = _target(statement_or_entity)
        arguments = dict(bind_arguments or {})
        mapper = arguments.get("mapper", mapper)
        clause = arguments.get("clause", clause)
        last, pins = self._last, self._pins
        self._last = None
        goes_to_writer = self._goes_to_writer(clause)
        forgets = goes_to_writer and not self._written
        self._pins = None if forgets else dict(pins or {})
        try:
            found: _Found
            if arguments.get("bind") is not None:
                found = arguments["bind"], "bind_arguments", "named by the call"
            elif execution_options and "engine" in execution_options:
                alias = execution_options["engine"]
                found = self._named(alias, "execution option", "the call's options")
            else:
                found = self._find(mapper, clause)
        finally:
            self._last, self._pins = last, pins
        engine, rule, why = found
        role: Role = "write" if goes_to_writer else "read"
        alias = None if self.routing is None else self.routing.alias_of(engine)
        return Choice(engine, alias, role, rule, why)

    # What was written

    def _goes_to_writer(self, clause: Any) -> bool:
        """Whether *clause*, or what it is part of, goes where writing goes."""
        return (
            self._written
            or self._flushing
            or self._role == "write"
            # What is being executed was looked at.
            or (clause is not None and clause is not self._last and writes(clause))
        )

    def _look_at(self, statement: Any) -> None:
        """
        Take note of *statement*, which is about to be executed.

        Raises:
            RoutingError: It writes, in a block with ``role="read"``.
        """
        self._last = statement
        if (does := effect(statement)) == "reads":
            return
        if does == "writes" and self._only_reads():
            raise RoutingError(
                f"a block with role='read' refuses {type(statement).__name__}: "
                f"{_excerpt(statement)}; open the block with role='write'"
            )
        self._note_write()

    def _begin_writing(self, name: str) -> None:
        """Let the method *name* write; nobody is asked again on the way."""
        if self._only_reads():
            raise RoutingError(
                f"a block with role='read' refuses {name}(); open the block "
                f"with role='write'"
            )
        self._note_write()

    def _note_write(self) -> None:
        """What is done now writes, and is done by the blocks that have joined."""
        self._go_to_writer()
        for watch in self._watches:
            watch.has_written = watch.has_written or not watch.reads

    def _go_to_writer(self) -> None:
        """The rest of the transaction goes where writing goes."""
        if not self._written:
            self._written = True
            self._pins = None

    def _only_reads(self) -> bool:
        """Whether the code that runs is in a block with ``role="read"`` of this."""
        return self._role == "read" or any(
            reader.watched is self for reader in READING.get()
        )

    def _written_by_readers(self) -> str:
        """Say what a block that only reads would flush; nothing that is not its own."""
        if self._role != "read" and not any(
            watch.reads and watch.look() for watch in self._watches
        ):
            return ""
        changed = [
            *self.new,
            *self.deleted,
            *(instance for instance in self.dirty if self.is_modified(instance)),
        ]
        return ", ".join(sorted({type(instance).__name__ for instance in changed}))

    def _has_work(self) -> bool:
        """Whether the transaction has written, or has something to write."""
        return self._written or not self._is_clean()

    def _settle(self) -> None:
        """The outermost transaction has ended."""
        committed = self._committed
        self._written = self._committed = False
        self._pins = self._begun = None
        self._connected = ()
        self._half_done = ()
        for watch in self._watches:
            watch.forget()
        if self._callbacks is not None:
            self._callbacks.settle(committed=committed)

    def _undo(self, savepoint: SessionTransaction) -> None:
        """What was done inside of *savepoint* was rolled back."""
        if self._callbacks is not None:
            self._callbacks.drop(savepoint)
        if self._half_done:
            self._half_done = tuple(
                (error, transaction)
                for error, transaction in self._half_done
                if not is_inside(transaction, savepoint)
            )

    def _leave_half_done(self, error: BaseException) -> None:
        """Refuse to commit, unless what contains the failed work is rolled back."""
        transaction = self.get_nested_transaction() or self.get_transaction()
        self._half_done = (*self._half_done, (error, transaction))

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
        if doing not in _ENDING and not self._watches:
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
        if callbacks and self._transaction is None and doing in _ENDING:
            # Registered before any transaction, and left without one.
            callbacks.settle(committed=False)
        self._run_callbacks(callbacks, error)

    def _retire(self) -> None:
        """Refuse from now on whatever would begin something."""
        guard = self._guard
        guard.has_ended = True
        # By whoever came in, or a callback, after it was closed.
        while self._transaction is not None:
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
        # Every query asks for one; as _is_clean(), in line.
        if self._new or self._deleted or self.identity_map._modified or self._flushing:
            self._flush_now(objects)

    def _flush_now(self, objects: Any) -> None:
        super().flush(objects)

    def close(self) -> None:
        """As in SQLAlchemy."""
        if (
            self._transaction is not None
            or self._new
            or len(self.identity_map)
            or self._callbacks is not None
            or self._close_state is not _CLOSE_RESETS
        ):
            self._close_now()
        # Otherwise there is nothing to close.

    def _close_now(self) -> None:
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

    def connection(
        self, bind_arguments: Any = None, execution_options: Any = None
    ) -> Connection:
        """
        Give the connection of this transaction; as in SQLAlchemy.

        It may be used to write, so it is one to where writing goes, but in a block
        with ``role="read"``.
        """
        if not self._only_reads():
            self._note_write()
        arguments = dict(bind_arguments or {})
        if execution_options and "engine" in execution_options:
            arguments = self._with_engine(arguments, execution_options["engine"])
        self._note_given(arguments.get("bind"))
        return super().connection(arguments, execution_options)

    def _with_engine(self, bind_arguments: Any, alias: str) -> dict[str, Any]:
        arguments = dict(bind_arguments or {})
        if arguments.get("bind") is None:
            arguments["bind"], *_ = self._named(
                alias, "execution option", "the call's options"
            )
        return arguments

    # What runs afterwards

    def on_commit(self, fn: C) -> C:
        """
        Run *fn*, once, after the outermost transaction was committed.

        Not if it is rolled back, or the savepoint that is open now. The commit is
        done when *fn* runs: if it fails, the others run nevertheless, and the first
        error is raised. On an async session what *fn* returns is awaited.

        Raises:
            SessionError: *fn* is a coroutine function, and this session is sync.
        """
        self._register("commit", fn)
        return fn

    def on_rollback(self, fn: C) -> C:
        """
        Run *fn*, once, after the outermost transaction was rolled back.

        Closing without a commit is a rollback. Otherwise as :meth:`on_commit`: one
        that was registered inside of a savepoint goes with the savepoint.
        """
        self._register("rollback", fn)
        return fn

    def _register(self, when: When, fn: Callback) -> None:
        if self._callbacks is None:
            self._callbacks = Callbacks()
        self._callbacks.add(
            when,
            fn,
            self.get_nested_transaction() or self.get_transaction(),
            async_mode=self.async_mode,
        )

    def _run_callbacks(self, callbacks: Callbacks, error: BaseException | None) -> None:
        if callbacks.due:
            scope = self._tenure_scope
            with scope.outside() if scope is not None else _nowhere:
                callbacks.run(error, async_mode=self.async_mode)

    def _in_turn(self, work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Do *work* as one of the methods that one user at a time is inside of."""
        return work(self, *args, **options)

    def bulk(self, *, proxy_reference: bool = True) -> SessionBulk:
        """Give a new bulk on this session, to be entered with ``with``."""
        return bulks.SessionBulk(self, proxy_reference=proxy_reference)

    # SQLAlchemy 2.0 has it, and a word to say about it.
    if not hasattr(_Session, "close_all"):

        @classmethod
        def close_all(cls) -> None:
            """Close all sessions in memory, whoever made them."""
            close_all_sessions()


# Ending is allowed always.
_ENDING = frozenset({"rollback", "close", "reset", "invalidate"})
_nowhere = nullcontext()
# What close() means unless close_resets_only=False.
_CLOSE_RESETS = _Session()._close_state


def _flushes_by_itself(method: M) -> M:
    """Give *method*, which writes and sends no event of it, the rules of a flush."""

    @wraps(method)
    def call(self: Session, *args: Any, **kwargs: Any) -> Any:
        self._begin_writing(method.__name__)
        return method(self, *args, **kwargs)

    return cast(M, call)


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
    _method = _flushes_by_itself(getattr(_Session, _name))
    setattr(Session, _name, one_at_a_time(_method))
Session._close_now = one_at_a_time(Session._close_now, "close")  # type: ignore[method-assign]  # as those above
Session._in_turn = one_at_a_time(Session._in_turn, "bulk")  # type: ignore[method-assign]  # as those above
Session._flush_now = one_at_a_time(Session._flush_now, "flush")  # type: ignore[method-assign]  # as those above


# Public since SQLAlchemy 2.1.
_binds: Callable[[_Session], Any] = attrgetter(
    "binds" if hasattr(_Session(), "binds") else "_Session__binds"
)
_execution_options: Callable[[_Session], Any] = (
    attrgetter("execution_options")
    if hasattr(_Session(), "execution_options")
    else lambda session: None
)


def _target(statement_or_entity: Any) -> tuple[Any, Any]:
    """Give what is asked about as a statement and a mapper, as execute() would."""
    if statement_or_entity is None:
        return None, None
    found = inspect(statement_or_entity, raiseerr=False)
    if isinstance(found, Mapper):
        return None, found
    if isinstance(found, InstanceState):
        return None, found.mapper
    plugin = statement_or_entity._propagate_attrs.get("plugin_subject")
    return statement_or_entity, None if plugin is None else plugin.mapper


def _excerpt(clause: Any) -> str:
    text = " ".join(str(clause).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


@event.listens_for(Session, "after_transaction_create")
def _created(session: Session, transaction: SessionTransaction) -> None:
    if type(transaction) is SessionTransaction:
        transaction.__class__ = Transaction


@event.listens_for(Session, "after_begin")
def _begins(
    session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    if session._begun is None:
        session._begun = time.monotonic(), caller(), getpid()
    if transaction.nested:
        return
    session._connected = (*session._connected, connection)
    if connection.dialect.name == "sqlite" and session.in_nested_transaction():
        begin_late(connection)
    if session._role == "read" and connection is not session._given:
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
    # What waited to be written before a block has joined is not its own.
    for watch in session._watches:
        watch.look()


# What a bulk that bypasses the unit of work need not run: it asks the same itself.
Session._flush_listener = staticmethod(_flushes)


@event.listens_for(Session, "before_commit")
def _refuse_half_done(session: Session) -> None:
    if session._half_done and session.get_nested_transaction() is None:
        cause, _ = session._half_done[0]
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
        session._committed = True
    else:
        savepoint.is_released = True
