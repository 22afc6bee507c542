"""
From one URL to two: a driver of each kind, and the options it understands.

An option that the other driver calls otherwise is renamed. What it has nothing like
is left out if it only tunes the connection, and refused if it may protect it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from math import ceil
from typing import Any, NoReturn
from urllib.parse import urlencode

from sqlalchemy import make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import NoSuchModuleError

from ..errors import RoutingError

# Drivers of each backend, best first, with the module that must be installed.
SYNC_DRIVERS = {
    "sqlite": (("pysqlite", "sqlite3"),),
    "postgresql": (("psycopg", "psycopg"), ("psycopg2", "psycopg2")),
    "mysql": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
    "mariadb": (("pymysql", "pymysql"), ("mysqldb", "MySQLdb")),
}
ASYNC_DRIVERS = {
    "sqlite": (("aiosqlite", "aiosqlite"),),
    "postgresql": (("psycopg", "psycopg"), ("asyncpg", "asyncpg")),
    "mysql": (("asyncmy", "asyncmy"), ("aiomysql", "aiomysql")),
    "mariadb": (("asyncmy", "asyncmy"), ("aiomysql", "aiomysql")),
}


def driver_url(url: URL, *, async_mode: bool) -> URL:
    """
    Give *url* with a driver of the wanted kind, everything else unchanged.

    Raises:
        RoutingError: No such driver is installed.
    """
    backend = url.get_backend_name()
    named = url.drivername.partition("+")[2]
    drivers = (ASYNC_DRIVERS if async_mode else SYNC_DRIVERS).get(backend)
    if drivers is None or (named and serves(url, async_mode=async_mode)):
        return url
    for driver, module in drivers:
        if find_spec(module) is not None:
            return url.set(drivername=f"{backend}+{driver}")
    raise RoutingError(
        f"no {'async' if async_mode else 'sync'} driver for {backend} is installed; "
        f"install {' or '.join(module for _, module in drivers)}, "
        f"or tenure[{'mysql' if backend == 'mariadb' else backend}]"
    )


def serves(url: URL, *, async_mode: bool) -> bool:
    """Whether the driver that *url* names is of the wanted kind."""
    try:
        return url.get_dialect(_is_async=async_mode).is_async is async_mode
    except NoSuchModuleError as error:
        raise RoutingError(f"no dialect {url.drivername!r} is installed") from error


def is_async_url(url: URL | str) -> bool:
    """Whether *url* names a driver that only async engines can use."""
    return not serves(make_url(url), async_mode=False)


def fit_options(url: URL, given: Mapping[str, Any]) -> tuple[URL, dict[str, Any]]:
    """
    Give *url* and the connect arguments *given* in the words of the URL's driver.

    What the driver calls otherwise is renamed. What it has nothing like is left
    out if it only tunes the connection, and refused if it may protect it.

    Raises:
        RoutingError: An option that must not be left out cannot be translated.
    """
    fit = _FITS.get(url.get_driver_name())
    if fit is None:
        return url, dict(given)
    asked, told = fit(dict(url.query)), fit(dict(given))
    in_url = {
        name: value
        for name, value in asked.items()
        if name != "dsn" and isinstance(value, (str, tuple))
    }
    rest = {name: value for name, value in asked.items() if name not in in_url}
    # The server reads settings in turn: those of the arguments come later and win.
    if "options" in in_url and "options" in told:
        told["options"] = f"{in_url['options']} {told['options']}"
    if "server_settings" in rest and "server_settings" in told:
        told["server_settings"] = joined(
            rest["server_settings"], told["server_settings"]
        )
    if "dsn" in rest and "dsn" in told:
        told["dsn"] = f"{told['dsn']}&{rest['dsn'].partition('?')[2]}"
    return url.set(query=in_url), rest | told


def joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    joined = {**first, **second}
    if "options" in first and "options" in second:
        joined["options"] = f"{first['options']} {second['options']}"
    return joined


# Options of asyncpg, and of SQLAlchemy for it, that tune it and have no like.
_ASYNCPG_TUNES = {
    "command_timeout",
    "connection_class",
    "loop",
    "max_cacheable_statement_size",
    "max_cached_statement_lifetime",
    "prepared_statement_name_func",
    "record_class",
}
_PSYCOPG_TUNES = {"context", "cursor_factory", "prepare_threshold", "row_factory"}
# Options of libpq that tune it and have no like in asyncpg.
_LIBPQ_TUNES = {
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "sslcompression",
    "tcp_user_timeout",
}
# Those that protect, with the values that ask for nothing.
_LIBPQ_IDLE = {
    "channel_binding": {"disable", "prefer"},
    "client_encoding": {"utf8", "utf-8", "unicode"},
    "gssencmode": {"disable", "prefer"},
    "sslcertmode": {"disable", "allow"},
    "sslsni": {"1"},
}
# What asyncpg reads from a DSN only.
_ASYNCPG_DSN = {
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcrl",
    "sslkey",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
}
_NO_CACHE = ("statement_cache_size", "prepared_statement_cache_size")
# A URL's options are text; asyncpg wants numbers, SQLAlchemy makes them for one only.
_ASYNCPG_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "command_timeout": float,
    "max_cacheable_statement_size": int,
    "max_cached_statement_lifetime": int,
    "prepared_statement_cache_size": int,
    "statement_cache_size": int,
    "timeout": float,
}


def _for_psycopg(options: dict[str, Any]) -> dict[str, Any]:
    fitted = _for_libpq(options, "psycopg")
    if isinstance(threshold := fitted.get("prepare_threshold"), str):
        never = threshold.lower() in {"", "none"}
        fitted["prepare_threshold"] = (
            None if never else _number(int, "psycopg", "prepare_threshold", threshold)
        )
    if any(_is_zero(options.get(name)) for name in _NO_CACHE):
        fitted.setdefault("prepare_threshold", None)
    return fitted


def _for_psycopg2(options: dict[str, Any]) -> dict[str, Any]:
    # It prepares nothing, so there is nothing to switch off.
    return {
        name: value
        for name, value in _for_libpq(options, "psycopg2").items()
        if name not in _PSYCOPG_TUNES - {"cursor_factory"}
    }


def _for_libpq(options: dict[str, Any], driver: str) -> dict[str, Any]:
    """Give asyncpg's options their names in libpq, which names those it knows not."""
    fitted: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for name, value in options.items():
        if name in _ASYNCPG_TUNES or name in _NO_CACHE:
            continue
        if name == "server_settings":
            settings = dict(value)
        elif name == "timeout":
            # Whole seconds; libpq waits for ever if it is told 0.
            seconds = 0.0 if value is None else _number(float, driver, name, value)
            fitted["connect_timeout"] = str(ceil(seconds))
        elif name == "database":
            fitted["dbname"] = value
        elif name == "ssl":
            if not isinstance(value, str):
                _refuse(driver, name, value)
            fitted["sslmode"] = value
        elif name == "direct_tls":
            if is_true(value):
                fitted["sslnegotiation"] = "direct"
        elif name == "dsn" or (callable(value) and name not in _PSYCOPG_TUNES):
            _refuse(driver, name, value)
        else:
            fitted[name] = value
    if "application_name" in settings:
        fitted["application_name"] = settings.pop("application_name")
    if settings:
        told = [settings.pop("options")] if "options" in settings else []
        told += [f"-c {name}={_escaped(value)}" for name, value in settings.items()]
        fitted["options"] = " ".join([*filter(None, [fitted.get("options")]), *told])
    return fitted


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _for_asyncpg(options: dict[str, Any]) -> dict[str, Any]:
    """
    Give libpq's options their names in asyncpg.

    Some certificates' options it reads from a DSN only, and it takes settings of
    the server in a mapping.
    """
    known = _parameters_of("asyncpg", "connect")
    known |= {"async_creator_fn", *_ASYNCPG_TUNES, *_NO_CACHE}
    fitted: dict[str, Any] = {}
    settings: dict[str, str] = {}
    dsn: dict[str, str] = {}
    for name, value in options.items():
        if name == "sslmode":
            fitted["ssl"] = value
        elif name == "dbname":
            fitted["database"] = value
        elif name == "connect_timeout":
            seconds = _number(float, "asyncpg", name, value)
            fitted["timeout"] = seconds if seconds > 0 else None
        elif name in {"application_name", "options"}:
            settings[name] = value
        elif name == "fallback_application_name":
            settings.setdefault("application_name", value)
        elif name == "server_settings":
            fitted[name] = value
        elif name in _ASYNCPG_DSN:
            dsn[name] = value
        elif name == "prepare_threshold":
            if value is None or str(value).lower() in {"", "none"}:
                fitted |= dict.fromkeys(_NO_CACHE, 0)
        elif name == "direct_tls":
            fitted[name] = is_true(value)
        elif name in _ASYNCPG_NUMBERS and isinstance(value, str):
            fitted[name] = _number(_ASYNCPG_NUMBERS[name], "asyncpg", name, value)
        elif name in known:
            fitted[name] = value
        elif not (
            name in _LIBPQ_TUNES
            or name in _PSYCOPG_TUNES
            or str(value).lower() in _LIBPQ_IDLE.get(name, ())
        ):
            _refuse("asyncpg", name, value)
    if settings:
        fitted["server_settings"] = joined(
            settings, fitted.get("server_settings") or {}
        )
    if dsn:
        fitted["dsn"] = f"postgresql://?{urlencode(dsn)}"
    return fitted


# Options of one MySQL driver that tune it; another that has them not goes without.
_MYSQL_TUNES = {
    "binary_prefix",
    "bind_address",
    "cursor_cls",
    "cursorclass",
    "defer_connect",
    "echo",
    "max_allowed_packet",
    "named_pipe",
    "program_name",
    "query_callback",
    "read_timeout",
    "stmt_cache_size",
    "write_timeout",
}
# SQLAlchemy puts these into the one argument "ssl".
_MYSQL_SSL = {
    "ssl_ca",
    "ssl_capath",
    "ssl_cert",
    "ssl_check_hostname",
    "ssl_cipher",
    "ssl_key",
}


def _for_pymysql(options: dict[str, Any]) -> dict[str, Any]:
    known = _parameters_of("pymysql.connections", "Connection")
    return _for_mysql(options, "pymysql", known)


def _for_asyncmy(options: dict[str, Any]) -> dict[str, Any]:
    return _for_mysql(options, "asyncmy", _parameters_of("asyncmy", "connect"))


def _for_aiomysql(options: dict[str, Any]) -> dict[str, Any]:
    if "ssl" not in options and _MYSQL_SSL & set(options):
        # Of a context it can make use, of a mapping as the others take it not.
        name = min(_MYSQL_SSL & set(options))
        _refuse("aiomysql", name, options[name])
    return _for_mysql(options, "aiomysql", _parameters_of("aiomysql", "connect"))


def _for_mysql(options: dict[str, Any], driver: str, known: set[str]) -> dict[str, Any]:
    if is_true(options.get("ssl_verify_cert", "")) and "ssl_ca" in options:
        # With an authority to ask, all of them verify.
        options = {k: v for k, v in options.items() if k != "ssl_verify_cert"}
    if "ssl_verify_identity" in options and "ssl_verify_identity" not in known:
        options = dict(options)
        options["ssl_check_hostname"] = options.pop("ssl_verify_identity")
    fitted: dict[str, Any] = {}
    for name, value in options.items():
        if name in known or name in _MYSQL_SSL or name == "async_creator_fn":
            fitted[name] = value
        elif name not in _MYSQL_TUNES:
            _refuse(driver, name, value)
    return fitted


# Of Python's sqlite3; what else a URL holds is for SQLite's own "file:" URIs.
SQLITE_NAMES = {
    "autocommit",
    "cached_statements",
    "check_same_thread",
    "detect_types",
    "factory",
    "isolation_level",
    "timeout",
    "uri",
}
SQLITE_URI_NAMES = {
    "cache",
    "immutable",
    "mode",
    "modeof",
    "nolock",
    "psow",
    "vfs",
}


def _for_pysqlite(options: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in {"iter_chunk_size", "loop"}}


_FITS = {
    "psycopg": _for_psycopg,
    "psycopg_async": _for_psycopg,
    "psycopg2": _for_psycopg2,
    "asyncpg": _for_asyncpg,
    "pymysql": _for_pymysql,
    "asyncmy": _for_asyncmy,
    "aiomysql": _for_aiomysql,
    "pysqlite": _for_pysqlite,
}


def _parameters_of(module: str, name: str) -> set[str]:
    try:
        return set(signature(getattr(import_module(module), name)).parameters)
    except ModuleNotFoundError:
        return set()


def _is_zero(value: Any) -> bool:
    return str(value) == "0"


def is_true(value: Any) -> bool:
    return str(value).lower() in {"1", "true", "yes", "on"}


def _number(kind: Callable[[Any], Any], driver: str, name: str, value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise RoutingError(
            f"the option {name!r} of {driver} is a number, not {value!r}"
        ) from error


def _refuse(driver: str, name: str, value: Any) -> NoReturn:
    # Not just any value: it may be a password.
    shown = f"={value}" if name in _LIBPQ_IDLE else ""
    raise RoutingError(
        f"{driver} has nothing like the option {name}{shown}, and it is not left "
        f"out unasked; give {driver} a URL of its own, "
        f'as {{"url": …, "async_url": …}}'
    )
