"""Blocks that only read, blocks that write, and who says no."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, literal, select, text, update
from sqlalchemy.exc import DBAPIError

from tenure import (
    Database,
    RoutingError,
    SessionError,
    Spec,
    async_session_factory,
    async_session_manager,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database(async_url, pool_size=1, max_overflow=1) as db:
        await db.acreate_all(Base.metadata)
        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))
        yield db
    assert [] == pools.out
    assert [] == pools.dirty


class ThingIn(Spec[Thing]):
    name: str


REFUSED = [
    insert(Thing).values(name="b"),
    update(Thing).values(name="b"),
    delete(Thing),
    insert(Thing.__table__).values(name="b"),
    select(Thing).with_for_update(),
    select(insert(Thing).values(name="b").returning(Thing.id).cte()),
    text("INSERT INTO thing (name) VALUES ('b')"),
    text("DROP TABLE thing"),
]


class TestRead:
    @pytest.mark.parametrize("statement", REFUSED, ids=str)
    async def test_statement(self, db: Database, statement: Any) -> None:
        """What writes is refused before anything is sent."""
        with count_statements(db.manager.async_engines["default"]) as statements:
            async with async_session_manager(role="read") as session:
                with pytest.raises(RoutingError, match="role='read' refuses"):
                    await session.execute(statement)

        assert 0 == statements.count

    async def test_flush(self, db: Database) -> None:
        """A flush is refused, and says what of."""
        with count_statements(db.manager.async_engines["default"]) as statements:
            async with async_session_manager(role="read") as session:
                session.add(Thing(name="b"))
                with pytest.raises(RoutingError, match="refuses to flush Thing"):
                    await session.flush()

        assert 0 == statements.count

    async def test_commit(self, db: Database) -> None:
        """A block that has changed something cannot commit it."""
        with pytest.raises(RoutingError, match="refuses to flush Thing"):
            async with async_session_manager(role="read", auto_commit=True) as session:
                one = (await session.scalars(select(Thing))).one()
                one.name = "b"

        async with async_session_manager() as session:
            assert ["a"] == [*await session.scalars(select(Thing.name))]

    async def test_unchanged(self, db: Database) -> None:
        """What was set to what it was is no change."""
        async with async_session_manager(role="read", auto_commit=True) as session:
            one = (await session.scalars(select(Thing))).one()
            one.name = "a"

    async def test_database_says_no(self, db: Database) -> None:
        """What we cannot tell is refused by the database: it was asked to."""
        async with async_session_manager(role="read") as session:
            connection = await session.connection()
            with pytest.raises(DBAPIError):
                await connection.execute(insert(Thing).values(name="b"))

    async def test_next_one_writes(self, db: Database) -> None:
        """The connection of a block that reads can write for the next block."""
        for _ in range(2):
            async with async_session_manager(role="read") as session:
                await session.scalars(select(Thing))
            async with async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="b"))
                await session.flush()
                await session.rollback()

    @pytest.mark.parametrize(
        "statement",
        [
            select(Thing.name),
            select(func.count()).select_from(Thing),
            select(literal(1)),
            text("SELECT name FROM thing"),
            text("WITH one AS (SELECT 1) SELECT * FROM one"),
        ],
        ids=str,
    )
    async def test_reads(self, db: Database, statement: Any) -> None:
        """What reads is let through, known or not."""
        async with async_session_manager(role="read") as session:
            assert 1 == len((await session.execute(statement)).all())

    async def test_bulk(self, db: Database) -> None:
        """References can be resolved in it."""
        async with async_session_manager(role="read") as session:
            async with session.bulk() as bulk:
                bulk.add(Thing(name="a"), is_reference=True)
                await bulk.resolve()

    @pytest.mark.parametrize("joins", [False, True])
    async def test_writing_bulk(self, db: Database, joins: bool) -> None:
        async with AsyncExitStack() as stack:
            if joins:
                outer = async_session_manager(auto_commit=True)
                await stack.enter_async_context(outer)
            async with async_session_manager(role="read") as session:
                async with session.bulk() as bulk:
                    bulk.add(Thing(name="b"))
                    with pytest.raises(RoutingError, match=r"refuses bulk\.flush"):
                        await bulk.flush()
                    with pytest.raises(RoutingError, match=r"refuses bulk\.load"):
                        await bulk.load([{"name": "b"}], ThingIn)

        async with async_session_manager() as session:
            assert 1 == await session.scalar(select(func.count()).select_from(Thing))

    @pytest.mark.parametrize("method", ["bulk_insert_mappings", "bulk_update_mappings"])
    async def test_mappings(self, db: Database, method: str) -> None:
        """Methods that flush by themselves are refused as well."""
        rows = [{"id": 1, "name": "b"}]
        async with async_session_manager(role="read") as session:
            core = getattr(session, "sync_session", session)
            with pytest.raises(RoutingError, match=f"refuses {method}"):
                getattr(core, method)(Thing, rows)

    async def test_connection_of_somebody(self, db: Database) -> None:
        """A connection that was handed in stays one that writes."""
        engine = db.manager.async_engines["default"]
        async with engine.connect() as connection:
            factory = async_session_factory(
                connection, join_transaction_mode="create_savepoint"
            )
            async with async_session_manager(using=factory, role="read") as session:
                await session.scalars(select(Thing))
                with pytest.raises(RoutingError):
                    await session.execute(delete(Thing))
            await connection.execute(insert(Thing).values(name="b"))
            await connection.rollback()

    async def test_whatever_chose_the_engine(self, db: Database) -> None:
        """The database is asked on any way to a connection."""
        engine = db.manager.async_engines["default"]
        bind = getattr(engine, "sync_engine", engine)
        async with async_session_manager(role="read") as session:
            connection = await session.connection(bind_arguments={"bind": bind})
            with pytest.raises(DBAPIError):
                await connection.execute(insert(Thing).values(name="b"))


class TestJoined:
    async def test_reading_inside(self, db: Database) -> None:
        """A block that reads may join one that writes, and still only reads."""
        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="b"))
            async with async_session_manager(role="read") as inner:
                assert session is inner
                # The owner's own is flushed on the way.
                assert 2 == len((await inner.scalars(select(Thing))).all())
                with pytest.raises(RoutingError):
                    await inner.execute(delete(Thing))
            session.add(Thing(name="c"))

        async with async_session_manager() as session:
            names = await session.scalars(select(Thing.name).order_by(Thing.name))
            assert ["a", "b", "c"] == names.all()

    async def test_changing_inside(self, db: Database) -> None:
        """What such a block has changed and not flushed is refused at its end."""
        with pytest.raises(RoutingError, match="has changed Thing"):
            async with async_session_manager(auto_commit=True):
                async with async_session_manager(role="read") as inner:
                    inner.add(Thing(name="b"))

        async with async_session_manager() as session:
            assert 1 == await session.scalar(select(func.count()).select_from(Thing))

    async def test_swallowed(self, db: Database) -> None:
        """It cannot be committed by swallowing the error either."""
        with pytest.raises(SessionError, match="half done"):
            async with async_session_manager(auto_commit=True):
                with pytest.raises(RoutingError):
                    async with async_session_manager(role="read") as inner:
                        inner.add(Thing(name="b"))

    async def test_writing_inside(self, db: Database) -> None:
        """A block that writes does not join one that reads, and says so."""
        async with async_session_manager(role="read") as session:
            with pytest.raises(SessionError, match="inside of a block with role='read"):
                async with async_session_manager(role="write"):
                    pass
            async with async_session_manager(role="write", new=True) as inner:
                assert inner is not session

    async def test_any_role_inside(self, db: Database) -> None:
        """A block without a role has that of the block around it."""
        async with async_session_manager(role="read"):
            async with async_session_manager() as session:
                with pytest.raises(RoutingError):
                    await session.execute(delete(Thing))

    async def test_savepoint(self, db: Database) -> None:
        """A savepoint that reads refuses as well, and the owner goes on."""
        async with async_session_manager(auto_commit=True) as session:
            with pytest.raises(RoutingError):
                async with async_session_manager(savepoint=True, role="read") as inner:
                    await inner.execute(delete(Thing))
            session.add(Thing(name="b"))

        async with async_session_manager() as session:
            assert 2 == await session.scalar(select(func.count()).select_from(Thing))

    async def test_taken_back(self, db: Database) -> None:
        """What was refused and taken back is no change."""
        async with async_session_manager():
            async with async_session_manager(role="read") as inner:
                one = Thing(name="b")
                inner.add(one)
                with pytest.raises(RoutingError):
                    await inner.flush()
                inner.expunge(one)


class TestArguments:
    @pytest.mark.parametrize("wrong", ["primary", 1, True])
    def test_role(self, wrong: Any) -> None:
        """A role is one of two."""
        with pytest.raises(SessionError, match="role is 'read' or 'write'"):
            async_session_manager(role=wrong)

    @pytest.mark.parametrize("wrong", ["weak", 1])
    def test_consistency(self, wrong: Any) -> None:
        """A consistency is one of four."""
        with pytest.raises(SessionError, match="'strong', 'session', 'bounded'"):
            async_session_manager(consistency=wrong)

    @pytest.mark.parametrize("level", ["strong", "session", "bounded", "eventual"])
    async def test_without_replicas(self, db: Database, level: Any) -> None:
        """Without replicas all of them are met."""
        async with async_session_manager(role="read", consistency=level) as session:
            assert 1 == len((await session.scalars(select(Thing))).all())
