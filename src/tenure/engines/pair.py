"""One database of a manager: its configuration and the engines made from it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NoReturn, cast

from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, ResourceClosedError
from sqlalchemy.pool import (
    AsyncAdaptedQueuePool,
    ConnectionPoolEntry,
    QueuePool,
    SingletonThreadPool,
)
from sqlalchemy.util import get_cls_kwargs

from ..errors import RoutingError, nearest
from .abandoned import watch_statements
from .drivers import ASYNC_DRIVERS, dialect_of, driver_url, serves
from .options import fit_options, joined
from .pools import LoopPool, leave_to_parent
from .sqlite import Memory, is_named_memory, is_private_memory, prepare, sqlite_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


def _refuse_use(*arguments: Any) -> NoReturn:
    raise ResourceClosedError(
        "this connection was in use when the process forked and belongs to the parent; "
        "roll back or close the session or connection to get another"
    )


_ENTRY_KEYS = ("url", "async_url", "engine_options", "async_engine_options", "replicas")
_EXPECTED = (
    "a URL, a mapping with 'url', an Engine, an AsyncEngine or (engine, async_engine)"
)
# Options of create_engine() and create_async_engine() themselves; those of the dialect
# and of Engine are read from these classes.
_OPTIONS = {
    "async_creator",
    "connect_args",
    "creator",
    "echo_pool",
    "enable_from_linting",
    "future",
    "max_overflow",
    "module",
    "plugins",
    "pool_events",
    "pool_logging_name",
    "pool_pre_ping",
    "pool_recycle",
    "pool_reset_on_return",
    "pool_size",
    "pool_timeout",
    "pool_use_lifo",
    "poolclass",
}
# Options that are mappings, merged item by item.
_NESTED = ("connect_args", "execution_options")


class Pair:
    """One database: its configuration and the engines made from it so far."""

    def __init__(self, alias: str, given: Any, options: Mapping[str, Any]) -> None:
        self.alias = alias
        self.url: URL | None = None
        self.async_url: URL | None = None
        self.sync: Engine | None = None
        self.asynchronous: AsyncEngine | None = None
        self.given_engines: tuple[Any, ...] = ()
        self.options = dict(options)
        self.async_options: Mapping[str, Any] = {}
        self.memory = Memory()
        # Connections of engines made here, which a forked child must not use.
        self.records: weakref.WeakSet[Any] = weakref.WeakSet()
        if isinstance(given, Mapping):
            self._configure(given)
        elif isinstance(given, (str, URL)):
            self.url = self._parse(given)
        else:
            self._adopt(given if isinstance(given, tuple) else (given,))
        if not self.given_engines:
            self._check()

    def _wrong(self, what: str) -> RoutingError:
        return RoutingError(f"database {self.alias!r}: {what}")

    def _configure(self, given: Mapping[str, Any]) -> None:
        unknown = set(given) - {*_ENTRY_KEYS}
        if unknown or not ("url" in given or "async_url" in given):
            raise self._wrong(
                f"expected 'url' and optionally {', '.join(map(repr, _ENTRY_KEYS[1:-1]))}"
                f"; given {', '.join(map(repr, given)) or 'nothing'}"
            )
        if given.get("replicas"):
            raise self._wrong("routing to 'replicas' is not supported yet")
        if "url" in given:
            self.url = self._parse(given["url"])
        if "async_url" in given:
            self.async_url = self._parse(given["async_url"])
        own, self.async_options = (
            self._mapping(name, given.get(name, {}))
            for name in ("engine_options", "async_engine_options")
        )
        self.options = self._merged(self.options, own)

    @property
    def recipe(self) -> dict[str, Any] | None:
        """What makes it again, as a manager is told; ``None`` for engines passed in."""
        if self.given_engines:
            return None
        urls = {"url": self.url, "async_url": self.async_url}
        return {
            **{name: url for name, url in urls.items() if url is not None},
            "engine_options": dict(self.options),
            "async_engine_options": dict(self.async_options),
        }

    def _mapping(self, name: str, given: Any) -> Mapping[str, Any]:
        if not isinstance(given, Mapping):
            raise self._wrong(f"{name!r} is a mapping of options, not {given!r}")
        return given

    def _merged(self, *layers: Mapping[str, Any]) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for options in layers:
            for name, value in options.items():
                if name in _NESTED:
                    merged[name] = _joined_arguments(
                        merged.get(name, {}), self._mapping(name, value)
                    )
                else:
                    merged[name] = value
        return merged

    def _parse(self, given: Any) -> URL:
        if not isinstance(given, (str, URL)):
            raise self._wrong(f"expected a URL, not {given!r}")
        try:
            return sqlite_url(make_url(given))
        except RoutingError as error:
            raise self._wrong(str(error)) from error
        except (ArgumentError, ValueError) as error:
            # The message of the original repeats the URL, password and all.
            raise self._wrong(
                "the URL cannot be parsed; "
                "expected dialect+driver://user:password@host/name"
            ) from error.with_traceback(None)

    def _adopt(self, engines: tuple[Any, ...]) -> None:
        for engine in engines:
            if isinstance(engine, Engine) and engine.dialect.is_async:
                raise self._wrong(
                    f"{engine!r} is the sync engine inside an async one; "
                    f"pass the AsyncEngine"
                )
            if isinstance(engine, Engine) and self.sync is None:
                self.sync = engine
            elif _is_async_engine(engine) and self.asynchronous is None:
                self.asynchronous = engine
            elif isinstance(engine, Engine) or _is_async_engine(engine):
                raise self._wrong(
                    f"two {type(engine).__name__}s; expected one engine, "
                    f"or (engine, async_engine)"
                )
            else:
                raise self._wrong(f"expected {_EXPECTED}, not {engine!r}")
        if not engines:
            raise self._wrong(f"expected {_EXPECTED}, not ()")
        self.given_engines = engines
        urls = [engine.url for engine in engines]
        self.url = urls[0]
        self._check_backends(urls)

    def _check(self) -> None:
        """Check that both URLs have one backend, and that an engine knows each option."""
        urls = [url for url in (self.url, self.async_url) if url is not None]
        self._check_backends(urls)
        url = self.async_url
        if url is not None and url.get_backend_name() in ASYNC_DRIVERS:
            is_named = "+" in url.drivername
            if is_named and not self._serves(url, async_mode=True):
                raise self._wrong(
                    f"'async_url' has {url.drivername!r}, which is no async driver"
                )
        if self.options or self.async_options:
            self._check_options()

    def _serves(self, url: URL, *, async_mode: bool) -> bool:
        try:
            return serves(url, async_mode=async_mode)
        except RoutingError as error:
            raise self._wrong(str(error)) from error

    def _check_backends(self, urls: Iterable[URL]) -> None:
        names = [url.get_backend_name() for url in urls]
        if len({"mysql" if name == "mariadb" else name for name in names}) > 1:
            raise self._wrong(
                f"one database cannot be both {' and '.join(names)}; "
                f"give each an alias of its own"
            )

    def _check_options(self) -> None:
        sync = self._known(async_mode=False)
        asynchronous = self._known(async_mode=True)
        if sync is None or asynchronous is None:
            return
        for options, known in (
            (self.options, sync | asynchronous),
            (self.async_options, asynchronous),
        ):
            for name in options:
                if name not in known:
                    raise self._wrong(
                        f"{name!r} is no option of create_engine() here"
                        f"{nearest(str(name), known)}"
                    )

    def _known(self, *, async_mode: bool) -> set[str] | None:
        """Return the options that one of the engines accepts, if its driver is known."""
        try:
            url = self._target(async_mode=async_mode)
            dialect = dialect_of(url, async_mode=async_mode)
        except (RoutingError, NoSuchModuleError):
            # Raised when this engine is first used.
            return None
        names = {*get_cls_kwargs(dialect), *get_cls_kwargs(Engine), *_OPTIONS}
        names -= {"dbapi", "pool", "dialect", "url"}
        if async_mode:
            return names - {"creator", "server_side_cursors"}
        return names - {"async_creator"}

    def _target(self, *, async_mode: bool) -> URL:
        urls = (self.async_url, self.url) if async_mode else (self.url, self.async_url)
        return driver_url(cast(URL, urls[0] or urls[1]), async_mode=async_mode)

    def make_sync(self) -> Engine:
        """Make the sync engine."""
        engine: Engine = self._make(create_engine, self.options, async_mode=False)
        self._prepare(engine, async_mode=False)
        return engine

    def make_async(self) -> AsyncEngine:
        """Make the async engine."""
        if find_spec("greenlet") is None:
            raise RoutingError("async sessions need greenlet; install tenure[sqlite]")
        from sqlalchemy.ext.asyncio import create_async_engine

        options = self._merged(self.options, self.async_options)
        engine: AsyncEngine = self._make(create_async_engine, options, async_mode=True)
        self._prepare(engine.sync_engine, async_mode=True)
        return engine

    def _prepare(self, engine: Engine, *, async_mode: bool) -> None:
        prepare(engine)
        watch_statements(engine)
        url = self._target(async_mode=async_mode)
        if is_private_memory(url) or is_named_memory(url):
            self.memory.serve(engine, url)

        @event.listens_for(engine, "connect")
        def connected(connection: Any, record: ConnectionPoolEntry) -> None:
            self.records.add(record)

    def _make(
        self, create: Any, options: Mapping[str, Any], *, async_mode: bool
    ) -> Any:
        if self.given_engines:
            raise self._wrong(
                f"was given as {'a sync' if async_mode else 'an async'} engine only; "
                f"pass a URL, or (engine, async_engine)"
            )
        try:
            asked = self._target(async_mode=async_mode)
            options = self._of_engine(options, async_mode=async_mode)
            if not {"creator", "async_creator"} & set(options):
                url, arguments = fit_options(asked, options.get("connect_args", {}))
                options["connect_args"] = arguments
            else:
                url = asked
            return create(self.memory.url(url), **options)
        except ModuleNotFoundError as error:
            raise self._wrong(f"the driver {error.name!r} is not installed") from error
        except (RoutingError, TypeError, ArgumentError) as error:
            raise self._wrong(str(error)) from error

    def _of_engine(
        self, options: Mapping[str, Any], *, async_mode: bool
    ) -> dict[str, Any]:
        """Drop the options that only the other engine of the pair accepts."""
        mine, other = "creator", "async_creator"
        if async_mode:
            mine, other = other, mine
        if other in options and mine not in options:
            raise RoutingError(
                f"{other!r} makes the {'sync' if async_mode else 'async'} connections; "
                f"for {'async' if async_mode else 'sync'} ones pass {mine!r}, too"
            )
        known = self._known(async_mode=async_mode) or set(options)
        chosen = {name: value for name, value in options.items() if name in known}
        poolclass = chosen.pop("poolclass", None)
        if async_mode:
            is_queue = poolclass is AsyncAdaptedQueuePool or not _takes_async(poolclass)
            if poolclass is None or is_queue:
                poolclass = LoopPool
        elif poolclass is not None and issubclass(poolclass, AsyncAdaptedQueuePool):
            poolclass = None
        url = self._target(async_mode=async_mode)
        if poolclass is None and (is_private_memory(url) or is_named_memory(url)):
            poolclass = QueuePool
        return chosen if poolclass is None else {**chosen, "poolclass": poolclass}

    def made(self) -> Iterator[Engine]:
        """Yield the engines made here so far, without those that the caller passed in."""
        if not self.given_engines:
            yield from self._all()

    def _all(self) -> Iterator[Engine]:
        if self.sync is not None:
            yield self.sync
        if self.asynchronous is not None:
            yield self.asynchronous.sync_engine

    def after_fork(self) -> None:
        """In a forked child: neither use nor close the parent's connections."""
        for record in list(self.records):
            if record.dbapi_connection is not None:
                leave_to_parent(record.dbapi_connection)
                record.dbapi_connection = None
            user = record.fairy_ref and record.fairy_ref()
            if user is not None:
                user.dbapi_connection = None
                user.cursor = user.commit = _refuse_use
        self.records = weakref.WeakSet()
        for engine in self._all():
            leave_to_parent(engine.pool)
            engine.dispose(close=False)
        self.memory.leave_to_parent()


def _takes_async(poolclass: Any) -> bool:
    """Whether an async engine can use *poolclass*."""
    return poolclass is None or not (
        issubclass(poolclass, (QueuePool, SingletonThreadPool))
        and not issubclass(poolclass, AsyncAdaptedQueuePool)
    )


def _joined_arguments(
    first: Mapping[str, Any], second: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge options and server settings one by one; the second ones win."""
    merged = {**first, **second}
    if first.get("server_settings") and second.get("server_settings"):
        merged["server_settings"] = joined(
            first["server_settings"], second["server_settings"]
        )
    return merged


def _is_async_engine(given: Any) -> bool:
    # By name: importing the class needs greenlet, which may not be installed.
    return any(
        cls.__name__ == "AsyncEngine" and cls.__module__.startswith("sqlalchemy.")
        for cls in type(given).__mro__
    )
