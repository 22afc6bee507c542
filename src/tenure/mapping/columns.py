"""The columns of a mapped class: their types, and whether they have to be given."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from inspect import get_annotations
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    Optional,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import (
    Field,
    InstanceOf,
    PydanticSchemaGenerationError,
    TypeAdapter,
    WithJsonSchema,
)
from sqlalchemy import JSON, Column, Enum, Numeric, Sequence, String
from sqlalchemy.orm import ColumnProperty, Mapped, Mapper

from .._private import is_sentinel
from .keys import column_type, property_of


def settable_columns(mapper: Mapper[Any]) -> Iterator[tuple[str, Column[Any]]]:
    """Yield the columns that a payload may set, by attribute."""
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        if _is_public(prop) and isinstance(column, Column) and _takes_values(column):
            yield prop.key, column


def is_generated_key(mapper: Mapper[Any], name: str) -> bool:
    """Whether an attribute is of the primary key, and the database makes its values."""
    return any(
        isinstance(column, Column)
        and column.primary_key
        and (
            column is getattr(column.table, "autoincrement_column", None)
            or column.server_default is not None
            or isinstance(column.default, Sequence)
        )
        for column in mapper.attrs[name].columns
    )


def readable_columns(mapper: Mapper[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the columns and column properties that are loaded with a row."""
    for prop in mapper.column_attrs:
        if _is_public(prop) and not prop.deferred:
            yield prop.key, prop.columns[0]


def _is_public(prop: ColumnProperty[Any]) -> bool:
    return not prop.key.startswith("_")


def _takes_values(column: Column[Any]) -> bool:
    always = column.identity is not None and column.identity.always
    is_computed = column.computed is not None or column.system
    return not (is_computed or always or is_sentinel(column))


def is_filled(mapper: Mapper[Any], column: Column[Any]) -> bool:
    """
    Whether a new row may leave *column* out: something fills it, or it may be null.

    The columns of joined tables that are one attribute are filled together. What a
    relationship fills is not known here.
    """
    prop = property_of(mapper, column)
    columns: Iterable[Any] = (column,) if prop is None else prop.columns
    return any(_is_filled(mapper, each) for each in columns)


def _is_filled(mapper: Mapper[Any], column: Any) -> bool:
    if not isinstance(column, Column):
        return True
    return bool(
        column.nullable
        or column.default is not None
        # Identity() and Computed() are server defaults as well.
        or column.server_default is not None
        or column is getattr(column.table, "autoincrement_column", None)
        or column is mapper.version_id_col
        or column is mapper.polymorphic_on
        or is_sentinel(column)
    )


def annotation(mapper: Mapper[Any], name: str, column: Any) -> Any:
    """Return the type to validate an attribute with, constraints included."""
    declared = _declared(mapper.class_, name)
    kind = _of_column(column) if declared is None else declared
    kind = _schematic(_constrained(kind, column.type))
    is_nullable = getattr(column, "nullable", True)
    return Optional[kind] if is_nullable else kind  # noqa: UP045  # not of a class


def _declared(entity: type[Any], name: str) -> Any:
    """Return the type in ``Mapped[...]`` without ``None``; ``None`` if not declared."""
    for owner in entity.__mro__:
        try:
            written = get_annotations(owner)
            if name not in written:
                continue
            holder = type(name, (), {"__annotations__": {name: written[name]}})
            hints = get_type_hints(
                holder, vars(sys.modules[owner.__module__]), {}, include_extras=True
            )
        except (NameError, AttributeError, TypeError, KeyError):
            # A name that only type checkers, or only a function, know.
            return None
        hint = hints[name]
        origin = get_origin(hint)
        if isinstance(origin, type) and issubclass(origin, Mapped):
            return _without_none(get_args(hint)[0])
        return None
    return None


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        members = tuple(member for member in get_args(kind) if member is not NoneType)
        return Union[members]  # noqa: UP007  # there may be one only
    return kind


def _of_column(column: Any) -> Any:
    # The Python type of JSON is dict, but it can be a list as well.
    return Any if isinstance(column.type, JSON) else column_type(column)


def _constrained(kind: Any, type_: Any) -> Any:
    """Add the constraints of a column's type."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if plain is str and isinstance(type_, Enum):
        return Literal[tuple(type_.enums)]
    if plain is str and isinstance(type_, String) and type_.length:
        return Annotated[kind, Field(max_length=type_.length)]
    if plain is Decimal and isinstance(type_, Numeric) and type_.precision:
        digits = Field(max_digits=type_.precision, decimal_places=type_.scale)
        return Annotated[kind, digits]
    return kind


def _schematic(kind: Any) -> Any:
    """Return *kind*, or its instances as they are, if Pydantic does not know it."""
    try:
        TypeAdapter(kind)
    except PydanticSchemaGenerationError:
        if not isinstance(kind, type):
            return Any
        as_it_is: Any = InstanceOf
        return Annotated[kind, as_it_is(), WithJsonSchema({"title": kind.__name__})]
    return kind
