"""Scopes, contexts and threads. Sync only."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Barrier

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm import sessionmaker

from tenure import (
    APP_CONTEXT,
    SESSION_CONTEXT,
    Database,
    Session,
    SessionError,
    current_session,
    session_factory,
    session_manager,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing


@pytest.fixture(autouse=True)
def nothing_left(pools: Pools) -> Iterator[None]:
    """Whatever a test does, connections are back and clean, and nothing is current."""
    yield
    assert [] == pools.out
    assert [] == pools.dirty
    assert SESSION_CONTEXT.get() is None


@pytest.fixture
def db(url: str, nothing_left: None) -> Iterator[Database]:
    db = Database(url)
    db.create_all(Base.metadata)
    yield db
    db.dispose()


def names(db: Database) -> list[str]:
    with db.session() as session:
        return sorted(session.scalars(select(Thing.name)))


class TestContexts:
    def store(self, db: Database) -> Iterator[Session]:
        with db.session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))
            session.flush()
            yield session

    def test_left_in_another(self, db: Database) -> None:
        """A generator finished in another context ends its block there."""
        generator = self.store(db)
        copy_context().run(next, generator)
        assert SESSION_CONTEXT.get() is None
        copy_context().run(next, generator, None)

        assert ["a"] == names(db)

    def test_many_requests(self, db: Database, pools: Pools) -> None:
        """Frameworks do that for each request; none keeps a connection."""
        for _ in range(20):
            generator = self.store(db)
            copy_context().run(next, generator)
            copy_context().run(generator.close)  # type: ignore[attr-defined]  # a generator

            assert [] == pools.out
        assert [] == names(db)

    def test_left_inside_of_another_block(self, db: Database) -> None:
        """A block left in another context leaves alone what is current there."""
        generator = self.store(db)
        copy_context().run(next, generator)
        with db.session_manager() as session:
            next(generator, None)
            assert session is current_session()

        assert ["a"] == names(db)

    def test_context_that_outlives_the_block(self, db: Database) -> None:
        """In a context that was copied inside, the session that has ended is not it."""
        with db.session_manager():
            context = copy_context()

        with pytest.raises(SessionError, match="no session is current"):
            context.run(current_session)


class TestThreads:
    def test_left_in_another(self, db: Database) -> None:
        """A block may end in another thread than it began in."""
        factory = session_factory(routing=db.manager, scoped=True)
        block = session_manager(using=factory, auto_commit=True)
        with ThreadPoolExecutor(1) as thread:
            session = thread.submit(block.__enter__).result()
            session.add(Thing(name="a"))
            block.__exit__(None, None, None)
            # The registry of that thread still has it, which is no reason to use it.
            assert (
                session is not thread.submit(lambda: open_and_close(factory)).result()
            )
            assert not thread.submit(factory.registry.has).result()

        assert ["a"] == names(db)

    def test_applications(self, db: Database) -> None:
        """Threads that enter one database do not see each other's."""
        barrier = Barrier(2)

        def work(outer: Database) -> bool:
            before = APP_CONTEXT.set(outer)
            barrier.wait()
            with db:
                barrier.wait()
            is_back = outer is APP_CONTEXT.get()
            APP_CONTEXT.reset(before)
            return is_back

        others = [Database("sqlite://"), Database("sqlite://")]
        with ThreadPoolExecutor(2) as threads:
            assert [True, True] == list(threads.map(work, others))

    def test_engine_is_made_once(self, url: str) -> None:
        """However many threads ask at once, they get one engine."""
        barrier = Barrier(8)
        db = Database(url)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)

        def work(number: int) -> int:
            barrier.wait()
            return id(db.manager.engines["default"])

        with ThreadPoolExecutor(8) as threads:
            assert 1 == len(set(threads.map(work, range(8))))
        sys.setswitchinterval(interval)
        db.dispose()


def open_and_close(factory: object) -> object:
    with session_manager(using=factory) as session:
        return session


class TestPlainSessions:
    """Sessions of SQLAlchemy's own class are taken, joined and ended as ours."""

    def test_own_and_join(self, db: Database) -> None:
        """Their factory is joined as any."""
        factory = sessionmaker(db.manager.engines["default"])
        with session_manager(using=factory, auto_commit=True) as outer:
            assert not isinstance(outer, Session)
            with session_manager(using=factory) as inner:
                assert outer is inner
                inner.add(Thing(name="a"))
            with session_manager(savepoint=True) as inner:
                inner.add(Thing(name="b"))
        with pytest.raises(KeyError), session_manager(using=factory) as session:
            session.add(Thing(name="c"))
            session.flush()
            raise KeyError

        assert ["a", "b"] == names(db)

    def test_class_as_factory(self, db: Database) -> None:
        """Anything that is called and gives a session is a factory."""
        engine = create_engine(db.manager["default"])
        with session_manager(using=lambda: PlainSession(engine)) as session:
            assert [] == list(session.scalars(select(Thing)))
        engine.dispose()


FORK = """
import os, sys
from sqlalchemy import text
from tenure import Database

db = Database(sys.argv[1])
with db.session() as session:
    mine = session.connection().connection.driver_connection
    session.rollback()
    child = os.fork()
    if not child:
        with db.session() as session:
            session.execute(text("SELECT 1"))
            other = session.connection().connection.driver_connection
            os._exit(0 if other is not mine else 3)
    _, status = os.waitpid(child, 0)
    session.execute(text("SELECT 1"))
db.dispose()
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")
def test_fork(url: str) -> None:
    """A forked child has connections of its own, and the parent's go on working."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, url], capture_output=True, text=True, check=False
    )

    assert (0, "") == (done.returncode, done.stderr)
