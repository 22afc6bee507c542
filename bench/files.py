"""
Reading and converting the files, for the contenders that do it by hand in Python.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path


def read(path: Path) -> Iterator[dict[str, str]]:
    """
    Yield the rows of a file, one at a time, as texts by column.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows)
        for row in rows:
            # Half the time of csv.DictReader.
            yield dict(zip(header, row, strict=True))


def word(text: str) -> str | None:
    return None if text == "NA" else text


def integer(text: str) -> int | None:
    return None if text == "NA" else int(text)


def number(text: str) -> float | None:
    return None if text == "NA" else float(text)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def utc(read: datetime) -> datetime:
    """
    Give a moment that came out of the database, where SQLite drops the zone.
    """
    return read if read.tzinfo else read.replace(tzinfo=UTC)
