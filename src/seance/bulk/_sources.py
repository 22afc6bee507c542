"""Sources of rows: files and iterables, read record by record."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import IO, Any, Literal, Self, cast

from ..errors import LoadError

Format = Literal["csv", "jsonl"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

#: A record as it was read: a CSV row, a line of JSON, or a mapping.
Record = tuple[int, Any]


class Records:
    """
    An open source: an iterator of ``(line, record)``, and how far it is.

    Attributes:
        header: The columns of a CSV source; ``None`` for objects.
        json: Whether records are lines of JSON rather than mappings.
        total: Size in bytes as stored, 0 if unknown.
    """

    def __init__(
        self, source: Any, *, format: str | None, null: Iterable[str] = ("",)
    ) -> None:
        self.header: list[str] | None = None
        self.json = False
        self.total = 0
        self._raw: Any = None
        self._stack = ExitStack()
        try:
            self._rows = self._open(source, format, frozenset(null))
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[Record]:
        return self._rows

    @property
    def position(self) -> int:
        """Bytes read so far, as stored; 0 if unknown."""
        if self._raw is None:
            return 0
        try:
            return int(self._raw.tell())
        except (OSError, ValueError):
            return 0

    def _open(
        self, source: Any, format: str | None, null: frozenset[str]
    ) -> Iterator[Record]:
        if isinstance(source, (str, os.PathLike)):
            text = self._open_path(os.fspath(source))
            format = format or _format_of(os.fspath(source))
        elif hasattr(source, "read"):
            text = self._as_text(source)
            format = format or _format_of(str(getattr(source, "name", "")))
        elif isinstance(source, Iterable):
            return _mappings(source)
        else:
            raise LoadError(
                f"a source is a path, an open file or an iterable of mappings, "
                f"not {source!r}"
            )
        if format == "csv":
            return self._csv(text, null)
        if format == "jsonl":
            self.json = True
            return _lines(text)
        raise LoadError(
            f"cannot tell the format of {getattr(source, 'name', source)!r} by its "
            f"name; say 'csv' or 'jsonl'"
        )

    def _open_path(self, path: str) -> IO[str]:
        try:
            self.total = os.stat(path).st_size
            self._raw = self._stack.enter_context(open(path, "rb"))  # noqa: SIM115  # the stack closes it
        except OSError as error:
            raise LoadError(f"cannot read {path!r}: {error.strerror}") from error
        binary: Any = self._raw
        if path.endswith(".gz"):
            binary = self._stack.enter_context(gzip.open(binary))  # noqa: SIM115  # as above
        text = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        return self._stack.enter_context(text)

    def _as_text(self, source: Any) -> IO[str]:
        if isinstance(source, io.TextIOBase):
            return cast("IO[str]", source)
        if not hasattr(source, "readable"):
            raise LoadError(f"{source!r} is not an open file")
        text = io.TextIOWrapper(source, encoding="utf-8-sig", newline="")
        # The file is the caller's to close.
        self._stack.callback(text.detach)
        return text

    def _csv(self, text: IO[str], null: frozenset[str]) -> Iterator[Record]:
        reader = csv.reader(text)
        # No text of the header means null.
        _, names = next(_csv_records(reader, frozenset()), (0, []))
        if not names:
            raise LoadError("the CSV source is empty; its first line names the columns")
        twice = sorted({repr(name) for name in names if names.count(name) > 1})
        if twice:
            raise LoadError(f"the CSV source names the column {', '.join(twice)} twice")
        self.header = names
        return _csv_records(reader, null)


def _format_of(path: str) -> Format | None:
    return _FORMATS.get(os.path.splitext(path.removesuffix(".gz"))[1].lower())


def _csv_records(reader: Any, null: frozenset[str]) -> Iterator[Record]:
    """Give records with the line each begins on: a quoted field may span lines."""
    line = reader.line_num + 1
    known = null.isdisjoint
    try:
        for row in reader:
            if row:
                if known(row):
                    yield line, row
                else:
                    yield line, [None if text in null else text for text in row]
            line = reader.line_num + 1
    except _UNREADABLE as error:
        raise _unreadable(line, error) from error


def _mappings(source: Iterable[Any]) -> Iterator[Record]:
    for number, row in enumerate(source, 1):
        if not isinstance(row, Mapping):
            raise LoadError(f"row {number} of the source is no mapping: {row!r}")
        yield number, row


_UNREADABLE = (UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error)


def _lines(text: IO[str]) -> Iterator[Record]:
    number = 1
    try:
        for number, line in enumerate(text, 1):
            if not line.isspace():
                yield number, line
    except _UNREADABLE as error:
        raise _unreadable(number + 1, error) from error


def _unreadable(line: int, error: Exception) -> LoadError:
    if isinstance(error, UnicodeDecodeError):
        return LoadError(f"the source is not UTF-8, at or after line {line}")
    return LoadError(f"the source cannot be read at line {line}: {error}")


def plain(record: Any, header: list[str] | None) -> Any:
    """Give a record as it goes to a rejects file."""
    if header is not None:
        if len(record) == len(header):
            return dict(zip(header, record, strict=True))
        return record
    if isinstance(record, str):
        try:
            return json.loads(record)
        except ValueError:
            return record.rstrip("\r\n")
    return dict(record)
