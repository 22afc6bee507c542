"""One session, two users at once: the second is told, the first is unharmed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from sqlalchemy import event, select, text

from tenure import (
    SESSION_CONTEXT,
    AsyncSession,
    ConcurrentUseError,
    Database,
    Session,
    SessionError,
    async_session_manager,
    current_async_session,
    gather,
    session_manager,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db
        assert [] == pools.out
        assert [] == pools.dirty
        assert [] == db.report()


@pytest.fixture
def sync_db(url: str, pools: Pools) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        yield db
        assert [] == pools.out
        assert [] == pools.dirty


async def count(session: AsyncSession) -> int:
    return len((await session.scalars(select(Thing))).all())


class Gate:
    """Holds a thread inside of the driver until another has tried."""

    def __init__(self, db: Database) -> None:
        self.is_inside = threading.Event()
        self.may_go_on = threading.Event()
        self._engine = db.manager.engines["default"]

    def __enter__(self) -> Self:
        event.listen(self._engine, "before_cursor_execute", self._wait)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.may_go_on.set()
        event.remove(self._engine, "before_cursor_execute", self._wait)

    def _wait(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "held" in statement:
            self.is_inside.set()
            assert self.may_go_on.wait(30)


@pytest.mark.anyio
class TestTasks:
    @pytest.mark.parametrize("is_warm", [False, True])
    async def test_gather(self, db: Database, is_warm: bool) -> None:
        """Of two queries at once one is refused, before the driver is touched."""
        async with db.async_session() as session:
            if is_warm:
                await count(session)
            with count_statements(db.manager.async_engines["default"]) as statements:
                results = await asyncio.gather(
                    count(session), count(session), return_exceptions=True
                )

            refused = [each for each in results if each != 0]
            assert [ConcurrentUseError] == [type(each) for each in refused]
            assert 1 == statements.count
            assert 0 == await count(session)

    async def test_group(self, db: Database) -> None:
        """In a group the error comes out, and the block ends as it should."""
        with pytest.raises(ExceptionGroup) as caught:
            async with async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                async with asyncio.TaskGroup() as group:
                    group.create_task(count(session))
                    group.create_task(count(session))

        assert [ConcurrentUseError] == [type(e) for e in caught.value.exceptions]
        async with db.async_session() as session:
            assert 0 == await count(session)

    async def test_first_is_unharmed(self, db: Database) -> None:
        """What the first is doing goes on to its end, and can be committed."""
        async with db.async_session() as session:
            session.add(Thing(name="a"))
            first = asyncio.create_task(session.flush())
            await asyncio.sleep(0)
            with pytest.raises(ConcurrentUseError):
                await session.commit()
            await first
            await session.commit()

        async with db.async_session() as session:
            assert 1 == await count(session)

    @pytest.mark.parametrize(
        "call",
        [
            lambda session: session.execute(select(Thing)),
            lambda session: session.scalar(select(Thing)),
            lambda session: session.scalars(select(Thing)),
            lambda session: session.stream(select(Thing)),
            lambda session: session.get(Thing, 1),
            lambda session: session.merge(Thing(id=1, name="a")),
            lambda session: session.connection(),
            lambda session: session.commit(),
            lambda session: session.rollback(),
            lambda session: session.close(),
            lambda session: session.begin_nested().start(),
        ],
    )
    async def test_methods(
        self, db: Database, call: Callable[[AsyncSession], Any]
    ) -> None:
        """Whatever may talk to the database is refused."""
        async with db.async_session() as session:
            first = asyncio.create_task(count(session))
            await asyncio.sleep(0)
            with pytest.raises(ConcurrentUseError):
                await call(session)
            assert 0 == await first

    async def test_transaction_block(self, db: Database) -> None:
        """So is the end of a block of begin(), which does not ask the session."""
        async with db.async_session() as session:
            transaction = session.begin()
            await transaction.start()
            first = asyncio.create_task(count(session))
            await asyncio.sleep(0)
            with pytest.raises(ConcurrentUseError, match=r"commit\(\)"):
                await transaction.commit()
            await first
            await transaction.commit()

    async def test_message(self, db: Database) -> None:
        """The error names both tasks, both lines, and ways out."""

        async def reading(session: AsyncSession) -> None:
            await count(session)

        async with db.async_session() as session:
            first = asyncio.create_task(reading(session), name="first")
            await asyncio.sleep(0)
            second = asyncio.create_task(session.get(Thing, 1), name="second")
            await asyncio.wait([first, second])
        error = second.exception()

        assert isinstance(error, ConcurrentUseError)
        assert ("task 'first'", "task 'second'") == (error.first, error.second)
        assert error.first_line is not None
        assert (__file__, "count") == (error.first_line.file, error.first_line.function)
        assert "get" == error.doing
        for part in ("'first'", "'second'", "gather()", "on_concurrent='serialize'"):
            assert part in str(error)

    async def test_same_task(self, db: Database) -> None:
        """A session may be used from inside of itself: events, loaders, run_sync."""
        async with db.async_session() as session:
            core = session.sync_session

            def look(flushed: Session, *rest: Any) -> None:
                flushed.connection().execute(text("SELECT 1"))

            event.listen(core, "before_flush", look)
            session.add(Thing(name="a"))

            assert 1 == await count(session)

    async def test_one_after_the_other(self, db: Database) -> None:
        """Tasks may use a session in turns."""
        async with db.async_session() as session:
            for _ in range(3):
                assert 0 == await asyncio.create_task(count(session))

    async def test_left_while_in_use(self, db: Database) -> None:
        """A block that is left while a task of it is at work waits for it."""
        tasks = []
        async with async_session_manager() as session:
            tasks.append(asyncio.create_task(count(session)))
            await asyncio.sleep(0)
        assert [0] == await asyncio.gather(*tasks)

    async def test_plain_block_left_while_in_use(self, db: Database) -> None:
        """So does the block of a session itself."""
        tasks = []
        async with db.async_session() as session:
            tasks.append(asyncio.create_task(count(session)))
            await asyncio.sleep(0)
        assert [0] == await asyncio.gather(*tasks)

    async def test_used_while_it_ends(self, db: Database) -> None:
        """One who comes in between the end and the last word is waited for."""
        tasks: list[asyncio.Task[int]] = []
        async with async_session_manager() as session:
            await count(session)

            async def come_in() -> None:
                # Begins when the block has rolled back, before it is of no use.
                tasks.append(asyncio.create_task(count(session)))
                await asyncio.sleep(0)

            session.on_rollback(come_in)
        await asyncio.wait(tasks)

    async def test_used_afterwards(self, db: Database) -> None:
        """After its block a session begins nothing: nobody would end it."""
        async with async_session_manager() as session:
            pass
        with pytest.raises(SessionError, match=r"whose block has ended.*test_used_aft"):
            await count(session)
        session.add(Thing(name="a"))
        with pytest.raises(SessionError, match="whose block has ended"):
            await session.commit()
        await session.rollback()
        await session.close()

    async def test_savepoint_left_while_in_use(self, db: Database) -> None:
        """A savepoint is undone, though a task is inside of the session."""
        tasks = []
        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))
            await session.flush()
            with pytest.raises(ValueError, match="oh"):
                async with async_session_manager(savepoint=True):
                    session.add(Thing(name="b"))
                    await session.flush()
                    tasks.append(asyncio.create_task(count(session)))
                    await asyncio.sleep(0)
                    raise ValueError("oh")
            await asyncio.wait(tasks)
        async with db.async_session() as session:
            assert 1 == await count(session)

    async def test_waiting_for_the_end(self, db: Database) -> None:
        """One who waits behind the end of a block is told, not left waiting."""
        tasks = []
        async with async_session_manager() as session:
            await count(session)
            tasks.append(asyncio.create_task(count(session)))
            await asyncio.sleep(0)

            async def come_late() -> None:
                # The block waits for the first by now.
                await asyncio.sleep(0)
                await count(session)

            tasks.append(asyncio.create_task(come_late()))
        await asyncio.wait(tasks, timeout=30)

        assert all(task.done() for task in tasks)
        assert 0 == tasks[0].result()
        assert isinstance(tasks[1].exception(), SessionError)


@pytest.mark.anyio
class TestSerialize:
    @pytest.fixture
    async def db(self, async_url: str, pools: Pools) -> AsyncIterator[Database]:
        async with Database(async_url, on_concurrent="serialize") as db:
            await db.acreate_all(Base.metadata)
            yield db
            assert [] == pools.out

    async def test_tasks(self, db: Database) -> None:
        """Tasks wait for each other."""
        async with db.async_session() as session:
            session.add(Thing(name="a"))

            assert [1] * 20 == await asyncio.gather(
                *[count(session) for _ in range(20)]
            )

    async def test_cancelled(self, db: Database) -> None:
        """One that is cancelled while it waits gives its place to the next."""
        async with db.async_session() as session:
            tasks = [asyncio.create_task(count(session)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in tasks[1::2]:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)

        assert [0] * 10 == results[::2]
        assert [asyncio.CancelledError] * 10 == [type(each) for each in results[1::2]]

    async def test_arguments(self, async_url: str) -> None:
        """Nothing else can be chosen."""
        for make in (Session, AsyncSession, Database):
            with pytest.raises(
                SessionError, match="'raise' or 'serialize', not 'wait'"
            ):
                make(*[async_url] * (make is Database), on_concurrent="wait")


def test_everything_cancelled(pools: Pools, tmp_path: Path) -> None:
    """Who cancels all tasks there are, as a loop does that ends, leaks nothing."""

    async def work() -> None:
        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))
            await session.flush()
            asyncio.get_running_loop().call_soon(cancel_all)

    def cancel_all() -> None:
        for task in asyncio.all_tasks() - kept:
            task.cancel()

    async def main() -> None:
        kept.add(asyncio.current_task())
        async with Database(f"sqlite:///{tmp_path}/cancelled.db") as db:
            await db.acreate_all(Base.metadata)
            await asyncio.wait([asyncio.create_task(work())])
            assert [] == pools.out
            assert [] == db.report()

    kept: set[Any] = set()
    asyncio.run(main())


class TestThreads:
    def test_refused(self, sync_db: Database) -> None:
        """A second thread is refused while the first is inside."""
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(1, "first"))
            session = stack.enter_context(sync_db.session())
            gate = stack.enter_context(Gate(sync_db))
            first = pool.submit(session.execute, text("SELECT 'held'"))
            assert gate.is_inside.wait(30)
            with pytest.raises(ConcurrentUseError) as caught:
                session.execute(text("SELECT 1"))
            gate.may_go_on.set()

            assert "held" == first.result(30).scalar()
        assert "thread 'first_0'" == caught.value.first
        assert "thread 'MainThread'" == caught.value.second
        assert caught.value.second_line.function == "test_refused"

    def test_in_turns(self, sync_db: Database) -> None:
        """Threads may use a session one after the other."""
        with ThreadPoolExecutor(1) as pool, sync_db.session() as session:
            session.add(Thing(name="a"))
            pool.submit(session.flush).result(30)
            assert 1 == len(session.scalars(select(Thing)).all())
            pool.submit(session.commit).result(30)

    def test_serialize(self, url: str, pools: Pools) -> None:
        """They may wait for each other, too."""
        with Database(url, on_concurrent="serialize") as db:
            db.create_all(Base.metadata)
            with ThreadPoolExecutor(4) as pool, db.session() as session:
                done = [
                    pool.submit(session.scalar, text(f"SELECT {number}"))
                    for number in range(40)
                ]

                assert [*range(40)] == [each.result(30) for each in done]

    def test_task_and_thread(self, sync_db: Database) -> None:
        """A task that uses a sync session is refused while a thread is inside."""

        async def use(session: Session) -> None:
            session.execute(text("SELECT 1"))

        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(1, "first"))
            session = stack.enter_context(sync_db.session())
            gate = stack.enter_context(Gate(sync_db))
            first = pool.submit(session.execute, text("SELECT 'held'"))
            assert gate.is_inside.wait(30)
            with pytest.raises(ConcurrentUseError, match="thread 'first_0' is using"):
                asyncio.run(use(session))
            gate.may_go_on.set()
            first.result(30)

    def test_left_while_in_use(self, sync_db: Database) -> None:
        """A block that is left while a thread is at work waits for it."""
        with ThreadPoolExecutor(2) as pool, Gate(sync_db) as gate:
            block = session_manager()
            session = block.__enter__()
            first = pool.submit(session.execute, text("SELECT 'held'"))
            assert gate.is_inside.wait(30)
            leaving = pool.submit(block.__exit__, None, None, None)
            gate.may_go_on.set()
            leaving.result(30)

            assert "held" == first.result(30).scalar()
        with pytest.raises(SessionError, match="whose block has ended"):
            session.execute(text("SELECT 1"))
        assert SESSION_CONTEXT.get() is session
        SESSION_CONTEXT.set(None)

    def test_thread_and_task(self) -> None:
        """An async session that a task is using is not for a thread."""

        async def run() -> None:
            async with Database("sqlite+aiosqlite://") as db:
                async with db.async_session() as session:
                    await session.execute(text("SELECT 1"))
                    first = asyncio.create_task(session.scalar(text("SELECT 1")))
                    await asyncio.sleep(0)
                    core = session.sync_session
                    with pytest.raises(ConcurrentUseError, match="thread 'asyncio"):
                        await asyncio.to_thread(core.execute, text("SELECT 1"))
                    assert 1 == await first

        asyncio.run(run())

    def test_interrupted(self, sync_db: Database) -> None:
        """Wherever an interrupt comes, the turn is given back."""

        class Interrupted(dict[str, Any]):
            def setdefault(self, key: str, default: Any = None) -> Any:
                super().setdefault(key, default)
                raise KeyboardInterrupt

        with sync_db.session() as session:
            turn, session._guard.turn = session._guard.turn, Interrupted()
            with pytest.raises(KeyboardInterrupt):
                session.execute(text("SELECT 1"))
            assert {} == session._guard.turn
            session._guard.turn = turn

    def test_ended_from_inside(self, sync_db: Database) -> None:
        """A block may be left by what its own session calls."""
        block = session_manager()
        session = block.__enter__()
        event.listen(session, "before_flush", lambda *_: block.__exit__(*[None] * 3))
        session.add(Thing(name="a"))
        with suppress(Exception):
            # SQLAlchemy has no word for it.
            session.flush()

        assert not session.in_transaction()


@pytest.mark.anyio
class TestGather:
    async def test_results(self, db: Database) -> None:
        """The results come in order; each function has a session of its own."""
        sessions = []

        def make(number: int) -> Callable[[], Any]:
            async def function() -> int:
                sessions.append(current_async_session())
                return await count(current_async_session()) + number

            return function

        async with async_session_manager() as session:
            assert [0, 1, 2] == await gather(*map(make, range(3)))
            assert session is current_async_session()
        assert 4 == len({*map(id, [session, *sessions])})

    async def test_commits(self, db: Database) -> None:
        """What a function has written is committed, unless told otherwise."""

        async def write() -> None:
            current_async_session().add(Thing(name="a"))

        await gather(write, auto_commit=False)
        async with db.async_session() as session:
            assert 0 == await count(session)
            await gather(write)
            assert 1 == await count(session)

    @pytest.mark.parametrize(("limit", "most"), [(None, 2), (1, 1), (3, 3)])
    async def test_limit(self, async_url: str, limit: int | None, most: int) -> None:
        """As many run at once as the pool keeps connections, or as the limit says."""
        running = highest = 0

        async def function() -> None:
            nonlocal running, highest
            running += 1
            highest = max(highest, running)
            await current_async_session().scalar(text("SELECT 1"))
            for _ in range(5):
                await asyncio.sleep(0)
            running -= 1

        async with Database(async_url, pool_size=2) as db:
            await gather(*[function] * 10, limit=limit, using=db.async_session)

        assert most == highest

    async def test_first_error(self, db: Database) -> None:
        """The first error cancels the rest, which have ended when it is raised."""
        ended = []
        failing = asyncio.Event()

        async def wait() -> None:
            try:
                await current_async_session().scalar(text("SELECT 1"))
                failing.set()
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        async def fail() -> None:
            await failing.wait()
            raise ValueError("oh")

        with pytest.raises(ValueError, match="oh"):
            await gather(wait, wait, fail)

        assert [1, 1] == ended

    async def test_cancelled(self, db: Database) -> None:
        """Cancelled itself, it takes all along."""
        ended = []
        started = asyncio.Event()

        async def wait() -> None:
            try:
                await current_async_session().scalar(text("SELECT 1"))
                started.set()
                await asyncio.Event().wait()
            finally:
                ended.append(1)

        task = asyncio.create_task(gather(wait, wait))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert [1, 1] == ended

    async def test_nothing(self, db: Database) -> None:
        """Nothing gives nothing."""
        assert [] == await gather()

    async def test_coroutine(self, db: Database) -> None:
        """A coroutine is no function: it could not be run in a scope of its own."""

        async def function() -> None:
            pass

        wrong: Any = function()
        with pytest.raises(SessionError, match="give the function itself"):
            await gather(function, wrong)

    @pytest.mark.parametrize("limit", [0, -1, "3"])
    async def test_wrong_limit(self, db: Database, limit: Any) -> None:
        """A limit is a number from 1 on."""
        with pytest.raises(SessionError, match="a number from 1 on"):
            await gather(asyncio.Event().wait, limit=limit)

    async def test_without_factory(self) -> None:
        """Without a factory it says where one is looked for."""
        with pytest.raises(SessionError, match="found no session factory"):
            await gather(asyncio.Event().wait)

    async def test_factory_of_the_current_session(self, async_url: str) -> None:
        """The sessions come from where the current one does."""
        async with Database(async_url) as db, Database("sqlite://") as other:
            assert other.manager is not db.manager

            async def look() -> Any:
                return current_async_session().routing

            async with db.async_session_manager():
                assert [db.manager] == await gather(look)
            assert [other.manager] == await gather(look)
