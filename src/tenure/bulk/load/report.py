"""
What a load tells about what it did: its counts, its rejected rows, and their file.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from tempfile import TemporaryFile
from time import perf_counter
from typing import Any

from pydantic import ValidationError

from ...errors import LoadError
from ..read import Record, Records, plain


@dataclass(slots=True)
class ReferenceCount:
    """
    How the references of one load to one entity went.

    ``resolved`` and ``missing`` count the rows of the source that name one;
    ``created`` the rows that were made because something named them, and which
    count as resolved.
    """

    resolved: int = 0
    missing: int = 0
    created: int = 0
    #: Each missing key and how many rows named it; at most ``MOST_KEYS`` keys.
    missing_keys: Counter[tuple[Any, ...]] = field(default_factory=Counter)

    #: More distinct missing keys are counted, but no longer named one by one.
    MOST_KEYS = 100_000

    def miss(self, key: tuple[Any, ...]) -> None:
        """Count one row that names *key*, which is not there."""
        self.missing += 1
        if key in self.missing_keys or len(self.missing_keys) < self.MOST_KEYS:
            self.missing_keys[key] += 1

    def copy(self) -> ReferenceCount:
        """Return the same counts, apart from these."""
        return replace(self, missing_keys=self.missing_keys.copy())


#: What is wrong with a row: the field, the reason, and a message.
Problem = tuple[str, str, str]

#: A record that is rejected: field, reason, message, and what else is wrong with it.
Rejected = tuple[Record, str, str, str, tuple[Problem, ...]]


@dataclass(frozen=True, slots=True)
class Reject:
    """A row of a source that was not written."""

    line: int
    field: str
    reason: str
    message: str
    row: Any
    #: Further things wrong with the same row.
    more: tuple[Problem, ...] = ()
    #: The file of the source, if there are several, and the line of it in all of them.
    file: str | None = None
    line_of_all: int | None = None

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def as_dict(self) -> dict[str, Any]:
        """Return the line for the rejects file."""
        found: dict[str, Any] = {}
        if self.file is not None:
            found |= {"file": self.file, "line_of_all": self.line_of_all}
        found |= {
            "line": self.line,
            "field": self.field,
            "reason": self.reason,
            "message": self.message,
            "row": self.row,
        }
        if self.more:
            names = ("field", "reason", "message")
            found["more"] = [dict(zip(names, each, strict=True)) for each in self.more]
        return found


@dataclass(frozen=True, slots=True)
class PartReport:
    """A part of a source that a worker loads in a transaction of its own."""

    number: int
    file: str
    #: The lines of the file before it.
    after_line: int
    rows: int = 0
    done: bool = False


@dataclass(slots=True)
class LoadReport:
    """
    What a load did.

    ``rows`` is always ``created + updated + unchanged + skipped + rejected``: rows
    that wait for another one of the source count once that is settled. Until
    ``committed`` the counts say what would be kept. After an error they are those
    of what was committed; where too many rows were rejected, ``rows`` and ``rejected``
    are those of all that was read.
    """

    into: str = ""
    rows: int = 0
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    skipped: int = 0
    rejected: int = 0
    #: By the name of the entity referred to.
    references: dict[str, ReferenceCount] = field(default_factory=dict)
    #: Seconds of each of read, validate, resolve, write and commit; of parts: load.
    seconds: dict[str, float] = field(default_factory=dict)
    #: Position in the source and its size, in bytes as stored; 0 if unknown.
    bytes_read: int = 0
    bytes_total: int = 0
    committed: bool = False
    #: Rows of the source that are in committed batches and were not rejected.
    kept: int = 0
    #: The first line that is not committed, where the next load has to ``start``;
    #: ``None`` when all are, and of loads by parts: these go on by ``load_id``.
    resume: int | None = 1
    dry_run: bool = False
    #: How many rows were rejected for each reason.
    reasons: Counter[str] = field(default_factory=Counter)
    #: What was taken for granted about the source, and how to say otherwise.
    guesses: list[str] = field(default_factory=list)
    #: With ``commit="part"``: what ``resume=`` goes on with, and the parts so far.
    load_id: str | None = None
    parts: list[PartReport] = field(default_factory=list)
    #: The first rejected rows; the rejects file has all.
    rejects: list[Reject] = field(default_factory=list)

    #: How many rejected rows are kept here.
    MOST_REJECTS = 100

    @property
    def total_seconds(self) -> float:
        """Seconds from the first row to the end."""
        return sum(self.seconds.values())

    @property
    def rows_per_second(self) -> float:
        """Rows read for each second."""
        return self.rows / self.total_seconds if self.total_seconds else 0.0

    def count_of(self, entity: str) -> ReferenceCount:
        """Return the counts of the references to *entity*."""
        count = self.references.get(entity)
        if count is None:
            count = self.references[entity] = ReferenceCount()
        return count

    def counts(self) -> LoadReport:
        """Return a copy of the counts, for :meth:`restore`."""
        copies = {name: count.copy() for name, count in self.references.items()}
        return replace(
            self,
            references=copies,
            reasons=self.reasons.copy(),
            rejects=list(self.rejects),
        )

    def restore(self, counts: LoadReport) -> None:
        """Go back to *counts*; time that was spent stays so."""
        taken = counts.counts()
        for each in fields(self):
            if each.name not in _SPENT:
                setattr(self, each.name, getattr(taken, each.name))

    def unwrite(self, counts: LoadReport) -> None:
        """Go back to *counts* in what was written; what was rejected stays so."""
        taken = counts.counts()
        for name in ("created", "updated", "unchanged", "skipped", "references"):
            setattr(self, name, getattr(taken, name))

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as plain values, for JSON."""
        return {
            "into": self.into,
            "rows": self.rows,
            "created": self.created,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "reasons": dict(self.reasons.most_common()),
            "first_rejects": [reject.as_dict() for reject in self.rejects],
            "references": {
                name: {
                    "resolved": count.resolved,
                    "missing": count.missing,
                    "created": count.created,
                    "missing_keys": len(count.missing_keys),
                }
                for name, count in self.references.items()
            },
            "seconds": {name: round(spent, 3) for name, spent in self.seconds.items()},
            "rows_per_second": round(self.rows_per_second),
            "committed": self.committed,
            "kept": self.kept,
            "resume": self.resume,
            "dry_run": self.dry_run,
            "guesses": self.guesses,
            "load_id": self.load_id,
            "parts": [asdict(part) for part in self.parts],
        }


class Clock:
    """Counts the seconds of a load for one phase at a time."""

    def __init__(self, report: LoadReport) -> None:
        self._report = report
        self._phase: str | None = None
        self._since = 0.0

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count the time of a block for *phase*, and not for the one around it."""
        around = self._count_for(phase)
        try:
            yield
        finally:
            self._count_for(around)

    def _count_for(self, phase: str | None) -> str | None:
        """Count the time from now on for another phase; return the one before."""
        now, before = perf_counter(), self._phase
        if before is not None:
            seconds = self._report.seconds
            seconds[before] = seconds.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before


#: What a failure does not undo.
_SPENT = {"seconds", "bytes_read", "bytes_total"}


class RejectsFile:
    """
    The rejects file: made when the load starts, written as rows are rejected.

    Args:
        start: Where the load begins; what the file of an earlier run says of rows
            before stays in it.
    """

    def __init__(self, target: Any, *, start: int = 1) -> None:
        self.is_given = target is not None
        self._target = target
        self._start = start
        self._is_ours = self.is_given and not hasattr(target, "write")
        self._file: Any = None if self._is_ours else target

    def check(self, what: str, *files: Any) -> None:
        """
        Refuse to overwrite *files*, paths or open files; other things are none.

        Raises:
            LoadError: It is one of them.
        """
        target = None if self._target is None else _status(self._target)
        if target is None:
            return
        others = filter(None, map(_status, files))
        if any(os.path.samestat(target, other) for other in others):
            raise LoadError(
                f"rejects would overwrite the {what}, {self._target!s}; name another "
                f"file"
            )

    def open(self) -> None:
        """
        Make the file, so that none of an earlier run looks like this one's.

        Raises:
            LoadError: It cannot be written.
        """
        if not self._is_ours:
            return
        try:
            if self._start > 1 and os.path.exists(self._target):
                self._keep_earlier()
                self._file = open(self._target, "a", encoding="utf-8")  # noqa: SIM115  # close() does
            else:
                self._file = open(self._target, "w", encoding="utf-8")  # noqa: SIM115  # as above
        except OSError as error:
            raise LoadError(
                f"cannot write rejects to {os.fspath(self._target)!r}: {error.strerror}"
            ) from error

    def _keep_earlier(self) -> None:
        with (
            open(self._target, "r+b") as file,
            TemporaryFile("w+b") as kept,
        ):
            kept.writelines(line for line in file if _line_of(line) < self._start)
            for each in (kept, file):
                each.seek(0)
            shutil.copyfileobj(kept, file)
            file.truncate()

    def write(self, reject: Reject) -> None:
        """Write one row."""
        if self.is_given:
            with self._named():
                self._file.write(json.dumps(reject.as_dict(), default=str) + "\n")

    def write_all(self, text: str) -> None:
        """Write rows that another file has got, and flush."""
        if self.is_given and text:
            with self._named():
                self._file.write(text)
        self.flush()

    def flush(self) -> None:
        """Flush the file, if this load opened it."""
        if self._is_ours:
            with self._named():
                self._file.flush()

    def close(self) -> None:
        """Close what :meth:`open` opened."""
        if self._is_ours and self._file is not None:
            with self._named():
                self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # An error of writing does not name the file.
            if self._is_ours:
                error.filename = os.fspath(self._target)
            raise


def _line_of(text: bytes) -> float:
    """Return the line that a row of a rejects file came from; ``None``: drop it."""
    try:
        reject = json.loads(text)
        return int(reject.get("line_of_all", reject["line"]))
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _status(file: Any) -> os.stat_result | None:
    """Return ``stat()`` of a path or an open file, if it is a regular file."""
    try:
        status = os.stat(file.fileno() if hasattr(file, "fileno") else file)
    except (OSError, TypeError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


class Rejects:
    """What rejects a row: tells the report, and the file."""

    def __init__(self, report: LoadReport, file: RejectsFile, records: Records) -> None:
        self.report = report
        self.file = file
        self.records = records
        #: The lines rejected since somebody cleared it.
        self.lines: set[int] = set()
        self._held: list[Rejected] | None = None

    @contextmanager
    def held(self) -> Iterator[list[Rejected]]:
        """Keep what is rejected in this block, for :meth:`add_all` to reject it later."""
        held = self._held = []
        try:
            yield held
        finally:
            self._held = None

    def add_all(self, held: Iterable[Rejected]) -> None:
        """Reject what :meth:`held` has kept."""
        for each in held:
            self.add(*each)

    def add(
        self,
        record: Record,
        field: str,
        reason: str,
        message: str,
        more: tuple[Problem, ...] = (),
    ) -> None:
        """Reject *record* because of *field* (what the source calls it)."""
        if self._held is not None:
            self._held.append((record, field, reason, message, more))
            return
        line, row = record
        source, number = self.records.place(line)
        of_all = None if source is None else line
        plainly = plain(row, self.records.header)
        reject = Reject(number, field, reason, message, plainly, more, source, of_all)
        self.lines.add(line)
        self.report.rejected += 1
        self.report.reasons[reason] += 1
        if len(self.report.rejects) < self.report.MOST_REJECTS:
            self.report.rejects.append(reject)
        self.file.write(reject)


def details(error: ValidationError) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """Yield field, reason and message of each error in a value."""
    for problem in error.errors(include_url=False, include_input=False):
        yield problem["loc"], problem["type"], problem["msg"]


def place_of(*loc: Any) -> str:
    """Return a location in a row as text."""
    return ".".join(map(str, loc))


def problems_of(error: ValidationError, label: str = "") -> list[Problem]:
    """
    Return the reject that describes the errors of a row.

    Args:
        label: The field that was validated; none if it was the whole row.
    """
    around = (label,) if label else ()
    return [
        (place_of(*around, *loc), reason, message)
        for loc, reason, message in details(error)
    ]
