"""What MariaDB needs words of its own for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from seance import (
    ConcurrentUseError,
    Database,
    RoutingError,
    async_session_manager,
    session_manager,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Thing


@pytest.fixture
def db(mariadb_url: str, pools: Pools) -> Iterator[Database]:
    with Database(mariadb_url, pool_size=1, max_overflow=0) as db:
        Thing.__table__.create(db.manager.engines["default"])
        yield db
    assert [] == pools.out


class TestRead:
    def test_refused(self, db: Database) -> None:
        """A block that reads refuses what writes, before it is sent."""
        with session_manager(role="read") as session:
            with pytest.raises(RoutingError, match="role='read' refuses"):
                session.execute(insert(Thing).values(name="a"))

    def test_database_says_no(self, db: Database) -> None:
        """What gets past us is refused by the database."""
        with session_manager(role="read") as session:
            assert [] == session.scalars(select(Thing)).all()
            with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                session.connection().execute(insert(Thing).values(name="a"))

    def test_next_one_writes(self, db: Database) -> None:
        """The connection writes again for the next block."""
        for name in "ab":
            with session_manager(role="read") as session:
                session.scalars(select(Thing)).all()
            with session_manager(auto_commit=True) as session:
                session.add(Thing(name=name))
        with session_manager(role="read") as session:
            assert ["a", "b"] == session.scalars(select(Thing.name)).all()

    def test_commits(self, db: Database) -> None:
        """Each transaction of the block is one that reads."""
        with session_manager(role="read") as session:
            for _ in range(2):
                session.execute(text("SELECT 1"))
                with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                    session.connection().execute(insert(Thing).values(name="a"))
                session.rollback()


def test_scopes(db: Database) -> None:
    """Joining, savepoints and callbacks are as anywhere."""
    ran = []
    with session_manager(auto_commit=True) as session:
        session.on_commit(lambda: ran.append("commit"))
        session.add(Thing(name="a"))
        with pytest.raises(ValueError, match="oh"):
            with session_manager(savepoint=True):
                session.add(Thing(name="b"))
                session.flush()
                raise ValueError("oh")
    with session_manager() as session:
        assert ["a"] == session.scalars(select(Thing.name)).all()

    assert ["commit"] == ran


@pytest.fixture
async def async_db(db: Database) -> AsyncIterator[Database]:
    """Give the other face of the same manager: one URL is a pair."""
    yield db
    await db.adispose()


@pytest.mark.anyio
class TestAsync:
    async def test_scopes(self, async_db: Database) -> None:
        """The async face of the pair joins, commits and calls back as any."""
        ran = []
        async with async_session_manager(auto_commit=True) as session:
            session.on_commit(lambda: ran.append("commit"))
            session.add(Thing(name="a"))
            async with async_session_manager() as inner:
                assert session is inner
        with session_manager() as sync_session:
            assert ["a"] == sync_session.scalars(select(Thing.name)).all()

        assert ["commit"] == ran

    async def test_read(self, async_db: Database) -> None:
        """Reading is asked of the database, for one transaction."""
        async with async_session_manager(role="read") as session:
            connection = await session.connection()
            with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                await connection.execute(insert(Thing).values(name="a"))
        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))

    async def test_concurrent_use(self, async_db: Database) -> None:
        """Two tasks at once: the second is told, the first is unharmed."""
        async with async_session_manager() as session:
            results = await asyncio.gather(
                session.scalar(text("SELECT 1")),
                session.scalar(text("SELECT 1")),
                return_exceptions=True,
            )

        assert 1 == results[0]
        assert isinstance(results[1], ConcurrentUseError)
