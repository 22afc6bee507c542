"""A ``Spec`` of a mapped class, for who has written none."""

from __future__ import annotations

from typing import Any, Optional
from weakref import WeakKeyDictionary

from pydantic import create_model
from sqlalchemy.orm.interfaces import MANYTOONE

from ..mapping import annotation, is_filled, mapper_of, settable_columns
from ..references import Ref
from .resource import Spec


def spec_of(entity: type[Any]) -> type[Spec[Any]]:
    """
    Make a ``Spec`` of all columns of a mapped class, and of what it refers to.

    A column must be given if nothing else fills it, and it is no foreign key: of these
    a row gives the column, or the relationship that fills it.

    Raises:
        LoadError: *entity* is no mapped class.
    """
    mapper = mapper_of(entity)
    fields: dict[str, Any] = {}
    reference: Any = Ref
    base: Any = Spec
    for name, column in settable_columns(mapper):
        kind = annotation(mapper, name, column)
        is_optional = is_filled(mapper, column) or bool(column.foreign_keys)
        fields[name] = (Optional[kind], None) if is_optional else (kind, ...)  # noqa: UP045  # not of a class
    for prop in mapper.relationships:
        if prop.direction is MANYTOONE and prop.secondary is None and not prop.viewonly:
            fields[prop.key] = (Optional[reference[prop.mapper.class_]], None)  # noqa: UP045  # as above
    made: type[Spec[Any]] = create_model(
        mapper.class_.__name__,
        __base__=base[entity],
        __module__=entity.__module__,
        **fields,
    )
    _made[made] = entity
    return made


#: What each model was made of.
_made: WeakKeyDictionary[type[Any], type[Any]] = WeakKeyDictionary()


def made_of(model: type[Any]) -> type[Any] | None:
    """Return the mapped class that :func:`spec_of` made a model of, if it did."""
    return _made.get(model)
