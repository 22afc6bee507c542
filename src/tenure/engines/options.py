"""
The options of a URL and of ``connect_args``, translated for each driver.

An option is renamed to the driver's own name. One without an equivalent is dropped if
it only tunes the connection, and refused if it may matter for security.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import signature
from math import ceil
from typing import Any, NoReturn
from urllib.parse import urlencode

from sqlalchemy.engine import URL

from ..errors import RoutingError


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


def fit_options(url: URL, given: Mapping[str, Any]) -> tuple[URL, dict[str, Any]]:
    """
    Return *url* and the connect arguments *given* with the driver's own option names.

    Raises:
        RoutingError: An option that may matter for security has no equivalent.
    """
    driver = url.get_driver_name().removesuffix("_async")
    fit = _FITS.get(driver)
    if fit is None:
        return url, dict(given)
    of_url, arguments = fit(dict(url.query), driver), fit(dict(given), driver)
    in_url = {
        name: value
        for name, value in of_url.items()
        if name != "dsn" and isinstance(value, (str, tuple))
    }
    rest = {name: value for name, value in of_url.items() if name not in in_url}
    # The server reads settings in order: those of the arguments come later and win.
    if "options" in in_url and "options" in arguments:
        arguments["options"] = f"{in_url['options']} {arguments['options']}"
    if "server_settings" in rest and "server_settings" in arguments:
        arguments["server_settings"] = joined(
            rest["server_settings"], arguments["server_settings"]
        )
    if "dsn" in rest and "dsn" in arguments:
        arguments["dsn"] = f"{arguments['dsn']}&{rest['dsn'].partition('?')[2]}"
    return url.set(query=in_url), rest | arguments


def joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """Merge server settings; the second ones win."""
    joined = {**first, **second}
    if "options" in first and "options" in second:
        joined["options"] = f"{first['options']} {second['options']}"
    return joined


# Options that only tune, and are dropped where another driver has no equivalent.
_ASYNCPG_TUNES = _names(
    "command_timeout connection_class loop max_cacheable_statement_size",
    "max_cached_statement_lifetime prepared_statement_name_func record_class",
)
_PSYCOPG_TUNES = _names("context cursor_factory prepare_threshold row_factory")
_LIBPQ_TUNES = _names(
    "keepalives keepalives_count keepalives_idle keepalives_interval",
    "load_balance_hosts sslcompression tcp_user_timeout",
)
_MYSQL_TUNES = _names(
    "binary_prefix bind_address cursor_cls cursorclass defer_connect echo",
    "max_allowed_packet named_pipe program_name query_callback read_timeout",
    "stmt_cache_size write_timeout",
)
_PYSQLITE_LACKS = _names("iter_chunk_size loop")
# Options of libpq that protect, with the values that do not, which are dropped.
_LIBPQ_HARMLESS = {
    "channel_binding": _names("disable prefer"),
    "client_encoding": _names("utf8 utf-8 unicode"),
    "gssencmode": _names("disable prefer"),
    "sslcertmode": _names("disable allow"),
    "sslsni": _names("1"),
}
_LIBPQ_NAMES = {"database": "dbname", "ssl": "sslmode"}
_ASYNCPG_NAMES = {"dbname": "database", "sslmode": "ssl"}
# What asyncpg reads only from a DSN.
_ASYNCPG_DSN = _names(
    "ssl_max_protocol_version ssl_min_protocol_version sslcert sslcrl sslkey",
    "sslnegotiation sslpassword sslrootcert",
)
_NO_CACHE = ("statement_cache_size", "prepared_statement_cache_size")
# A URL's options are text; asyncpg wants numbers, and SQLAlchemy converts only one.
_ASYNCPG_NUMBERS: dict[str, Callable[[Any], Any]] = {
    "command_timeout": float,
    "max_cacheable_statement_size": int,
    "max_cached_statement_lifetime": int,
    "prepared_statement_cache_size": int,
    "statement_cache_size": int,
    "timeout": float,
}
# SQLAlchemy puts these into the one argument "ssl".
_MYSQL_SSL = _names("ssl_ca ssl_capath ssl_cert ssl_check_hostname ssl_cipher ssl_key")
# Where a driver's parameters are read from.
_CONNECT = {
    "asyncpg": ("asyncpg", "connect"),
    "pymysql": ("pymysql.connections", "Connection"),
    "asyncmy": ("asyncmy", "connect"),
    "aiomysql": ("aiomysql", "connect"),
}


def _for_psycopg(options: dict[str, Any], driver: str) -> dict[str, Any]:
    fitted = _for_libpq(options, driver)
    if driver == "psycopg2":
        # It prepares no statements, so there is nothing to switch off.
        dropped = _PSYCOPG_TUNES - {"cursor_factory"}
        return {name: value for name, value in fitted.items() if name not in dropped}
    if isinstance(threshold := fitted.get("prepare_threshold"), str):
        fitted["prepare_threshold"] = (
            None
            if _is_none(threshold)
            else _number(int, driver, "prepare_threshold", threshold)
        )
    if any(str(options.get(name)) == "0" for name in _NO_CACHE):
        fitted.setdefault("prepare_threshold", None)
    return fitted


def _for_libpq(options: dict[str, Any], driver: str) -> dict[str, Any]:
    """Rename asyncpg's options to libpq's; libpq itself refuses unknown names."""
    fitted: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for name, value in options.items():
        if name in _ASYNCPG_TUNES or name in _NO_CACHE:
            continue
        if name == "server_settings":
            settings = dict(value)
        elif name == "timeout":
            # Whole seconds; for libpq 0 is no limit.
            seconds = 0.0 if value is None else _number(float, driver, name, value)
            fitted["connect_timeout"] = str(ceil(seconds))
        elif name == "direct_tls":
            if is_true(value):
                fitted["sslnegotiation"] = "direct"
        elif name == "dsn" or (name == "ssl" and not isinstance(value, str)):
            _refuse(driver, name, value)
        elif name in _LIBPQ_NAMES:
            fitted[_LIBPQ_NAMES[name]] = value
        elif callable(value) and name not in _PSYCOPG_TUNES:
            _refuse(driver, name, value)
        else:
            fitted[name] = value
    if "application_name" in settings:
        fitted["application_name"] = settings.pop("application_name")
    if settings:
        words = [fitted.get("options"), settings.pop("options", "")]
        words += [f"-c {name}={_escaped(value)}" for name, value in settings.items()]
        fitted["options"] = " ".join(filter(None, words))
    return fitted


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace(" ", "\\ ")


def _for_asyncpg(options: dict[str, Any], driver: str) -> dict[str, Any]:
    """Rename libpq's options to asyncpg's: arguments, server settings, or a DSN."""
    known = _parameters_of(driver)
    known |= {"async_creator_fn", "server_settings", *_ASYNCPG_TUNES, *_NO_CACHE}
    known |= _ASYNCPG_NAMES.keys()
    fitted: dict[str, Any] = {}
    settings: dict[str, str] = {}
    dsn: dict[str, str] = {}
    for name, value in options.items():
        if name == "connect_timeout":
            seconds = _number(float, driver, name, value)
            fitted["timeout"] = seconds if seconds > 0 else None
        elif name in {"application_name", "options"}:
            settings[name] = value
        elif name == "fallback_application_name":
            settings.setdefault("application_name", value)
        elif name in _ASYNCPG_DSN:
            dsn[name] = value
        elif name == "prepare_threshold":
            if _is_none(value):
                fitted |= dict.fromkeys(_NO_CACHE, 0)
        elif name == "direct_tls":
            fitted[name] = is_true(value)
        elif name in _ASYNCPG_NUMBERS and isinstance(value, str):
            fitted[name] = _number(_ASYNCPG_NUMBERS[name], driver, name, value)
        elif name in known:
            fitted[_ASYNCPG_NAMES.get(name, name)] = value
        elif not (
            name in _LIBPQ_TUNES
            or name in _PSYCOPG_TUNES
            or str(value).lower() in _LIBPQ_HARMLESS.get(name, ())
        ):
            _refuse(driver, name, value)
    if settings:
        fitted["server_settings"] = joined(
            settings, fitted.get("server_settings") or {}
        )
    if dsn:
        fitted["dsn"] = f"postgresql://?{urlencode(dsn)}"
    return fitted


def _for_mysql(options: dict[str, Any], driver: str) -> dict[str, Any]:
    asked = _MYSQL_SSL & options.keys()
    if driver == "aiomysql" and asked and "ssl" not in options:
        # It takes an SSL context, not the mapping that SQLAlchemy makes of these.
        name = min(asked)
        _refuse(driver, name, options[name])
    known = _parameters_of(driver)
    if "ssl_ca" in options and is_true(options.get("ssl_verify_cert", "")):
        # With a certificate authority, all of them verify.
        options.pop("ssl_verify_cert")
    if "ssl_verify_identity" in options and "ssl_verify_identity" not in known:
        options["ssl_check_hostname"] = options.pop("ssl_verify_identity")
    fitted: dict[str, Any] = {}
    for name, value in options.items():
        if name in known or name in _MYSQL_SSL or name == "async_creator_fn":
            fitted[name] = value
        elif name not in _MYSQL_TUNES:
            _refuse(driver, name, value)
    return fitted


def _for_pysqlite(options: dict[str, Any], driver: str) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k not in _PYSQLITE_LACKS}


_FITS = {
    "psycopg": _for_psycopg,
    "psycopg2": _for_psycopg,
    "asyncpg": _for_asyncpg,
    "pymysql": _for_mysql,
    "asyncmy": _for_mysql,
    "aiomysql": _for_mysql,
    "pysqlite": _for_pysqlite,
}


def _parameters_of(driver: str) -> set[str]:
    module, name = _CONNECT[driver]
    try:
        return set(signature(getattr(import_module(module), name)).parameters)
    except ModuleNotFoundError:
        return set()


def is_true(value: Any) -> bool:
    """Whether an option is switched on, in any of the usual spellings."""
    return str(value).lower() in {"1", "true", "yes", "on"}


def _is_none(value: Any) -> bool:
    return str(value).lower() in {"", "none"}


def _number(kind: Callable[[Any], Any], driver: str, name: str, value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError) as error:
        raise RoutingError(
            f"the option {name!r} of {driver} is a number, not {value!r}"
        ) from error


def _refuse(driver: str, name: str, value: Any) -> NoReturn:
    # No other values: they may be secrets.
    shown = f"={value}" if name in _LIBPQ_HARMLESS else ""
    raise RoutingError(
        f"option {name}{shown} has no equivalent in {driver} and may matter for "
        f"security, so it is not dropped; give {driver} a URL of its own, "
        f'as {{"url": …, "async_url": …}}'
    )
