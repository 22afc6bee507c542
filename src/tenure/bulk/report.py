"""What a bulk tells about what it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import describe_key

Reason = Literal[
    "missing",
    "ambiguous",
    "null",
    "denied",
    "invalid",
    "circular",
    "duplicate",
    "taken",
]
Status = Literal["created", "updated", "unchanged", "skipped", "failed"]


#: What is said of two values for one row.
MORE_THAN_ONE = "more than one value of this bulk has this key"


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
        """Return the number of values that ended with *status*."""
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
