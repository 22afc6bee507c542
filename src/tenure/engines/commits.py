"""
What happened to a COMMIT, told apart where it is sent.

A COMMIT whose answer did not arrive may have happened. PostgreSQL is asked on another
connection, by the id of the transaction; SQLite knows itself. Elsewhere, or where no
server answers in time, nobody knows.

A COMMIT that would not keep what was written is not sent: an error that was swallowed may
have ended the transaction on the server.
"""

from __future__ import annotations

import logging
import sys
import time
from asyncio import sleep
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from ..errors import CommitOutcomeUnknownError, SessionError, codes, said
from .abandoned import watch_statements
from .beside import ask, beside

log = logging.getLogger("tenure")

T = TypeVar("T")

#: Seconds after which a server that does not answer is given up.
DEADLINE = 5.0
_PAUSE = 0.02
#: Under this name a connection keeps the error that may have ended its transaction.
FAILED = "tenure_failed"

_BEGIN = b"BEGIN; SELECT pg_current_xact_id()"
# Isolation level, read-only, deferrable: those of the server.
_DEFAULTS = (None, None, None)
_XID = "SELECT CAST(pg_current_xact_id_if_assigned() AS text)"
_PREPARED = "SELECT count(*) FROM pg_prepared_xacts WHERE gid = '{}'"
_STATUS = "SELECT pg_xact_status(CAST('{}' AS xid8))"
# Class 08: connection exceptions. 57P01 to 57P05: the server ends the connection.
# Source: PostgreSQL, "PostgreSQL Error Codes".
_LOST = ("08", "57P")
# Of psycopg, as of libpq.
_IDLE, _IN_ERROR = 0, 3
# ER_LOCK_DEADLOCK: the whole transaction was rolled back.
# Source: MariaDB, "Error Codes"; MySQL, "InnoDB Error Handling".
_DEADLOCK = 1213
# SQLITE_NOMEM, SQLITE_INTERRUPT, SQLITE_IOERR, SQLITE_FULL: it may have been.
# Source: SQLite, "Response To Errors Within A Transaction".
_ENDING = {7, 9, 10, 13}


class Commit:
    """One commit of a session, on each of its connections."""

    def __init__(self, session: Any) -> None:
        self._session = session
        #: The engines where it is done, and where it failed or nobody knows.
        self.done: list[Engine] = []
        self.failed: list[Engine] = []
        self.is_unknown = False

    def send(self, commit: Callable[[Any], None], pooled: Any) -> None:
        """
        Commit on one connection, given as the pool has it.

        Returns as well if the answer was lost, and the database says that it is done.

        Raises:
            CommitOutcomeUnknownError: Nobody knows.
            SessionError: An error has ended the transaction before.
        """
        connection = self._connection_of(pooled)
        if connection is None:
            commit(pooled)
            return
        driver: Any = pooled.dbapi_connection
        engine = connection.engine
        self.failed.append(engine)
        # Flushing may have failed as well.
        refuse_ended(connection, has_written=bool(self._session._wrote))
        backend = engine.dialect.name
        xid = None
        if backend == "postgresql" and self._session._written:
            xid = self._session._xids.get(engine) or ask(driver, _XID)
        was_open = backend == "sqlite" and _is_open(driver)
        try:
            commit(pooled)
        except BaseException as error:
            if backend == "sqlite":
                is_done = (
                    not isinstance(error, Exception)
                    and was_open
                    and not _is_open(driver)
                )
            else:
                is_done = self._is_done(connection, error, xid)
            if not is_done:
                raise
            self.done.append(self.failed.pop())
            if not isinstance(error, Exception):
                # It has happened, and so has the interruption.
                raise
            log.warning("tenure: a COMMIT has happened without answer: %s", said(error))
            return
        self.done.append(self.failed.pop())

    def _connection_of(self, pooled: Any) -> Connection | None:
        for connection in self._session._connected:
            if not (connection.closed or connection.invalidated) and (
                connection.connection is pooled
            ):
                found: Connection = connection
                return found
        return None

    def _is_done(
        self, connection: Connection, error: BaseException, xid: str | None
    ) -> bool:
        """Say whether a COMMIT that failed has happened, if anybody knows."""
        engine = connection.engine
        if not _is_lost(engine, error):
            return False
        # Nothing can be asked of it any more.
        connection.invalidate(error)
        if not self._session._written:
            return False
        if engine.dialect.name == "postgresql":
            status = _status(engine, xid) if xid is not None else "aborted"
            if status is not None:
                return status == "committed"
        self.is_unknown = True
        raise CommitOutcomeUnknownError(
            f"the answer to a COMMIT did not arrive ({said(error)}), and "
            f"{engine.url.render_as_string()} could not be asked whether it has "
            f"happened; find out before you run the unit of work again"
        ) from error


#: The session that commits in this context.
_current: ContextVar[Any] = ContextVar("_current", default=None)
begin_commit = _current.set
end_commit = _current.reset

_watched: WeakSet[Any] = WeakSet()


def watch_commits(engine: Engine) -> None:
    """
    Let *engine* tell the ``_commit`` of a session what becomes of its COMMITs.

    An engine that the caller has made also learns to end statements that are abandoned.
    """
    # A bind need not be an engine: whatever looks like one is a bind as well.
    dialect: Any = engine.dialect
    if dialect in _watched or not isinstance(engine, Engine):
        return
    _watched.add(dialect)
    send: Callable[[Any], None] = dialect.do_commit

    def do_commit(pooled: Any) -> None:
        session = _current.get()
        if session is None:
            send(pooled)
            return
        _commit_of(session).send(send, pooled)

    send_prepared: Callable[..., None] = dialect.do_commit_twophase

    def do_commit_twophase(
        connection: Connection, xid: Any, *args: Any, **kw: Any
    ) -> None:
        session = _current.get()
        try:
            send_prepared(connection, xid, *args, **kw)
        except BaseException as error:
            if session is None:
                raise
            engine = connection.engine
            # All have promised, so it may be committed still.
            commit = partial(_commit_prepared, engine.dialect, xid)
            # It comes from a statement, as SQLAlchemy has them.
            original = getattr(error, "orig", None) or error
            is_lost = _is_lost(engine, original)
            if is_lost:
                # It would go back to the pool.
                connection.invalidate(error)
            if is_lost and _answer(engine, commit, bool):
                if not isinstance(error, Exception):
                    raise
                log.warning(
                    "tenure: a prepared transaction was committed by another "
                    "connection: %s",
                    said(error),
                )
                return
            _commit_of(session).is_unknown = True
            raise CommitOutcomeUnknownError(
                f"the commit of the prepared transaction {xid!r} in "
                f"{connection.engine.url.render_as_string()} failed ({said(error)}); if it "
                f"is there still, commit it by hand: all databases have promised to"
            ) from error

    # Not an event: a listener of an engine costs every statement.
    dialect.do_commit = do_commit
    dialect.do_commit_twophase = do_commit_twophase
    if dialect.name != "sqlite":
        event.listen(engine, "handle_error", note_error)
    watch_statements(engine)


def _commit_of(session: Any) -> Commit:
    if session._commit is None:
        session._commit = Commit(session)
    found: Commit = session._commit
    return found


def assigned_xid(connection: Connection) -> str | None:
    """
    Return the id of a transaction that is about to write, which has just begun.

    psycopg begins it with its first statement. Begun here, with the id in one message, it
    costs no round trip. ``None``: another driver, or another way to begin.
    """
    driver: Any = connection.connection.driver_connection
    if (
        connection.dialect.driver != "psycopg"
        or (driver.isolation_level, driver.read_only, driver.deferrable) != _DEFAULTS
        or driver.autocommit
        or driver.info.transaction_status != _IDLE
        or "gevent" in sys.modules
    ):
        return None
    result = driver.pgconn.exec_(_BEGIN)
    # Of a connection that is lost the next statement will tell.
    value = result.get_value(0, 0) if result.ntuples else None
    return None if value is None else str(value.decode())


def note_interrupted(pooled: Any) -> None:
    """A COMMIT of SQLite was interrupted; it may have happened before."""
    session = _current.get()
    if session is not None and not _is_open(pooled.dbapi_connection):
        session._outcome = "commit"


def note_error(context: ExceptionContext) -> None:
    """Remember an error that may have ended the transaction of its connection."""
    connection = context.connection
    if connection is None or connection.closed or connection.invalidated:
        return
    error: Any = context.original_exception
    backend = connection.dialect.name
    if (
        backend == "postgresql"
        or (backend in ("mysql", "mariadb") and _DEADLOCK in error.args[:1])
        or (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _ENDING
    ):
        connection.info[FAILED] = error


def refuse_ended(connection: Connection, *, has_written: bool) -> None:
    """
    Refuse to send a COMMIT that would keep less than what was written.

    Raises:
        SessionError: An error has ended the transaction before, and was swallowed.
    """
    error = connection.info.get(FAILED)
    driver: Any = connection.connection.dbapi_connection
    backend = connection.dialect.name
    if backend == "postgresql":
        status = getattr(getattr(driver, "info", None), "transaction_status", None)
        if status is not None:
            is_ended = status == _IN_ERROR
        else:
            is_ended = error is not None and _refuses(driver)
    elif backend == "sqlite":
        is_ended = error is not None and has_written and not _is_open(driver)
    else:
        is_ended = error is not None
    if is_ended:
        cause = f" ({type(error).__name__}: {said(error)})" if error else ""
        raise SessionError(
            f"a statement has failed in this transaction{cause}, and its error was "
            f"swallowed; with it {backend} has ended the transaction, and would keep "
            f"nothing of what was written before: let the error leave the block, or open "
            f"a block with savepoint=True around what may fail"
        ) from error


def _refuses(driver: Any) -> bool:
    """Whether a connection of PostgreSQL is in a transaction that has failed."""
    try:
        ask(driver, "SELECT 1")
    except Exception:  # noqa: BLE001  # the driver's own
        return True
    return False


def _is_open(driver: Any) -> bool:
    """Whether a connection of SQLite is in a transaction."""
    return bool(getattr(driver, "driver_connection", driver).in_transaction)


def _is_lost(engine: Engine, error: BaseException) -> bool:
    """Whether no answer of the server has arrived."""
    if not isinstance(error, Exception) or isinstance(error, (OSError, TimeoutError)):
        return True
    state, _ = codes(error)
    if state is not None:
        return state.startswith(_LOST)
    if engine.dialect.name == "postgresql":
        return True
    return engine.dialect.is_disconnect(error, None, None)  # type: ignore[arg-type]  # None is not looked at


def _status(engine: Engine, xid: str) -> str | None:
    """
    Ask the server what became of a transaction: ``"committed"`` or ``"aborted"``.

    On a connection that is not one of the pool: those may be lost as well. ``None``: it
    does not answer, or has forgotten; or the transaction is still running.
    """
    question = _STATUS.format(int(xid))
    return _answer(
        engine,
        lambda pooled: str(ask(pooled, question)),
        lambda status: status in ("committed", "aborted"),
    )


def _answer(
    engine: Engine, work: Callable[[Any], T], is_answer: Callable[[T], bool]
) -> T | None:
    """Do *work* beside the pool until it gives an answer; ``None``: not in time."""
    deadline = time.monotonic() + DEADLINE
    while (left := deadline - time.monotonic()) > 0:
        found = beside(engine, work, left)
        if found is not None and is_answer(found):
            return found
        if in_greenlet():
            await_only(sleep(_PAUSE))
        else:
            time.sleep(_PAUSE)
    return None


def _commit_prepared(dialect: Dialect, xid: str, pooled: Any) -> bool:
    """
    Commit a prepared transaction whose own connection is lost, if it is there.

    One that is not may be committed; or MariaDB has rolled it back with its connection,
    or a server that has taken over never had it.
    """
    driver = pooled.dbapi_connection
    quoted = str(xid).replace("'", "''")
    if dialect.name == "postgresql":
        # COMMIT PREPARED cannot be part of a transaction.
        dialect.set_isolation_level(driver, "AUTOCOMMIT")
        is_there = bool(ask(driver, _PREPARED.format(quoted)))
        if is_there:
            _send(driver, f"COMMIT PREPARED '{quoted}'")
        return is_there
    cursor = driver.cursor()
    cursor.execute("XA RECOVER")
    is_there = any(row[-1] in (xid, str(xid).encode()) for row in cursor.fetchall())
    cursor.close()
    if is_there:
        _send(driver, f"XA COMMIT '{quoted}'")
    return is_there


def _send(driver: Any, statement: str) -> None:
    cursor = driver.cursor()
    cursor.execute(statement)
    cursor.close()
