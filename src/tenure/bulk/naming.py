"""By which keys a mapped instance is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from sqlalchemy import inspect

from ..errors import SessionError
from ..mapping import Shape, identifiers
from ..references import Proxy, instance_found, key_of, token_of
from .lookup import part_values
from .report import Failure

#: A key, and its columns.
Named = tuple[Proxy, tuple[Any, ...]]


def reference_to(instance: Any) -> Proxy:
    """
    Give a proxy for the row that the set attributes of *instance* name.

    Raises:
        SessionError: They name none.
    """
    state = inspect(instance)
    shape = _identifier_of(instance)
    if shape is None:
        raise SessionError(
            f"{instance!r} has no complete identifier set, so it refers to no row"
        )
    proxy = Proxy(shape, tuple(state.dict[name] for name in shape.names))
    if state.persistent:
        row = tuple(getattr(instance, c.key) for c in identifiers(shape.mapper).fetched)
        instance_found(proxy, row, instance)
    return proxy


def _identifier_of(instance: Any) -> Shape | None:
    """Give the first identifier all of whose attributes are set and not null."""
    return next(complete_identifiers(type(instance), inspect(instance).dict), None)


def complete_identifiers(entity: type[Any], held: Mapping[str, Any]) -> Iterator[Shape]:
    """Give the identifiers all of whose attributes are in *held* and not null."""
    for names, shape in identifiers(entity).spellings.items():
        if all(held.get(name) is not None for name in names):
            yield shape


def name_of(instance: Any) -> tuple[type[Any], dict[str, Any]]:
    """Give a class and the key that names an instance, for messages."""
    shape, held = _identifier_of(instance), inspect(instance).dict
    names = () if shape is None else shape.names
    return type(instance), {name: held[name] for name in names}


def one_of_each(shapes: Iterable[Shape]) -> list[Shape]:
    """Give the first spelling of each identifier."""
    found: dict[frozenset[Any], Shape] = {}
    for shape in shapes:
        found.setdefault(frozenset(shape.columns), shape)
    return list(found.values())


def keys_of(instance: Any) -> Iterator[Named]:
    """Give every identifier that is complete, the first one first."""
    held = inspect(instance).dict
    for shape in one_of_each(complete_identifiers(type(instance), held)):
        key = tuple(held[name] for name in shape.names)
        columns: list[Any] = []
        for part, value in zip(shape.parts, key, strict=True):
            known = part_values(part, value, lambda proxy: proxy._tenure_row)
            if known is None:
                break
            columns.extend(known)
        else:
            yield Proxy(shape, key), tuple(columns)


def choose(
    keys: Iterable[Proxy], identity: Callable[[Proxy], tuple[Any, ...] | None]
) -> Proxy | Failure | None:
    """
    Give the first of a value's keys that names a row; a failure if others disagree.

    Args:
        identity: Gives the primary key of the row that a key names.
    """
    found = [(key, named) for key in keys if (named := identity(key)) is not None]
    rows = tuple(dict.fromkeys(named for _, named in found))
    if len(rows) > 1:
        several: dict[str, Any] = {}
        for key, _ in found:
            several |= key_of(key)
        entity = found[0][0]._tenure_shape.entity
        return Failure(entity, several, "ambiguous", rows=rows)
    return found[0][0] if found else None


def token_of_key(shape: Shape, columns: tuple[Any, ...]) -> Any:
    """Give what tells a key from others in a dictionary, whatever its types."""
    try:
        hash(columns)
    except TypeError:
        return shape, tuple(map(token_of, columns))
    return shape, columns
