"""Engines: one URL for two drivers, and what a manager can be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, Engine, create_engine, event, make_url
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool

from tenure import DatabaseManager, DatabaseRouter, RoutingError
from tenure.engines.drivers import driver_url, is_async_url
from tenure.engines.options import fit_options
from tenure.engines.sqlite import _BEGINS, shared_memory, sqlite_url

PAIRS = [
    ("sqlite", "sqlite+pysqlite", "sqlite+aiosqlite"),
    ("sqlite+aiosqlite", "sqlite+pysqlite", "sqlite+aiosqlite"),
    ("sqlite+pysqlite", "sqlite+pysqlite", "sqlite+aiosqlite"),
    ("postgresql", "postgresql+psycopg", "postgresql+psycopg"),
    ("postgresql+psycopg", "postgresql+psycopg", "postgresql+psycopg"),
    ("postgresql+psycopg_async", "postgresql+psycopg", "postgresql+psycopg_async"),
    ("postgresql+asyncpg", "postgresql+psycopg", "postgresql+asyncpg"),
    ("postgresql+psycopg2", "postgresql+psycopg2", "postgresql+psycopg"),
    ("postgresql+pg8000", "postgresql+pg8000", "postgresql+psycopg"),
    ("mysql", "mysql+pymysql", "mysql+asyncmy"),
    ("mysql+pymysql", "mysql+pymysql", "mysql+asyncmy"),
    ("mysql+aiomysql", "mysql+pymysql", "mysql+aiomysql"),
    ("mariadb+asyncmy", "mariadb+pymysql", "mariadb+asyncmy"),
]


class TestDriverUrl:
    @pytest.mark.parametrize(("given_", "sync", "asynchronous"), PAIRS)
    def test_pair(self, given_: str, sync: str, asynchronous: str) -> None:
        """One URL gives both drivers; a named one of the right kind is kept."""
        url = URL.create(given_, "me", "secret", "db.internal", 5432, "flights")

        assert url.set(drivername=sync) == driver_url(url, async_mode=False)
        assert url.set(drivername=asynchronous) == driver_url(url, async_mode=True)

    @pytest.mark.parametrize(
        "text",
        [
            "postgresql+asyncpg://u:p%40%25%3A%2F%2F%20x@db.internal:1/d?a=1&a=2&b=%26",
            "postgresql+asyncpg://u:p://x@10.0.0.1/d",
            "postgresql+asyncpg://u:p@ss@h/d",
            "postgresql+asyncpg://u@h-1.example/d",
            "postgresql+asyncpg://[::1]/d",
            "sqlite+aiosqlite:////tmp/a b%20c.db?timeout=5",
        ],
    )
    @pytest.mark.parametrize("async_mode", [False, True])
    def test_rest_survives(self, text: str, async_mode: bool) -> None:
        """User, password, host, name and options are those that were given."""
        url = make_url(text)
        translated = driver_url(url, async_mode=async_mode)

        assert url[1:] == translated[1:]

    @given(st.text(min_size=1), st.text(min_size=1), st.booleans())
    def test_any_password(self, user: str, password: str, async_mode: bool) -> None:
        """Whatever a password is made of, it is the same afterwards."""
        url = URL.create("postgresql+asyncpg", user, password, "host", database="d")
        translated = driver_url(url, async_mode=async_mode)

        assert (user, password) == (translated.username, translated.password)

    def test_nothing_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a driver the error says what to install."""
        monkeypatch.setattr("tenure.engines.drivers.find_spec", lambda name: None)
        with pytest.raises(RoutingError, match=r"aiosqlite, or tenure\[sqlite\]"):
            driver_url(make_url("sqlite://"), async_mode=True)

    def test_other_backends(self) -> None:
        """What we know nothing of is left to SQLAlchemy."""
        url = make_url("oracle://u:p@h/d")

        assert url is driver_url(url, async_mode=False)
        assert url is driver_url(url, async_mode=True)

    def test_unknown_driver(self) -> None:
        """A driver nobody knows is named."""
        with pytest.raises(RoutingError, match=r"postgresql\+nope"):
            driver_url(make_url("postgresql+nope://h/d"), async_mode=False)

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("sqlite://", False),
            ("sqlite+aiosqlite://", True),
            ("postgresql+psycopg://h/d", False),
            ("postgresql+asyncpg://h/d", True),
        ],
    )
    def test_is_async(self, text: str, wanted: bool) -> None:
        """A driver that serves both kinds is not async only."""
        assert wanted is is_async_url(text)


NOTHING_CACHED = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}


class TestOptions:
    """Options of a URL, and connect arguments, in the words of the other driver."""

    @pytest.mark.parametrize(
        ("query", "in_url", "arguments"),
        [
            ("sslmode=verify-full", {"ssl": "verify-full"}, {}),
            ("ssl=require", {"ssl": "require"}, {}),
            ("sslrootcert=/a b", {}, {"dsn": "postgresql://?sslrootcert=%2Fa+b"}),
            ("dbname=d", {"database": "d"}, {}),
            ("connect_timeout=5", {}, {"timeout": 5.0}),
            ("connect_timeout=0", {}, {"timeout": None}),
            ("timeout=5", {}, {"timeout": 5.0}),
            ("command_timeout=1.5", {}, {"command_timeout": 1.5}),
            (
                "application_name=a&options=-c%20jit%3Doff",
                {},
                {"server_settings": {"application_name": "a", "options": "-c jit=off"}},
            ),
            (
                "fallback_application_name=a",
                {},
                {"server_settings": {"application_name": "a"}},
            ),
            ("target_session_attrs=primary", {"target_session_attrs": "primary"}, {}),
            ("passfile=/p&krbsrvname=k", {"passfile": "/p", "krbsrvname": "k"}, {}),
            ("statement_cache_size=0", {}, {"statement_cache_size": 0}),
            ("prepare_threshold=none", {}, NOTHING_CACHED),
            ("prepare_threshold=3", {}, {}),
            ("keepalives=1&keepalives_idle=5&tcp_user_timeout=9", {}, {}),
            ("gssencmode=prefer&channel_binding=disable", {}, {}),
            ("client_encoding=UTF8", {}, {}),
            ("direct_tls=true", {}, {"direct_tls": True}),
            ("host=a:1&host=b:2", {"host": ("a:1", "b:2")}, {}),
        ],
    )
    def test_for_asyncpg(
        self, query: str, in_url: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        """Options of libpq get their names in asyncpg, those that only tune go."""
        url = make_url(f"postgresql+asyncpg://h/d?{query}")
        fitted, told = fit_options(url, {})

        assert in_url == fitted.query
        assert arguments == told

    @pytest.mark.parametrize(
        ("query", "in_url", "arguments"),
        [
            ("ssl=require", {"sslmode": "require"}, {}),
            ("sslmode=a", {"sslmode": "a"}, {}),
            ("timeout=1.5", {"connect_timeout": "2"}, {}),
            ("command_timeout=5&max_cached_statement_lifetime=9", {}, {}),
            ("prepared_statement_cache_size=5", {}, {}),
            ("prepared_statement_cache_size=0", {}, {"prepare_threshold": None}),
            ("statement_cache_size=0", {}, {"prepare_threshold": None}),
            ("prepare_threshold=3", {}, {"prepare_threshold": 3}),
            ("prepare_threshold=none", {}, {"prepare_threshold": None}),
            ("direct_tls=true", {"sslnegotiation": "direct"}, {}),
            ("direct_tls=false", {}, {}),
            ("application_name=a", {"application_name": "a"}, {}),
            ("target_session_attrs=any", {"target_session_attrs": "any"}, {}),
        ],
    )
    def test_for_psycopg(
        self, query: str, in_url: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        """Options of asyncpg get their names in libpq, those that only tune go."""
        url = make_url(f"postgresql+psycopg://h/d?{query}")
        fitted, told = fit_options(url, {})

        assert in_url == fitted.query
        assert arguments == told

    def test_for_psycopg2(self) -> None:
        """It prepares nothing, so it is not told to prepare nothing."""
        url = make_url("postgresql+psycopg2://h/d?statement_cache_size=0&ssl=allow")
        fitted, told = fit_options(url, {"prepare_threshold": None})

        assert {"sslmode": "allow"} == fitted.query
        assert {} == told

    def test_server_settings(self) -> None:
        """Settings of the server reach libpq as its options."""
        settings = {"application_name": "a", "search_path": "a, b\\c", "options": "-x"}
        url = make_url("postgresql+psycopg://h/d?options=-c%20jit%3Doff")
        fitted, told = fit_options(url, {"server_settings": settings})

        assert {"options": "-c jit=off"} == fitted.query
        assert {
            "application_name": "a",
            "options": "-c jit=off -x -c search_path=a,\\ b\\\\c",
        } == told

    def test_arguments_win(self) -> None:
        """Connect arguments come after what the URL says, whatever their names."""
        url = make_url(
            "postgresql+asyncpg://h/d?sslmode=require&application_name=a"
            "&options=-cjit%3Doff&sslcert=c"
        )
        told = fit_options(
            url,
            {
                "sslmode": "disable",
                "options": "-cjit=on",
                "sslkey": "k",
                "server_settings": {"application_name": "b"},
            },
        )[1]

        assert "disable" == told["ssl"]
        assert {"application_name": "b", "options": "-cjit=off -cjit=on"} == (
            told["server_settings"]
        )
        assert "postgresql://?sslkey=k&sslcert=c" == told["dsn"]

    @pytest.mark.parametrize(
        ("text", "given_", "message"),
        [
            ("postgresql+asyncpg://h/d?channel_binding=require", {}, "binding=require"),
            ("postgresql+asyncpg://h/d?gssencmode=require", {}, "gssencmode=require"),
            ("postgresql+asyncpg://h/d?require_auth=scram-sha-256", {}, "require_auth"),
            ("postgresql+asyncpg://h/d?requirepeer=postgres", {}, "requirepeer"),
            ("postgresql+asyncpg://h/d?hostaddr=10.0.0.1", {}, "hostaddr"),
            ("postgresql+asyncpg://h/d?nonsense=1", {}, "nonsense"),
            ("postgresql+asyncpg://h/d?timeout=soon", {}, "a number, not 'soon'"),
            ("postgresql+psycopg://h/d", {"ssl": object()}, "option ssl"),
            ("postgresql+psycopg://h/d", {"dsn": "postgresql://"}, "option dsn"),
            ("postgresql+psycopg://h/d", {"password": lambda: "p"}, "option password"),
            ("mysql+pymysql://h/d", {"password_creator": len}, "password_creator"),
            ("mysql+asyncmy://h/d?ssl_disabled=true", {}, "ssl_disabled"),
            ("mysql+asyncmy://h/d?ssl_verify_cert=true", {}, "ssl_verify_cert"),
            ("mysql+asyncmy://h/d?collation=utf8mb4_bin", {}, "collation"),
            ("mysql+aiomysql://h/d?ssl_ca=/ca", {}, "ssl_ca"),
        ],
    )
    def test_refused(self, text: str, given_: Mapping[str, Any], message: str) -> None:
        """What may protect a connection is never left out silently."""
        with pytest.raises(RoutingError, match=message):
            fit_options(make_url(text), given_)

    def test_refused_keeps_its_secret(self) -> None:
        """A value that might be a secret is not repeated."""
        url = make_url("postgresql+asyncpg://h/d?scram_client_key=hush")
        with pytest.raises(RoutingError, match="scram_client_key") as caught:
            fit_options(url, {})

        assert "hush" not in str(caught.value)

    @pytest.mark.parametrize(
        ("driver", "own"), [("pymysql", "bind_address"), ("asyncmy", "stmt_cache_size")]
    )
    def test_mysql(self, driver: str, own: str) -> None:
        """What only one of MySQL's drivers knows, the other goes without."""
        both = {"charset": "utf8mb4", "unix_socket": "/s", "ssl_ca": "/ca"}
        url = URL.create(
            f"mysql+{driver}",
            query=both | {"bind_address": "a", "stmt_cache_size": "a"},
        )

        assert (url.set(query=both | {own: "a"}), {}) == fit_options(url, {})

    def test_mysql_certificates(self) -> None:
        """With an authority named, asyncmy verifies without being told."""
        url = make_url(
            "mysql+asyncmy://h/d?ssl_ca=/ca&ssl_verify_cert=true"
            "&ssl_verify_identity=true"
        )

        assert {"ssl_ca": "/ca", "ssl_check_hostname": "true"} == (
            fit_options(url, {})[0].query
        )

    def test_others(self) -> None:
        """Drivers we know nothing of get what was given."""
        url = make_url("oracle+oracledb://h/d?a=1")

        assert (url, {"b": 2}) == fit_options(url, {"b": 2})

    @pytest.mark.parametrize(
        ("text", "database", "query"),
        [
            ("sqlite:///a b.db?timeout=1", "a b.db", {"timeout": "1"}),
            (
                "sqlite:///a b.db?mode=ro",
                "file:a%20b.db",
                {"mode": "ro", "uri": "true"},
            ),
            ("sqlite:////a?mode=ro&uri=1", "file:/a", {"mode": "ro", "uri": "1"}),
            ("sqlite:///file:a?mode=ro", "file:a", {"mode": "ro", "uri": "true"}),
            ("sqlite:///:memory:?cache=shared", ":memory:", {}),
            ("postgresql://h/d?mode=ro", "d", {"mode": "ro"}),
        ],
    )
    def test_sqlite(self, text: str, database: str, query: Mapping[str, str]) -> None:
        """Options of SQLite are heard, which takes a URI."""
        url = sqlite_url(make_url(text))

        assert (database, query) == (url.database, url.query)

    @pytest.mark.parametrize(
        ("text", "async_mode"),
        [("sqlite+pysqlite:///a", False), ("sqlite+aiosqlite:///a", True)],
    )
    def test_aiosqlite(self, text: str, async_mode: bool) -> None:
        """What aiosqlite adds to sqlite3 only it is given."""
        told = fit_options(make_url(text), {"iter_chunk_size": 5, "timeout": 1})[1]

        assert async_mode is ("iter_chunk_size" in told)
        assert 1 == told["timeout"]


@pytest.mark.parametrize(
    ("text", "is_shared"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite+aiosqlite:///:memory:", True),
        ("sqlite:///file::memory:?uri=true", True),
        ("sqlite:///file:x?mode=memory&uri=true", True),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", False),
        ("sqlite:///file::memory:?cache=shared&uri=true", False),
        ("sqlite:///file:/x?vfs=memdb&uri=true", False),
        ("sqlite:///file.db", False),
        ("sqlite:///file.db?uri=true", False),
        ("postgresql://h/", False),
    ],
)
def test_shared_memory(text: str, is_shared: bool) -> None:
    """SQLite's memory gets a name that all its connections know."""
    url = make_url(text)
    shared = shared_memory(url, "name")

    assert is_shared is (url != shared)
    assert is_shared is ("file:/name" == shared.database)


@pytest.mark.parametrize(
    ("statement", "begins"),
    [
        ("SELECT 1", False),
        ("  select 1", False),
        ("VALUES (1)", False),
        ("PRAGMA foreign_keys", False),
        ("EXPLAIN QUERY PLAN DELETE FROM a", False),
        ("VACUUM", False),
        ("WITH a AS (SELECT 1) SELECT * FROM a", False),
        ("WITH a AS (SELECT 1)\n INSERT INTO b SELECT * FROM a", True),
        ("INSERT INTO a VALUES (1)", True),
        ("\nUPDATE a SET b = 1", True),
        ("CREATE TABLE a (b)", True),
        ("SAVEPOINT a", True),
        ("SELECTION", True),
    ],
)
def test_begins(statement: str, begins: bool) -> None:
    """On SQLite what may write begins a transaction, reading does not."""
    assert begins is bool(_BEGINS.match(statement))


# Made, never used: nothing to close.
ENGINE = create_engine("sqlite://")
ASYNC = create_async_engine("sqlite+aiosqlite://")
ELSEWHERE = create_async_engine("postgresql+psycopg://h/d")


class TestManager:
    def test_mapping(self) -> None:
        """A manager is a mapping of aliases to URLs."""
        manager = DatabaseManager({"a": "sqlite:///a", "b": make_url("sqlite:///b")})

        assert ["a", "b"] == list(manager)
        assert 2 == len(manager)
        assert "a" in manager
        assert "c" not in manager
        assert make_url("sqlite:///b") == manager["b"]
        assert {"a": make_url("sqlite:///a"), "b": make_url("sqlite:///b")} == (
            manager.urls
        )
        assert manager.urls == dict(manager.items())
        assert manager.get("c") is None
        assert ["a", "b"] == list(manager.engines)
        assert ["a", "b"] == list(manager.async_engines)
        assert "c" not in manager.engines

    def test_identity(self) -> None:
        """Two managers are two, though they were told the same."""
        first, second = DatabaseManager("sqlite://"), DatabaseManager("sqlite://")

        assert first != second
        assert 2 == len({first, second})

    def test_one_url(self) -> None:
        """A single URL is the database called default."""
        assert ["default"] == list(DatabaseManager("sqlite://"))
        assert ["default"] == list(DatabaseManager(make_url("sqlite://")))

    @pytest.mark.parametrize("alias", ["c", "", None, 3])
    def test_unknown(self, alias: Any) -> None:
        """An alias that is not there is named, with those that are."""
        manager = DatabaseManager({"a": "sqlite://", "b": "sqlite://"})
        for ask in (
            lambda: manager[alias],
            lambda: manager.engines[alias],
            lambda: manager.async_engines[alias],
            lambda: manager.is_migration_allowed(alias, "package"),
        ):
            with pytest.raises(RoutingError) as caught:
                ask()
            assert f"no database {alias!r}; known: 'a', 'b'" == str(caught.value)
            assert isinstance(caught.value, UnboundExecutionError)

    @pytest.mark.parametrize(
        ("given_", "message"),
        [
            (3, "expected a URL, .* not 3"),
            (None, "expected a URL, .* not None"),
            (["sqlite://"], "expected a URL, .* not "),
            ({"alias": "sqlite://"}, "expected 'url' .* given 'alias'"),
            ({"url": "sqlite://", "pool": 3}, "'engine_options', .* 'pool'"),
            ({}, "given nothing"),
            ({"url": 3}, "expected a URL, not 3"),
            ({"url": "sqlite://", "replicas": ["sqlite://"]}, "replicas"),
            ({"url": "sqlite://", "engine_options": 3}, "'engine_options' is a map"),
            (
                {"url": "sqlite://", "engine_options": {"connect_args": 3}},
                "'connect_args' is a mapping of options, not 3",
            ),
            ({"async_url": "sqlite+pysqlite://"}, "'sqlite\\+pysqlite', .* no async"),
            (
                {"url": "sqlite://", "async_url": "postgresql+asyncpg://h/d"},
                "both sqlite and postgresql",
            ),
            ("no url", "cannot be parsed"),
            ("", "cannot be parsed"),
            ("postgresql://h:port/d", "cannot be parsed"),
            ("sqlite:///a?timeot=5", "no option 'timeot'; known: .*timeout"),
            ((), "expected a URL, .* not \\(\\)"),
            ((ENGINE, 3), "not 3"),
            ((ENGINE, ENGINE), "two Engines; expected one engine, or"),
            ((ASYNC, ASYNC), "two AsyncEngines"),
            ((ENGINE, ASYNC, ENGINE), "two Engines"),
            (ASYNC.sync_engine, "the sync engine inside an async one"),
            ((ENGINE, ASYNC.sync_engine), "the sync engine inside an async one"),
            (ENGINE.connect, "expected a URL"),
            (sessionmaker(ENGINE), "expected a URL"),
            ((ENGINE, ELSEWHERE), "both sqlite and postgresql"),
        ],
    )
    def test_wrong(self, given_: Any, message: str) -> None:
        """What cannot be a database is named when it is given, with its alias."""
        with pytest.raises(RoutingError, match=f"^database 'main': .*{message}"):
            DatabaseManager({"main": given_})

    @pytest.mark.parametrize(
        ("given_", "message"),
        [
            ({3: "sqlite://"}, "an alias is a name, not 3"),
            ({None: "sqlite://"}, "an alias is a name, not None"),
            ({"": "sqlite://"}, "an alias is a name, not ''"),
            (None, "database 'default': expected a URL, .* not None"),
        ],
    )
    def test_wrong_databases(self, given_: Any, message: str) -> None:
        """So is what cannot be a manager's databases."""
        with pytest.raises(RoutingError, match=message):
            DatabaseManager(given_)

    @pytest.mark.parametrize(
        ("routers", "message"),
        [
            ("copy", "a sequence of routers, not 'copy'"),
            (DatabaseRouter(), "a sequence of routers, not <"),
            (DatabaseRouter, "a sequence of routers, not <class"),
            (3, "a sequence of routers, not 3"),
            ([DatabaseRouter], "not a class; pass DatabaseRouter\\(\\)"),
            (["copy"], "get_engine\\(\\) or the like, not 'copy'"),
            ([None], "or the like, not None"),
        ],
    )
    def test_wrong_routers(self, routers: Any, message: str) -> None:
        """So is what cannot be a router."""
        with pytest.raises(RoutingError, match=message):
            DatabaseManager("sqlite://", routers)

    def test_wrong_url_keeps_its_secret(self) -> None:
        """The error does not repeat what might be a password."""
        with pytest.raises(RoutingError) as caught:
            DatabaseManager("//me:secret@host")

        assert "secret" not in str(caught.value)

    def test_given_engines(self) -> None:
        """Engines may be given, one or both; of the other there is none."""
        engine, other = (
            create_engine("sqlite://"),
            create_async_engine("sqlite+aiosqlite://"),
        )
        manager = DatabaseManager(
            {"one": engine, "two": other, "both": (engine, other)}
        )

        assert engine is manager.engines["one"]
        assert other is manager.async_engines["two"]
        assert engine is manager.engines["both"]
        assert other is manager.async_engines["both"]
        with pytest.raises(RoutingError, match="given as a sync engine only"):
            manager.async_engines["one"]
        with pytest.raises(RoutingError, match="given as an async engine only"):
            manager.engines["two"]
        manager.dispose()
        assert engine is manager.engines["one"]

    def test_two_urls(self) -> None:
        """The two engines of a pair may have a URL each."""
        manager = DatabaseManager(
            {"a": {"url": "sqlite:///a", "async_url": "sqlite+aiosqlite:///b"}}
        )

        assert "a" == manager.engines["a"].url.database
        assert "b" == manager.async_engines["a"].url.database
        manager.dispose()

    def test_one_engine(self) -> None:
        """A single engine, or pair of them, is the database called default."""
        assert ENGINE is DatabaseManager(ENGINE).engines["default"]
        assert ASYNC is DatabaseManager((ENGINE, ASYNC)).async_engines["default"]
        assert ENGINE is DatabaseManager((ASYNC, ENGINE)).engines["default"]
        assert [] == list(DatabaseManager(ENGINE).made())

    def test_missing_driver(self) -> None:
        """A driver that was asked for and is not installed is named."""
        manager = DatabaseManager("postgresql+pg8000://h/d")
        with pytest.raises(RoutingError, match="driver 'pg8000' is not installed"):
            manager.engines["default"]

    def test_routers(self) -> None:
        """The manager asks its routers, and hands out the engine they name."""

        class Split(DatabaseRouter):
            def get_read_engine(self, resource: Any = None, **kwargs: Any) -> str:
                return "copy"

        manager = DatabaseManager({"default": "sqlite:///a", "copy": "sqlite:///b"})
        manager.routers.append(Split())

        assert manager.engines["copy"] is manager.get_read_engine()
        assert manager.engines["default"] is manager.get_write_engine(object)
        assert manager.engines["default"] is manager.get_engine()
        asynchronous = manager.get_read_engine(None, async_mode=True)
        assert manager.async_engines["copy"] is asynchronous
        assert manager.is_migration_allowed("copy", "package")
        manager.dispose()


class TestEngineOptions:
    def test_alias_wins(self) -> None:
        """An alias's own options come before those for all, in both engines."""
        manager = DatabaseManager(
            {
                "a": "sqlite:///a",
                "b": {
                    "url": "sqlite:///b",
                    "engine_options": {
                        "pool_recycle": 2,
                        "connect_args": {"timeout": 3},
                        "execution_options": {"two": 2},
                    },
                },
            },
            pool_recycle=1,
            pool_pre_ping=True,
            connect_args={"timeout": 1, "cached_statements": 5},
            execution_options={"one": 1},
        )
        engines = manager.engines["b"], manager.async_engines["b"].sync_engine

        assert 1 == manager.engines["a"].pool._recycle
        for engine in engines:
            assert 2 == engine.pool._recycle
            assert engine.pool._pre_ping
            assert {"one": 1, "two": 2} == engine.get_execution_options()
            with pytest.raises(LookupError) as caught:
                connect_arguments(engine)
            assert {"timeout": 3, "cached_statements": 5} == {
                name: caught.value.args[0][name]
                for name in ("timeout", "cached_statements")
            }

    def test_async_wins(self) -> None:
        """Options for the async engine alone come before those for both."""
        manager = DatabaseManager(
            {
                "a": {
                    "url": "sqlite:///a",
                    "engine_options": {"pool_recycle": 1, "pool_timeout": 3},
                    "async_engine_options": {"pool_recycle": 2},
                }
            }
        )
        asynchronous = manager.async_engines["a"].sync_engine

        assert 1 == manager.engines["a"].pool._recycle
        assert 2 == asynchronous.pool._recycle
        assert 3 == asynchronous.pool.timeout()  # type: ignore[attr-defined]  # a queue

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"pool_sizes": 3}, "'pool_sizes' .* did you mean 'pool_size'\\?"),
            ({"nonsense_of_mine": 3}, "'nonsense_of_mine' is no option"),
            ({"pool": QueuePool(lambda: None)}, "'pool' is no option"),  # type: ignore[arg-type,return-value]  # made never
            ({"executemany_mode": "values_only"}, "'executemany_mode' is no option"),
        ],
    )
    @pytest.mark.parametrize("text", ["sqlite://", "postgresql+asyncpg://h/d"])
    def test_unknown(self, text: str, options: dict[str, Any], message: str) -> None:
        """A name that neither engine knows is an error at once, with the alias."""
        with pytest.raises(RoutingError, match=f"^database 'main': {message}"):
            DatabaseManager({"main": text}, **options)
        given_ = {"url": text, "engine_options": options}
        with pytest.raises(RoutingError, match=f"^database 'main': {message}"):
            DatabaseManager({"main": given_})
        given_ = {"url": text, "async_engine_options": options}
        with pytest.raises(RoutingError, match=f"^database 'main': {message}"):
            DatabaseManager({"main": given_})

    def test_of_one_face(self) -> None:
        """What only one engine of the pair knows, the other goes without."""
        pytest.importorskip("psycopg2")
        manager = DatabaseManager(
            {
                "main": {
                    "url": "postgresql+psycopg2://h/d",
                    "async_url": "postgresql+asyncpg://h/d",
                }
            },
            executemany_mode="values_only",
        )

        assert "psycopg2" == manager.engines["main"].driver
        assert "asyncpg" == manager.async_engines["main"].sync_engine.driver

    def test_known_to_one_driver(self) -> None:
        """An option of psycopg's dialect is none of asyncpg's."""
        manager = DatabaseManager("postgresql+asyncpg://h/d", client_encoding="utf8")

        assert "psycopg" == manager.engines["default"].driver
        assert "asyncpg" == manager.async_engines["default"].sync_engine.driver

    def test_mismatch(self) -> None:
        """What SQLAlchemy refuses names the alias, too."""
        manager = DatabaseManager(
            {"main": "sqlite:///a"}, pool_size=1, poolclass=NullPool
        )
        with pytest.raises(RoutingError, match=r"^database 'main': .*'pool_size'"):
            manager.engines["main"]

    def test_singleton(self) -> None:
        """A pool for threads is none for tasks."""
        manager = DatabaseManager("sqlite:///a", poolclass=SingletonThreadPool)

        assert isinstance(manager.engines["default"].pool, SingletonThreadPool)
        pool = manager.async_engines["default"].sync_engine.pool
        assert isinstance(pool, QueuePool)

    def test_creator(self) -> None:
        """Who makes connections himself makes them for both engines, or is told."""

        def creator() -> Any:
            raise LookupError

        manager = DatabaseManager({"main": "sqlite:///a"}, creator=creator)
        with pytest.raises(LookupError):
            manager.engines["main"].connect()
        with pytest.raises(RoutingError, match=r"'main': .* pass 'async_creator', too"):
            manager.async_engines["main"]
        manager = DatabaseManager({"main": "sqlite:///a"}, async_creator=creator)
        with pytest.raises(RoutingError, match="for sync ones pass 'creator', too"):
            manager.engines["main"]
        manager = DatabaseManager("sqlite:///a", creator=creator, async_creator=creator)
        with pytest.raises(LookupError):
            manager.engines["default"].connect()
        assert manager.async_engines["default"] is not None

    def test_given_engines_take_none(self) -> None:
        """Options for all are not for engines that were handed in."""
        manager = DatabaseManager({"a": ENGINE}, pool_recycle=1)

        assert -1 == manager.engines["a"].pool._recycle


def connect_arguments(engine: Engine) -> None:
    """Raise what the driver would be given."""

    @event.listens_for(engine, "do_connect")
    def connecting(
        dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]
    ) -> None:
        raise LookupError(options)

    engine.connect()
