"""
Validating many rows: each by its model, references column by column.

A reference costs more to validate than to look up in a dictionary, and a column
of them holds few different ones. So where a model does nothing with a reference
itself, rows are validated with references left as they came, and each different
one is validated once. What comes out, and what is refused, is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticCustomError, SchemaValidator, ValidationError

from ..references import Proxy, ReferenceValidator
from ..resources import is_exact

#: A row (by position) and field that is no valid reference, and why.
Refused = tuple[int, str, PydanticCustomError]


class RowValidator:
    """
    Validates records into models, and columns into references.

    Attributes:
        later: The fields whose references :meth:`references` makes.
        optional: Those of them that may be null.
    """

    def __init__(self, model: type[BaseModel], *, json: bool) -> None:
        self.later, self.optional, fields = _deferred(model)
        validator: Any = fields or model.__pydantic_validator__
        #: Validates one record; raises ``ValidationError``.
        self.validate: Callable[[Any], Any] = (
            validator.validate_json if json else validator.validate_python
        )
        # A model that does nothing of its own with its values need not be made
        # only to be taken apart: without it there are its values, extra ones,
        # and the names of those that were set.
        deferred = fields is not None
        #: Gives the values by field of what :attr:`validate` gave.
        self.values: Callable[[Any], dict[str, Any]] = (
            itemgetter(0) if deferred else attrgetter("__dict__")
        )
        #: Gives the names of the fields that were set.
        self.given: Callable[[Any], set[str]] = (
            itemgetter(2) if deferred else attrgetter("__pydantic_fields_set__")
        )

    def references(
        self, fields: Sequence[str], columns: list[Sequence[Any]]
    ) -> list[Refused]:
        """
        Turn the columns of :attr:`later` fields into references, in place.

        Called with the bulk current that references register with.
        """
        refused: list[Refused] = []
        places = {name: place for place, name in enumerate(fields)}
        for name, validator in self.later.items():
            if name not in places:
                continue
            if validator.sources:
                made = self._composed(validator, places, columns, name, refused)
            else:
                optional = name in self.optional
                given = columns[places[name]]
                made = _each(validator, name, given, refused, optional=optional)
            columns[places[name]] = made
        return refused

    def _composed(
        self,
        validator: ReferenceValidator,
        places: dict[str, int],
        columns: list[Sequence[Any]],
        name: str,
        refused: list[Refused],
    ) -> list[Any]:
        given = columns[places[name]]
        sources = [columns[places[source]] for source in validator.sources]
        broken = {row for row, _, _ in refused}
        tokens = list(zip(*map(_tokens, sources), strict=True))
        if not {NoneType}.issuperset(map(type, given)):
            # What was given comes before what would be composed.
            broken.update(row for row, value in enumerate(given) if value is not None)
            given = _each(validator, name, given, refused, optional=True)
        made: dict[Any, Any] = {}
        wrong: dict[Any, PydanticCustomError] = {}
        for row, token in enumerate(tokens):
            if token not in made and row not in broken:
                made[token] = None
                try:
                    parts = tuple([column[row] for column in sources])
                    made[token] = validator.compose(None, parts)
                except PydanticCustomError as error:
                    wrong[token] = error
        if wrong:
            refused.extend(
                (row, name, wrong[token])
                for row, token in enumerate(tokens)
                if token in wrong and row not in broken
            )
        return [
            made.get(token) if value is None else value
            for token, value in zip(tokens, given, strict=True)
        ]


def _tokens(values: Sequence[Any]) -> Sequence[Any]:
    """Give for each value what tells it apart from every other one of its column."""
    kinds = set(map(type, values))
    if kinds <= {Proxy, NoneType}:
        return list(map(id, values))
    if kinds == {str}:
        return values
    if kinds == {datetime} and one_zone(values):
        return values
    return [
        id(value)
        if type(value) is Proxy
        else (datetime, value, value.tzinfo)
        if type(value) is datetime
        else (type(value), value)
        for value in values
    ]


def one_zone(values: Iterable[Any]) -> bool:
    """Whether equal times of *values* are equal in every way."""
    return len({value.tzinfo for value in values if value is not None}) < 2


def alike(values: Sequence[Any]) -> Sequence[Any]:
    """
    Give *values* with equal times made one object.

    Comparing two times in a zone asks both zones each time, which adds up over the
    dictionaries and the sorting that a column goes through.
    """
    if type(values[0]) is not datetime:
        return values
    if set(map(type, values)) != {datetime} or not one_zone(values):
        return values
    known: dict[Any, Any] = {}
    return [known.setdefault(value, value) for value in values]


class _References(dict[Any, Any]):
    """What a validator makes of texts, each made once."""

    def __init__(self, validator: ReferenceValidator, *, optional: bool) -> None:
        super().__init__({None: None} if optional else {})
        self.validator = validator
        self.wrong: dict[Any, PydanticCustomError] = {}

    def __missing__(self, text: str | None) -> Any:
        found = None
        try:
            found = self.validator(text)
        except PydanticCustomError as error:
            self.wrong[text] = error
        self[text] = found
        return found


def _each(
    validator: ReferenceValidator,
    name: str,
    given: Sequence[Any],
    refused: list[Refused],
    *,
    optional: bool,
) -> list[Any]:
    # Only texts are safe as they came: 1, 1.0 and True are one key of a dict.
    if {str, NoneType}.issuperset(map(type, given)):
        made = _References(validator, optional=optional)
        references = list(map(made.__getitem__, given))
        if made.wrong:
            refused.extend(
                (row, name, made.wrong[value])
                for row, value in enumerate(given)
                if value in made.wrong
            )
        return references
    references = []
    for row, value in enumerate(given):
        try:
            is_null = value is None and optional
            references.append(None if is_null else validator(value))
        except PydanticCustomError as error:
            refused.append((row, name, error))
            references.append(None)
    return references


def _deferred(
    model: type[BaseModel],
) -> tuple[dict[str, ReferenceValidator], set[str], SchemaValidator | None]:
    """
    Give the fields whose references can wait, those of them that may be null, and
    a validator that leaves them.

    None can where anything else of the model may look at them: validators that
    run after a field or the model, an ``__init__`` or ``model_post_init``.
    """
    schema: Any = model.__pydantic_core_schema__
    if is_exact(schema):
        # Each different reference is validated by itself, so what is refused
        # registers nothing.
        schema = schema["schema"]
    if (
        not isinstance(schema, dict)
        or schema.get("type") != "model"
        or schema.get("post_init")
        or schema.get("custom_init")
    ):
        return {}, set(), None
    config = schema.get("config")
    before = []
    inner = schema["schema"]
    while inner["type"] == "function-before":
        before.append(inner)
        inner = inner["schema"]
    if inner["type"] != "model-fields":
        return {}, set(), None
    if any(_looks_around(field["schema"]) for field in inner["fields"].values()):
        return {}, set(), None
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
        return {}, set(), None
    inner = {**inner, "fields": fields}
    for outer in reversed(before):
        inner = {**outer, "schema": inner}
    return later, optional, SchemaValidator(inner, config)


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
        validator = (schema.get("metadata") or {}).get("seance_reference")
        if validator is not None:
            return {"type": "any"}, validator
    return schema, None


def _looks_around(schema: Any) -> bool:
    """Whether what makes a field may read the fields before it."""
    if isinstance(schema, (list, tuple)):
        return any(map(_looks_around, schema))
    if not isinstance(schema, dict):
        return False
    if "seance_reference" in (schema.get("metadata") or ()):
        return False
    if schema.get("type") == "with-info" or schema.get("default_factory_takes_data"):
        return True
    return any(map(_looks_around, schema.values()))


def _is_nullable(schema: Any) -> bool:
    while schema["type"] == "default":
        schema = schema["schema"]
    return bool(schema["type"] == "nullable")


def problems_of(error: ValidationError) -> list[tuple[str, str, str]]:
    """Give field, reason and message of each thing that is wrong with a row."""
    return [
        (".".join(map(str, problem["loc"])), problem["type"], problem["msg"])
        for problem in error.errors(include_url=False, include_input=False)
    ]
