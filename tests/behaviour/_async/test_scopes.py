"""Scopes: where a block's session comes from, and how it ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import delete, event, func, insert, select, text
from sqlalchemy.exc import (
    DBAPIError,
    IntegrityError,
    NoResultFound,
    PendingRollbackError,
)

from tenure import (
    APP_CONTEXT,
    SESSION_CONTEXT,
    AsyncSession,
    Database,
    DatabaseError,
    SessionError,
    async_session_factory,
    async_session_manager,
    current_async_session,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Part, Thing

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def nothing_left(pools: Pools) -> AsyncIterator[None]:
    """Whatever a test does, connections are back and clean, and nothing is current."""
    assert SESSION_CONTEXT.get() is None
    yield
    assert [] == pools.out
    assert [] == pools.dirty
    assert SESSION_CONTEXT.get() is None
    assert APP_CONTEXT.get() is None


@pytest.fixture
async def db(async_url: str, nothing_left: None) -> AsyncIterator[Database]:
    db = Database(async_url)
    await db.acreate_all(Base.metadata)
    yield db
    await db.adispose()


async def names(db: Database) -> list[str]:
    """Give what is committed, read by a session that is nobody else's."""
    async with db.async_session() as session:
        return sorted(await session.scalars(select(Thing.name)))


class Boom(Exception):
    """What no library raises."""


class TestWhereFrom:
    async def test_using(self, db: Database) -> None:
        """Without a current session, *using* makes one, which is current inside."""
        async with async_session_manager(using=db.async_session) as session:
            assert isinstance(session, AsyncSession)
            assert session is SESSION_CONTEXT.get()
            assert session is current_async_session()

        assert SESSION_CONTEXT.get() is None

    async def test_application(self, db: Database) -> None:
        """Without *using*, the current application's factory makes it."""
        async with db, async_session_manager() as session:
            assert db.manager is session.routing

    async def test_any_application(self, db: Database) -> None:
        """Any object with factories can be the current application."""

        class Program:
            async_session = db.async_session

        token = APP_CONTEXT.set(Program())  # type: ignore[arg-type]  # half of one
        async with async_session_manager() as session:
            assert db.manager is session.routing
        APP_CONTEXT.reset(token)

    async def test_installed(self, db: Database) -> None:
        """Without an application, the installed one's factory makes it."""
        assert db is db.install()
        async with async_session_manager() as session:
            assert db.manager is session.routing
        await db.adispose()

        with pytest.raises(SessionError, match="no session factory"):
            await async_session_manager().__aenter__()

    async def test_application_before_installed(self, db: Database) -> None:
        """The current application comes before the installed one."""
        other = Database("sqlite://").install()
        async with db, async_session_manager() as session:
            assert db.manager is session.routing
        await other.adispose()

    async def test_from_nowhere(self) -> None:
        """Without any factory, the error says how to give one."""
        with pytest.raises(SessionError, match=r"using=.*install"):
            await async_session_manager().__aenter__()

    async def test_missing_raises(self, db: Database) -> None:
        """With on_missing="raise", a block has to be inside of another."""
        with pytest.raises(SessionError) as caught:
            async with async_session_manager(
                using=db.async_session, on_missing="raise"
            ):
                pytest.fail("the block must not run")

        assert isinstance(caught.value, RuntimeError)

    async def test_missing_joins(self, db: Database) -> None:
        """With on_missing="raise", a current session is joined as ever."""
        async with db.async_session_manager() as outer:
            async with async_session_manager(on_missing="raise") as inner:
                assert outer is inner

    async def test_joined(self, db: Database) -> None:
        """A block inside joins, whether it names the factory or not."""
        async with db.async_session_manager() as outer:
            async with async_session_manager() as inner:
                assert outer is inner
            async with async_session_manager(using=db.async_session) as inner:
                assert outer is inner
            assert outer is current_async_session()

    async def test_joined_ends_nothing(self, db: Database) -> None:
        """A joined block does not commit, whatever it was told, nor close."""
        with pytest.raises(SessionError, match="ended without a commit"):
            async with db.async_session_manager() as outer:
                async with async_session_manager(auto_commit=True) as inner:
                    thing = Thing(name="a")
                    inner.add(thing)
                    await inner.flush()
                assert outer.in_transaction()
                assert thing in outer

        assert [] == await names(db)

    async def test_joined_by_hand(self, db: Database) -> None:
        """A session that was made current by other means is joined, too."""
        async with db.async_session() as session:
            token = SESSION_CONTEXT.set(session)
            async with async_session_manager() as joined:
                assert session is joined
            assert session is SESSION_CONTEXT.get()
            SESSION_CONTEXT.reset(token)

    async def test_other_factory(self, db: Database) -> None:
        """A block that names another factory gets a session of that one."""
        other = async_session_factory(routing=db.manager)
        async with db.async_session_manager() as outer:
            async with async_session_manager(using=other) as inner:
                assert outer is not inner
                assert inner is current_async_session()
                async with async_session_manager(using=other) as innermost:
                    assert inner is innermost
            assert outer is current_async_session()

    async def test_equal_factory(self, db: Database) -> None:
        """Methods are made anew each time they are read, and still one factory."""

        class Program:
            def make(self) -> AsyncSession:
                return db.async_session()

        program = Program()
        async with async_session_manager(using=program.make) as outer:
            async with async_session_manager(using=program.make) as inner:
                assert outer is inner

    @pytest.mark.parametrize("scoped", [False, True])
    async def test_new(self, db: Database, scoped: bool) -> None:
        """With new=True it is another session, and the outer one is untouched."""
        factory = async_session_factory(routing=db.manager, scoped=scoped)
        async with async_session_manager(using=factory, auto_commit=True) as outer:
            outer.add(Thing(name="a"))
            async with async_session_manager(
                using=factory, new=True, auto_commit=True
            ) as inner:
                assert outer is not inner
                assert inner is current_async_session()
                inner.add(Thing(name="b"))
            assert outer is current_async_session()
            assert 1 == len(outer.new)
            assert ["b"] == await names(db)

        assert ["a", "b"] == await names(db)

    async def test_new_after_reading(self, db: Database) -> None:
        """Reading in the outer session locks out no block that writes inside."""
        async with db.async_session_manager() as outer:
            await outer.scalars(select(Thing))
            async with db.async_session_manager(new=True, auto_commit=True) as inner:
                inner.add(Thing(name="a"))

        assert ["a"] == await names(db)

    async def test_missing_in_the_whole_program(self, db: Database) -> None:
        """With a database that says so, blocks make a session only if they ask to."""
        strict = Database(db.manager.urls["default"], on_missing="raise")
        async with strict:
            for options in ({}, {"using": strict.async_session}):
                with pytest.raises(SessionError, match="new=True"):
                    await async_session_manager(**options).__aenter__()
            with pytest.raises(SessionError, match="on_missing='raise'"):
                await strict.async_session_manager().__aenter__()
            async with async_session_manager(on_missing="create"):
                pass
            async with async_session_manager(new=True, auto_commit=True) as outer:
                async with strict.async_session_manager(auto_commit=True) as inner:
                    inner.add(Thing(name="a"))
                assert inner is outer

        assert ["a"] == await names(db)

    async def test_new_needs_no_current(self, db: Database) -> None:
        """With new=True, on_missing has nothing to say."""
        async with async_session_manager(
            using=db.async_session, new=True, on_missing="raise"
        ) as session:
            assert session is current_async_session()

    async def test_entering_does_no_io(self, db: Database, pools: Pools) -> None:
        """Nothing is connected before the session is used."""
        async with db.async_session_manager():
            assert [] == pools.out

    async def test_no_current(self) -> None:
        """Without a current session, asking for it is an error."""
        with pytest.raises(SessionError, match="no session is current"):
            current_async_session()


class TestMisuse:
    async def test_unknown_option(self) -> None:
        """A misspelt option is named where it is given."""
        with pytest.raises(SessionError, match="'bogus'"):
            async_session_manager(on_missing="bogus")  # type: ignore[arg-type]  # on purpose

    async def test_no_factory(self) -> None:
        """A session is no session factory."""
        with pytest.raises(SessionError, match="using is a session factory"):
            async_session_manager(using=42)

    async def test_no_session(self) -> None:
        """A factory of something else is named, and nothing stays current."""
        with pytest.raises(SessionError, match="got object"):
            await async_session_manager(using=object).__aenter__()

    async def test_entered_twice(self, db: Database) -> None:
        """One object is one block: entering it again says so and changes nothing."""
        block = db.async_session_manager()
        async with block as session:
            with pytest.raises(SessionError, match="entered before"):
                await block.__aenter__()
            assert session is current_async_session()

        with pytest.raises(SessionError, match="entered before"):
            await block.__aenter__()


class TestDecorator:
    async def test_each_call(self, db: Database) -> None:
        """Each call of a decorated function is a block of its own."""

        @async_session_manager(using=db.async_session, auto_commit=True)
        async def store(name: str, *, fail: bool = False) -> AsyncSession:
            """Store a thing."""
            session = current_async_session()
            session.add(Thing(name=name))
            if fail:
                raise Boom
            return session

        first = await store("a")
        second = await store("b")
        with pytest.raises(Boom):
            await store("c", fail=True)

        assert first is not second
        assert ["a", "b"] == await names(db)
        assert ("store", "Store a thing.") == (store.__name__, store.__doc__)

    async def test_nested_calls(self, db: Database) -> None:
        """A decorated function that calls itself joins its own block."""

        @async_session_manager(using=db.async_session)
        async def sessions(depth: int) -> list[AsyncSession]:
            inner = await sessions(depth - 1) if depth else []
            return [current_async_session(), *inner]

        assert 1 == len({id(session) for session in await sessions(2)})

    async def test_generator(self) -> None:
        """The block of a generator would end before it begins, so it is refused."""

        def generate() -> Any:
            yield 1

        with pytest.raises(SessionError, match="generate, a generator"):
            async_session_manager()(generate)


class TestSuccess:
    async def test_discards(self, db: Database) -> None:
        """Without auto_commit, what was not committed is discarded."""
        async with db.async_session_manager() as session:
            session.add(Thing(name="a"))
            await session.commit()
            session.add(Thing(name="b"))
            await session.flush()

        assert ["a"] == await names(db)

    async def test_commits(self, db: Database) -> None:
        """With auto_commit, the end of the block commits and closes."""
        async with db.async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))

        assert ["a"] == await names(db)
        assert not session.in_transaction()

    @pytest.mark.parametrize("expire", [False, True])
    async def test_expire(self, db: Database, expire: bool) -> None:
        """For the commit of the block, *expire* overrides the factory's option."""
        factory = async_session_factory(routing=db.manager, expire_on_commit=not expire)
        thing = Thing(name="a")
        async with async_session_manager(
            using=factory, auto_commit=True, expire=expire
        ) as session:
            session.add(thing)

        assert expire is ("name" not in vars(thing))

    async def test_order(self, db: Database) -> None:
        """The session is current until it is closed."""
        current = []

        def ended(session: Any, transaction: Any) -> None:
            current.append(SESSION_CONTEXT.get())

        async with db.async_session_manager(auto_commit=True) as session:
            await session.scalars(select(Thing))
            event.listen(getattr(session, "sync_session", session), TX_END, ended)

        assert [session] == current

    async def test_overridden_methods(self, db: Database) -> None:
        """The methods of a class of the user's own are the ones called."""
        called = []

        class Noted(AsyncSession):
            async def commit(self, *, expire: bool | None = None) -> None:
                called.append("commit")
                await super().commit(expire=expire)

            async def rollback(self) -> None:
                called.append("rollback")
                await super().rollback()

            async def close(self) -> None:
                called.append("close")
                await super().close()

        factory = async_session_factory(routing=db.manager, class_=Noted)
        async with async_session_manager(using=factory, auto_commit=True):
            pass
        with pytest.raises(Boom):
            async with async_session_manager(using=factory):
                raise Boom

        assert ["commit", "close", "rollback", "close"] == called


TX_END = "after_transaction_end"


async def by_statement(session: AsyncSession) -> None:
    await session.execute(text("SELECT nothing FROM thing"))


async def by_flush(session: AsyncSession) -> None:
    session.add_all([Thing(name="a"), Thing(name="a")])
    await session.flush()


async def by_commit(session: AsyncSession) -> None:
    session.add_all([Thing(name="a"), Thing(name="a")])
    await session.commit()


async def by_a_bulk(session: AsyncSession) -> None:
    async with session.bulk() as bulk:
        bulk.add(Thing(name="a"))
        bulk.add(Thing(name="a"))
        await bulk.flush()


async def by_a_key(session: AsyncSession) -> None:
    await session.get_one(Thing, -1)


class TestErrorInside:
    """SQLAlchemy's errors are ours already where they leave a method."""

    @pytest.mark.parametrize(
        ("refused", "kind"),
        [
            (by_statement, DBAPIError),
            (by_flush, IntegrityError),
            (by_commit, IntegrityError),
            (by_a_bulk, IntegrityError),
            (by_a_key, NoResultFound),
        ],
    )
    @pytest.mark.parametrize("in_block", [True, False])
    async def test_of_both_kinds(
        self, db: Database, refused: Any, kind: Any, in_block: bool
    ) -> None:
        manager: Any = db.async_session_manager if in_block else db.async_session
        async with manager() as session:
            with pytest.raises(DatabaseError) as caught:
                await refused(session)
            await session.rollback()

        assert isinstance(caught.value, kind)
        assert type(caught.value.__cause__).__name__ == type(caught.value).__name__
        assert caught.value.retryable is False

    async def test_pending_rollback(self, db: Database) -> None:
        """Who uses a session after a flush that failed is told of which error."""
        async with db.async_session() as session:
            with pytest.raises(IntegrityError):
                await by_flush(session)
            with pytest.raises(PendingRollbackError) as caught:
                await by_statement(session)
            await session.rollback()

        assert isinstance(caught.value, DatabaseError)
        assert "the flush that has failed: IntegrityError" in caught.value.__notes__[0]


class TestError:
    @pytest.mark.parametrize(
        "error",
        [
            Boom("mine"),
            KeyError("mine"),
            KeyboardInterrupt(),
            SystemExit(3),
            asyncio.CancelledError(),
            GeneratorExit(),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("joined", [False, True])
    async def test_rolls_back(
        self, db: Database, error: BaseException, joined: bool
    ) -> None:
        """Any error rolls back, and the very same one is what the caller sees."""
        with pytest.raises(type(error)) as caught:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                await session.flush()
                if joined:
                    async with async_session_manager():
                        raise error
                raise error

        assert error is caught.value
        assert error.__cause__ is None
        assert not hasattr(error, "__notes__")
        assert [] == await names(db)

    @pytest.mark.parametrize("depth", [0, 1, 2])
    async def test_of_the_database(self, db: Database, depth: int) -> None:
        """Errors of the database keep their class, and are a DatabaseError as well."""

        async def fail(depth: int) -> None:
            async with db.async_session_manager(auto_commit=True) as session:
                if depth:
                    await fail(depth - 1)
                else:
                    session.add_all([Thing(name="a"), Thing(name="a")])
                    await session.flush()

        with pytest.raises(DatabaseError) as caught:
            await fail(depth)

        error = caught.value
        assert isinstance(error, IntegrityError)
        assert type(error.__cause__) is IntegrityError
        assert error.__cause__ is error.original
        assert error.orig is error.original.orig
        assert str(error) == str(error.original)
        assert [] == await names(db)

    async def test_failing_commit(self, db: Database, pools: Pools) -> None:
        """A commit that the database refuses rolls back and closes."""
        with pytest.raises(IntegrityError) as caught:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add_all([Thing(name="a"), Part(thing_id=999)])
                await session.flush()

        assert isinstance(caught.value, DatabaseError)
        assert type(caught.value.__cause__) is IntegrityError
        assert [] == pools.out
        assert not session.in_transaction()
        assert [] == await names(db)

    async def test_failing_flush_of_the_commit(self, db: Database) -> None:
        """What the commit flushes may be refused, just the same."""
        with pytest.raises(IntegrityError) as caught:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add_all([Thing(name="a"), Thing(name="a")])

        assert isinstance(caught.value, DatabaseError)
        assert [] == await names(db)

    async def test_failing_rollback(
        self, db: Database, pools: Pools, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A rollback that fails is logged and noted; the first error is raised."""
        error = Boom()
        with pytest.raises(Boom) as caught:
            async with db.async_session_manager() as session:
                await session.execute(insert(Thing).values(name="a"))
                await cut(pools)
                raise error

        assert error is caught.value
        assert "rolling back the session failed as well" in error.__notes__[0]
        assert "rolling back the session failed" in caplog.text
        assert [] == pools.out
        assert [] == await names(db)

    async def test_failing_commit_and_rollback(
        self, db: Database, pools: Pools
    ) -> None:
        """If commit and rollback fail, the commit's error is raised."""
        with pytest.raises(DatabaseError) as caught:
            async with db.async_session_manager(auto_commit=True) as session:
                await session.execute(insert(Thing).values(name="a"))
                await cut(pools)

        assert caught.value.__cause__ is caught.value.original
        assert [] == pools.out
        assert [] == await names(db)

    async def test_failing_close(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A close that fails is raised, unless there was an error before it."""

        class Stubborn(AsyncSession):
            async def close(self) -> None:
                await super().close()
                raise OSError("stuck")

        factory = async_session_factory(routing=db.manager, class_=Stubborn)
        with pytest.raises(OSError, match="stuck"):
            async with async_session_manager(
                using=factory, auto_commit=True
            ) as session:
                session.add(Thing(name="a"))
        assert SESSION_CONTEXT.get() is None
        assert ["a"] == await names(db)

        with pytest.raises(Boom) as caught:
            async with async_session_manager(using=factory) as session:
                await session.scalars(select(Thing))
                raise Boom
        assert ["closing the session failed as well: stuck"] == caught.value.__notes__
        assert "closing the session failed" in caplog.text


async def cut(pools: Pools) -> None:
    """Close the connection in use under the feet of SQLAlchemy."""
    connection: Any = pools.out[-1].driver_connection
    if hasattr(connection, "_conn"):
        # Closed by aiosqlite itself it would count as committed.
        await connection._execute(connection._conn.close)
    else:
        await connection.close()


class TestSavepoint:
    async def test_released(self, db: Database) -> None:
        """On success the writes of the block become part of the owner's."""
        async with db.async_session_manager(auto_commit=True) as outer:
            async with async_session_manager(savepoint=True) as inner:
                assert outer is inner
                assert inner.in_nested_transaction()
                inner.add(Thing(name="a"))
            assert not outer.in_nested_transaction()

        assert ["a"] == await names(db)

    async def test_released_is_not_committed(self, db: Database) -> None:
        """What a released savepoint wrote is undone with the rest."""
        with pytest.raises(Boom):
            async with db.async_session_manager(auto_commit=True):
                async with async_session_manager(savepoint=True) as inner:
                    inner.add(Thing(name="a"))
                raise Boom

        assert [] == await names(db)

    @pytest.mark.parametrize("joined", [False, True])
    async def test_rolled_back(self, db: Database, joined: bool) -> None:
        """An error undoes the block, also what blocks inside wrote; no more."""
        error = Boom()
        async with db.async_session_manager(auto_commit=True) as outer:
            outer.add(Thing(name="a"))
            with pytest.raises(Boom) as caught:
                async with async_session_manager(savepoint=True) as inner:
                    inner.add(Thing(name="b"))
                    await inner.flush()
                    if joined:
                        async with async_session_manager():
                            inner.add(Thing(name="c"))
                            raise error
                    raise error
            outer.add(Thing(name="d"))

        assert error is caught.value
        assert ["a", "d"] == await names(db)

    async def test_of_the_database(self, db: Database) -> None:
        """The owner survives what the database refuses, even as the block ends."""
        async with db.async_session_manager(auto_commit=True) as outer:
            outer.add(Thing(name="a"))
            with pytest.raises(IntegrityError) as caught:
                async with async_session_manager(savepoint=True) as inner:
                    inner.add(Thing(name="a"))
            assert isinstance(caught.value, DatabaseError)
            outer.add(Thing(name="b"))

        assert ["a", "b"] == await names(db)

    async def test_failing_flush(self, db: Database) -> None:
        """What the owner had left to write may be refused as the block begins."""
        with pytest.raises(Boom):
            async with db.async_session_manager() as outer:
                outer.add_all([Thing(name="a"), Thing(name="a")])
                with pytest.raises(IntegrityError) as caught:
                    await async_session_manager(savepoint=True).__aenter__()
                assert isinstance(caught.value, DatabaseError)
                assert outer is current_async_session()
                raise Boom

        assert [] == await names(db)

    async def test_nested(self, db: Database) -> None:
        """Savepoints nest: each undoes its own."""
        async with db.async_session_manager(auto_commit=True):
            async with async_session_manager(savepoint=True) as middle:
                middle.add(Thing(name="a"))
                with pytest.raises(Boom):
                    async with async_session_manager(savepoint=True) as inner:
                        inner.add(Thing(name="b"))
                        raise Boom

        assert ["a"] == await names(db)

    async def test_without_a_session(self, db: Database) -> None:
        """Where there is nothing to be part of, the block owns its session."""
        async with db.async_session_manager(
            savepoint=True, auto_commit=True
        ) as session:
            assert not session.in_nested_transaction()
            session.add(Thing(name="a"))

        assert ["a"] == await names(db)

    async def test_ended_by_hand(self, db: Database) -> None:
        """A block that ends its savepoint, or all, leaves nothing to end."""
        async with db.async_session_manager() as outer:
            async with async_session_manager(savepoint=True) as inner:
                inner.add(Thing(name="a"))
                await inner.commit()
            assert not outer.in_transaction()

        assert ["a"] == await names(db)

    async def test_failing_rollback(self, db: Database, pools: Pools) -> None:
        """If going back fails, the first error is raised, with a note."""
        with pytest.raises(Boom) as caught:
            async with db.async_session_manager():
                async with async_session_manager(savepoint=True) as inner:
                    await inner.execute(insert(Thing).values(name="a"))
                    await cut(pools)
                    raise Boom

        assert "savepoint" in caught.value.__notes__[0]
        assert [] == await names(db)


async def write_by_flush(session: AsyncSession) -> None:
    session.add(Thing(name="half"))
    await session.flush()


async def write_by_statement(session: AsyncSession) -> None:
    await session.execute(insert(Thing).values(name="half"))


async def write_by_text(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO thing (name) VALUES ('half')"))


async def write_later(session: AsyncSession) -> None:
    session.add(Thing(name="half"))


async def change_later(session: AsyncSession) -> None:
    thing = await session.scalar(select(Thing).where(Thing.name == "first"))
    assert thing is not None
    thing.note = "half"


async def delete_later(session: AsyncSession) -> None:
    thing = await session.scalar(select(Thing).where(Thing.name == "first"))
    await session.delete(thing)


WRITES = [
    write_by_flush,
    write_by_statement,
    write_by_text,
    write_later,
    change_later,
    delete_later,
]


class TestHalfDone:
    @pytest.fixture
    async def db(self, db: Database) -> Database:
        async with db.async_session() as session:
            session.add(Thing(name="first"))
            await session.commit()
        return db

    @pytest.mark.parametrize("write", WRITES)
    async def test_refused(self, db: Database, write: Any) -> None:
        """After a joined block wrote and failed, nothing of the owner's is kept."""
        error = Boom()
        with pytest.raises(SessionError, match="half done") as caught:
            async with db.async_session_manager(auto_commit=True) as outer:
                outer.add(Thing(name="whole"))
                with pytest.raises(Boom):
                    async with async_session_manager() as inner:
                        await write(inner)
                        raise error

        assert error is caught.value.__cause__
        assert ["first"] == await names(db)

    @pytest.mark.parametrize("write", WRITES)
    async def test_savepoint(self, db: Database, write: Any) -> None:
        """With a savepoint the owner goes on, and keeps what is its own."""
        async with db.async_session_manager(auto_commit=True) as outer:
            outer.add(Thing(name="whole"))
            await outer.flush()
            await outer.execute(select(Thing).where(Thing.name == "whole"))
            with pytest.raises(Boom):
                async with async_session_manager(savepoint=True) as inner:
                    if write not in {change_later, delete_later}:
                        await write(inner)
                    raise Boom

        assert ["first", "whole"] == await names(db)

    async def test_own_commit(self, db: Database) -> None:
        """A commit the owner asks for is refused as well."""
        async with db.async_session_manager() as outer:
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    await write_by_flush(inner)
                    raise Boom
            with pytest.raises(SessionError, match="half done"):
                await outer.commit()

        assert ["first"] == await names(db)

    async def test_rolled_back(self, db: Database) -> None:
        """After a rollback nothing is half done."""
        async with db.async_session_manager(auto_commit=True) as outer:
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    await write_by_flush(inner)
                    raise Boom
            await outer.rollback()
            outer.add(Thing(name="whole"))

        assert ["first", "whole"] == await names(db)

    async def test_closed(self, db: Database) -> None:
        """Closing gives up what is half done as well."""
        async with db.async_session_manager(auto_commit=True) as outer:
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    await write_by_flush(inner)
                    raise Boom
            await outer.close()
            outer.add(Thing(name="whole"))

        assert ["first", "whole"] == await names(db)

    async def test_rolled_back_to_a_savepoint(self, db: Database) -> None:
        """What a savepoint of the user's own undoes is not half done either."""
        async with db.async_session_manager(auto_commit=True) as outer:
            outer.add(Thing(name="whole"))
            with pytest.raises(Boom):
                async with outer.begin_nested():
                    async with async_session_manager() as inner:
                        await write_by_flush(inner)
                        raise Boom

        assert ["first", "whole"] == await names(db)

    async def test_released_by_a_savepoint(self, db: Database) -> None:
        """A savepoint that keeps the half does not make it whole."""
        with pytest.raises(SessionError, match="half done"):
            async with db.async_session_manager(auto_commit=True):
                async with async_session_manager(savepoint=True):
                    with pytest.raises(Boom):
                        async with async_session_manager() as inner:
                            await write_by_flush(inner)
                            raise Boom

        assert ["first"] == await names(db)

    async def test_committed_before(self, db: Database) -> None:
        """What was committed before the error is whole."""
        async with db.async_session_manager(auto_commit=True) as outer:
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    inner.add(Thing(name="a"))
                    await inner.commit()
                    raise Boom
            outer.add(Thing(name="b"))

        assert ["a", "b", "first"] == await names(db)

    async def test_only_read(self, db: Database) -> None:
        """A block that only read may fail, though its query flushed the owner's."""
        async with db.async_session_manager(auto_commit=True) as outer:
            thing = (await outer.scalars(select(Thing))).one()
            thing.note = "changed by the owner"
            outer.add(Thing(name="whole"))
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    assert 2 == await inner.scalar(
                        select(func.count()).select_from(Thing)
                    )
                    raise Boom
            outer.add(Thing(name="later"))

        assert ["first", "later", "whole"] == await names(db)

    async def test_only_read_before_the_flush(self, db: Database) -> None:
        """What the owner has yet to flush is not the block's, either."""
        async with db.async_session_manager(auto_commit=True) as outer:
            outer.add(Thing(name="whole"))
            with pytest.raises(Boom):
                async with async_session_manager():
                    raise Boom

        assert ["first", "whole"] == await names(db)

    async def test_changed_what_waits(self, db: Database) -> None:
        """Changing once more what the owner has changed is the block's own."""
        with pytest.raises(SessionError, match="half done"):
            async with db.async_session_manager(auto_commit=True) as outer:
                thing = (await outer.scalars(select(Thing))).one()
                thing.note = "whole"
                with pytest.raises(Boom):
                    async with async_session_manager():
                        thing.note = "half"
                        raise Boom

    async def test_flushed_further_in(self, db: Database) -> None:
        """What a block wrote is its own, though a block inside of it has flushed it."""
        with pytest.raises(SessionError, match="half done"):
            async with db.async_session_manager(auto_commit=True):
                with pytest.raises(Boom):
                    async with async_session_manager() as middle:
                        middle.add(Thing(name="half"))
                        async with async_session_manager() as inner:
                            await inner.scalars(select(Thing))
                        raise Boom

        assert ["first"] == await names(db)

    async def test_subclass(self, db: Database) -> None:
        """A session class of the user's own keeps the promise."""

        class Own(AsyncSession):
            pass

        factory = async_session_factory(routing=db.manager, class_=Own)
        with pytest.raises(SessionError, match="half done"):
            async with async_session_manager(using=factory, auto_commit=True):
                with pytest.raises(Boom):
                    async with async_session_manager() as inner:
                        await write_by_flush(inner)
                        raise Boom

        assert ["first"] == await names(db)


class TestGenerators:
    async def test_finished(self, db: Database) -> None:
        """A generator's block ends when the generator does."""

        async def store() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                yield session

        async for session in store():
            assert session is current_async_session()

        assert ["a"] == await names(db)

    async def test_closed_early(self, db: Database, pools: Pools) -> None:
        """A generator that is not run to its end is rolled back."""

        async def store() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
                await session.flush()
                yield session

        generator: Any = store()
        await anext(generator)
        await generator.aclose()

        assert [] == pools.out
        assert [] == await names(db)

    async def test_interleaved(self, db: Database) -> None:
        """Blocks left in any order never make a closed session current again."""

        async def open_one() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(new=True) as session:
                yield session

        first, second, third = (open_one() for _ in range(3))
        await anext(first)
        await anext(second)
        last = await anext(third)
        await anext(second, None)
        assert last is current_async_session()
        await anext(first, None)
        assert last is current_async_session()
        await anext(third, None)

        assert SESSION_CONTEXT.get() is None

    async def test_interleaved_back(self, db: Database) -> None:
        """Around a block that has ended, the one before it is current again."""

        async def open_one() -> AsyncIterator[AsyncSession]:
            async with db.async_session_manager(new=True) as session:
                yield session

        first, second, third = (open_one() for _ in range(3))
        outer = await anext(first)
        await anext(second)
        await anext(third)
        await anext(second, None)
        await anext(third, None)
        assert outer is current_async_session()
        await anext(first, None)

    async def test_owner_ends_first(self, db: Database, pools: Pools) -> None:
        """A block that outlives the owner of its session gives back what it takes."""

        async def join() -> AsyncIterator[None]:
            async with async_session_manager() as session:
                yield
                await session.scalars(select(Thing))

        async with db.async_session_manager():
            generator = join()
            await anext(generator)
        await anext(generator, None)

        assert [] == pools.out

    async def test_owner_ends_first_and_loses(self, db: Database, pools: Pools) -> None:
        """What such a block writes cannot be kept, and it says so."""

        async def join() -> AsyncIterator[None]:
            async with async_session_manager() as session:
                yield
                session.add(Thing(name="late"))
                await session.flush()

        async with db.async_session_manager(auto_commit=True):
            generator = join()
            await anext(generator)
        with pytest.raises(SessionError, match="what was written since is lost"):
            await anext(generator)

        assert [] == pools.out
        assert [] == await names(db)


@dataclass
class Block:
    """A block of a generated nesting, and what it does inside."""

    name: str
    how: str
    fails: bool
    inside: list[Block] = field(default_factory=list)


def grow(random: random.Random, name: str, depth: int = 0) -> Block:
    how = random.choice(["join", "savepoint", "new"]) if depth else "new"
    block = Block(name, how, fails=random.random() < 0.3)
    if depth < 3:
        block.inside = [
            grow(random, f"{name}{n}", depth + 1) for n in range(random.randrange(4))
        ]
    return block


@dataclass
class Work:
    """A transaction as it should go: what it has written, and whether by halves."""

    written: list[str] = field(default_factory=list)
    is_half_done: bool = False


def expected(block: Block, work: Work, kept: list[str], *, writes: bool) -> bool:
    """Play *block* without a database; say whether it ends with an error."""
    own = Work() if block.how == "new" else work
    before, was_half_done = len(own.written), own.is_half_done
    if writes:
        own.written.append(block.name)
    for inner in block.inside:
        # One transaction writes, the outermost: SQLite has one writer at a time.
        expected(inner, own, kept, writes=writes and inner.how != "new")
    if block.how == "new":
        fails = block.fails or own.is_half_done
        kept += [] if fails else own.written
        return fails
    if block.fails and block.how == "savepoint":
        del own.written[before:]
        own.is_half_done = was_half_done
    elif block.fails and writes:
        own.is_half_done = True
    return block.fails


class TestNesting:
    @pytest.mark.parametrize("seed", range(40))
    async def test_any(self, db: Database, pools: Pools, seed: int) -> None:
        """However blocks nest and fail, what is kept is whole, and all is given back."""
        tree = grow(random.Random(seed), "b")

        async def play(block: Block, *, writes: bool) -> None:
            async with async_session_manager(
                using=db.async_session,
                auto_commit=True,
                new=block.how == "new",
                savepoint=block.how == "savepoint",
            ) as session:
                before = current_async_session()
                if writes:
                    session.add(Thing(name=block.name))
                await session.scalars(select(Thing))
                for inner in block.inside:
                    try:
                        await play(inner, writes=writes and inner.how != "new")
                    except (Boom, SessionError):
                        pass
                assert before is current_async_session()
                if block.fails:
                    raise Boom

        kept: list[str] = []
        will_fail = expected(tree, Work(), kept, writes=True)
        failed = False
        try:
            await play(tree, writes=True)
        except (Boom, SessionError):
            failed = True

        assert will_fail is failed
        assert sorted(kept) == await names(db)
        assert [] == pools.out


class TestHalfDoneAgain:
    """What was left half done in one place is not forgotten for another."""

    async def test_another_in_a_savepoint(self, db: Database) -> None:
        """A failure that a savepoint has undone does not hide one before it."""

        async def fail() -> None:
            async with async_session_manager() as session:
                session.add(Thing(name="half"))
                await session.flush()
                raise ValueError("oh")

        with pytest.raises(SessionError, match="half done"):
            async with db.async_session_manager(auto_commit=True) as session:
                with pytest.raises(ValueError, match="oh"):
                    await fail()
                await session.execute(delete(Thing))
                with pytest.raises(ValueError, match="oh"):
                    async with async_session_manager(savepoint=True):
                        await fail()

        assert [] == await names(db)

    async def test_bare_connection(self, db: Database) -> None:
        """What a joined block does with a connection may have been a write."""
        with pytest.raises(SessionError, match="half done"):
            async with db.async_session_manager(auto_commit=True):
                with pytest.raises(ValueError, match="oh"):
                    async with async_session_manager() as session:
                        connection = await session.connection()
                        await connection.execute(insert(Thing).values(name="half"))
                        raise ValueError("oh")

        assert [] == await names(db)


class TestSharedSession:
    async def test_again(self, db: Database) -> None:
        """A factory may give one session to blocks that follow each other."""
        shared = db.async_session()
        for name in "ab":
            async with async_session_manager(using=lambda: shared, auto_commit=True):
                shared.add(Thing(name=name))

        assert ["a", "b"] == await names(db)
