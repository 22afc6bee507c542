"""
Where a text can be cut, so that its parts are read as the whole is.

A part begins where the reader of the whole begins a record, and where nothing before
can change how that one is read. Only the reader itself knows where that is: a quote
inside of a field, as in ``5" nail``, means nothing, and one at its beginning goes on
over lines. Where a text has no quotes, every line is a record.

So a stretch is looked through for quotes; where it has some, Python's parser says
whether there are only whole records in it; and if not, the reader where one begins.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import accumulate
from typing import Any

from ...errors import LoadError, said
from .delimited import Delimited, limit
from .files import DAMAGED, Lines
from .options import ANYTHING, ReadOptions

#: Bytes that are looked through for quotes at once, and those that are read ahead.
_BLOCK = 1 << 17
_AHEAD = 1 << 14
#: Lines that the reader of CSV reads ahead.
_LINES = 100
_END = re.compile(rb"\n|\r\n?")
#: What may be done with bytes that are no text, and what shows where lines end there:
#: other ways may leave out what is between ``\r`` and ``\n``.
ERRORS = {
    "reject": "surrogateescape",
    "strict": "surrogateescape",
    "surrogateescape": "surrogateescape",
    "replace": "replace",
    "backslashreplace": "backslashreplace",
}


def inside(encoding: str) -> str:
    """Return the encoding of what follows in a text after its beginning."""
    return "utf-8" if encoding == "utf-8-sig" else encoding


def shows_lines(encoding: str) -> bool:
    """
    Whether each byte of ASCII stands for its character, and for nothing else.

    Lines can then be told apart, and each be decoded by itself.
    """
    if encoding in ("utf-8-sig", "utf-8", "ascii", "iso8859-1"):
        return True
    decoder: Any = codecs.lookup(encoding).incrementaldecoder
    table = getattr(sys.modules.get(decoder.__module__), "decoding_table", "")
    ascii_ = "".join(map(chr, range(128)))
    return bool(table[:128] == ascii_) and not any(map(str.isascii, table[128:]))


class Text:
    """
    The bytes of a text, and where it can be cut.

    Args:
        first: The line in which its records begin.
        form: How it is read, if it is CSV.
        parser: The options of Python's parser for that.
    """

    def __init__(
        self,
        binary: Any,
        encoding: str,
        errors: str,
        *,
        first: int = 1,
        form: ReadOptions | None = None,
        parser: Mapping[str, Any] | None = None,
    ) -> None:
        self._binary = binary
        self._encoding = encoding
        self._errors = errors
        self._first = first
        self._form = form
        self._parser = parser or {}
        #: The characters without which each line is a record.
        marks = (form.quotechar or "") + (form.escapechar or "") if form else ""
        self._marks = [mark.encode() for mark in marks if mark.isascii()]
        #: Whether bytes that are none of ASCII never stand for one of them.
        self._is_safe = not marks or (errors != "backslashreplace" and marks.isascii())

    def cuts(self, size: int, end: int) -> Iterator[tuple[int, int]]:
        """
        Yield where each part ends: the byte after it, and its last line.

        Args:
            end: How long the text is thought to be.

        Raises:
            LoadError: It cannot be read.
        """
        try:
            yield from self._cuts(size, end)
        except DAMAGED as error:
            raise LoadError(f"the source cannot be read: {said(error)}") from error

    def _cuts(self, size: int, end: int) -> Iterator[tuple[int, int]]:
        here, line = self._after_header()
        start = 0
        while True:
            wanted = min(max(start + size - here, 1), _BLOCK)
            data = self._read(here, wanted)
            # The last part is not cut, whatever is in it.
            if start + size >= end or self._is_easy(data) or self._is_whole(data):
                here, line = here + len(data), line + _count(data)
            else:
                here, line = self._by_reading(here, line, here + wanted)
            if self._is_end(here):
                break
            if here >= start + size:
                yield here, line
                start = here
        yield here, line

    def _after_header(self) -> tuple[int, int]:
        """Return where the records begin, and the line before them."""
        mark = codecs.BOM_UTF8
        self._binary.seek(0)
        is_marked = self._encoding == "utf-8-sig" and self._binary.read(3) == mark
        here, line = len(mark) if is_marked else 0, 0
        while line + 1 < self._first and (data := self._read(here, 1)):
            here, line = here + len(data), line + 1
        return here, line

    def _read(self, start: int, size: int) -> bytes:
        """Return *size* bytes from *start* on, and what their last line has more."""
        self._binary.seek(start)
        data = b""
        while len(data) < size:
            some: bytes = self._binary.read(size - len(data))
            if not some:
                return data
            data += some
        more = _AHEAD
        while True:
            further: bytes = self._binary.read(more)
            data += further
            found = _END.search(data, size - 1)
            # A carriage return may have its line feed in what follows.
            if found and (found.end() < len(data) or data[-1:] == b"\n"):
                return data[: found.end()]
            if not further:
                return data
            more = len(data)

    def _is_end(self, here: int) -> bool:
        self._binary.seek(here)
        return not self._binary.read(1)

    def _is_easy(self, data: bytes) -> bool:
        """Whether each line is a record, as nothing can go on over its end."""
        if not (self._is_safe or data.isascii()):
            return False
        return not any(mark in data for mark in self._marks)

    def _is_whole(self, data: bytes) -> bool:
        """Whether there are only whole records, and none that is broken."""
        form = self._form
        # Comments are none of it; what an escaped end of a line is depends on Python.
        if form is None or form.comment is not None or form.escapechar is not None:
            return False
        try:
            with limit:
                deque(csv.reader(self._decoded(data), **self._parser), maxlen=0)
        except csv.Error:
            return False
        return True

    def _by_reading(self, start: int, line: int, wanted: int) -> tuple[int, int]:
        """
        Return where a record begins, and the line before it, as the reader says.

        Args:
            start: Where one begins.
            line: The line before it.
            wanted: The byte that it is looked for from; it may be the end of the text.
        """
        assert self._form is not None
        #: Where each line begins from the first one on, and where the last one ends.
        begins = [start]
        lines = Lines(self._lines(begins), before=line)
        lines.size = _LINES
        reader = Delimited(lines, replace(self._form, skip_rows=line), ANYTHING)
        with limit:
            for number, _ in reader.rows():
                here = begins[number - line - 1]
                if here >= wanted and reader.is_certain(number):
                    return here, number - 1
        return begins[-1], lines.count

    def _lines(self, begins: list[int]) -> Iterator[str]:
        """Yield the lines of the text; add to *begins* where each ends."""
        while data := self._read(begins[-1], _AHEAD):
            lengths = list(map(len, data.splitlines(keepends=True)))
            begins += list(accumulate(lengths, initial=begins[-1]))[1:]
            lines = self._decoded(data)
            # They are the same: see shows_lines and ERRORS.
            assert len(lines) == len(lengths)
            yield from lines

    def _decoded(self, data: bytes) -> list[str]:
        text = data.decode(inside(self._encoding), self._errors)
        return list(io.StringIO(text, newline=""))


def _count(data: bytes) -> int:
    """Return how many lines there are."""
    ends = data.count(b"\n") + data.count(b"\r") - data.count(b"\r\n")
    return ends + (data[-1:] not in (b"", b"\n", b"\r"))
