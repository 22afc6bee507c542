"""
Validating many rows field by field: the values of one field at once.

To validate a row takes as long as to write it, and most of that goes into taking its
mapping apart. Where a model has nothing but fields, the values of each are validated as
one list, and what comes out, and what is refused, is the same. A function of the user's
is called once for each value all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from operator import itemgetter
from types import NoneType
from typing import Any, Self, cast
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import SchemaValidator, ValidationError

from ...models import is_spec_schema
from ...references import ReferenceValidator
from .report import Problem, details, place_of, problems_of

#: What is wrong with rows, by position.
Wrong = dict[int, list[Problem]]

#: What lets a field have two names in a row.
_BY_NAME = ("populate_by_name", "validate_by_name")


@dataclass(frozen=True, slots=True)
class Checked:
    """The fields that rows set, and all values by field; null in ``wrong`` rows."""

    given: list[str]
    columns: dict[str, Sequence[Any]]
    wrong: Wrong


class Columns:
    """
    Validates rows field by field.

    Attributes:
        before: What a model does with a whole row before, if it does something; raises
            ``ValidationError``.
        validate_row: Validates one row after that, as ``RowValidator.validate`` does.
    """

    def __init__(self, fields: Fields) -> None:
        self.before = fields.before_all
        rest = replace(fields, before=())
        self.validate_row: Callable[[Any], Any] = rest.validator().validate_python
        self._columns = [_Column(name, field, fields.config) for name, field in fields]
        self._known = {column.source for column in self._columns}
        extra = fields.schema.get("extra_behavior") or fields.config.get(
            "extra_fields_behavior"
        )
        self._takes_others = extra != "forbid" and "extras_schema" not in fields.schema

    @classmethod
    def of(cls, model: type[BaseModel], *, json: bool, is_table: bool) -> Self | None:
        """
        Return a validator of rows of *model* by field, if that is possible.

        What a model makes of a whole row before is validated as values of Python. For
        objects of JSON that comes to the same, unless types are strict or not ours.
        """
        fields = fields_of(model)
        if fields is None:
            return None
        rest = replace(fields, before=())
        if rest.may_add or not rest.knows_its_names:
            return None
        if fields.before and json:
            is_same = rest.calls_nobody and not _is_strict(
                [fields.schema, fields.config]
            )
            return cls(fields) if is_same else None
        # Lines of JSON are validated as they are, and other objects one by one.
        return None if json or (fields.before and not is_table) else cls(fields)

    def validate(
        self, rows: Sequence[Any], header: Sequence[str] | None = None
    ) -> Checked | None:
        """
        Validate rows; ``None``, with nothing done, where they do not set the same.

        Args:
            header: What the values of rows are called; ``None``: they are mappings.
        """
        names = self._names(rows) if header is None else header
        if names is None or not (self._takes_others or self._known.issuperset(names)):
            return None
        known = frozenset(names)
        columns: dict[str, Sequence[Any]] = {}
        given = []
        for column in self._columns:
            if column.source in known:
                given.append(column)
            elif column.default is _NO_DEFAULT:
                return None
            else:
                columns[column.name] = [column.default] * len(rows)
        if header is None:
            try:
                taken = [list(map(itemgetter(c.source), rows)) for c in given]
            except KeyError:
                return None
        else:
            by_name = dict(zip(header, zip(*rows, strict=True), strict=True))
            taken = [list(by_name[column.source]) for column in given]
        wrong: Wrong = {}
        for column, values in zip(given, taken, strict=True):
            columns[column.name] = column.validate(values, wrong)
        return Checked([column.name for column in given], columns, wrong)

    def _names(self, rows: Sequence[Any]) -> list[str] | None:
        """Return the names in the first of *rows*, if the others can have the same."""
        if set(map(type, rows)) != {dict} or len(set(map(len, rows))) > 1:
            return None
        names = rows[0].keys()
        # Aliases of fields are looked up in each row.
        if not self._known.issuperset(names) and any(r.keys() != names for r in rows):
            return None
        return list(names)


class _Column:
    """Validates the values of one field."""

    def __init__(self, name: str, field: Any, config: Any) -> None:
        schema = field["schema"]
        self.name = name
        #: What the field is called in a row.
        self.source: str = field.get("validation_alias", name)
        self.label = name if config.get("loc_by_alias") is False else self.source
        self.default = _default_of(schema, config)
        #: Validates all of them, or each; neither where they are left as they come.
        self._all: Callable[[Any], Any] | None = None
        self._one: Callable[[Any], Any] | None = None
        if _calls_nobody(schema):
            together: Any = {"type": "list", "items_schema": schema}
            self._all = SchemaValidator(together, config).validate_python
        elif not _is_left_alone(schema):
            self._one = SchemaValidator(schema, config).validate_python

    def validate(self, values: list[Any], wrong: Wrong) -> Sequence[Any]:
        """Return the valid values; note what is wrong with others."""
        if self._one is not None:
            return _each(self._one, values, self.label, wrong)
        if self._all is None:
            return values
        try:
            return cast("list[Any]", self._all(values))
        except ValidationError as error:
            found: Wrong = {}
            for (row, *loc), reason, message in details(error):
                place = place_of(self.label, *loc)
                found.setdefault(row, []).append((place, reason, message))
        good = [n for n in range(len(values)) if n not in found]
        made: list[Any] = [None] * len(values)
        for n, value in zip(good, self._all([values[n] for n in good]), strict=True):
            made[n] = value
        for n, problems in found.items():
            wrong.setdefault(n, []).extend(problems)
        return made


def _each(
    validate: Callable[[Any], Any], values: Sequence[Any], label: str, wrong: Wrong
) -> list[Any]:
    """Validate values one by one; note what is wrong with some."""
    made: list[Any] = []
    rest = iter(values)
    while len(made) < len(values):
        try:
            for value in rest:
                made.append(validate(value))  # what was made is kept
        except ValidationError as error:
            wrong.setdefault(len(made), []).extend(problems_of(error, label))
            made.append(None)
    return made


_NO_DEFAULT = object()

#: Types whose values one may have for several rows.
_SHARED = (
    NoneType,
    bool,
    int,
    float,
    str,
    bytes,
    Decimal,
    UUID,
    Enum,
    date,
    time,
    timedelta,
)


def _default_of(schema: Any, config: Any) -> Any:
    """Return the value of a field that is not set, if it is the same for every row."""
    if schema["type"] != "default" or "default" not in schema:
        return _NO_DEFAULT
    is_validated = schema.get("validate_default", config.get("validate_default"))
    default = schema["default"]
    is_shared = isinstance(default, _SHARED)
    return default if is_shared and not is_validated else _NO_DEFAULT


def _is_left_alone(schema: Any) -> bool:
    """Whether values are taken as they come."""
    while schema["type"] in ("default", "nullable"):
        schema = schema["schema"]
    return bool(schema["type"] == "any")


#: Core schemas that call nothing of the user's, whose values may be validated twice.
_CALL_NOBODY = frozenset(
    [
        "any",
        "none",
        "bool",
        "int",
        "float",
        "decimal",
        "str",
        "bytes",
        "date",
        "time",
        "datetime",
        "timedelta",
        "uuid",
        "url",
        "multi-host-url",
        "literal",
        "enum",
        "nullable",
        "default",
        "list",
        "set",
        "frozenset",
        "tuple",
        "dict",
        "union",
    ]
)
_INNER = ("schema", "items_schema", "keys_schema", "values_schema", "choices")


def _calls_nobody(schema: Any) -> bool:
    """Whether validation by *schema* depends on nothing but the value."""
    if isinstance(schema, (list, tuple)):
        # A choice of a union may be a pair of a schema and its label.
        return all(_calls_nobody(each) for each in schema if not isinstance(each, str))
    return (
        schema["type"] in _CALL_NOBODY
        and schema.get("on_error", "raise") == "raise"
        and "missing" not in schema
        and all(_calls_nobody(schema[name]) for name in _INNER if name in schema)
    )


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

    @property
    def before_all(self) -> Callable[[Any], Any] | None:
        """What the model does with a whole row before, if it does something."""
        if not self.before:
            return None
        schema: Any = {"type": "any"}
        for outer in reversed(self.before):
            schema = {**outer, "schema": schema}
        return SchemaValidator(schema, self.config).validate_python

    @property
    def calls_nobody(self) -> bool:
        """Whether to validate a row calls nothing of the user's; references are left."""
        schemas = (field["schema"] for _, field in self)
        return not self.before and all(map(_calls_nobody, schemas))

    @property
    def may_add(self) -> bool:
        """Whether a valid row may have fields that were not given, but for defaults."""
        # What a function makes of a default may differ from row to row.
        return bool(self.before) or any(
            field["schema"].get("validate_default")
            and not _calls_nobody(field["schema"]["schema"])
            for _, field in self
        )

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the core schema of each field."""
        return iter(self.schema["fields"].items())

    @property
    def knows_its_names(self) -> bool:
        """Whether each field has one name in a row, and nothing else looks at those."""
        return not self.before and has_plain_names(self.schema, self.config)

    def validator(self, *, refuses_unknown: bool = False) -> SchemaValidator:
        """
        Make what validates a row.

        It gives the values by field, extra ones, and the names of those that were set.
        """
        schema = self.schema
        if refuses_unknown:
            schema = {**schema, "extra_behavior": "forbid"}
        for outer in reversed(self.before):
            schema = {**outer, "schema": schema}
        return SchemaValidator(schema, self.config)


def has_plain_names(schema: Any, config: Any) -> bool:
    """Whether each of the fields of a schema has one name in a row."""
    return not any(config.get(way) or schema.get(way) for way in _BY_NAME) and all(
        isinstance(field.get("validation_alias", ""), str)
        for field in schema["fields"].values()
    )


def fields_of(model: type[BaseModel]) -> Fields | None:
    """
    Return the fields of *model*, if they can be validated without it.

    They cannot where anything else of it may look at them: validators that run after
    a field or the model, an ``__init__`` or ``model_post_init``.
    """
    schema: Any = model.__pydantic_core_schema__
    if model.__pydantic_decorators__.computed_fields:
        # They are asked of an instance.
        return None
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


def _is_strict(schema: Any) -> bool:
    """Whether a schema, or one inside of it, takes values of its own type only."""
    if isinstance(schema, (list, tuple)):
        return any(map(_is_strict, schema))
    if not isinstance(schema, dict):
        return False
    return schema.get("strict") is True or any(map(_is_strict, schema.values()))


def _left_as_it_came(schema: Any) -> tuple[Any, ReferenceValidator | None]:
    """Return *schema* without the validation of a reference, if it has one."""
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
