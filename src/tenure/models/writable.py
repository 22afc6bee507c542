"""Which attributes of a mapped class a payload may set."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from sqlalchemy import Column
from sqlalchemy.orm import Mapper, RelationshipProperty

from ..errors import SessionError, nearest
from ..mapping import is_generated_key, settable_columns


def writable_columns(mapper: Mapper[Any]) -> Iterator[tuple[str, Column[Any]]]:
    """Yield the columns that a payload may set, by attribute."""
    for name, column in settable_columns(mapper):
        if is_writable(mapper, name):
            yield name, column


def writable_relationships(
    mapper: Mapper[Any],
) -> Iterator[RelationshipProperty[Any]]:
    """Yield the relationships that a payload may set."""
    for prop in mapper.relationships:
        if (
            not prop.key.startswith("_")
            and not prop.viewonly
            and prop.lazy not in ("dynamic", "write_only", "noload")
            and is_writable(mapper, prop.key)
        ):
            yield prop


def is_writable(mapper: Mapper[Any], name: str) -> bool:
    """
    Whether a payload may set an attribute.

    Those that the class lists in ``__writable__``; all but a primary key that the
    database generates where it lists none. The attribute that tells the class is read.

    Raises:
        SessionError: The class lists what is no attribute of it.
    """
    listed = _listed(mapper)
    if listed is None:
        return name in mapper.relationships or not is_generated_key(mapper, name)
    column: Any = mapper.polymorphic_on
    is_kind = column is not None and mapper.get_property_by_column(column).key == name
    return name in listed or is_kind


@lru_cache(None)
def _listed(mapper: Mapper[Any]) -> frozenset[str] | None:
    names: Any = getattr(mapper.class_, "__writable__", None)
    if names is None:
        return None
    names = [names] if isinstance(names, str) else [*names]
    for name in names:
        if name not in mapper.attrs:
            raise SessionError(
                f"{mapper.class_.__name__}.__writable__ lists {name!r}, which is no "
                f"attribute of it{nearest(name, mapper.attrs.keys())}"
            )
    return frozenset(names)
