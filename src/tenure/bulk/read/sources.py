"""Sources of rows: files, one or several, and iterables, read record by record."""

from __future__ import annotations

import io
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import dropwhile, islice, pairwise
from operator import itemgetter
from typing import Any, Protocol, Self

from ...errors import LoadError, said
from .delimited import Delimited, limit
from .files import DAMAGED, File, Lines, found, lines_of, marked_encoding, paths_in
from .json_files import Document, JsonLines
from .options import ANYTHING, OF_CSV, OF_JSON, OF_TEXT, Accepted, ReadOptions
from .parquet import Parquet
from .pulled import Pulled
from .records import Bad, Record, mapping


class Reader(Protocol):
    """What reads the records of a file of some format."""

    @property
    def header(self) -> list[str] | None:
        """The columns of a table; ``None`` for objects."""

    @property
    def guesses(self) -> list[str]:
        """What was taken for granted, and how to say otherwise."""

    @property
    def end(self) -> int:
        """The last line that was read."""

    def rows(self, start: int) -> Iterator[Record]:
        """Yield the records; those before *start* may be left out."""


class Records:
    """
    An open source: gives ``(line, record)`` in batches, and how far it is.

    Lines of several files are counted through.

    Args:
        start: Records of lines before it are left out.

    Attributes:
        header: The columns of a table; ``None`` for objects.
        ignored: Those of them that are not read.
        json: Whether records are lines of JSON rather than mappings.
        total: Size in bytes as stored, 0 if unknown.
        paths: The files that it consists of, and the archives that these are in.
        guesses: What was taken for granted, and how to say otherwise.
    """

    def __init__(
        self,
        source: Any,
        options: ReadOptions,
        *,
        accepted: Accepted = ANYTHING,
        start: int = 1,
    ) -> None:
        self.header: list[str] | None = None
        self.json = False
        self.total = 0
        self.paths: list[str] = []
        self.guesses: list[str] = []
        self.ignored = frozenset(options.ignore)
        self._options = options
        self._accepted = accepted
        self._start = start
        self._pulled = source if isinstance(source, Pulled) else None
        self._stack = ExitStack()
        self._lines: Lines | None = None
        self._raw: Any = None
        self._read = 0
        #: The files that were begun, each with the lines before it.
        self._begun: list[tuple[str, int]] = []
        self._is_one = True
        _check(options)
        try:
            self._rows = dropwhile(lambda each: each[0] < start, self._open(source))
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
            records = self._pulled.take(size, self._start)
            return list(map(self._cleaned, records)) if self._cleans else records
        if self._lines is not None:
            # No more than are wanted: a pipe may not have more yet.
            self._lines.size = min(size, 1_000)
        return list(islice(self._rows, size))

    @property
    def is_async(self) -> bool:
        """Whether the event loop runs while records are taken."""
        return self._pulled is not None

    @property
    def position(self) -> int:
        """Bytes read so far, as stored; 0 if unknown."""
        try:
            return self._read + (0 if self._raw is None else int(self._raw.tell()))
        except (OSError, ValueError):
            return self._read

    def place(self, line: int) -> tuple[str | None, int]:
        """Return the file of a line, if there are several, and the line in that file."""
        if self._is_one:
            return None, line
        name, before = next(each for each in reversed(self._begun) if each[1] < line)
        return name, line - before

    def named(self, line: int) -> str:
        """Return a line as messages name it: ``line 3``, or that of a file."""
        file, number = self.place(line)
        return f"line {number}" if file is None else f"line {number} of {file!r}"

    def _open(self, source: Any) -> Iterator[Record]:
        if isinstance(source, Pulled):
            self._check_format("mappings", ())
            return iter(())
        if isinstance(source, AsyncIterable):
            raise LoadError(
                f"{source!r} is an async source, which a sync session cannot wait for; "
                f"load it with an async session"
            )
        paths = paths_in(source)
        if paths is not None:
            stored = self._options.storage_options
            files = [file for path in paths for file in found(path, stored)]
            self.total = sum(file.size for file in files)
            self._is_one = len(files) == 1
            self.paths = [*paths, *(file.path for file in files)]
            return self._of_files(files)
        if hasattr(source, "read"):
            return self._of_open_file(source)
        if isinstance(source, Iterable):
            self._check_format("mappings", ())
            records = map(_checked, enumerate(source, 1))
            return map(self._cleaned, records) if self._cleans else records
        raise LoadError(
            f"a source is a path, a list of paths, an open file or an iterable of "
            f"mappings, not {source!r}"
        )

    @property
    def _cleans(self) -> bool:
        """Whether something in mappings has to be left out."""
        return bool(self.ignored or self._options.null)

    def _cleaned(self, record: Record) -> Record:
        number, row = record
        null = self._options.null or ()
        return number, {
            name: None if type(value) is str and value in null else value
            for name, value in row.items()
            if name not in self.ignored
        }

    # Files

    def _of_files(self, files: list[File]) -> Iterator[Record]:
        first = self._begin(files[0], 0)
        self.header = first.header
        self.guesses = first.guesses
        return self._one_after_the_other(first, files)

    def _one_after_the_other(
        self, first: Reader, files: list[File]
    ) -> Iterator[Record]:
        yield from first.rows(self._start)
        reader, before = first, 0
        for last, file in pairwise(files):
            self._read += last.size
            self._raw = None
            before += reader.end
            self._stack.close()
            reader = self._begin(file, before)
            of_header = self._in_order(reader.header, file)
            for line, row in reader.rows(self._start - before):
                yield before + line, row if of_header is None else of_header(row)

    def _begin(self, file: File, before: int) -> Reader:
        """Open a file; its reader has read what comes before its records."""
        self._begun.append((file.name, before))
        format = self._options.format or file.format
        binary: Any
        binary, self._raw = file.opened(self._stack)

        def again() -> Any:
            return file.opened(self._stack)[0]

        if format == "parquet":
            reader = Parquet(binary, file.name, file.constants)
            self._raw = self._stack.enter_context(reader)
            self.total = self.total if not self._is_one else reader.total
            self._check_format("parquet", ("header", "null"))
            return self._named(reader)
        if format is None:
            raise LoadError(_unknown_format(file.name))
        return self._of_bytes(binary, format, again, is_ours=True, tabs=file.has_tabs)

    def _of_open_file(self, source: Any) -> Iterator[Record]:
        name = str(getattr(source, "name", ""))
        file = File(name, lambda _: source, name)
        format = self._options.format or file.format
        if format is None:
            raise LoadError(_unknown_format(name or source))
        reader: Reader
        if format == "parquet":
            self._check_format("parquet", ("header", "null"))
            parquet = self._stack.enter_context(Parquet(source, name))
            self._raw, self.total = parquet, parquet.total
            reader = self._named(parquet)
        elif isinstance(source, io.TextIOBase):
            if self._options.encoding is not None:
                raise LoadError("encoding is for bytes; the source is open as text")
            reader = self._of_text(Lines(source), format, tabs=file.has_tabs)
        elif not hasattr(source, "readable"):
            raise LoadError(f"{source!r} is not an open file")
        else:
            reader = self._of_bytes(
                source, format, None, is_ours=False, tabs=file.has_tabs
            )
        self.header, self.guesses = reader.header, reader.guesses
        return reader.rows(self._start)

    def _of_bytes(
        self,
        binary: Any,
        format: str,
        again: Callable[[], Any] | None,
        *,
        is_ours: bool,
        tabs: bool,
    ) -> Reader:
        options = self._options
        try:
            marked = marked_encoding(binary)
        except DAMAGED as error:
            raise LoadError(
                f"the source cannot be read at line 1: {said(error)}"
            ) from error
        encoding = options.encoding or marked or "utf-8"
        if encoding.lower().replace("_", "-") == "utf-8" and marked == "utf-8-sig":
            encoding = marked
        if format == "json":
            self.json = True
            self._check_format("json", OF_JSON + OF_TEXT[:1])
            return Document(binary, options.path, encoding, again)
        lines = lines_of(binary, encoding, options.errors, self._stack, is_ours=is_ours)
        reader = self._of_text(lines, format, tabs=tabs)
        if marked is not None and options.encoding is None and marked != "utf-8-sig":
            reader.guesses.append(
                f"the text is {marked.upper()}, as the mark at its beginning says; if "
                f"that is wrong, say encoding="
            )
        return reader

    def _of_text(self, lines: Lines, format: str, *, tabs: bool) -> Reader:
        self._lines = lines
        if format == "jsonl":
            self.json = True
            self._check_format("jsonl", OF_TEXT)
            return JsonLines(lines)
        if format != "csv":
            raise LoadError(
                f"the source is open as text, and {format} is read from bytes"
            )
        self._check_format("csv", (*OF_CSV, *OF_TEXT, "header", "null"))
        self._stack.enter_context(limit)
        return self._named(
            Delimited(lines, self._options, self._accepted, has_tabs=tabs)
        )

    # Names of columns

    def _named(self, reader: Parquet | Delimited) -> Reader:
        """Call the columns of a table as the model does, if that is asked for."""
        header = reader.header
        if self._options.header == "loose":
            header = [self._loosely(name) for name in header]
        read = [name for name in header if name not in self.ignored]
        twice = sorted({repr(name) for name in read if read.count(name) > 1})
        if twice:
            raise LoadError(
                f"the source names the column {', '.join(twice)} twice; its columns "
                f"are {', '.join(map(repr, reader.header))}"
            )
        lacking = sorted(map(repr, self.ignored.difference(header)))
        if lacking:
            raise LoadError(
                f"ignore: the source has no column {', '.join(lacking)}; its columns "
                f"are {', '.join(map(repr, reader.header))}"
            )
        reader.header = header
        return reader

    def _loosely(self, name: str) -> str:
        """Return what the model calls a column; the same, if it knows none like it."""
        known = self._accepted.names
        if name in known:
            return name
        folded = name.strip().casefold()
        like = [each for each in sorted(known) if each.strip().casefold() == folded]
        if len(like) > 1:
            raise LoadError(
                f"the column {name!r} may be {' or '.join(map(repr, like))}; use "
                f"header='exact'"
            )
        return like[0] if like else name

    def _in_order(
        self, header: list[str] | None, file: File
    ) -> Callable[[Any], Any] | None:
        """Return what gives a row of a further file the order of the first header."""
        first = self.header
        if header == first:
            return None
        if header is None or first is None or sorted(header) != sorted(first):
            raise LoadError(
                f"{file.name!r} has other columns than {self._begun[0][0]!r}: "
                f"{_listed(header)} instead of {_listed(first)}; load it by itself"
            )
        taken = itemgetter(*(header.index(name) for name in first))

        def of_header(row: Any) -> Any:
            is_row = not isinstance(row, Bad) and len(row) == len(header)
            return taken(row) if is_row else row

        return of_header

    def _check_format(self, format: str, known: Iterable[str]) -> None:
        """Refuse options that have no meaning for a format."""
        known = {"format", "storage_options", "ignore", *known}
        if format == "mappings":
            known |= {"null"}
        default = ReadOptions()
        for name in ReadOptions.__slots__:
            given = getattr(self._options, name)
            if name not in known and given != getattr(default, name):
                raise LoadError(f"{name} has no meaning for {_NAMES[format]}")


_NAMES = {
    "csv": "CSV",
    "jsonl": "JSON Lines",
    "json": "a JSON document",
    "parquet": "Parquet",
    "mappings": "mappings",
}


def _listed(header: list[str] | None) -> str:
    return "objects" if header is None else ", ".join(map(repr, header))


def _unknown_format(name: object) -> str:
    formats = "'csv', 'jsonl', 'json' or 'parquet'"
    return f"cannot tell the format of {name!r} by its name; say {formats}"


def _checked(record: Record) -> Record:
    return record if type(record[1]) is dict else mapping(*record)


def _check(options: ReadOptions) -> None:
    """
    Refuse values that an option cannot have.

    Raises:
        LoadError: It has one.
    """
    allowed: Mapping[str, tuple[Any, ...]] = {
        "format": (None, "csv", "jsonl", "json", "parquet"),
        "empty_quoted": ("null", "text"),
    }
    for name, values in allowed.items():
        given = getattr(options, name)
        if given not in values:
            listed = ", ".join(map(repr, values))
            raise LoadError(f"{name} is one of {listed}, not {given!r}")
    for name in ("delimiter", "quotechar", "escapechar"):
        given = getattr(options, name)
        if given is not None and (len(given) != 1 or given in "\r\n"):
            raise LoadError(f"{name} is one character, not {given!r}")
    for name in ("ignore", "null"):
        if isinstance(getattr(options, name), str):
            given = getattr(options, name)
            raise LoadError(f"{name} is a list of texts, not {given!r}")
    header = options.header
    if isinstance(header, str) and header not in ("exact", "loose"):
        raise LoadError(
            f"header is 'exact', 'loose' or a list of names, not {header!r}"
        )
    if options.skip_rows < 0:
        raise LoadError(f"skip_rows is 0 or more, not {options.skip_rows}")
