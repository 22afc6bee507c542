"""What mappers say: which attributes name a row, which columns a class has. No I/O."""

from .columns import annotation, readable_columns, settable_columns
from .instances import check_writable, make
from .keys import (
    Identifiers,
    Part,
    Shape,
    column_adapter,
    column_type,
    columns_of,
    identifiers,
    mapper_of,
    with_bases,
)

__all__ = [
    "Identifiers",
    "Part",
    "Shape",
    "annotation",
    "check_writable",
    "column_adapter",
    "column_type",
    "columns_of",
    "identifiers",
    "make",
    "mapper_of",
    "readable_columns",
    "settable_columns",
    "with_bases",
]
