"""Sources of rows: files and iterables, read record by record."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from itertools import dropwhile, islice
from typing import IO, Any, Literal, Self, cast

from sqlalchemy.util import await_only

from ...errors import LoadError
from .parquet import Parquet

Format = Literal["csv", "jsonl", "parquet"]

_FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

#: A record as it was read: a row of a table, a line of JSON, or a mapping.
Record = tuple[int, Any]


class Pulled:
    """
    An async source, for code that runs under ``run_sync``.

    Nothing is asked of it before the first :meth:`take`.

    Attributes:
        report: What became of its rows, once that is certain.
    """

    def __init__(self, source: AsyncIterable[Any]) -> None:
        self.report: Any = None
        self._rows = aiter(source)
        self._number = 0

    def take(self, size: int, start: int) -> list[Record]:
        """Wait for *size* mappings, or the last ones, from row *start* on."""
        return await_only(self._take(size, start))

    async def _take(self, size: int, start: int) -> list[Record]:
        records: list[Record] = []
        while len(records) < size:
            try:
                row = await anext(self._rows)
            except StopAsyncIteration:
                break
            self._number += 1
            if self._number >= start:
                records.append(_mapping(self._number, row))
        return records

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """
        Close it after the block, if it can be closed, as an async generator can.

        An error of that has the report, or is a note of the error that ends the block.
        """
        try:
            yield
        except BaseException as error:
            try:
                await self._close()
            except Exception as failed:  # noqa: BLE001  # whatever a source raises
                error.add_note(f"load: the source could not be closed: {failed!r}")
            raise
        try:
            await self._close()
        except Exception as error:
            with suppress(AttributeError):  # one with slots has no place for it
                error.report = self.report  # type: ignore[attr-defined]  # as above
            raise

    async def _close(self) -> None:
        close = getattr(self._rows, "aclose", None)
        if close is not None:
            await close()


class Records:
    """
    An open source: gives ``(line, record)`` in batches, and how far it is.

    Args:
        start: Records of lines before it are left out.

    Attributes:
        header: The columns of a table; ``None`` for objects.
        json: Whether records are lines of JSON rather than mappings.
        total: Size in bytes as stored, 0 if unknown.
    """

    def __init__(
        self,
        source: Any,
        *,
        format: str | None,
        null: Iterable[str] = ("",),
        start: int = 1,
    ) -> None:
        self.header: list[str] | None = None
        self.json = False
        self.total = 0
        self._raw: Any = None
        self._start = start
        self._pulled = source if isinstance(source, Pulled) else None
        self._stack = ExitStack()
        try:
            rows = self._open(source, format, frozenset(null))
            self._rows = dropwhile(lambda record: record[0] < start, rows)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def take(self, size: int) -> list[Record]:
        """
        Return the next *size* records; fewer at the end, none after it.

        Raises:
            LoadError: What comes next cannot be read.
        """
        if self._pulled is not None:
            return self._pulled.take(size, self._start)
        return list(islice(self._rows, size))

    @property
    def is_async(self) -> bool:
        """Whether the event loop runs while records are taken."""
        return self._pulled is not None

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
        if isinstance(source, Pulled):
            return iter(())
        if isinstance(source, AsyncIterable):
            raise LoadError(
                f"{source!r} is an async source, which a sync session cannot wait for; "
                f"load it with an async session"
            )
        path = os.fspath(source) if isinstance(source, (str, os.PathLike)) else None
        if path is None and not hasattr(source, "read"):
            if isinstance(source, Iterable):
                return _mappings(source)
            raise LoadError(
                f"a source is a path, an open file or an iterable of mappings, "
                f"not {source!r}"
            )
        format = format or _format_of(path or str(getattr(source, "name", "")))
        if format == "parquet":
            return self._parquet(path or source)
        text = self._as_text(source) if path is None else self._open_path(path)
        if format == "csv":
            return self._csv(text, null)
        if format == "jsonl":
            self.json = True
            return _lines(text)
        raise LoadError(
            f"cannot tell the format of {getattr(source, 'name', source)!r} by its "
            f"name; say 'csv', 'jsonl' or 'parquet'"
        )

    def _parquet(self, source: Any) -> Iterator[Record]:
        parquet = self._stack.enter_context(Parquet(source))
        self.header = _distinct(parquet.columns, "Parquet")
        self._raw = parquet
        self.total = parquet.total
        return parquet.rows(self._start)

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
        # The caller closes the file.
        self._stack.callback(text.detach)
        return text

    def _csv(self, text: IO[str], null: frozenset[str]) -> Iterator[Record]:
        # Without strict, an unclosed quote would swallow the rest of the file.
        reader = csv.reader(text, strict=True)
        # In the header no text means null.
        _, names = next(_csv_records(reader, frozenset()), (0, []))
        if not names:
            raise LoadError("the CSV source is empty; its first line names the columns")
        self.header = _distinct(names, "CSV")
        return _csv_records(reader, null)


def _distinct(names: list[str], kind: str) -> list[str]:
    twice = sorted({repr(name) for name in names if names.count(name) > 1})
    if twice:
        raise LoadError(f"the {kind} source names the column {', '.join(twice)} twice")
    return names


def _format_of(path: str) -> Format | None:
    return _FORMATS.get(os.path.splitext(path.removesuffix(".gz"))[1].lower())


def _csv_records(reader: Any, null: frozenset[str]) -> Iterator[Record]:
    """Yield records with the line each begins on: a quoted field may span lines."""
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
    for record in enumerate(source, 1):
        yield record if type(record[1]) is dict else _mapping(*record)


def _mapping(number: int, row: Any) -> Record:
    if not isinstance(row, Mapping):
        raise LoadError(f"row {number} of the source is no mapping: {row!r}")
    return number, row


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
    message = str(error)
    if message == "unexpected end of data":
        message = "a quote is opened in it and never closed"
    elif "field limit" in message:
        message += "; csv.field_size_limit() of Python raises it"
    return LoadError(f"the source cannot be read at line {line}: {message}")


def plain(record: Any, header: list[str] | None) -> Any:
    """Return a record as it goes to a rejects file."""
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
