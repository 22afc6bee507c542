"""
Named databases, each a pair of engines: one for sync code, one for async code.

An engine is made when it is first asked for, with a driver that is installed,
and disposed of once. One URL gives both.
"""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.pool import AsyncAdaptedQueuePool, PoolResetState, QueuePool

from .errors import RoutingError, UnknownAliasError
from .routing import DEFAULT, Role, choose, may_migrate

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# Drivers of each backend, best first, with the module that must be installed.
_SYNC_DRIVERS = {
    "sqlite": (("pysqlite", "sqlite3"),),
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
    "mariadb": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
}
_ASYNC_DRIVERS = {
    "sqlite": (("aiosqlite", "aiosqlite"),),
    "postgresql": (("psycopg", "psycopg"), ("asyncpg", "asyncpg")),
    "mysql": (("asyncmy", "asyncmy"), ("aiomysql", "aiomysql")),
    "mariadb": (("asyncmy", "asyncmy"), ("aiomysql", "aiomysql")),
}
# asyncpg's names for options of libpq; what has no name there is its own affair.
_LIBPQ_NAMES = {
    "ssl": "sslmode",
    "timeout": "connect_timeout",
    "prepared_statement_cache_size": None,
    "prepared_statement_name_func": None,
}
_ASYNCPG_NAMES = {new: old for old, new in _LIBPQ_NAMES.items() if new}

_BEGINS = re.compile(
    r"\s*(?!(?:SELECT|VALUES|EXPLAIN|PRAGMA|ATTACH|DETACH|VACUUM)\b)"
    r"(?!WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|REPLACE)\b))\w",
    re.IGNORECASE | re.DOTALL,
)


def driver_url(url: URL, *, async_mode: bool) -> URL:
    """
    Give *url* with a driver of the wanted kind, everything else unchanged.

    Raises:
        RoutingError: No such driver is installed.
    """
    backend = url.get_backend_name()
    named = url.drivername.partition("+")[2]
    drivers = (_ASYNC_DRIVERS if async_mode else _SYNC_DRIVERS).get(backend)
    if drivers is None or (named and _serves(url, async_mode=async_mode)):
        return url
    for driver, module in drivers:
        if find_spec(module) is not None:
            query = _renamed(url.query, named == "asyncpg", driver == "asyncpg")
            return url.set(drivername=f"{backend}+{driver}", query=query)
    raise RoutingError(
        f"no {'async' if async_mode else 'sync'} driver for {backend} is installed; "
        f"install {' or '.join(module for _, module in drivers)}, "
        f"or seance[{'mysql' if backend == 'mariadb' else backend}]"
    )


def _serves(url: URL, *, async_mode: bool) -> bool:
    """Whether the driver that *url* names is of the wanted kind."""
    try:
        return url.get_dialect().is_async is async_mode
    except NoSuchModuleError as error:
        raise RoutingError(f"no dialect {url.drivername!r} is installed") from error


def _renamed(query: Mapping[str, Any], was: bool, will_be: bool) -> dict[str, Any]:
    """Give a URL's options their names in libpq, or in asyncpg."""
    if was is will_be:
        return dict(query)
    names: Mapping[str, str | None] = _LIBPQ_NAMES if was else _ASYNCPG_NAMES
    renamed = ((names.get(name, name), value) for name, value in query.items())
    return {name: value for name, value in renamed if name is not None}


def is_async_url(url: URL | str) -> bool:
    """Whether *url* names a driver that only async engines can use."""
    return not _serves(make_url(url), async_mode=False)


def shared_memory(url: URL, name: str) -> URL:
    """
    Give *url*, or if it is SQLite's memory, one database that connections share.

    Else each connection would have a database of its own.
    Source: SQLite, "In-Memory Databases".
    """
    if url.get_backend_name() != "sqlite" or url.database not in {None, "", ":memory:"}:
        return url
    return url.set(database=f"file:{name}").update_query_dict(
        {"mode": "memory", "cache": "shared", "uri": "true"}
    )


def prepare(engine: Engine) -> None:
    """
    Give an engine of ours the transactions its backend promises.

    SQLite does not enforce foreign keys unless told to, and its driver begins a
    transaction before plain INSERT, UPDATE and DELETE only: not for DDL, CTEs and
    SAVEPOINT. Reading begins none: it would lock out other writers until its end.
    Source: sqlite3, "Transaction control"; SQLAlchemy, "Serializable isolation /
    Savepoints / Transactional DDL".
    """
    if engine.dialect.name != "sqlite":
        return

    @event.listens_for(engine, "connect")
    def connected(connection: Any, record: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "reset")
    def resetting(connection: Any, record: Any, state: PoolResetState) -> None:
        # A COMMIT that fails leaves the transaction open, SQLAlchemy thinks it ended.
        if state.asyncio_safe and _is_begun(record.driver_connection):
            connection.rollback()

    @event.listens_for(engine, "before_cursor_execute")
    def executing(
        connection: Connection, cursor: Any, statement: str, *rest: Any
    ) -> None:
        if _BEGINS.match(statement):
            begin_late(connection)


def begin_late(connection: Connection, name: object = None) -> None:
    """
    Begin the transaction that SQLite's driver puts off.

    Without one, releasing the first savepoint commits it.
    Source: SQLite, "SAVEPOINT", section 2.
    """
    pooled = connection.connection
    # No isolation level: the driver's autocommit mode, which was asked for.
    if pooled.isolation_level is not None and not _is_begun(pooled.driver_connection):
        # Not by SQLAlchemy: it is no statement of the caller's.
        cursor = pooled.cursor()
        cursor.execute("BEGIN")
        cursor.close()


def _is_begun(driver_connection: Any) -> bool:
    begun: bool = driver_connection.in_transaction
    return begun


class _Entry:
    """One database: what was configured, and the engines made of it so far."""

    def __init__(self, alias: str, given: Any, options: Mapping[str, Any]) -> None:
        self.alias = alias
        self.url: URL | None = None
        self.async_url: URL | None = None
        self.sync: Engine | None = None
        self.asynchronous: AsyncEngine | None = None
        self.given_engines: tuple[Any, ...] = ()
        self.options = dict(options)
        engines = given if isinstance(given, tuple) else (given,)
        if isinstance(given, Mapping):
            self._configure(given)
        elif all(_is_engine(engine) for engine in engines):
            self._adopt(engines)
        else:
            self.url = _parse(alias, given)

    def _configure(self, given: Mapping[str, Any]) -> None:
        unknown = set(given) - {"url", "async_url", "replicas", "engine_options"}
        if unknown or not ("url" in given or "async_url" in given):
            raise RoutingError(
                f"database {self.alias!r}: expected 'url' and optionally 'async_url', "
                f"'replicas', 'engine_options'; given {', '.join(map(repr, given))}"
            )
        if given.get("replicas"):
            raise RoutingError(
                f"database {self.alias!r}: replicas cannot be routed to yet"
            )
        if "url" in given:
            self.url = _parse(self.alias, given["url"])
        if "async_url" in given:
            self.async_url = _parse(self.alias, given["async_url"])
        self.options |= given.get("engine_options", {})

    def _adopt(self, engines: tuple[Any, ...]) -> None:
        self.given_engines = engines
        for engine in engines:
            if isinstance(engine, Engine):
                self.sync = engine
            else:
                self.asynchronous = engine
            self.url = self.url or engine.url

    def make_sync(self) -> Engine:
        """Make the sync engine."""
        if self.given_engines:
            raise RoutingError(
                f"database {self.alias!r} was given as an async engine only; "
                f"give a URL, or (engine, async_engine)"
            )
        url = cast(URL, self.url or self.async_url)
        engine: Engine = self._make(create_engine, url, QueuePool, async_mode=False)
        prepare(engine)
        return engine

    def make_async(self) -> AsyncEngine:
        """Make the async engine."""
        if self.given_engines:
            raise RoutingError(
                f"database {self.alias!r} was given as a sync engine only; "
                f"give a URL, or (engine, async_engine)"
            )
        if find_spec("greenlet") is None:
            raise RoutingError("async sessions need greenlet; install seance[sqlite]")
        from sqlalchemy.ext.asyncio import create_async_engine

        url = cast(URL, self.async_url or self.url)
        engine: AsyncEngine = self._make(
            create_async_engine, url, AsyncAdaptedQueuePool, async_mode=True
        )
        prepare(engine.sync_engine)
        return engine

    def _make(self, create: Any, url: URL, pool: Any, *, async_mode: bool) -> Any:
        shared = shared_memory(url, f"seance-{id(self)}")
        options = self.options if shared is url else {"poolclass": pool} | self.options
        try:
            return create(driver_url(shared, async_mode=async_mode), **options)
        except ModuleNotFoundError as error:
            raise RoutingError(
                f"database {self.alias!r}: the driver {error.name!r} is not installed"
            ) from error

    def made(self) -> Iterator[Engine]:
        """Give the engines made so far; those handed in are none of them."""
        if not self.given_engines:
            if self.sync is not None:
                yield self.sync
            if self.asynchronous is not None:
                yield self.asynchronous.sync_engine


def _is_engine(given: Any) -> bool:
    return isinstance(given, Engine) or isinstance(
        getattr(given, "sync_engine", None), Engine
    )


def _parse(alias: str, given: Any) -> URL:
    if not isinstance(given, (str, URL)):
        raise RoutingError(
            f"database {alias!r}: expected a URL, a mapping or engines, not {given!r}"
        )
    try:
        return make_url(given)
    except (ArgumentError, ValueError) as error:
        # The message of the original repeats the URL, password and all.
        raise RoutingError(
            f"database {alias!r}: the URL cannot be parsed; "
            f"expected dialect+driver://user:password@host/name"
        ) from error.with_traceback(None)


def _forget_connections() -> None:
    """In a forked child: leave the parent's connections to the parent."""
    for manager in _managers:
        for engine in manager.made():
            engine.dispose(close=False)


# Compared by identity, all the same: a manager hashes as an object does.
_managers: weakref.WeakSet[DatabaseManager] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


class _Engines(Mapping[str, Any]):
    """The engines of one kind by alias; reading one makes it."""

    def __init__(self, manager: DatabaseManager, *, async_mode: bool) -> None:
        self._manager = manager
        self._async_mode = async_mode

    def __getitem__(self, alias: str) -> Any:
        return self._manager.engine(alias, async_mode=self._async_mode)

    def __iter__(self) -> Iterator[str]:
        return iter(self._manager)

    def __len__(self) -> int:
        return len(self._manager)

    def __contains__(self, alias: object) -> bool:
        return alias in self._manager


class DatabaseManager(Mapping[str, URL]):
    """
    Databases by alias, and the routers that choose among them.

    A mapping of aliases to URLs. A forked child makes connections of its own.

    Args:
        databases: Alias to a URL, to ``{"url": …, "async_url": …,
            "engine_options": {…}}``, to an engine or to ``(engine,
            async_engine)``. A single URL is the database ``default``.
        routers: Asked in order; the first that answers wins.
        engine_options: Passed to ``create_engine`` for every database.

    Raises:
        RoutingError: A database is described in a way that cannot work.
    """

    def __init__(
        self,
        databases: Mapping[str, Any] | str | URL,
        routers: Sequence[Any] = (),
        **engine_options: Any,
    ) -> None:
        if not isinstance(databases, Mapping):
            databases = {DEFAULT: databases}
        self._entries = {
            alias: _Entry(alias, given, engine_options)
            for alias, given in databases.items()
        }
        self._lock = Lock()
        self.routers = list(routers)
        self.engines: Mapping[str, Engine] = _Engines(self, async_mode=False)
        self.async_engines: Mapping[str, AsyncEngine] = _Engines(self, async_mode=True)
        _managers.add(self)

    # As objects, not by contents: two managers never share an engine.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def urls(self) -> dict[str, URL]:
        """The URL of each database."""
        return {alias: self[alias] for alias in self}

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, key: str) -> URL:
        entry = self._entry(key)
        return cast(URL, entry.url or entry.async_url)

    def _entry(self, alias: object, *, by: str = "") -> _Entry:
        entry = self._entries.get(alias) if isinstance(alias, str) else None
        if entry is None:
            raise UnknownAliasError(alias, self._entries, by=by)
        return entry

    def engine(self, alias: str, *, async_mode: bool = False, by: str = "") -> Any:
        """
        Give the engine of *alias*, made now if it is the first time.

        Raises:
            RoutingError: There is no such database, or no driver for it.
        """
        entry = self._entry(alias, by=by)
        engine = entry.asynchronous if async_mode else entry.sync
        if engine is not None:
            return engine
        with self._lock:
            if async_mode:
                entry.asynchronous = entry.asynchronous or entry.make_async()
                return entry.asynchronous
            entry.sync = entry.sync or entry.make_sync()
            return entry.sync

    def made(self) -> Iterator[Engine]:
        """Give the engines made so far, of async ones the sync engine inside."""
        for entry in self._entries.values():
            yield from entry.made()

    def get_engine(self, resource: Any = None, async_mode: bool = False) -> Any:
        """Give the engine for *resource* (a mapped class or ``None``)."""
        return self.route(resource, None, async_mode=async_mode)

    def get_read_engine(self, resource: Any = None, async_mode: bool = False) -> Any:
        """Give the engine for reading *resource*."""
        return self.route(resource, "read", async_mode=async_mode)

    def get_write_engine(self, resource: Any = None, async_mode: bool = False) -> Any:
        """Give the engine for writing *resource*."""
        return self.route(resource, "write", async_mode=async_mode)

    def route(
        self, resource: Any, role: Role | None, *, async_mode: bool, **hints: Any
    ) -> Any:
        """
        Give the engine that the routers choose.

        Raises:
            RoutingError: A router failed or named an unknown alias.
        """
        alias, by = choose(self.routers, resource, role, hints)
        return self.engine(alias, async_mode=async_mode, by=by)

    def is_migration_allowed(self, engine: str, package: str) -> bool:
        """Whether *package* may be migrated on the database *engine*."""
        self._entry(engine)
        return may_migrate(self.routers, engine, package)

    def dispose(self) -> None:
        """
        Close the connections of every sync engine that was made here.

        Engines that were handed in belong to the caller and stay open.
        """
        for entry in self._entries.values():
            if entry.given_engines:
                continue
            with self._lock:
                engine, entry.sync = entry.sync, None
            if engine is not None:
                engine.dispose()

    async def adispose(self) -> None:
        """Close the connections of every engine, sync and async, made here."""
        self.dispose()
        for entry in self._entries.values():
            if entry.given_engines:
                continue
            with self._lock:
                engine, entry.asynchronous = entry.asynchronous, None
            if engine is not None:
                await engine.dispose()
