"""One manager, several event loops: in turn, and side by side."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, get_ident
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, QueuePool

from tenure import Database, DatabaseManager


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """See to it that nobody complains, aloud or in the log, now or later."""
    with caplog.at_level(logging.WARNING):
        yield
        gc.collect()

    assert [] == [record.getMessage() for record in caplog.records]


async def ask(manager: DatabaseManager, question: str = "SELECT 1") -> Any:
    async with manager.async_engines["default"].connect() as connection:
        return await connection.scalar(text(question))


async def ask_at_once(manager: DatabaseManager) -> list[Any]:
    return await asyncio.gather(*(ask(manager) for _ in range(5)))


def made(manager: DatabaseManager) -> list[Any]:
    """Note the connections of the async engine as they are made."""
    connections: list[Any] = []
    engine = manager.async_engines["default"].sync_engine
    event.listen(
        engine, "connect", lambda connection, _: connections.append(connection)
    )
    return connections


class TestInTurn:
    def test_sessions(self, async_url: str) -> None:
        """Sessions of one database work in one loop after the other."""
        db = Database(async_url)

        async def work() -> Any:
            async with db.async_session_manager() as session:
                return await session.scalar(text("SELECT 1"))

        assert [1, 1, 1] == [asyncio.run(work()) for _ in range(3)]
        asyncio.run(db.adispose())

    def test_never_disposed(self, async_url: str) -> None:
        """Connections are closed as their loop ends, and none is left to anybody."""
        manager = DatabaseManager(async_url)
        connections = made(manager)

        assert [1] * 5 == asyncio.run(ask_at_once(manager))
        count = len(connections)
        assert 1 == asyncio.run(ask(manager))
        assert count + 1 == len(connections)
        assert 0 == manager.async_engines["default"].sync_engine.pool.checkedout()

    def test_one_loop_reuses(self, async_url: str) -> None:
        """Inside of one loop a connection is used again."""
        manager = DatabaseManager(async_url)
        connections = made(manager)

        async def work() -> None:
            for _ in range(3):
                await ask(manager)

        asyncio.run(work())

        assert 1 == len(connections)

    def test_closed_at_once(self, async_url: str) -> None:
        """A loop that is closed without further ado leaves nothing that is used."""
        manager = DatabaseManager(async_url)
        for _ in range(2):
            loop = asyncio.new_event_loop()
            assert 1 == loop.run_until_complete(ask(manager))
            if "asyncpg" in async_url:
                # Its transports cannot be closed afterwards.
                loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
        asyncio.run(manager.adispose())

    def test_disposed_in_another(self, async_url: str) -> None:
        """Disposing in another loop than the one that was used is fine."""
        manager = DatabaseManager(async_url)
        asyncio.run(ask(manager))
        asyncio.run(manager.adispose())

        assert 1 == asyncio.run(ask(manager))

    def test_in_use_as_the_loop_ends(self, async_url: str) -> None:
        """What a generator holds as the loop ends comes back later, and is closed."""
        manager = DatabaseManager(async_url)

        async def rows() -> Any:
            async with manager.async_engines["default"].connect() as connection:
                yield await connection.scalar(text("SELECT 1"))

        generators = []

        async def work() -> None:
            generators.append(rows())
            assert 1 == await anext(generators[0])

        asyncio.run(work())

        assert 0 == manager.async_engines["default"].sync_engine.pool.checkedout()
        assert 1 == asyncio.run(ask(manager))


class TestSideBySide:
    def test_threads(self, async_url: str) -> None:
        """Loops of several threads have connections each, from the first one on."""
        manager = DatabaseManager(async_url)
        connections = made(manager)
        barrier = Barrier(4)

        async def work() -> list[Any]:
            barrier.wait()
            answers = await ask_at_once(manager)
            return answers + await ask_at_once(manager)

        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(lambda _: asyncio.run(work()), range(4)))

        assert [[1] * 10] * 4 == answers
        assert 4 <= len(connections)

    def test_busy_pool(self, async_url: str) -> None:
        """Tasks wait for a connection of their own loop."""
        manager = DatabaseManager(async_url, pool_size=1, max_overflow=0)
        barrier = Barrier(2)

        async def work() -> list[Any]:
            barrier.wait()
            return await ask_at_once(manager)

        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda _: asyncio.run(work()), range(2)))

        assert [[1] * 5] * 2 == answers

    def test_disposed_by_one(self, async_url: str) -> None:
        """A loop that disposes has the other one close its connections."""
        manager = DatabaseManager(async_url)
        asked, disposed = Barrier(2), Barrier(2)

        async def one() -> None:
            await ask(manager)
            await asyncio.to_thread(asked.wait)
            await manager.adispose()
            await asyncio.to_thread(disposed.wait)

        async def other() -> Any:
            engine = manager.async_engines["default"]
            await ask(manager)
            closed = asyncio.Event()
            thread = get_ident()

            def close(*_: Any) -> None:
                if get_ident() == thread:
                    closed.set()

            event.listen(engine.sync_engine, "close", close)
            await asyncio.to_thread(asked.wait)
            await asyncio.to_thread(disposed.wait)
            await asyncio.wait_for(closed.wait(), 10)
            return await ask(manager)

        with ThreadPoolExecutor(2) as threads:
            first = threads.submit(asyncio.run, one())
            assert 1 == threads.submit(asyncio.run, other()).result()
            first.result()
        asyncio.run(manager.adispose())


class TestPool:
    """What SQLAlchemy's pool does for one loop, ours does for each."""

    @pytest.mark.parametrize(
        ("given_", "is_queue"),
        [
            (None, True),
            (AsyncAdaptedQueuePool, True),
            (QueuePool, True),
            (NullPool, False),
        ],
    )
    def test_class(self, async_url: str, given_: Any, is_queue: bool) -> None:
        """A pool class for one engine of the pair becomes the other's like it."""
        options = {} if given_ is None else {"poolclass": given_}
        manager = DatabaseManager(async_url, **options)
        sync = manager.engines["default"]
        pool = manager.async_engines["default"].sync_engine.pool

        assert is_queue is isinstance(pool, AsyncAdaptedQueuePool)
        assert is_queue is isinstance(sync.pool, QueuePool)
        assert not isinstance(sync.pool, AsyncAdaptedQueuePool)
        assert [1, 1] == [asyncio.run(ask(manager)) for _ in range(2)]
        manager.dispose()

    def test_numbers(self, async_url: str) -> None:
        """It can be asked for the numbers that any queue gives."""
        manager = DatabaseManager(async_url, pool_size=2, max_overflow=1)
        pool = manager.async_engines["default"].sync_engine.pool
        assert isinstance(pool, AsyncAdaptedQueuePool)
        seen = [(pool.size(), pool.checkedin(), pool.checkedout(), pool.overflow())]

        async def work() -> None:
            engine = manager.async_engines["default"]
            async with engine.connect(), engine.connect(), engine.connect():
                seen.append((2, pool.checkedin(), pool.checkedout(), pool.overflow()))
            seen.append((2, pool.checkedin(), pool.checkedout(), pool.overflow()))

        asyncio.run(work())

        assert [(2, 0, 0, -2), (2, 0, 3, 1), (2, 2, 0, 0)] == seen
        assert "Pool size: 2" in pool.status()

    def test_listeners(self, async_url: str) -> None:
        """One that comes late is heard all the same, in every loop."""
        manager = DatabaseManager(async_url)
        asyncio.run(ask(manager))
        heard: list[str] = []
        engine = manager.async_engines["default"].sync_engine
        event.listen(engine, "checkout", lambda *_: heard.append("checkout"))
        event.listen(engine, "checkin", lambda *_: heard.append("checkin"))
        asyncio.run(ask(manager))

        assert ["checkout", "checkin"] == heard

    def test_log(self, async_url: str, caplog: pytest.LogCaptureFixture) -> None:
        """It logs where SQLAlchemy's pools do."""
        manager = DatabaseManager(async_url)
        with caplog.at_level(logging.DEBUG, "sqlalchemy.pool"):
            asyncio.run(ask(manager))
        messages = [record.getMessage() for record in caplog.records]
        caplog.clear()

        assert any(message.startswith("Created new") for message in messages)
        assert any(message.startswith("Closing") for message in messages)

    @pytest.mark.postgresql
    def test_lost(self, databases: Any, tmp_path: Any) -> None:
        """After one connection was lost, none that is older is used."""
        with databases.fresh("postgresql+asyncpg", tmp_path) as url:
            manager = DatabaseManager(url)
            connections = made(manager)

            async def work() -> None:
                engine = manager.async_engines["default"]
                async with engine.connect() as first, engine.connect() as second:
                    own = await second.scalar(text("SELECT pg_backend_pid()"))
                    kill = text("SELECT pg_terminate_backend(:pid)")
                    await first.execute(kill, {"pid": own})
                    with pytest.raises(DBAPIError) as caught:
                        await second.execute(text("SELECT 1"))
                    assert caught.value.connection_invalidated
                assert 2 == len(connections)
                async with engine.connect(), engine.connect():
                    assert 4 == len(connections)
                await manager.adispose()

            asyncio.run(work())


SCRIPT = """
import asyncio, sys
from sqlalchemy import text
from tenure import Database

db = Database(sys.argv[1])

async def work():
    async with db.async_session_manager() as session:
        return await session.scalar(text("SELECT 1"))

print(asyncio.run(work()), asyncio.run(work()))
"""


def test_program(async_url: str) -> None:
    """A program with two loops ends in silence, also where Python is strict."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT, async_url],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "1 1\n", "") == (done.returncode, done.stdout, done.stderr)
