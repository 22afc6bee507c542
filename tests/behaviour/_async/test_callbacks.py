"""What runs after a commit or a rollback: once, after the end, whatever way it came."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import ArgumentError, IntegrityError

from tenure import (
    SESSION_CONTEXT,
    AsyncSession,
    Database,
    SessionError,
    async_session_factory,
    async_session_manager,
    current_async_session,
    on_commit,
    on_rollback,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db
    assert [] == pools.out
    assert [] == pools.dirty


class Log(list[str]):
    """What has run."""

    def of(self, name: str) -> Any:
        return lambda: self.append(name)

    def both(self, session: AsyncSession, name: str = "") -> None:
        session.on_commit(self.of(f"commit{name}"))
        session.on_rollback(self.of(f"rollback{name}"))


@pytest.fixture
def ran() -> Log:
    return Log()


async def names(db: Database) -> list[str]:
    async with db.async_session() as session:
        return [*await session.scalars(select(Thing.name).order_by(Thing.name))]


class TestEndings:
    async def test_commit(self, db: Database, ran: Log) -> None:
        """After a commit those of commits run, once."""
        async with db.async_session() as session:
            ran.both(session)
            session.add(Thing(name="a"))
            assert [] == ran
            await session.commit()
            assert ["commit"] == ran
            await session.commit()

        assert ["commit"] == ran

    async def test_rollback(self, db: Database, ran: Log) -> None:
        """After a rollback those of rollbacks run, once."""
        async with db.async_session() as session:
            session.add(Thing(name="a"))
            await session.flush()
            ran.both(session)
            await session.rollback()
            assert ["rollback"] == ran
            await session.rollback()

        assert ["rollback"] == ran

    @pytest.mark.parametrize("writes", [False, True])
    async def test_close(self, db: Database, ran: Log, writes: bool) -> None:
        """Closing without a commit is a rollback."""
        async with db.async_session() as session:
            ran.both(session)
            if writes:
                session.add(Thing(name="a"))
                await session.flush()

        assert ["rollback"] == ran

    async def test_begin(self, db: Database, ran: Log) -> None:
        """A block of begin() ends the transaction, and they run."""
        async with db.async_session() as session:
            async with session.begin():
                ran.both(session, " 1")
                session.add(Thing(name="a"))
            assert ["commit 1"] == ran
            with pytest.raises(ValueError, match="oh"):
                async with session.begin():
                    ran.both(session, " 2")
                    raise ValueError("oh")

        assert ["commit 1", "rollback 2"] == ran

    async def test_factory_begin(self, db: Database, ran: Log) -> None:
        """The block of a factory's begin() as well."""
        async with db.async_session.begin() as session:
            ran.both(session)

        assert ["commit"] == ran

    @pytest.mark.parametrize("auto_commit", [False, True])
    async def test_block(self, db: Database, ran: Log, auto_commit: bool) -> None:
        """At the end of a block, according to how it ends."""
        async with async_session_manager(auto_commit=auto_commit) as session:
            ran.both(session)
            session.add(Thing(name="a"))

        assert ["commit" if auto_commit else "rollback"] == ran

    async def test_failing_block(self, db: Database, ran: Log) -> None:
        """A block that fails rolls back, and raises its own error."""
        with pytest.raises(ValueError, match="oh"):
            async with async_session_manager(auto_commit=True) as session:
                ran.both(session)
                raise ValueError("oh")

        assert ["rollback"] == ran

    async def test_failing_commit(self, db: Database, ran: Log) -> None:
        """A commit that fails is a rollback."""
        with pytest.raises(IntegrityError):
            async with async_session_manager(auto_commit=True) as session:
                ran.both(session)
                session.add_all([Thing(name="a"), Thing(name="a")])

        assert ["rollback"] == ran

    async def test_joined_block(self, db: Database, ran: Log) -> None:
        """Those of a block that has joined wait for the owner's end."""
        async with async_session_manager(auto_commit=True):
            async with async_session_manager(auto_commit=True) as session:
                ran.both(session)
            assert [] == ran

        assert ["commit"] == ran

    async def test_in_order(self, db: Database, ran: Log) -> None:
        """They run in the order they were registered."""
        async with async_session_manager(auto_commit=True) as session:
            for name in "abc":
                session.on_commit(ran.of(name))

        assert ["a", "b", "c"] == ran

    async def test_before_begin(self, db: Database, ran: Log) -> None:
        """Registering begins nothing; they belong to the transaction that follows."""
        async with db.async_session() as session:
            ran.both(session)
            assert not session.in_transaction()
            async with session.begin():
                session.add(Thing(name="a"))

        assert ["commit"] == ran

    async def test_row_is_there(self, db: Database) -> None:
        """When they run, others can see what was committed."""
        seen: list[list[str]] = []

        async def look() -> None:
            seen.append(await names(db))

        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))
            session.on_commit(look)

        assert [["a"]] == seen


class TestSavepoints:
    async def test_released(self, db: Database, ran: Log) -> None:
        """Those of a savepoint that is released run at the end."""
        async with async_session_manager(auto_commit=True) as session:
            async with session.begin_nested():
                ran.both(session)
            assert [] == ran

        assert ["commit"] == ran

    async def test_rolled_back(self, db: Database, ran: Log) -> None:
        """Those of a savepoint that is rolled back are dropped; others stay."""
        async with async_session_manager(auto_commit=True) as session:
            ran.both(session, " before")
            with pytest.raises(ValueError, match="oh"):
                async with session.begin_nested():
                    ran.both(session, " inside")
                    raise ValueError("oh")
            ran.both(session, " after")

        assert ["commit before", "commit after"] == ran

    async def test_nested(self, db: Database, ran: Log) -> None:
        """One that was released goes with the savepoint around it."""
        async with async_session_manager(auto_commit=True) as session:
            outer = await session.begin_nested()
            async with session.begin_nested():
                ran.both(session)
            await outer.rollback()

        assert [] == ran

    async def test_block(self, db: Database, ran: Log) -> None:
        """A block in a savepoint that fails takes its own along."""
        async with async_session_manager(auto_commit=True) as session:
            ran.both(session, " outer")
            with pytest.raises(ValueError, match="oh"):
                async with async_session_manager(savepoint=True):
                    on_commit(ran.of("commit inner"))
                    raise ValueError("oh")

        assert ["commit outer"] == ran

    async def test_failing_flush(self, db: Database, ran: Log) -> None:
        """A flush that fails in a savepoint drops those of the savepoint only."""
        async with async_session_manager(auto_commit=True) as session:
            ran.both(session, " outer")
            with pytest.raises(IntegrityError):
                async with session.begin_nested():
                    ran.both(session, " inner")
                    session.add_all([Thing(name="a"), Thing(name="a")])

        assert ["commit outer"] == ran


class TestErrors:
    async def test_commit_stays(
        self, db: Database, ran: Log, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that fails undoes nothing; the rest run, and the first is raised."""

        def fail(why: str) -> Any:
            def failing() -> None:
                raise LookupError(why)

            return failing

        with caplog.at_level(logging.ERROR, "tenure"):
            with pytest.raises(LookupError, match="first"):
                async with async_session_manager(auto_commit=True) as session:
                    session.add(Thing(name="a"))
                    session.on_commit(fail("first"))
                    session.on_commit(ran.of("between"))
                    session.on_commit(fail("second"))
                    session.on_commit(ran.of("last"))

        assert ["between", "last"] == ran
        assert ["a"] == await names(db)
        assert 2 == len(caplog.records)

    async def test_block_error_stays(self, db: Database) -> None:
        """The error of the block comes first; the callback's is a note of it."""

        def fail() -> None:
            raise LookupError("afterwards")

        with pytest.raises(ValueError, match="oh") as caught:
            async with async_session_manager() as session:
                session.on_rollback(fail)
                raise ValueError("oh")

        assert "afterwards" in "".join(caught.value.__notes__)

    async def test_session_goes_on(self, db: Database) -> None:
        """After one has failed the session can be used."""

        def fail() -> None:
            raise LookupError("oh")

        async with db.async_session() as session:
            session.add(Thing(name="a"))
            session.on_commit(fail)
            with pytest.raises(LookupError):
                await session.commit()
            session.add(Thing(name="b"))
            await session.commit()

        assert ["a", "b"] == await names(db)

    @pytest.mark.parametrize("wrong", [None, 3, "name"])
    async def test_not_a_function(self, db: Database, wrong: Any) -> None:
        """What cannot be called is refused when it is registered."""
        async with db.async_session() as session:
            with pytest.raises(SessionError, match="takes a function"):
                session.on_commit(wrong)
            with pytest.raises(SessionError, match="takes a function"):
                session.on_rollback(wrong)


class TestContext:
    async def test_functions(self, db: Database, ran: Log) -> None:
        """The functions register with the current session, and give the callback."""
        fn = ran.of("commit")
        async with async_session_manager(auto_commit=True):
            assert fn is on_commit(fn)
            assert fn is not on_rollback(ran.of("rollback"))

        assert ["commit"] == ran

    async def test_without_session(self) -> None:
        """Without a current session they say so."""
        with pytest.raises(SessionError, match="on_commit"):
            on_commit(print)
        with pytest.raises(SessionError, match="on_rollback"):
            on_rollback(print)

    async def test_own_session(self, db: Database) -> None:
        """At the end of a block its session is not current: it would not commit."""

        async def store() -> None:
            async with async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="afterwards"))

        async with async_session_manager(auto_commit=True) as session:
            session.on_commit(store)

        assert ["afterwards"] == await names(db)
        assert SESSION_CONTEXT.get() is None

    async def test_in_the_block(self, db: Database) -> None:
        """After a commit inside of a block its session is current."""
        seen: list[Any] = []

        def look() -> None:
            seen.append(current_async_session())

        async with async_session_manager() as session:
            session.on_commit(look)
            await session.commit()

            assert [session] == seen

    async def test_registering_more(self, db: Database, ran: Log) -> None:
        """What one registers belongs to the next transaction."""
        async with db.async_session() as session:
            session.on_commit(lambda: session.on_commit(ran.of("next")))
            await session.commit()
            assert [] == ran
            await session.commit()

        assert ["next"] == ran

    async def test_scoped(self, db: Database, ran: Log) -> None:
        """A registry passes them on to its session."""
        scoped = async_session_factory(routing=db.manager, scoped=True)
        scoped.on_commit(ran.of("commit"))
        scoped.on_rollback(ran.of("rollback"))
        await scoped.commit()
        await scoped.remove()

        assert ["commit"] == ran

    async def test_nothing_sent_yet(self, db: Database, ran: Log) -> None:
        """What begins no transaction ends none: they wait for the one to come."""
        async with async_session_manager(auto_commit=True) as session:
            one = Thing(name="a")
            session.add(one)
            await session.commit()
            ran.both(session)
            with pytest.raises(ArgumentError):
                await session.execute("SELECT 1")  # type: ignore[call-overload]  # on purpose
            assert [] == ran

        assert ["commit"] == ran

    async def test_using_the_session(self, db: Database) -> None:
        """One that uses the session of a block that ends leaves nothing open."""
        async with async_session_manager() as session:
            await session.scalars(select(Thing))

            async def again() -> None:
                await session.scalars(select(Thing))

            session.on_rollback(again)

        assert not session.in_transaction()
