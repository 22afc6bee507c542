"""Owners that end while another task or thread is in a block that has joined."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.orm import Session as PlainSession

from tenure import (
    SESSION_CONTEXT,
    AsyncSession,
    Database,
    Session,
    SessionError,
    async_session_manager,
    session_manager,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

AsyncMake = Callable[..., Database]
timeouts = pytest.mark.parametrize("seconds", [60, math.inf])


@pytest.fixture
async def make_async(async_url: str, pools: Pools) -> AsyncIterator[AsyncMake]:
    """Give what makes the database, installed; nothing of it is left open."""
    made: list[Database] = []

    def make(**options: Any) -> Database:
        made.append(Database(async_url, **options))
        return made[-1]

    yield make
    for db in made:
        assert [] == db.report()
        await db.adispose()
    assert [] == pools.out
    assert [] == pools.dirty


@pytest.fixture
def make(url: str, pools: Pools) -> Iterator[Callable[..., Database]]:
    made: list[Database] = []

    def make(**options: Any) -> Database:
        made.append(Database(url, **options))
        made[-1].create_all(Base.metadata)
        return made[-1]

    yield make
    for db in made:
        db.dispose()
    assert [] == pools.out
    assert [] == pools.dirty


async def kept(db: Database) -> list[str]:
    async with db.async_session() as session:
        return sorted(await session.scalars(select(Thing.name)))


async def write(session: AsyncSession, name: str) -> None:
    await session.execute(insert(Thing).values(name=name))


class Transfer:
    """Two legs, and a question to another service between them."""

    def __init__(self) -> None:
        self.is_inside = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def __call__(self, **options: Any) -> None:
        async with async_session_manager(**{"auto_commit": True, **options}) as session:
            await write(session, "debit")
            self.is_inside.set()
            await self.may_go_on.wait()
            await write(session, "credit")


@pytest.mark.anyio
class TestTasks:
    @pytest.mark.parametrize("auto_commit", [True, False])
    @pytest.mark.parametrize("savepoint", [True, False])
    async def test_raises(
        self, make_async: AsyncMake, *, auto_commit: bool, savepoint: bool
    ) -> None:
        """The owner rolls back and names the task; the task is told as well."""
        db = make_async()
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        ran = []
        with pytest.raises(SessionError, match="still in a block") as caught:
            async with db.async_session_manager(auto_commit=auto_commit) as session:
                session.on_commit(lambda: ran.append("commit"))
                session.on_rollback(lambda: ran.append("rollback"))
                await write(session, "of the owner")
                task = asyncio.create_task(
                    transfer(savepoint=savepoint), name="transfer"
                )
                await transfer.is_inside.wait()
        transfer.may_go_on.set()
        with pytest.raises(SessionError):
            await task

        for part in ("task 'transfer'", "test_still_inside.py", "on_joined='wait'"):
            assert part in str(caught.value)
        assert ["rollback"] == ran
        assert [] == await kept(db)

    @timeouts
    async def test_waits(self, make_async: AsyncMake, seconds: float) -> None:
        """With on_joined="wait" all of it is committed, when the task is done."""
        db = make_async(on_joined="wait", joined_timeout=seconds)
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        async with db.async_session_manager(auto_commit=True):
            task = asyncio.create_task(transfer())
            await transfer.is_inside.wait()
            asyncio.get_running_loop().call_soon(transfer.may_go_on.set)
        await task

        assert ["credit", "debit"] == await kept(db)

    async def test_waits_for_one_that_fails(self, make_async: AsyncMake) -> None:
        """What failed meanwhile is half done, and is not committed."""
        db = make_async(on_joined="wait")
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        with pytest.raises(SessionError, match="half done"):
            async with db.async_session_manager(auto_commit=True):
                task = asyncio.create_task(transfer())
                await transfer.is_inside.wait()
                asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

        assert [] == await kept(db)

    async def test_deadline(self, make_async: AsyncMake) -> None:
        """It waits no longer than it was told, and then raises."""
        db = make_async(on_joined="wait", joined_timeout=0.01)
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        with pytest.raises(SessionError, match="still in a block"):
            async with db.async_session_manager(auto_commit=True):
                task = asyncio.create_task(transfer())
                await transfer.is_inside.wait()
        transfer.may_go_on.set()
        with pytest.raises(SessionError):
            await task

        assert [] == await kept(db)

    async def test_cancelled_while_it_waits(self, make_async: AsyncMake) -> None:
        """A cancellation rolls back, and is raised."""
        db = make_async(on_joined="wait")
        await db.acreate_all(Base.metadata)
        transfer = Transfer()

        async def own() -> None:
            async with db.async_session_manager(auto_commit=True):
                tasks.append(asyncio.create_task(transfer()))
                await transfer.is_inside.wait()
                asyncio.get_running_loop().call_soon(owner.cancel)

        tasks: list[asyncio.Task[None]] = []
        owner = asyncio.create_task(own())
        with pytest.raises(asyncio.CancelledError):
            await owner
        transfer.may_go_on.set()
        with pytest.raises(SessionError):
            await tasks[0]

        assert [] == await kept(db)

    async def test_task_group(self, make_async: AsyncMake) -> None:
        """What is awaited inside of the block is fine."""
        db = make_async()
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        transfer.may_go_on.set()
        async with (
            db.async_session_manager(auto_commit=True),
            asyncio.TaskGroup() as group,
        ):
            group.create_task(transfer())

        assert ["credit", "debit"] == await kept(db)

    async def test_error(self, make_async: AsyncMake) -> None:
        """An error of the owner is not replaced."""
        db = make_async()
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        with pytest.raises(KeyError):
            async with db.async_session_manager(auto_commit=True):
                task = asyncio.create_task(transfer())
                await transfer.is_inside.wait()
                raise KeyError
        transfer.may_go_on.set()
        with pytest.raises(SessionError):
            await task

        assert [] == await kept(db)

    async def test_paused_generator(self, make_async: AsyncMake) -> None:
        """A generator of the owner's own task is not somebody else."""
        db = make_async()
        await db.acreate_all(Base.metadata)

        async def numbers() -> AsyncIterator[int]:
            async with async_session_manager() as session:
                await write(session, "kept")
                yield 1

        generator: Any = numbers()
        async with db.async_session_manager(auto_commit=True):
            await anext(generator)
        await generator.aclose()

        assert ["kept"] == await kept(db)

    @pytest.mark.parametrize("way", ["commit", "rollback", "close"])
    async def test_by_hand(self, make_async: AsyncMake, way: str) -> None:
        """The owner cannot end by hand what a task is still writing."""
        db = make_async()
        await db.acreate_all(Base.metadata)
        transfer = Transfer()
        async with db.async_session_manager(auto_commit=True) as session:
            task = asyncio.create_task(transfer(), name="transfer")
            await transfer.is_inside.wait()
            with pytest.raises(SessionError, match=rf"{way}\(\).*task 'transfer'"):
                await getattr(session, way)()
            transfer.may_go_on.set()
            await task

        assert ["credit", "debit"] == await kept(db)

    async def test_only_reads(self, make_async: AsyncMake) -> None:
        """A commit by hand does not disturb a task that has read so far."""
        db = make_async()
        await db.acreate_all(Base.metadata)
        may_go_on, is_inside = asyncio.Event(), asyncio.Event()

        async def look() -> None:
            async with async_session_manager() as session:
                await session.scalars(select(Thing.name))
                is_inside.set()
                await may_go_on.wait()

        async with db.async_session_manager() as session:
            task = asyncio.create_task(look())
            await is_inside.wait()
            await write(session, "kept")
            await session.commit()
            may_go_on.set()
            await task

        assert ["kept"] == await kept(db)


class TestThreads:
    @staticmethod
    def transfer(
        session: Session, is_inside: threading.Event, may_go_on: threading.Event
    ) -> threading.Thread:
        """Run two legs in a thread that joins *session*."""

        def run() -> None:
            SESSION_CONTEXT.set(session)
            try:
                with session_manager(auto_commit=True) as joined:
                    joined.execute(insert(Thing).values(name="debit"))
                    is_inside.set()
                    assert may_go_on.wait(30)
                    joined.execute(insert(Thing).values(name="credit"))
            except SessionError as error:
                thread.error = error  # type: ignore[attr-defined]  # for the test

        thread = threading.Thread(target=run, name="transfer")
        thread.start()
        assert is_inside.wait(30)
        return thread

    @staticmethod
    def kept(db: Database) -> list[str]:
        with PlainSession(db.manager.engines["default"]) as session:
            return sorted(session.scalars(select(Thing.name)))

    def test_raises(self, make: Callable[..., Database]) -> None:
        db = make()
        is_inside, may_go_on = threading.Event(), threading.Event()
        with (
            pytest.raises(SessionError, match="thread 'transfer'"),
            db.session_manager(auto_commit=True) as session,
        ):
            thread = self.transfer(session, is_inside, may_go_on)
        may_go_on.set()
        thread.join()

        assert isinstance(thread.error, SessionError)  # type: ignore[attr-defined]  # set above
        assert [] == self.kept(db)

    @timeouts
    def test_waits(self, make: Callable[..., Database], seconds: float) -> None:
        db = make(on_joined="wait", joined_timeout=seconds)
        is_inside, may_go_on = threading.Event(), threading.Event()
        with db.session_manager(auto_commit=True) as session:
            thread = self.transfer(session, is_inside, may_go_on)
            timer = threading.Timer(0.01, may_go_on.set)
            timer.start()
        thread.join()

        assert ["credit", "debit"] == self.kept(db)

    def test_deadline(self, make: Callable[..., Database]) -> None:
        db = make(on_joined="wait", joined_timeout=0.01)
        is_inside, may_go_on = threading.Event(), threading.Event()
        with (
            pytest.raises(SessionError, match="still in a block"),
            db.session_manager(auto_commit=True) as session,
        ):
            thread = self.transfer(session, is_inside, may_go_on)
        may_go_on.set()
        thread.join()

        assert [] == self.kept(db)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_joined": "ask"}, "on_joined is 'raise' or 'wait', not 'ask'"),
        ({"on_joined": "wait", "joined_timeout": 0}, "joined_timeout is a number of"),
        ({"on_joined": "wait", "joined_timeout": "1"}, "joined_timeout is a number of"),
        (
            {"on_joined": "wait", "joined_timeout": True},
            "joined_timeout is a number of",
        ),
    ],
)
def test_options(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SessionError, match=message):
        Database(url, **options)


GREENLETS = """
from gevent import monkey, spawn

monkey.patch_all()

import sys
from contextvars import copy_context

from gevent.event import Event
from sqlalchemy import text

from tenure import Database, SessionError, session_manager

entered, release = Event(), Event()


def inside():
    with session_manager(auto_commit=True) as session:
        session.execute(text("INSERT INTO t VALUES (1)"))
        entered.set()
        release.wait()


def enter():
    session_manager().__enter__()


def count():
    with session_manager() as session:
        return session.scalar(text("SELECT count(*) FROM t"))


with Database(sys.argv[1]):
    with session_manager(auto_commit=True) as session:
        session.execute(text("CREATE TABLE t (a INT)"))
    try:
        with session_manager(auto_commit=True):
            greenlet = spawn(copy_context().run, inside)
            entered.wait()
    except SessionError as error:
        assert "was still in a block" in str(error), error
    else:
        raise AssertionError("committed under a greenlet")
    release.set()
    greenlet.join()
    assert greenlet.exception is None, greenlet.exception
    assert count() == 0
    # One that is done is nobody's.
    with session_manager(auto_commit=True) as session:
        spawn(copy_context().run, enter).join()
        session.execute(text("INSERT INTO t VALUES (1)"))
    assert count() == 1
"""


@pytest.mark.sqlite
def test_greenlets(tmp_path: Path) -> None:
    """Gevent's threads are users like others."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GREENLETS, f"sqlite:///{tmp_path}/a.db"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
