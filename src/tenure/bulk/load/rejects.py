"""Rejected rows: counted in the report, written to a file as they come."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import Any

from pydantic import ValidationError

from ...errors import LoadError
from ..report import LoadReport, Problem, Reject
from .sources import Record, plain


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

    def flush(self) -> None:
        """Have what was written on disk, as far as that is ours to do."""
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
            # Writing tells what went wrong, but not where.
            if self._is_ours:
                error.filename = os.fspath(self._target)
            raise


def _line_of(text: bytes) -> float:
    """Give the line that a row of a rejects file was at; none is not to be kept."""
    try:
        return int(json.loads(text)["line"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


class Rejects:
    """What rejects a row: tells the report, and the file."""

    def __init__(
        self, report: LoadReport, file: RejectsFile, header: list[str] | None
    ) -> None:
        self.report = report
        self.file = file
        self.header = header
        #: The lines rejected since somebody cleared it.
        self.lines: set[int] = set()

    def add(
        self,
        record: Record,
        field: str,
        reason: str,
        message: str,
        more: tuple[Problem, ...] = (),
    ) -> None:
        """Reject *record* because of *field* (what the source calls it)."""
        line, row = record
        reject = Reject(line, field, reason, message, plain(row, self.header), more)
        self.lines.add(line)
        self.report.rejected += 1
        if len(self.report.rejects) < self.report.MOST_REJECTS:
            self.report.rejects.append(reject)
        self.file.write(reject)


def details(error: ValidationError) -> Iterator[tuple[tuple[Any, ...], str, str]]:
    """Give place, reason and message of each thing that is wrong with a value."""
    for problem in error.errors(include_url=False, include_input=False):
        yield problem["loc"], problem["type"], problem["msg"]


def place_of(*loc: Any) -> str:
    """Give a place in a row as text."""
    return ".".join(map(str, loc))


def problems_of(error: ValidationError, label: str = "") -> list[Problem]:
    """
    Give what is wrong with a row.

    Args:
        label: The field that was validated; none if it was the whole row.
    """
    around = (label,) if label else ()
    return [
        (place_of(*around, *loc), reason, message)
        for loc, reason, message in details(error)
    ]
