"""
Which attributes identify a row of a mapped class, and which columns these are.

An *identifier* is a set of attributes: the primary key, a unique constraint, a unique
index, or what the class declares in ``__identifiers__``. In place of a foreign key it
may have the relationship, whose value is then a reference itself. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter
from sqlalchemy import Column, ColumnElement, Table, event, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import (
    ColumnProperty,
    Mapper,
    RelationshipProperty,
    SynonymProperty,
    class_mapper,
)
from sqlalchemy.orm.exc import UnmappedColumnError
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import LoadError
from .unique import unique_column_sets, unique_keys


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One attribute of a key: a column, or a relationship and its foreign key."""

    name: str
    columns: tuple[Column[Any], ...]
    #: Of a relationship: the mapper of the other class, and the columns there.
    target: Mapper[Any] | None = None
    remote: tuple[Column[Any], ...] = ()


class Shape:
    """
    The attributes of one key of a mapped class, without values.

    There is one object for each class and set of attributes, so that shapes can be
    compared by identity. Its order is that of the columns of the class, and not always
    that of whoever asks: see :meth:`arranged`.
    """

    def __init__(self, mapper: Mapper[Any], parts: Sequence[Part]) -> None:
        self.mapper = mapper
        self.parts = tuple(parts)
        self.names = tuple(part.name for part in parts)

    def __repr__(self) -> str:
        return f"<{self.entity.__name__} by {', '.join(self.names)}>"

    @property
    def entity(self) -> type[Any]:
        """The mapped class."""
        return self.mapper.class_

    def arranged(self, names: Sequence[str], values: Sequence[Any]) -> tuple[Any, ...]:
        """Return the *values* of attributes, called *names*, in the order of the shape."""
        if self.names == tuple(names):
            return tuple(values)
        held = dict(zip(names, values, strict=True))
        return tuple([held[name] for name in self.names])

    @cached_property
    def columns(self) -> tuple[Column[Any], ...]:
        """Every column of the key, in the order of its attributes."""
        return tuple(column for part in self.parts for column in part.columns)

    @cached_property
    def primary_key(self) -> tuple[Column[Any], ...]:
        """The columns of the primary key."""
        return columns_of(self.mapper.primary_key)

    @cached_property
    def is_nested(self) -> bool:
        """Whether an attribute of the key is a reference itself."""
        return any(part.target is not None for part in self.parts)

    @cached_property
    def nulls_are_equal(self) -> bool:
        """Whether a key that is null in part names one row at most."""
        return any(
            key.nulls_are_equal and set(key.columns) == set(self.columns)
            for table in self.mapper.tables
            if isinstance(table, Table)
            for key in unique_keys(table)
        )

    @cached_property
    def adapters(self) -> tuple[TypeAdapter[Any] | None, ...]:
        """Validators for the values of the attributes; ``None`` for a reference."""
        return tuple(
            None if part.target is not None else column_adapter(part.columns[0])
            for part in self.parts
        )


def columns_of(elements: Iterable[ColumnElement[Any]]) -> tuple[Column[Any], ...]:
    """Return as columns what a mapper declares as expressions."""
    return tuple(cast("Column[Any]", element) for element in elements)


def column_type(column: Column[Any]) -> Any:
    """Return the Python type of a column's values; ``Any`` if that is unknown."""
    try:
        found = column.type.python_type
    except NotImplementedError:
        return Any
    # That of JSON in SQLAlchemy 2.0, which can be a list or a number as well.
    return Any if found is dict else found


def column_adapter(column: Column[Any]) -> TypeAdapter[Any]:
    """Return a validator for a column's values."""
    try:
        return TypeAdapter(column_type(column))
    except PydanticSchemaGenerationError:
        config = ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(column_type(column), config=config)


class Identifiers:
    """
    The identifiers of one mapped class.

    Primary key first, then ``__identifiers__``, then unique constraints and indexes.
    """

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self._parts: dict[str, Part] = {}
        self._shapes: dict[frozenset[str], Shape] = {}
        #: What constraints and indexes keep unique, keys included.
        self._unique: set[frozenset[Column[Any]]] = {
            frozenset(table.primary_key.columns)
            for table in mapper.tables
            if isinstance(table, Table)
        }
        #: The attributes of each identifier, columns in place of relationships.
        self.names: tuple[tuple[str, ...], ...] = tuple(dict.fromkeys(self._read()))

    def _read(self) -> Iterator[tuple[str, ...]]:
        mapper = self.mapper
        yield tuple(mapper.get_property_by_column(c).key for c in mapper.primary_key)
        for declared in getattr(mapper.class_, "__identifiers__", ()):
            yield (declared,) if isinstance(declared, str) else tuple(declared)
        for table in mapper.tables:
            if not isinstance(table, Table):
                continue
            for columns in unique_column_sets(table):
                self._unique.add(frozenset(columns))
                # A table may have columns that this class does not map.
                found = [property_of(mapper, column) for column in columns]
                names = tuple(prop.key for prop in found if prop is not None)
                if len(names) == len(columns):
                    yield names

    def part(self, name: str) -> Part:
        """Return the attribute *name* as part of a key, or raise :exc:`KeyError`."""
        part = self._parts.get(name)
        if part is None:
            prop = self.mapper.attrs[name]
            if isinstance(prop, SynonymProperty):
                prop = self.mapper.attrs[prop.name]
            if isinstance(prop, RelationshipProperty):
                if prop.direction is not MANYTOONE or prop.secondary is not None:
                    raise KeyError(name)
                part = Part(
                    name,
                    columns_of(local for local, _ in prop.local_remote_pairs),
                    prop.mapper,
                    columns_of(remote for _, remote in prop.local_remote_pairs),
                )
            else:
                part = Part(name, (self.mapper.columns[prop.key],))
            self._parts[name] = part
        return part

    def shape(self, names: Sequence[str]) -> Shape:
        """
        Return the shape of *names*, not always in their order.

        Raises:
            KeyError: One is no attribute that a key can have.
        """
        found = self._shapes.get(frozenset(names))
        if found is None:
            places = {column: n for n, column in enumerate(self.mapper.columns)}
            parts = [self.part(name) for name in names]
            parts.sort(key=lambda part: places.get(part.columns[0], len(places)))
            found = Shape(self.mapper, parts)
            self._shapes[frozenset(names)] = found
        return found

    @cached_property
    def spellings(self) -> dict[frozenset[str], Shape]:
        """
        The shape of each set of attributes that identifies a row.

        Each identifier with its foreign keys as columns and as relationships, and
        with the synonyms of its columns.
        """
        by_column: dict[ColumnElement[Any], list[str]] = {}
        for synonym in self.mapper.synonyms:
            column = self.mapper.columns.get(synonym.name)
            if column is not None:
                by_column.setdefault(column, []).append(synonym.key)
        for relationship in self.mapper.relationships:
            if relationship.direction is MANYTOONE and not relationship.viewonly:
                for local, _ in relationship.local_remote_pairs:
                    by_column.setdefault(local, []).append(relationship.key)
        found: dict[frozenset[str], Shape] = {}
        for names in self.names:
            options = []
            for name in names:
                part = self.part(name)
                options.append(
                    [name]
                    if part.target is not None
                    else [name, *by_column.get(part.columns[0], ())]
                )
            covered = {c for name in names for c in self.part(name).columns}
            for choice in product(*options):
                spelled = tuple(dict.fromkeys(choice))
                columns = [c for name in spelled for c in self.part(name).columns]
                if set(columns) == covered and len(columns) == len(covered):
                    found.setdefault(frozenset(spelled), self.shape(spelled))
        return found

    @cached_property
    def fetched(self) -> tuple[Column[Any], ...]:
        """
        The columns that a look-up fetches of each row.

        The primary key, the discriminator, and what else foreign keys of mapped
        relationships refer to.
        """
        found = dict.fromkeys(self.mapper.primary_key)
        if self.mapper.polymorphic_on is not None:
            found[self.mapper.polymorphic_on] = None
        mapped = set(self.mapper.columns.values())
        for other in self.mapper.registry.mappers:
            for relationship in other.relationships:
                if self.mapper.isa(relationship.mapper):
                    for _, remote in relationship.local_remote_pairs or ():
                        if remote in mapped:
                            found[remote] = None
        return columns_of(found)

    def mapper_for(self, row: tuple[Any, ...]) -> Mapper[Any]:
        """Return the mapper of the class of *row*, values of :attr:`fetched`."""
        discriminator = self.mapper.polymorphic_on
        if discriminator is None:
            return self.mapper
        value = row[self.fetched.index(discriminator)]
        return self.mapper.polymorphic_map.get(value, self.mapper)

    @cached_property
    def scalars(self) -> tuple[Shape, ...]:
        """The shapes that have one attribute only, a column."""
        return tuple(
            shape
            for shape in self.spellings.values()
            if len(shape.parts) == 1 and not shape.is_nested
        )

    def is_unique_in_database(self, columns: Sequence[Column[Any]]) -> bool:
        """Whether a constraint or an index of the database keeps *columns* unique."""
        return frozenset(columns) in self._unique


def with_bases(shape: Shape) -> Iterator[Shape]:
    """Yield *shape*, and those of base classes that have the same attributes."""
    yield shape
    for mapper in shape.mapper.iterate_to_root():
        if mapper is not shape.mapper and all(n in mapper.attrs for n in shape.names):
            yield identifiers(mapper).shape(shape.names)


_known: WeakKeyDictionary[Mapper[Any], Identifiers] = WeakKeyDictionary()


def mapper_of(entity: Any) -> Mapper[Any]:
    """
    Return the mapper of a mapped class, configured.

    Raises:
        LoadError: *entity* is not a mapped class.
    """
    try:
        mapper = inspect(entity)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        if getattr(entity, "__dict__", {}).get("__abstract__"):
            raise LoadError(
                f"{entity.__name__} is abstract, so it has no rows; use one of the "
                f"mapped classes that derive from it"
            )
        raise LoadError(
            f"{entity!r} is not a mapped class; map it with SQLAlchemy first"
        )
    # Configures the mappers if there are new ones.
    return class_mapper(mapper.class_)


def property_of(mapper: Mapper[Any], column: Any) -> ColumnProperty[Any] | None:
    """Return the attribute that maps *column*; ``None`` if *mapper* maps it nowhere."""
    try:
        found: Any = mapper.get_property_by_column(column)
    except UnmappedColumnError:
        return None
    return found  # type: ignore[no-any-return]  # SQLAlchemy only says MapperProperty


def reverse_sides(
    relationship: RelationshipProperty[Any],
) -> tuple[RelationshipProperty[Any], ...]:
    """
    Return the relationships that SQLAlchemy keeps in step with one.

    That of its ``back_populates``, and those whose ``back_populates`` it is.
    """
    found = _reverse_sides.get(relationship)
    if found is None:
        found = _reverse_sides[relationship] = tuple(
            other
            for mapper in relationship.mapper.base_mapper.self_and_descendants
            for other in mapper.relationships
            if other.parent is mapper and _is_reverse(relationship, other)
        )
    return found


def _is_reverse(
    one: RelationshipProperty[Any], other: RelationshipProperty[Any]
) -> bool:
    return any(
        there.key == here.back_populates and here.mapper.attrs.get(there.key) is there
        for here, there in ((one, other), (other, one))
    )


_reverse_sides: WeakKeyDictionary[
    RelationshipProperty[Any], tuple[RelationshipProperty[Any], ...]
] = WeakKeyDictionary()


@event.listens_for(Mapper, "after_configured")
def _forget_reverse_sides() -> None:
    # New classes may have relationships back to old ones.
    _reverse_sides.clear()


def identifiers(entity: Any) -> Identifiers:
    """
    Return the identifiers of a mapped class.

    Raises:
        LoadError: *entity* is not a mapped class.
    """
    mapper = entity if isinstance(entity, Mapper) else mapper_of(entity)
    found = _known.get(mapper)
    if found is None:
        found = _known[mapper] = Identifiers(class_mapper(mapper.class_))
    return found
