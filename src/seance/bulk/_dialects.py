"""
The only file that knows dialect names: how many keys are asked for at once.

Every look-up gives rows ``(ordinal, …)``: a row answers the key it was asked
for by position, so what is equal is for the database to say. The text of a
statement does not depend on how many keys it asks for, so it is compiled once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

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
    select,
    types,
    union_all,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect
from sqlalchemy.sql.selectable import FromClause

from ..keys import Shape
from ..sqlite import begin_late
from ._plan import Batch


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


Builder = Callable[[Batch, Dialect], "list[tuple[int, Keys]]"]


def asked(batch: Batch, dialect: Dialect) -> list[tuple[int, Keys]]:
    """
    Give the keys of *batch* as tables to join with, each with its offset.

    One table for a batch where the dialect can take an array or JSON; several
    of a bounded number of parameters elsewhere.
    """
    return _BUILDERS.get(dialect.name, _in_parameters)(batch, dialect)


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
    return [
        column_type.dialect_impl(dialect).bind_processor(dialect)
        for column_type in column_types
    ]


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
    table = func.json_each(bindparam("seance_keys", type_=Text)).table_valued(
        column("key", Integer), column("value"), name="seance_key"
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
                parameters={"seance_keys": text},
                outer=True,
            ),
        )
    ]


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
        parameters[f"seance_key_{n}"] = _possible(list(ready))
        array = ARRAY(sent if processor is None else _Ready(sent))
        arrays.append(cast(bindparam(f"seance_key_{n}", type_=array), ARRAY(sent)))
        names.append(column(f"k{n}", column_type))
    table = (
        func.unnest(*arrays)
        .table_valued(*names, with_ordinality="ordinal", name="seance_key")
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


#: What fits into 64 bits.
_INTEGERS = range(-(2**63), 2**63)


def _possible(values: list[Any]) -> list[Any]:
    """Put NULL, which equals nothing, for what no column can hold."""
    kinds = set(map(type, values))
    if kinds == {str} and "\0" in "".join(values):
        return [None if "\0" in value else value for value in values]
    if kinds == {int} and not (min(values) in _INTEGERS and max(values) in _INTEGERS):
        return [value if value in _INTEGERS else None for value in values]
    return values


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
        table = union_all(*arms).subquery("seance_key")
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
                    for ordinal, value in enumerate(_possible(list(column)))
                },
            ),
        )


_BUILDERS: dict[str, Builder] = {"sqlite": _in_json, "postgresql": _in_arrays}


def on_clause(shape: Shape, nulls: Sequence[bool], keys: Keys) -> list[Any]:
    """Give the conditions under which a row answers a key."""
    asked_for = iter(keys.columns)
    return [
        known.is_(None) if null else known == next(asked_for)
        for known, null in zip(shape.columns, nulls, strict=True)
    ]


def orders_alike(column_type: Any, dialect: Dialect) -> bool:
    """Whether values that are equal to the database are equal to Python as well."""
    if isinstance(column_type, String):
        return (
            dialect.name in _BUILDERS
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
