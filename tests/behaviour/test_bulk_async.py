"""What bulks promise in async code only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from pydantic import TypeAdapter

from tenure import (
    AsyncSession,
    ConcurrentUseError,
    Database,
    Ref,
    Resolution,
    UnresolvedReferenceError,
)
from tests.fixtures.models import Author, Base, Country

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


@pytest.fixture
async def session(async_url: str) -> AsyncIterator[AsyncSession]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        async with db.async_session() as session:
            session.add(Country(code="fr", name="France"))
            await session.commit()
            session.expunge_all()
            yield session


async def test_says_hydrate(session: AsyncSession) -> None:
    """An attribute that is not loaded says how to load it."""
    async with session.bulk() as bulk:
        country = TypeAdapter(Ref[Country]).validate_python("fr")
        await bulk.resolve()

        assert isinstance(country.id, int)
        with pytest.raises(UnresolvedReferenceError, match="hydrate") as caught:
            country.name  # noqa: B018 - reading is the test
        assert caught.value.is_bound
        await bulk.resolve(strategy="hydrate")
    assert "France" == country.name


async def test_adding_while_resolving(session: AsyncSession) -> None:
    """Another task may add while one resolves: it waits for nobody."""
    adapter = TypeAdapter(Ref[Country])
    async with session.bulk() as bulk:
        for number in range(500):
            adapter.validate_python(f"{number:03}")

        async def add() -> None:
            for number in range(500, 1_000):
                adapter.validate_python(f"{number:03}")
                bulk.add(Author(code=str(number)))
                await asyncio.sleep(0)

        async with asyncio.timeout(60):
            resolution, _ = await asyncio.gather(
                bulk.resolve(raise_errors=False), add()
            )
        again = await bulk.resolve(raise_errors=False)

    assert 500 <= resolution.unresolved <= 1_000
    assert 1_000 == again.unresolved


async def test_both_resolve(session: AsyncSession) -> None:
    """Of two tasks that resolve at once each gets its answer, or is told to wait."""
    async with session.bulk() as bulk:
        country = TypeAdapter(Ref[Country]).validate_python("fr")
        async with asyncio.timeout(60):
            both = await asyncio.gather(
                bulk.resolve(), bulk.resolve(), return_exceptions=True
            )
            await bulk.resolve(strategy="hydrate")

    assert {Resolution} <= {type(each) for each in both}
    assert {Resolution, ConcurrentUseError} >= {type(each) for each in both}
    assert "France" == country.name


async def test_cancelled(session: AsyncSession) -> None:
    """A look-up that is cancelled leaves the bulk as it was, and usable."""
    async with session.bulk() as bulk:
        country = TypeAdapter(Ref[Country]).validate_python("fr")
        task = asyncio.create_task(bulk.resolve())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await session.rollback()
        async with asyncio.timeout(60):
            await bulk.resolve(strategy="hydrate")

    assert "France" == country.name


async def test_resolved_by_two_tasks(session: AsyncSession) -> None:
    """The second of two at once is refused, and nothing stays locked."""
    async with session.bulk() as bulk:
        country = TypeAdapter(Ref[Country]).validate_python("fr")
        async with asyncio.timeout(60):
            results = await asyncio.gather(
                bulk.resolve(), bulk.resolve(), return_exceptions=True
            )
            again = await bulk.resolve(strategy="hydrate")

    refused = [each for each in results if isinstance(each, BaseException)]
    assert [ConcurrentUseError] == list(map(type, refused))
    assert 1 == again.resolved
    assert "France" == country.name
