"""What mappers say: identifiers, columns, and how to make instances. No I/O."""

from .columns import (
    annotation,
    is_filled,
    is_generated_key,
    readable_columns,
    settable_columns,
)
from .instances import (
    begin,
    check_writable,
    columns_held,
    construct,
    instance_for,
    make,
    new_instance,
)
from .keys import (
    Identifiers,
    Part,
    Shape,
    column_adapter,
    column_type,
    columns_of,
    identifiers,
    mapper_of,
    property_of,
    reverse_sides,
    with_bases,
)
from .unique import UniqueKey, primary_key, unique_keys

__all__ = [
    "Identifiers",
    "Part",
    "Shape",
    "UniqueKey",
    "annotation",
    "begin",
    "check_writable",
    "column_adapter",
    "column_type",
    "columns_held",
    "columns_of",
    "construct",
    "identifiers",
    "instance_for",
    "is_filled",
    "is_generated_key",
    "make",
    "mapper_of",
    "new_instance",
    "primary_key",
    "property_of",
    "readable_columns",
    "reverse_sides",
    "settable_columns",
    "unique_keys",
    "with_bases",
]
