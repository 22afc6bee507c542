"""``Database`` and its manager: pairs of engines, made late and disposed once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import create_async_engine

from tenure import (
    APP_CONTEXT,
    Database,
    RoutingError,
    SessionError,
    async_session_manager,
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
    assert APP_CONTEXT.get() is None


class TestEngines:
    async def test_made_late(self, async_url: str) -> None:
        """An engine is made when it is asked for, and is the same from then on."""
        db = Database({"default": async_url, "other": async_url})
        assert [] == list(db.manager.made())

        engine = db.manager.async_engines["default"]
        assert 1 == len(list(db.manager.made()))
        assert engine is db.manager.async_engines["default"]
        assert engine is not db.manager.async_engines["other"]
        await db.adispose()

    async def test_disposed_once(self, async_url: str) -> None:
        """After the end another engine would be made, if one is asked for."""
        async with Database(async_url) as db:
            engine = db.manager.async_engines["default"]
            await db.aping()
            assert 1 == engine.pool.checkedin()  # type: ignore[attr-defined]  # a pool that counts

        assert 0 == engine.pool.checkedin()  # type: ignore[attr-defined]  # same
        assert [] == list(db.manager.made())
        await db.adispose()
        assert engine is not db.manager.async_engines["default"]

    async def test_given(self, async_url: str) -> None:
        """An engine that was handed in is used as it is, and left to its owner."""
        engine = create_async_engine(async_url)
        async with Database({"default": engine}) as db:
            assert engine is db.manager.async_engines["default"]
            assert {"default": True} == await db.aping()
        assert 1 == engine.pool.checkedin()  # type: ignore[attr-defined]  # same
        await engine.dispose()

    async def test_options(self, async_url: str) -> None:
        """Options are for all databases, or for one."""
        async with Database(
            {
                "default": async_url,
                "small": {"url": async_url, "engine_options": {"pool_size": 1}},
            },
            pool_size=2,
        ) as db:
            engines = db.manager.async_engines
            assert 2 == engines["default"].pool.size()  # type: ignore[attr-defined]  # same
            assert 1 == engines["small"].pool.size()  # type: ignore[attr-defined]  # same

    async def test_foreign_keys(self, tmp_path: Path, async_url: str) -> None:
        """Foreign keys are enforced, on SQLite as well."""
        async with Database(async_url) as db:
            await db.acreate_all(Base.metadata)
            async with db.async_session() as session:
                await session.execute(text("INSERT INTO part (thing_id) VALUES (999)"))
                with pytest.raises(Exception, match=r"(?i)foreign key"):
                    await session.commit()

    @pytest.mark.sqlite
    async def test_memory(self) -> None:
        """SQLite's memory is one database, whatever connection looks at it."""
        async with Database("sqlite://") as db:
            await db.acreate_all(Base.metadata)
            async with db.async_session_manager(auto_commit=True) as session:
                session.add(Thing(name="a"))
            async with db.async_session() as one, db.async_session() as two:
                first = await one.scalar(select(Thing.name))
                second = await two.scalar(select(Thing.name))
                assert ("a", "a") == (first, second)

        async with Database("sqlite://") as other:
            async with other.async_session() as session:
                with pytest.raises(Exception, match="no such table"):
                    await session.scalar(select(Thing.name))


class TestApplication:
    async def test_current_inside(self, async_url: str) -> None:
        """A database is the current application inside of its block."""
        async with Database(async_url) as db:
            assert db is APP_CONTEXT.get()
        assert APP_CONTEXT.get() is None

    async def test_nested(self, async_url: str) -> None:
        """Blocks nest, and the last one disposes."""
        async with Database(async_url) as db:
            await db.aping()
            async with Database("sqlite://") as other:
                assert other is APP_CONTEXT.get()
                async with db:
                    assert db is APP_CONTEXT.get()
                assert other is APP_CONTEXT.get()
                assert 1 == len(list(db.manager.made()))
            assert db is APP_CONTEXT.get()
        assert [] == list(db.manager.made())

    async def test_interleaved(self) -> None:
        """Left in another order, nothing that was left is current again."""
        first, second, third = (Database("sqlite://") for _ in range(3))
        await first.__aenter__()
        await second.__aenter__()
        await third.__aenter__()
        await second.__aexit__(None, None, None)
        assert third is APP_CONTEXT.get()
        await third.__aexit__(None, None, None)
        assert first is APP_CONTEXT.get()
        await first.__aexit__(None, None, None)

        assert APP_CONTEXT.get() is None

    async def test_by_hand(self) -> None:
        """What was made current by other means inside is left alone."""
        other = Database("sqlite://")
        async with Database("sqlite://"):
            token = APP_CONTEXT.set(other)
        assert other is APP_CONTEXT.get()
        APP_CONTEXT.reset(token)
        APP_CONTEXT.set(None)

    async def test_after_an_error(self) -> None:
        """A block that fails is left like any other."""
        with pytest.raises(ZeroDivisionError):
            async with Database("sqlite://"):
                raise ZeroDivisionError

        assert APP_CONTEXT.get() is None

    async def test_installed(self) -> None:
        """The installed one stays it until it is disposed of, or another is."""
        first = Database("sqlite://").install()
        second = Database("sqlite://").install()
        await first.adispose()
        async with async_session_manager() as session:
            assert second.manager is session.routing
        await second.adispose()

        with pytest.raises(SessionError, match="no session factory"):
            await async_session_manager().__aenter__()

    async def test_options_of_a_block(self) -> None:
        """Its own blocks take the options of any."""
        async with Database("sqlite://") as db:
            with pytest.raises(SessionError, match="on_missing"):
                async with db.async_session_manager(on_missing="raise"):
                    pytest.fail("the block must not run")

    async def test_unknown_alias(self) -> None:
        """A database that is not there is named, with those that are."""
        async with Database({"a": "sqlite://", "b": "sqlite://"}) as db:
            with pytest.raises(RoutingError) as caught:
                await db.acreate_all(Base.metadata, alias="c")

        assert "no database 'c'; known: 'a', 'b'" == str(caught.value)
        assert isinstance(caught.value, KeyError)
