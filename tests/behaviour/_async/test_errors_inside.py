"""Errors are ours as soon as they leave a session or a result, and say what to do."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, text
from sqlalchemy.exc import (
    MultipleResultsFound,
    NoResultFound,
    ResourceClosedError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.orm.exc import DetachedInstanceError

from tenure import Database, DatabaseError
from tests.fixtures.pools import Pools

pytestmark = [pytest.mark.anyio, pytest.mark.sqlite]

NONE = text("SELECT 1 WHERE 1 = 0")
TWO = text("SELECT 1 AS n UNION SELECT 2")


class Base(DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "country"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    hymn: Mapped[str | None] = mapped_column(deferred=True)
    cities: Mapped[list[City]] = relationship(back_populates="country")


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    country_id: Mapped[int] = mapped_column(ForeignKey("country.id"))
    country: Mapped[Country] = relationship(back_populates="cities")


@pytest.fixture
async def db(tmp_path: Path, pools: Pools) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    async with Database(url, pool_size=1, max_overflow=0, pool_timeout=0.05) as db:
        await db.acreate_all(Base.metadata)
        async with db.async_session_manager(auto_commit=True) as session:
            session.add(City(id=1, country=Country(id=1, name="fr")))
        yield db
    assert [] == pools.out


class TestResults:
    @pytest.mark.parametrize(
        "read",
        [
            lambda result: result.one(),
            lambda result: result.scalar_one(),
            lambda result: result.scalars().one(),
            lambda result: result.scalars().unique().one(),
            lambda result: result.mappings().one(),
            lambda result: result.columns(0).one(),
        ],
    )
    async def test_none(self, db: Database, read: Any) -> None:
        async with db.async_session_manager() as session:
            with pytest.raises(DatabaseError) as caught:
                read(await session.execute(NONE))
        assert isinstance(caught.value, NoResultFound)
        assert isinstance(caught.value.__cause__, NoResultFound)

    async def test_scalars(self, db: Database) -> None:
        async with db.async_session_manager() as session:
            with pytest.raises(DatabaseError) as caught:
                (await session.scalars(TWO)).one()
        assert isinstance(caught.value, MultipleResultsFound)

    async def test_closed(self, db: Database) -> None:
        async with db.async_session_manager() as session:
            result = await session.execute(TWO)
            result.close()
            for read in (result.all, lambda: list(result)):
                with pytest.raises(DatabaseError) as caught:
                    read()
                assert isinstance(caught.value, ResourceClosedError)

    async def test_same(self, db: Database) -> None:
        """A result is what it was otherwise, and can be frozen, merged, pickled."""
        async with db.async_session_manager() as session:
            result = await session.execute(TWO)
            plain = type(result).__mro__[1]
            assert type(result).__name__ == plain.__name__
            frozen = result.freeze()
            assert [1, 2] == frozen().scalars().all()
            assert [1, 2, 1, 2] == frozen().merge(frozen()).scalars().all()
            again = pickle.loads(pickle.dumps(frozen))
            assert [1, 2] == again().scalars().all()


class TestUnloaded:
    """What cannot be loaded where it is read says how it could have been."""

    async def test_not_loaded(self, db: Database) -> None:
        async with db.async_session_manager() as session:
            city = await session.get(City, 1)
            country = await session.get(Country, 1)
        for read, name in (
            (lambda: city.country, r"selectinload\(City\.country\)"),
            (lambda: country.cities, r"selectinload\(Country\.cities\)"),
            (lambda: country.hymn, r"undefer\(Country\.hymn\)"),
        ):
            with pytest.raises(DetachedInstanceError) as caught:
                read()
            (note,) = caught.value.__notes__
            assert "was not loaded" in note
            assert "its block has ended" in note
            assert name.replace("\\", "") in note

    async def test_expired(self, db: Database) -> None:
        async with db.async_session_manager(auto_commit=True, expire=True) as session:
            country = await session.get(Country, 1)
        for read, name in (
            (lambda: country.name, "Country.name"),
            (lambda: country.id, "Country.id"),
        ):
            with pytest.raises(DetachedInstanceError) as caught:
                read()
            (note,) = caught.value.__notes__
            assert note.startswith(f"{name} was expired, by a commit")
            assert "expire=False" in note


class TestPools:
    async def test_holders(self, db: Database) -> None:
        """Who waits in vain for a connection learns who has it."""
        async with db.async_session_manager() as holder:
            await holder.execute(TWO)
            with pytest.raises(DatabaseError) as caught:
                async with db.async_session_manager(new=True) as session:
                    await session.execute(NONE)
        assert isinstance(caught.value, PoolTimeoutError)
        (note,) = caught.value.__notes__
        assert note.startswith("its connections are held by:\n")
        assert "session_manager at " in note
        assert "test_errors_inside.py" in note
        assert "in transaction on default" in note
        assert "last statement: SELECT 1 AS n UNION SELECT 2" in note

    async def test_without_a_session(self, db: Database) -> None:
        async with db.manager.async_engines["default"].connect():
            with pytest.raises(DatabaseError) as caught:
                async with db.async_session_manager() as session:
                    await session.execute(NONE)
        assert ["no session holds its connections: they are used without one"] == (
            caught.value.__notes__
        )
