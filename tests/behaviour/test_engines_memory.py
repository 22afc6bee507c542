"""SQLite's memory: one database for both engines of a manager, and for it alone."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import NullPool, StaticPool

from tenure import Database, DatabaseManager

URLS = [
    "sqlite://",
    "sqlite:///:memory:",
    "sqlite+pysqlite:///:memory:",
    "sqlite+aiosqlite://",
    "sqlite:///:memory:?cache=shared",
    "sqlite:///file::memory:?uri=true",
    "sqlite:///file:mine?mode=memory&uri=true",
    "sqlite://?timeout=1&uri=true",
]
CREATE = "CREATE TABLE t (a INTEGER)"
INSERT = "INSERT INTO t VALUES (1)"
COUNT = "SELECT count(*) FROM t"


def do(engine: Engine, *statements: str) -> Any:
    with engine.begin() as connection:
        answers = [connection.execute(text(statement)) for statement in statements]
        return answers[-1].scalar() if answers[-1].returns_rows else None


async def ado(engine: AsyncEngine, *statements: str) -> Any:
    async with engine.begin() as connection:
        answers = [
            await connection.execute(text(statement)) for statement in statements
        ]
        return answers[-1].scalar() if answers[-1].returns_rows else None


@pytest.mark.anyio
class TestSharing:
    @pytest.mark.parametrize("url", URLS)
    async def test_both_faces(self, url: str) -> None:
        """What one engine writes, the other one reads."""
        manager = DatabaseManager(url)
        sync, asynchronous = (
            manager.engines["default"],
            manager.async_engines["default"],
        )
        do(sync, CREATE, INSERT)
        await ado(asynchronous, INSERT)

        assert 2 == do(sync, COUNT)
        assert 2 == await ado(asynchronous, COUNT)
        await manager.adispose()

    @pytest.mark.parametrize("url", URLS)
    async def test_two_managers(self, url: str) -> None:
        """Two managers have a database each, though they were told the same."""
        first, second = DatabaseManager(url), DatabaseManager(url)
        do(first.engines["default"], CREATE)
        with pytest.raises(OperationalError, match="no such table"):
            do(second.engines["default"], COUNT)
        with pytest.raises(OperationalError, match="no such table"):
            await ado(second.async_engines["default"], COUNT)
        await first.adispose()
        await second.adispose()

    async def test_two_aliases(self) -> None:
        """So have two aliases of one manager."""
        manager = DatabaseManager({"a": "sqlite://", "b": "sqlite://"})
        do(manager.engines["a"], CREATE)
        with pytest.raises(OperationalError, match="no such table"):
            await ado(manager.async_engines["b"], COUNT)
        await manager.adispose()

    @pytest.mark.parametrize("poolclass", [NullPool, StaticPool])
    async def test_lives_without_connections(self, poolclass: Any) -> None:
        """It lives while its manager does, though no connection is kept in a pool."""
        manager = DatabaseManager("sqlite://", poolclass=poolclass)
        do(manager.engines["default"], CREATE, INSERT)
        manager.engines["default"].dispose()
        await ado(manager.async_engines["default"], INSERT)
        await manager.async_engines["default"].dispose()

        assert 2 == do(manager.engines["default"], COUNT)
        await manager.adispose()

    async def test_ends_with_dispose(self) -> None:
        """Disposed of, the manager begins with an empty one."""
        manager = DatabaseManager("sqlite://")
        do(manager.engines["default"], CREATE)
        await manager.adispose()
        with pytest.raises(OperationalError, match="no such table"):
            do(manager.engines["default"], COUNT)
        manager.dispose()

    async def test_half_disposed(self) -> None:
        """The async engine's data outlives the disposal of the sync one."""
        manager = DatabaseManager("sqlite://")
        await ado(manager.async_engines["default"], CREATE, INSERT)
        manager.dispose()

        assert 1 == do(manager.engines["default"], COUNT)
        await manager.adispose()

    @pytest.mark.parametrize(
        "url",
        [
            "sqlite:///file:named?mode=memory&cache=shared&uri=true",
            "sqlite:///file::memory:?cache=shared&uri=true",
            "sqlite:///file:/named?vfs=memdb&uri=true",
        ],
    )
    async def test_named(self, url: str) -> None:
        """One that was given a name is shared by whoever knows it, in any thread."""
        first, second = DatabaseManager(url), DatabaseManager(url)
        do(first.engines["default"], CREATE)
        await ado(second.async_engines["default"], INSERT)

        assert 1 == do(first.engines["default"], COUNT)
        assert 1 == await asyncio.to_thread(do, first.engines["default"], COUNT)
        await first.adispose()
        await second.adispose()

    async def test_foreign_keys(self) -> None:
        """It enforces foreign keys, as files do."""
        manager = DatabaseManager("sqlite://")

        assert 1 == do(manager.engines["default"], "PRAGMA foreign_keys")
        assert 1 == await ado(manager.async_engines["default"], "PRAGMA foreign_keys")
        await manager.adispose()


@pytest.mark.anyio
class TestConcurrency:
    async def test_reader_beside_reader(self) -> None:
        """A transaction that has read does not keep the other engine from writing."""
        manager = DatabaseManager("sqlite://")
        do(manager.engines["default"], CREATE)
        async with manager.async_engines["default"].connect() as reader:
            await reader.execute(text(COUNT))
            do(manager.engines["default"], INSERT)
            assert 1 == await reader.scalar(text(COUNT))
        await manager.adispose()

    async def test_reader_waits_for_writer(self) -> None:
        """What is not committed is not seen; who asks waits, and the loop goes on."""
        manager = DatabaseManager("sqlite://")
        do(manager.engines["default"], CREATE)
        with manager.engines["default"].connect() as writer:
            writer.execute(text(INSERT))
            asked = asyncio.create_task(ado(manager.async_engines["default"], COUNT))
            done, _ = await asyncio.wait([asked], timeout=0.2)
            assert set() == done
            writer.commit()

        assert 1 == await asked
        await manager.adispose()

    async def test_waiting_ends(self) -> None:
        """Who waits for what cannot come gets SQLite's error after its timeout."""
        manager = DatabaseManager("sqlite://?timeout=0.1")
        do(manager.engines["default"], CREATE)
        async with manager.async_engines["default"].begin() as writer:
            await writer.execute(text(INSERT))
            with pytest.raises(OperationalError, match="database is locked"):
                do(manager.engines["default"], INSERT)
        do(manager.engines["default"], INSERT)

        assert 2 == do(manager.engines["default"], COUNT)
        await manager.adispose()

    async def test_threads_and_tasks(self) -> None:
        """Writers of both kinds take turns; none fails, and nothing is lost."""
        manager = DatabaseManager("sqlite://", pool_size=8)
        do(manager.engines["default"], CREATE)
        barrier = Barrier(4)

        def work() -> None:
            barrier.wait()
            for _ in range(25):
                do(manager.engines["default"], INSERT, COUNT)

        async def task() -> None:
            for _ in range(25):
                await ado(manager.async_engines["default"], INSERT, COUNT)

        with ThreadPoolExecutor(4) as threads:
            loop = asyncio.get_running_loop()
            workers = [loop.run_in_executor(threads, work) for _ in range(4)]
            await asyncio.gather(*workers, *(task() for _ in range(4)))

        assert 200 == do(manager.engines["default"], COUNT)
        await manager.adispose()


def test_two_loops() -> None:
    """Data outlives the event loop that wrote it."""
    db = Database("sqlite://")
    asyncio.run(ado(db.manager.async_engines["default"], CREATE, INSERT))

    assert 1 == asyncio.run(ado(db.manager.async_engines["default"], COUNT))
    asyncio.run(db.adispose())


def test_collected() -> None:
    """A manager that nobody disposes of takes its database with it."""
    manager = DatabaseManager("sqlite://", poolclass=NullPool)
    do(manager.engines["default"], CREATE)
    memory = weakref.ref(manager._pairs["default"].memory)
    anchor = manager._pairs["default"].memory._anchor
    assert anchor is not None
    del manager
    gc.collect()

    assert memory() is None
    with pytest.raises(Exception, match="closed database"):
        anchor.execute("SELECT 1")


SCRIPT = """
import gc
from sqlalchemy import text
from tenure import DatabaseManager

manager = DatabaseManager("sqlite://")
with manager.engines["default"].connect() as connection:
    connection.execute(text("SELECT 1"))
engine = manager.engines["default"]
del manager
gc.collect()
with engine.connect() as connection:
    print(connection.scalar(text("SELECT 1")))
engine.dispose()
"""


def test_never_disposed(tmp_path: Path) -> None:
    """A program may end without disposing of anything, and no warning tells of it."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )

    assert (0, "1\n", "") == (done.returncode, done.stdout, done.stderr)
    assert [] == list(tmp_path.iterdir())
