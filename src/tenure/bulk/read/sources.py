"""Sources of rows: files, one or several, and iterables, read record by record."""

from __future__ import annotations

import codecs
import io
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import dropwhile, islice, zip_longest
from operator import itemgetter
from typing import Any, Self

from ...errors import LoadError, said
from .delimited import Delimited, limit
from .files import DAMAGED, File, Lines, found, lines_of, marked_encoding, paths_in
from .json_files import Document, JsonLines
from .options import ANYTHING, OF_CSV, OF_TEXT, Accepted, ReadOptions, check
from .parquet import Parquet
from .parts import Part
from .pulled import Pulled
from .records import Bad, Reader, Record, mapping


class Records:
    """
    An open source, or a part of one: gives ``(line, record)`` in batches.

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
        files: Those that it consists of.
        names: The columns of the file that is read, as they are called there.
        encoding: Of its text.
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
        self.files: list[File] = []
        self.names: list[str] | None = None
        self.encoding = ""
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
        self._part = source if isinstance(source, Part) else None
        #: Columns that the folders of a file name, and their values.
        self._constants: dict[str, str | None] = {}
        if options != ReadOptions():
            check(options)
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
            here = 0 if self._raw is None else int(self._raw.tell())
        except (OSError, ValueError):
            here = 0
        # Of a member of an archive it counts what is stored there uncompressed.
        return min(self._read + here, self.total)

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
        if isinstance(source, Part):
            return self._of_part(source)
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
            self.files = files
            self._is_one = len(files) == 1
            self.paths = [*paths, *(file.path for file in files)]
            return self._of_files(files)
        if hasattr(source, "read"):
            name = str(getattr(source, "name", ""))
            file = File(name, lambda _: source, name, is_open=True)
            return self._of_files([file])
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
        self.reader = self._begin(files[0], 0)
        self.header = self.reader.header
        return self._one_after_the_other(files)

    def _of_part(self, part: Part) -> Iterator[Record]:
        file = part.as_file
        self._is_one = part.is_only
        self.total = file.size
        self.files = [file]
        self.paths = [file.path]
        self.guesses += part.guesses
        reader = self._begin(file, part.before)
        self.header = None if part.header is None else list(part.header)
        return self._records_of(reader, file, part.before)

    def _one_after_the_other(self, files: list[File]) -> Iterator[Record]:
        before = 0
        for file, following in zip_longest(files, files[1:]):
            yield from self._records_of(self.reader, file, before)
            if following is not None:
                self._read += file.size
                self._raw = None
                before += self.reader.end
                self.go_to(following, before)

    def go_to(self, file: File, before: int) -> None:
        """
        Open a further file, as it is done before its records are read.

        Args:
            before: The lines of those before it.

        Raises:
            LoadError: It cannot be read, or has other columns than the first one.
        """
        self._stack.close()
        self.reader = self._begin(file, before)
        self._in_order(self.reader.header, file)

    def _records_of(self, reader: Reader, file: File, before: int) -> Iterator[Record]:
        """Yield the records of a file as those of the source."""
        of_source = self._in_order(reader.header, file)
        constants = tuple(self._constants.values()) if reader.header else ()
        records = reader.rows(self._start - before)
        with self.naming(file):
            if not (before or of_source or constants):
                yield from records
                return
            for line, row in records:
                if not isinstance(row, Bad):
                    row = (*row, *constants) if constants else row  # noqa: PLW2901
                    row = of_source(row) if of_source else row  # noqa: PLW2901
                yield before + line, row

    @contextmanager
    def naming(self, file: File) -> Iterator[None]:
        """Say in an error which file it is about, if there are several."""
        try:
            yield
        except LoadError as error:
            if self._is_one or repr(file.name) in str(error):
                raise
            raise LoadError(f"{file.name!r}: {error}") from error

    def _begin(self, file: File, before: int) -> Reader:
        """Open a file; its reader has read what comes before its records."""
        self._begun.append((file.name, before))
        self._lines = None
        with self.naming(file):
            reader = self._reader(file)
            self.names = reader.header
            there = reader.header or ()
            self._constants = {
                k: v for k, v in file.constants.items() if k not in there
            }
            if reader.header is not None:
                reader.header = self._named([*reader.header, *self._constants])
            elif self._constants.keys() - self.ignored:
                raise LoadError(
                    f"the folders of {file.name!r} name the columns "
                    f"{', '.join(map(repr, self._constants))}, and rows of JSON have "
                    f"none; say ignore= to leave them out, or load the file itself"
                )
            self.guesses += [g for g in reader.guesses if g not in self.guesses]
            return reader

    def _reader(self, file: File) -> Reader:
        format = self._options.format or file.format
        if format is None:
            raise LoadError(
                f"cannot tell the format of {file.name!r} by its name; say format=: "
                f"'csv', 'jsonl', 'json' or 'parquet'"
            )
        binary, self._raw = file.opened(self._stack)
        if file.is_open:
            # Its position is none in what is stored, if somebody has read from it.
            self._raw = None
        if format == "parquet":
            self._check_format("parquet", ("header",))
            groups = None if self._part is None else self._part.groups
            parquet = self._stack.enter_context(Parquet(binary, file.name, groups))
            self._raw = parquet
            if self._is_one or self._part is not None:
                self.total = parquet.total
            return parquet
        if isinstance(binary, io.TextIOBase):
            if self._options.encoding is not None:
                raise LoadError("encoding is for bytes; the source is open as text")
            return self._of_text(Lines(binary), format, file)
        if not hasattr(binary, "readable"):
            raise LoadError(f"{binary!r} is not an open file")
        return self._of_bytes(binary, format, file)

    def _of_bytes(self, binary: Any, format: str, file: File) -> Reader:
        options = self._options
        part = self._further
        try:
            # What looks like a mark inside of a file is none.
            marked = None if part else marked_encoding(binary)
            encoding = codecs.lookup(options.encoding or marked or "utf-8").name
        except DAMAGED as error:
            raise LoadError(
                f"the source cannot be read at line 1: {said(error)}"
            ) from error
        except LookupError as error:
            raise LoadError(f"encoding: {error}") from error
        if format == "json":
            self.json = True
            self._check_format("json", ("path", "encoding"))
            return Document(binary, options.path, encoding, self._again(file))
        # A mark is none of the text, also where it could not be looked for.
        encoding = "utf-8-sig" if encoding == "utf-8" else encoding
        self.encoding = encoding = part.encoding if part else encoding
        lines = lines_of(
            binary,
            encoding,
            options.errors,
            self._stack,
            is_ours=not file.is_open or binary is not file.open(self._stack),
            before=part.lines if part else 0,
        )
        reader = self._of_text(lines, format, file)
        if marked is not None and options.encoding is None and marked != "utf-8-sig":
            reader.guesses.append(
                f"the text is {marked.upper()}, as the mark at its beginning says; if "
                f"that is wrong, say encoding="
            )
        return reader

    @property
    def _further(self) -> Part | None:
        """The part that is read, if it begins inside of the text of its file."""
        return self._part if self._part and self._part.start else None

    def _again(self, file: File) -> Callable[[], Any] | None:
        """Return what opens a file once more, if that is possible."""

        def again() -> Any:
            if file.is_open:
                file.open(self._stack).seek(0)
            return file.opened(self._stack)[0]

        can_seek = not file.is_open or file.open(self._stack).seekable()
        return again if can_seek else None

    def _of_text(self, lines: Lines, format: str, file: File) -> Reader:
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
        part = self._further
        options = part.of_table(self._options) if part else self._options
        return Delimited(lines, options, self._accepted, has_tabs=file.has_tabs)

    # Names of columns

    def _named(self, header: list[str]) -> list[str]:
        """Return the columns of a table, called as the model does if that is wanted."""
        if self._options.header == "loose":
            header = [self._loosely(name) for name in header]
        read = [name for name in header if name not in self.ignored]
        twice = sorted({repr(name) for name in read if read.count(name) > 1})
        if twice:
            raise LoadError(
                f"the source names the column {', '.join(twice)} twice; its columns "
                f"are {', '.join(map(repr, header))}; name them yourself with header= "
                f"and skip_rows=, or leave it out with ignore="
            )
        lacking = sorted(map(repr, self.ignored.difference(header)))
        if lacking:
            raise LoadError(
                f"ignore: the source has no column {', '.join(lacking)}; its columns "
                f"are {', '.join(map(repr, header))}"
            )
        return header

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
            return taken(row) if len(row) == len(header) else row

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
                raise LoadError(
                    f"{name} has no meaning for {_NAMES[format]}; leave it out"
                )
        if format == "parquet" and not isinstance(self._options.header, str):
            raise LoadError(
                "Parquet has names of its own; header is 'exact' or 'loose'"
            )


_NAMES = {
    "csv": "CSV",
    "jsonl": "JSON Lines",
    "json": "a JSON document",
    "parquet": "Parquet",
    "mappings": "mappings",
}


def _listed(header: list[str] | None) -> str:
    return "objects" if header is None else ", ".join(map(repr, header))


def _checked(record: Record) -> Record:
    return record if type(record[1]) is dict else mapping(*record)
