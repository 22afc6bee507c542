"""How an input becomes a reference: which key it is of, and whether it fits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError, core_schema
from sqlalchemy import Column
from sqlalchemy.orm import Mapper

from ..context import SESSION_BULK_CONTEXT
from ..errors import LoadError
from ..mapping import Identifiers, Part, Shape, column_type, identifiers, mapper_of
from .proxy import Proxy, Registry, is_resolved, registering


class ReferenceValidator:
    """
    Turns an input into a reference to one mapped class.

    Args:
        attributes: Of the only key to accept; none: any identifier of the class.
        sources: The fields of the model to compose that key of.
        optional: Compose ``None`` where one of the fields is ``None``.
    """

    def __init__(
        self,
        entity: type[Any],
        attributes: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
        *,
        optional: bool = False,
    ) -> None:
        self.entity = entity
        self.attributes = attributes
        self.sources = sources
        self.optional = optional
        self._identifiers: Identifiers | None = None
        self._nested: dict[str, ReferenceValidator] = {}

    def __call__(self, value: Any) -> Any:
        """Return the proxy for a key; an instance as it is."""
        bulk = SESSION_BULK_CONTEXT.get()
        if bulk is None:
            return self.reference(value, None)
        registry = registering(bulk)
        held_for = registry.held_for
        # Only these two types are cached: True and 1.0 are equal to 1, but may not
        # be the same key. No str equals an int.
        kind = type(value)
        if kind is not str and kind is not int:
            found = self.reference(value, registry)
        else:
            found = registry.recall(self, value)
            if found is None:
                found = self.reference(value, registry)
                registry.remember(self, value, found)
        return found if held_for is None else held_for(found)

    def composed(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        """Return the reference whose key is made of fields of the model."""
        data = info.data
        try:
            parts = tuple([data[source] for source in self.sources])
        except KeyError as error:
            raise PydanticCustomError(
                "reference_part",
                "its key needs the field '{field}', which is invalid, or is not "
                "declared before this one",
                {"field": error.args[0]},
            ) from None
        return self.compose(value, parts)

    def compose(self, value: Any, parts: tuple[Any, ...]) -> Any:
        """Return the reference for *value*, or if it is ``None``, for *parts*."""
        if value is not None:
            return self(value)
        if any(part is None for part in parts):
            if not self.optional:
                return self.reference(None, None)
            return None
        bulk = SESSION_BULK_CONTEXT.get()
        shape = self.known.shape(self.attributes)
        parts = shape.arranged(self.attributes, parts)
        if bulk is None:
            return self._make(shape, parts, None)
        registry = registering(bulk)
        found = self._make(shape, parts, registry)
        return found if registry.held_for is None else registry.held_for(found)

    @property
    def known(self) -> Identifiers:
        """The identifiers of the class, read when first needed."""
        if self._identifiers is None:
            found = identifiers(mapper_to_refer_to(self.entity))
            for name in self.attributes:
                try:
                    found.part(name)
                except KeyError:
                    raise TypeError(
                        f"Key({name!r}): {self.entity.__name__} has no column or "
                        f"many-to-one relationship of that name"
                    ) from None
            self._identifiers = found
        return self._identifiers

    def accepted(self) -> dict[frozenset[str], Shape]:
        """Return the shapes of the keys that are accepted, by their attributes."""
        if self.attributes:
            return {frozenset(self.attributes): self.known.shape(self.attributes)}
        return self.known.spellings

    def reference(self, value: Any, registry: Registry | None) -> Any:
        """Return the reference for *value*, that of *registry* if there is one."""
        if self._identifiers is None:
            # Raises if there can be no reference to the class, whatever the value.
            self.known  # noqa: B018
        if type(value) is Proxy:
            if not issubclass(value._tenure_shape.entity, self.entity):
                raise self._refused(value)
            if registry is None or is_resolved(value):
                return value
            return registry.adopt(value)
        if isinstance(value, self.entity):
            return value
        if value is None:
            raise PydanticCustomError(
                "reference_type",
                "a reference to {entity} is required",
                {"entity": self.entity.__name__},
            )
        if isinstance(value, Mapping):
            shape = self.accepted().get(frozenset(value))
            if shape is None:
                raise self._refused(value)
            return self._make(shape, [value[name] for name in shape.names], registry)
        return self._scalar(value, registry)

    def _scalar(self, value: Any, registry: Registry | None) -> Any:
        shapes = [s for s in self.accepted().values() if len(s.parts) == 1]
        if self.attributes and shapes:
            return self._make(shapes[0], [value], registry)
        for fits in (_fits_strictly, _fits):
            fitting = {s.columns: s for s in shapes if fits(s, value)}
            if len(fitting) == 1:
                (shape,) = fitting.values()
                return self._make(shape, [value], registry)
            if fitting:
                example = repr(next(iter(fitting.values())).names[0])
                raise PydanticCustomError(
                    "reference_ambiguous",
                    "could be {keys} of {entity}; give an object such as {example}, "
                    "or declare the field with {key}",
                    {
                        "keys": " or ".join(s.names[0] for s in fitting.values()),
                        "entity": self.entity.__name__,
                        "example": f"{{{example}: …}}",
                        "key": f"Key({example})",
                    },
                )
        raise self._refused(value)

    def _make(
        self, shape: Shape, given: Sequence[Any], registry: Registry | None
    ) -> Proxy:
        values = tuple(
            self._value(part, adapter, value, registry)
            for part, adapter, value in zip(
                shape.parts, shape.adapters, given, strict=True
            )
        )
        if all(value is None for value in values):
            raise PydanticCustomError(
                "reference_null",
                "every attribute of the key of {entity} is null",
                {"entity": self.entity.__name__},
            )
        if registry is None:
            return Proxy(shape, values)
        return registry.intern(shape, values)

    def _value(
        self, part: Part, adapter: Any, value: Any, registry: Registry | None
    ) -> Any:
        if value is None:
            return None
        try:
            if part.target is None:
                return _validated(part.columns[0], adapter, value)
            nested = self._nested.get(part.name)
            if nested is None:
                nested = ReferenceValidator(part.target.class_)
                self._nested[part.name] = nested
            return nested.reference(value, registry)
        except _INVALID as error:
            kind = getattr(error, "type", "reference_key")
            raise PydanticCustomError(
                kind,
                "{entity}.{name}: {problem}",
                {
                    "entity": self.entity.__name__,
                    "name": part.name,
                    "problem": _problem(error),
                },
            ) from None

    def _refused(self, value: Any) -> PydanticCustomError:
        shapes = self.accepted().values()
        keys = " or ".join(f"({', '.join(shape.names)})" for shape in shapes)
        return PydanticCustomError(
            "reference_key",
            "{given} is no key of {entity}; its keys are {keys}",
            {
                "given": _described(value),
                "entity": self.entity.__name__,
                "keys": keys,
            },
        )

    def json_schema(self, inside: frozenset[type[Any]] = frozenset()) -> dict[str, Any]:
        """Return the JSON schema of every key; no keys for a class in *inside*."""
        described: dict[str, Any] = {
            "title": self.entity.__name__,
            "description": f"Reference to a {self.entity.__name__}, by key",
        }
        if self.entity in inside:
            return described
        inside |= {self.entity}
        options: list[dict[str, Any]] = []
        for shape in self.accepted().values():
            properties = {
                part.name: ReferenceValidator(part.target.class_).json_schema(inside)
                if part.target is not None
                else adapter.json_schema()
                if adapter is not None
                else {}
                for part, adapter in zip(shape.parts, shape.adapters, strict=True)
            }
            if len(properties) == 1 and not shape.is_nested:
                options.append(next(iter(properties.values())))
            options.append(
                {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                    "additionalProperties": False,
                }
            )
        unique = [
            option for n, option in enumerate(options) if option not in options[:n]
        ]
        return described | {"anyOf": unique}


# Conversions that Pydantic does in lax mode, but that make one key of several.
_NEVER: dict[type[Any], tuple[type[Any], ...]] = {
    bool: (int, float, Decimal),
    bytes: (str, int, float, Decimal),
}


#: Raised for a value that does not fit a column.
_INVALID = (ValidationError, UnicodeEncodeError, PydanticCustomError)

#: Beyond it, a float may stand for several integers.
_MOST_EXACT = 2**53


def _validated(column: Column[Any], adapter: TypeAdapter[Any], value: Any) -> Any:
    """Return *value* converted to the type of *column*, or raise ``_INVALID``."""
    kind = column_type(column)
    if kind is int and isinstance(value, float) and abs(value) > _MOST_EXACT:
        raise PydanticCustomError(
            "reference_float", "a float of this size may stand for several integers"
        )
    strict = kind in _NEVER.get(type(value), ())
    found = adapter.validate_python(value, strict=strict or None)
    if type(found) is str and not found.isascii():
        # Raises for half of a surrogate pair, which no database can store.
        found.encode()
    return found


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return f"a value of type {type(value).__name__}"


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    if isinstance(error, PydanticCustomError):
        return error.message()
    return str(getattr(error, "reason", error))


def _fits(shape: Shape, value: Any) -> bool:
    adapter = shape.adapters[0]
    if adapter is None:
        return False
    try:
        _validated(shape.columns[0], adapter, value)
    except _INVALID:
        return False
    return True


# A text is a number only if no text key fits, so that "007" stays a code. Other
# types (UUID, date, Enum) are texts in JSON.
_WRITTEN_DIFFERENTLY: dict[type[Any], tuple[type[Any], ...]] = {
    str: (int, float, bool),
    int: (str, bool),
    float: (str, int, bool),
    bool: (str, int, float),
}


def _fits_strictly(shape: Shape, value: Any) -> bool:
    expected = column_type(shape.columns[0])
    if expected in _WRITTEN_DIFFERENTLY.get(type(value), ()):
        return False
    if isinstance(value, Enum) and expected is not Any:
        # Pydantic would convert it to the text or number that it holds.
        return isinstance(value, expected)
    return _fits(shape, value)


def mapper_to_refer_to(entity: type[Any]) -> Mapper[Any]:
    """
    Return the mapper of a class that references are to.

    Raises:
        TypeError: There can be no reference to it.
    """
    try:
        return mapper_of(entity)
    except LoadError as error:
        # No ValueError, which Pydantic would report as the fault of the payload.
        raise TypeError(f"there can be no reference to it: {error}") from None
