"""
Every way to get an instance of a mapped class.

A new one by its constructor, or without it, and the session's instance of a row. The
constructor of a declarative class takes any attribute. That of a dataclass, or of a
class mapped imperatively, takes some, and the others are set afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from inspect import Parameter, signature
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column, inspect
from sqlalchemy.orm import ColumnProperty, Mapper, Session, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import LoadError
from .keys import mapper_of


class Constructor:
    """How to call a mapped class."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        parameters = list(signature(mapper.class_.__init__).parameters.values())[1:]
        self.takes_any = any(p.kind is Parameter.VAR_KEYWORD for p in parameters)
        named = [
            p
            for p in parameters
            if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
        ]
        self.named = frozenset(p.name for p in named)
        self.required = tuple(p.name for p in named if p.default is Parameter.empty)
        self.read_only = frozenset(
            prop.key
            for prop in mapper.attrs
            if getattr(prop, "viewonly", False)
            or (
                isinstance(prop, ColumnProperty)
                and not isinstance(prop.columns[0], Column)
            )
        )

    def arguments(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments: of *attributes*, and foreign keys that they fill."""
        found = {name: attributes[name] for name in attributes if name in self.named}
        for name in self.required:
            if name not in found and self._is_implied(name, attributes):
                found[name] = self._foreign_key(name, attributes)
        return found

    def _is_implied(self, name: str, attributes: Mapping[str, Any]) -> bool:
        column = self.mapper.columns.get(name)
        if column is None or not column.foreign_keys:
            return False
        return bool(column.nullable) or any(
            relationship.key in attributes and column in relationship.local_columns
            for relationship in self.mapper.relationships
        )

    def _foreign_key(self, name: str, attributes: Mapping[str, Any]) -> Any:
        """Return what a relationship sets a column to; ``None``: not known yet."""
        column = self.mapper.columns[name]
        for relationship in self.mapper.relationships:
            target = attributes.get(relationship.key)
            if target is None or relationship.direction is not MANYTOONE:
                continue
            for local, remote in relationship.local_remote_pairs or ():
                if local is column:
                    state = inspect(target)
                    key = state.mapper.get_property_by_column(remote).key
                    return state.dict.get(key)
        return None


_constructors: WeakKeyDictionary[type[Any], Constructor] = WeakKeyDictionary()


def check_writable(entity: type[Any], attributes: Mapping[str, Any]) -> Constructor:
    """
    Return how to call a class, after a check that *attributes* can be written.

    Raises:
        LoadError: An attribute is read-only.
    """
    constructor = _constructors.get(entity)
    if constructor is None:
        constructor = _constructors[entity] = Constructor(mapper_of(entity))
    if not constructor.read_only.isdisjoint(attributes):
        name = min(constructor.read_only.intersection(attributes))
        raise LoadError(
            f"{entity.__name__}.{name} is read-only, so its value would be lost; "
            f"set a column, or a relationship without viewonly"
        )
    return constructor


def make(entity: type[Any], attributes: Mapping[str, Any]) -> Any:
    """
    Return a new instance of a mapped class with *attributes*; no I/O.

    Raises:
        LoadError: An attribute does not exist, or is read-only.
        TypeError: The constructor has other required arguments.
    """
    constructor = check_writable(entity, attributes)
    if constructor.takes_any:
        return entity(**attributes)
    arguments = constructor.arguments(attributes)
    instance = entity(**arguments)
    _set_others(instance, attributes, arguments)
    return instance


def _set_others(
    instance: Any, attributes: Mapping[str, Any], arguments: Mapping[str, Any]
) -> None:
    """Set what the constructor has not taken."""
    entity = type(instance)
    for name, value in attributes.items():
        if name not in arguments:
            if not hasattr(entity, name):
                raise LoadError(f"{entity.__name__} has no attribute {name!r}")
            setattr(instance, name, value)


def begin(
    entity: type[Any], attributes: Mapping[str, Any]
) -> tuple[Any, dict[str, Any] | None]:
    """
    Return a new instance as :func:`make`, or one whose constructor is still to run.

    That is where it needs more than there is now. What the instance holds is returned
    then, for :func:`construct`.
    """
    try:
        return make(entity, attributes), None
    except TypeError:
        instance = new_instance(mapper_of(entity))
        for name, value in attributes.items():
            setattr(instance, name, value)
        return instance, dict(instance_state(instance).dict)


def construct(
    instance: Any, attributes: Mapping[str, Any], begun: Mapping[str, Any]
) -> None:
    """Call the constructor of an instance; what was set since it was *begun* is kept."""
    entity = type(instance)
    constructor = check_writable(entity, attributes)
    held = instance_state(instance).dict
    since = {n: v for n, v in held.items() if n not in begun or v is not begun[n]}
    arguments = constructor.arguments(attributes)
    entity.__init__(instance, **arguments)
    _set_others(instance, attributes, arguments)
    for name, value in since.items():
        setattr(instance, name, value)


def new_instance(mapper: Mapper[Any]) -> Any:
    """
    Return a new instance, made as SQLAlchemy does for a row: without ``__init__``.

    Other than for a row, listeners of the event ``init`` run. One of them is
    SQLAlchemy's own, which sets the discriminator.
    """
    manager = mapper.class_manager
    instance = manager.new_instance()
    manager.dispatch.init(instance_state(instance), (), {})
    return instance


def columns_held(instance: Any, columns: Iterable[Column[Any]]) -> tuple[Any, ...]:
    """Return columns of a mapped instance, ``None`` for those not loaded; no I/O."""
    state = instance_state(instance)
    mapper = state.mapper
    # The identity is known even if the attributes are expired.
    known = dict(zip(mapper.primary_key, state.identity or (), strict=False))
    return tuple(
        state.dict.get(mapper.get_property_by_column(column).key, known.get(column))
        for column in columns
    )


def instance_for(
    mapper: Mapper[Any],
    identity: tuple[Any, ...],
    session: Session | None,
    others: Iterable[tuple[Column[Any], Any]] = (),
) -> Any:
    """
    Return the session's instance of a row, a new one if there is none.

    Args:
        others: More columns whose values are known, to set in a new instance.
    """
    key = mapper.identity_key_from_primary_key(identity)
    if session is not None:
        present = session.identity_map.get(key)
        if present is not None:
            return present
    instance = mapper.class_manager.new_instance()
    state = instance_state(instance)
    for column, value in (*zip(mapper.primary_key, identity, strict=True), *others):
        state.dict[mapper.get_property_by_column(column).key] = value
    make_transient_to_detached(instance)
    if session is not None:
        session.add(instance)
    return instance
