"""``Key`` and ``Ref``, which make a field of a Pydantic model a reference."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema
from sqlalchemy import inspect

from .._private import STATE
from .payload import reference_in
from .proxy import Proxy, key_of
from .validator import ReferenceValidator, mapper_to_refer_to

T = TypeVar("T")


def _is_name(given: Any) -> bool:
    return isinstance(given, str) and bool(given)


class Key:
    """
    Makes a field a reference, and says by which key.

    ``Key()`` accepts every identifier of the mapped class, ``Key("origin",
    "time_hour")`` only this one. ``Key(origin="origin", time_hour="hour")`` composes
    the key: each keyword is an attribute of the mapped class, its value a field of
    the model, declared before this one. Such a field needs no default.
    """

    __slots__ = ("attributes", "composed")

    def __init__(self, *attributes: str, **composed: str) -> None:
        wrong = [
            each for each in (*attributes, *composed.values()) if not _is_name(each)
        ]
        if wrong:
            raise TypeError(f"Key() takes names of attributes, not {wrong[0]!r}")
        if attributes and composed:
            raise TypeError(
                "Key() takes names of attributes or fields that compose the key, "
                "not both"
            )
        self.attributes = attributes or tuple(composed)
        self.composed = composed

    def __repr__(self) -> str:
        inside = [repr(name) for name in self.attributes if not self.composed]
        inside += [f"{name}={source!r}" for name, source in self.composed.items()]
        return f"Key({', '.join(inside)})"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return a schema that accepts keys in place of instances."""
        entity, optional = _without_none(source)
        check_referable(entity, self)
        sources = tuple(self.composed.values())
        validator = ReferenceValidator(
            entity, self.attributes, sources, optional=optional
        )
        serialization = core_schema.plain_serializer_function_ser_schema(
            serialize_reference, when_used="unless-none"
        )
        if self.composed:
            return core_schema.with_default_schema(
                core_schema.with_info_plain_validator_function(
                    validator.composed,
                    serialization=serialization,
                    metadata=_marked(validator),
                ),
                default=None,
                validate_default=True,
            )
        schema: CoreSchema = core_schema.no_info_plain_validator_function(
            validator, serialization=serialization, metadata=_marked(validator)
        )
        return core_schema.nullable_schema(schema) if optional else schema

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema of the accepted keys."""
        optional = schema["type"] in ("nullable", "default")
        inner: Any = schema.get("schema", schema)
        found: ReferenceValidator = inner["metadata"]["tenure_reference"]
        described = found.json_schema()
        if optional:
            described["anyOf"] = [*described["anyOf"], {"type": "null"}]
        return described


#: ``Ref[Airline]`` accepts any identifier of an airline.
Ref = Annotated[T, Key()]


def check_referable(entity: Any, key: Key) -> None:
    """
    Check what is known of a class before its mapper is configured.

    Raises:
        TypeError: There can be no reference to it.
    """
    if not isinstance(entity, type) or entity.__module__ in ("builtins", "typing"):
        raise TypeError(
            f"{key!r} marks a mapped class as a reference, not {_name_of(entity)}"
        )
    if entity.__dict__.get("__abstract__"):
        mapper_to_refer_to(entity)


def _name_of(entity: Any) -> str:
    return entity.__name__ if type(entity) is type else repr(entity)


def _marked(validator: ReferenceValidator) -> dict[str, Any]:
    return {"tenure_reference": validator}


def _without_none(source: Any) -> tuple[Any, bool]:
    if get_origin(source) in (Union, UnionType):
        members = [member for member in get_args(source) if member is not NoneType]
        if len(members) == 1:
            return members[0], len(members) < len(get_args(source))
    return source, False


def serialize_reference(value: Any) -> Any:
    """Return the key of a reference, the primary key of an instance."""
    if type(value) is Proxy:
        key = {name: serialize_reference(part) for name, part in key_of(value).items()}
    elif hasattr(value, STATE):
        if type(proxy := reference_in(value)) is Proxy:
            return serialize_reference(proxy)
        mapper = inspect(type(value))
        names = [mapper.get_property_by_column(c).key for c in mapper.primary_key]
        key = {name: value.__dict__.get(name) for name in names}
    else:
        return value
    return next(iter(key.values())) if len(key) == 1 else key
