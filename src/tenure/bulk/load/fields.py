"""
The fields of a model, to be validated apart from it. Reads core schemas; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import SchemaValidator

from ...models import is_spec_schema
from ...references import ReferenceValidator


@dataclass(frozen=True, slots=True)
class Fields:
    """
    The fields of a model that does nothing more with them once they are valid.

    Attributes:
        schema: Their core schema, with references left as they come.
        config: The core configuration that they are validated with.
        before: Core schemas of what the model does with a whole row before, the first
            one first.
        later: What validates the references.
        optional: Those of these fields that may be null.
    """

    schema: Any
    config: Any
    before: tuple[Any, ...]
    later: dict[str, ReferenceValidator]
    optional: set[str]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Give the name and the core schema of each."""
        return iter(self.schema["fields"].items())

    def validator(self) -> SchemaValidator:
        """
        Make what validates a row.

        It gives the values by field, extra ones, and the names of those that were set.
        """
        schema = self.schema
        for outer in reversed(self.before):
            schema = {**outer, "schema": schema}
        return SchemaValidator(schema, self.config)


def fields_of(model: type[BaseModel]) -> Fields | None:
    """
    Give the fields of *model*, if they can be validated without it.

    They cannot where anything else of it may look at them: validators that run after
    a field or the model, an ``__init__`` or ``model_post_init``.
    """
    schema: Any = model.__pydantic_core_schema__
    if is_spec_schema(schema):
        # Each different reference is validated by itself, so what is refused
        # registers nothing.
        schema = schema["schema"]
    if (
        not isinstance(schema, dict)
        or schema.get("type") != "model"
        or schema.get("post_init")
        or schema.get("custom_init")
    ):
        return None
    before = []
    inner = schema["schema"]
    while inner["type"] == "function-before":
        before.append(inner)
        inner = inner["schema"]
    if inner["type"] != "model-fields":
        return None
    if any(_looks_around(field["schema"]) for field in inner["fields"].values()):
        return None
    later: dict[str, ReferenceValidator] = {}
    optional: set[str] = set()
    fields = {}
    for name, field in inner["fields"].items():
        left, validator = _left_as_it_came(field["schema"])
        if validator is not None:
            later[name] = validator
            if _is_nullable(field["schema"]):
                optional.add(name)
        fields[name] = {**field, "schema": left}
    if any(source not in fields for v in later.values() for source in v.sources):
        return None
    return Fields(
        {**inner, "fields": fields},
        schema.get("config") or {},
        tuple(before),
        later,
        optional,
    )


def _left_as_it_came(schema: Any) -> tuple[Any, ReferenceValidator | None]:
    """Give *schema* without the validation of a reference, if it is one."""
    if schema["type"] == "nullable":
        inner, validator = _left_as_it_came(schema["schema"])
        return {**schema, "schema": inner}, validator
    if schema["type"] == "default" and "default_factory" not in schema:
        inner, validator = _left_as_it_came(schema["schema"])
        if schema["default"] is None and (
            _is_nullable(inner) or (validator is not None and validator.sources)
        ):
            return {**schema, "schema": inner, "validate_default": False}, validator
    if schema["type"] == "function-plain":
        validator = (schema.get("metadata") or {}).get("tenure_reference")
        if validator is not None:
            return {"type": "any"}, validator
    return schema, None


def _looks_around(schema: Any) -> bool:
    """Whether what makes a field may read the fields before it."""
    if isinstance(schema, (list, tuple)):
        return any(map(_looks_around, schema))
    if not isinstance(schema, dict):
        return False
    if "tenure_reference" in (schema.get("metadata") or ()):
        return False
    if schema.get("type") == "with-info" or schema.get("default_factory_takes_data"):
        return True
    return any(map(_looks_around, schema.values()))


def _is_nullable(schema: Any) -> bool:
    while schema["type"] == "default":
        schema = schema["schema"]
    return bool(schema["type"] == "nullable")
