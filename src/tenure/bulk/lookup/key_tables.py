"""
The only file that knows dialect names: how many keys are asked for at once.

Every look-up gives rows ``(ordinal, …)``: a row answers the key it was asked
for by position, so what is equal is for the database to say. The text of a
statement does not depend on how many keys it asks for, so it is compiled once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from math import isfinite
from types import NoneType
from typing import Any, Literal

from sqlalchemy import (
    CHAR,
    ColumnElement,
    Connection,
    Integer,
    Numeric,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    or_,
    select,
    text,
    types,
    union_all,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    InterfaceError,
    ProgrammingError,
    StatementError,
)
from sqlalchemy.sql.selectable import FromClause

from ...engines import begin_late
from ...mapping import Shape
from .plan import Batch


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys as a table: an ordinal and the key's columns, and what to bind."""

    table: FromClause
    ordinal: ColumnElement[int]
    #: What the ordinal of the first key is.
    first: int
    columns: tuple[ColumnElement[Any], ...]
    parameters: dict[str, Any]
    #: Whether every key has a row in the answer, empty where nothing was found.
    outer: bool = False
    #: Columns of the key whose texts may have letters that the table cannot hold.
    foreign: frozenset[int] = frozenset()


Builder = Callable[[Batch, Dialect], "list[tuple[int, Keys]]"]


def asked(batch: Batch, dialect: Dialect) -> list[tuple[int, Keys]]:
    """
    Give the keys of *batch* as tables to join with, each with its offset.

    One table for a batch where the dialect can take an array or JSON; several
    of a bounded number of parameters elsewhere.

    Raises:
        sqlalchemy.exc.StatementError: A type refuses a value.
    """
    build = _BUILDERS.get(dialect.name, _in_parameters)
    if any(t.dialect_impl(dialect)._has_bind_expression for t in _key_types(batch)):
        build = _in_parameters  # the SQL that a type puts around values is for these
    try:
        return build(batch, dialect)
    except Exception as error:
        # As SQLAlchemy does with what it hands to types itself.
        raise StatementError(str(error), "look-up of keys", None, error) from error


def _key_types(batch: Batch) -> list[Any]:
    return [
        column.type
        for column, null in zip(batch.shape.columns, batch.nulls, strict=True)
        if not null
    ]


def bind_processors(
    column_types: Sequence[Any], dialect: Dialect
) -> list[Callable[[Any], Any] | None]:
    """Give what turns a value into what the driver takes, for each type."""
    return [_bind_processor(column_type, dialect) for column_type in column_types]


def _bind_processor(column_type: Any, dialect: Dialect) -> Callable[[Any], Any] | None:
    implemented = column_type.dialect_impl(dialect)
    processor: Callable[[Any], Any] | None = implemented.bind_processor(dialect)
    if processor is None and dialect.name in _MYSQL:
        return _ZONELESS.get(implemented._type_affinity)
    return processor


_MYSQL = frozenset({"mysql", "mariadb"})


def _without_zone(value: Any) -> Any:
    # Their drivers leave it out, without a word.
    return value.replace(tzinfo=None) if isinstance(value, (datetime, time)) else value


_ZONELESS = {types.DateTime: _without_zone, types.Time: _without_zone}


#: What fits into 64 bits.
_INTEGERS = range(-(2**63), 2**63)


def _in_64_bits(values: list[Any]) -> list[Any]:
    """Put NULL, which equals nothing, for numbers that no column can hold."""
    numbers = [value for value in values if type(value) is int]
    if not numbers or (min(numbers) in _INTEGERS and max(numbers) in _INTEGERS):
        return values
    return [None if type(v) is int and v not in _INTEGERS else v for v in values]


# SQLite: one JSON array, and an outer join, which keeps it the outer loop so
# that each key is one probe of the index. A row-value IN uses no index there.
_JSON_SAFE = frozenset({str, int, type(None)})


def _in_json(batch: Batch, dialect: Dialect) -> list[tuple[int, Keys]]:
    column_types = _key_types(batch)
    processors = bind_processors(column_types, dialect)
    columns = list(zip(*batch.values, strict=True))
    for position, processor in enumerate(processors):
        if processor is not None:
            columns[position] = tuple(map(processor, columns[position]))
    for values in columns:
        # SQLite reads a number of JSON with less precision than one that is
        # bound, and a text of JSON ends at NUL.
        if not _JSON_SAFE.issuperset(map(type, values)):
            return _in_parameters(batch, dialect)
    single = len(columns) == 1
    keys = list(columns[0]) if single else list(zip(*columns, strict=True))
    text = json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
    if "\\u0000" in text:
        return _in_parameters(batch, dialect)
    table = func.json_each(bindparam("tenure_keys", type_=Text)).table_valued(
        column("key", Integer), column("value"), name="tenure_key"
    )
    return [
        (
            0,
            Keys(
                table=table,
                ordinal=table.c.key,
                first=0,
                columns=(table.c.value,)
                if single
                else tuple(
                    func.json_extract(table.c.value, literal(f"$[{n}]", Text))
                    for n in range(len(columns))
                ),
                parameters={"tenure_keys": text},
                outer=True,
            ),
        )
    ]


# MariaDB and MySQL: one JSON array as a table with an ordinal. Its columns have
# the types of the literals that a driver would write, so that they are compared as
# in a WHERE by hand. The outer join keeps the keys as the outer loop.


@dataclass(frozen=True, slots=True)
class _Sent:
    """How values of one kind go through JSON."""

    #: The type of their column in ``JSON_TABLE``.
    type: str
    #: Gives what JSON has for a value; ``None``: the value itself.
    written: Callable[[Any], Any] | None = None
    #: Whether a column can have a value at all; ``None``: any.
    possible: Callable[[Any], bool] | None = None
    #: Whether JSON and the type can carry a value; ``None``: any.
    fits: Callable[[Any], bool] | None = None
    #: Makes the value in SQL of what JSON has; ``None``: the type does.
    read: Callable[[Any], ColumnElement[Any]] | None = None


def _as_literal(value: Any) -> ColumnElement[str]:
    """
    Give a text that takes the collation of what it is compared with.

    A column does not, be it one of JSON: two collations would be an error. These
    functions have the "coercibility" of a literal, and undo each other.
    """
    return func.json_unquote(func.json_quote(value))


def _fits_decimal(value: Decimal) -> bool:
    return int(value.as_tuple().exponent) >= -30 and value.adjusted() < 35


_TEXT = "LONGTEXT CHARACTER SET utf8mb4"
_BY_KIND: dict[type[Any], _Sent] = {
    str: _Sent(_TEXT, read=_as_literal),
    bytes: _Sent(_TEXT, written=bytes.hex, read=func.unhex),
    int: _Sent("BIGINT", possible=_INTEGERS.__contains__),
    bool: _Sent("BIGINT", written=int),
    float: _Sent("DOUBLE", possible=isfinite),
    Decimal: _Sent(
        "DECIMAL(65, 30)",
        written=str,
        possible=Decimal.is_finite,
        fits=_fits_decimal,
    ),
    datetime: _Sent("DATETIME(6)", written=str),
    date: _Sent("DATE", written=str),
    time: _Sent("TIME(6)", written=str),
}
_UNSIGNED = _Sent("BIGINT UNSIGNED", possible=range(2**64).__contains__)
#: A literal of these kinds is a text to a column that is not of their type.
_TIMES = {datetime: types.DateTime, date: types.Date, time: types.Time}


def _sent(column_type: Any, kinds: set[type[Any]]) -> _Sent | None:
    """Say how values of *kinds* go through JSON, ``None`` if they cannot."""
    if len(kinds) != 1:
        return None
    (kind,) = kinds
    if kind in _TIMES and not isinstance(column_type, _TIMES[kind]):
        return None
    if kind is int and getattr(column_type, "unsigned", False):
        return _UNSIGNED
    return _BY_KIND.get(kind)


def _as_json(column_type: Any, values: list[Any]) -> tuple[_Sent, list[Any]] | None:
    """Give values as JSON has them, and how to read them; ``None``: it cannot."""
    sent = _sent(column_type, set(map(type, values)) - {NoneType})
    if sent is None:
        return None
    possible = sent.possible
    if possible is not None:
        # NULL equals nothing.
        values = [v if v is not None and possible(v) else None for v in values]
    if sent.fits is not None and not all(sent.fits(v) for v in values if v is not None):
        return None
    written = sent.written
    if written is not None:
        values = [None if value is None else written(value) for value in values]
    return sent, values


def _in_json_table(batch: Batch, dialect: Dialect) -> list[tuple[int, Keys]]:
    columns: list[Sequence[Any]] = []
    sent: list[_Sent] = []
    for column_type, values in zip(
        _key_types(batch), zip(*batch.values, strict=True), strict=True
    ):
        processor = _bind_processor(column_type, dialect)
        ready = list(values if processor is None else map(processor, values))
        written = _as_json(column_type.dialect_impl(dialect), ready)
        if written is None:
            return _in_parameters(batch, dialect)
        sent.append(written[0])
        columns.append(written[1])
    single = len(columns) == 1
    spelled = [
        f"k{n} {how.type} PATH '{'$' if single else f'$[{n}]'}'"
        for n, how in enumerate(sent)
    ]
    definition = f"'$[*]' COLUMNS (n FOR ORDINALITY, {', '.join(spelled)})"
    table = func.json_table(
        bindparam("tenure_keys", type_=Text), text(definition)
    ).table_valued(
        column("n", Integer),
        *(column(f"k{n}") for n in range(len(columns))),
        name="tenure_key",
    )
    asked_for = tuple(
        table.c[f"k{n}"] if how.read is None else how.read(table.c[f"k{n}"])
        for n, how in enumerate(sent)
    )
    foreign = frozenset(
        n
        for n, how in enumerate(sent)
        if how.read is _as_literal
        and not "".join([v for v in columns[n] if v is not None]).isascii()
    )
    keys = columns[0] if single else list(zip(*columns, strict=True))
    return [
        (
            start,
            Keys(
                table=table,
                ordinal=table.c.n,
                first=1,
                columns=asked_for,
                parameters={"tenure_keys": some},
                outer=True,
                foreign=foreign,
            ),
        )
        for start, some in _in_packets(keys)
    ]


#: Characters of one JSON text: some way below ``max_allowed_packet`` (16 MiB).
PACKET = 4 * 2**20


def _in_packets(keys: Sequence[Any], start: int = 0) -> Iterator[tuple[int, str]]:
    written = json.dumps(keys, ensure_ascii=False, separators=(",", ":"))
    if len(written) <= PACKET or len(keys) == 1:
        yield start, written
        return
    half = len(keys) // 2
    yield from _in_packets(keys[:half], start)
    yield from _in_packets(keys[half:], start + half)


class _Bpchar(types.UserDefinedType[str]):
    """PostgreSQL's CHAR of any length: CHAR alone means one character there."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BPCHAR"


class _Ready(types.UserDefinedType[Any]):
    """A type by name, for values that have been through it already."""

    cache_ok = True

    def __init__(self, of: Any) -> None:
        self.of = of

    def get_col_spec(self, **_: Any) -> str:
        return str(self.of.compile(dialect=_POSTGRESQL))


_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]  # a class with no annotations


def _unlimited(column_type: Any, dialect: Dialect) -> Any:
    """Give the type without its limits: a cast to one would cut or refuse a key."""
    column_type = column_type._variant_mapping.get(dialect.name, column_type)
    if isinstance(column_type, types.TypeDecorator):
        return _unlimited(column_type.load_dialect_impl(dialect), dialect)
    if isinstance(column_type, types.Enum):
        return column_type
    if isinstance(column_type, CHAR):
        return _Bpchar()
    if isinstance(column_type, String):
        return Text() if type(column_type) in _PLAIN_TEXT else column_type
    if isinstance(column_type, Numeric) and not isinstance(column_type, types.Float):
        return Numeric()
    if isinstance(column_type, types.Integer):
        return types.BigInteger()
    return column_type


_PLAIN_TEXT = frozenset(
    {types.String, types.VARCHAR, types.Text, types.TEXT, types.Unicode}
    | {types.UnicodeText, types.NVARCHAR}
)


def _in_arrays(batch: Batch, dialect: Dialect) -> list[tuple[int, Keys]]:
    if any(isinstance(t.dialect_impl(dialect), types.ARRAY) for t in _key_types(batch)):
        # unnest() takes arrays of arrays apart to their last items.
        return _in_parameters(batch, dialect)
    parameters = {}
    arrays = []
    names = []
    for n, (column_type, values) in enumerate(
        zip(_key_types(batch), zip(*batch.values, strict=True), strict=True)
    ):
        sent = _unlimited(column_type, dialect)
        processor = bind_processors([column_type], dialect)[0]
        ready = values if processor is None else map(processor, values)
        parameters[f"tenure_key_{n}"] = _storable(list(ready))
        array = ARRAY(sent if processor is None else _Ready(sent))
        arrays.append(cast(bindparam(f"tenure_key_{n}", type_=array), ARRAY(sent)))
        names.append(column(f"k{n}", column_type))
    table = (
        func.unnest(*arrays)
        .table_valued(*names, with_ordinality="ordinal", name="tenure_key")
        .render_derived()
    )
    return [
        (
            0,
            Keys(
                table=table,
                ordinal=table.c.ordinal,
                first=1,
                columns=tuple(table.c[name.name] for name in names),
                parameters=parameters,
            ),
        )
    ]


def _storable(values: list[Any]) -> list[Any]:
    """Put NULL, which equals nothing, for what no column of PostgreSQL can hold."""
    if "\0" in "".join([value for value in values if type(value) is str]):
        values = [None if type(v) is str and "\0" in v else v for v in values]
    return _in_64_bits(values)


#: Bound values of one statement where nothing better is known; SQLite before
#: 3.32 takes no more, and every other backend does.
PARAMETERS = 900
#: Arms of one compound SELECT; SQLite's default limit is 500.
ARMS = 300


def _in_parameters(batch: Batch, dialect: Dialect) -> list[tuple[int, Keys]]:
    return list(_parameter_tables(batch))


def _parameter_tables(batch: Batch) -> Iterator[tuple[int, Keys]]:
    column_types = _key_types(batch)
    step = max(1, min(ARMS, PARAMETERS // (len(column_types) + 1)))
    for start in range(0, len(batch.values), step):
        chunk = batch.values[start : start + step]
        arms = [
            select(
                literal(ordinal, Integer).label("ordinal"),
                *(
                    bindparam(f"k{n}_{ordinal}", type_=column_type).label(f"k{n}")
                    for n, column_type in enumerate(column_types)
                ),
            )
            for ordinal in range(len(chunk))
        ]
        table = union_all(*arms).subquery("tenure_key")
        yield (
            start,
            Keys(
                table=table,
                ordinal=table.c.ordinal,
                first=0,
                columns=tuple(table.c[f"k{n}"] for n in range(len(column_types))),
                parameters={
                    f"k{n}_{ordinal}": value
                    for n, column in enumerate(zip(*chunk, strict=True))
                    for ordinal, value in enumerate(_in_64_bits(list(column)))
                },
            ),
        )


_BUILDERS: dict[str, Builder] = {
    "sqlite": _in_json,
    "postgresql": _in_arrays,
    "mariadb": _in_json_table,
    "mysql": _in_json_table,
}


def on_clause(shape: Shape, nulls: Sequence[bool], keys: Keys) -> list[Any]:
    """Give the conditions under which a row answers a key."""
    conditions: list[Any] = []
    given = [c for c, null in zip(shape.columns, nulls, strict=True) if not null]
    for n, (known, asked_for) in enumerate(zip(given, keys.columns, strict=True)):
        conditions.append(known == asked_for)
        if n in keys.foreign:
            conditions.append(_has_all_letters(known, asked_for))
    conditions += [
        c.is_(None) for c, null in zip(shape.columns, nulls, strict=True) if null
    ]
    return conditions


def _has_all_letters(known: Any, asked_for: Any) -> ColumnElement[bool]:
    """
    Say that no letter of a key was lost when it took a column's character set.

    What is not in a small one, as latin1, becomes a question mark.
    """
    marks = [
        func.char_length(each) - func.char_length(func.replace(each, "?", ""))
        for each in (known, asked_for)
    ]
    return or_(func.charset(known).like("utf%"), marks[0] == marks[1])


Refusal = Literal["denied", "invalid"]

# insufficient_privilege. Source: PostgreSQL, "PostgreSQL Error Codes".
_DENIED_STATE = "42501"
# SQLITE_AUTH. Source: SQLite, "Result and Error Codes".
_DENIED_CODE = 23
# ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR.
# Source: MariaDB, "MariaDB Error Codes".
_DENIED_NUMBERS = (1142, 1143)
# data_exception, the class.
_DATA_EXCEPTION = "22"


def refusal(error: Exception) -> Refusal | None:
    """
    Say what an error of a look-up is about.

    ``denied``: the table may not be read. ``invalid``: one of the keys is not taken
    by its type, the driver or the database. ``None``: neither.
    """
    if not isinstance(error, DBAPIError):
        # A type refused, or the driver could not write a text or a number.
        of_type = isinstance(error, StatementError) and error.orig is not None
        written = not isinstance(error, (UnicodeError, OverflowError))
        return None if written and not of_type else "invalid"
    if error.connection_invalidated:
        return None
    original: Any = error.orig
    state = getattr(original, "sqlstate", None) or getattr(original, "pgcode", None)
    code = getattr(original, "sqlite_errorcode", None)
    number = original.args[0] if original.args else None
    if state == _DENIED_STATE or code == _DENIED_CODE or number in _DENIED_NUMBERS:
        return "denied"
    if state is not None:
        return "invalid" if state.startswith(_DATA_EXCEPTION) else None
    # Without a code it comes from the driver, which did not like what it was given.
    by_driver = code is None and not isinstance(number, int)
    given = isinstance(error, (DataError, InterfaceError, ProgrammingError))
    return "invalid" if by_driver and given else None


def ends_transactions(dialect: Dialect) -> bool:
    """Whether an error ends the transaction it happens in."""
    return dialect.name == "postgresql"


class Guard:
    """
    Keeps a transaction of PostgreSQL usable when a look-up is refused.

    An error ends the transaction there. One in which nothing else was done is begun
    again; in any other, keys that might be refused are asked for in a savepoint.

    Args:
        others_work: Whether the transaction had begun before these look-ups.
    """

    def __init__(
        self, connection: Connection, batch: Batch, *, others_work: bool
    ) -> None:
        self.connection = connection
        self._others_work = others_work
        self._savepoint = others_work and not all(
            _is_never_refused(column_type, connection.dialect)
            for column_type in _key_types(batch)
        )

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run one look-up."""
        with self.connection.begin_nested() if self._savepoint else nullcontext():
            yield

    def recovers(self) -> bool:
        """Make the connection usable after an error; say whether that worked."""
        if _answers(self.connection):
            return True
        if self._others_work:
            return False
        driver: Any = self.connection.connection
        self.connection.dialect.do_rollback(driver)
        return True


def is_idle(connection: Connection) -> bool:
    """Whether PostgreSQL has not begun a transaction yet, as far as is known."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "is_in_transaction"):
        return not driver.is_in_transaction()
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    return status is not None and int(status) == 0


def _answers(connection: Connection) -> bool:
    # Not by SQLAlchemy: it is no statement of the caller's.
    try:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
    except Exception:  # noqa: BLE001 - whatever it is, it does not
        return False
    return True


_TAKEN = (
    types.Integer,
    types.Numeric,
    types.Boolean,
    types.LargeBinary,
    types.Date,
    types.DateTime,
    types.Time,
    types.Interval,
)


def _is_never_refused(column_type: Any, dialect: Dialect) -> bool:
    """Whether PostgreSQL takes any value of a type that a driver can write."""
    sent = _unlimited(column_type, dialect)
    if isinstance(sent, types.Uuid):
        return sent.as_uuid
    return type(sent) in (Text, _Bpchar) or isinstance(sent, _TAKEN)


def orders_alike(column_type: Any, dialect: Dialect) -> bool:
    """Whether values that are equal to the database are equal to Python as well."""
    if isinstance(column_type, String):
        return (
            dialect.name in ("sqlite", "postgresql")
            and type(column_type) in _PLAIN_TEXT
            and column_type.collation is None
        )
    return type(column_type) in _EXACT


_EXACT = frozenset(
    {types.Integer, types.INTEGER, types.BigInteger, types.BIGINT}
    | {types.SmallInteger, types.SMALLINT, types.Date, types.DATE, types.DateTime}
    | {types.DATETIME, types.TIMESTAMP, types.Uuid, types.UUID, types.Boolean}
)


def ensure_transaction(connection: Connection) -> None:
    """
    Begin the transaction that SQLite's driver puts off.

    Engines made by ``DatabaseManager`` do so by themselves; others may not.
    """
    if connection.dialect.name == "sqlite":
        begin_late(connection)
