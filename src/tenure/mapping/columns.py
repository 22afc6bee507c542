"""What Pydantic validates a mapped column with: its annotation, else its type."""

from __future__ import annotations

import sys
from collections.abc import Iterator
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
from sqlalchemy import JSON, Column, Enum, Numeric, String
from sqlalchemy.orm import ColumnProperty, Mapped, Mapper

from .keys import column_type


def settable_columns(mapper: Mapper[Any]) -> Iterator[tuple[str, Column[Any]]]:
    """Give the columns that a payload may set, by attribute."""
    for prop in mapper.column_attrs:
        column = prop.columns[0]
        if _is_public(prop) and isinstance(column, Column) and _takes_values(column):
            yield prop.key, column


def readable_columns(mapper: Mapper[Any]) -> Iterator[tuple[str, Any]]:
    """Give the columns, and what is computed like one, that every row is loaded with."""
    for prop in mapper.column_attrs:
        if _is_public(prop) and not prop.deferred:
            yield prop.key, prop.columns[0]


def _is_public(prop: ColumnProperty[Any]) -> bool:
    return not prop.key.startswith("_")


def _takes_values(column: Column[Any]) -> bool:
    always = column.identity is not None and column.identity.always
    is_marker = getattr(column, "_insert_sentinel", False)
    return not (column.computed is not None or column.system or always or is_marker)


def annotation(mapper: Mapper[Any], name: str, column: Any) -> Any:
    """Give the type of the values of an attribute, its constraints included."""
    declared = _declared(mapper.class_, name)
    kind = _of_column(column) if declared is None else declared
    kind = _schematic(_constrained(kind, column.type))
    is_nullable = getattr(column, "nullable", True)
    return Optional[kind] if is_nullable else kind  # noqa: UP045  # not of a class


def _declared(entity: type[Any], name: str) -> Any:
    """Give what ``Mapped[...]`` says, without ``None``; ``None`` if nothing does."""
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
            # A name that exists for type checkers only, or inside of a function.
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
    # JSON says dict, but holds lists as well.
    return Any if isinstance(column.type, JSON) else column_type(column)


def _constrained(kind: Any, type_: Any) -> Any:
    """Add what a column's type does not let pass."""
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
    """Give what Pydantic takes for a type that it does not know: its instances."""
    try:
        TypeAdapter(kind)
    except PydanticSchemaGenerationError:
        if not isinstance(kind, type):
            return Any
        as_it_is: Any = InstanceOf
        return Annotated[kind, as_it_is(), WithJsonSchema({"title": kind.__name__})]
    return kind
