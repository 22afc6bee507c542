"""
Scopes against a model: any nesting, any ending, and nothing is lost or left.

One machine drives both faces. It enters and leaves blocks by hand, so that each step
is a rule, and keeps beside them a model that is slow and obvious: lists of rows, a
list for each savepoint. The async face runs each step in a task of its own loop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, insert, make_url, select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.util import await_only, greenlet_spawn

from tenure import (
    APP_CONTEXT,
    SESSION_BULK_CONTEXT,
    SESSION_CONTEXT,
    CommitOutcomeUnknownError,
    ConcurrentUseError,
    Database,
    DatabaseError,
    RoutingError,
    SessionError,
    TenureError,
    async_session_factory,
    async_session_manager,
    gather,
    session_factory,
    session_manager,
)
from tests.fixtures.interruptions import Interruptions
from tests.fixtures.pools import Pools
from tests.fixtures.proxies import Proxy, When
from tests.fixtures.things import Base, Part, Thing

#: A row that is there before each run, and refuses another of its name.
TAKEN = "taken"
#: At most so many sessions are open at once.
DEPTH = 4
BULK: Any = object()


class Boom(Exception):
    """What no library raises."""


class Refused(Exception):
    """What a callback raises."""


ERRORS = [Boom, KeyError, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]


# The model


@dataclass(eq=False)
class Layer:
    """A transaction, or a savepoint in it, and what it has written."""

    rows: list[str] = field(default_factory=list)
    #: A commit will be refused.
    is_poisoned: bool = False
    #: Only a rollback can end it.
    is_broken: bool = False


@dataclass(frozen=True)
class Call:
    """A callback that waits."""

    when: str
    name: str
    fails: bool
    layer: Layer | None


@dataclass(eq=False)
class Work:
    """What one session does."""

    session: Any
    factory: Any
    readers: int = 0
    #: Another session that writes would wait for this one, on SQLite.
    locks: bool = False
    layers: list[Layer] = field(default_factory=list)
    #: Added and not flushed, with the block that added it.
    pending: list[tuple[str, Block]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    #: Where anybody has written: the transaction, savepoints.
    wrote: set[Layer] = field(default_factory=set)
    #: Where blocks that have ended wrote: those that failed, and those that count on a
    #: commit.
    failed: list[set[Layer]] = field(default_factory=list)
    owed: list[set[Layer]] = field(default_factory=list)

    @property
    def is_broken(self) -> bool:
        return bool(self.layers) and self.layers[-1].is_broken

    @property
    def is_stuck(self) -> bool:
        """SQLAlchemy wants its own blocks to be left, once they were ended by hand."""
        return any(
            block.how == "nest" and block.layer not in self.layers
            for block in self.blocks
        )

    @property
    def rows(self) -> list[str]:
        return [row for layer in self.layers for row in layer.rows]

    def begin(self) -> Layer:
        if not self.layers:
            self.layers.append(Layer())
        return self.layers[-1]

    @property
    def places(self) -> list[set[Layer]]:
        """All sets of layers that somebody has written in."""
        blocks = [each for block in self.blocks for each in (block.wrote, block.before)]
        return [self.wrote, *self.failed, *self.owed, *blocks]

    @property
    def joined(self) -> Block | None:
        """The innermost block that has joined."""
        joined = [block for block in self.blocks if block.how in {"join", "savepoint"}]
        return joined[-1] if joined else None

    def write(self, blocks: Iterable[Block]) -> None:
        """Something was written, in *blocks*."""
        self.locks = True
        layer = self.begin()
        self.wrote.add(layer)
        for block in blocks:
            block.wrote.add(layer)

    def refuses_flush(self) -> bool:
        """Whether a block that only reads has something of its own to write."""
        return any(
            block.is_reader and block in self.blocks
            for _, by in self.pending
            for block in by.around
        )

    def refused(self) -> bool:
        """As :meth:`refuses_flush`, of a flush that was tried."""
        if not self.refuses_flush():
            return False
        for _, by in self.pending:
            for block in by.around:
                block.has_tried = True
        return True

    def flush(self) -> None:
        for row, by in self.pending:
            self.begin().rows.append(row)
            self.write(by.around)
        self.pending = []

    def release(self) -> None:
        """End the innermost savepoint; what it did is what is around it did."""
        self.flush()
        inner = self.layers.pop()
        outer = self.layers[-1]
        outer.rows += inner.rows
        outer.is_poisoned |= inner.is_poisoned
        for place in self.places:
            if inner in place:
                place.remove(inner)
                place.add(outer)
        self.calls = [
            Call(call.when, call.name, call.fails, outer)
            if call.layer is inner
            else call
            for call in self.calls
        ]

    def undo(self) -> None:
        """Roll the innermost savepoint back."""
        inner = self.layers.pop()
        for place in self.places:
            place.discard(inner)
        self.pending = []
        self.calls = [call for call in self.calls if call.layer is not inner]

    def end(self, when: str) -> list[Call]:
        """End the transaction, and give what is to be called."""
        due = [call for call in self.calls if call.when == when]
        self.layers, self.calls, self.pending = [], [], []
        self.locks = False
        self.wrote, self.failed, self.owed = set(), [], []
        for block in self.blocks:
            block.wrote, block.before = set(), set()
            block.has_tried = block.has_waited = False
        return due


@dataclass(eq=False)
class Block:
    """A block that is open: ``how`` is an entry of a scope, or ``"nest"``."""

    how: str
    manager: Any
    work: Work
    auto_commit: bool = False
    is_reader: bool = False
    layer: Layer | None = None
    #: Blocks of the same session that this one is inside of, and this one.
    around: tuple[Block, ...] = ()
    #: Where it has written.
    wrote: set[Layer] = field(default_factory=set)
    #: Where others had written before it began, and whether they had left something to
    #: be written.
    before: set[Layer] = field(default_factory=set)
    has_waited: bool = False
    #: It was refused what it wanted to write.
    has_tried: bool = False

    def owns_pending(self) -> bool:
        return any(self in by.around for _, by in self.work.pending)


# The faces


class Sync:
    """The sync face."""

    is_async = False

    def __init__(self, url: str) -> None:
        self.context = copy_context()
        self.db = Database(url)
        self.db.create_all(Base.metadata)
        self.manager = session_manager
        self.factories = {
            "own": self.db.session,
            "other": session_factory(routing=self.db.manager),
        }
        self.engine = self.db.manager.engines["default"]

    def run(self, step: Callable[[], Any]) -> Any:
        return self.context.run(step)

    def wait(self, result: Any) -> Any:
        return result

    def enter(self, manager: Any) -> Any:
        return manager.__enter__()

    def leave(self, manager: Any, *error: Any) -> Any:
        return manager.__exit__(*error)

    def dispose(self) -> None:
        self.db.dispose()

    @contextmanager
    def interrupted(self, number: int) -> Iterator[None]:
        """Raise as Ctrl-C would while a statement runs; statements are few."""
        statements = []

        def interrupt(*arguments: Any) -> None:
            statements.append(arguments)
            if len(statements) == 1:
                raise KeyboardInterrupt

        event.listen(self.engine, "before_cursor_execute", interrupt)
        try:
            yield
        finally:
            event.remove(self.engine, "before_cursor_execute", interrupt)

    def rivals(self, session: Any) -> list[Any]:
        """Use *session* in two threads at once, and give what they got."""
        results: list[Any] = []

        def second() -> None:
            try:
                results.append(session.scalars(select(Thing.name)).all())
            except SessionError as error:
                results.append(error)

        def meanwhile(*arguments: Any) -> None:
            if results:
                return
            thread = Thread(target=second)
            thread.start()
            thread.join()

        event.listen(self.engine, "before_cursor_execute", meanwhile)
        try:
            results.append(session.scalars(select(Thing.name)).all())
        finally:
            event.remove(self.engine, "before_cursor_execute", meanwhile)
        return results

    @contextmanager
    def joiner(self, name: str | None) -> Iterator[list[BaseException]]:
        """Keep a block of another thread open, which writes *name*, if it is one."""
        entered, release = ThreadEvent(), ThreadEvent()
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with session_manager() as session:
                    if name is not None:
                        session.execute(insert(Thing).values(name=name))
                    entered.set()
                    release.wait()
            except BaseException as error:  # noqa: BLE001  # looked at by who asks
                errors.append(error)
            finally:
                entered.set()

        thread = Thread(target=copy_context().run, args=(work,))
        thread.start()
        entered.wait()
        try:
            yield errors
        finally:
            release.set()
            thread.join()


class Async:
    """The async face: a step runs in a greenlet of a task of its own."""

    is_async = True

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.interruptions = Interruptions()
        self.runner.get_loop().set_task_factory(self.interruptions)
        self.db = Database(url)
        self.runner.run(self.db.acreate_all(Base.metadata))
        self.manager = async_session_manager
        self.factories = {
            "own": self.db.async_session,
            "other": async_session_factory(routing=self.db.manager),
        }

    def run(self, step: Callable[[], Any]) -> Any:
        return self.runner.run(greenlet_spawn(step))

    def wait(self, result: Any) -> Any:
        return await_only(result)

    def enter(self, manager: Any) -> Any:
        return await_only(manager.__aenter__())

    def leave(self, manager: Any, *error: Any) -> Any:
        return await_only(manager.__aexit__(*error))

    def dispose(self) -> None:
        self.runner.run(self.db.adispose())
        self.runner.close()

    def interrupted(self, number: int) -> Any:
        return self.interruptions.at(number)

    def rivals(self, session: Any) -> list[Any]:
        """Use *session* in two tasks at once, and give what they got."""

        async def use() -> list[str]:
            return [*await session.scalars(select(Thing.name))]

        results: list[Any] = await_only(
            asyncio.gather(use(), use(), return_exceptions=True)
        )
        return results

    @contextmanager
    def joiner(self, name: str | None) -> Iterator[list[BaseException]]:
        """Keep a block of another task open, which writes *name*, if it is one."""
        entered, release = asyncio.Event(), asyncio.Event()
        errors: list[BaseException] = []

        async def work() -> None:
            try:
                async with async_session_manager() as session:
                    if name is not None:
                        await session.execute(insert(Thing).values(name=name))
                    entered.set()
                    await release.wait()
            except BaseException as error:  # noqa: BLE001  # looked at by who asks
                errors.append(error)
            finally:
                entered.set()

        task = asyncio.get_running_loop().create_task(work())
        await_only(entered.wait())
        try:
            yield errors
        finally:
            release.set()
            await_only(asyncio.wait([task]))


class Eye:
    """What is committed, seen by a connection that is not ours."""

    def __init__(self, url: str) -> None:
        made = make_url(url)
        self.is_sqlite = made.get_backend_name() == "sqlite"
        self.connection: Any
        if self.is_sqlite:
            self.connection = sqlite3.connect(made.database, isolation_level=None)
        else:
            dsn = made.set(drivername="postgresql")
            self.connection = psycopg.connect(
                dsn.render_as_string(hide_password=False), autocommit=True
            )

    def names(self) -> list[str]:
        rows = self.connection.execute("SELECT name FROM thing").fetchall()
        return sorted(name for (name,) in rows)

    def reset(self) -> None:
        self.connection.execute("DELETE FROM part")
        self.connection.execute("DELETE FROM thing")
        self.connection.execute(f"INSERT INTO thing (name) VALUES ('{TAKEN}')")


def forget(error: BaseException) -> None:
    """Let go of cursors that were cut off: they hold locks of SQLite."""
    error.__traceback__ = error.__context__ = None
    gc.collect(1)


# The machine

fails = st.sampled_from(["no", "no", "by itself", "refused"])
#: Whether it has a savepoint and auto_commit=True, how it fails, and what it calls.
helpers: Any = st.recursive(
    st.tuples(st.booleans(), st.booleans(), fails, st.just([])),
    lambda inside: st.tuples(
        st.booleans(), st.booleans(), fails, st.lists(inside, max_size=3)
    ),
    max_leaves=4,
)
levels = st.integers(min_value=1, max_value=4)


class Machine(RuleBasedStateMachine):
    """Each rule does one thing to the sessions and the same to the model."""

    def __init__(
        self,
        make: Callable[[], Sync | Async],
        eye: Eye,
        pools: Pools,
        proxy: Proxy | None,
    ) -> None:
        super().__init__()
        self.face, self.eye, self.pools, self.proxy = make(), eye, pools, proxy
        eye.reset()
        # Of a run that has failed.
        pools.out.clear()
        pools.dirty.clear()
        self.stack: list[Block] = []
        self.sessions: list[Any] = []
        self.committed = {TAKEN}
        self.ran: list[str] = []
        self.expected: list[str] = []
        self.numbers = 0

    # What is there

    @property
    def works(self) -> list[Work]:
        return [block.work for block in self.stack if block.how == "create"]

    @property
    def work(self) -> Work:
        return self.stack[-1].work

    @property
    def session(self) -> Any:
        return self.work.session

    def is_usable(self) -> bool:
        return self.is_open() and not self.work.is_broken

    def is_open(self) -> bool:
        return bool(self.stack) and not self.work.is_stuck

    def may_write(self) -> bool:
        """SQLite has one writer at a time."""
        works = self.works[:-1]
        return not (self.eye.is_sqlite and any(work.locks for work in works))

    def new_name(self) -> str:
        self.numbers += 1
        return f"n{self.numbers}"

    def do(self, step: Callable[[], Any]) -> Any:
        """Run one step in the face, and see that what is current is right."""

        def checked() -> None:
            step()
            current = self.session if self.stack else None
            assert current is SESSION_CONTEXT.get()
            assert (None if self.stack else BULK) is SESSION_BULK_CONTEXT.get()
            assert self.face.db is APP_CONTEXT.get()
            assert len(self.works) == len(self.face.db.report())

        self.face.run(checked)
        assert self.expected == self.ran
        assert sorted(self.committed) == self.eye.names()
        assert [] == self.pools.dirty
        if not self.stack:
            assert [] == self.pools.out

    def attempt(self, action: Callable[[], Any]) -> BaseException | None:
        try:
            self.face.wait(action())
        except BaseException as error:  # noqa: BLE001  # the machine decides what it means
            return error
        return None

    # Ends of transactions, in the model

    def kept(self, work: Work) -> list[Call]:
        """Commit: give what is called, or raise what the commit should."""
        if work.is_broken:
            raise SQLAlchemyError
        while True:
            if work.refused() and not (any(work.failed) and len(work.layers) <= 1):
                raise RoutingError
            if len(work.layers) <= 1:
                break
            work.release()
        root = work.begin()
        if any(work.failed):
            raise SessionError
        work.flush()
        if root.is_poisoned:
            root.is_broken = True
            raise IntegrityError("", None, ValueError())
        self.committed.update(root.rows)
        return work.end("commit")

    def called(self, due: list[Call]) -> type[Exception] | None:
        """Take down what runs; give what is raised by it."""
        self.expected += [call.name for call in due]
        return Refused if any(call.fails for call in due) else None

    # Starting and ending a run

    @initialize()
    def start(self) -> None:
        def begin() -> None:
            APP_CONTEXT.set(self.face.db)
            SESSION_BULK_CONTEXT.set(BULK)

        self.do(begin)

    def teardown(self) -> None:
        try:
            while self.stack:
                self.popped(None)
        finally:
            self.face.run(self.close)
            self.face.dispose()

    def close(self) -> None:
        """A run that has failed leaves no lock to the next."""
        for session in self.sessions:
            # Blocks that were never left would not have their work dropped.
            getattr(session, "sync_session", session)._watches = ()
            self.attempt(session.close)

    # Blocks

    @precondition(lambda self: len(self.stack) < 8)
    @rule(
        using=st.sampled_from([None, None, "own", "other"]),
        new=st.sampled_from([False, False, False, True]),
        savepoint=st.booleans(),
        auto_commit=st.sampled_from([True, True, False]),
        role=st.sampled_from([None, None, None, "read", "write"]),
        on_missing=st.sampled_from(["create", "create", "raise"]),
    )
    def enter(
        self,
        using: str | None,
        new: bool,
        savepoint: bool,
        auto_commit: bool,
        role: str | None,
        on_missing: str,
    ) -> None:
        """Enter a scope."""
        manager: Any = self.face.manager(
            using=using and self.face.factories[using],
            auto_commit=auto_commit,
            new=new,
            on_missing=on_missing,
            savepoint=savepoint,
            role=role,
        )
        joins = bool(self.stack) and not new and using in {None, self.work.factory}
        if joins:
            self.do(lambda: self.join(manager, savepoint, auto_commit, role))
        elif not self.stack and not new and on_missing == "raise":
            with pytest.raises(SessionError):
                self.do(lambda: self.face.enter(manager))
        elif len(self.works) < DEPTH:
            self.do(lambda: self.create(manager, using or "own", auto_commit, role))

    def create(
        self, manager: Any, factory: str, auto_commit: bool, role: str | None
    ) -> None:
        session = self.face.enter(manager)
        assert session not in [work.session for work in self.works]
        self.sessions.append(session)
        work = Work(session, factory, int(role == "read"))
        block = Block("create", manager, work, auto_commit, role == "read")
        self.push(block)

    def join(
        self, manager: Any, savepoint: bool, auto_commit: bool, role: str | None
    ) -> None:
        work = self.work
        expected: Any = None
        if role == "write" and work.readers:
            expected = SessionError
        elif savepoint and (work.is_broken or work.is_stuck):
            expected = SQLAlchemyError
        elif savepoint and work.refused():
            expected = RoutingError
        if expected is not None:
            with pytest.raises(expected):
                self.face.enter(manager)
            return
        assert work.session is self.face.enter(manager)
        how = "savepoint" if savepoint else "join"
        block = Block(how, manager, work, auto_commit, role == "read")
        work.readers += block.is_reader
        block.has_waited = bool(work.pending)
        block.before = {*work.wrote}
        if savepoint:
            block.layer = self.save()
            # Its beginning has written it.
            block.before = {*work.wrote} if block.has_waited else block.before
        self.push(block)

    def save(self) -> Layer:
        """Begin a savepoint, in the model."""
        self.work.begin()
        self.work.flush()
        self.work.locks = True
        layer = Layer()
        self.work.layers.append(layer)
        return layer

    def push(self, block: Block) -> None:
        work = block.work
        block.around = (*work.blocks, block)
        work.blocks.append(block)
        self.stack.append(block)

    @precondition(lambda self: self.is_usable() and len(self.stack) < 8)
    @rule()
    def nest(self) -> None:
        """Enter a savepoint of SQLAlchemy's own."""

        def step() -> None:
            manager = self.session.begin_nested()
            if self.work.refused():
                with pytest.raises(RoutingError):
                    self.face.enter(manager)
            else:
                self.face.enter(manager)
                self.push(Block("nest", manager, self.work, layer=self.save()))

        # The sync one begins when it is made.
        if self.face.is_async or not self.work.refuses_flush():
            self.do(step)

    @precondition(lambda self: bool(self.stack))
    @rule(times=levels)
    def leave(self, times: int) -> None:
        """Leave blocks; an error as one ends leaves the others with it."""
        error = None
        for _ in range(min(times, len(self.stack))):
            error = self.popped(error)

    @precondition(lambda self: bool(self.stack))
    @rule(kind=st.sampled_from(ERRORS), times=levels)
    def fail(self, kind: type[BaseException], times: int) -> None:
        """An error leaves blocks, and is swallowed outside of the last."""
        self.unwind(kind(), times)

    def unwind(self, error: BaseException, times: int) -> None:
        left: BaseException | None = error
        for _ in range(min(times, len(self.stack))):
            left = self.popped(left)

    def popped(self, error: BaseException | None) -> BaseException | None:
        results: list[BaseException | None] = []
        self.do(lambda: results.append(self.pop(error)))
        return results[0]

    def pop(self, error: BaseException | None) -> BaseException | None:
        """Leave the innermost block, and give what comes out of it."""
        block = self.stack[-1]
        if block.has_tried and not block.wrote:
            # Whether a savepoint that took it along makes up for it is not promised.
            self.undo_all(by_owner=True)
        self.stack.pop()
        work = block.work
        kind = type(error) if error is not None else None
        trace = error.__traceback__ if error is not None else None
        result = error
        try:
            assert not self.face.leave(block.manager, kind, error, trace)
        except BaseException as raised:  # noqa: BLE001  # it is looked at below
            result = raised
        expected = self.popped_model(block, error)
        if expected is not None:
            assert isinstance(result, expected), repr((result, expected))
            assert result is not error
        elif error is None:
            assert result is None, repr(result)
        elif isinstance(error, SQLAlchemyError) and block.how != "nest":
            assert isinstance(result, type(error))
            assert isinstance(result, TenureError)
            assert error in {result, result.__cause__}
        else:
            assert error is result
        if isinstance(result, SQLAlchemyError) and block.how != "nest":
            assert isinstance(result, TenureError)
        work.blocks.remove(block)
        return result

    def popped_model(self, block: Block, error: BaseException | None) -> Any:
        """End *block* in the model; give what it raises by itself."""
        work = block.work
        if block.how == "create":
            return self.ended(block, error)
        expected: Any = None
        if block.layer is not None and block.layer in work.layers:
            loses = block.how == "savepoint" and block.layer in block.wrote
            if error is None and work.is_broken and loses:
                expected = SessionError
            if error is not None or work.is_broken:
                work.undo()
            elif work.refused():
                work.undo()
                expected = RoutingError
            else:
                work.release()
        if block.how != "nest":
            own = bool(block.wrote) or block.owns_pending()
            if error is None and block.is_reader and own and expected is None:
                expected = RoutingError
            # A generator that nobody asks for more has not failed.
            fails = expected is not None or not isinstance(
                error, type(None) | GeneratorExit
            )
            # What it leaves to be written will be part of what is open now.
            places = {*block.wrote, *([work.begin()] if block.owns_pending() else [])}
            if places and fails:
                work.failed.append(places)
            elif places and block.auto_commit:
                work.owed.append(places)
        work.readers -= block.is_reader
        return expected

    def ended(self, block: Block, error: BaseException | None) -> Any:
        """End the block that owns its session, in the model."""
        work = block.work
        if error is None and block.auto_commit:
            try:
                return self.called(self.kept(work))
            except (SQLAlchemyError, TenureError) as failed:
                self.called(work.end("rollback"))
                return self.kinds(failed)
        is_owed = any(work.owed) and isinstance(error, type(None) | GeneratorExit)
        raised = self.called(work.end("rollback"))
        if is_owed:
            return SessionError
        return raised if error is None else None

    def kinds(self, failed: BaseException) -> Any:
        # Which comes first of two good reasons is not promised.
        return TenureError if isinstance(failed, TenureError) else type(failed)

    # What blocks do

    @precondition(lambda self: self.is_usable() and self.may_write())
    @rule()
    def add(self) -> None:
        """Add an object, which a later flush will write."""

        def step() -> None:
            name = self.new_name()
            self.session.add(Thing(name=name))
            self.work.begin()
            self.work.pending.append((name, self.stack[-1]))

        self.do(step)

    @precondition(lambda self: self.is_usable() and self.may_write())
    @rule()
    def flush(self) -> None:
        def step() -> None:
            error = self.attempt(self.session.flush)
            if self.work.refused():
                assert isinstance(error, RoutingError)
            else:
                assert error is None, repr(error)
                self.work.flush()

        self.do(step)

    @precondition(lambda self: self.is_usable() and self.may_write())
    @rule(is_poison=st.sampled_from([False, False, False, True]))
    def insert(self, is_poison: bool) -> None:
        """Write by a statement; poison is what only the commit will refuse."""
        self.execute(is_poison=is_poison)

    def execute(self, *, is_poison: bool = False) -> None:
        name = self.new_name()
        statement = (
            insert(Part).values(thing_id=-1)
            if is_poison
            else insert(Thing).values(name=name)
        )

        def step() -> None:
            error = self.attempt(lambda: self.session.execute(statement))
            work = self.work
            if work.readers:
                assert isinstance(error, RoutingError)
                return
            assert error is None, repr(error)
            # ORM statements flush what waits.
            work.flush()
            work.write(work.blocks)
            if is_poison:
                work.begin().is_poisoned = True
            else:
                work.begin().rows.append(name)

        self.do(step)

    @precondition(lambda self: self.is_open())
    @rule()
    def read(self) -> None:
        """Read what is committed and what is its own."""

        def look() -> None:
            seen.extend(self.face.wait(self.session.scalars(select(Thing.name))))

        def step() -> None:
            try:
                look()
            except SQLAlchemyError as failed:
                error: BaseException | None = failed
            else:
                error = None
            work = self.work
            if work.is_broken:
                assert isinstance(error, SQLAlchemyError)
            elif work.refused():
                assert isinstance(error, RoutingError)
            else:
                assert error is None, repr(error)
                work.begin()
                work.flush()
                assert sorted({*self.committed, *work.rows}) == sorted(seen)

        seen: list[str] = []
        if not self.work.pending or self.may_write():
            self.do(step)

    @precondition(
        lambda self: self.is_usable() and self.may_write() and not self.work.readers
    )
    @rule(times=st.integers(min_value=0, max_value=3))
    def violate(self, times: int) -> None:
        """Flush what the database refuses; the error leaves some blocks, or none."""
        self.unwind(self.refuse(), times)

    def refuse(self) -> BaseException:
        """Flush what the database refuses, and give the error."""
        errors: list[BaseException] = []

        def step() -> None:
            self.session.add(Thing(name=TAKEN))
            error = self.attempt(self.session.flush)
            assert isinstance(error, IntegrityError)
            assert isinstance(error, DatabaseError)
            errors.append(error)
            work = self.work
            work.begin()
            work.locks = True
            # Undone with the rest of the flush.
            work.pending = []
            self.break_off(work)

        self.do(step)
        return errors[0]

    def break_off(self, work: Work) -> None:
        """Undo the innermost layer at once; only its end is left."""
        layer = work.layers[-1]
        layer.rows, layer.is_poisoned, layer.is_broken = [], False, True
        if len(work.layers) > 1:
            work.calls = [call for call in work.calls if call.layer is not layer]

    @precondition(lambda self: self.is_open() and self.may_write())
    @rule()
    def commit(self) -> None:
        """Commit inside of a block."""

        def step() -> None:
            expected: Any = None
            error = self.attempt(self.session.commit)
            try:
                expected = self.called(self.kept(self.work))
            except (SQLAlchemyError, TenureError) as failed:
                expected = self.kinds(failed)
            if expected is None:
                assert error is None, repr(error)
            else:
                assert isinstance(error, expected), repr(error)

        self.do(step)

    @precondition(lambda self: bool(self.stack))
    @rule()
    def rollback(self) -> None:
        """Roll back inside of a block."""

        self.do(self.undo_all)

    def undo_all(self, *, by_owner: bool = False) -> None:
        """Roll back; refused if it would drop what was written before a joined block."""
        work = self.work
        joined = work.joined
        if by_owner:
            core = getattr(self.session, "sync_session", self.session)
            watches, core._watches = core._watches, ()
        error = self.attempt(self.session.rollback)
        if by_owner:
            core._watches = watches
            for watch in watches:
                watch.forget()
        elif joined is not None and (joined.before or joined.has_waited):
            assert isinstance(error, SessionError), repr(error)
            return
        while len(work.layers) > 1:
            work.undo()
        expected = self.called(work.end("rollback"))
        assert (expected or type(None)) is type(error)

    @precondition(lambda self: self.is_usable())
    @rule(
        when=st.sampled_from(["commit", "rollback"]),
        fails=st.sampled_from([False, False, False, True]),
    )
    def callback(self, when: str, fails: bool) -> None:
        """Register a callback."""
        self.register(when, fails=fails)

    def register(self, when: str, *, fails: bool = False) -> None:
        name = f"{when} {self.new_name()}"

        def call() -> None:
            self.ran.append(name)
            if fails:
                raise Refused(name)

        async def call_async() -> None:
            call()

        def step() -> None:
            register = getattr(self.session, f"on_{when}")
            register(call_async if self.face.is_async else call)
            layers = self.work.layers
            layer = layers[-1] if layers else None
            self.work.calls.append(Call(when, name, fails, layer))

        self.do(step)

    @precondition(lambda self: self.is_usable() and not self.work.pending)
    @rule()
    def rivals(self) -> None:
        """Of two users at once one is refused, and the other is unharmed."""

        def step() -> None:
            results = self.face.rivals(self.session)
            refused = [each for each in results if isinstance(each, ConcurrentUseError)]
            assert 1 == len(refused)
            (seen,) = [each for each in results if each not in refused]
            self.work.begin()
            assert sorted({*self.committed, *self.work.rows}) == sorted(seen)

        self.do(step)

    @precondition(lambda self: self.face.is_async)
    @rule(
        outcomes=st.lists(st.sampled_from(["write", "read", "fail"]), max_size=3),
        auto_commit=st.booleans(),
    )
    def gather(self, outcomes: list[str], auto_commit: bool) -> None:
        """Functions have scopes of their own, whatever is around."""
        works = self.works
        if self.eye.is_sqlite and any(work.locks for work in works):
            outcomes = [outcome for outcome in outcomes if outcome == "read"]
        names = [self.new_name() for _ in outcomes]

        def function(name: str, outcome: str) -> Any:
            async def work() -> str:
                session: Any = SESSION_CONTEXT.get()
                assert session not in [work.session for work in works]
                if outcome != "read":
                    session.add(Thing(name=name))
                    await session.flush()
                await session.scalars(select(Thing.name))
                if outcome == "fail":
                    raise Boom
                return name

            return work

        async def run() -> None:
            functions = map(function, names, outcomes)
            assert names == await gather(*functions, limit=1, auto_commit=auto_commit)

        def step() -> None:
            error = self.attempt(run)
            assert (Boom if "fail" in outcomes else type(None)) is type(error)
            for name, outcome in zip(names, outcomes, strict=True):
                if outcome == "fail":
                    break
                if outcome == "write" and auto_commit:
                    self.committed.add(name)

        self.do(step)

    @precondition(
        lambda self: self.is_usable() and self.may_write() and not self.work.readers
    )
    @rule(helper=helpers)
    def call(self, helper: Any) -> None:
        """Do in one step what is found seldom: blocks that write, and maybe fail."""
        self.use(helper)

    def use(self, helper: Any) -> None:
        is_saved, auto_commit, fails, inside = helper
        manager = self.face.manager(savepoint=is_saved, auto_commit=auto_commit)
        self.do(lambda: self.join(manager, is_saved, auto_commit, None))
        self.register("commit")
        self.execute()
        for inner in inside:
            if self.is_usable():
                self.use(inner)
        error: BaseException | None = None
        if fails == "refused" and self.is_usable():
            error = self.refuse()
        elif fails != "no":
            error = Boom()
        self.popped(error)

    # Others inside, and lost answers

    @precondition(
        lambda self: (
            self.is_open() and self.stack[-1].how == "create" and self.may_write()
        )
    )
    @rule(writes=st.booleans())
    def leave_behind(self, writes: bool) -> None:
        """The owner ends while another user is in a block that has joined."""
        block = self.stack[-1]
        work = block.work
        name = None
        if writes and not (work.readers or work.is_broken):
            name = self.new_name()

        def step() -> None:
            self.stack.pop()
            with self.face.joiner(name) as errors:
                assert [] == errors, repr(errors)
                error = self.attempt(
                    lambda: self.face.leave(block.manager, None, None, None)
                )
            # All of it is rolled back, so nothing is left to be lost by the other.
            assert [] == errors, repr(errors)
            assert isinstance(error, SessionError), repr(error)
            assert "was still in a block" in str(error)
            self.called(work.end("rollback"))
            work.blocks.remove(block)

        self.do(step)

    def may_lose(self) -> bool:
        """Whether a COMMIT would be sent, and nothing but its answer could be wrong."""
        return (
            self.proxy is not None
            and self.is_usable()
            and all(block.how == "create" for block in self.work.blocks)
            and not (self.work.readers or any(self.work.failed))
            and not any(layer.is_poisoned for layer in self.work.layers)
        )

    @precondition(lambda self: self.may_lose())
    @rule(when=st.sampled_from(["before", "after"]))
    def lose_answer(self, when: When) -> None:
        """The connection is cut before a COMMIT arrives, or before its answer does."""
        self.execute()
        proxy = self.proxy
        assert proxy is not None

        def step() -> None:
            work = self.work
            proxy.cut(when)
            error = self.attempt(self.session.commit)
            if when == "after":
                expected = self.called(self.kept(work))
                assert (expected or type(None)) is type(error), repr(error)
                return
            assert isinstance(error, DatabaseError), repr(error)
            assert not isinstance(error, CommitOutcomeUnknownError)
            forget(error)
            self.attempt(self.session.rollback)
            self.called(work.end("rollback"))

        self.do(step)

    # Interruptions

    @precondition(lambda self: self.is_usable() and self.may_write())
    @rule(number=st.integers(min_value=1, max_value=6), writes=st.booleans())
    def interrupt(self, number: int, writes: bool) -> None:
        """Cancel what a block does; it leaves all blocks of the session."""
        work = self.work
        if writes and work.readers:
            return
        statement: Any = (
            insert(Thing).values(name=self.new_name()) if writes else select(Thing.name)
        )
        errors: list[BaseException] = []

        def step() -> None:
            with self.face.interrupted(number):
                error = self.attempt(lambda: self.session.execute(statement))
            if error is not None:
                forget(error)
            # Done before it was reached, or undone by what follows.
            errors.append(error or Boom())
            assert isinstance(
                error,
                type(None) | asyncio.CancelledError | KeyboardInterrupt | RoutingError,
            ), repr(error)

        self.do(step)
        while work in self.works:
            self.unwind(errors[0], 1)

    @precondition(lambda self: self.face.is_async and bool(self.stack))
    @rule(
        number=st.integers(min_value=1, max_value=12),
        kind=st.sampled_from([None, None, *ERRORS]),
    )
    def interrupted_end(self, number: int, kind: type[BaseException] | None) -> None:
        """Cancel at any point of the end of the block that owns the session."""
        while self.stack[-1].how != "create":
            self.popped(None)
        block = self.stack[-1]
        if kind is None and block.auto_commit and not self.may_write():
            return
        work = block.work
        error = kind() if kind is not None else None
        calls = [*work.calls]
        could_keep = {*self.committed, *work.rows, *(name for name, _ in work.pending)}

        def step() -> None:
            self.stack.pop()
            trace = (type(error), error, None) if error is not None else (None,) * 3
            result = error
            ran = len(self.ran)
            with self.face.interrupted(number):
                try:
                    self.face.leave(block.manager, *trace)
                except BaseException as raised:  # noqa: BLE001  # looked at below
                    result = raised
            seen = {*self.eye.names()}
            # What it ends with is all or nothing, and callbacks know which.
            assert seen in (self.committed, could_keep)
            new = self.ran[ran:]
            if not isinstance(result, asyncio.CancelledError):
                self.ran[ran:] = []
                if seen != self.committed:
                    self.committed = seen
                expected = self.ended(block, error)
                if expected is None:
                    assert error is result, repr(result)
                else:
                    assert isinstance(result, expected), repr(result)
                self.ran += new
            else:
                when = "rollback" if seen == self.committed else "commit"
                due = [call.name for call in calls if call.when == when]
                other = [call.name for call in calls if call.when != when]
                # Nothing written: both endings look alike.
                if could_keep == self.committed and new[:1] != due[:1]:
                    due = other
                assert new == due[: len(new)]
                self.expected += new
                self.committed = seen
            work.blocks.remove(block)
            if result is not None:
                forget(result)

        self.do(step)


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks fail on purpose, and each time it is logged."""
    caplog.set_level(logging.CRITICAL, "tenure")


def check(make: Callable[[str], Sync | Async], url: str, pools: Pools) -> None:
    eye = Eye(url)
    few = not eye.is_sqlite
    profile = settings(
        max_examples=30 if few else 150,
        stateful_step_count=30,
        deadline=None,
        print_blob=True,
        suppress_health_check=[*HealthCheck],
    )
    with ExitStack() as stack:
        stack.callback(eye.connection.close)
        proxy = None
        made = make_url(url)
        if made.host is not None and made.port is not None:
            proxy = stack.enter_context(Proxy(made.host, made.port))
            made = made.set(host="127.0.0.1", port=proxy.port)
        through = made.render_as_string(hide_password=False)
        run_state_machine_as_test(
            lambda: Machine(lambda: make(through), eye, pools, proxy), settings=profile
        )


# A connection that was cut is not closed by its driver.
cuts = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@cuts
def test_sync(url: str, pools: Pools) -> None:
    """Whatever blocks do, what is kept is what the model says, and all is given back."""
    check(Sync, url, pools)


@cuts
def test_async(async_url: str, pools: Pools) -> None:
    """The same, with cancellations and functions that run at once."""
    check(Async, async_url, pools)
