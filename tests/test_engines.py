"""Engines: one URL for two drivers, and what a manager can be given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import create_async_engine

from seance import DatabaseManager, DatabaseRouter, RoutingError
from seance.engines import _BEGINS, driver_url, is_async_url, shared_memory

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
        if "asyncmy" in asynchronous:
            pytest.importorskip("asyncmy")
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

    @pytest.mark.parametrize(
        ("text", "async_mode", "query"),
        [
            ("postgresql+asyncpg://h/d?ssl=require", False, {"sslmode": "require"}),
            ("postgresql+asyncpg://h/d?timeout=5", False, {"connect_timeout": "5"}),
            ("postgresql+asyncpg://h/d?prepared_statement_cache_size=0", False, {}),
            ("postgresql+asyncpg://h/d?ssl=require", True, {"ssl": "require"}),
            ("postgresql+psycopg2://h/d?sslmode=a", True, {"sslmode": "a"}),
        ],
    )
    def test_renamed_options(
        self, text: str, async_mode: bool, query: Mapping[str, str]
    ) -> None:
        """Options of asyncpg have the names of libpq for the other driver."""
        assert query == driver_url(make_url(text), async_mode=async_mode).query

    def test_asyncpg_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where asyncpg is all there is, options get its names."""
        monkeypatch.setattr(
            "seance.engines.find_spec", lambda name: name == "asyncpg" or None
        )
        url = driver_url(
            make_url("postgresql+psycopg2://h/d?sslmode=require"), async_mode=True
        )

        assert "postgresql+asyncpg" == url.drivername
        assert {"ssl": "require"} == url.query

    def test_nothing_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a driver the error says what to install."""
        monkeypatch.setattr("seance.engines.find_spec", lambda name: None)
        with pytest.raises(RoutingError, match=r"aiosqlite, or seance\[sqlite\]"):
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


@pytest.mark.parametrize(
    ("text", "is_shared"),
    [
        ("sqlite://", True),
        ("sqlite:///:memory:", True),
        ("sqlite+aiosqlite:///:memory:", True),
        ("sqlite:///file.db", False),
        ("postgresql://h/", False),
    ],
)
def test_shared_memory(text: str, is_shared: bool) -> None:
    """SQLite's memory gets a name that all its connections know."""
    url = make_url(text)
    shared = shared_memory(url, "name")

    assert is_shared is (url != shared)
    assert is_shared is ("file:name" == shared.database)


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
        "given_",
        [
            3,
            None,
            {"alias": "sqlite://"},
            {"url": "sqlite://", "pool": 3},
            {},
            "no url",
            "postgresql://h:port/d",
        ],
    )
    def test_wrong(self, given_: Any) -> None:
        """What cannot be a database is named when it is given, with no password."""
        with pytest.raises(RoutingError, match="database 'main'"):
            DatabaseManager({"main": given_})

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
