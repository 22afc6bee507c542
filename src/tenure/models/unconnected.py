"""
Relationships of new instances that hold references that are not resolved.

Such a reference is in the ``__dict__`` of the instance only, so that SQLAlchemy does
not know of it: it would need the state of an instance, and the reference has none.
Once all references are resolved, the relationship is set through SQLAlchemy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from sqlalchemy import inspect
from sqlalchemy.orm import RelationshipProperty
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.collections import collection_adapter

from .._private import UnmanagedList
from ..errors import SessionError
from ..mapping import reverse_sides
from ..references import (
    Proxy,
    contents,
    is_placeholder,
    is_unresolved,
    reference_in,
    relationship_names,
    target_of,
)


class Unconnected(UnmanagedList):
    """The items of a collection that SQLAlchemy does not know of."""

    def refuse(self) -> NoReturn:
        """Raise: what is not resolved, or that the collection is not connected."""
        for _, found in contents(list(self)):
            if type(found) is Proxy:
                target_of(found)
        raise SessionError(
            f"a collection of {len(self)} references is not connected to its instance; "
            f"bulk.add() the instance and bulk.resolve() before it is written"
        )


def as_given(relationship: RelationshipProperty[Any], value: Any) -> tuple[Any, bool]:
    """
    Return what to set a relationship to, and whether that has to wait.

    It waits for a reference that is not resolved, and for an instance whose own
    relationship back waits for one.
    """
    if not relationship.uselist:
        value = _unwrapped(value)
        if value is None or is_unresolved(value):
            return value, value is not None
        value = target_of(value) if type(value) is Proxy else value
        return value, _waits(relationship, value)
    items = list(map(_unwrapped, value))
    if any(map(is_unresolved, items)):
        return items, True
    items = [target_of(item) if type(item) is Proxy else item for item in items]
    return items, any(_waits(relationship, item) for item in items)


def set_relationship(
    instance: Any,
    relationship: RelationshipProperty[Any],
    value: Any,
    *,
    waits: bool,
) -> None:
    """
    Set a relationship to what :func:`as_given` returned.

    Args:
        waits: Do not tell SQLAlchemy. If one relationship of an instance waits, all
            do: else cascades could reach the instance from the other side.
    """
    state = instance_state(instance)
    if relationship.uselist:
        state.info.setdefault(_GIVEN, set()).add(relationship.key)
    if not waits:
        connect(instance, relationship, value)
    else:
        value = Unconnected(value) if relationship.uselist else value
        state.dict[relationship.key] = value


def _unwrapped(value: Any) -> Any:
    """Return the reference of a placeholder, which SQLAlchemy could not use."""
    return reference_in(value) if is_placeholder(value) else value


def _waits(relationship: RelationshipProperty[Any], target: Any) -> bool:
    """Whether a relationship of *target* back to this one is unconnected."""
    held = inspect(target).dict
    return any(
        type(held.get(reverse.key)) in (Proxy, Unconnected)
        for reverse in reverse_sides(relationship)
    )


def connect(instance: Any, relationship: RelationshipProperty[Any], value: Any) -> None:
    """Set a relationship through SQLAlchemy, whatever kind of collection it is."""
    factory = relationship.collection_class
    if not relationship.uselist:
        setattr(instance, relationship.key, value)
        return
    items = items_of(value)
    held = instance_state(instance).dict.get(relationship.key)
    if held is not None and list(map(id, items_of(held))) == list(map(id, items)):
        return
    if factory is None or factory is list:
        setattr(instance, relationship.key, items)
        return
    setattr(instance, relationship.key, factory())
    collection = collection_adapter(getattr(instance, relationship.key))
    for item in items:
        collection.append_with_event(item)


def items_of(collection: Any) -> list[Any]:
    """Return the items of a collection of any kind."""
    is_keyed = isinstance(collection, Mapping)
    return list(collection.values() if is_keyed else collection)


def assign(instance: Any, name: str, value: Any) -> None:
    """Set an attribute, a relationship by :func:`connect`."""
    relationship = inspect(type(instance)).relationships.get(name)
    if relationship is None:
        setattr(instance, name, value)
    else:
        connect(instance, relationship, value)


def unconnected_in(instance: Any) -> dict[str, Any]:
    """
    Return what an instance holds that SQLAlchemy does not know of, by relationship.

    What was set through SQLAlchemy has a history; what a row has was loaded.
    """
    # Called for each value of a bulk.
    state = instance_state(instance)
    names = relationship_names(state.mapper)
    if not names or state.key is not None:
        return {}
    held, told = state.dict, state.committed_state
    return {
        name: held[name]
        for name in names
        if name in held and name not in told and held[name] is not None
    }


def lift(instance: Any) -> dict[str, Any]:
    """Remove what is :func:`unconnected_in` from an instance, and return it."""
    found = unconnected_in(instance)
    held = instance_state(instance).dict
    for name in found:
        del held[name]
    return found


def connect_all(instances: Iterable[Any]) -> None:
    """
    Set through SQLAlchemy whatever is :func:`unconnected_in` in *instances*.

    Raises:
        UnresolvedReferenceError: A reference is not resolved; nothing was changed.
    """
    found = [
        (instance, name, _targets(value))
        for instance in instances
        for name, value in unconnected_in(instance).items()
    ]
    # First all of them: setting one fires events that read the others.
    for instance, name, _ in found:
        del instance_state(instance).dict[name]
    for instance, name, value in found:
        connect(instance, inspect(type(instance)).relationships[name], value)


def _targets(value: Any) -> Any:
    if isinstance(value, list):
        return [_targets(item) for item in value]
    return target_of(value) if type(value) is Proxy else value


def is_waiting(instance: Any) -> bool:
    """Whether an instance, or one that it leads to, has an unresolved reference."""
    left = [instance]
    seen: set[int] = set()
    while left:
        value = left.pop()
        if is_unresolved(value):
            return True
        if type(value) is Unconnected:
            left += value
        elif type(value) is not Proxy and id(value) not in seen:
            seen.add(id(value))
            left += unconnected_in(value).values()
    return False


_GIVEN = "tenure.given"


def is_given(instance: Any, name: str) -> bool:
    """Whether a payload gave all items of a collection of an instance."""
    info = instance_state(instance).__dict__.get("info", {})
    return name in info.get(_GIVEN, ())
