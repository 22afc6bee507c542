"""SQLite: its URIs, databases in memory, and transactions its driver begins late."""

from __future__ import annotations

import os
import re
import weakref
from collections.abc import Callable
from importlib import import_module
from itertools import count
from threading import Lock
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.pool import PoolResetState

from ..errors import RoutingError
from .commits import note_error, note_interrupted
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
    Return *url* with the database as a ``file:`` URI, if it has options of SQLite's.

    SQLite reads them there only; elsewhere it would ignore ``mode=ro``.

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
    Return *url*; for SQLite's memory, the URL of one database for all connections.

    Otherwise each connection would have a database of its own. With a shared cache, a
    locked table is an error at once. Connections to the same ``memdb`` wait for each
    other, as those to a file do.
    Source: SQLite, "In-Memory Databases", "Shared-Cache Mode"; ``memdb.c``.
    """
    if not is_private_memory(url):
        return url
    shared = (
        {"vfs": "memdb"}
        if import_module("sqlite3").sqlite_version_info >= (3, 36)
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
    """Whether *url* is a database in memory that all who know its name share."""
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
    A database in SQLite's memory, which exists while a connection to it is open.

    One connection is kept open from the first connect until :meth:`close`, or until
    this object is garbage-collected.
    """

    def __init__(self) -> None:
        self._number = next(_numbers)
        self._lock = Lock()
        self._anchor: Any = None
        self._release: Callable[[], object] | None = None

    @property
    def name(self) -> str:
        # In a forked child this is another, empty database.
        return f"tenure-{os.getpid()}-{self._number}"

    def url(self, url: URL) -> URL:
        return shared_memory(url, self.name)

    def serve(self, engine: Engine, url: URL) -> None:
        """Make *engine*, created with :meth:`url`, connect to this database."""
        is_ours = is_private_memory(url)

        @event.listens_for(engine, "do_connect")
        def connecting(
            dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]
        ) -> None:
            if is_ours:
                ours, _ = dialect.create_connect_args(self.url(url))
                arguments[:] = ours
            # A pool passes connections from thread to thread, as it does for a file.
            if "check_same_thread" not in url.query:
                options["check_same_thread"] = False
            self._keep(arguments[0])

    def _keep(self, filename: str) -> None:
        with self._lock:
            if self._anchor is None:
                # Imported when it is needed: it is slow to import. Any thread may drop
                # the last reference and so close the connection.
                anchor = import_module("sqlite3").connect(
                    filename, uri=True, check_same_thread=False
                )
                self._anchor = anchor
                self._release = weakref.finalize(self, anchor.close)

    def close(self) -> None:
        """Close the kept connection; the database ends with its last connection."""
        with self._lock:
            release, self._release, self._anchor = self._release, None, None
        if release is not None:
            release()

    def leave_to_parent(self) -> None:
        """In a forked child: start with an empty database."""
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
    For SQLite: enforce foreign keys, and begin a transaction before each write.

    SQLite enforces foreign keys only on request. Its driver begins a transaction only
    before plain INSERT, UPDATE and DELETE: not before DDL, CTEs and SAVEPOINT. Reads
    begin none, because a transaction would lock out writers until it ends.
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
        # A failed COMMIT leaves a transaction open that SQLAlchemy considers ended.
        if state.asyncio_safe and _is_begun(record.driver_connection):
            connection.rollback()

    event.listen(engine, "handle_error", note_error)
    dialect: Any = engine.dialect
    send: Callable[[Any], None] = dialect.do_commit

    def do_commit(pooled: Any) -> None:
        try:
            send(pooled)
        except BaseException as error:
            if not isinstance(error, Exception):
                note_interrupted(pooled)
            raise

    dialect.do_commit = do_commit

    # Listeners of the dialect: those of an engine cost every statement more.
    def executing(cursor: Any, statement: str, *rest: Any) -> None:
        if not statement.startswith("SELECT") and _BEGINS.match(statement):
            *_, context = rest
            begin_late(context.root_connection)

    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        event.listen(engine, name, executing)


def begin_late(connection: Connection) -> None:
    """
    Begin the transaction that SQLite's driver has not begun yet.

    Without one, releasing the first savepoint would commit.
    Source: SQLite, "SAVEPOINT", section 2.
    """
    pooled = connection.connection
    if not pooled.is_valid:
        return
    # No isolation level means autocommit, which the caller chose.
    if pooled.isolation_level is not None and not _is_begun(pooled.driver_connection):
        # By the driver's cursor: SQLAlchemy's events are for the caller's statements.
        cursor = pooled.cursor()
        cursor.execute("BEGIN")
        cursor.close()


def _is_begun(driver_connection: Any) -> bool:
    begun: bool = driver_connection.in_transaction
    return begun
