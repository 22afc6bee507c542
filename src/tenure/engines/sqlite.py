"""SQLite: its URIs, its memory, and the transactions that its driver puts off."""

from __future__ import annotations

import os
import re
import sqlite3
import weakref
from collections.abc import Callable
from itertools import count
from threading import Lock
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import PoolResetState

from ..errors import RoutingError
from .options import is_true
from .pools import leave_to_parent

# Options of Python's sqlite3; a URL's other options are for SQLite's "file:" URIs.
_NAMES = {
    *("autocommit", "cached_statements", "check_same_thread", "detect_types"),
    *("factory", "isolation_level", "timeout", "uri"),
}
_URI_NAMES = {"cache", "immutable", "mode", "modeof", "nolock", "psow", "vfs"}


def sqlite_url(url: URL) -> URL:
    """
    Give a URL of SQLite whose options for SQLite itself are heard.

    They are only in a ``file:`` URI; elsewhere ``mode=ro`` would be ignored.

    Raises:
        RoutingError: An option that neither Python's sqlite3 nor SQLite knows.
    """
    if url.get_backend_name() != "sqlite":
        return url
    asked = set(url.query) - _NAMES
    if is_true(url.query.get("uri", "")) or not asked:
        if asked and not (url.database or "").startswith("file:"):
            return url.set(database=f"file:{quote(url.database or '')}")
        return url
    if unknown := asked - _URI_NAMES:
        known = ", ".join(sorted(_NAMES | _URI_NAMES))
        raise RoutingError(
            f"sqlite knows no option {', '.join(map(repr, sorted(unknown)))}; "
            f"known: {known}"
        )
    if url.database in {None, "", ":memory:"}:
        return url.difference_update_query(sorted(asked))
    database = url.database or ""
    if not database.startswith("file:"):
        database = f"file:{quote(database)}"
    return url.set(database=database).update_query_dict({"uri": "true"})


def shared_memory(url: URL, name: str) -> URL:
    """
    Give *url*, or if it is SQLite's memory, one database that connections share.

    Else each connection would have a database of its own. A shared cache would do,
    but there a table is locked at once, and for all but the impatient: connections
    to the same ``memdb`` wait for each other, as those to a file do.
    Source: SQLite, "In-Memory Databases", "Shared-Cache Mode"; ``memdb.c``.
    """
    if not is_private_memory(url):
        return url
    shared = (
        {"vfs": "memdb"}
        if sqlite3.sqlite_version_info >= (3, 36)
        else {"mode": "memory", "cache": "shared"}
    )
    return (
        url.set(database=f"file:/{name}")
        .difference_update_query(["mode", "cache", "vfs"])
        .update_query_dict({**shared, "uri": "true"})
    )


def is_private_memory(url: URL) -> bool:
    """Whether each connection to *url* would get an empty database in memory."""
    if url.get_backend_name() != "sqlite":
        return False
    if url.database in {None, "", ":memory:"}:
        return True
    return (
        is_true(url.query.get("uri", ""))
        and (url.database == "file::memory:" or url.query.get("mode") == "memory")
        and url.query.get("cache") != "shared"
    )


def is_named_memory(url: URL) -> bool:
    """Whether *url* names a database in memory that whoever knows the name shares."""
    return url.get_backend_name() == "sqlite" and (
        url.query.get("vfs") == "memdb"
        or (
            url.query.get("cache") == "shared"
            and (url.database == "file::memory:" or url.query.get("mode") == "memory")
        )
    )


_numbers = count()


class Memory:
    """
    A database in SQLite's memory, which lives while a connection to it does.

    So one is kept open, from the first that somebody else asks for until
    :meth:`close`, or until nobody refers to this any more.
    """

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._lock = Lock()
        self._anchor: sqlite3.Connection | None = None
        self._release: Callable[[], object] | None = None

    @property
    def name(self) -> str:
        # A forked child has a memory of its own, in which this is another database.
        return f"tenure-{os.getpid()}-{self._number}"

    def url(self, url: URL) -> URL:
        return shared_memory(url, self.name)

    def serve(self, engine: Engine, url: URL) -> None:
        """Have *engine*, made for :meth:`url`, connect to this database."""
        is_ours = is_private_memory(url)

        @event.listens_for(engine, "do_connect")
        def connecting(
            dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]
        ) -> None:
            if is_ours:
                ours, _ = dialect.create_connect_args(self.url(url))
                arguments[:] = ours
            # Connections go from thread to thread, as those to a file do.
            if "check_same_thread" not in url.query:
                options["check_same_thread"] = False
            self._keep(arguments[0])

    def _keep(self, filename: str) -> None:
        with self._lock:
            if self._anchor is None:
                # Whoever ends the last reference may be any thread.
                anchor = sqlite3.connect(filename, uri=True, check_same_thread=False)
                self._anchor = anchor
                self._release = weakref.finalize(self, anchor.close)

    def close(self) -> None:
        """Let go of the database; it ends with its last connection."""
        with self._lock:
            release, self._release, self._anchor = self._release, None, None
        if release is not None:
            release()

    def leave_to_parent(self) -> None:
        """In a forked child: begin with an empty database."""
        if self._anchor is not None:
            leave_to_parent(self._anchor)
            cast("weakref.finalize[..., Any]", self._release).detach()
        self._lock, self._anchor, self._release = Lock(), None, None


_BEGINS = re.compile(
    r"\s*(?!(?:SELECT|VALUES|EXPLAIN|PRAGMA|ATTACH|DETACH|VACUUM)\b)"
    r"(?!WITH\b(?!.*\b(?:INSERT|UPDATE|DELETE|REPLACE)\b))\w",
    re.IGNORECASE | re.DOTALL,
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

    # Of the dialect: those of an engine make every statement build events.
    def executing(cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith("SELECT") and _BEGINS.match(statement):
            *_, context = rest
            begin_late(context.root_connection)

    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        event.listen(engine, name, executing)


def begin_late(connection: Connection) -> None:
    """
    Begin the transaction that SQLite's driver puts off.

    Without one, releasing the first savepoint commits it.
    Source: SQLite, "SAVEPOINT", section 2.
    """
    pooled = connection.connection
    if not pooled.is_valid:
        return
    # No isolation level: the driver's autocommit mode, which was asked for.
    if pooled.isolation_level is not None and not _is_begun(pooled.driver_connection):
        # Not by SQLAlchemy: it is no statement of the caller's.
        cursor = pooled.cursor()
        cursor.execute("BEGIN")
        cursor.close()


def _is_begun(driver_connection: Any) -> bool:
    begun: bool = driver_connection.in_transaction
    return begun
