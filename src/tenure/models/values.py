"""
Mapped classes as Pydantic sees them: what a payload may say, read off the mapper.

Everything is read when it is first needed: mappers may not be configured before, and
classes refer to each other. There is one validator for each class, built once, and a
relationship asks the one of the class it leads to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, NotRequired, Optional
from weakref import WeakKeyDictionary

from pydantic import (
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from pydantic_core import (
    CoreConfig,
    CoreSchema,
    InitErrorDetails,
    PydanticCustomError,
    PydanticKnownError,
    PydanticSerializationUnexpectedValue,
    SchemaValidator,
    core_schema,
)
from sqlalchemy import Column, inspect
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.orm.interfaces import MANYTOONE, ONETOMANY
from typing_extensions import TypedDict

from ..context import SESSION_BULK_CONTEXT
from ..errors import SessionError
from ..mapping import (
    annotation,
    column_adapter,
    columns_of,
    identifiers,
    mapper_of,
    readable_columns,
    settable_columns,
)
from ..references import (
    Attempt,
    Key,
    Proxy,
    ReferenceValidator,
    as_given,
    current_attempt,
    set_relationship,
    target_of,
)

#: Values inside of values; more is a mistake, or an attack.
MOST_LEVELS = 100

Columns = frozenset[Column[Any]]


class ValueValidator:
    """Turns what a payload says into an instance of one mapped class."""

    def __init__(self, entity: type[Any]) -> None:
        self.entity = entity

    @cached_property
    def mapper(self) -> Mapper[Any]:
        """The mapper of the class, configured."""
        return mapper_of(self.entity)

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """The columns that a payload may set, by attribute."""
        return dict(settable_columns(self.mapper))

    @cached_property
    def relations(self) -> dict[str, Relation]:
        """The relationships that a payload may set."""
        return {
            prop.key: Relation(prop)
            for prop in self.mapper.relationships
            if not prop.key.startswith("_")
            and not prop.viewonly
            and prop.lazy not in ("dynamic", "write_only", "noload")
        }

    @cached_property
    def factories(self) -> dict[str, Any]:
        """What makes the value of an attribute that only a dataclass knows how to."""
        return {
            name: field.default_factory
            for name, field in getattr(self.entity, "__dataclass_fields__", {}).items()
            if callable(field.default_factory)
            and name not in self.mapper.relationships
            and getattr(self.mapper.columns.get(name), "default", None) is None
        }

    @cached_property
    def required(self) -> frozenset[str]:
        """The columns that nothing else gives a value, by attribute."""
        return frozenset(
            name
            for name in self.columns
            if name not in self.factories
            and not any(map(self._is_filled, self.mapper.attrs[name].columns))
        )

    def _is_filled(self, column: Column[Any]) -> bool:
        return bool(
            column.nullable
            or column.default is not None
            or column.server_default is not None
            or column is getattr(column.table, "autoincrement_column", None)
            or column is self.mapper.version_id_col
            or column is self.mapper.polymorphic_on
        )

    @cached_property
    def fillers(self) -> dict[str, tuple[str, ...]]:
        """
        The required columns that a relationship may fill, and which ones here do.

        A foreign key may be filled by a relationship of the value around it, too.
        """
        return {
            name: tuple(
                relation.prop.key
                for relation in self.relations.values()
                if self.columns[name] in relation.local
            )
            for name in self.columns
            if name in self.required and self.columns[name].foreign_keys
        }

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """What validates the attributes of a payload, each by itself."""
        fields: dict[str, Any] = {}
        for name, column in self.columns.items():
            kind = annotation(self.mapper, name, column)
            if name == self.discriminator:
                kind = Any
            is_needed = name in self.required and name not in self.fillers
            fields[name] = kind if is_needed else NotRequired[kind]
        for name, relation in self.relations.items():
            fields[name] = NotRequired[relation.annotation]
        return _adapter(self.entity, fields)

    @cached_property
    def one(self) -> SchemaValidator:
        """What validates a payload."""
        # A class that is not mapped is no mistake of a payload.
        config = CoreConfig(title=self.mapper.class_.__name__)
        return SchemaValidator(self.core_schema, config)

    @cached_property
    def many(self) -> SchemaValidator:
        """What validates a list of payloads."""
        config = CoreConfig(title=f"list[{self.mapper.class_.__name__}]")
        return SchemaValidator(core_schema.list_schema(self.core_schema), config)

    @property
    def core_schema(self) -> CoreSchema:
        """What Pydantic has to know of the class: who to ask."""
        return core_schema.with_info_plain_validator_function(
            self,
            ref=self.ref,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self.serialize, info_arg=True
            ),
        )

    def __call__(self, value: Any, info: ValidationInfo[Any]) -> Any:
        """Give the instance that *value* is or describes, and register it."""
        bulk = SESSION_BULK_CONTEXT.get()
        attempt = current_attempt(bulk)
        if attempt is not None:
            return self.validate(value, info.context, attempt)
        attempt = Attempt(bulk)
        found = attempt.run(self.validate, value, info.context, attempt)
        # Nothing that was registered on the way was dropped: a class has no unions.
        attempt.keep(found)
        return found

    def validate(
        self,
        value: Any,
        context: Any,
        attempt: Attempt,
        filled: Columns = frozenset(),
    ) -> Any:
        """
        Give the instance that *value* is or describes.

        Args:
            filled: The columns that the value around this one fills.
        """
        if isinstance(value, self.entity):
            return target_of(value) if type(value) is Proxy else value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("dict_type")
        if id(value) in attempt.inside:
            raise PydanticKnownError("recursion_loop")
        if len(attempt.inside) == MOST_LEVELS:
            raise PydanticCustomError(
                "too_many_levels",
                "values are inside of each other more than {most} levels deep",
                {"most": MOST_LEVELS},
            )
        attempt.inside.append(id(value))
        try:
            validator = self.of_class(value)
            given = validator.adapter.validator.validate_python(value, context=context)
        finally:
            attempt.inside.pop()
        if validator.discriminator is not None:
            # The class says it.
            given.pop(validator.discriminator, None)
        validator.check_links(given, filled)
        instance = validator.make(given)
        attempt.values.append(instance)
        return instance

    def make(self, given: Mapping[str, Any]) -> Any:
        """Make an instance as SQLAlchemy does for a row: without its ``__init__``."""
        manager = self.mapper.class_manager
        instance = manager.new_instance()
        manager.dispatch.init(instance._sa_instance_state, (), {})
        for name, factory in self.factories.items():
            if name not in given:
                setattr(instance, name, factory())
        props = {n: of.prop for n, of in self.relations.items() if n in given}
        related = {n: as_given(of, given[n]) for n, of in props.items()}
        waits = any(waits for _, waits in related.values())
        for name, part in given.items():
            try:
                if name in props:
                    value = related[name][0]
                    set_relationship(instance, props[name], value, waits=waits)
                else:
                    setattr(instance, name, part)
            except (ValueError, AssertionError) as error:
                # A method of the class with @validates.
                problem = PydanticCustomError(
                    "value_error", "Value error, {error}", {"error": str(error)}
                )
                raise self._refused([_problem(problem, name, part)]) from None
        return instance

    # Foreign keys and the relationships that fill them.

    def check_links(self, given: Mapping[str, Any], filled: Columns) -> None:
        """
        Check that each foreign key is given once: itself, or by a relationship.

        Raises:
            ValidationError: One is not.
        """
        problems = [*self._given_twice(given, filled), *self._not_given(given, filled)]
        if problems:
            raise self._refused(problems)

    def _given_twice(
        self, given: Mapping[str, Any], filled: Columns
    ) -> Iterator[InitErrorDetails]:
        for name, relation in self.relations.items():
            if name not in given or not relation.local:
                continue
            for column in relation.local:
                key = relation.keys[column]
                if key in given:
                    yield _problem(_twice(name, key), key, given[key])
        for name in self.given_by(filled) if filled else ():
            if name in given:
                yield _problem(_around(name), name, given[name])

    def given_by(self, filled: Columns) -> set[str]:
        """Give the attributes that are not to be given where columns are filled."""
        return {
            *(name for name, column in self.columns.items() if column in filled),
            *(n for n, r in self.relations.items() if not filled.isdisjoint(r.local)),
        }

    def _not_given(
        self, given: Mapping[str, Any], filled: Columns
    ) -> Iterator[InitErrorDetails]:
        named = set()
        for name, fillers in self.fillers.items():
            if name in given or self.columns[name] in filled:
                continue
            if any(given.get(filler) is not None for filler in fillers):
                continue
            place = fillers[0] if fillers else name
            if place not in named:
                named.add(place)
                yield _problem(_missing((*fillers, name)), place, dict(given))

    # Classes of a hierarchy.

    @cached_property
    def discriminator(self) -> str | None:
        """The attribute that says of which class of a hierarchy a row is."""
        column = self.mapper.polymorphic_on
        if not isinstance(column, Column):
            return None
        return self.mapper.get_property_by_column(column).key

    @cached_property
    def variants(self) -> dict[Any, ValueValidator]:
        """The classes that a payload may be of, by what the discriminator says."""
        return {
            mapper.polymorphic_identity: value_validator(mapper.class_)
            for mapper in self.mapper.self_and_descendants
            if mapper.polymorphic_identity is not None
        }

    @property
    def classes(self) -> list[ValueValidator]:
        """The classes that a value may be of."""
        return list(self.variants.values()) or [self]

    def of_class(self, value: Mapping[str, Any]) -> ValueValidator:
        """
        Give the validator of the class that *value* says it is of.

        Raises:
            ValidationError: It says what is none, or nothing where it has to.
        """
        name = self.discriminator
        if name is None:
            return self
        known = ", ".join(map(repr, self.variants))
        if name not in value:
            if self.mapper.polymorphic_identity is not None:
                return self
            problem = PydanticCustomError(
                "abstract_entity",
                "{entity} is abstract; say which one it is: {known}",
                {"entity": self.entity.__name__, "known": known},
            )
            raise self._refused([_problem(problem, name, value)])
        try:
            found = self.variants.get(self._identity.validate_python(value[name]))
        except (ValidationError, TypeError):
            found = None
        if found is None:
            problem = PydanticCustomError(
                "unknown_entity",
                "no {entity} is of that kind; there is {known}",
                {"entity": self.entity.__name__, "known": known},
            )
            raise self._refused([_problem(problem, name, value[name])])
        return found

    @cached_property
    def _identity(self) -> TypeAdapter[Any]:
        column = self.mapper.polymorphic_on
        return column_adapter(columns_of([column])[0])  # type: ignore[list-item]  # one: there is a discriminator

    def _refused(self, problems: list[InitErrorDetails]) -> ValidationError:
        return ValidationError.from_exception_data(self.entity.__name__, problems)

    # What is written out.

    @cached_property
    def written(self) -> TypeAdapter[Any]:
        """What writes the columns of a row."""
        fields = {
            name: annotation(self.mapper, name, column)
            for name, column in readable_columns(self.mapper)
        }
        return _adapter(self.entity, fields)

    def serialize(self, instance: Any, info: Any) -> Any:
        """
        Give the columns of a row by attribute; no I/O.

        Of an instance that is no row yet, those that were set.

        Raises:
            SessionError: One of a row is not loaded.
        """
        if not isinstance(instance, self.entity):
            raise PydanticSerializationUnexpectedValue(
                f"expected {self.entity.__name__}, not {type(instance).__name__}"
            )
        if type(instance) is Proxy:
            instance = target_of(instance)
        state = inspect(instance)
        writer = value_validator(type(instance)).written
        names = dict(readable_columns(state.mapper))
        unloaded = [name for name in names if name not in state.dict]
        if unloaded and state.key is not None:
            raise SessionError(
                f"{type(instance).__name__}.{unloaded[0]} is not loaded, and writing "
                f"it out must not wait for the database; refresh() the instance, or "
                f"commit(expire=False)"
            )
        return writer.serializer.to_python(
            {name: state.dict[name] for name in names if name in state.dict},
            mode=info.mode,
            include=info.include,
            exclude=info.exclude,
            exclude_none=info.exclude_none,
            round_trip=info.round_trip,
        )

    # What JSON Schema says of it.

    def json_schema(self, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Describe what is accepted or written, and every class that this leads to."""
        if handler.mode == "serialization":
            found = list(_definitions(self, None, written=True))
        else:
            found = [d for place in _reachable(self) for d in _definitions(*place)]
        schemas = [schema for schema, _ in found]
        whole: Any = core_schema.definitions_schema(schemas[0], schemas)
        described = handler(whole)
        if handler.mode == "validation":
            for schema, links in found:
                name: Any = core_schema.definition_reference_schema(schema["ref"])
                handler.resolve_ref_schema(handler(name)).update(links)
        return described

    @property
    def ref(self) -> str:
        """What Pydantic knows the class by inside of one schema."""
        return f"{self.entity.__module__}.{self.entity.__qualname__}:{id(self.entity)}"

    def links(self, filled: Columns) -> dict[str, Any]:
        """Say in JSON Schema: each foreign key once, itself or by a relationship."""
        found: list[dict[str, Any]] = [
            {"oneOf": [{"required": [each]} for each in (*fillers, name)]}
            if fillers
            else {"required": [name]}
            for name, fillers in self.fillers.items()
            if self.columns[name] not in filled
        ]
        if any("required" in each for each in found) or len(found) > 1:
            return {"allOf": found}
        return found[0] if found else {}


class Relation:
    """
    Turns what a payload says for a relationship into a reference or a value.

    Exactly the attributes of one identifier are a reference, and so is a scalar;
    anything more is a value.
    """

    def __init__(self, prop: RelationshipProperty[Any]) -> None:
        self.prop = prop
        pairs = prop.local_remote_pairs or ()
        is_mine = prop.direction is MANYTOONE
        is_theirs = prop.direction is ONETOMANY
        #: The foreign key, where it is of this class.
        self.local = columns_of(local for local, _ in pairs if is_mine)
        #: The foreign key, where it is of the other class.
        self.remote: Columns = frozenset(
            columns_of(remote for _, remote in pairs if is_theirs)
        )
        self.keys = {
            column: prop.parent.get_property_by_column(column).key
            for column in self.local
            if column in prop.parent.columns.values()
        }

    @cached_property
    def target(self) -> ValueValidator:
        """What validates a value."""
        return value_validator(self.prop.mapper.class_)

    @cached_property
    def reference(self) -> ReferenceValidator:
        """What validates a reference."""
        return ReferenceValidator(self.prop.mapper.class_, Key())

    @property
    def annotation(self) -> Any:
        """The type of the field."""
        one: Any = Annotated[Any, self]
        if self.prop.uselist:
            return list[one]
        is_optional = not self.local or any(column.nullable for column in self.local)
        return Optional[one] if is_optional else one  # noqa: UP045  # not of a class

    @property
    def place(self) -> _Place:
        """Where a value stands."""
        return self.target, self if self.remote else None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Ask this object."""
        return core_schema.with_info_plain_validator_function(self)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe a reference, or a value."""
        name: Any = core_schema.definition_reference_schema(_ref(*self.place))
        return {"anyOf": [self.reference.json_schema(), handler(name)]}

    def __call__(self, value: Any, info: ValidationInfo[Any]) -> Any:
        """Give the proxy, the instance, or what was made of a value."""
        if isinstance(value, Mapping):
            spellings = identifiers(self.prop.mapper).spellings
            if frozenset(value) not in spellings:
                attempt: Any = current_attempt(SESSION_BULK_CONTEXT.get())
                return self.target.validate(value, info.context, attempt, self.remote)
        return self.reference(value)


_validators: WeakKeyDictionary[type[Any], ValueValidator] = WeakKeyDictionary()


def value_validator(entity: type[Any]) -> ValueValidator:
    """Give the one validator for values of a mapped class."""
    found = _validators.get(entity)
    if found is None:
        found = _validators.setdefault(entity, ValueValidator(entity))
    return found


def _adapter(entity: type[Any], fields: dict[str, Any]) -> TypeAdapter[Any]:
    make: Any = TypedDict
    kind = make(entity.__name__, fields)
    kind.__pydantic_config__ = ConfigDict(extra="forbid", title=entity.__name__)
    return TypeAdapter(kind)


# A class, and the relationship around its value if that fills its foreign key.
_Place = tuple[ValueValidator, Relation | None]


def _reachable(validator: ValueValidator) -> list[_Place]:
    """Give where a payload may have values, by any way."""
    found: dict[_Place, None] = {}
    waiting: list[_Place] = [(validator, None)]
    while waiting:
        place = waiting.pop()
        if place not in found:
            found[place] = None
            for each in place[0].classes:
                waiting += [relation.place for relation in each.relations.values()]
    return list(found)


def _ref(validator: ValueValidator, around: Relation | None, suffix: str = "") -> str:
    name, _, identity = validator.ref.rpartition(":")
    if around is not None:
        prop = around.prop
        name += f"In{prop.parent.class_.__name__}{prop.key.title().replace('_', '')}"
        identity = f"{identity}-{id(around)}"
    return f"{name}{suffix}:{identity}"


def _definitions(
    validator: ValueValidator,
    around: Relation | None,
    *,
    written: bool = False,
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Give the schemas of a value that stands somewhere, and of what links it."""
    whole = _ref(validator, around)
    classes = validator.classes
    if len(classes) > 1:
        choices: list[Any] = [
            core_schema.definition_reference_schema(_ref(each, around, "Only"))
            for each in classes
        ]
        yield core_schema.union_schema(choices, ref=whole), {}
    filled = frozenset() if around is None else around.remote
    for each in classes:
        ref = whole if len(classes) == 1 else _ref(each, around, "Only")
        adapter = each.written if written else each.adapter
        schema = _named(adapter.core_schema, ref, each.given_by(filled))
        yield schema, each.links(filled)


def _named(schema: Any, ref: str, without: Collection[str]) -> Any:
    """Give a schema its name, past the definitions it brings along."""
    if schema["type"] == "definitions":
        return {**schema, "schema": _named(schema["schema"], ref, without)}
    fields = {n: f for n, f in schema["fields"].items() if n not in without}
    return {**schema, "fields": fields, "ref": ref}


def _problem(error: PydanticCustomError, name: str, given: Any) -> InitErrorDetails:
    return InitErrorDetails(type=error, loc=(name,), input=given)


def _twice(relationship: str, column: str) -> PydanticCustomError:
    return PydanticCustomError(
        "link_twice",
        "{relationship} gives it already; give one of the two",
        {"relationship": relationship, "column": column},
    )


def _around(name: str) -> PydanticCustomError:
    return PydanticCustomError(
        "link_twice", "{name} is given by the value around this one", {"name": name}
    )


def _missing(names: Iterable[str]) -> PydanticCustomError:
    listed = " or ".join(dict.fromkeys(names))
    return PydanticCustomError("missing", "{names} is required", {"names": listed})
