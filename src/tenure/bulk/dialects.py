"""
What column types, values and drivers need on each kind of database.

Every way to read or write enters this file; what only one kind of database needs is in
files named after it, or after what only it can do, such as COPY.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, time
from typing import Any

from sqlalchemy import ARRAY, JSON, Column, Connection, Engine, String, bindparam, types
from sqlalchemy.dialects.postgresql import CITEXT, JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    StatementError,
)

from ..engines import begin_late
from ..errors import codes

_MYSQL = frozenset({"mysql", "mariadb"})
_PROBE: Any = bindparam("tenure_probe")


def ensure_transaction(connection: Connection) -> None:
    """
    Begin the transaction that SQLite's driver puts off.

    Engines made by ``DatabaseManager`` do so by themselves; others may not.
    """
    if connection.dialect.name == "sqlite":
        begin_late(connection)


def can_copy(connection: Connection | Engine) -> bool:
    """Return whether rows can be sent by COPY."""
    dialect = connection.dialect
    return dialect.name == "postgresql" and dialect.driver in ("psycopg", "asyncpg")


def bind_processors(
    column_types: Sequence[Any], dialect: Dialect
) -> list[Callable[[Any], Any] | None]:
    """Return, for each type, what turns a value into what the driver takes."""
    processors: list[Callable[[Any], Any] | None] = []
    for column_type in column_types:
        processor = column_type.dialect_impl(dialect).bind_processor(dialect)
        if processor is None and dialect.name in _MYSQL:
            kind = underlying(column_type, dialect)
            if isinstance(kind, (types.DateTime, types.Time)):
                processor = _without_zone
        processors.append(processor)
    return processors


def _without_zone(value: Any) -> Any:
    # The drivers of MariaDB and MySQL drop the zone without an error.
    return value.replace(tzinfo=None) if isinstance(value, (datetime, time)) else value


def has_sql_around_values(column_type: Any, dialect: Dialect) -> bool:
    """Return whether the type has a ``bind_expression``, which only Core renders."""
    return column_type.dialect_impl(dialect).bind_expression(_PROBE) is not None


def underlying(column_type: Any, dialect: Dialect) -> Any:
    """Return the type of *dialect* that a type, or its decorators, ends up as."""
    kind = column_type.dialect_impl(dialect)
    while isinstance(kind, types.TypeDecorator):
        kind = kind.load_dialect_impl(dialect).dialect_impl(dialect)
    return kind


#: Types of text that add no rule of their own to what is equal.
PLAIN_TEXT = frozenset(
    {types.String, types.VARCHAR, types.Text, types.TEXT, types.Unicode}
    | {types.UnicodeText, types.NVARCHAR}
)
_EXACT = frozenset(
    {types.Integer, types.INTEGER, types.BigInteger, types.BIGINT}
    | {types.SmallInteger, types.SMALLINT, types.Date, types.DATE, types.DateTime}
    | {types.DATETIME, types.TIMESTAMP, types.Uuid, types.UUID, types.Boolean}
)


def orders_alike(column_type: Any, dialect: Dialect) -> bool:
    """Return whether what is equal to the database is equal to Python as well."""
    if isinstance(column_type, String):
        return (
            dialect.name in ("sqlite", "postgresql")
            and type(column_type) in PLAIN_TEXT
            and column_type.collation is None
        )
    return type(column_type) in _EXACT


def comparable(column: Column[Any], dialect: Dialect) -> str:
    """Return the SQL, with ``{0}`` for a value, that compares all of what it holds."""
    kind = underlying(column.type, dialect)
    if dialect.name == "postgresql":
        if isinstance(kind, ARRAY):
            kind = underlying(kind.item_type, dialect)
        if isinstance(kind, (JSON, CITEXT)) and not isinstance(kind, JSONB):
            return "{0}::text"  # json is equal to nothing, and citext to too much
        exact = 'COLLATE "C"'
    elif dialect.name == "sqlite":
        exact = "COLLATE BINARY"
    else:
        return "CAST({0} AS BINARY)" if isinstance(kind, (String, JSON)) else "{0}"
    # Values that a collation calls equal may still differ.
    collated = isinstance(kind, String) and kind.collation is not None
    return f"{{0}} {exact}" if collated else "{0}"


def any_of(conditions: Sequence[str]) -> str:
    """Return SQL for "one of *conditions* holds", as a tree that is not deep."""
    if len(conditions) < 3:
        return " OR ".join(conditions)
    half = len(conditions) // 2
    # SQLite takes a tree of a thousand levels.
    return f"({any_of(conditions[:half])}) OR ({any_of(conditions[half:])})"


#: Integers that fit into 64 bits.
INTEGERS = range(-(2**63), 2**63)


def in_64_bits(values: list[Any]) -> list[Any]:
    """Replace integers that no column can hold by NULL, which equals nothing."""
    numbers = [value for value in values if type(value) is int]
    if not numbers or (min(numbers) in INTEGERS and max(numbers) in INTEGERS):
        return values
    return [None if type(v) is int and v not in INTEGERS else v for v in values]


# What an error is about. Drivers have few classes of errors, and put different ones into
# them. So codes decide where the database has sent one.

#: What types and drivers raise for a value they cannot take.
OF_A_VALUE = (ValueError, TypeError, ArithmeticError, LookupError, AttributeError)

# Data exceptions. Source: PostgreSQL, "PostgreSQL Error Codes".
_OF_A_VALUE_STATES = ("22",)
# Integrity constraints, WITH CHECK OPTION, RAISE of a trigger; datatype_mismatch and
# cannot_coerce, of a cast; syntax_error, of a text search or the like; the limits of an
# entry in an index, and of depth; internal_error, as extensions call a text that they
# cannot read.
_OF_A_ROW_STATES = (
    *("22", "23", "44", "P0001", "42601", "42804", "42846"),
    *("54000", "54001", "XX000"),
)
# The numbers that MariaDB and MySQL send for the same, where drivers have another class
# for them. Source: MariaDB, "MariaDB Error Codes"; MySQL, "Server Error Message Reference".
_OF_A_ROW_NUMBERS = {
    1118,  # a row too large
    1241,  # a list where one value belongs
    1292,  # a text that is no date, or no number
    1300,  # a text of another character set
    1411,  # of another type
    1416,  # not of a geometry
    1441,  # a date out of range
    1644,  # SIGNAL of a trigger
    1690,  # a number out of range
    1977,  # a text that another character set lacks
    3140,  # not JSON
    3819,  # CHECK
    4025,  # CHECK
}


def is_of_value(error: Exception) -> bool:
    """Whether a column's type, the driver or the database refused a value."""
    if isinstance(error, StatementError) and not isinstance(error, DBAPIError):
        return error.orig is not None
    if not isinstance(error, DBAPIError):
        return isinstance(error, OF_A_VALUE)
    if error.connection_invalidated:
        return False
    state, number = codes(error.orig)
    if state is not None:
        return state.startswith(_OF_A_VALUE_STATES)
    by_driver = number is None
    return by_driver and isinstance(
        error, (DataError, InterfaceError, ProgrammingError)
    )


def is_of_row(error: Exception) -> bool:
    """Whether the error is about what a row says, not about the statement."""
    if is_of_value(error):
        return True
    if not isinstance(error, DBAPIError) or error.connection_invalidated:
        return False
    state, number = codes(error.orig)
    return (
        isinstance(error, (IntegrityError, DataError))
        or (state is not None and state.startswith(_OF_A_ROW_STATES))
        or number in _OF_A_ROW_NUMBERS
    )
