"""A stream is in use while it is read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import insert, select

from tenure import AsyncSession, ConcurrentUseError, Database, async_session_manager
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.anyio

ROWS = 20


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        async with db.async_session_manager(auto_commit=True) as session:
            names = [{"name": f"n{number:02}"} for number in range(ROWS)]
            await session.execute(insert(Thing), names)
        yield db
        assert [] == pools.out
        assert [] == pools.dirty


def stream(session: AsyncSession, scalars: bool) -> Any:  # a parameter of tests
    statement = select(Thing.name).order_by(Thing.name).execution_options(yield_per=5)
    return session.stream_scalars(statement) if scalars else session.stream(statement)


@pytest.mark.parametrize("scalars", [True, False])
class TestTwoTasks:
    async def test_refused(self, db: Database, scalars: bool) -> None:
        """Another task is refused between two rows, and the reader is unharmed."""
        async with async_session_manager() as session:
            rows = await stream(session, scalars)
            seen = [await anext(rows)]

            async def ask() -> None:
                await session.scalar(select(Thing.id))

            with pytest.raises(ConcurrentUseError, match=r"scalar\(\)"):
                await asyncio.create_task(ask())
            seen += [row async for row in rows]
            # It is read to its end.
            await asyncio.create_task(ask())

        assert ROWS == len(seen)

    async def test_closed(self, db: Database, scalars: bool) -> None:
        """One that is closed before its end is in use no more."""
        async with async_session_manager() as session:
            rows = await stream(session, scalars)
            await anext(rows)
            await rows.close()
            await asyncio.create_task(session.scalar(select(Thing.id)))

    async def test_reader_is_done(self, db: Database, scalars: bool) -> None:
        """Nobody waits for a task that has ended."""

        async def read() -> Any:
            rows = await stream(session, scalars)
            await anext(rows)
            return rows

        async with async_session_manager() as session:
            rows = await asyncio.create_task(read())
            await session.scalar(select(Thing.id))
            await rows.close()

    # psycopg tells of a server's cursor that the rollback has ended.
    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    async def test_rolled_back(self, db: Database, scalars: bool) -> None:
        """Ending the transaction is allowed, and ends the stream."""
        async with async_session_manager() as session:
            rows = await stream(session, scalars)
            await anext(rows)
            await asyncio.create_task(session.rollback())
            await asyncio.create_task(session.scalar(select(Thing.id)))
            await rows.close()


async def test_same_task(db: Database) -> None:
    """The reader itself may use the session meanwhile, where the driver can."""
    async with async_session_manager() as session:
        rows = await stream(session, True)  # scalars
        seen = [
            await session.scalar(select(Thing.name).where(Thing.name == row))
            async for row in rows
        ]

    assert ROWS == len(seen)
