"""Which sessions are open, and which were forgotten."""

from __future__ import annotations

import gc
import logging
from collections.abc import AsyncIterator
from threading import Event
from typing import Any

import pytest
from sqlalchemy import select

from tenure import Database, SessionError, async_session_manager
from tenure.scopes.reports import LeakWatch
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database({"default": async_url, "other": async_url}) as db:
        await db.acreate_all(Base.metadata)
        yield db
    assert [] == pools.out


class TestReport:
    async def test_nothing(self, db: Database) -> None:
        """A session that nobody uses is not open."""
        async with db.async_session():
            assert [] == db.report()

    async def test_block(self, db: Database) -> None:
        """A block is open until its end, with or without a transaction."""
        async with async_session_manager(role="read") as session:
            (found,) = db.report()
            assert "session_manager" in str(found.scope)
            assert "read" == found.role
            assert not found.in_transaction
            assert __file__ == found.line.file
            assert "test_block" in found.line.function
            assert 0 <= found.age < 60
            await session.scalars(select(Thing))
            (found,) = db.report()
            assert found.in_transaction
            assert ("default",) == found.engines
            assert "FROM thing" in str(found.statement)
            assert found.stack is None
        assert [] == db.report()

    async def test_transaction(self, db: Database) -> None:
        """A session outside of blocks is open while it is in a transaction."""
        async with db.async_session() as session:
            await session.scalars(select(Thing), execution_options={"engine": "other"})
            (found,) = db.report()
            assert found.scope is None
            assert ("other",) == found.engines
            assert (__file__, "test_transaction") == (
                found.line.file,
                found.line.function,
            )
            await session.commit()
            assert [] == db.report()

    async def test_order(self, db: Database) -> None:
        """Those open longest come first; those of other databases not at all."""
        async with async_session_manager(), Database("sqlite://") as other:
            async with async_session_manager(new=True, using=db.async_session):
                assert 2 == len(db.report())
                assert db.report()[0].age >= db.report()[1].age
                assert [] == other.report()

    async def test_debug(self, async_url: str) -> None:
        """With debug the stack that has opened a block is kept."""
        async with Database(async_url, debug=True) as db:
            async with db.async_session_manager():
                (found,) = db.report()
        assert found.stack is not None
        assert "test_debug" == found.stack[-1].name
        assert "opened by:" in str(found)

    async def test_text(self, db: Database) -> None:
        """It is to be read: who, where, how long, on what."""
        async with async_session_manager() as session:
            await session.scalars(select(Thing.id))
            text = str(db.report()[0])

        assert f"session_manager at {__file__}" in text
        assert "role any, in transaction on default\n  last statement: SELECT" in text


class TestLeaks:
    async def test_dropped(self, db: Database) -> None:
        """A session that is dropped inside of a transaction says where it began."""

        async def forget() -> None:
            session = db.async_session()
            await session.scalars(select(Thing))
            # Given back, so that it is the session alone that is lost.
            connection = await session.connection()
            await connection.close()

        async def lose() -> None:
            await forget()
            gc.collect()

        with pytest.warns(ResourceWarning, match=r"test_reports.*in .*forget"):
            await lose()

    async def test_closed(self, db: Database, recwarn: pytest.WarningsRecorder) -> None:
        """One that was closed says nothing."""
        session = db.async_session()
        await session.scalars(select(Thing))
        await session.close()
        del session
        gc.collect()

        assert [] == [each for each in recwarn if each.category is ResourceWarning]

    async def test_threshold(
        self, db: Database, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A session that is open for too long is logged, once."""
        watch = LeakWatch(db.manager, 3600)
        async with async_session_manager() as session:
            with caplog.at_level(logging.WARNING, "tenure"):
                watch.look()
                assert [] == caplog.records
                watch = LeakWatch(db.manager, 0)
                watch.look()
                watch.look()
            assert 1 == len([r for r in caplog.records if str(__file__) in r.message])
            assert session is not None

    async def test_thread(
        self, async_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A database with a threshold looks by itself."""
        has_logged = Event()
        log = logging.getLogger("tenure")
        monkeypatch.setattr(log, "warning", lambda *args: has_logged.set())
        async with Database(async_url, leak_threshold=0.001) as db:
            async with db.async_session_manager():
                assert has_logged.wait(30)

    @pytest.mark.parametrize("wrong", [0, -1, "30"])
    def test_wrong_threshold(self, wrong: Any) -> None:
        """A threshold is a number of seconds."""
        with pytest.raises(SessionError, match="leak_threshold is a number of seconds"):
            Database("sqlite://", leak_threshold=wrong)
