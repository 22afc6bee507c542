"""Scopes and tasks: cancellation, and what another task sees. Async only."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, func, insert, select
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.util import await_only

from tenure import (
    SESSION_CONTEXT,
    AsyncSession,
    Database,
    SessionError,
    async_scoped_session,
    async_session_factory,
    async_session_manager,
    current_async_session,
    scoped_session,
    session_manager,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_left(pools: Pools) -> AsyncIterator[None]:
    """Whatever a test does, connections are back and clean, and nothing is current."""
    yield
    assert [] == pools.out
    assert [] == pools.dirty
    assert SESSION_CONTEXT.get() is None


@pytest.fixture
async def db(async_url: str, nothing_left: None) -> AsyncIterator[Database]:
    db = Database(async_url)
    await db.acreate_all(Base.metadata)
    yield db
    await db.adispose()


async def names(db: Database) -> list[str]:
    async with db.async_session() as session:
        return sorted(await session.scalars(select(Thing.name)))


class Gate:
    """Holds up whoever passes, until it is opened."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    def hold(self, *arguments: Any) -> None:
        """Wait here, as a statement would."""
        self.reached.set()
        await_only(self.open.wait())


async def cancelled(task: asyncio.Task[Any]) -> bool:
    await asyncio.wait([task])
    return task.cancelled()


class TestCancellation:
    async def test_in_the_block(self, db: Database) -> None:
        """A block that is cancelled is rolled back."""
        reached = asyncio.Event()

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True) as session:
                await session.execute(insert(Thing).values(name="a"))
                reached.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel()

        assert await cancelled(task)
        assert [] == await names(db)

    @pytest.mark.postgresql
    async def test_in_a_statement(self, db: Database) -> None:
        """Cancelled in the middle of a statement, the connection is thrown away."""
        if db.manager["default"].get_backend_name() != "postgresql":
            pytest.skip("needs a statement that takes its time")

        reached = asyncio.Event()

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True) as session:
                await session.execute(insert(Thing).values(name="a"))
                connection = await session.connection()
                event.listen(
                    connection.sync_connection,
                    "before_cursor_execute",
                    lambda *arguments: reached.set(),
                )
                await session.execute(select(func.pg_sleep(60)))

        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel()

        assert await cancelled(task)
        assert [] == await names(db)

    async def test_same_error(self, db: Database) -> None:
        """The cancellation that comes out is the one that came in."""
        seen: list[BaseException] = []

        async def work() -> None:
            try:
                async with db.async_session_manager():
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError as error:
                        seen.append(error)
                        raise
            except asyncio.CancelledError as error:
                seen.append(error)
                raise

        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel("please")

        assert await cancelled(task)
        first, second = seen
        assert first is second

    @pytest.mark.parametrize("times", [1, 2, 5])
    async def test_in_the_rollback(self, db: Database, times: int) -> None:
        """Cancelled again and again, the rollback still runs to its end."""
        gate = Gate()

        async def work() -> None:
            async with db.async_session_manager() as session:
                await session.execute(insert(Thing).values(name="a"))
                event.listen(session.sync_session, "after_rollback", gate.hold)
                raise KeyError

        task = asyncio.create_task(work())
        await gate.reached.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        gate.open.set()

        assert await cancelled(task)
        assert [] == await names(db)

    async def test_twice(self, db: Database) -> None:
        """Cancelled in the block and in its rollback, the first comes out."""
        gate = Gate()
        reached = asyncio.Event()

        async def work() -> None:
            async with db.async_session_manager() as session:
                await session.execute(insert(Thing).values(name="a"))
                event.listen(session.sync_session, "after_rollback", gate.hold)
                reached.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await reached.wait()
        task.cancel("first")
        await gate.reached.wait()
        task.cancel("second")
        await asyncio.sleep(0)
        gate.open.set()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task

        assert ("first",) == caught.value.args
        assert [] == await names(db)

    async def test_in_the_flush_of_the_commit(self, db: Database) -> None:
        """Cancelled before the commit is under way, nothing is kept."""
        gate = Gate()

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                event.listen(session.sync_session, "after_flush", gate.hold)

        task = asyncio.create_task(work())
        await gate.reached.wait()
        task.cancel()

        assert await cancelled(task)
        assert [] == await names(db)

    @pytest.mark.parametrize("times", [1, 3])
    async def test_in_the_commit(self, db: Database, times: int) -> None:
        """A commit under way is not interrupted: what was sent is known to be kept."""
        gate = Gate()

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                event.listen(session.sync_session, "before_commit", gate.hold)

        task = asyncio.create_task(work())
        await gate.reached.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        gate.open.set()

        assert await cancelled(task)
        assert ["a"] == await names(db)

    async def test_in_a_failing_commit(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If that commit fails, it is logged; the cancellation comes out."""
        gate = Gate()

        def fail(session: Any) -> None:
            gate.hold()
            raise KeyError("refused")

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                event.listen(session.sync_session, "before_commit", fail)

        task = asyncio.create_task(work())
        await gate.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.open.set()

        assert await cancelled(task)
        assert "refused" in caplog.text
        assert [] == await names(db)

    async def test_in_a_savepoint(self, db: Database) -> None:
        """A savepoint goes back as a whole, however often it is cancelled."""
        gate = Gate()

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True) as outer:
                outer.add(Thing(name="a"))
                try:
                    async with async_session_manager(savepoint=True) as inner:
                        await inner.execute(insert(Thing).values(name="b"))
                        event.listen(
                            inner.sync_session, "after_soft_rollback", gate.hold
                        )
                        raise KeyError
                except asyncio.CancelledError:
                    pass

        task = asyncio.create_task(work())
        await gate.reached.wait()
        task.cancel()
        await asyncio.sleep(0)
        gate.open.set()
        await task

        assert ["a"] == await names(db)

    async def test_timeout(self, db: Database) -> None:
        """A timeout around a block stays a timeout."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01), db.async_session_manager() as session:
                await session.execute(insert(Thing).values(name="a"))
                await asyncio.Event().wait()

        assert [] == await names(db)

    async def test_sibling_in_a_group(self, db: Database) -> None:
        """A task group that fails rolls back what its tasks had begun."""
        reached = asyncio.Event()

        async def work() -> None:
            async with db.async_session_manager(auto_commit=True, new=True) as session:
                await session.execute(insert(Thing).values(name="a"))
                reached.set()
                await asyncio.Event().wait()

        async def fail() -> None:
            await reached.wait()
            raise KeyError

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(work())
                group.create_task(fail())

        assert [] == await names(db)


async def all_back(pools: Pools) -> None:
    """Wait until nothing is lent any more."""
    changed = asyncio.Event()
    pools.moved = changed.set
    while pools.out:
        changed.clear()
        await changed.wait()


async def step(generator: AsyncIterator[AsyncSession]) -> AsyncSession | None:
    return await anext(generator, None)


class TestOtherTasks:
    async def test_left_in_another(self, db: Database) -> None:
        """A generator finished in another task ends its block there."""

        async def store() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                yield session

        generator = store()

        assert await asyncio.create_task(step(generator)) is not None
        assert SESSION_CONTEXT.get() is None
        assert await asyncio.create_task(step(generator)) is None
        assert ["a"] == await names(db)

    async def test_left_inside_of_another_block(self, db: Database) -> None:
        """A block left in another context leaves alone what is current there."""

        async def store() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                yield session

        generator = store()
        await asyncio.create_task(step(generator))
        async with db.async_session_manager() as session:
            await anext(generator, None)
            assert session is current_async_session()

        assert ["a"] == await names(db)

    async def test_joined(self, db: Database) -> None:
        """A task joins the block that it was started in."""
        async with db.async_session_manager() as session:

            async def work() -> bool:
                async with async_session_manager() as joined:
                    return joined is session

            assert await asyncio.create_task(work())

    async def test_outlives_the_block(self, db: Database) -> None:
        """A task that outlives that block gets a session of its own."""
        go = asyncio.Event()

        async def work() -> AsyncSession:
            await go.wait()
            with pytest.raises(SessionError, match="no session is current"):
                current_async_session()
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                return session

        async with db.async_session_manager() as first:
            task = asyncio.create_task(work())
        go.set()

        assert first is not await task
        assert ["a"] == await names(db)

    async def test_collected(self, db: Database, pools: Pools) -> None:
        """A generator that nobody finishes is ended when it is collected."""

        async def store() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(auto_commit=True) as session:
                await session.execute(insert(Thing).values(name="a"))
                yield session

        async def start() -> None:
            await anext(store())

        await asyncio.create_task(start())
        gc.collect()
        await all_back(pools)

        assert [] == await names(db)


class TestScopedRegistry:
    async def test_forgets_finished_tasks(self, db: Database) -> None:
        """Of ten thousand tasks that are done nothing is left."""
        factory = async_session_factory(routing=db.manager, scoped=True)

        async def work() -> AsyncSession:
            assert factory() is factory()
            return factory()

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sessions = await asyncio.gather(*(work() for _ in range(10_000)))
            await asyncio.sleep(0)

        assert 10_000 == len(set(map(id, sessions)))
        assert 0 == len(factory.registry.registry)
        assert 10_000 == len({str(warning.message) for warning in caught})

    async def test_removed(self, db: Database) -> None:
        """A task that removes its session is not reminded of it."""
        factory = async_session_factory(routing=db.manager, scoped=True)

        async def work() -> None:
            await factory.scalars(select(Thing))
            await factory.remove()

        await asyncio.gather(*(work() for _ in range(10)))
        await asyncio.sleep(0)

        assert 0 == len(factory.registry.registry)

    async def test_flat_memory(self, db: Database) -> None:
        """Two hundred thousand tasks leave nothing behind."""
        factory = async_session_factory(routing=db.manager, scoped=True)

        async def work() -> None:
            factory()

        async def many(number: int) -> int:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                for _ in range(number // 1_000):
                    await asyncio.gather(*(work() for _ in range(1_000)))
            gc.collect()
            return len(gc.get_objects())

        before = await many(10_000)
        after = await many(200_000)

        assert 500 > after - before

    async def test_closes_what_is_open(self, db: Database, pools: Pools) -> None:
        """A task that ends within a transaction is named, and its session closed."""
        factory = async_session_factory(routing=db.manager, scoped=True)

        async def work() -> None:
            await factory.execute(insert(Thing).values(name="a"))

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            await asyncio.create_task(work(), name="forgetful")
            await all_back(pools)

        messages = [str(warning.message) for warning in caught]
        assert 1 == len(messages)
        assert "task 'forgetful' ended inside a transaction" in messages[0]
        assert [] == await names(db)

    async def test_left_in_another_task(self, db: Database) -> None:
        """A block that is left in another task leaves the registry as well."""
        factory = async_session_factory(routing=db.manager, scoped=True)
        block = async_session_manager(using=factory)
        session = await block.__aenter__()
        assert session is factory()
        await asyncio.create_task(block.__aexit__(None, None, None))

        assert 0 == len(factory.registry.registry)
        with pytest.raises(SessionError, match="no session is current"):
            current_async_session()
        SESSION_CONTEXT.set(None)


class TestKinds:
    """The two kinds of sessions, side by side."""

    async def test_current_is_sync(self, db: Database) -> None:
        """An async block cannot join a sync session, and says what to do."""
        with session_manager(using=db.session) as session:
            with pytest.raises(SessionError) as caught:
                await async_session_manager().__aenter__()
            with pytest.raises(SessionError, match=r"current_session\(\)"):
                current_async_session()
            async with db.async_session_manager(new=True):
                pass
            assert session is SESSION_CONTEXT.get()

        for words in ("async_session_manager()", "current Session", "new=True"):
            assert words in str(caught.value)
        assert "run_sync" in str(caught.value)

    async def test_current_is_async(self, db: Database) -> None:
        """A sync block cannot join an async session, and says what to do."""
        async with db.async_session_manager() as session:
            with pytest.raises(SessionError) as caught:
                session_manager(using=db.session).__enter__()
            with session_manager(using=db.session, new=True):
                pass
            assert session is current_async_session()

        for words in ("session_manager()", "current AsyncSession", "new=True"):
            assert words in str(caught.value)
        assert "run_sync" in str(caught.value)

    async def test_wrong_factory(self, db: Database) -> None:
        """A factory of the other kind is refused before the block runs."""
        with pytest.raises(SessionError, match=r"use async_session_manager\(\)"):
            session_manager(using=db.async_session).__enter__()
        with pytest.raises(SessionError, match=r"use session_manager\(\)"):
            await async_session_manager(using=db.session).__aenter__()

    async def test_wrong_function(self) -> None:
        """A decorator for the other kind of function is named."""

        async def work() -> None: ...

        def sync_work() -> None: ...

        with pytest.raises(SessionError, match="use async_session_manager"):
            session_manager()(work)
        with pytest.raises(SessionError, match="use session_manager"):
            async_session_manager()(sync_work)  # type: ignore[arg-type]  # on purpose

    async def test_wrong_registry(self, db: Database) -> None:
        """A registry refuses a factory of the other kind, and says which to use."""
        with pytest.raises(SessionError, match="use async_scoped_session"):
            scoped_session(db.async_session)  # type: ignore[type-var]  # on purpose
        with pytest.raises(SessionError, match="use scoped_session"):
            async_scoped_session(db.session)  # type: ignore[type-var]  # on purpose

    async def test_other_sync_class(self, db: Database) -> None:
        """A sync session that cannot be routed is refused where it is given."""
        with pytest.raises(SessionError, match="routing needs a sync session"):
            AsyncSession(routing=db.manager, sync_session_class=PlainSession)
        async with AsyncSession(sync_session_class=PlainSession) as session:
            with pytest.raises(SessionError, match="needs a sync session of tenure"):
                await session.commit(expire=True)

    async def test_shared_memory(self) -> None:
        """Both faces of SQLite's memory see one database."""
        async with Database("sqlite://") as db:
            await db.acreate_all(Base.metadata)
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
            with db.session() as sync_session:
                assert ["a"] == list(sync_session.scalars(select(Thing.name)))
