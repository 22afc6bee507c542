"""
References inside of payloads and of the mapped instances made from them.

A mapped instance may hold references that are not resolved. They lie in its
``__dict__`` without SQLAlchemy's knowledge: whatever it does with them asks them for
a state they do not have, which is an error that names the key. Once they are
resolved they are set through SQLAlchemy, with all that this means.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, NoReturn
from uuid import UUID

from pydantic import BaseModel, RootModel
from sqlalchemy import inspect
from sqlalchemy.orm import RelationshipProperty
from sqlalchemy.orm.collections import collection_adapter

from ..errors import SessionError
from .placeholders import is_placeholder, reference_in
from .proxy import Proxy, is_resolved, key_of, target_of

Loc = tuple[int | str, ...]


class Unconnected(list[Any]):
    """
    The items of a collection that SQLAlchemy does not know of, references among them.
    """

    @property
    def _sa_adapter(self) -> NoReturn:
        for _, found in contents(list(self)):
            if type(found) is Proxy:
                target_of(found)
        raise SessionError(
            f"a collection of {len(self)} references is not connected to its instance; "
            f"bulk.add() the instance and bulk.resolve() before it is written"
        )


def is_unresolved(value: Any) -> bool:
    """Whether *value* is a reference that is not resolved."""
    return type(value) is Proxy and not is_resolved(value)


def as_given(relationship: RelationshipProperty[Any], value: Any) -> tuple[Any, bool]:
    """
    Give what a payload gave for a relationship: instances where they are known.

    And whether it has to wait: for a reference that is not resolved, or since an
    instance that it refers to waits for such a reference on the other side.
    """
    if not relationship.uselist:
        value = _meant(value)
        if value is None or is_unresolved(value):
            return value, value is not None
        value = target_of(value) if type(value) is Proxy else value
        return value, _waits(relationship, value)
    items = list(map(_meant, value))
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
    Set a relationship to what :func:`as_given` gave.

    Args:
        waits: Leave it unconnected, as all of an instance is while one of its
            references is not resolved: others must not be led to that.
    """
    state = inspect(instance)
    if relationship.uselist:
        state.info.setdefault(_GIVEN, set()).add(relationship.key)
    if not waits:
        connect(instance, relationship, value)
    else:
        value = Unconnected(value) if relationship.uselist else value
        state.dict[relationship.key] = value


def _meant(value: Any) -> Any:
    """Give the reference that a placeholder is of: it is no instance to SQLAlchemy."""
    return reference_in(value) if is_placeholder(value) else value


def _waits(relationship: RelationshipProperty[Any], target: Any) -> bool:
    """Whether *target* could not be told that something refers to it."""
    held = inspect(target).dict
    return any(
        type(held.get(reverse.key)) in (Proxy, Unconnected)
        for reverse in relationship._reverse_property
    )


def connect(instance: Any, relationship: RelationshipProperty[Any], value: Any) -> None:
    """Set a relationship through SQLAlchemy, whatever kind of collection it is."""
    factory = relationship.collection_class
    if not relationship.uselist:
        setattr(instance, relationship.key, value)
        return
    items = items_of(value)
    held = inspect(instance).dict.get(relationship.key)
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
    """Give what a collection of any kind holds."""
    is_keyed = isinstance(collection, Mapping)
    return list(collection.values() if is_keyed else collection)


def assign(instance: Any, name: str, value: Any) -> None:
    """Set an attribute, a relationship by :func:`connect`."""
    relationship = inspect(type(instance)).relationships.get(name)
    if relationship is None:
        setattr(instance, name, value)
    else:
        connect(instance, relationship, value)


def unconnected(instance: Any) -> dict[str, Any]:
    """
    Give what lies in an instance without SQLAlchemy's knowledge, by relationship.

    What SQLAlchemy was told of has a history; that of a row was loaded.
    """
    # Asked of every value of a bulk.
    state = instance._sa_instance_state
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
    """Take out of an instance what is :func:`unconnected`, and give it."""
    found = unconnected(instance)
    held = inspect(instance).dict
    for name in found:
        del held[name]
    return found


def connect_all(instances: Iterable[Any]) -> None:
    """
    Set through SQLAlchemy whatever lies in *instances* without its knowledge.

    Raises:
        UnresolvedReferenceError: A reference is not resolved; nothing was changed.
    """
    waiting = [
        (instance, name, _targets(value))
        for instance in instances
        for name, value in unconnected(instance).items()
    ]
    # An event of one must not meet what another one still hides from SQLAlchemy.
    for instance, name, _ in waiting:
        del inspect(instance).dict[name]
    for instance, name, value in waiting:
        connect(instance, inspect(type(instance)).relationships[name], value)


def _targets(value: Any) -> Any:
    if isinstance(value, list):
        return [_targets(item) for item in value]
    return target_of(value) if type(value) is Proxy else value


def is_waiting(instance: Any) -> bool:
    """Whether an instance, or one it hides from SQLAlchemy, waits for a reference."""
    waiting = [instance]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if is_unresolved(value):
            return True
        if type(value) is Unconnected:
            waiting += value
        elif type(value) is not Proxy and id(value) not in seen:
            seen.add(id(value))
            waiting += unconnected(value).values()
    return False


def mark_made(instance: Any) -> None:
    """Remember that an instance was made from data while no bulk was there."""
    inspect(instance).info[_MADE] = True


def is_made(instance: Any) -> bool:
    """Whether :func:`mark_made` was called with an instance that is no row yet."""
    state = instance._sa_instance_state
    # Not state.info, which makes one.
    return state.key is None and _MADE in state.__dict__.get("info", ())


def is_given(instance: Any, name: str) -> bool:
    """Whether a payload said all that is in a collection of an instance."""
    state = instance._sa_instance_state
    return name in state.__dict__.get("info", {}).get(_GIVEN, ())


_MADE = "tenure.made"
_GIVEN = "tenure.given"


def relationship_names(mapper: Any) -> list[str]:
    """Give the names of the relationships of a mapper."""
    found: list[str] = mapper.relationships.keys()
    return found


# Values that hold nothing else.
_PLAIN = frozenset(
    (
        *(NoneType, str, bytes, int, float, bool, Decimal, UUID),
        *(date, datetime, time, timedelta),
    )
)


# Pydantic's locations do not name the root of a RootModel.
_SAME_PLACE = object()


def contents(root: Any) -> Iterator[tuple[Loc, Any]]:
    """
    Give the references and mapped instances that a payload holds, and where.

    Whatever else it cannot look into is given, too. An instance is given once; of
    one that is a row already, nothing is.
    """
    stack: list[tuple[Loc, Any]] = [((), root)]
    seen: set[int] = set()
    while stack:
        loc, value = stack.pop()
        if type(value) in _PLAIN:
            continue
        if type(value) is not Proxy and hasattr(value, "_sa_instance_state"):
            # A placeholder means a reference, or the row that it became.
            value = reference_in(value)
        inner = _inside(value)
        if type(value) is Proxy or inner is None:
            yield loc, value
        elif hasattr(value, "_sa_instance_state"):
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield loc, value
        stack.extend(
            (loc if name is _SAME_PLACE else (*loc, name), part)
            for name, part in reversed(inner or ())
        )


def _inside(value: Any) -> list[tuple[Any, Any]] | None:
    """Give the parts of a value by name or position; ``None``: they are not known."""
    if type(value) is Proxy:
        return [(name, part) for name, part in key_of(value).items()]
    if hasattr(value, "_sa_instance_state"):
        state = inspect(value)
        if state.key is not None:
            return []
        names = relationship_names(state.mapper)
        return [(name, state.dict[name]) for name in names if name in state.dict]
    if isinstance(value, RootModel):
        return [(_SAME_PLACE, value.root)]
    if isinstance(value, BaseModel):
        return [*value.__dict__.items(), *(value.model_extra or {}).items()]
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(f.name, getattr(value, f.name, None)) for f in fields(value)]
    return [] if isinstance(value, Enum) else None
