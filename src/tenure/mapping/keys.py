"""
Which attributes name a row of a mapped class, and which columns that means.

An *identifier* is a set of attributes: the primary key, a unique constraint, a
unique index, or what the class declares in ``__identifiers__``. A column that
is a relationship's foreign key may be named by the relationship instead, whose
value is then a reference itself. Reads mappers only; no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, cast
from weakref import WeakKeyDictionary

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter
from sqlalchemy import Column, ColumnElement, Table, UniqueConstraint, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper, RelationshipProperty, SynonymProperty
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import LoadError


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One attribute of a key: a column, or a relationship and its foreign key."""

    name: str
    columns: tuple[Column[Any], ...]
    #: For a relationship: the mapper it leads to and the columns it refers to.
    target: Mapper[Any] | None = None
    remote: tuple[Column[Any], ...] = ()


class Shape:
    """
    A way to name a row of an entity: its mapper and the attributes of one key.

    There is one object for each entity and set of attributes, so shapes are
    compared by identity.
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

    @cached_property
    def columns(self) -> tuple[Column[Any], ...]:
        """Every column of the key, in the order of its attributes."""
        return tuple(column for part in self.parts for column in part.columns)

    @cached_property
    def primary_key(self) -> tuple[Column[Any], ...]:
        """The columns that give the row's identity."""
        return columns_of(self.mapper.primary_key)

    @cached_property
    def is_nested(self) -> bool:
        """Whether an attribute of the key is a reference itself."""
        return any(part.target is not None for part in self.parts)

    @cached_property
    def adapters(self) -> tuple[TypeAdapter[Any] | None, ...]:
        """What brings a value to the column's Python type; ``None``: a reference."""
        return tuple(
            None if part.target is not None else column_adapter(part.columns[0])
            for part in self.parts
        )


def columns_of(elements: Iterable[ColumnElement[Any]]) -> tuple[Column[Any], ...]:
    """Give as columns what a mapper knows as any expression."""
    return tuple(cast("Column[Any]", element) for element in elements)


def column_type(column: Column[Any]) -> Any:
    """Give the Python type of a column's values, ``Any`` where it does not say."""
    try:
        found = column.type.python_type
    except NotImplementedError:
        return Any
    # SQLAlchemy 2.0 says so of JSON, which holds lists and numbers as well.
    return Any if found is dict else found


def column_adapter(column: Column[Any]) -> TypeAdapter[Any]:
    """Give the validator for a column's values."""
    try:
        return TypeAdapter(column_type(column))
    except PydanticSchemaGenerationError:
        config = ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(column_type(column), config=config)


class Identifiers:
    """The identifiers of one mapped class, in order: primary key, then declared."""

    def __init__(self, mapper: Mapper[Any]) -> None:
        self.mapper = mapper
        self._parts: dict[str, Part] = {}
        self._shapes: dict[frozenset[str], Shape] = {}
        #: Attribute names, foreign keys spelled by their column attributes.
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
                # A table may have columns that this class does not map.
                if all(column in mapper._columntoproperty for column in columns):
                    yield tuple(mapper.get_property_by_column(c).key for c in columns)

    def part(self, name: str) -> Part:
        """Give the attribute *name* as part of a key, or raise :exc:`KeyError`."""
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
        """Give the shape of the attributes *names*; :exc:`KeyError` if one is not."""
        found = self._shapes.get(frozenset(names))
        if found is None:
            found = Shape(self.mapper, [self.part(name) for name in names])
            self._shapes[frozenset(names)] = found
        return found

    @cached_property
    def spellings(self) -> dict[frozenset[str], Shape]:
        """
        Every set of attribute names that names a row.

        Foreign keys are spelled either way, columns also by their synonyms.
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
        The columns that say which row one is.

        The primary key, the discriminator, and whatever else of the entity the
        foreign keys of mapped relationships refer to.
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
        """Give the mapper of the class that *row* (of :attr:`fetched`) is of."""
        discriminator = self.mapper.polymorphic_on
        if discriminator is None:
            return self.mapper
        value = row[self.fetched.index(discriminator)]
        return self.mapper.polymorphic_map.get(value, self.mapper)

    @cached_property
    def scalars(self) -> tuple[Shape, ...]:
        """The shapes of one attribute that is a plain column."""
        return tuple(
            shape
            for shape in self.spellings.values()
            if len(shape.parts) == 1 and not shape.is_nested
        )

    def is_unique_in_database(self, columns: Sequence[Column[Any]]) -> bool:
        """Whether the database itself keeps *columns* unique."""
        wanted = set(columns)
        return any(
            wanted == set(table.primary_key.columns)
            or any(wanted == set(found) for found in unique_column_sets(table))
            for table in self.mapper.tables
            if isinstance(table, Table)
        )


def unique_column_sets(table: Table) -> Iterator[tuple[Column[Any], ...]]:
    """
    Give the columns of each unique constraint and unique index, the best key first.

    What is never null names every row; after that, the smaller one is better.
    """
    found = [
        tuple(constraint.columns)
        for constraint in table.constraints
        if isinstance(constraint, UniqueConstraint)
    ]
    for index in table.indexes:
        partial = any(
            option.get("where") is not None for option in index.dialect_options.values()
        )
        # An index over an expression or over a part of the rows names no row.
        plain = all(isinstance(part, Column) for part in index.expressions)
        if index.unique and not partial and plain:
            found.append(tuple(index.columns))
    # Constraints are kept in a set: an order of our own makes it repeatable.
    found.sort(
        key=lambda columns: (
            any(column.nullable for column in columns),
            len(columns),
            [column.name for column in columns],
        )
    )
    yield from found


def with_bases(shape: Shape) -> Iterator[Shape]:
    """Give *shape*, and the shapes of base classes that name a row the same way."""
    yield shape
    for mapper in shape.mapper.iterate_to_root():
        if mapper is not shape.mapper and all(n in mapper.attrs for n in shape.names):
            yield identifiers(mapper).shape(shape.names)


_known: WeakKeyDictionary[Mapper[Any], Identifiers] = WeakKeyDictionary()


def mapper_of(entity: Any) -> Mapper[Any]:
    """
    Give the mapper of a mapped class, configured.

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
                f"{entity.__name__} is abstract, so it has no rows; name one of the "
                f"mapped classes that derive from it"
            )
        raise LoadError(
            f"{entity!r} is not a mapped class; map it with SQLAlchemy first"
        )
    mapper._check_configure()
    return mapper


def identifiers(entity: Any) -> Identifiers:
    """
    Give what names a row of the mapped class *entity*.

    Raises:
        LoadError: *entity* is not a mapped class.
    """
    mapper = entity if isinstance(entity, Mapper) else mapper_of(entity)
    found = _known.get(mapper)
    if found is None:
        mapper._check_configure()
        found = _known[mapper] = Identifiers(mapper)
    return found
