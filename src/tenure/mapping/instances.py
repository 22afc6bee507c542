"""
New instances of mapped classes, by whatever constructor their class has.

Declarative classes take any attribute. Dataclasses and classes mapped imperatively
take those of their own ``__init__``; the others are set afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import Parameter, signature
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Column, inspect
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import LoadError
from .keys import mapper_of


class Constructor:
    """How a mapped class wants to be called."""

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
        """Give those of *attributes* that are arguments, and what they imply."""
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
        """Give what a relationship makes of a column; ``None``: the flush knows."""
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
    Check that what is set to *attributes* is written; give the class's constructor.

    Raises:
        LoadError: One can only be read.
    """
    constructor = _constructors.get(entity)
    if constructor is None:
        constructor = _constructors[entity] = Constructor(mapper_of(entity))
    if not constructor.read_only.isdisjoint(attributes):
        name = min(constructor.read_only.intersection(attributes))
        raise LoadError(
            f"{entity.__name__}.{name} can only be read: what is set there is written "
            f"nowhere; name a column, or a relationship without viewonly"
        )
    return constructor


def make(entity: type[Any], attributes: Mapping[str, Any]) -> Any:
    """
    Make a new instance of a mapped class with *attributes*; no I/O.

    Raises:
        LoadError: An attribute is not there, or nothing that is set to it is written.
        TypeError: The constructor wants more.
    """
    constructor = check_writable(entity, attributes)
    if constructor.takes_any:
        return entity(**attributes)
    arguments = constructor.arguments(attributes)
    instance = entity(**arguments)
    for name, value in attributes.items():
        if name not in arguments:
            if not hasattr(entity, name):
                raise LoadError(f"{entity.__name__} has no attribute {name!r}")
            setattr(instance, name, value)
    return instance
