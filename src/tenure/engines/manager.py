"""
Named databases, each a pair of engines: one for sync code, one for async code.

One URL is enough for both. An engine is made when it is first used, with a driver that
is installed.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, cast

from sqlalchemy import Engine
from sqlalchemy.engine import URL

from ..errors import RoutingError, UnknownAliasError
from ..routing import DEFAULT, Role, Routers, choose, may_migrate
from .pair import Pair

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class _Engines(Mapping[str, Any]):
    """The engines of one kind by alias, each made when it is first read."""

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

    It is a mapping of aliases to URLs. A forked child opens its own connections, and
    so does each event loop.

    Args:
        databases: Alias to a URL, to ``{"url": …, "async_url": …,
            "engine_options": {…}, "async_engine_options": {…}}``, to an engine or
            to ``(engine, async_engine)``. Anything but a mapping is the one
            database, ``default``.
        routers: Asked in order; the first answer other than ``None`` wins.
        engine_options: Passed to ``create_engine`` for every database; the options of
            one database win over them. An option that only one engine of a pair
            accepts is passed to that engine only.

    Raises:
        RoutingError: A database, an option or a router cannot be used.
    """

    def __init__(
        self,
        databases: Mapping[str, Any]
        | (str | URL | Engine | AsyncEngine | tuple[Engine | AsyncEngine, ...]),
        routers: Iterable[Any] = (),
        **engine_options: Any,
    ) -> None:
        if not isinstance(databases, Mapping):
            databases = {DEFAULT: databases}
        for alias in databases:
            if not isinstance(alias, str) or not alias:
                raise RoutingError(f"an alias is a name, not {alias!r}")
        self.routers: list[Any] = Routers(_checked(routers))
        self._pairs = {
            alias: Pair(alias, given, engine_options)
            for alias, given in databases.items()
        }
        self._lock = Lock()
        self.engines: Mapping[str, Engine] = _Engines(self, async_mode=False)
        self.async_engines: Mapping[str, AsyncEngine] = _Engines(self, async_mode=True)
        _managers.add(self)

    #: Whether blocks record the stack that opened them; :class:`Database` sets it.
    debug = False
    #: What a block does without a current session, unless it says so itself: as
    #: :class:`Database` was told.
    on_missing: Literal["create", "raise"] = "create"

    # By identity, not by contents: two managers never share an engine.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    def urls(self) -> dict[str, URL]:
        """The URL of each database."""
        return {alias: self[alias] for alias in self}

    def __contains__(self, key: object) -> bool:
        return key in self._pairs

    def __iter__(self) -> Iterator[str]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, key: str) -> URL:
        pair = self._pair(key)
        return cast(URL, pair.url or pair.async_url)

    def _pair(self, alias: object, *, by: str = "") -> Pair:
        pair = self._pairs.get(alias) if isinstance(alias, str) else None
        if pair is None:
            raise UnknownAliasError(alias, self._pairs, by=by)
        return pair

    def engine(self, alias: str, async_mode: bool = False, by: str = "") -> Any:
        """
        Return the engine of *alias*; the first call makes it.

        Raises:
            RoutingError: There is no such database, no driver for it is installed, or
                the driver has no equivalent of an option.
        """
        pair = self._pairs.get(alias) or self._pair(alias, by=by)
        engine = pair.asynchronous if async_mode else pair.sync
        if engine is not None:
            return engine
        with self._lock:
            if async_mode:
                pair.asynchronous = pair.asynchronous or pair.make_async()
                return pair.asynchronous
            pair.sync = pair.sync or pair.make_sync()
            return pair.sync

    def alias_of(self, engine: object) -> str | None:
        """Return the alias whose connections *engine* uses, whatever its options."""
        pool = getattr(engine, "pool", None)
        for alias, pair in self._pairs.items():
            for known in (pair.sync, pair.asynchronous):
                if known is not None and known.pool is pool:
                    return alias
        return None

    def recipe(self, engine: object) -> dict[str, Any] | None:
        """
        Return what makes the database of *engine* in another process, if that is known.

        Of an engine that was passed in nobody knows how it was made.
        """
        alias = self.alias_of(engine)
        return None if alias is None else self._pairs[alias].recipe

    def made(self) -> Iterator[Engine]:
        """Yield the engines made so far; for an async one, the sync engine inside it."""
        for pair in self._pairs.values():
            yield from pair.made()

    def get_engine(self, resource: Any = None, async_mode: bool = False) -> Any:
        """Return the engine for *resource* (a mapped class or ``None``)."""
        return self.route(resource, None, async_mode=async_mode)

    def get_read_engine(self, resource: Any = None, async_mode: bool = False) -> Any:
        """Return the engine for reading *resource*."""
        return self.route(resource, "read", async_mode=async_mode)

    def get_write_engine(self, resource: Any = None, async_mode: bool = False) -> Any:
        """Return the engine for writing *resource*."""
        return self.route(resource, "write", async_mode=async_mode)

    def route(self, resource: Any, role: Role | None, *, async_mode: bool) -> Any:
        """
        Return the engine that the routers choose.

        Raises:
            RoutingError: A router failed or returned an unknown alias.
        """
        alias, by = choose(self.routers, resource, role)
        return self.engine(alias, async_mode=async_mode, by=by)

    def is_migration_allowed(self, engine: str, package: str) -> bool:
        """Whether *package* may be migrated on the database *engine*."""
        self._pair(engine)
        return may_migrate(self.routers, engine, package)

    def dispose(self) -> None:
        """
        Close the connections of every sync engine made here.

        Engines that the caller passed in stay open. A database in memory ends with
        its last connection.
        """
        for pair in self._pairs.values():
            if pair.given_engines:
                continue
            with self._lock:
                engine, pair.sync = pair.sync, None
            if engine is not None:
                engine.dispose()
            pair.memory.close()

    async def adispose(self) -> None:
        """
        Close the connections of every engine, sync and async, made here.

        Another event loop that is running closes its connections itself, soon.
        """
        self.dispose()
        for pair in self._pairs.values():
            if pair.given_engines:
                continue
            with self._lock:
                engine, pair.asynchronous = pair.asynchronous, None
            if engine is not None:
                await engine.dispose()

    def _after_fork(self) -> None:
        """In a forked child: drop the parent's connections and lock."""
        # A thread of the parent may hold it, and does not exist here.
        self._lock = Lock()
        for pair in self._pairs.values():
            pair.after_fork()


def recipe_of(engine: object) -> dict[str, Any] | None:
    """Return what :meth:`DatabaseManager.recipe` of the manager that made it returns."""
    recipes = (manager.recipe(engine) for manager in list(_managers))
    return next((recipe for recipe in recipes if recipe is not None), None)


def _checked(routers: Any) -> list[Any]:
    """
    Return the routers as a list.

    Raises:
        RoutingError: One of them cannot be a router.
    """
    if isinstance(routers, (str, bytes, type)) or not isinstance(routers, Iterable):
        raise RoutingError(f"expected a sequence of routers, not {routers!r}")
    checked = list(routers)
    for router in checked:
        if isinstance(router, type):
            raise RoutingError(
                f"a router is an object, not a class; pass {router.__name__}()"
            )
        if router is None or isinstance(router, (str, bytes, int, float)):
            raise RoutingError(
                f"a router is an object with get_engine() or the like, not {router!r}"
            )
    return checked


def _after_fork() -> None:
    for manager in list(_managers):
        manager._after_fork()


_managers: weakref.WeakSet[DatabaseManager] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
