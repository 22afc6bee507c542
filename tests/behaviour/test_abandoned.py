"""A statement that nobody waits for any more ends on the server, and keeps no connection."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, event, make_url, select, text
from sqlalchemy.pool import NullPool

from tenure import Database
from tenure.engines import abandoned
from tests.fixtures.proxies import Proxy
from tests.fixtures.things import Base, Thing

pytestmark = [
    # A connection that was cut off is not closed by its driver.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# It ends long after the test, unless somebody ends it.
# MariaDB looks at the clients of SLEEP() every five seconds; of this it does not.
ENDLESS = {
    "postgresql": "SELECT pg_sleep(600)",
    "mysql": "SELECT BENCHMARK(1000000000000, 1)",
}
RUNNING = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity, pg_sleep(0.01) "
    "WHERE datname = current_database() AND query = 'SELECT pg_sleep(600)' "
    "AND state = 'active'",
    "mysql": "SELECT count(*), SLEEP(0.01) FROM information_schema.processlist "
    "WHERE db = database() AND info LIKE 'SELECT BENCHMARK%'",
}
SYNC = {"postgresql": "psycopg", "mysql": "pymysql"}
PIDS = {
    "postgresql": "SELECT pid FROM pg_stat_activity "
    "WHERE datname = current_database() AND query LIKE 'SELECT pg_sleep(6%'",
    "mysql": "SELECT id FROM information_schema.processlist "
    "WHERE db = database() AND info LIKE 'SELECT BENCHMARK%'",
}
KILL = {"postgresql": "SELECT pg_terminate_backend({})", "mysql": "KILL {}"}
#: Looks of a hundredth of a second each.
LOOKS = 500


class Boom(BaseException):
    """What gevent's Timeout is, for one."""


class SoftLimit(Exception):
    """What the soft time limit of a worker is."""


class Abandoned:
    """A server, seen by those who abandon statements, and from beside."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self.backend = self.url.get_backend_name()
        self.statement = text(ENDLESS[self.backend])
        driver = f"{self.backend}+{SYNC[self.backend]}"
        self._engine = create_engine(
            self.url.set(drivername=driver), poolclass=NullPool
        )

    def database(self, port: int | None = None) -> Database:
        url = self.url
        if port is not None:
            url = url.set(host="127.0.0.1", port=port)
        return Database(url, pool_size=2, max_overflow=0, pool_timeout=1)

    def end(self) -> None:
        """End what nobody has ended."""
        with self._engine.connect() as connection:
            for number in connection.scalars(text(PIDS[self.backend])).all():
                connection.execute(text(KILL[self.backend].format(number)))
        # Or the next test takes it for its own.
        assert self.running(until=False)

    def running(self, *, until: bool) -> bool:
        """Whether the statement is running (or not: *until*), within some time."""
        with self._engine.connect() as connection:
            for _ in range(LOOKS):
                found = connection.scalar(text(RUNNING[self.backend]))
                connection.rollback()
                if bool(found) is until:
                    return True
        return False


@pytest.fixture
def server(server_url: str) -> Iterator[Abandoned]:
    server = Abandoned(server_url)
    yield server
    server.end()


@pytest.fixture
def async_server(async_server_url: str) -> Iterator[Abandoned]:
    server = Abandoned(async_server_url)
    yield server
    server.end()


def before(server: Abandoned) -> Proxy:
    assert server.url.host is not None
    assert server.url.port is not None
    return Proxy(server.url.host, server.url.port)


@contextmanager
def interrupted(
    server: Abandoned, error: Any, then: Callable[[], None]
) -> Iterator[None]:
    """Raise *error* in this thread once the statement runs; before, call *then*."""
    me = threading.get_ident()

    def handle(number: int, frame: FrameType | None) -> None:
        raise error

    def interrupt() -> None:
        if server.running(until=True):
            then()
            signal.pthread_kill(me, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    interrupting = threading.Thread(target=interrupt)
    try:
        interrupting.start()
        yield
    finally:
        interrupting.join()
        signal.signal(signal.SIGUSR1, before)


def nothing() -> None:
    """Do nothing."""


async def cancelled(db: Database, server: Abandoned, then: Callable[[], None]) -> None:
    """Cancel a task that executes the statement, once it runs."""

    async def work() -> None:
        async with db.async_session_manager() as session:
            await session.execute(server.statement)

    task = asyncio.create_task(work())
    assert await asyncio.to_thread(server.running, until=True)
    then()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


class TestEnds:
    """On the server, whoever interrupted it; so a small pool is not worn out."""

    @pytest.mark.anyio
    async def test_cancelled(self, async_server: Abandoned) -> None:
        async with async_server.database() as db:
            for _ in range(3):
                await cancelled(db, async_server, nothing)
                assert await asyncio.to_thread(async_server.running, until=False)
            async with db.async_session_manager() as session:
                assert 1 == await session.scalar(text("SELECT 1"))

    @pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SoftLimit])
    def test_interrupted(self, server: Abandoned, error: type[BaseException]) -> None:
        with server.database() as db:
            for _ in range(3):
                with (
                    interrupted(server, error, nothing),
                    pytest.raises(error),
                    db.session_manager() as session,
                ):
                    session.execute(server.statement)
                assert server.running(until=False)
            with db.session_manager() as session:
                assert 1 == session.scalar(text("SELECT 1"))

    @pytest.mark.parametrize("error", [Boom, SoftLimit])
    def test_transaction(self, server: Abandoned, error: type[BaseException]) -> None:
        """What was written before it is undone, and not left to the next user."""
        with server.database() as db:
            Base.metadata.create_all(
                db.manager.engines["default"], tables=[Base.metadata.tables["thing"]]
            )
            with (
                interrupted(server, error, nothing),
                pytest.raises(error),
                db.session_manager(auto_commit=True) as session,
            ):
                session.add(Thing(name="a"))
                session.flush()
                session.execute(server.statement)
            with db.session_manager(auto_commit=True) as session:
                assert [] == session.scalars(select(Thing.name)).all()

    def test_another_server(self, mariadb_url: str) -> None:
        """A number that names a connection of another server ends nothing there."""
        server = Abandoned(mariadb_url)
        with server.database() as db:
            engine = db.manager.engines["default"]

            @event.listens_for(engine, "checkout")
            def reached(connection: Any, record: Any, fairy: Any) -> None:
                record.info[abandoned.NAME] = "another:3306:1"

            with (
                interrupted(server, Boom, nothing),
                pytest.raises(Boom),
                db.session_manager() as session,
            ):
                session.execute(server.statement)
        assert server.running(until=True)
        server.end()

    def test_of_the_driver(self, mariadb_url: str) -> None:
        """A driver that has waited as long as it was told to gives up as well."""
        server = Abandoned(mariadb_url)
        url = server.url.update_query_dict({"read_timeout": "1"})
        with Database(url) as db:
            with pytest.raises(Exception, match="timed out"):
                with db.session_manager() as session:
                    session.execute(server.statement)
            assert server.running(until=False)

    def test_never_sent(self, mariadb_url: str) -> None:
        """A text that cannot be encoded costs no connection."""
        with Database(mariadb_url) as db:
            number = text("SELECT connection_id()")
            with db.session_manager() as session:
                first = session.scalar(number)
                with pytest.raises(UnicodeEncodeError):
                    session.scalar(text("SELECT :x"), {"x": "\ud800"})
            with db.session_manager() as session:
                assert session.scalar(number) == first

    @pytest.mark.postgresql
    @pytest.mark.anyio
    async def test_limit_of_asyncpg(self, postgresql_url: str) -> None:
        server = Abandoned(postgresql_url)
        url = server.url.set(drivername="postgresql+asyncpg")
        async with Database(url, connect_args={"command_timeout": 0.5}) as db:
            with pytest.raises(TimeoutError):
                async with db.async_session_manager() as session:
                    await session.execute(server.statement)
            assert await asyncio.to_thread(server.running, until=False)
            # It is used again: the server has answered.
            assert 1 == db.manager.async_engines["default"].pool.checkedin()

    @pytest.mark.sqlite
    def test_file(self, tmp_path: Path) -> None:
        """The thread of aiosqlite does not go on to the end of the statement."""
        asyncio.run(self.count(Database(f"sqlite+aiosqlite:///{tmp_path}/a.db")))

    async def count(self, db: Database) -> None:
        endless = text(
            "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) "
            "SELECT max(n) FROM c"
        )
        async with db:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with (
                        asyncio.timeout(0.1),
                        db.async_session_manager() as session,
                    ):
                        await session.execute(endless)
            async with db.async_session_manager() as session:
                assert 1 == await session.scalar(text("SELECT 1"))


@pytest.mark.postgresql
def test_cancelled_by_hand(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who cancels by psycopg itself waits as long as was asked for."""
    asked: list[float] = []

    def cancel_safe(self: Any, *, timeout: float) -> None:
        asked.append(timeout)

    monkeypatch.setattr(psycopg.Connection, "cancel_safe", cancel_safe)
    with Database(postgresql_url) as db, db.session_manager() as session:
        driver: Any = session.connection().connection.driver_connection
        driver.cancel_safe(timeout=20)
        driver.cancel_safe()
        # As it does by itself.
        driver.cancel_safe(timeout=5)
    assert [20, 30, abandoned.DEADLINE] == asked


@pytest.mark.usefixtures("short")
class TestSilent:
    """A server that does not answer keeps nobody."""

    @pytest.fixture
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(abandoned, "DEADLINE", 0.1)

    @pytest.mark.anyio
    async def test_cancelled(
        self,
        async_server: Abandoned,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        given: list[float | None] = []
        close = asyncpg.Connection.close

        async def closing(self: Any, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # its name
            if not self.is_closed():
                given.append(timeout)
            await close(self, timeout=timeout)

        monkeypatch.setattr(asyncpg.Connection, "close", closing)
        with before(async_server) as proxy:
            async with async_server.database(proxy.port) as db:
                await cancelled(db, async_server, proxy.silence)
                # SQLAlchemy itself gives a server two seconds to answer asyncpg.
                assert set(given) <= {abandoned.DEADLINE}
                proxy.speak()
                async with db.async_session_manager() as session:
                    assert 1 == await session.scalar(text("SELECT 1"))
        self.check(caplog)

    @pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SoftLimit])
    def test_interrupted(
        self,
        server: Abandoned,
        error: type[BaseException],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with before(server) as proxy, server.database(proxy.port) as db:
            with (
                interrupted(server, error, proxy.silence),
                pytest.raises(error),
                db.session_manager() as session,
            ):
                session.execute(server.statement)
            proxy.speak()
            with db.session_manager() as session:
                assert 1 == session.scalar(text("SELECT 1"))
        self.check(caplog)

    def check(self, caplog: pytest.LogCaptureFixture) -> None:
        """Psycopg did not wait as long as it does by itself."""
        told = [each.getMessage() for each in caplog.records if each.name == "psycopg"]
        assert not any("not terminated" in message for message in told)
