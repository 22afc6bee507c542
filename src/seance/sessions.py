"""Sessions that know their databases, and have one user at a time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import wraps
from operator import attrgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import ref

from sqlalchemy import Connection, event, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import InstanceState, Mapper, SessionTransaction, close_all_sessions
from sqlalchemy.orm import Session as _Session

from .bulk import SessionBulk
from .callbacks import Callback, Callbacks, When
from .callers import Line, caller
from .context import USING
from .errors import RoutingError, SessionError
from .guard import ENDED, Guard, OnConcurrent, User
from .reading import begin_reading, read_only
from .routing import BY_DEFAULT, Choice, Role, Rule, choose, effect
from .sqlite import begin_late
from .watching import Watch

if TYPE_CHECKING:
    from .async_sessions import AsyncSession
    from .engines import DatabaseManager

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
    _on_concurrent: OnConcurrent = "raise"
    _proxy: ref[AsyncSession] | None = None
    _guard: Guard
    _callbacks: Callbacks | None = None
    _watches: tuple[Watch, ...] = ()
    _half_done: tuple[BaseException, SessionTransaction | None] | None = None
    # Whether the transaction has written, and the engine it uses for each mapper.
    _written = False
    _pins: dict[Any, Any] | None = None
    # Whether the outermost transaction was committed; until its end.
    _committed = False
    # Blocks with role="read" around the code that runs; whether one made the session.
    _readers = 0
    _is_read_only = False
    # A block with role="write" made the session.
    _always_writes = False
    # The connections of the transaction.
    _connected: tuple[Connection, ...] = ()
    # When and where the transaction has begun, and what was last executed.
    _begun: tuple[float, Line] | None = None
    _last: Any = None
    # Set while a block ends: whoever uses the session still is waited for.
    _is_patient = False
    # The block that made the session.
    _seance_scope: Any = None

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
        self._guard = Guard(is_async=proxy is not None)
        self.routing = routing
        if proxy is not None:
            # Weak: a cycle would leave an abandoned async session to the collector.
            self._proxy = ref(proxy)
        if on_concurrent != "raise":
            if on_concurrent != "serialize":
                raise SessionError(
                    f"on_concurrent is 'raise' or 'serialize', not {on_concurrent!r}"
                )
            self._on_concurrent = on_concurrent

    def __del__(self) -> None:
        if self._begun is not None:
            _, line = self._begun
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
            RoutingError: No engine, or an unknown one; or *clause* writes in a
                block with ``role="read"``.
        """
        if self._flushing:
            if not self._written:
                self._written = True
                self._pins = None
        elif clause is not None:
            self._last = clause
            # Looking at a statement takes longer than all the rest, so not in vain.
            if (
                (
                    self.routing is not None
                    and self.routing.routers
                    and not self._written
                )
                or self._readers
                or self._watches
            ) and (does := effect(clause)) != "reads":
                self._note_write(clause, does)
        if bind is None:
            bind = self._find(mapper, clause)[0]
        return read_only(bind) if self._is_read_only else bind

    def _find(self, mapper: Any, clause: Any) -> _Found:
        """Give the engine, and which rule chose it."""
        options = getattr(clause, "_execution_options", None)
        if options and "engine" in options:
            return self._named(options["engine"], "execution option", "the statement's")
        if (options := _execution_options(self)) and "engine" in options:
            return self._named(options["engine"], "execution option", "the session's")
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
            return self.bind, "bind", "the session's bind"
        try:
            found = super().get_bind(mapper, clause=clause)
        except UnboundExecutionError:
            if self.routing is None:
                raise
            return self._routed(mapper, clause)
        if found is self.bind and found not in binds.values():
            return found, "bind", "the session's bind"
        return found, "binds", "the session's binds"

    def _routed(self, mapper: Any, clause: Any) -> _Found:
        routing = self.routing
        assert routing is not None
        role: Role = "write" if self._written or self._always_writes else "read"
        async_mode = self._proxy is not None
        in_transaction = self._transaction is not None
        # A class, if somebody asks who is not a statement.
        resource = getattr(mapper, "class_", mapper)
        alias, by = choose(
            routing.routers,
            resource,
            role,
            {
                "role": role,
                "session": self.proxy if async_mode else self,
                "statement": clause,
                "in_transaction": in_transaction,
            },
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
        writes = (
            self._written
            or self._always_writes
            or (clause is not None and effect(clause) != "reads")
        )
        before = self._written, self._pins
        self._written = writes
        self._pins = None if writes and not before[0] else dict(self._pins or {})
        try:
            found: _Found
            if arguments.get("bind") is not None:
                found = arguments["bind"], "bind_arguments", "named by the call"
            elif execution_options and "engine" in execution_options:
                alias = execution_options["engine"]
                found = self._named(alias, "execution option", "the call's")
            else:
                found = self._find(mapper, clause)
        finally:
            self._written, self._pins = before
        engine, rule, why = found
        role: Role = "write" if writes else "read"
        alias = None if self.routing is None else self.routing.alias_of(engine)
        return Choice(engine, alias, role, rule, why)

    def _note_write(self, clause: Any, does: str) -> None:
        if self._readers:
            if does == "writes":
                raise RoutingError(
                    f"a block with role='read' refuses {type(clause).__name__}: "
                    f"{_excerpt(clause)}; open the block with role='write'"
                )
            return
        if not self._written:
            self._written = True
            self._pins = None
        for watch in self._watches:
            watch.has_written = True

    # One user at a time

    def _take_turn(self, guard: Guard, me: User, doing: str) -> bool:
        """Wait for the turn, or refuse; ``False``: go on without it."""
        if guard.user is ENDED:
            # The block that made this session has ended, and keeps the turn. One
            # that has joined it ends what it begins.
            if doing in _ENDING or self._watches:
                return False
            raise SessionError(
                f"{doing}() on a session whose block has ended "
                f"({self._seance_scope.line}); nobody would end what it begins: open "
                f"a block of its own, with new=True, gather() or in the task that "
                f"needs one"
            )
        if not self._is_patient and self._on_concurrent != "serialize":
            raise guard.refusal(me, doing)
        guard.wait(me)
        return True

    def _give_turn(self, guard: Guard, error: BaseException) -> None:
        guard.user = None
        guard.give()
        self._after_turn(guard, error)

    def _after_turn(self, guard: Guard, error: BaseException | None) -> None:
        if guard.waiting:
            guard.wake()
        if self._callbacks is not None:
            self._run_callbacks(self._callbacks, error)

    def _retire(self) -> None:
        """Keep the turn: whatever would begin something is refused from now on."""
        guard = self._guard
        if guard.user is ENDED:
            return
        if not guard.take(False):
            # Somebody came in after it was closed.
            guard.wait(guard.who())
            super().close()
        guard.user = ENDED

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
        # Every query asks for one.
        if self._flushing or not self._is_clean():
            self._flush_some(objects)

    def _flush_some(self, objects: Any) -> None:
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
            self._close()
        # Otherwise there is nothing to close.

    def _close(self) -> None:
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

        It may be used to write, so it is one to where writing goes.
        """
        if not (self._readers or self._written):
            self._written = True
            self._pins = None
        return super().connection(bind_arguments, execution_options)

    def _with_engine(self, bind_arguments: Any, alias: str) -> dict[str, Any]:
        arguments = dict(bind_arguments or {})
        if arguments.get("bind") is None:
            arguments["bind"], *_ = self._named(alias, "execution option", "the call's")
        return arguments

    def _written_by_readers(self) -> str:
        """Say what a block that only reads would flush; nothing that is not its own."""
        if not self._is_read_only and not any(watch.look() for watch in self._watches):
            return ""
        changed = [
            *self.new,
            *self.deleted,
            *(instance for instance in self.dirty if self.is_modified(instance)),
        ]
        return ", ".join(sorted({type(instance).__name__ for instance in changed}))

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
        if callbacks and self._transaction is None:
            # Registered before any transaction, and left without one.
            callbacks.settle(committed=False)
        if not callbacks.due:
            return
        scope = self._seance_scope
        with scope.outside() if scope is not None else _nowhere:
            callbacks.run(error, async_mode=self.async_mode)

    def bulk(self, *, proxy_reference: bool = True) -> SessionBulk:
        """Give a new bulk on this session, to be entered with ``with``."""
        return SessionBulk(self, proxy_reference=proxy_reference)

    # SQLAlchemy 2.0 has it, and a word to say about it.
    if not hasattr(_Session, "close_all"):

        @classmethod
        def close_all(cls) -> None:
            """Close all sessions in memory, whoever made them."""
            close_all_sessions()


# Ending is allowed always.
_ENDING = frozenset({"rollback", "close", "reset", "invalidate", "expunge_all"})
_nowhere = nullcontext()
# What close() means unless close_resets_only=False.
_CLOSE_RESETS = _Session()._close_state


def _one_at_a_time(method: M, *, takes_engine: bool = False) -> M:
    """
    Give *method* to one user at a time, and run afterwards what it made due.

    Args:
        takes_engine: It has an execution option ``engine`` to see to.
    """
    doing = method.__name__.removeprefix("_").removesuffix("_some")

    @wraps(method)
    def call(self: Session, *args: Any, **kwargs: Any) -> Any:
        if takes_engine and kwargs and (options := kwargs.get("execution_options")):
            alias = options.get("engine")
            if alias is not None:
                kwargs["bind_arguments"] = self._with_engine(
                    kwargs.get("bind_arguments"), alias
                )
        guard = self._guard
        me = guard.who()
        if guard.user == me or not (
            guard.take(False) or self._take_turn(guard, me, doing)
        ):
            return method(self, *args, **kwargs)
        guard.user = me
        try:
            result = method(self, *args, **kwargs)
        except BaseException as error:
            self._give_turn(guard, error)
            raise
        guard.user = None
        guard.give()
        if guard.waiting or self._callbacks is not None:
            self._after_turn(guard, None)
        return result

    return cast(M, call)


def _guard_methods(names: Iterable[str], *, takes_engine: bool = False) -> None:
    for name in names:
        # Some are new in SQLAlchemy 2.1.
        if (method := getattr(Session, name, None)) is not None:
            guarded = _one_at_a_time(method, takes_engine=takes_engine)
            setattr(Session, name, guarded)


_guard_methods(
    ("execute", "scalar", "scalars", "get", "get_one", "connection"), takes_engine=True
)
_guard_methods(
    [
        "begin",
        "begin_nested",
        "prepare",
        "commit",
        "rollback",
        "_close",
        "reset",
        "invalidate",
        "_flush_some",
        "refresh",
        "delete",
        "delete_all",
        "merge",
        "merge_all",
        "bulk_save_objects",
        "bulk_insert_mappings",
        "bulk_update_mappings",
    ]
)


class _Transaction(SessionTransaction):
    """
    The transaction of our sessions: whatever ends it, one user does, and once.

    A block of ``session.begin()`` ends it without asking the session.
    """


def _as_its_session(method: M) -> M:
    def of_session(session: Session, *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    of_session.__name__ = method.__name__
    guarded = _one_at_a_time(of_session)

    @wraps(method)
    def call(self: _Transaction, *args: Any, **kwargs: Any) -> Any:
        # None once it is closed, which SQLAlchemy has a word for.
        session: Any = self.session
        if session is None:
            return method(self, *args, **kwargs)
        return guarded(session, self, *args, **kwargs)

    return cast(M, call)


for _name in ("commit", "rollback", "close", "prepare"):
    setattr(_Transaction, _name, _as_its_session(getattr(SessionTransaction, _name)))


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
        transaction.__class__ = _Transaction


@event.listens_for(Session, "after_begin")
def _begins(
    session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    if session._begun is None:
        session._begun = time.monotonic(), caller()
    if transaction.nested:
        return
    session._connected = (*session._connected, connection)
    if connection.dialect.name == "sqlite" and session.in_nested_transaction():
        begin_late(connection)
    if session._is_read_only:
        begin_reading(connection)


@event.listens_for(Session, "before_flush")
def _flushes(session: Session, context: Any, instances: Any) -> None:
    if session._readers and (written := session._written_by_readers()):
        raise RoutingError(
            f"a block with role='read' refuses to flush {written}; open the block "
            f"with role='write'"
        )
    for watch in session._watches:
        watch.look()


@event.listens_for(Session, "before_commit")
def _refuse_half_done(session: Session) -> None:
    if session._half_done is not None and session.get_nested_transaction() is None:
        cause, _ = session._half_done
        raise SessionError(
            "a joined block wrote and then failed "
            f"({type(cause).__name__}: {cause}), and its error was swallowed; "
            "this work is half done: roll back, or open that block with "
            "savepoint=True"
        ) from cause


@event.listens_for(Session, "after_commit")
def _commits(session: Session) -> None:
    if session.get_nested_transaction() is None:
        session._committed = True


@event.listens_for(Session, "after_soft_rollback")
def _rolled_back(session: Session, previous: SessionTransaction) -> None:
    if session._callbacks and previous.nested:
        session._callbacks.drop(previous)
    if session._half_done is None:
        return
    _, transaction = session._half_done
    while transaction is not None:
        if transaction is previous:
            session._half_done = None
            return
        transaction = transaction.parent


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    session._written = False
    session._half_done = None
    session._begun = session._pins = None
    session._connected = ()
    for watch in session._watches:
        watch.forget()
    if session._callbacks is not None:
        session._callbacks.settle(committed=session._committed)
    session._committed = False
