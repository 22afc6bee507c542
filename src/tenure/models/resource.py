"""
Mapped classes as Pydantic types, and Pydantic models bound to mapped classes.

A :class:`Resource` is its own schema, read off its mapper. A :class:`Spec` says which
attributes of an entity an input has, with rules of its own; its fields are attributes
of the entity, relationships are references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema
from sqlalchemy.orm import Mapper

from ..errors import LoadError
from ..mapping import make, mapper_of
from ..references import Key, Proxy, attempted, exactly, reference_in, target_of
from .values import value_validator

T = TypeVar("T")


class Resource:
    """
    Makes a mapped class a Pydantic type: a field, a body, a response.

    ::

        class Flight(Resource, Base):
            __tablename__ = "flight"

            number: Mapped[int] = mapped_column(primary_key=True)
            origin_id: Mapped[int] = mapped_column(ForeignKey("airport.id"))
            origin: Mapped[Airport] = relationship()

        Flight.resource_validate({"number": 1, "origin": "CDG"})

    What is accepted is read off the mapper. A relationship takes a reference (an
    instance, a scalar, or exactly the attributes of one identifier) or a nested
    value. What was not given stays unset. Instances are made without ``__init__``.

    Validated inside of a bulk, values and references register with it. Written out,
    a row is its columns; no I/O.
    """

    @classmethod
    def resource_validate(cls, data: Any) -> Self:
        """
        Give the instance that a mapping describes; an instance is given as it is.

        Raises:
            ValidationError: Pydantic's; nothing was registered.
        """
        return cast(Self, value_validator(cls).one.validate_python(data))

    @classmethod
    def resource_validate_json(cls, text: str | bytes) -> Self:
        """
        As :meth:`resource_validate`, of JSON.

        Raises:
            ValidationError: Pydantic's; nothing was registered.
        """
        return cast(Self, value_validator(cls).one.validate_json(text))

    @classmethod
    def resource_validate_many(cls, data: Any) -> list[Self]:
        """
        As :meth:`resource_validate`, of a list: all of it is good, or none.

        Raises:
            ValidationError: Pydantic's; nothing was registered.
        """
        many = value_validator(cls).many
        return cast(list[Self], attempted(data, many.validate_python))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Ask the validator of the class, which reads the mapper when first asked."""
        return value_validator(cls).core_schema

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the class, and those it leads to."""
        return value_validator(cls).json_schema(handler)


def is_exact(schema: Any) -> bool:
    """Whether a core schema is that of a ``Spec``, around the one of its fields."""
    return bool(
        schema.get("type") == "function-wrap"
        and schema["function"]["function"] is exactly
    )


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

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate as any model; a refused one leaves nothing in the bulk."""
        for field in cls.model_fields.values():
            if any(isinstance(item, Key) and item.composed for item in field.metadata):
                # Or a default would be taken, and nothing be composed.
                field.validate_default = True
        schema = handler(source)
        # As part of another model a complete one comes as it was made.
        if is_exact(schema):
            return schema
        # What refers to the model, the model itself for one, means all of it.
        inner: Any = {key: value for key, value in schema.items() if key != "ref"}
        return core_schema.no_info_wrap_validator_function(
            exactly, inner, ref=schema.get("ref")
        )

    def to_resource(self) -> T:
        """
        Make a new instance of the mapped class from the fields that were set.

        References become the instances they stand for; no I/O.

        Raises:
            UnresolvedReferenceError: A reference is not resolved yet.
        """
        entity = entity_of(type(self))
        values = {
            name: as_attribute(value) for name, value in given_fields(self).items()
        }
        return cast(T, make(entity, values))


def given_fields(spec: Spec[Any]) -> dict[str, Any]:
    """Give the attributes that *spec* sets: fields that were set or have a default."""
    held, given = spec.__dict__, spec.model_fields_set
    return {
        name: held[name]
        for name in type(spec).model_fields
        if name in given or held[name] is not None
    }


def as_attribute(value: Any, instance: Callable[[Any], Any] = lambda it: it) -> Any:
    """
    Give what an attribute of a mapped instance gets for what a payload holds.

    Args:
        instance: Gives the instance to use for one that was given.

    Raises:
        UnresolvedReferenceError: A reference is not resolved yet.
    """
    if type(value) is Proxy:
        return target_of(value)
    if isinstance(value, Spec):
        return value.to_resource()
    if isinstance(value, (list, set)):
        # Most collections hold plain values and are passed on as they are.
        items = [as_attribute(item, instance) for item in value]
        same = all(new is old for new, old in zip(items, value, strict=True))
        return value if same else (items if isinstance(value, list) else set(items))
    if isinstance(value, dict):
        found = {key: as_attribute(item, instance) for key, item in value.items()}
        return value if all(found[key] is value[key] for key in value) else found
    if not hasattr(value, "_sa_instance_state"):
        return value
    found = reference_in(value)
    return target_of(found) if type(found) is Proxy else instance(found)


def instances_in(value: Any) -> Iterator[Any]:
    """Give the references and mapped instances of an attribute."""
    if isinstance(value, (list, tuple, set, frozenset)):
        for item in value:
            yield from instances_in(item)
    elif isinstance(value, dict):
        yield from instances_in([*value.values()])
    elif isinstance(value, Spec):
        for part in given_fields(value).values():
            yield from instances_in(part)
    elif type(value) is Proxy:
        yield value
    elif hasattr(value, "_sa_instance_state"):
        yield reference_in(value)


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
        f"derive it from tenure.Spec[YourClass]"
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
