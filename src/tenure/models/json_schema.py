"""The JSON schemas of mapped classes, as Pydantic describes its models."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import core_schema

from .serialize import writer_of
from .values import Columns, Place, Relation, ValueValidator, ref_of


def describe(validator: ValueValidator, handler: GetJsonSchemaHandler) -> Any:
    """Return the JSON schema of a mapped class, and of every class it leads to."""
    if handler.mode == "serialization":
        found = list(_definitions(validator, None, written=True))
    else:
        found = [d for place in _reachable(validator) for d in _definitions(*place)]
    schemas = [schema for schema, _ in found]
    whole: Any = core_schema.definitions_schema(schemas[0], schemas)
    described = handler(whole)
    if handler.mode == "validation":
        for schema, links in found:
            name: Any = core_schema.definition_reference_schema(schema["ref"])
            handler.resolve_ref_schema(handler(name)).update(links)
    return described


def _links(validator: ValueValidator, filled: Columns) -> dict[str, Any]:
    """Return what requires each foreign key once, itself or by a relationship."""
    found: list[dict[str, Any]] = [
        {"oneOf": [{"required": [each]} for each in (*fillers, name)]}
        if fillers
        else {"required": [name]}
        for name, fillers in validator.fillers.items()
        if validator.columns[name] not in filled
    ]
    if any("required" in each for each in found) or len(found) > 1:
        return {"allOf": found}
    return found[0] if found else {}


def _reachable(validator: ValueValidator) -> list[Place]:
    """Return the places of all values that a payload may have."""
    found: dict[Place, None] = {}
    left: list[Place] = [(validator, None)]
    while left:
        place = left.pop()
        if place not in found:
            found[place] = None
            for each in place[0].classes:
                left += [relation.place for relation in each.relations.values()]
    return list(found)


def _definitions(
    validator: ValueValidator,
    around: Relation | None,
    *,
    written: bool = False,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yield the schemas of the value at a place, each with its :func:`_links`."""
    whole = ref_of(validator, around)
    classes = validator.classes
    if len(classes) > 1:
        choices: list[Any] = [
            core_schema.definition_reference_schema(ref_of(each, around, "Only"))
            for each in classes
        ]
        yield core_schema.union_schema(choices, ref=whole), {}
    filled = frozenset() if around is None else around.remote
    for each in classes:
        ref = whole if len(classes) == 1 else ref_of(each, around, "Only")
        adapter = writer_of(each.entity) if written else each.adapter
        schema = _named(adapter.core_schema, ref, each.given_by(filled))
        yield schema, _links(each, filled)


def _named(schema: Any, ref: str, without: Collection[str]) -> Any:
    """Return the schema with a name, and without some of its fields."""
    if schema["type"] == "definitions":
        return {**schema, "schema": _named(schema["schema"], ref, without)}
    fields = {n: f for n, f in schema["fields"].items() if n not in without}
    return {**schema, "fields": fields, "ref": ref}
