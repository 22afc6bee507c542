"""A part of a source of files, which others can read by itself."""

from __future__ import annotations

import io
import os
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from .files import File
from .options import ReadOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """
    A part of a source that :func:`cut` has cut; :class:`Records` reads it.

    It can be pickled, and read wherever its file can be opened.

    Attributes:
        number: Which of the parts it is, from 0.
        file: The file that it is in.
        size: In bytes, as stored; 0 if unknown.
        before: The lines of the source that come before the file.
        lines: The lines of the file that come before the part.
        start: Its first byte in the file.
        stop: The byte after its last one; ``None``: it goes to the end of the file.
        groups: The row groups of a Parquet file that it has; ``None``: all.
        is_only: Whether the source has no other file.
        header: The columns of the source, in the order that its first file has.
        names: The columns of this file as its header calls them.
        delimiter: The character between the fields, if that is known.
        encoding: Of the text, if the part begins inside of it.
        guesses: What was taken for granted up to this file.
    """

    number: int
    file: File
    size: int
    before: int
    lines: int = 0
    start: int = 0
    stop: int | None = None
    groups: range | None = None
    is_only: bool
    header: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None
    delimiter: str | None = None
    encoding: str = ""
    guesses: tuple[str, ...] = ()

    @property
    def as_file(self) -> File:
        """A file that has the bytes of the part only."""
        opening = partial(_open, self.file, self.start, self.stop)
        return replace(self.file, open=opening, size=self.size)

    def of_table(self, options: ReadOptions) -> ReadOptions:
        """Return the options that read it, if it comes after the header of a table."""
        return replace(
            options,
            header=self.names or (),
            delimiter=self.delimiter,
            skip_rows=self.lines,
        )


def _open(file: File, start: int, stop: int | None, stack: ExitStack) -> Any:
    raw = file.open(stack)
    if not (file.is_remote or file.is_member):
        there = os.fstat(raw.fileno()).st_size
        if there != file.size:
            raise OSError(
                f"it has {there:,} bytes, and had {file.size:,} when it was cut into "
                f"parts; do not change a file that is being loaded"
            )
    if stop is None:
        return raw
    try:
        raw.seek(start)
    except ValueError as error:
        # A server may not know how to do that.
        raise OSError(str(error)) from error
    return stack.enter_context(io.BufferedReader(_Stretch(raw, stop - start)))


class _Stretch(io.RawIOBase):
    """The next bytes of an open file, and no more."""

    def __init__(self, raw: Any, size: int) -> None:
        self._raw = raw
        self._size = size
        self._read = 0

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._read

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into *buffer*; give how many, none at the end."""
        wanted = min(len(buffer), self._size - self._read)
        some = self._raw.read(wanted)
        if wanted and not some:
            raise EOFError("the file has become shorter since it was cut into parts")
        buffer[: len(some)] = some
        self._read += len(some)
        return len(some)
