"""What every source gives: numbered records, and those that are none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ...errors import LoadError

#: A record as it was read: a row of a table, a line of JSON, or a mapping.
Record = tuple[int, Any]


class Reader(Protocol):
    """What reads the records of a file of some format."""

    #: The columns of a table; ``None`` for objects.
    header: Any

    @property
    def guesses(self) -> list[str]:
        """What was taken for granted, and how to say otherwise."""

    @property
    def end(self) -> int:
        """The last line that was read."""

    def rows(self, start: int) -> Iterator[Record]:
        """Yield the records; those before *start* may be left out."""


@dataclass(frozen=True, slots=True)
class Bad:
    """
    What a source has instead of a record that can be read.

    Attributes:
        row: What is there.
        reason: One word for what is wrong with it.
        field: Where, if that is known.
    """

    row: Any
    reason: str
    message: str
    field: str = ""


def plain(record: Any, header: list[str] | None) -> Any:
    """Return a record as it goes to a rejects file."""
    if isinstance(record, Bad):
        return record.row.rstrip("\r\n") if isinstance(record.row, str) else record.row
    if header is not None:
        if len(record) == len(header):
            return dict(zip(header, record, strict=True))
        return record
    if isinstance(record, str):
        try:
            return json.loads(record)
        except ValueError:
            return record.rstrip("\r\n")
    # Keys of JSON objects are texts.
    return {
        name if isinstance(name, str) else repr(name): record[name] for name in record
    }


def mapping(number: int, row: Any) -> Record:
    """
    Return a row of an iterable as a record.

    Raises:
        LoadError: It is no mapping.
    """
    if not isinstance(row, Mapping):
        raise LoadError(f"row {number} of the source is no mapping: {row!r}")
    return number, row
