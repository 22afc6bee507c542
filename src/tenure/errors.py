"""
Every exception tenure raises.

::

    TenureError
    ├── SessionError (RuntimeError)             a block or a session was used wrongly
    │   └── ConcurrentUseError                  two users of one session at a time
    ├── UnresolvedReferenceError (LookupError)  a reference was read before it was resolved
    ├── RoutingError (UnboundExecutionError)    no usable engine
    │   ├── UnknownAliasError (KeyError)        an alias that no database has
    │   ├── StaleReplicaError *                 no replica is up to date
    │   ├── PrimaryUnavailableError *           no server accepts writes
    │   ├── DeadlineExceededError (TimeoutError)  a wait took too long
    │   └── LostWriteError *                    a failover lost a committed write
    ├── LoadError (ValueError)                  a source cannot be loaded
    │   └── RejectedRowsError                   more bad rows than the caller allows
    └── DatabaseError (SQLAlchemyError)         the database, its driver or SQLAlchemy refused
        ├── ResolutionError                     references without one row each
        ├── ConflictError (IntegrityError)      values whose rows exist already
        ├── CommitOutcomeUnknownError           nobody knows whether a commit happened
        └── PartialCommitError                  it happened in some of the databases

Nothing raises those with * yet: they are for databases with replicas.

:func:`wrap` returns an error that is a :class:`DatabaseError` *and* an instance of the
class that SQLAlchemy raised.
"""

from __future__ import annotations

import copyreg
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import exc

if TYPE_CHECKING:
    from .callers import Line


class TenureError(Exception):
    """Base of all errors raised by tenure."""

    #: Whether running the same unit of work again may succeed.
    retryable: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        # Not by calling the class: its arguments are not the message in args.
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]  # no stub has it


class SessionError(TenureError, RuntimeError):
    """A block or a session was opened, joined, used or ended in a way that cannot work."""


class ConcurrentUseError(SessionError):
    """
    One session was used by two tasks or threads at the same time.

    The second call is refused before it sends a statement; the first one continues.

    Attributes:
        doing: The method that was refused.
        first: The user of the session, ``"task 'name'"`` or ``"thread 'name'"``.
        second: The one that was refused.
        first_line: The line of code that *first* is running, if known.
        second_line: The line of code that was refused, if known.
    """

    def __init__(
        self,
        doing: str,
        *,
        first: str,
        second: str,
        first_line: Line | None,
        second_line: Line | None,
    ) -> None:
        self.doing = doing
        self.first = first
        self.second = second
        self.first_line = first_line
        self.second_line = second_line
        super().__init__(
            f"{second} called {doing}(){f' at {second_line}' if second_line else ''} on "
            f"a session that {first} is using"
            f"{f' at {first_line}' if first_line else ''}; use one session for each, "
            f"with gather() or new=True, or make sessions with "
            f"on_concurrent='serialize'"
        )


class UnresolvedReferenceError(TenureError, LookupError):
    """
    A reference was read, or about to be written, before it was resolved.

    Or it has only its row's key (*is_bound*), and reading the attribute would wait for
    the database where async code cannot.
    """

    def __init__(
        self,
        entity: type[Any],
        key: Mapping[str, Any],
        wanted: str,
        *,
        is_bound: bool = False,
    ) -> None:
        self.entity = entity
        self.key = dict(key)
        self.wanted = wanted
        self.is_bound = is_bound
        name = f"{entity.__name__}({describe_key(self.key)})"
        super().__init__(
            f"{name} is bound, not loaded, so its {wanted} cannot be read without "
            f'waiting for the database; use bulk.resolve(strategy="hydrate")'
            if is_bound
            else f"{name} is not resolved, so its {wanted} cannot be read; call "
            f"bulk.resolve() first"
        )


class RoutingError(TenureError, exc.UnboundExecutionError):
    """No engine could be chosen or made, or the chosen one may not be used."""


class UnknownAliasError(RoutingError, KeyError):
    """No database of the manager has this alias."""

    def __init__(self, alias: object, known: Collection[str], *, by: str = "") -> None:
        self.alias = alias
        self.known = tuple(known)
        names = ", ".join(map(repr, self.known)) or "none"
        super().__init__(
            f"no database {alias!r}{f' (from {by})' if by else ''}; known: {names}"
        )


class StaleReplicaError(RoutingError):
    """No replica was up to date, and reading the primary was not allowed."""

    retryable = True


class PrimaryUnavailableError(RoutingError):
    """No server accepts writes now: a failover is running, or all are down."""

    retryable = True


class DeadlineExceededError(RoutingError, TimeoutError):
    """A wait took longer than its limit; nothing was written."""

    retryable = True


class LostWriteError(RoutingError):
    """A failover lost a write that had been committed."""


class LoadError(TenureError, ValueError):
    """A source, or the model of its rows, cannot be used at all."""


class Counts(Protocol):
    """The counts of a load, which :class:`tenure.LoadReport` has."""

    rows: int
    created: int
    updated: int
    unchanged: int
    skipped: int
    rejected: int
    kept: int
    resume: int | None
    rejects: list[Any]
    references: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, for JSON."""


class UnwrittenValuesWarning(UserWarning):
    """
    A block of a bulk ended without an error, and values of it were never written.

    Write them with ``flush()`` or ``commit()``, or say with ``discard()`` that they are
    not to be written.
    """


class RejectedRowsError(LoadError):
    """More rows were rejected than the caller allows; the load was rolled back."""

    def __init__(self, report: Counts, max_errors: int) -> None:
        self.report = report
        self.max_errors = max_errors
        first = report.rejects[0] if report.rejects else None
        of_file = f" of {first.file!r}" if first and first.file else ""
        where = f"; first at line {first.line}{of_file}: {first}" if first else ""
        # With commit="batch", earlier batches are committed.
        kept = f"only {report.kept:,} were" if report.kept else "nothing was"
        super().__init__(
            f"{report.rejected:,} of {report.rows:,} rows were rejected and "
            f"max_errors is {max_errors}, so {kept} written{where}"
        )


class DatabaseError(TenureError, exc.SQLAlchemyError):
    """
    The database, its driver or SQLAlchemy refused.

    If it wraps an error, it is also an instance of that error's class, with the same
    attributes, and has the error as ``__cause__``. It is *retryable* after a deadlock, a
    serialization failure, a lock that was busy, or a connection lost before the COMMIT.
    """

    #: The error that this one wraps, if any.
    original: exc.SQLAlchemyError | None = None


class CommitOutcomeUnknownError(DatabaseError):
    """
    The connection was lost before the answer to a commit: it may have happened.

    PostgreSQL is asked for a few seconds first. Neither ``on_commit`` nor ``on_rollback``
    callbacks have run, but those of ``on_unknown``. Find out before running the unit of
    work again.
    """


class PartialCommitError(DatabaseError):
    """
    One transaction over several databases: some have committed, and others not.

    Neither ``on_commit`` nor ``on_rollback`` callbacks have run. With ``twophase=True``
    all databases promise to commit before one does.

    Attributes:
        committed: The aliases of the databases that have.
        failed: Those that have not, or of which it is not known.
    """

    def __init__(
        self, committed: Sequence[str], failed: Sequence[str], error: BaseException
    ) -> None:
        self.committed = tuple(committed)
        self.failed = tuple(failed)
        super().__init__(
            f"committed in {', '.join(map(repr, committed))}, but not in "
            f"{', '.join(map(repr, failed))} ({type(error).__name__}: {said(error)}); "
            f"repair one or the other by hand, and use twophase=True"
        )


class ResolutionError(DatabaseError):
    """
    References could not be resolved; all of them are listed, not only the first.

    Attributes:
        failures: One :class:`Failure <tenure.bulk.Failure>` for each reference.
    """

    def __init__(self, failures: Sequence[Any]) -> None:
        self.failures = tuple(failures)
        count = len(self.failures)
        super().__init__(
            f"{count} {'reference' if count == 1 else 'references'} could not be "
            f"resolved: {_some_of(self.failures)}"
        )

    def errors(self) -> list[dict[str, Any]]:
        """Return the failures in the shape of ``pydantic.ValidationError.errors()``."""
        return [
            {
                "type": f"reference_{failure.reason}",
                "loc": loc,
                "msg": str(failure),
                "input": dict(failure.key),
            }
            for failure in self.failures
            for loc in (failure.locations or ((),))
        ]


class ConflictError(DatabaseError, exc.IntegrityError):
    """
    Values of a bulk have rows already, which ``on_conflict="raise"`` does not change.

    Nothing was written; the transaction has to be rolled back, as after any flush that
    failed.

    Attributes:
        failures: One :class:`Failure <tenure.bulk.Failure>` for each value.
    """

    def __init__(self, failures: Sequence[Any]) -> None:
        self.failures = tuple(failures)
        count = len(self.failures)
        message = (
            f"{count} {'value has a row' if count == 1 else 'values have rows'} already: "
            f"{_some_of(self.failures)}; use on_conflict='update' to change what exists, "
            f"or 'skip' to leave it"
        )
        exc.IntegrityError.__init__(self, "", None, ValueError(message))
        self.args = (message,)

    def __str__(self) -> str:
        return str(self.args[0])


def _some_of(failures: Sequence[Any]) -> str:
    """Return the first failures, and how many there are beside them."""
    more = len(failures) - 5
    shown = "; ".join(map(str, failures[:5]))
    return f"{shown}; and {more} more" if more > 0 else shown


def said(error: BaseException) -> str:
    """Return the first line of what a driver or a type said; its class if nothing."""
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return lines[0].strip() if lines else type(original).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a question for the known name that is most like *name*; else nothing."""
    # Imported here: it is slow to import.
    difflib = import_module("difflib")
    found = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def describe_key(key: Mapping[str, Any]) -> str:
    """Return a key as ``name=value`` pairs."""
    return ", ".join(f"{name}={value!r}" for name, value in key.items())


_combined: dict[type[exc.SQLAlchemyError], type[DatabaseError]] = {}


def wrap(error: exc.SQLAlchemyError) -> DatabaseError:
    """
    Return *error* as a :class:`DatabaseError` that is also of the class of *error*.

    The caller raises it ``from`` the original.
    """
    if isinstance(error, DatabaseError):
        return error
    cls = _combined.get(type(error))
    if cls is None:
        cls = _combined[type(error)] = type(
            type(error).__name__,
            (DatabaseError, type(error)),
            {"__module__": type(error).__module__, "__reduce__": _reduce},
        )
    wrapped = cls.__new__(cls, *error.args)
    wrapped.__dict__.update(error.__dict__)
    wrapped.args = error.args
    wrapped.original = error
    error.__traceback__ = _shortened(error.__traceback__)
    # Lost before its COMMIT: what became of that one is told by other errors.
    if _is_transient(error) or getattr(error, "connection_invalidated", False):
        wrapped.retryable = True
    return wrapped


# Between a caller and the database, these say nothing to the reader of a traceback.
_OURS = str(Path(__file__).parent)
_GENERATED = "<sqlalchemy generated"
IN_WORKER = "in a worker: "  # before a place, in a note
_MACHINERY = tuple(
    str(Path("sqlalchemy", *parts))
    for parts in (
        ("orm", "state_changes.py"),
        ("util", "deprecations.py"),
        ("util", "langhelpers.py"),
    )
)


def _shortened(traceback: TracebackType | None) -> TracebackType | None:
    """
    Return *traceback* without what only passes a call on.

    The wrapped error is printed as well, with the caller's lines: together they are no
    longer than what SQLAlchemy prints.
    """
    kept: list[TracebackType] = []
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not (file.startswith((_OURS, _GENERATED)) or file.endswith(_MACHINERY)):
            kept.append(traceback)
        traceback = traceback.tb_next
    shortened: TracebackType | None = None
    for each in reversed(kept):
        shortened = TracebackType(
            shortened, each.tb_frame, each.tb_lasti, each.tb_lineno
        )
    return shortened


def translate(error: BaseException) -> None:
    """
    Raise *error* as a :class:`DatabaseError`, if it is one of SQLAlchemy's.

    Raises:
        DatabaseError: It is, and none of ours yet.
    """
    if isinstance(error, exc.SQLAlchemyError) and not isinstance(error, TenureError):
        raise wrap(error) from error


# serialization_failure, deadlock_detected, lock_not_available.
# Source: PostgreSQL, "PostgreSQL Error Codes".
_TRANSIENT_STATES = {"40001", "40P01", "55P03"}
# ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT. Source: MariaDB, "MariaDB Error Codes".
_TRANSIENT_NUMBERS = {1213, 1205}
# SQLITE_BUSY, SQLITE_LOCKED. Source: SQLite, "Result and Error Codes".
_TRANSIENT_CODES = {5, 6}


def _is_transient(error: exc.SQLAlchemyError) -> bool:
    """Whether *error* was caused by concurrent transactions."""
    original = getattr(error, "orig", None)
    state, number = codes(original)
    if state is not None:
        return state in _TRANSIENT_STATES
    if number is not None and hasattr(original, "sqlite_errorcode"):
        # The lower byte is the primary code; the rest is detail.
        return number & 0xFF in _TRANSIENT_CODES
    return number in _TRANSIENT_NUMBERS


def codes(original: Any) -> tuple[str | None, int | None]:
    """Return the SQLSTATE and the number of a driver's error that a database sent."""
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    number = getattr(original, "sqlite_errorcode", None)
    if number is None:
        args: tuple[Any, ...] = getattr(original, "args", ())
        number = args[0] if args and isinstance(args[0], int) else None
    return state, number


def _reduce(self: DatabaseError) -> tuple[Any, ...]:
    return wrap, (self.original,)
