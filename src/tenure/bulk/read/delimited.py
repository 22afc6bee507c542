"""
CSV: its dialect, its header, its records, and what is wrong with some of them.

The parser is Python's. What it does not tell is read off the line once more: where a
record is broken, or where an empty field had quotes.
"""

from __future__ import annotations

import csv
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from ...errors import LoadError
from .files import Lines
from .options import Accepted, ReadOptions
from .records import Bad, Record
from .undecoded import is_undecoded, undecoded

#: Lines in which the end of a field is looked for that a broken record opened.
_MOST_LINES = 1_000
#: What may be between fields where no comma is, by the name for it in a message.
_GUESSED = {";": "';'", "\t": "a tab", "|": "'|'"}


class _Limit:
    """Lets fields be of any length while one of ours is read; Python has one limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                csv.field_size_limit(self._before)


limit = _Limit()


class Delimited:
    """
    The records of a CSV file.

    Attributes:
        header: The names of its columns.
        guesses: What was taken for granted, and how to say otherwise.
    """

    def __init__(
        self,
        lines: Lines,
        options: ReadOptions,
        accepted: Accepted,
        *,
        has_tabs: bool = False,
    ) -> None:
        self._lines = lines
        self._null = frozenset(("",) if options.null is None else options.null)
        self._trim = options.trim
        self._keeps_quoted = options.empty_quoted == "text" and "" in self._null
        self._comment = options.comment
        self.guesses: list[str] = []
        self._line = 1 + options.skip_rows
        #: Whether the next line begins a record: what a comment has to.
        self._is_fresh = True
        #: Up to this line a quote inside of a field is an error: it may be the rest of
        #: a record that was broken.
        self._doubtful = 0
        #: Up to this line everything is: a field that such a record opened ends there.
        self._inside = 0
        delimiter = options.delimiter or ("\t" if has_tabs else None)
        self._form = _Form(
            delimiter or ",", options.quotechar, options.escapechar, options.trim
        )
        if not isinstance(options.header, str):
            self.header = list(options.header)
            return
        names = self._first()
        if delimiter is None and not accepted.is_open and names and len(names) == 1:
            # A model that takes any column would not notice a wrong guess.
            names = self._guessed() or names
        if not names:
            raise LoadError(
                "the CSV source is empty; its first line names the columns"
                if options.skip_rows == 0
                else f"the CSV source has no header after {options.skip_rows} lines"
            )
        self.header = [name.strip() for name in names] if self._trim else names

    def _first(self) -> list[str] | None:
        """Read the header."""
        for line, row in self._read(frozenset()):
            if isinstance(row, Bad):
                raise LoadError(
                    f"the header of the source, in line {line}, cannot be read: "
                    f"{row.message}"
                )
            self._line = self._after
            return list(row)
        return None

    def _guessed(self) -> list[str] | None:
        """Read the header again, with what else may be between its names."""
        raw = self._lines.between(self._lines.keep, self._line)
        for delimiter, name in _GUESSED.items():
            options = {**self._form.options, "delimiter": delimiter}
            try:
                names = next(csv.reader(raw, **options))
            except csv.Error:
                continue
            if len(names) > 1:
                self._form.delimiter = delimiter
                self.guesses.append(
                    f"{name} is between the fields, as the header has no comma; if "
                    f"that is wrong, say delimiter="
                )
                return names
        return None

    @property
    def first(self) -> int:
        """The line after the header, before any record was read."""
        return self._line

    @property
    def delimiter(self) -> str:
        """The character between the fields."""
        return self._form.delimiter

    @property
    def parser(self) -> dict[str, Any]:
        """The options of Python's parser."""
        return self._form.options

    def is_certain(self, line: int) -> bool:
        """
        Whether the record that begins in *line* has nothing to do with those before.

        To be asked while :meth:`rows` gives it.
        """
        return line > self._doubtful

    @property
    def end(self) -> int:
        """The last line that was read."""
        return self._lines.count

    def rows(self, start: int = 1) -> Iterator[Record]:  # of readers
        """
        Return the records with the line each begins on: a quoted field may span lines.

        Raises:
            LoadError: The file is damaged.
        """
        return self._read(self._null)

    def _read(self, null: frozenset[str]) -> Iterator[Record]:
        lines = self._lines
        while True:
            self._is_fresh = True
            line = lines.keep = self._line
            before = line - 1
            reader = csv.reader(self._text(line), **self._form.options)
            plain = null.isdisjoint
            always = self._trim or self._keeps_quoted
            careful = always or line <= self._doubtful
            try:
                for row in reader:
                    self._after = after = before + reader.line_num + 1
                    if row:
                        if careful or lines.has_undecoded:
                            yield line, self._carefully(row, line, after, null)
                            careful = always or after <= self._doubtful
                        elif plain(row):
                            yield line, row
                        else:
                            yield line, [None if each in null else each for each in row]
                    line = lines.keep = after
                    self._is_fresh = True
                return
            except csv.Error as error:
                last = before + reader.line_num
                again = self._again(line, last + 1) if self._trim else None
                if again is not None:
                    self._after = last + 1
                    yield line, self._carefully(again, line, last + 1, null)
                    self._line = last + 1
                    continue
                [raw] = lines.between(line, line + 1)
                yield line, Bad(raw, "quotes", _said(error))
            # The line is lost; those that went into the same record are read again.
            self._line = line + 1
            self._inside = max(self._inside, self._closed_after(line, last))
            self._doubtful = max(self._doubtful, self._inside, last)

    def _closed_after(self, line: int, last: int) -> int:
        """Return the line that closes what a broken record opened at its end, or 0."""
        quote = self._form.quotechar or '"'
        raw = "".join(self._lines.between(line, last + 1))
        if raw.count(quote) % 2 == 0:
            return 0
        lines = islice(self._lines.since(last + 1), _MOST_LINES)
        for number, text in enumerate(lines, last + 1):
            if text.count(quote) % 2:
                return number if self._form.closes(text) else 0
        return 0

    def _again(self, line: int, after: int) -> list[str] | None:
        """Parse a record without the blanks after its quotes, if that is what it is."""
        raw = "".join(self._lines.between(line, after))
        try:
            # One text: only the parser knows which ends of lines end the record.
            [row] = csv.reader([self._form.split(raw)[1]], **self._form.options)
        except csv.Error:
            return None
        return row

    def _text(self, line: int) -> Iterator[str]:
        """Yield lines for the parser; one that is a comment as an empty one."""
        lines = self._lines.since(line)
        return lines if self._comment is None else self._without_comments(lines)

    def _without_comments(self, lines: Iterator[str]) -> Iterator[str]:
        assert self._comment is not None
        for line in lines:
            if self._is_fresh and line.startswith(self._comment):
                yield "\n"
            else:
                # It may go on in the next line.
                self._is_fresh = False
                yield line

    def _carefully(
        self, row: list[str], line: int, after: int, null: frozenset[str]
    ) -> Any:
        raw = "".join(self._lines.between(line, after))
        if self._lines.has_undecoded and is_undecoded(raw):
            return _undecoded_in(row, raw, getattr(self, "header", ()))
        if line <= self._inside:
            message = (
                "it may be the rest of a field that a broken line before it opened"
            )
            return Bad(raw, "quotes", message)
        if line <= self._doubtful and _has_stray(self._form.split(raw)[0]):
            message = (
                "a quote inside of a field, after a line whose quotes do not match"
            )
            return Bad(raw, "quotes", message)
        if self._trim:
            row = [text.strip() for text in row]
        quoted = [False] * len(row)
        if self._keeps_quoted and "" in row:
            fields = self._form.split(raw)[0]
            if len(fields) == len(row):
                quoted = [field.is_quoted for field in fields]
        return [
            None if text in null and not (is_quoted and not text) else text
            for text, is_quoted in zip(row, quoted, strict=True)
        ]


def _undecoded_in(row: Sequence[str], raw: str, header: Sequence[str]) -> Bad:
    places = [n for n, text in enumerate(row) if is_undecoded(text)]
    fields = [header[n] for n in places if n < len(header)]
    text = row[places[0]] if places else raw
    return undecoded(raw, text, fields[0] if fields else "")


def _said(error: csv.Error) -> str:
    message = str(error)
    if message == "unexpected end of data":
        return "a quote is opened in it and never closed"
    if "expected after" in message:
        return "a quote is closed in the middle of a field, here or in a later line"
    return message


@dataclass(slots=True)
class _Field:
    """A field as it is written: whether it has quotes around it, or within."""

    is_quoted: bool = False
    is_stray: bool = False


def _has_stray(fields: Sequence[_Field]) -> bool:
    return any(field.is_stray for field in fields)


@dataclass(slots=True)
class _Form:
    """What a CSV file is written with."""

    delimiter: str
    quotechar: str | None
    escapechar: str | None
    trim: bool

    @property
    def options(self) -> dict[str, Any]:
        """The options of Python's parser."""
        quoting = csv.QUOTE_MINIMAL if self.quotechar else csv.QUOTE_NONE
        return {
            "delimiter": self.delimiter,
            "quotechar": self.quotechar or None,
            "escapechar": self.escapechar,
            "quoting": quoting,
            "skipinitialspace": self.trim,
            # Without it, an unclosed quote would swallow the rest of the file.
            "strict": True,
        }

    def closes(self, line: str) -> bool:
        """Whether a line that begins inside of quotes may end a field."""
        quote, delimiter = re.escape(self.quotechar or '"'), re.escape(self.delimiter)
        closing = rf"(?:^|[^{delimiter}{quote}]){quote}(?:{delimiter}|\s*$)"
        return re.search(closing, line) is not None

    def split(self, record: str) -> tuple[list[_Field], str]:
        """
        Tell how each field of a record is written, one character after the other.

        Returns:
            The fields, and the record without blanks between a quote and the end of
            its field.
        """
        fields = [_Field()]
        clean = []
        begins, inside = True, False
        characters = iter(record.rstrip("\r\n"))
        for character in characters:
            field = fields[-1]
            if character == " " and field.is_quoted and not inside:
                continue
            clean.append(character)
            if character == self.escapechar:
                clean.append(next(characters, ""))
                begins = False
            elif inside:
                inside = character != self.quotechar
            elif character == self.delimiter:
                fields.append(_Field())
                begins = True
                continue
            elif character == self.quotechar:
                # A second one inside of quotes stands for one, and opens them again.
                inside = begins or field.is_quoted
                field.is_quoted |= begins
                field.is_stray |= not inside
            if not (begins and self.trim and character == " "):
                begins = False
        return fields, "".join(clean)
