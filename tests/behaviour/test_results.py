"""Errors of results that are ours: of rows fetched late, and of streams."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import MetaData, Sequence, text
from sqlalchemy.exc import MissingGreenlet, NoResultFound, OperationalError

from tenure import AsyncSession, Database, DatabaseError
from tests.fixtures.shop import Base, City, Person

sqlite = pytest.mark.sqlite

# The third row cannot be read; SQLite finds out when it is fetched.
OVERFLOWS = text(
    "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 5) "
    "SELECT abs(CASE n WHEN 3 THEN -9223372036854775808 ELSE n END) AS n FROM c"
)
NONE = text("SELECT 1 WHERE 1 = 0")


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Database]:
    with Database(f"sqlite:///{tmp_path / 'a.db'}") as db:
        yield db


@pytest.fixture
async def session(db: Database) -> AsyncIterator[AsyncSession]:
    async with db.async_session_manager() as session:
        yield session
    await db.adispose()


@sqlite
@pytest.mark.parametrize(
    "read",
    [
        lambda result: result.all(),
        lambda result: list(iter(result)),
        lambda result: list(result.scalars()),
        lambda result: list(result.partitions(2)),
        lambda result: [next(result) for _ in range(5)],
        lambda result: result.mappings().fetchall(),
        lambda result: result.freeze(),
    ],
)
def test_fetched(db: Database, read: Any) -> None:
    with db.session_manager() as session:
        result = session.execute(OVERFLOWS)
        with pytest.raises(DatabaseError) as caught:
            read(result)
    assert isinstance(caught.value, OperationalError)


@pytest.mark.postgresql
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")
def test_sequence(postgresql_url: str) -> None:
    """What is executed may give a value instead of a result."""
    numbers = Sequence("numbers", metadata=MetaData())
    with Database(postgresql_url) as db, db.session_manager() as session:
        numbers.create(session.connection())
        found: Any = session.execute(numbers)
        assert 1 == found
        assert 2 == session.scalar(numbers)


@sqlite
class TestStreams:
    @pytest.mark.parametrize("name", ["one", "scalar_one"])
    @pytest.mark.anyio
    async def test_none(self, session: AsyncSession, name: str) -> None:
        result = await session.stream(NONE)
        with pytest.raises(DatabaseError) as caught:
            await getattr(result, name)()
        assert isinstance(caught.value, NoResultFound)

    @pytest.mark.anyio
    async def test_fetched(self, session: AsyncSession) -> None:
        result = await session.stream(OVERFLOWS)
        with pytest.raises(DatabaseError) as caught:
            async for _ in result:
                pass
        assert isinstance(caught.value, OperationalError)
        await result.close()

    @pytest.mark.anyio
    async def test_partitions(self, session: AsyncSession) -> None:
        result = await session.stream_scalars(OVERFLOWS)
        with pytest.raises(DatabaseError):
            async for _ in result.partitions(1):
                pass
        await result.close()

    @pytest.mark.anyio
    async def test_derived(self, session: AsyncSession) -> None:
        result = await session.stream(NONE)
        with pytest.raises(DatabaseError):
            await result.mappings().one()


@sqlite
def test_refused_iterator(db: Database) -> None:
    """A generator of rows can be left early, and reading goes on after it."""
    with db.session_manager() as session:
        result = session.execute(text("SELECT 1 UNION SELECT 2 UNION SELECT 3"))
        for row in result:
            assert (1,) == row
            break
        assert (2,) == result.fetchone()
        assert [(3,)] == list(result)


@sqlite
@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.anyio
async def test_read_in_async_code(db: Database) -> None:
    """What async code cannot load says how it could have been."""
    db.create_all(Base.metadata)
    async with db.async_session_manager(auto_commit=True) as session:
        session.add(Person(id=1, name="ada", city=City(id=1, code="par")))
    async with db.async_session_manager() as session:
        person = await session.get_one(Person, 1)
        with pytest.raises(DatabaseError) as loaded:
            _ = person.city
        session.expire(person, ["name"])
        with pytest.raises(DatabaseError) as expired:
            _ = person.name
        for caught in (loaded, expired):
            error: Any = caught.value
            assert isinstance(error.orig, MissingGreenlet)
        (note,) = loaded.value.__notes__
        assert note.startswith("Person.city was not loaded, and async code cannot")
        assert "selectinload(Person.city)" in note
        assert "await session.refresh(instance, ['city'])" in note
        (note,) = expired.value.__notes__
        assert note.startswith("Person.name was expired, by a commit or by expire()")
        # As the note says.
        await session.refresh(person, ["name", "city"])
        assert ("ada", "par") == (person.name, person.city and person.city.code)
    await db.adispose()
    # What nobody awaited warns when it is collected: here, not in another test.
    del loaded, expired, caught, error
    gc.collect()
