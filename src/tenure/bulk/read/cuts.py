"""Sources of files, cut into parts that can be read apart."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Generator, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

from ...errors import LoadError
from .boundaries import ERRORS, Text, inside, shows_lines
from .delimited import Delimited
from .files import File, paths_in
from .json_files import Document
from .options import ANYTHING, Accepted, ReadOptions
from .parquet import Parquet
from .parts import Part
from .pulled import Pulled
from .sources import Records


def cut(
    source: Any,
    options: ReadOptions,
    *,
    accepted: Accepted = ANYTHING,
    size: int,
    count: int | None = None,
) -> Parts:
    """
    Cut a source of files into parts of about *size* bytes as stored, or into *count*.

    :class:`Records` of all parts, one after the other, are those of the source: the
    same rows, and the same lines. A part is as long as it has to be for that. Each
    further file begins a part; a compressed one and a JSON document are one part each.
    With ``errors="strict"``, some records before the one that ends it may be missing.

    Raises:
        LoadError: The source cannot be read, or cannot be cut: nobody else could open
            it, or it is a single file, larger than *size*, that has to be read in one
            go.
    """
    return Parts(source, options, accepted=accepted, size=size, count=count)


class Parts:
    """
    The parts of a source, cut one by one as they are asked for; to be read once.

    Attributes:
        header: The columns of a table; ``None`` for objects.
        ignored: Those of them that are not read.
        json: Whether records are lines of JSON rather than rows of a table.
        total: Size in bytes as stored, 0 if unknown.
        paths: The files that it consists of, and the archives that these are in.
        guesses: What was taken for granted so far, and how to say otherwise.
        size: The bytes that a part has about.
        place: Gives the file of a line, if there are several, and the line in it.
        named: Gives a line as messages name it.
    """

    def __init__(
        self,
        source: Any,
        options: ReadOptions,
        *,
        accepted: Accepted,
        size: int,
        count: int | None,
    ) -> None:
        if size < 1:
            raise LoadError(f"the size of a part is 1 byte or more, not {size}")
        if paths_in(source) is None:
            _refuse(source, options)
        self._options = options
        self._count = 0
        self._records = Records(source, options, accepted=accepted)
        self.size = size
        if count is not None:
            self.size = max(1, -(-self._records.total // count))
        try:
            self._check(self._records.files)
        except BaseException:
            self._records.__exit__()
            raise
        self.header = self._records.header
        self.ignored = self._records.ignored
        self.json = self._records.json
        self.total = self._records.total
        self.paths = self._records.paths
        self.guesses = self._records.guesses
        self.place = self._records.place
        self.named = self._records.named
        self._parts = self._cut(self._records.files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Part]:
        return self._parts

    def __next__(self) -> Part:
        return next(self._parts)

    def close(self) -> None:
        """Close the files."""
        self._parts.close()
        self._records.__exit__()

    def _check(self, files: list[File]) -> None:
        for file in files:
            if not file.is_lasting:
                raise LoadError(
                    f"{file.name!r} cannot be cut into parts: it is no file that can be "
                    f"opened again; write what it gives to a file"
                )
        if len(files) == 1 and files[0].size > self.size:
            why = self._why_whole(files[0])
            if why is not None:
                raise LoadError(f"{files[0].name!r} cannot be cut into parts: {why}")

    def _why_whole(self, file: File) -> str | None:
        """Return why the open file has to be read in one go, if it has to be."""
        reader, encoding = self._records.reader, self._records.encoding
        errors = self._options.errors
        if file.is_compressed:
            return "it is compressed; decompress it, or split it into several files"
        if isinstance(reader, Document):
            return (
                "it is one JSON document; write it as JSON Lines (.jsonl), or split it "
                "into several files"
            )
        if isinstance(reader, Parquet):
            if len(reader.sizes) > 1:
                return None
            return (
                "it has a single row group; write it with smaller ones, or split it "
                "into several files"
            )
        if not shows_lines(encoding):
            return (
                f"only a reader of {encoding.upper()} can tell where its lines end; "
                f"write it as UTF-8, or split it into several files"
            )
        if errors not in ERRORS:
            return (
                f"errors={errors!r} may change where its lines end; say "
                f"errors='replace', or split it into several files"
            )
        if file.is_remote and not _can_seek(file):
            return (
                "its server sends it in one go only; download it first, or split it "
                "into several files"
            )
        return None

    def _cut(self, files: list[File]) -> Generator[Part, None, None]:
        before = 0
        with self._records:
            for number, file in enumerate(files):
                if number:
                    self._records.go_to(file, before)
                if file.size > self.size and self._why_whole(file) is None:
                    before += yield from self._parts_of(file, before)
                    continue
                yield self._part(file, before)
                if number + 1 < len(files):
                    with self._records.naming(file):
                        before += _length(self._records)

    def _part(self, file: File, before: int, **given: Any) -> Part:
        records, number = self._records, self._count
        self._count += 1
        reader, header, names = records.reader, records.header, records.names
        return Part(
            number=number,
            file=file,
            size=given.pop("size", file.size),
            before=before,
            is_only=len(records.files) == 1,
            header=None if header is None else tuple(header),
            names=None if names is None else tuple(names),
            delimiter=reader.delimiter if isinstance(reader, Delimited) else None,
            encoding=inside(records.encoding),
            guesses=tuple(records.guesses),
            **given,
        )

    def _parts_of(self, file: File, before: int) -> Generator[Part, None, int]:
        """Yield the parts of a file; return how many lines it has."""
        reader = self._records.reader
        if isinstance(reader, Parquet):
            for groups in _groups(reader.sizes, self.size):
                size = sum(reader.sizes[group] for group in groups)
                yield self._part(file, before, groups=groups, size=size)
            return reader.end
        start = lines = 0
        with self._records.naming(file), ExitStack() as stack:
            text = self._text(file.opened(stack)[0])
            for stop, after in text.cuts(self.size, file.size):
                size = stop - start
                yield self._part(
                    file, before, lines=lines, start=start, stop=stop, size=size
                )
                start, lines = stop, after
        return lines

    def _text(self, binary: Any) -> Text:
        reader, encoding = self._records.reader, self._records.encoding
        errors = ERRORS[self._options.errors]
        if not isinstance(reader, Delimited):
            return Text(binary, encoding, errors)
        form = replace(
            self._options,
            delimiter=reader.delimiter,
            header=(),
            # What a field means is of no interest.
            null=(),
            empty_quoted="null",
        )
        return Text(
            binary,
            encoding,
            errors,
            first=reader.first,
            form=form,
            parser=reader.parser,
        )


def _refuse(source: Any, options: ReadOptions) -> None:
    """
    Refuse what is no path.

    Raises:
        LoadError: Always.
    """
    if isinstance(source, Part):
        raise LoadError("a part cannot be cut again; cut the source into smaller parts")
    if hasattr(source, "read"):
        raise LoadError(
            "an open file cannot be cut into parts, as nobody else can open it again; "
            "give its path"
        )
    if isinstance(source, (Iterable, AsyncIterable, Pulled)):
        raise LoadError(
            f"rows of a {type(source).__name__} cannot be cut into parts, as nobody "
            f"else can read them; give the path of a file"
        )
    # What is no source at all is refused as elsewhere.
    Records(source, options)


def _can_seek(file: File) -> bool:
    with ExitStack() as stack:
        binary = file.opened(stack)[0]
        try:
            binary.seek(file.size - 1)
            return len(binary.read(1)) == 1
        except Exception:  # noqa: BLE001  # each file system has errors of its own
            return False


def _length(records: Records) -> int:
    """
    Return how many lines the open file has; nothing of it can be read afterwards.

    Raises:
        LoadError: It cannot be read.
    """
    reader = records.reader
    if isinstance(reader, Document):
        deque(reader.rows(), maxlen=0)
    elif records._lines is not None:
        records._lines.skip()
    return reader.end


def _groups(sizes: list[int], size: int) -> Iterator[range]:
    """Yield row groups that have about *size* bytes together."""
    first = total = 0
    for number, each in enumerate(sizes, 1):
        total += each
        if total >= size or number == len(sizes):
            yield range(first, number)
            first, total = number, 0
