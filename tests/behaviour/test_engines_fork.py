"""Forked children never touch a connection of their parent's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.databases import Databases

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no fork on Windows")

START = """
import asyncio, os, sys, traceback
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.ext.asyncio import create_async_engine
from tenure import Database, DatabaseManager

url = sys.argv[1]

def fork(work):
    # Ends as any program does, so that Python closes what it still has.
    child = os.fork()
    if not child:
        work()
        sys.exit()
    _, status = os.waitpid(child, 0)
    assert not status, status

def inner(connection):
    return connection.connection.driver_connection

def ask(engine):
    with engine.connect() as connection:
        return connection.scalar(text("SELECT 1")), id(inner(connection))

async def aask(engine):
    async with engine.connect() as connection:
        raw = await connection.get_raw_connection()
        return await connection.scalar(text("SELECT 1")), id(raw.driver_connection)
"""

IDLE = """
manager = DatabaseManager(url)
engine = manager.engines["default"]
_, mine = ask(engine)

def work():
    assert engine is manager.engines["default"]
    answer, own = ask(engine)
    assert (1, True) == (answer, own != mine)
    fork(lambda: ask(engine))
    manager.dispose()

fork(work)
assert (1, mine) == ask(engine)
manager.dispose()
"""

IN_USE = """
manager = DatabaseManager(url)
engine = manager.engines["default"]
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE t (a INTEGER)"))
with engine.connect() as connection:
    connection.execute(text("INSERT INTO t VALUES (1)"))

    def work():
        for use in (
            lambda: connection.execute(text("INSERT INTO t VALUES (2)")),
            connection.begin_nested,
            connection.commit,
        ):
            try:
                use()
            except ResourceClosedError as error:
                assert "when the process forked" in str(error), error
            else:
                assert False
        connection.rollback()
        connection.close()
        assert 1 == ask(engine)[0]

    fork(work)
    connection.execute(text("INSERT INTO t VALUES (3)"))
    # A child that lets go of its copy rolls nothing back.
    fork(lambda: None)
    connection.commit()
    assert 2 == connection.scalar(text("SELECT count(*) FROM t"))
manager.dispose()
"""

SESSION = """
db = Database(url)

def savepoint():
    session.begin_nested()
    session.execute(text("SELECT 1"))

with db.session() as session:
    session.execute(text("SELECT 1"))
    child = os.fork()
    if not child:
        for use in lambda: session.execute(text("SELECT 1")), savepoint:
            try:
                use()
            except ResourceClosedError as error:
                assert "when the process forked" in str(error), error
            else:
                assert False
        session.rollback()
        assert 1 == session.scalar(text("SELECT 1"))
    else:
        _, status = os.waitpid(child, 0)
        assert not status, status
        assert 1 == session.scalar(text("SELECT 1"))
db.dispose()
"""

LOCKED = """
import threading
manager = DatabaseManager(url)
locked, done = threading.Event(), threading.Event()

def hold():
    with manager._lock, manager._pairs["default"].memory._lock:
        locked.set()
        done.wait()

thread = threading.Thread(target=hold)
thread.start()
locked.wait()
fork(lambda: (ask(manager.engines["default"]), manager.dispose()))
done.set()
thread.join()
ask(manager.engines["default"])
manager.dispose()
"""

GIVEN = """
engine = create_engine(url)
manager = DatabaseManager({"default": engine})
_, mine = ask(engine)

def work():
    answer, own = ask(manager.engines["default"])
    assert (1, True) == (answer, own != mine)
    engine.dispose()

fork(work)
assert (1, mine) == ask(engine)
engine.dispose()
"""

ASYNC = """
manager = DatabaseManager(url)
engine = manager.async_engines["default"]

def child():
    answer, own = asyncio.run(aask(engine))
    assert (1, True) == (answer, own != mine)
    asyncio.run(manager.adispose())

def fork_at_once(work):
    # Inside of a loop the copy of that loop must not be run on.
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert not status, status

async def work():
    global mine
    _, mine = await aask(engine)
    async with engine.connect() as connection:
        assert 1 == await connection.scalar(text("SELECT 1"))
        fork_at_once(child)
        assert 1 == await connection.scalar(text("SELECT 1"))
    fork_at_once(child)
    assert (1, mine) == await aask(engine)
    await manager.adispose()

asyncio.run(work())
"""

MEMORY = """
manager = DatabaseManager("sqlite://")
engine = manager.engines["default"]
with engine.begin() as connection:
    connection.execute(text("CREATE TABLE t (a INTEGER)"))

def work():
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (1)"))
    async def count():
        async with manager.async_engines["default"].connect() as connection:
            return await connection.scalar(text("SELECT count(*) FROM t"))
    assert 1 == asyncio.run(count())
    asyncio.run(manager.adispose())

with engine.connect() as connection:
    connection.execute(text("INSERT INTO t VALUES (1)"))
    fork(work)
    connection.commit()
    assert 1 == connection.scalar(text("SELECT count(*) FROM t"))
manager.dispose()
"""


def run(script: str, url: str) -> tuple[int, str]:
    """Run *script* as a program, and give how it ended and what it complained of."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", START + script, url],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.returncode, done.stderr


def test_idle(url: str) -> None:
    """Idle connections stay the parent's, with children and with grandchildren."""
    assert (0, "") == run(IDLE, url)


def test_in_use(url: str) -> None:
    """One in use fails in the child until it rolls back; the parent goes on."""
    assert (0, "") == run(IN_USE, url)


def test_session(url: str) -> None:
    """A session may be rolled back and closed on both sides of a fork."""
    assert (0, "") == run(SESSION, url)


def test_locked(url: str) -> None:
    """What another thread had locked does not hold up the child."""
    assert (0, "") == run(LOCKED, url)


def test_given(url: str) -> None:
    """Idle connections of an engine that was handed in stay the parent's, too."""
    assert (0, "") == run(GIVEN, url)


def test_async(async_url: str) -> None:
    """So do those of async engines, in use or not."""
    assert (0, "") == run(ASYNC, async_url)


def test_memory() -> None:
    """A child's memory is its own: it begins empty, and the parent's is untouched."""
    assert (0, "") == run(MEMORY, "")


@pytest.mark.postgresql
def test_server_sees_one(databases: Databases, tmp_path: Path) -> None:
    """A child that ends does not say goodbye in its parent's name."""
    script = """
manager = DatabaseManager(url)
engine = manager.engines["default"]
with engine.connect() as connection, engine.connect() as other:
    pid = connection.scalar(text("SELECT pg_backend_pid()"))
    fork(lambda: None)
    assert pid == connection.scalar(text("SELECT pg_backend_pid()"))
manager.dispose()
"""
    with databases.fresh("postgresql+psycopg", tmp_path) as url:
        assert (0, "") == run(script, url)
