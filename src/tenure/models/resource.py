"""
Mapped classes as Pydantic types, and Pydantic models bound to mapped classes.

A :class:`Resource` is a mapped class whose schema is read from its mapper. A
:class:`Spec` is a model of some attributes of a mapped class, with constraints of its
own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ForwardRef, Generic, NamedTuple, Self, TypeVar, cast, get_args
from weakref import WeakKeyDictionary

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema
from sqlalchemy import inspect
from sqlalchemy.orm import Mapper

from .._private import STATE
from ..errors import LoadError, nearest
from ..mapping import make, mapper_of, settable_columns
from ..references import (
    PLAIN,
    Key,
    Proxy,
    items_in,
    rebuilt,
    reference_in,
    register_all,
    register_held,
    target_of,
)
from .json_schema import describe
from .values import value_validator

T = TypeVar("T")


class Resource:
    """
    Makes a mapped class a Pydantic type: a field, a body, a response.

    ::

        class Flight(Resource, Base):
            __tablename__ = "flight"

            id: Mapped[int] = mapped_column(primary_key=True)
            number: Mapped[int] = mapped_column(unique=True)
            origin_id: Mapped[int] = mapped_column(ForeignKey("airport.id"))
            origin: Mapped[Airport] = relationship()

        Flight.resource_validate({"number": 1, "origin": "CDG"})

    The schema is read from the mapper. A payload may set all columns and relationships,
    but not a primary key that the database generates; or exactly the attributes that the
    class lists in ``__writable__``, if it has one. A relationship takes a reference (an
    instance, a scalar, or exactly the attributes of one identifier) or a nested
    value. What was not given stays unset. Instances are made without ``__init__``.

    Values and references validated inside of a bulk register with it. A row is
    serialized as its columns; no I/O.
    """

    @classmethod
    def resource_validate(cls, data: Any) -> Self:
        """
        Return the instance that a mapping describes; an instance as it is.

        Raises:
            ValidationError: Pydantic's; nothing was registered.
        """
        return cast(Self, value_validator(cls).one.validate_python(data))

    @classmethod
    def resource_validate_json(cls, text: str | bytes) -> Self:
        """
        Return the instance that JSON describes.

        Raises:
            ValidationError: Pydantic's; nothing was registered.
        """
        return cast(Self, value_validator(cls).one.validate_json(text))

    @classmethod
    def resource_validate_many(cls, data: Any) -> list[Self]:
        """
        Return the instances that a list of mappings describes.

        Raises:
            ValidationError: Pydantic's, if one is invalid; nothing was registered.
        """
        many = value_validator(cls).many
        return cast(list[Self], register_all(data, many.validate_python))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return a schema that calls the validator of the class."""
        return value_validator(cls).core_schema

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema of the class, and of those it leads to."""
        return cast("dict[str, Any]", describe(value_validator(cls), handler))


def is_spec_schema(schema: Any) -> bool:
    """Whether a core schema is the one that :class:`Spec` wraps around its fields."""
    return bool(
        schema.get("type") == "function-wrap"
        and schema["function"]["function"] is register_held
    )


class Spec(BaseModel, Generic[T]):
    """
    A Pydantic model of (some of) the attributes of a mapped class.

    ::

        class FlightIn(Spec[Flight]):
            number: int
            origin: Ref[Airport]

    Fields have the names of attributes; an alias is the name in the input. One that a
    ``Key`` is composed of, or that says ``exclude=True``, need not be an attribute.

    Raises:
        LoadError: When the class is made: the mapped class has no such attribute.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuse fields that the mapped class lacks."""
        super().__pydantic_init_subclass__(**kwargs)
        for base in cls.__mro__:
            metadata = base.__dict__.get("__pydantic_generic_metadata__")
            if metadata and metadata["origin"] is Spec:
                _refuse_unknown(cls, inspect(metadata["args"][0], raiseerr=False))
                return

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return the schema of any model; an invalid one registers nothing."""
        for field in cls.model_fields.values():
            if _is_composed(field):
                # Else Pydantic would use the default, and not compose the key.
                field.validate_default = True
        schema = handler(source)
        # Pydantic returns the finished schema if another model has this one.
        if is_spec_schema(schema):
            return schema
        # References to the model, such as its own, must lead to the wrapper.
        inner: Any = {key: value for key, value in schema.items() if key != "ref"}
        return core_schema.no_info_wrap_validator_function(
            register_held, inner, ref=schema.get("ref")
        )

    def to_resource(self) -> T:
        """
        Return a new instance of the mapped class with the fields that were set.

        With the instances that references stand for; no I/O.

        Raises:
            UnresolvedReferenceError: A reference is not resolved yet.
        """
        entity = entity_of(type(self))
        values = {
            name: as_attribute(value) for name, value in given_fields(self).items()
        }
        return cast(T, make(entity, values))


def given_fields(spec: Spec[Any]) -> dict[str, Any]:
    """
    Return what a new row gets of *spec*: what Pydantic made of it, whoever set it.

    That is the fields that were set or are not ``None``, and the computed ones that are
    columns of the mapped class.
    """
    held, given = spec.__dict__, spec.model_fields_set
    fields = _fields_of(type(spec))
    found = {
        name: held[name]
        for name in fields.written
        if name in given or held[name] is not None
    }
    for name, parts in fields.composed:
        if not given.isdisjoint(parts):
            found[name] = held[name]
    for name in fields.computed:
        found[name] = getattr(spec, name)
    return found


def defaulted_fields(spec: Spec[Any]) -> frozenset[str]:
    """Return those of :func:`given_fields` that nobody gave: an update leaves them."""
    held, given, fields = spec.__dict__, spec.model_fields_set, type(spec).model_fields
    if len(given) == len(fields):
        return frozenset()
    return frozenset(
        name
        for name, info in fields.items()
        if name not in given and held[name] is not None and not _is_composed(info)
    )


def _is_composed(field: FieldInfo) -> bool:
    """Whether a field takes its key from other fields."""
    return bool(_parts_of(field))


def _parts_of(field: FieldInfo) -> frozenset[str]:
    return frozenset(
        part
        for item in field.metadata
        if isinstance(item, Key)
        for part in item.composed.values()
    )


def composed_fields(model: type[BaseModel]) -> dict[str, frozenset[str]]:
    """Return the fields of *model* that take their key from others, and from which."""
    parts = {name: _parts_of(info) for name, info in model.model_fields.items()}
    return {name: of for name, of in parts.items() if of}


class _Fields(NamedTuple):
    """What becomes of the fields of a ``Spec``."""

    written: tuple[str, ...]
    unwritten: frozenset[str]
    composed: tuple[tuple[str, frozenset[str]], ...]
    computed: tuple[str, ...]


_fields: WeakKeyDictionary[type[BaseModel], _Fields] = WeakKeyDictionary()


def _fields_of(model: type[BaseModel]) -> _Fields:
    found = _fields.get(model)
    if found is None:
        entity = mapper_of(entity_of(model)).class_
        composed = composed_fields(model)
        parts = frozenset().union(*composed.values())
        unwritten = frozenset(
            name
            for name, field in model.model_fields.items()
            if (name in parts or field.exclude) and not hasattr(entity, name)
        )
        found = _fields[model] = _Fields(
            tuple(name for name in model.model_fields if name not in unwritten),
            unwritten,
            tuple(composed.items()),
            computed_attributes(model),
        )
    return found


def unwritten_fields(model: type[BaseModel]) -> frozenset[str]:
    """
    Return the fields of a ``Spec`` that are no attributes of its class, on purpose.

    A key is composed of them, or they say ``exclude=True``.
    """
    return _fields_of(model).unwritten


def computed_attributes(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the computed fields of a ``Spec`` that are columns of its class."""
    computed = model.__pydantic_decorators__.computed_fields
    if not computed:
        return ()
    known = dict(settable_columns(mapper_of(entity_of(model))))
    return tuple(name for name in computed if name in known)


def names_accepted(model: type[BaseModel], name: str) -> set[str]:
    """Return the names that an input may use for the field *name* of *model*."""
    info = model.model_fields[name]
    config = model.model_config
    alias = info.validation_alias
    names: set[str] = set()
    choices: Any = alias.choices if isinstance(alias, AliasChoices) else [alias]
    for choice in choices:
        if isinstance(choice, AliasPath):
            names.add(str(choice.path[0]))
        elif choice is not None:
            names.add(choice)
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    if not names or by_name:
        names.add(name)
    return names


def label_of(model: type[BaseModel], name: str) -> str:
    """Return what messages call the field *name* of *model*."""
    alias = model.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else name


def as_attribute(value: Any, instance: Callable[[Any], Any] = lambda it: it) -> Any:
    """
    Return what to set an attribute of a mapped instance to, for a field of a spec.

    Args:
        instance: Returns the instance to use in place of one that was given.

    Raises:
        UnresolvedReferenceError: A reference is not resolved yet.
    """
    if type(value) in PLAIN:
        return value
    if type(value) is Proxy:
        return target_of(value)
    if isinstance(value, Spec):
        return value.to_resource()
    if hasattr(value, STATE):
        found = reference_in(value)
        return target_of(found) if type(found) is Proxy else instance(found)
    # Most collections hold plain values and are returned as they are.
    return rebuilt(value, lambda item: as_attribute(item, instance))


def instances_in(value: Any) -> Iterator[Any]:
    """Yield the references and mapped instances in a field of a spec."""
    if type(value) in PLAIN:
        return
    if type(value) is Proxy:
        yield value
    elif isinstance(value, Spec):
        for part in given_fields(value).values():
            yield from instances_in(part)
    elif hasattr(value, STATE):
        yield reference_in(value)
    else:
        for item in items_in(value) or ():
            yield from instances_in(item)


def entity_of(model: type[Any]) -> type[Any]:
    """
    Return the mapped class of a ``Spec``.

    Raises:
        LoadError: *model* is not a ``Spec`` of a mapped class.
    """
    for base in getattr(model, "__mro__", ()):
        metadata = base.__dict__.get("__pydantic_generic_metadata__")
        if metadata and metadata["origin"] is Spec:
            return mapper_of(metadata["args"][0]).class_
    raise LoadError(
        f"{getattr(model, '__name__', model)!r} is no model of a mapped class; "
        f"derive it from tenure.Spec[YourClass]"
    )


def _refuse_unknown(model: type[BaseModel], mapper: Any) -> None:
    """
    Refuse fields that no attribute of the mapped class has the name of.

    Mappers may not be configured yet, and this must not do it: another class may be
    missing. A back reference is made then, so what may be one is let through.
    """
    if not isinstance(mapper, Mapper):
        return
    known = mapper.all_orm_descriptors.keys()
    parts = frozenset().union(*composed_fields(model).values())
    for name, field in model.model_fields.items():
        # Parts of a composed key need not be attributes.
        if name in known or name in parts or field.exclude:
            continue
        if hasattr(mapper.class_, name):
            continue
        if mapper.configured or not _may_refer(field.annotation):
            raise LoadError(
                f"{model.__name__}.{name} is no attribute of "
                f"{mapper.class_.__name__}{nearest(name, known)}{_READ_ONLY}"
            )


_READ_ONLY = "; one that is read and not written says Field(exclude=True)"


def _may_refer(kind: Any) -> bool:
    """Whether a type may be that of a relationship."""
    if not isinstance(kind, type) or get_args(kind):
        return isinstance(kind, (str, ForwardRef)) or any(
            map(_may_refer, get_args(kind))
        )
    return issubclass(kind, BaseModel) or inspect(kind, raiseerr=False) is not None


def check_fields(model: type[BaseModel], mapper: Mapper[Any]) -> None:
    """
    Check that every field of *model* is an attribute of the mapped class.

    Raises:
        LoadError: A field is not.
    """
    unwritten = unwritten_fields(model)
    for name in model.model_fields:
        if name not in mapper.attrs and name not in unwritten:
            raise LoadError(
                f"{model.__name__}.{name} is no attribute of "
                f"{mapper.class_.__name__}, which has "
                f"{', '.join(mapper.attrs.keys())}{_READ_ONLY}"
            )
