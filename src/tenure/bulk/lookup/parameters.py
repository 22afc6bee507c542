"""Keys as a table of bound parameters, which any database takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Integer, bindparam, literal, select, union_all
from sqlalchemy.engine import Dialect

from ..dialects import in_64_bits
from .batch import Batch, KeyTable, KeyTables

#: Bound values of one statement where nothing better is known; SQLite before
#: 3.32 takes no more, and every other backend does.
PARAMETERS = 900
#: Arms of one compound SELECT; SQLite's default limit is 500.
ARMS = 300


def in_parameters(
    batch: Batch, column_types: Sequence[Any], dialect: Dialect
) -> KeyTables:
    """Return as many tables as the limits need, each a SELECT for every key."""
    return list(_tables(batch, column_types))


def _tables(
    batch: Batch, column_types: Sequence[Any]
) -> Iterator[tuple[int, KeyTable]]:
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
        parameters = {
            f"k{n}_{ordinal}": value
            for n, column in enumerate(zip(*chunk, strict=True))
            for ordinal, value in enumerate(in_64_bits(list(column)))
        }
        columns = tuple(table.c[f"k{n}"] for n in range(len(column_types)))
        yield start, KeyTable(table, table.c.ordinal, 0, columns, parameters)
