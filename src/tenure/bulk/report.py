"""What a bulk tells about what it did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ..errors import describe_key

Reason = Literal[
    "missing", "ambiguous", "null", "denied", "invalid", "circular", "duplicate"
]
Status = Literal["created", "updated", "unchanged", "skipped", "failed"]


def describe(entity: type[Any], key: Mapping[str, Any]) -> str:
    """Write what is named as ``Entity(name=value)``."""
    return f"{entity.__name__}({describe_key(key)})"


@dataclass(frozen=True, slots=True)
class Failure:
    """A reference that could not be resolved, or a value not written, and why."""

    entity: type[Any]
    key: Mapping[str, Any]
    reason: Reason
    #: Where the payloads given to ``bulk.add`` hold it, as Pydantic's ``loc``.
    locations: tuple[tuple[int | str, ...], ...] = ()
    #: The identities of the rows that answer to it, if there are several.
    rows: tuple[tuple[Any, ...], ...] = ()
    #: What the database or a type said, if it refused.
    message: str = ""

    def __str__(self) -> str:
        name = describe(self.entity, self.key)
        if self.rows:
            return (
                f"{name} names {len(self.rows)} rows: {', '.join(map(str, self.rows))}"
            )
        said = f": {self.message}" if self.message else ""
        return f"{name} is {self.reason}{said}"


@dataclass(frozen=True, slots=True)
class Resolution:
    """What one ``resolve`` did: counts of references and values, not of rows."""

    resolved: int
    unresolved: int
    #: Values of the bulk that turned out to be rows already.
    values: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass(slots=True)
class BulkReport:
    """
    What one ``flush`` did with each value, in the order they were added.

    That of a flush that was refused is the ``report`` of its error: nothing is written,
    so every value has failed, and ``failures`` says for which, as far as it is known.
    """

    statuses: list[Status] = field(default_factory=list)
    failures: tuple[Failure, ...] = ()

    def count(self, status: Status) -> int:
        """Give how many values ended with *status*."""
        return self.statuses.count(status)

    @property
    def created(self) -> int:
        """Values that became new rows."""
        return self.count("created")

    @property
    def updated(self) -> int:
        """Values whose row was changed."""
        return self.count("updated")

    @property
    def unchanged(self) -> int:
        """Values whose row said the same already."""
        return self.count("unchanged")

    @property
    def skipped(self) -> int:
        """Values left out because their row exists."""
        return self.count("skipped")

    @property
    def failed(self) -> int:
        """Values of a flush that was refused."""
        return self.count("failed")


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
        """Give the same counts, apart from these."""
        return replace(self, missing_keys=self.missing_keys.copy())


#: What is wrong with a row: the field, the reason, and a message.
Problem = tuple[str, str, str]


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

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def as_dict(self) -> dict[str, Any]:
        """Give what goes to the rejects file."""
        found: dict[str, Any] = {
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


@dataclass(slots=True)
class LoadReport:
    """
    What a load did.

    ``rows`` is always ``created + updated + unchanged + skipped + rejected``: rows
    that wait for another one of the source count once that is settled. Until
    ``committed`` the counts say what would be kept. After an error they are those
    of what was committed; where too many rows were rejected they are those of all
    that was read.
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
    #: Seconds spent in each of read, validate, resolve, write and commit.
    seconds: dict[str, float] = field(default_factory=dict)
    #: Position in the source and its size, in bytes as stored; 0 if unknown.
    bytes_read: int = 0
    bytes_total: int = 0
    committed: bool = False
    #: Rows of the source that are in committed batches and were not rejected.
    kept: int = 0
    #: The first line that is not committed, where the next load has to ``start``;
    #: ``None`` when all are.
    resume: int | None = 1
    dry_run: bool = False
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
        """Give the counts of the references to *entity*."""
        count = self.references.get(entity)
        if count is None:
            count = self.references[entity] = ReferenceCount()
        return count

    def counts(self) -> LoadReport:
        """Give a copy of the counts, for :meth:`restore`."""
        copies = {name: count.copy() for name, count in self.references.items()}
        return replace(self, references=copies, rejects=list(self.rejects))

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
        """Give the counts as plain values, for JSON."""
        return {
            "into": self.into,
            "rows": self.rows,
            "created": self.created,
            "updated": self.updated,
            "unchanged": self.unchanged,
            "skipped": self.skipped,
            "rejected": self.rejected,
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
        }


#: What a failure does not undo.
_SPENT = {"seconds", "bytes_read", "bytes_total"}
