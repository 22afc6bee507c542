"""
Values that an INSERT writes otherwise than COPY does.

SQLAlchemy casts each parameter to the type of its column, as the mapping has it:
``$1::TIMESTAMP``. COPY casts nothing: the server reads a value as the text of its column,
and a zone, a sixteenth digit or a ``t`` means something else there. So only values whose
cast changes nothing go by COPY.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, JSON, Column, types
from sqlalchemy.dialects.postgresql import BIT, INTERVAL
from sqlalchemy.engine import Dialect

from ..dialects import underlying

#: Whether all values of a column, as the driver takes them, may go by COPY.
Check = Callable[[Sequence[Any]], bool]

#: Types of columns, and the exact types of values that are the same with and without a
#: cast. The first one that fits counts.
_ALIKE: tuple[tuple[type[Any], frozenset[type]], ...] = (
    (types.Boolean, frozenset({bool})),
    (types.Integer, frozenset({int})),
    (types.Float, frozenset({float, int})),
    (types.Numeric, frozenset({Decimal, int})),
    (types.DateTime, frozenset({datetime})),
    (types.Date, frozenset({date})),
    (types.Time, frozenset({time})),
    (types.Interval, frozenset({timedelta})),
    (INTERVAL, frozenset({timedelta})),
    (types.Uuid, frozenset({UUID, str})),
    (types.LargeBinary, frozenset({bytes})),
)
#: The server reads any other type from a text of its own.
_TEXT = frozenset({str})

#: Types of columns, and what PostgreSQL calls those that a cast to them is for.
_NAMES: tuple[tuple[type[Any], str], ...] = (
    (types.Enum, ""),
    (types.String, "text varchar bpchar citext name"),
    (types.Boolean, "bool"),
    (types.Integer, "int2 int4 int8"),
    # A float goes to a float4 by way of a float8, which rounds twice.
    (types.Float, "float8"),
    (types.Numeric, "numeric"),
    (types.DateTime, "timestamp"),
    (types.Date, "date"),
    (types.Time, "time"),
    (types.LargeBinary, "bytea"),
)


def name_of(column: Column[Any], dialect: Dialect) -> str:
    """
    Return the types that a column may have on the server, as one text.

    Empty: any. In a column of another type a cast may change values, or be refused.
    """
    kind = underlying(column.type, dialect)
    for cls, names in _NAMES:
        if isinstance(kind, cls):
            return names + "tz" * bool(getattr(kind, "timezone", False))
    return ""


def check_of(column: Column[Any], dialect: Dialect) -> Check | None:
    """Return what checks the values of a column; ``None``: any may go by COPY."""
    kind = underlying(column.type, dialect)
    if isinstance(kind, BIT):
        # A cast cuts bits off, or adds some.
        return lambda values: all(value is None for value in values)
    # asyncpg sends a value as its column wants it, both ways.
    return None if dialect.driver == "asyncpg" else _check(kind, dialect)


def _check(kind: Any, dialect: Dialect) -> Check | None:
    if isinstance(kind, JSON):
        # It has made texts of them.
        return None
    if isinstance(kind, ARRAY):
        inner = _check(underlying(kind.item_type, dialect), dialect)
        return lambda values: inner is None or inner(list(_items(values)))
    alike = next((each for cls, each in _ALIKE if isinstance(kind, cls)), _TEXT)
    allowed = alike | {NoneType}
    if isinstance(kind, types.LargeBinary) and dialect.dbapi is not None:
        allowed |= {dialect.dbapi.Binary}
    is_without_zone = (
        isinstance(kind, (types.DateTime, types.Time)) and not kind.timezone
    )

    def check(values: Sequence[Any]) -> bool:
        return allowed.issuperset(map(type, values)) and not (
            is_without_zone and any(_zones(values))
        )

    return check


def _zones(values: Iterable[Any]) -> set[Any]:
    return {value.tzinfo for value in values if value is not None}


def _items(values: Iterable[Any]) -> Iterable[Any]:
    """Yield what is in arrays, and in arrays in these."""
    for value in values:
        if isinstance(value, list):
            yield from _items(value)
        else:
            yield value
