"""
Validators that make instances of mapped classes from payloads.

There is one for each class, made once. It reads the mapper when first used: before,
mappers may not be configured, and classes refer to each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from typing import Annotated, Any, NotRequired, Optional
from weakref import WeakKeyDictionary

from pydantic import (
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
    SchemaValidator,
    core_schema,
)
from sqlalchemy import Column
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.orm.interfaces import MANYTOONE, ONETOMANY

from ..context import SESSION_BULK_CONTEXT
from ..mapping import (
    annotation,
    column_adapter,
    columns_of,
    identifiers,
    is_filled,
    mapper_of,
    new_instance,
)
from ..references import Draft, Proxy, ReferenceValidator, current_draft, target_of
from .problems import filled_around, filled_twice, none_given, problem_at
from .serialize import serialize, typed_dict_adapter
from .unconnected import as_given, set_relationship
from .writable import writable_columns, writable_relationships

#: Levels of values inside of values; more are a mistake or an attack.
MOST_LEVELS = 100

Columns = frozenset[Column[Any]]


class ValueValidator:
    """Makes instances of one mapped class from mappings of its attributes."""

    def __init__(self, entity: type[Any]) -> None:
        self.entity = entity

    @cached_property
    def mapper(self) -> Mapper[Any]:
        """The mapper of the class, configured."""
        return mapper_of(self.entity)

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """The columns that a payload may set, by attribute."""
        return dict(writable_columns(self.mapper))

    @cached_property
    def relations(self) -> dict[str, Relation]:
        """The relationships that a payload may set."""
        return {
            prop.key: Relation(prop) for prop in writable_relationships(self.mapper)
        }

    @cached_property
    def factories(self) -> dict[str, Any]:
        """The default factories of a dataclass, where the column has no default."""
        return {
            name: field.default_factory
            for name, field in getattr(self.entity, "__dataclass_fields__", {}).items()
            if callable(field.default_factory)
            and name not in self.mapper.relationships
            and getattr(self.mapper.columns.get(name), "default", None) is None
        }

    @cached_property
    def required(self) -> frozenset[str]:
        """The attributes that must be given: nothing else fills their columns."""
        return frozenset(
            name
            for name in self.columns
            if name not in self.factories
            and not is_filled(self.mapper, self.columns[name])
        )

    @cached_property
    def fillers(self) -> dict[str, tuple[str, ...]]:
        """
        The required foreign keys, and the relationships that fill each.

        There may be none here: a relationship of the value around it can fill one.
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
        """The validator of the attributes, each for itself."""
        fields: dict[str, Any] = {}
        for name, column in self.columns.items():
            kind = annotation(self.mapper, name, column)
            if name == self.discriminator:
                kind = Any
            is_needed = name in self.required and name not in self.fillers
            fields[name] = kind if is_needed else NotRequired[kind]
        for name, relation in self.relations.items():
            fields[name] = NotRequired[relation.annotation]
        return typed_dict_adapter(self.entity, fields)

    @cached_property
    def one(self) -> SchemaValidator:
        """The validator of a payload."""
        # self.mapper raises here if the class is not mapped: no ValidationError.
        config = CoreConfig(title=self.mapper.class_.__name__)
        return SchemaValidator(self.core_schema, config)

    @cached_property
    def many(self) -> SchemaValidator:
        """The validator of a list of payloads."""
        config = CoreConfig(title=f"list[{self.mapper.class_.__name__}]")
        return SchemaValidator(core_schema.list_schema(self.core_schema), config)

    @property
    def core_schema(self) -> CoreSchema:
        """The schema for Pydantic, which calls this object."""
        return core_schema.with_info_plain_validator_function(
            self,
            ref=self.ref,
            serialization=core_schema.plain_serializer_function_ser_schema(
                partial(serialize, self.entity), info_arg=True
            ),
        )

    def __call__(self, value: Any, info: ValidationInfo[Any]) -> Any:
        """Return the instance that *value* is or describes, and register it."""
        bulk = SESSION_BULK_CONTEXT.get()
        draft = current_draft(bulk)
        if draft is not None:
            return self.validate(value, info.context, draft)
        draft = Draft(bulk)
        found = draft.run(self.validate, value, info.context, draft)
        # All that was registered is in use: a mapped class has no unions.
        draft.keep(found)
        return found

    def validate(
        self,
        value: Any,
        context: Any,
        draft: Draft,
        filled: Columns = frozenset(),
    ) -> Any:
        """
        Return the instance that *value* is or describes.

        Args:
            filled: The columns that the value around this one fills.
        """
        if isinstance(value, self.entity):
            return target_of(value) if type(value) is Proxy else value
        if not isinstance(value, Mapping):
            raise PydanticKnownError("dict_type")
        if id(value) in draft.inside:
            raise PydanticKnownError("recursion_loop")
        if len(draft.inside) == MOST_LEVELS:
            raise PydanticCustomError(
                "too_many_levels",
                "there are more than {most} levels of values inside of values",
                {"most": MOST_LEVELS},
            )
        draft.inside.append(id(value))
        try:
            validator = self.of_class(value)
            given = validator.adapter.validator.validate_python(value, context=context)
        finally:
            draft.inside.pop()
        if validator.discriminator is not None:
            # The class sets it.
            given.pop(validator.discriminator, None)
        validator.check_links(given, filled)
        instance = validator.make(given)
        draft.values.append(instance)
        return instance

    def make(self, given: Mapping[str, Any]) -> Any:
        """Return a new instance with the attributes *given*."""
        instance = new_instance(self.mapper)
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
                # Raised by a method of the class that has @validates.
                problem = PydanticCustomError(
                    "value_error", "Value error, {error}", {"error": str(error)}
                )
                raise self._refused([problem_at(problem, name, part)]) from None
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
                    yield problem_at(filled_twice(name, key), key, given[key])
        for name in self.given_by(filled) if filled else ():
            if name in given:
                yield problem_at(filled_around(name), name, given[name])

    def given_by(self, filled: Columns) -> set[str]:
        """Return the attributes that must not be given if columns are filled."""
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
                yield problem_at(none_given((*fillers, name)), place, dict(given))

    # Classes of a hierarchy.

    @cached_property
    def discriminator(self) -> str | None:
        """The attribute that tells the class of a row in a hierarchy."""
        column = self.mapper.polymorphic_on
        if not isinstance(column, Column):
            return None
        return self.mapper.get_property_by_column(column).key

    @cached_property
    def variants(self) -> dict[Any, ValueValidator]:
        """The classes that a payload may be of, by polymorphic identity."""
        return {
            mapper.polymorphic_identity: value_validator(mapper.class_)
            for mapper in self.mapper.self_and_descendants
            if mapper.polymorphic_identity is not None
        }

    @property
    def classes(self) -> list[ValueValidator]:
        """The validators of all classes that a value may be of."""
        return list(self.variants.values()) or [self]

    def of_class(self, value: Mapping[str, Any]) -> ValueValidator:
        """
        Return the validator of the class that the discriminator of *value* tells.

        Raises:
            ValidationError: There is no such class, or the discriminator is required.
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
                "{entity} is abstract; give one of {known}",
                {"entity": self.entity.__name__, "known": known},
            )
            raise self._refused([problem_at(problem, name, value)])
        try:
            found = self.variants.get(self._identity.validate_python(value[name]))
        except (ValidationError, TypeError):
            found = None
        if found is None:
            problem = PydanticCustomError(
                "unknown_entity",
                "not a kind of {entity}; give one of {known}",
                {"entity": self.entity.__name__, "known": known},
            )
            raise self._refused([problem_at(problem, name, value[name])])
        return found

    @cached_property
    def _identity(self) -> TypeAdapter[Any]:
        column = self.mapper.polymorphic_on
        return column_adapter(columns_of([column])[0])  # type: ignore[list-item]  # one: there is a discriminator

    def _refused(self, problems: list[InitErrorDetails]) -> ValidationError:
        return ValidationError.from_exception_data(self.entity.__name__, problems)

    @property
    def ref(self) -> str:
        """The name of the class in schemas of Pydantic."""
        return f"{self.entity.__module__}.{self.entity.__qualname__}:{id(self.entity)}"


class Relation:
    """
    Makes a reference or a value of what a payload has for a relationship.

    A scalar, or exactly the attributes of one identifier, are a reference; a mapping
    of more attributes is a value.
    """

    def __init__(self, prop: RelationshipProperty[Any]) -> None:
        self.prop = prop
        pairs = prop.local_remote_pairs or ()
        is_mine = prop.direction is MANYTOONE
        is_theirs = prop.direction is ONETOMANY
        #: The foreign key, if this class has it.
        self.local = columns_of(local for local, _ in pairs if is_mine)
        #: The foreign key, if the other class has it.
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
        """The validator of a value."""
        return value_validator(self.prop.mapper.class_)

    @cached_property
    def reference(self) -> ReferenceValidator:
        """The validator of a reference."""
        return ReferenceValidator(self.prop.mapper.class_)

    @property
    def annotation(self) -> Any:
        """The type of the field."""
        one: Any = Annotated[Any, self]
        if self.prop.uselist:
            return list[one]
        is_optional = not self.local or any(column.nullable for column in self.local)
        return Optional[one] if is_optional else one  # noqa: UP045  # not of a class

    @property
    def place(self) -> Place:
        """Where a value of this relationship is."""
        return self.target, self if self.remote else None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Return a schema that calls this object."""
        return core_schema.with_info_plain_validator_function(self)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema of a reference or a value."""
        name: Any = core_schema.definition_reference_schema(ref_of(*self.place))
        return {"anyOf": [self.reference.json_schema(), handler(name)]}

    def __call__(self, value: Any, info: ValidationInfo[Any]) -> Any:
        """Return the proxy, the instance, or the instance made of a value."""
        if isinstance(value, Mapping):
            spellings = identifiers(self.prop.mapper).spellings
            if frozenset(value) not in spellings:
                draft: Any = current_draft(SESSION_BULK_CONTEXT.get())
                return self.target.validate(value, info.context, draft, self.remote)
        return self.reference(value)


_validators: WeakKeyDictionary[type[Any], ValueValidator] = WeakKeyDictionary()


def value_validator(entity: type[Any]) -> ValueValidator:
    """Return the one validator for values of a mapped class."""
    found = _validators.get(entity)
    if found is None:
        found = _validators.setdefault(entity, ValueValidator(entity))
    return found


#: A class, and the relationship around its value if that fills its foreign key.
Place = tuple[ValueValidator, Relation | None]


def ref_of(validator: ValueValidator, around: Relation | None, suffix: str = "") -> str:
    """Return the name of a class in schemas of Pydantic, at one place."""
    name, _, identity = validator.ref.rpartition(":")
    if around is not None:
        prop = around.prop
        name += f"In{prop.parent.class_.__name__}{prop.key.title().replace('_', '')}"
        identity = f"{identity}-{id(around)}"
    return f"{name}{suffix}:{identity}"
