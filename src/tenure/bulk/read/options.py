"""How a source is read: the options of ``load()`` that say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from ...errors import LoadError

Format = Literal["csv", "jsonl", "json", "parquet"]
EmptyQuoted = Literal["null", "text"]

#: What each name of a file ends with, but for what says that it is compressed.
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".tab": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}


class ReadKeywords(TypedDict, total=False):
    """
    How a source is read. Nothing has to be said of a file whose name and text tell it.

    Keys:
        format: ``"csv"``, ``"jsonl"``, ``"json"`` or ``"parquet"``, where a name does
            not say.
        path: Where in a JSON document the array of rows is, such as ``"data.items"``;
            without it the document is the array.
        delimiter: The character between the fields of a CSV file. Without it: a comma,
            a tab in ``.tsv``, or what the report says was guessed.
        quotechar: The character around a field, ``'"'``; ``None``: there is none.
        escapechar: The character that takes from the next one its meaning.
        encoding: Of text. Without it: UTF-8, or what a byte order mark says.
        errors: What to do with bytes that the encoding does not have: ``"reject"`` the
            row, or as for :func:`open`, such as ``"replace"``.
        header: ``"exact"``: the first line names the columns. ``"loose"``: case and
            blanks around the names do not count. Names: the file has no such line.
        ignore: Columns that are not read. Others that the model does not know are an
            error, so that a misspelt one is noticed.
        skip_rows: Lines before the header that are left out.
        comment: What lines begin with that are left out.
        trim: Whether blanks around the fields of a CSV file do not count.
        null: Texts that mean NULL: in CSV the empty one, if nothing is said, and none
            in mappings.
        empty_quoted: What ``""`` in a CSV file is, where the empty text means NULL:
            ``"null"`` as well, or a ``"text"`` without characters.
        storage_options: What goes to the file system of a URL, as in fsspec.
    """

    format: Format | str | None
    path: str | None
    delimiter: str | None
    quotechar: str | None
    escapechar: str | None
    encoding: str | None
    errors: str
    header: Literal["exact", "loose"] | Sequence[str]
    ignore: Iterable[str]
    skip_rows: int
    comment: str | None
    trim: bool
    null: Iterable[str] | None
    empty_quoted: EmptyQuoted
    storage_options: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What :class:`ReadKeywords` say, with what is meant where they say nothing."""

    format: str | None = None
    path: str | None = None
    delimiter: str | None = None
    quotechar: str | None = '"'
    escapechar: str | None = None
    encoding: str | None = None
    errors: str = "reject"
    header: str | Sequence[str] = "exact"
    ignore: Iterable[str] = ()
    skip_rows: int = 0
    comment: str | None = None
    trim: bool = False
    null: Iterable[str] | None = None
    empty_quoted: str = "null"
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)


#: The options that say something about files of one format only.
OF_CSV = (
    *("delimiter", "quotechar", "escapechar", "skip_rows", "comment", "trim"),
    "empty_quoted",
)
OF_TEXT = ("encoding", "errors")


@dataclass(frozen=True, slots=True)
class Accepted:
    """
    What a model takes.

    Attributes:
        names: What a row may call its fields.
        is_open: Whether the model also takes others, so that a wrong one goes unnoticed.
    """

    names: frozenset[str]
    is_open: bool


#: Takes whatever comes.
ANYTHING = Accepted(frozenset(), is_open=True)


def check_choice(name: str, given: object, allowed: Iterable[object]) -> None:
    """Raise a :class:`LoadError` if an option is none of those allowed."""
    if given not in allowed:
        options = ", ".join(map(repr, allowed))
        raise LoadError(f"{name} is one of {options}, not {given!r}")


def check(options: ReadOptions) -> None:
    """
    Refuse values that an option cannot have.

    Raises:
        LoadError: It has one.
    """
    formats = (None, "csv", "jsonl", "json", "parquet")
    check_choice("format", options.format, formats)
    check_choice("empty_quoted", options.empty_quoted, ("null", "text"))
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
    if options.comment == "":
        raise LoadError("comment is what lines begin with, not an empty text")
    if options.skip_rows < 0:
        raise LoadError(f"skip_rows is 0 or more, not {options.skip_rows}")
