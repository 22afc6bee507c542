"""Keys as arrays, which PostgreSQL makes a table of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    CHAR,
    Numeric,
    String,
    Text,
    bindparam,
    cast,
    column,
    func,
    types,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Dialect

from ..._private import variant_of
from ..dialects import PLAIN_TEXT, bind_processors, in_64_bits
from .batch import Batch, KeyTable, KeyTables


def in_arrays(
    batch: Batch, column_types: Sequence[Any], dialect: Dialect
) -> KeyTables | None:
    """Return one table: an array for each column of the keys, unnested together."""
    if any(isinstance(t.dialect_impl(dialect), types.ARRAY) for t in column_types):
        return None  # unnest() takes arrays of arrays apart to their last items
    parameters = {}
    arrays = []
    names = []
    processors = bind_processors(column_types, dialect)
    keys = zip(*batch.values, strict=True)
    for n, (column_type, processor, values) in enumerate(
        zip(column_types, processors, keys, strict=True)
    ):
        sent = _unlimited(column_type, dialect)
        ready = values if processor is None else map(processor, values)
        parameters[f"tenure_key_{n}"] = _storable(list(ready))
        array = ARRAY(sent if processor is None else _Processed(sent))
        arrays.append(cast(bindparam(f"tenure_key_{n}", type_=array), ARRAY(sent)))
        names.append(column(f"k{n}", column_type))
    table = (
        func.unnest(*arrays)
        .table_valued(*names, with_ordinality="ordinal", name="tenure_key")
        .render_derived()
    )
    columns = tuple(table.c[name.name] for name in names)
    return [(0, KeyTable(table, table.c.ordinal, 1, columns, parameters))]


def _storable(values: list[Any]) -> list[Any]:
    """Replace what no column of PostgreSQL can hold by NULL, which equals nothing."""
    if "\0" in "".join([value for value in values if type(value) is str]):
        values = [None if type(v) is str and "\0" in v else v for v in values]
    return in_64_bits(values)


class _Bpchar(types.UserDefinedType[str]):
    """CHAR of any length: CHAR alone means one character in PostgreSQL."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BPCHAR"


class _Processed(types.UserDefinedType[Any]):
    """A type by name, for values that its bind processor has made already."""

    cache_ok = True

    def __init__(self, of: Any) -> None:
        self.of = of

    def get_col_spec(self, **_: Any) -> str:
        return str(self.of.compile(dialect=_POSTGRESQL))


_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]  # a class with no annotations


def _unlimited(column_type: Any, dialect: Dialect) -> Any:
    """Return the type without limits: a cast to one would cut or refuse a key."""
    column_type = variant_of(column_type, dialect)
    if isinstance(column_type, types.TypeDecorator):
        return _unlimited(column_type.load_dialect_impl(dialect), dialect)
    if isinstance(column_type, types.Enum):
        return column_type
    if isinstance(column_type, CHAR):
        return _Bpchar()
    if isinstance(column_type, String):
        return Text() if type(column_type) in PLAIN_TEXT else column_type
    if isinstance(column_type, Numeric) and not isinstance(column_type, types.Float):
        return Numeric()
    if isinstance(column_type, types.Integer):
        return types.BigInteger()
    return column_type


_TAKES_ANY = (
    types.Integer,
    types.Numeric,
    types.Boolean,
    types.LargeBinary,
    types.Date,
    types.DateTime,
    types.Time,
    types.Interval,
)


def is_never_refused(column_type: Any, dialect: Dialect) -> bool:
    """Return whether PostgreSQL takes any value of a type that a driver can write."""
    sent = _unlimited(column_type, dialect)
    if isinstance(sent, types.Uuid):
        return sent.as_uuid
    return type(sent) in (Text, _Bpchar) or isinstance(sent, _TAKES_ANY)
