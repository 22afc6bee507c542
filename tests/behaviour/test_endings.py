"""How blocks end when something else goes wrong: at every await, and elsewhere."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import pytest
from sqlalchemy import delete, event, exc, func, insert, select
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from tenure import (
    SESSION_CONTEXT,
    Database,
    DatabaseError,
    RoutingError,
    Session,
    SessionError,
    TenureError,
    async_session_manager,
    current_session,
    session_factory,
    session_manager,
)
from tests.fixtures.interruptions import Interruptions
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing
from tests.test_errors import made


@pytest.fixture(autouse=True)
def nothing_left(pools: Pools) -> Iterator[None]:
    """Whatever a test does, connections are back and clean, and nothing is current."""
    yield
    assert [] == pools.out
    assert [] == pools.dirty
    assert SESSION_CONTEXT.get() is None


@pytest.fixture
def db(url: str, nothing_left: None) -> Iterator[Database]:
    db = Database(url)
    db.create_all(Base.metadata)
    yield db
    db.dispose()


@pytest.fixture
def loop(async_url: str, nothing_left: None) -> Iterator[Loop]:
    with asyncio.Runner() as runner:
        loop = Loop(runner, Database(async_url))
        runner.run(loop.db.acreate_all(Base.metadata))
        yield loop
        runner.run(loop.db.adispose())


def names(db: Database) -> list[str]:
    with db.session() as session:
        return sorted(session.scalars(select(Thing.name)))


class Boom(Exception):
    """What no library raises."""


# Cancelled at every await


class Loop:
    """A loop that can cancel the end of a block wherever it waits."""

    def __init__(self, runner: asyncio.Runner, db: Database) -> None:
        self.runner, self.db = runner, db
        self.interruptions = Interruptions()
        runner.get_loop().set_task_factory(self.interruptions)

    def rows(self) -> list[str]:
        """Give what is committed, and clear it away."""

        async def look() -> list[str]:
            async with self.db.async_session() as session:
                found = sorted(await session.scalars(select(Thing.name)))
                await session.execute(delete(Thing))
                await session.commit()
            return found

        return self.runner.run(look())

    def leave(
        self, work: Callable[[Loop, list[str]], Any], number: int, times: int
    ) -> tuple[BaseException | None, list[str], list[str], int]:
        """Give what came out of *work*, what ran, what is kept, and its awaits."""
        ran: list[str] = []

        async def caught() -> BaseException | None:
            self.interruptions.aim(number, times)
            try:
                await work(self, ran)
            except BaseException as error:  # noqa: BLE001  # any is looked at
                return error
            finally:
                self.interruptions.stop()
            assert SESSION_CONTEXT.get() is None
            return None

        error = self.runner.run(caught())
        return error, ran, self.rows(), self.interruptions.count


async def commits(loop: Loop, ran: list[str]) -> None:
    async with loop.db.async_session_manager(auto_commit=True) as session:
        await fill(session, ran)
        loop.interruptions.start()


async def rolls_back(loop: Loop, ran: list[str]) -> None:
    async with loop.db.async_session_manager(auto_commit=True) as session:
        await fill(session, ran)
        loop.interruptions.start()
        raise Boom


async def discards(loop: Loop, ran: list[str]) -> None:
    async with loop.db.async_session_manager() as session:
        await fill(session, ran)
        loop.interruptions.start()


async def joins(loop: Loop, ran: list[str]) -> None:
    async with loop.db.async_session_manager(auto_commit=True):
        async with async_session_manager() as session:
            await fill(session, ran)
            loop.interruptions.start()


async def releases(loop: Loop, ran: list[str]) -> None:
    async with loop.db.async_session_manager(auto_commit=True):
        async with async_session_manager(savepoint=True) as session:
            await fill(session, ran)
            loop.interruptions.start()


async def undoes(loop: Loop, ran: list[str]) -> None:
    async with loop.db.async_session_manager(auto_commit=True) as session:
        await fill(session, ran)
        try:
            async with async_session_manager(savepoint=True) as inner:
                await inner.execute(insert(Thing).values(name="undone"))
                loop.interruptions.start()
                raise Boom
        except Boom:
            pass


async def fill(session: Any, ran: list[str]) -> None:
    await session.execute(insert(Thing).values(name="a"))
    session.add(Thing(name="b"))
    session.on_commit(lambda: ran.append("commit"))
    session.on_rollback(lambda: ran.append("rollback"))


ENDS = [commits, rolls_back, discards, joins, releases, undoes]


@pytest.mark.parametrize("times", [1, 6])
@pytest.mark.parametrize("end", ENDS)
def test_cancelled_at_every_await(loop: Loop, end: Any, times: int) -> None:
    """
    Wherever the end of a block is cancelled: all or nothing, and clean.

    Callbacks and database agree, whoever is cancelled hears of it, and once the
    commit is on its way it is not taken back.
    """
    error, _, kept, _ = loop.leave(end, 0, 0)
    assert (Boom if end is rolls_back else type(None)) is type(error)
    outcomes = []
    # Those that prepare a statement wait more often the first time.
    while True:
        number = len(outcomes) + 1
        error, ran, rows, awaits = loop.leave(end, number, times)
        if awaits < number:
            break
        assert isinstance(error, asyncio.CancelledError)
        assert rows in ([], kept)
        assert ["commit" if rows else "rollback"] == ran
        outcomes.append(bool(rows))

    assert outcomes
    assert sorted(outcomes) == outcomes


# Interrupted where the driver is called


class TestInterrupted:
    """What Ctrl-C does to the end of a sync block."""

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
    @pytest.mark.parametrize("name", ["before_cursor_execute", "commit"])
    @pytest.mark.parametrize("savepoint", [False, True])
    def test_in_the_commit(
        self, db: Database, name: str, error: type[BaseException], savepoint: bool
    ) -> None:
        """Before the database was asked to commit, nothing is kept."""

        def interrupt(*arguments: Any) -> None:
            event.remove(db.manager.engines["default"], name, interrupt)
            raise error

        with pytest.raises(error) as caught:
            with db.session_manager(auto_commit=True) as session:
                session.execute(insert(Thing).values(name="a"))
                with session_manager(savepoint=savepoint):
                    session.add(Thing(name="b"))
                    event.listen(db.manager.engines["default"], name, interrupt)

        assert type(caught.value) is error
        assert [] == names(db)

    def test_in_the_rollback(self, db: Database) -> None:
        """Interrupted as it rolls back, a block closes all the same."""

        def interrupt(*arguments: Any) -> None:
            event.remove(db.manager.engines["default"], "rollback", interrupt)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt) as caught:
            with db.session_manager(auto_commit=True) as session:
                session.execute(insert(Thing).values(name="a"))
                event.listen(db.manager.engines["default"], "rollback", interrupt)
                raise Boom

        assert isinstance(caught.value.__context__, Boom)
        assert [] == names(db)

    def test_after_the_commit(self, db: Database) -> None:
        """What was committed stays, and its callbacks run."""
        ran: list[str] = []

        def interrupt(session: Session) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            with db.session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                session.on_commit(lambda: ran.append("commit"))
                session.on_rollback(lambda: ran.append("rollback"))
                event.listen(session, "after_commit", interrupt)

        assert ["a"] == names(db)
        assert ["commit"] == ran

    def test_in_a_callback(self, db: Database) -> None:
        """An interrupted callback leaves a block that was closed."""

        def interrupt() -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            with db.session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                session.on_commit(interrupt)

        assert ["a"] == names(db)


# Steps that fail


class Failing(Session):
    """Its ``close`` or ``rollback`` does what it should, and fails."""

    close_error: BaseException | None = None
    rollback_error: BaseException | None = None

    def close(self) -> None:
        super().close()
        if self.close_error is not None:
            raise self.close_error

    def rollback(self) -> None:
        super().rollback()
        if self.rollback_error is not None:
            raise self.rollback_error


class TestFailingSteps:
    @pytest.fixture
    def factory(self, db: Database) -> Any:
        return session_factory(routing=db.manager, class_=Failing)

    @pytest.mark.parametrize("error", [OSError("stuck"), KeyboardInterrupt()])
    @pytest.mark.parametrize("auto_commit", [False, True])
    def test_close(
        self, db: Database, factory: Any, error: BaseException, auto_commit: bool
    ) -> None:
        """What closing raises comes out, and what was before is current again."""
        with db.session_manager() as outer:
            with pytest.raises(type(error)) as caught:
                with session_manager(using=factory, auto_commit=auto_commit) as session:
                    session.add(Thing(name="a"))
                    session.close_error = error
            assert outer is current_session()

        assert error is caught.value
        assert (["a"] if auto_commit else []) == names(db)

    @pytest.mark.parametrize("auto_commit", [False, True])
    def test_close_of_sqlalchemy(
        self, db: Database, factory: Any, auto_commit: bool
    ) -> None:
        """One of SQLAlchemy's is a DatabaseError as well."""
        error = OperationalError("close", None, OSError())
        with pytest.raises(OperationalError) as caught:
            with session_manager(using=factory, auto_commit=auto_commit) as session:
                session.close_error = error

        assert isinstance(caught.value, DatabaseError)
        assert error is caught.value.__cause__

    def test_all(self, db: Database, factory: Any) -> None:
        """Of three errors the first is raised, and has the others as notes."""
        with pytest.raises(IntegrityError) as caught:
            with session_manager(using=factory, auto_commit=True) as session:
                session.add_all([Thing(name="a"), Thing(name="a")])
                session.rollback_error = OSError("second")
                session.close_error = OSError("third")

        assert [
            "rolling back the session failed as well: second",
            "closing the session failed as well: third",
        ] == caught.value.__notes__
        assert [] == names(db)

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit])
    def test_after_an_interruption(
        self, db: Database, factory: Any, kind: type[BaseException]
    ) -> None:
        """An interruption is no less the first error."""
        error = kind()
        with pytest.raises(kind) as caught:
            with session_manager(using=factory, auto_commit=True) as session:
                session.execute(insert(Thing).values(name="a"))
                session.rollback_error = session.close_error = OSError("stuck")
                raise error

        assert error is caught.value
        assert 2 == len(error.__notes__)
        assert [] == names(db)


# Every class of error


def all_errors(parent: type[SQLAlchemyError] = SQLAlchemyError) -> Iterator[Any]:
    """Give SQLAlchemy's own classes, as they are derived."""
    if issubclass(parent, TenureError):
        return
    if parent.__module__ in {"sqlalchemy.exc", "sqlalchemy.orm.exc"}:
        yield parent
    for cls in parent.__subclasses__():
        yield from all_errors(cls)


@pytest.mark.parametrize("inside", ["owner", "joined", "savepoint", "new"])
def test_of_every_class(inside: str) -> None:
    """Whatever class of SQLAlchemy's leaves whatever block, it keeps its class."""
    db = Database("sqlite://")
    classes = {*all_errors()}
    assert {exc.IntegrityError, exc.NoResultFound, exc.UnboundExecutionError} < classes
    for cls in classes:
        error = made(cls)
        with pytest.raises(DatabaseError) as caught:
            with db.session_manager(auto_commit=True):
                if inside == "owner":
                    raise error
                with db.session_manager(
                    savepoint=inside == "savepoint", new=inside == "new"
                ):
                    raise error

        assert isinstance(caught.value, cls)
        assert error is caught.value.__cause__
        assert error is caught.value.original
    db.dispose()


# Left from elsewhere


def joined(savepoint: bool) -> Iterator[None]:
    with session_manager(savepoint=savepoint) as session:
        session.add(Thing(name="inside"))
        session.flush()
        yield


class TestElsewhere:
    """Blocks of generators that somebody else finishes."""

    @pytest.mark.parametrize("is_closed", [False, True])
    @pytest.mark.parametrize("where", ["context", "thread"])
    def test_savepoint(self, db: Database, where: str, is_closed: bool) -> None:
        """A savepoint goes or stays, and the owner goes on."""
        with db.session_manager(auto_commit=True) as session:
            generator = joined(savepoint=True)
            next(generator)
            finish: Any = (
                generator.close if is_closed else lambda: next(generator, None)
            )
            elsewhere(where, finish)
            assert session is current_session()
            session.add(Thing(name="outside"))

        assert (["outside"] if is_closed else ["inside", "outside"]) == names(db)

    @pytest.mark.parametrize("where", ["context", "thread"])
    def test_joined(self, db: Database, where: str) -> None:
        """One that nobody asks for more has not failed: the owner keeps its work."""
        with db.session_manager(auto_commit=True) as session:
            generator: Any = joined(savepoint=False)
            next(generator)
            elsewhere(where, generator.close)
            assert session is current_session()

        assert ["inside"] == names(db)

    @pytest.mark.parametrize("where", ["context", "thread"])
    def test_joined_fails(self, db: Database, where: str) -> None:
        """One that fails elsewhere has done half of its work, which is not kept."""

        def fail() -> None:
            with pytest.raises(Boom):
                generator.throw(Boom())

        with pytest.raises(SessionError, match="half done"):
            with db.session_manager(auto_commit=True):
                generator: Any = joined(savepoint=False)
                next(generator)
                elsewhere(where, fail)

        assert [] == names(db)

    def test_collected(self, db: Database, pools: Pools) -> None:
        """A generator that is dropped gives all back, in whatever context."""

        def store() -> Iterator[None]:
            with db.session_manager(auto_commit=True) as session:
                session.execute(insert(Thing).values(name="a"))
                yield

        generators = [store()]
        copy_context().run(next, generators[0])
        assert 1 == len(pools.out)
        generators.clear()
        gc.collect()

        assert [] == names(db)

    @pytest.mark.parametrize("is_closed", [False, True])
    def test_in_another_task(self, loop: Loop, is_closed: bool) -> None:
        """The savepoint of an async generator as well."""

        async def inner() -> AsyncIterator[None]:
            async with async_session_manager(savepoint=True) as session:
                await session.execute(insert(Thing).values(name="inside"))
                yield

        async def main() -> None:
            async with loop.db.async_session_manager(auto_commit=True) as session:
                generator: Any = inner()
                await anext(generator)

                async def finish() -> None:
                    if is_closed:
                        await generator.aclose()
                    else:
                        await anext(generator, None)

                await asyncio.create_task(finish())
                assert session is SESSION_CONTEXT.get()
                session.add(Thing(name="outside"))

        loop.runner.run(main())

        expected = ["outside"] if is_closed else ["inside", "outside"]
        assert expected == loop.rows()


def elsewhere(where: str, step: Callable[[], Any]) -> None:
    if where == "context":
        copy_context().run(step)
    else:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(step).result()


# Savepoints that end in other ways


class TestSavepoints:
    """What a savepoint takes along, however it goes."""

    @pytest.fixture
    def db(self, db: Database) -> Database:
        with db.session() as session:
            session.add(Thing(name="first"))
            session.commit()
        return db

    @pytest.mark.parametrize("is_plain", [False, True])
    def test_callbacks_after_a_failing_flush(
        self, db: Database, is_plain: bool
    ) -> None:
        """Rolled back by a flush that failed, it takes its callbacks along."""
        ran: list[str] = []
        with db.session_manager(auto_commit=True) as session:
            with pytest.raises(IntegrityError):
                with (
                    session.begin_nested()
                    if is_plain
                    else session_manager(savepoint=True)
                ):
                    session.on_commit(lambda: ran.append("inside"))
                    session.add(Thing(name="first"))
                    session.flush()
            session.on_commit(lambda: ran.append("outside"))

        assert ["outside"] == ran

    def test_half_done_after_a_failing_flush(self, db: Database) -> None:
        """So it does what a block inside of it has done by halves."""
        with db.session_manager(auto_commit=True) as session:
            with pytest.raises(IntegrityError):
                with session_manager(savepoint=True):
                    with session_manager():
                        session.add(Thing(name="first"))
                        session.flush()
            session.add(Thing(name="whole"))

        assert ["first", "whole"] == names(db)

    def test_half_done_twice(self, db: Database) -> None:
        """Undoing a second half does not make up for the first."""

        def half(name: str) -> None:
            with pytest.raises(Boom):
                with session_manager() as session:
                    session.execute(insert(Thing).values(name=name))
                    raise Boom

        with pytest.raises(SessionError, match="half done"):
            with db.session_manager(auto_commit=True):
                half("half")
                with pytest.raises(KeyError):
                    with session_manager(savepoint=True):
                        half("undone")
                        raise KeyError

        assert ["first"] == names(db)

    def test_that_reads(self, db: Database) -> None:
        """One that was to read, and has undone what it changed, is no half."""
        with db.session_manager(auto_commit=True) as session:
            with pytest.raises(RoutingError):
                with session_manager(savepoint=True, role="read"):
                    session.add(Thing(name="refused"))
                    session.flush()
            session.add(Thing(name="whole"))

        assert ["first", "whole"] == names(db)

    def test_refused_on_entering(self, db: Database) -> None:
        """A savepoint that could not begin says nothing about what comes after."""
        with db.session_manager(auto_commit=True) as session:
            with session_manager(role="read"):
                session.add(Thing(name="refused"))
                with pytest.raises(RoutingError):
                    session_manager(savepoint=True, role="read").__enter__()
                session.rollback()
            session.add(Thing(name="whole"))
            with session_manager(role="read"):
                count = select(func.count()).select_from(Thing)
                assert 2 == session.scalar(count)

        assert ["first", "whole"] == names(db)

    def test_ended_by_hand(self, db: Database) -> None:
        """After a commit by hand, what a failing block writes is half done."""
        with pytest.raises(SessionError, match="half done"):
            with db.session_manager(auto_commit=True) as session:
                with pytest.raises(Boom):
                    with session_manager(savepoint=True):
                        session.add(Thing(name="whole"))
                        session.commit()
                        session.add(Thing(name="half"))
                        session.flush()
                        raise Boom

        assert ["first", "whole"] == names(db)


# Readers beside writers


class TestReaders:
    def test_inside_of_a_joined_block(self, db: Database) -> None:
        """What the block around it has yet to write is not the reader's."""
        with db.session_manager(auto_commit=True):
            with session_manager() as session:
                session.add(Thing(name="a"))
                with session_manager(role="read"):
                    assert ["a"] == [*session.scalars(select(Thing.name))]

        assert ["a"] == names(db)

    def test_cancelled_as_it_begins(self, loop: Loop) -> None:
        """Wherever a reading block is cancelled, its connection can write again."""

        async def read(number: int) -> None:
            loop.interruptions.aim(number, 1)
            loop.interruptions.start()
            try:
                async with loop.db.async_session_manager(role="read") as session:
                    await session.scalars(select(Thing))
            except asyncio.CancelledError:
                pass
            finally:
                loop.interruptions.stop()

        async def write(name: str) -> None:
            async with loop.db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name=name))

        loop.runner.run(read(0))
        awaits = loop.interruptions.count
        for number in range(1, awaits + 1):
            loop.runner.run(read(number))
            # A cursor that was cut off holds a lock of SQLite until it is collected.
            gc.collect()
            loop.runner.run(write(f"{number:02}"))

        assert awaits == len(loop.rows())


# Callbacks that wait for a transaction


def test_callback_before_a_transaction(db: Database) -> None:
    """It waits for the next one, whatever is done that begins none."""
    ran: list[str] = []
    factory = session_factory(routing=db.manager, expire_on_commit=False)
    with session_manager(using=factory, auto_commit=True) as session:
        thing = Thing(name="a")
        session.add(thing)
        session.commit()
        session.on_commit(lambda: ran.append("commit"))
        session.on_rollback(lambda: ran.append("rollback"))
        assert thing is session.get(Thing, thing.id)
        assert [] == ran
        session.add(Thing(name="b"))

    assert ["commit"] == ran
