"""One URL really connects both engines of a pair, whatever is in it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import enumerate as enumerate_threads
from typing import Any

import pytest
from sqlalchemy import URL, make_url, text
from sqlalchemy.exc import OperationalError

from tenure import DatabaseManager, RoutingError
from tests.fixtures.databases import Databases

PASSWORD = "a://b@c%d:e/f?g&h #i"


@pytest.fixture(params=["psycopg", "asyncpg"])
def postgresql(
    request: pytest.FixtureRequest, databases: Databases, tmp_path: Path
) -> Iterator[URL]:
    """Give the URL of an empty database, which names a driver or the other."""
    with databases.fresh(f"postgresql+{request.param}", tmp_path) as fresh:
        yield make_url(fresh)


async def ask(manager: DatabaseManager, question: str) -> tuple[Any, Any]:
    """Give what the sync engine answers, and what the async one does."""
    with manager.engines["default"].connect() as connection:
        first = connection.scalar(text(question))
    async with manager.async_engines["default"].connect() as other:
        second = await other.scalar(text(question))
    await manager.adispose()
    return first, second


@pytest.mark.postgresql
class TestPostgreSQL:
    @pytest.mark.anyio
    async def test_password(self, postgresql: URL) -> None:
        """A password of URLs' own characters reaches both drivers, and lets in."""
        admin = DatabaseManager(postgresql)
        role = f"r_{postgresql.database}"
        quoted = PASSWORD.replace("'", "''").replace(":", "\\:")
        with admin.engines["default"].begin() as connection:
            connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD '{quoted}'"))
        url = postgresql.set(username=role, password=PASSWORD)
        manager = DatabaseManager(url.render_as_string(hide_password=False))
        for engine in manager.engines["default"], manager.async_engines["default"]:
            _, arguments = engine.dialect.create_connect_args(engine.url)
            assert PASSWORD == arguments["password"]

        assert (role, role) == await ask(manager, "SELECT current_user")
        with admin.engines["default"].begin() as connection:
            connection.execute(text(f"DROP ROLE {role}"))
        admin.dispose()

    @pytest.mark.anyio
    async def test_socket(self, postgresql: URL) -> None:
        """A socket's folder stands where a host would, with a port or without."""
        manager = DatabaseManager(postgresql)
        with manager.engines["default"].connect() as connection:
            folder = connection.scalar(text("SHOW unix_socket_directories"))
        manager.dispose()
        if not folder:
            pytest.skip("this server has no socket")
        url = f"{postgresql.drivername}://{postgresql.username}@"
        name, port = postgresql.database, postgresql.port
        for spelled in (
            f"{url}:{port}/{name}?host={folder}",
            f"{url}/{name}?host={folder}&port={port}",
        ):
            manager = DatabaseManager(spelled)
            answers = await ask(manager, "SELECT inet_server_addr() IS NULL")
            assert (spelled, (True, True)) == (spelled, answers)

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        ("query", "question", "answer"),
        [
            ({"application_name": "me"}, "SHOW application_name", "me"),
            ({"options": "-c search_path=a,b -cjit=off"}, "SHOW search_path", "a,b"),
            ({"options": r"-c my.own=a\ b"}, "SHOW my.own", "a b"),
            ({"sslmode": "disable"}, "SELECT 'fine'", "fine"),
            ({"ssl": "prefer"}, "SELECT 'fine'", "fine"),
            ({"target_session_attrs": "primary"}, "SELECT 'fine'", "fine"),
            (
                {
                    "connect_timeout": "5",
                    "keepalives_idle": "5",
                    "tcp_user_timeout": "9",
                    "gssencmode": "disable",
                    "client_encoding": "utf8",
                    "prepare_threshold": "0",
                },
                "SELECT 'fine'",
                "fine",
            ),
            (
                {
                    "timeout": "5",
                    "command_timeout": "5.5",
                    "statement_cache_size": "0",
                    "prepared_statement_cache_size": "0",
                    "max_cached_statement_lifetime": "1",
                    "max_cacheable_statement_size": "1",
                },
                "SELECT 'fine'",
                "fine",
            ),
        ],
        ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
    )
    async def test_options(
        self, postgresql: URL, query: dict[str, str], question: str, answer: str
    ) -> None:
        """An option of either driver does what it says, or no harm, in both."""
        manager = DatabaseManager(postgresql.set(query=query))

        assert (answer, answer) == await ask(manager, question)

    @pytest.mark.anyio
    async def test_server_settings(self, postgresql: URL) -> None:
        """Settings given to every database and to one are all there, in both."""
        manager = DatabaseManager(
            {
                "default": {
                    "url": postgresql,
                    "engine_options": {
                        "connect_args": {"server_settings": {"my.own": "a b\\c"}}
                    },
                }
            },
            connect_args={"server_settings": {"application_name": "me", "my.own": "x"}},
        )
        question = "SELECT concat_ws('|', current_setting('my.own'), "
        question += "current_setting('application_name'))"

        assert ("a b\\c|me", "a b\\c|me") == await ask(manager, question)

    @pytest.mark.anyio
    async def test_unsafe(self, postgresql: URL) -> None:
        """An engine that would connect with less protection is not made."""
        url = postgresql.set(
            drivername="postgresql+asyncpg", query={"channel_binding": "require"}
        )
        manager = DatabaseManager({"main": url})
        with pytest.raises(
            RoutingError,
            match=r"'main': option channel_binding=require has no .* in asyncpg.*"
            r'"async_url"',
        ):
            manager.async_engines["main"]
        safe = {"url": url, "async_url": url.difference_update_query(url.query)}
        other = DatabaseManager({"main": safe}).async_engines["main"]
        async with other.connect() as connection:
            assert 1 == await connection.scalar(text("SELECT 1"))
        await other.dispose()

    @pytest.mark.anyio
    @pytest.mark.parametrize("name", ["sslmode", "ssl"])
    async def test_encryption(self, postgresql: URL, name: str) -> None:
        """A server that cannot encrypt is refused by both drivers, if it must."""
        manager = DatabaseManager(postgresql.set(query={name: "require"}))
        with pytest.raises(OperationalError, match="server does not support SSL"):
            manager.engines["default"].connect()
        with pytest.raises((OperationalError, ConnectionError), match="SSL"):
            await manager.async_engines["default"].connect()
        await manager.adispose()

    @pytest.mark.anyio
    async def test_certificate(self, postgresql: URL, tmp_path: Path) -> None:
        """An authority that is named only for libpq is read by asyncpg, too."""
        absent = str(tmp_path / "absent.crt")
        url = postgresql.set(
            drivername="postgresql+asyncpg",
            query={"sslmode": "verify-full", "sslrootcert": absent},
        )
        manager = DatabaseManager(url)
        with pytest.raises(FileNotFoundError):
            await manager.async_engines["default"].connect()
        await manager.adispose()


@pytest.mark.mariadb
@pytest.mark.anyio
async def test_mariadb(mariadb_url: str) -> None:
    """Both of MySQL's drivers connect, by network and by socket."""
    url = make_url(mariadb_url).update_query_dict(
        {"charset": "utf8mb4", "bind_address": "127.0.0.1", "connect_timeout": "5"}
    )
    question = "SELECT @@character_set_client"

    assert ("utf8mb4", "utf8mb4") == await ask(DatabaseManager(url), question)

    manager = DatabaseManager(url)
    with manager.engines["default"].connect() as connection:
        socket = connection.scalar(text("SELECT @@socket"))
    manager.dispose()
    assert socket
    by_socket = URL.create(
        url.drivername,
        url.username,
        database=url.database,
        query={"unix_socket": socket},
    )
    question = (
        "SELECT substring_index(host, ':', 1) FROM information_schema.processlist"
    )
    question += " WHERE id = connection_id()"

    assert ("localhost", "localhost") == await ask(DatabaseManager(by_socket), question)


@pytest.mark.anyio
class TestSQLite:
    @pytest.mark.parametrize("driver", ["pysqlite", "aiosqlite"])
    async def test_read_only(self, tmp_path: Path, driver: str) -> None:
        """What is opened for reading cannot be written, by neither engine."""
        file = tmp_path / "a b%.db"
        manager = DatabaseManager(URL.create("sqlite", database=str(file)))
        with manager.engines["default"].begin() as connection:
            connection.execute(text("CREATE TABLE t (a)"))
        manager.dispose()
        url = URL.create(f"sqlite+{driver}", database=str(file), query={"mode": "ro"})
        manager = DatabaseManager(url)

        assert (0, 0) == await ask(manager, "SELECT count(*) FROM t")
        with pytest.raises(Exception, match="readonly database"):
            await ask(manager, "INSERT INTO t VALUES (1) RETURNING 1")
        with pytest.raises(Exception, match="readonly database"):
            async with manager.async_engines["default"].connect() as other:
                await other.execute(text("INSERT INTO t VALUES (1)"))
        await manager.adispose()

    async def test_options(self, tmp_path: Path) -> None:
        """Options of Python's sqlite3 reach both drivers."""
        url = f"sqlite:///{tmp_path}/a.db?timeout=1.5&check_same_thread=true"
        manager = DatabaseManager(f"{url}&cached_statements=5&isolation_level=")

        assert (1500, 1500) == await ask(manager, "PRAGMA busy_timeout")

    async def test_vfs(self, tmp_path: Path) -> None:
        """SQLite's own options reach it."""
        manager = DatabaseManager(f"sqlite:///{tmp_path}/a.db?vfs=nothing_like_it")
        with pytest.raises(Exception, match="no such vfs: nothing_like_it"):
            manager.engines["default"].connect()
        with pytest.raises(Exception, match="no such vfs: nothing_like_it"):
            await manager.async_engines["default"].connect()
        await manager.adispose()
        # aiosqlite's thread has still to tell the loop of its end.
        for thread in enumerate_threads():
            if "_connection_worker_thread" in thread.name:
                await asyncio.to_thread(thread.join)
