"""A database with the tables of ``tests.fixtures.models``, and a session on it."""

from collections.abc import AsyncIterator

import pytest

from tenure import AsyncSession, Database
from tests.fixtures.models import Base


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


@pytest.fixture
async def session(db: Database) -> AsyncIterator[AsyncSession]:
    async with db.async_session() as session:
        yield session
