"""Work for threads that are started without the context of who asks for it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session as PlainSession

from tenure import (
    ConcurrentUseError,
    Database,
    Session,
    SessionError,
    async_session_manager,
    carry,
    current_async_session,
    current_session,
    on_commit,
    session_manager,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing


@pytest.fixture(autouse=True)
def nothing_left(pools: Pools) -> Iterator[None]:
    yield
    assert [] == pools.out


@pytest.fixture
def db(url: str, pools: Pools) -> Iterator[Database]:
    with Database(url, on_missing="raise") as db:
        db.create_all(Base.metadata)
        yield db


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2, thread_name_prefix="worker") as pool:
        yield pool


def names(db: Database) -> list[str]:
    with PlainSession(db.manager.engines["default"]) as session:
        return sorted(session.scalars(select(Thing.name)))


def store(name: str) -> Session:
    with session_manager(auto_commit=True) as session:
        session.add(Thing(name=name))
        return session


class TestWithout:
    """A thread that has no context says so, and whose block is open."""

    @pytest.mark.parametrize(
        "work", [current_session, current_async_session, partial(on_commit, print)]
    )
    def test_asked_for(self, db: Database, pool: ThreadPoolExecutor, work: Any) -> None:
        with session_manager(new=True) as session:
            line = session._tenure_scope.line
            with pytest.raises(SessionError, match=r"'worker_0'.*carry\(\)") as caught:
                pool.submit(work).result()
        assert f"{line.file}:{line.number}" in str(caught.value)

    def test_block(self, db: Database, pool: ThreadPoolExecutor) -> None:
        with (
            db.session_manager(new=True),
            pytest.raises(SessionError, match=r"new=True.*'worker_0'.*carry\(\)"),
        ):
            # A thread has no application either, unless it is installed.
            pool.submit(lambda: db.session_manager().__enter__()).result()
        assert [] == names(db)

    def test_nothing_is_open(self, db: Database, pool: ThreadPoolExecutor) -> None:
        with pytest.raises(SessionError) as caught:
            pool.submit(current_session).result()
        assert "carry" not in str(caught.value)


class TestCarried:
    def test_joins(self, db: Database, pool: ThreadPoolExecutor) -> None:
        with session_manager(new=True, auto_commit=True) as session:
            assert session is pool.submit(carry(store), "a").result()
            assert session is pool.submit(carry(partial(store, "b"))).result()
        assert ["a", "b"] == names(db)

    def test_undone_with_the_owner(
        self, db: Database, pool: ThreadPoolExecutor
    ) -> None:
        with pytest.raises(LookupError), session_manager(new=True, auto_commit=True):
            pool.submit(carry(store), "a").result()
            raise LookupError
        assert [] == names(db)

    def test_at_once(self, db: Database, pool: ThreadPoolExecutor) -> None:
        """Threads may call it at once; the session still has one user at a time."""
        barrier = Barrier(2)

        def work(name: str) -> Session:
            with session_manager() as session:
                barrier.wait()
                session.add(Thing(name=name))
                return session

        with session_manager(new=True, auto_commit=True) as session:
            assert [session] * 2 == list(pool.map(carry(work), ["a", "b"]))
        assert ["a", "b"] == names(db)

    def test_while_the_owner_is_inside(
        self, db: Database, pool: ThreadPoolExecutor
    ) -> None:
        with session_manager(new=True) as session:
            ask = carry(lambda: session.scalar(select(Thing.name)))
            with pytest.raises(ConcurrentUseError):
                session._in_turn(lambda _: pool.submit(ask).result())

    def test_coroutine_function(self, db: Database, pool: ThreadPoolExecutor) -> None:
        """In the loop of another thread."""

        async def ask() -> str:
            with session_manager() as session:
                return session.scalars(select(Thing.name)).one()

        with session_manager(new=True) as session:
            carried = carry(ask)
            session.add(Thing(name="a"))
            session.flush()
            assert "a" == pool.submit(lambda: asyncio.run(carried())).result()
        assert inspect.iscoroutinefunction(carried)

    @pytest.mark.anyio
    async def test_executor(self, db: Database, pool: ThreadPoolExecutor) -> None:
        """The current session of async code is async, which sync code cannot join."""
        loop = asyncio.get_running_loop()
        async with async_session_manager(new=True):
            with pytest.raises(SessionError, match="run_sync"):
                await loop.run_in_executor(pool, carry(partial(store, "a")))
        await db.adispose()

    def test_after_the_block(self, db: Database, pool: ThreadPoolExecutor) -> None:
        """What has ended is not joined."""
        with session_manager(new=True):
            carried = carry(store)
        with pytest.raises(SessionError, match="no session is current"):
            pool.submit(carried, "a").result()

    def test_application(self, db: Database, pool: ThreadPoolExecutor) -> None:
        """What else is current comes along."""

        def work() -> Session:
            with session_manager(new=True) as session:
                return session

        assert pool.submit(carry(work)).result().routing is db.manager


class TestRefused:
    def test_generator(self) -> None:
        def generate() -> Iterator[int]:
            yield 1

        with pytest.raises(SessionError, match="generate, a generator"):
            carry(generate)

    def test_coroutine(self) -> None:
        async def ask() -> None: ...

        with pytest.raises(SessionError, match="takes a function"):
            carry(ask())  # type: ignore[arg-type]  # on purpose

    def test_result(self) -> None:
        with pytest.raises(SessionError, match="takes a function"):
            carry(3)  # type: ignore[arg-type]  # on purpose
