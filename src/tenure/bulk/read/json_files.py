"""JSON: a record in each line, or an array of them in a document."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from math import isfinite
from typing import Any
from uuid import uuid4

from ...errors import LoadError, said
from .files import DAMAGED, Lines, marked_encoding
from .records import Record
from .undecoded import is_undecoded, undecoded


class JsonLines:
    """
    The records of a file with a JSON object in each line.

    Attributes:
        header: None.
        end: The last line that was read.
    """

    header = None

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self.guesses: list[str] = []

    @property
    def end(self) -> int:
        """The last line that was read."""
        return self._lines.count

    def rows(self, start: int = 1) -> Iterator[Record]:  # of readers
        """Yield the lines that are not blank, with their numbers."""
        lines = self._lines
        first = lines.count + 1
        for number, line in enumerate(lines.since(first), first):
            lines.keep = number
            if line.isspace():
                continue
            if lines.has_undecoded and is_undecoded(line):
                yield number, undecoded(line, line)
            else:
                yield number, line


class Document:
    """
    The records of an array in a JSON document, read as a stream. Needs ``ijson``.

    Args:
        path: The names of the objects around the array, with dots between them.
        encoding: Of its text; UTF-8 may begin with a mark.
        again: Opens the document once more, if that is possible.
    """

    header = None

    def __init__(
        self,
        binary: Any,
        path: str | None,
        encoding: str,
        again: Callable[[], Any] | None,
    ) -> None:
        try:
            import ijson
        except ImportError as error:
            raise LoadError(
                "reading a JSON document needs ijson; install tenure[json], or write "
                "an object in each line (.jsonl)"
            ) from error
        self._ijson: Any = ijson
        self._binary = _as_utf_8(binary, encoding)
        self._encoding = encoding
        self._path = path or ""
        self._again = again
        self.guesses: list[str] = []
        self.end = 0

    def rows(self, start: int = 1) -> Iterator[Record]:  # of readers
        """
        Yield the elements as JSON, numbered from 1.

        Raises:
            LoadError: It is no JSON, or has no such array.
        """
        prefix = f"{self._path}.item" if self._path else "item"
        wrong = (self._ijson.JSONError, ValueError, *DAMAGED)
        try:
            items = self._ijson.items(self._binary, prefix)
            for self.end, item in enumerate(items, 1):
                yield self.end, written(item)
        except wrong as error:
            raise LoadError(
                f"the JSON document cannot be read after {self.end:,} elements: "
                f"{said(error)}"
            ) from error
        if self.end:
            return
        if self._again is None:
            raise LoadError(
                "the JSON document has no elements, and as it cannot be read again "
                "nobody knows whether it has the array; load a file, or say path="
            )
        self._check_there(_as_utf_8(self._again(), self._encoding))

    def _check_there(self, binary: Any) -> None:
        """Tell an array without elements from none."""
        arrays: dict[str, None] = {}
        for place, event, _ in self._ijson.parse(binary):
            if event == "start_array":
                if place == self._path:
                    return
                if len(arrays) < 5 and not re.search(r"\bitem\b", place):
                    arrays[place] = None
        there = ", ".join(repr(place) for place in arrays if place)
        where = f"at path {self._path!r}" if self._path else "that it consists of"
        raise LoadError(
            f"the JSON document has no array {where}; "
            + (f"say path=: it has arrays at {there}" if there else "it has none")
        )


def _as_utf_8(binary: Any, encoding: str) -> Any:
    if encoding in ("utf-8", "utf-8-sig"):
        if marked_encoding(binary) == "utf-8-sig":
            binary.read(len(codecs.BOM_UTF8))
        return binary
    return _Recoded(binary, encoding)


class _Recoded:
    """Bytes of a text in another encoding, as UTF-8."""

    def __init__(self, binary: Any, encoding: str) -> None:
        self._text = codecs.getreader(encoding)(binary)

    def read(self, size: int = -1) -> bytes:
        """Read some bytes; more than *size* where a character has several."""
        return self._text.read(size, size).encode()


# Stands for a number that a float would change, until the text is written.
_TOKEN = uuid4().hex
_NUMBER = re.compile(rf'"{_TOKEN} (\S+)"')


def written(item: Any) -> str:
    """Return an element of a document as JSON, with the digits its numbers have."""
    text = json.dumps(item, default=_as_number)
    return _NUMBER.sub(r"\1", text) if _TOKEN in text else text


def _as_number(value: Decimal) -> Any:
    as_float = float(value)
    if isfinite(as_float) and Decimal(repr(as_float)) == value:
        return as_float
    return f"{_TOKEN} {value}"
