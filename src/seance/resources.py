"""
Pydantic models bound to mapped classes.

A :class:`Spec` says which attributes of an entity an input has, with rules of
its own; its fields are attributes of the entity, relationships are references.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar, cast

from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Mapper

from .errors import LoadError
from .keys import mapper_of
from .references import Proxy, target_of

T = TypeVar("T")


class Spec(BaseModel, Generic[T]):
    """
    A Pydantic model of (some of) the attributes of a mapped class.

    ::

        class FlightIn(Spec[Flight]):
            number: int
            origin: Ref[Airport]

    Fields carry the names of attributes; what an input calls them is an alias.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    def to_resource(self) -> T:
        """
        Make a new instance of the mapped class from the fields that were set.

        References become the instances they stand for; no I/O.

        Raises:
            UnresolvedReferenceError: A reference is not resolved yet.
        """
        entity = entity_of(type(self))
        values = {}
        for name in type(self).model_fields:
            value = self.__dict__[name]
            if name in self.model_fields_set or value is not None:
                values[name] = target_of(value) if type(value) is Proxy else value
        return cast(T, entity(**values))


def entity_of(model: type[Any]) -> type[Any]:
    """
    Give the mapped class that *model* is bound to.

    Raises:
        LoadError: It is not a ``Spec`` of a mapped class.
    """
    for base in getattr(model, "__mro__", ()):
        metadata = base.__dict__.get("__pydantic_generic_metadata__")
        if metadata and metadata["origin"] is Spec:
            return mapper_of(metadata["args"][0]).class_
    raise LoadError(
        f"{getattr(model, '__name__', model)!r} is not bound to a mapped class; "
        f"derive it from seance.Spec[YourClass]"
    )


def check_fields(model: type[BaseModel], mapper: Mapper[Any]) -> None:
    """
    Check that every field of *model* is an attribute of the mapped class.

    Raises:
        LoadError: One is not.
    """
    for name in model.model_fields:
        if name not in mapper.attrs:
            raise LoadError(
                f"{model.__name__}.{name} is no attribute of "
                f"{mapper.class_.__name__}, which has "
                f"{', '.join(mapper.attrs.keys())}"
            )
