"""From one URL to two: with a sync driver and with an async driver."""

from __future__ import annotations

from importlib.util import find_spec

from sqlalchemy import make_url
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import NoSuchModuleError

from ..errors import RoutingError

# Drivers of each backend, best first.
SYNC_DRIVERS = {
    "sqlite": ("pysqlite",),
    "postgresql": ("psycopg", "psycopg2"),
    "mysql": ("pymysql", "mysqldb"),
    "mariadb": ("pymysql", "mysqldb"),
}
ASYNC_DRIVERS = {
    "sqlite": ("aiosqlite",),
    "postgresql": ("psycopg", "asyncpg"),
    "mysql": ("asyncmy", "aiomysql"),
    "mariadb": ("asyncmy", "aiomysql"),
}
# The module of a driver, where it is called otherwise.
_MODULES = {"pysqlite": "sqlite3", "mysqldb": "MySQLdb"}


def driver_url(url: URL, *, async_mode: bool) -> URL:
    """
    Return *url* with a driver of the wanted kind, everything else unchanged.

    Raises:
        RoutingError: No such driver is installed.
    """
    backend = url.get_backend_name()
    named = url.drivername.partition("+")[2]
    drivers = (ASYNC_DRIVERS if async_mode else SYNC_DRIVERS).get(backend)
    if drivers is None or (named and serves(url, async_mode=async_mode)):
        return url
    modules = {driver: _MODULES.get(driver, driver) for driver in drivers}
    for driver, module in modules.items():
        if find_spec(module) is not None:
            return url.set(drivername=f"{backend}+{driver}")
    raise RoutingError(
        f"no {'async' if async_mode else 'sync'} driver for {backend} is installed; "
        f"install {' or '.join(modules.values())}, "
        f"or tenure[{'mysql' if backend == 'mariadb' else backend}]"
    )


def dialect_of(url: URL, *, async_mode: bool) -> type[Dialect]:
    """Return the dialect that an engine of the wanted kind would use for *url*."""
    dialect = url.get_dialect()
    return dialect.get_async_dialect_cls(url) if async_mode else dialect


def serves(url: URL, *, async_mode: bool) -> bool:
    """Whether the driver in *url* is of the wanted kind."""
    try:
        return dialect_of(url, async_mode=async_mode).is_async is async_mode
    except NoSuchModuleError as error:
        raise RoutingError(f"no dialect {url.drivername!r} is installed") from error


def is_async_url(url: URL | str) -> bool:
    """Whether only async engines can use the driver in *url*."""
    return not serves(make_url(url), async_mode=False)
