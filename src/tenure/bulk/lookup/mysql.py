"""
Keys as one JSON text, which MariaDB and MySQL read as a table with an ordinal.

Its columns have the types of the literals that a driver would write, so that keys are
compared as in a WHERE by hand. An outer join keeps the keys as the outer loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from types import NoneType
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Text,
    bindparam,
    column,
    func,
    or_,
    text,
    types,
)
from sqlalchemy.engine import Dialect

from ..dialects import INTEGERS, bind_processors
from .batch import Batch, KeyTable, KeyTables


@dataclass(frozen=True, slots=True)
class _Form:
    """How values of one Python type go through JSON."""

    #: The type of their column in ``JSON_TABLE``.
    type: str
    #: Returns what JSON has for a value; ``None``: the value itself.
    written: Callable[[Any], Any] | None = None
    #: Whether a column can hold a value at all; ``None``: any.
    possible: Callable[[Any], bool] | None = None
    #: Whether JSON and the type can carry a value; ``None``: any.
    fits: Callable[[Any], bool] | None = None
    #: Makes the value in SQL of what JSON has; ``None``: the type does.
    read: Callable[[Any], ColumnElement[Any]] | None = None


def _as_literal(value: Any) -> ColumnElement[str]:
    """
    Return a text that takes the collation of what it is compared with.

    A column does not, be it one of JSON: two collations would be an error. These
    functions have the "coercibility" of a literal, and undo each other.
    """
    return func.json_unquote(func.json_quote(value))


def _fits_decimal(value: Decimal) -> bool:
    return int(value.as_tuple().exponent) >= -30 and value.adjusted() < 35


_TEXT = "LONGTEXT CHARACTER SET utf8mb4"
_FORMS: dict[type[Any], _Form] = {
    str: _Form(_TEXT, read=_as_literal),
    bytes: _Form(_TEXT, written=bytes.hex, read=func.unhex),
    int: _Form("BIGINT", possible=INTEGERS.__contains__),
    bool: _Form("BIGINT", written=int),
    float: _Form("DOUBLE", possible=isfinite),
    Decimal: _Form(
        "DECIMAL(65, 30)",
        written=str,
        possible=Decimal.is_finite,
        fits=_fits_decimal,
    ),
    datetime: _Form("DATETIME(6)", written=str),
    date: _Form("DATE", written=str),
    time: _Form("TIME(6)", written=str),
}
_UNSIGNED = _Form("BIGINT UNSIGNED", possible=range(2**64).__contains__)
#: A literal of these types is a text to a column of any other type.
_TIMES = {datetime: types.DateTime, date: types.Date, time: types.Time}


def _form(column_type: Any, kinds: set[type[Any]]) -> _Form | None:
    """Return how values of *kinds* go through JSON; ``None`` if they cannot."""
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    if kind in _TIMES and not isinstance(column_type, _TIMES[kind]):
        return None
    if kind is int and getattr(column_type, "unsigned", False):
        return _UNSIGNED
    return _FORMS.get(kind)


def _as_json(column_type: Any, values: list[Any]) -> tuple[_Form, list[Any]] | None:
    """Return values as JSON has them, and how to read them; ``None``: it cannot."""
    form = _form(column_type, set(map(type, values)) - {NoneType})
    if form is None:
        return None
    possible = form.possible
    if possible is not None:
        # NULL equals nothing.
        values = [v if v is not None and possible(v) else None for v in values]
    if form.fits is not None and not all(form.fits(v) for v in values if v is not None):
        return None
    written = form.written
    if written is not None:
        values = [None if value is None else written(value) for value in values]
    return form, values


def in_json_table(
    batch: Batch, column_types: Sequence[Any], dialect: Dialect
) -> KeyTables | None:
    """Return a table for each JSON text that fits into a packet."""
    columns: list[Sequence[Any]] = []
    forms: list[_Form] = []
    for column_type, processor, values in zip(
        column_types,
        bind_processors(column_types, dialect),
        zip(*batch.values, strict=True),
        strict=True,
    ):
        ready = list(values if processor is None else map(processor, values))
        written = _as_json(column_type.dialect_impl(dialect), ready)
        if written is None:
            return None
        forms.append(written[0])
        columns.append(written[1])
    single = len(columns) == 1
    described = [
        f"k{n} {form.type} PATH '{'$' if single else f'$[{n}]'}'"
        for n, form in enumerate(forms)
    ]
    definition = f"'$[*]' COLUMNS (n FOR ORDINALITY, {', '.join(described)})"
    table = func.json_table(
        bindparam("tenure_keys", type_=Text), text(definition)
    ).table_valued(
        column("n", Integer),
        *(column(f"k{n}") for n in range(len(columns))),
        name="tenure_key",
    )
    read = tuple(
        table.c[f"k{n}"] if form.read is None else form.read(table.c[f"k{n}"])
        for n, form in enumerate(forms)
    )
    lossy = frozenset(
        n
        for n, form in enumerate(forms)
        if form.read is _as_literal
        and not "".join([v for v in columns[n] if v is not None]).isascii()
    )
    keys = columns[0] if single else list(zip(*columns, strict=True))
    return [
        (
            start,
            KeyTable(table, table.c.n, 1, read, parameters, outer=True, lossy=lossy),
        )
        for start, parameters in _in_packets(keys)
    ]


#: Characters of one JSON text: some way below ``max_allowed_packet`` (16 MiB).
PACKET = 4 * 2**20


def _in_packets(
    keys: Sequence[Any], start: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    written = json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
    if len(written) <= PACKET or len(keys) == 1:
        yield start, {"tenure_keys": written}
        return
    half = len(keys) // 2
    yield from _in_packets(keys[:half], start)
    yield from _in_packets(keys[half:], start + half)


def has_all_letters(known: Any, wanted: Any) -> ColumnElement[bool]:
    """
    Return the condition that a key lost no letter to the column's character set.

    A letter that a small character set lacks, such as latin1, becomes a question mark.
    """
    marks = [
        func.char_length(each) - func.char_length(func.replace(each, "?", ""))
        for each in (known, wanted)
    ]
    return or_(func.charset(known).like("utf%"), marks[0] == marks[1])
