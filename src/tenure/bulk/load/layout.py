"""
How the fields of a model become columns of a table. Reads mappers; no I/O.

A :class:`Layout` is worked out once for each set of fields a source gives.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from operator import itemgetter
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.orm import Mapper, RelationshipProperty
from sqlalchemy.orm.interfaces import MANYTOONE

from ...errors import LoadError
from ...mapping import UniqueKey, columns_of, identifiers, unique_keys
from ...models import (
    check_fields,
    composed_fields,
    computed_attributes,
    label_of,
    names_accepted,
    unwritten_fields,
)
from ..read import Accepted, Record
from ..write import OnConflict, Row


@dataclass(frozen=True, slots=True)
class ReferenceField:
    """A field that names a row: what it fills, and with what of that row."""

    name: str
    position: int
    mapper: Mapper[Any]
    local: tuple[Column[Any], ...]
    #: Where the columns of that row are in what a look-up fetched.
    remote: tuple[int, ...]

    @property
    def is_optional(self) -> bool:
        """Whether the row may be written without it."""
        return all(column.nullable for column in self.local)


class Layout:
    """How the fields that rows have become columns."""

    def __init__(
        self,
        mapper: Mapper[Any],
        fields: Sequence[str],
        given: Collection[str],
        unwritten: Collection[str] = (),
    ) -> None:
        self.fields = tuple(fields)
        self.references: list[ReferenceField] = []
        plain_columns: list[Column[Any]] = []
        self.plain: list[int] = []
        for position, name in enumerate(fields):
            if name in unwritten:
                continue
            prop = mapper.attrs[name]
            if isinstance(prop, RelationshipProperty):
                self.references.append(_reference_field(name, position, prop))
            else:
                plain_columns.append(mapper.columns[name])
                self.plain.append(position)
        made = [
            *plain_columns,
            *(column for field in self.references for column in field.local),
        ]
        # In the order of the table, as SQLAlchemy compiles an INSERT.
        tables = sorted(
            mapper.tables, key=lambda table: table is not mapper.local_table
        )
        places = {c: n for n, c in enumerate(c for table in tables for c in table.c)}
        self.order = sorted(range(len(made)), key=lambda n: places[made[n]])
        self.columns = tuple(made[n] for n in self.order)
        #: The attribute each column is filled by.
        self.names = {
            column: name
            for name, column in [
                *(
                    (fields[p], c)
                    for p, c in zip(self.plain, plain_columns, strict=True)
                ),
                *((f.name, c) for f in self.references for c in f.local),
            ]
        }
        #: The columns of what identifies the rows, if anything does.
        self.key: tuple[Column[Any], ...] = ()
        #: The index that does, where it is not all of these columns of all rows.
        self.unique: UniqueKey | None = None
        #: Whether a key that is null in part identifies one row.
        self.nulls_are_equal = False
        self._others: dict[tuple[int, ...], Layout] = {}
        #: What :meth:`Layouts.of` made it of.
        self.made_of: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()
        #: Whether the unit of work is to decide what a null becomes.
        self.has_null_defaults = False
        #: The columns that an update may change: a default was not given.
        self.given = frozenset(c for c, name in self.names.items() if name in given)
        self.get: Callable[[dict[str, Any]], Row] = (
            itemgetter(*fields)
            if len(fields) > 1
            else lambda held: tuple([held[name] for name in fields])
        )

    @cached_property
    def defaulted(self) -> list[int]:
        """The places of columns in which a flush writes a default for a null."""
        return [
            place
            for place, column in enumerate(self.columns)
            if not column.type.should_evaluate_none
            and (
                column.default is not None
                or column.server_default is not None
                or column is getattr(column.table, "autoincrement_column", None)
            )
        ]

    def null_at(self, places: tuple[int, ...], *, for_new: bool) -> Layout:
        """
        Return the layout of rows that are null at *places*, where there are defaults.

        Args:
            for_new: Whether all rows are new: the database's defaults are left to it.
        """
        other = self._others.get(places)
        if other is not None:
            return other
        other = self._others[places] = copy(self)
        kept = [c for n, c in enumerate(self.columns) if n not in places]
        if kept and for_new and all(self.columns[n].default is None for n in places):
            other.columns = tuple(kept)
            # A key may be what the default makes.
            other.key = self.key if set(self.key) <= set(kept) else ()
        else:
            other.has_null_defaults = True
        return other

    def find_key(self, mapper: Mapper[Any], dialect: str, *, for_upsert: bool) -> None:
        """
        Set what identifies the rows: an identifier that the database keeps unique.

        An upsert can also go by an index of some of the rows, or of expressions, or by
        what is only declared.
        """
        known, present = identifiers(mapper), set(self.columns)
        shapes = [known.shape(names) for names in known.names]
        shapes = [shape for shape in shapes if present.issuperset(shape.columns)]
        is_on_postgresql = dialect == "postgresql"
        for shape in shapes:
            if known.is_unique_in_database(shape.columns):
                self.key = shape.columns
                self.nulls_are_equal = is_on_postgresql and shape.nulls_are_equal
                return
        if not for_upsert:
            return
        for unique in _indexes(mapper):
            if present.issuperset(unique.columns) and not unique.why_not_named(dialect):
                self.key, self.unique = unique.columns, unique
                self.nulls_are_equal = is_on_postgresql and unique.nulls_are_equal
                return
        if shapes:
            self.key = shapes[0].columns


def _indexes(mapper: Mapper[Any]) -> Iterator[UniqueKey]:
    """Yield the unique indexes of a class that identify no row of all of them."""
    for table in mapper.tables:
        if isinstance(table, Table):
            yield from (key for key in unique_keys(table) if not key.is_plain)


def _reference_field(
    name: str, position: int, prop: RelationshipProperty[Any]
) -> ReferenceField:
    if prop.direction is not MANYTOONE or prop.secondary is not None:
        raise LoadError(
            f"{prop.parent.class_.__name__}.{name} is a collection; load() writes "
            f"rows of one table, so only many-to-one references can be in them"
        )
    columns = identifiers(prop.mapper).fetched
    pairs = prop.local_remote_pairs or ()
    return ReferenceField(
        name,
        position,
        prop.mapper,
        columns_of(local for local, _ in pairs),
        tuple(columns.index(remote) for _, remote in pairs),
    )


@dataclass(slots=True, eq=False)
class Rows:
    """
    Valid rows that set the same fields: where each is from, and its values.

    ``fields`` has them by field, ``columns`` by column of the table.
    """

    layout: Layout
    records: Sequence[Record]
    fields: list[Sequence[Any]] = field(default_factory=list)
    columns: list[Sequence[Any]] = field(default_factory=list)
    #: Those that are rejected, by position.
    refused: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def kept(self) -> list[int]:
        """The positions of the rows that are not rejected."""
        if not self.refused:
            return list(range(len(self.records)))
        return [n for n in range(len(self.records)) if n not in self.refused]

    def by_defaults(self, *, for_new: bool) -> Iterator[Rows]:
        """Yield the rows, made columns, by where they leave a value to a default."""
        places = [n for n in self.layout.defaulted if None in self.columns[n]]
        if not places:
            yield self
            return
        groups: dict[tuple[int, ...], list[int]] = {}
        for row in self.kept:
            nulls = tuple(n for n in places if self.columns[n][row] is None)
            groups.setdefault(nulls, []).append(row)
        for nulls, rows in groups.items():
            layout = (
                self.layout.null_at(nulls, for_new=for_new) if nulls else self.layout
            )
            left = set(layout.columns)
            columns: list[Sequence[Any]] = [
                [values[n] for n in rows]
                for column, values in zip(
                    self.layout.columns, self.columns, strict=True
                )
                if column in left
            ]
            yield Rows(layout, [self.records[n] for n in rows], columns=columns)

    def only(self, kept: Sequence[int]) -> Rows:
        """Return some of the rows, by position; none of these are columns yet."""
        return Rows(
            self.layout,
            [self.records[n] for n in kept],
            fields=[[values[n] for n in kept] for values in self.fields],
        )


class NoKeyError(LoadError):
    """Rows give nothing that identifies them, and an upsert goes by that."""


class Layouts:
    """
    What a model and a mapped class have to do with each other.

    Attributes:
        labels: What a source calls each field.
    """

    def __init__(
        self,
        into: type[Any],
        mapper: Mapper[Any],
        on_conflict: OnConflict,
        dialect: str,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        check_fields(into, mapper)
        #: The attributes that an update may change; ``None``: any.
        self.allowed = None if update_fields is None else frozenset(update_fields)
        for name in self.allowed or ():
            if name not in mapper.attrs:
                raise LoadError(
                    f"update_fields: {mapper.class_.__name__} has no attribute {name!r}"
                )
        self.dialect = dialect
        self.into = into
        self.mapper = mapper
        self.on_conflict = on_conflict
        #: Fields that the model computes for each row.
        self.computed = computed_attributes(into)
        self.labels = {name: label_of(into, name) for name in into.model_fields}
        self.labels |= {name: name for name in self.computed}
        self._composed = composed_fields(into)
        self._accepted = {
            name: names_accepted(into, name) for name in into.model_fields
        }
        self._known = set().union(*self._accepted.values())
        self._made: dict[tuple[frozenset[str], frozenset[str]], Layout] = {}

    @property
    def is_open(self) -> bool:
        """Whether the model itself says what to do with columns it does not know."""
        return "extra" in self.into.model_config

    @property
    def accepted(self) -> Accepted:
        """What a source may have."""
        return Accepted(frozenset(self._known), self.is_open)

    def unknown(self, names: Iterable[str]) -> Iterator[str]:
        """Return those of *names* that are no field of the model."""
        return (name for name in names if name not in self._known)

    def of_header(self, header: Sequence[str], *, may_add: bool) -> Layout | None:
        """
        Return the layout for rows that all have the columns *header*.

        ``None``: the model may add fields to a row (*may_add*), so each has its own.

        Raises:
            LoadError: The model does not know one of them, or needs another.
        """
        unknown = [] if self.is_open else list(self.unknown(header))
        if unknown:
            folded = {name.strip().casefold() for name in self._known}
            alike = any(name.strip().casefold() in folded for name in unknown)
            loosely = "say header='loose' if case and blanks do not count; " * alike
            raise LoadError(
                f"{self.into.__name__} knows no column {', '.join(map(repr, unknown))} "
                f"(it knows {', '.join(sorted(self._known))}); {loosely}to leave such "
                f"columns out, say ignore= or set "
                f"model_config = ConfigDict(extra='ignore')"
            )
        self._check_required(header)
        if may_add:
            return None
        if self._known.isdisjoint(header):
            raise LoadError(
                f"the source has none of the columns that {self.into.__name__} knows "
                f"({', '.join(sorted(self._known))}); its columns are "
                f"{', '.join(map(repr, header))}"
            )
        return self.of(
            name
            for name in self.into.model_fields
            if not self._accepted[name].isdisjoint(header)
        )

    def _check_required(self, header: Sequence[str]) -> None:
        validators = self.into.__pydantic_decorators__.model_validators.values()
        if any(validator.info.mode != "after" for validator in validators):
            return  # it may make the column itself
        missing = [
            "/".join(sorted(self._accepted[name]))
            for name, info in self.into.model_fields.items()
            if info.is_required()
            and name not in self._composed
            and self._accepted[name].isdisjoint(header)
        ]
        if missing:
            raise LoadError(
                f"the source has no column {', '.join(map(repr, missing))}, which "
                f"{self.into.__name__} requires; its columns are {', '.join(header)}"
            )

    def of(self, given: Iterable[str], filled: Iterable[str] = ()) -> Layout:
        """
        Return the layout for rows that set the fields *given*.

        Args:
            filled: Fields for which the model has a value in these rows.

        Raises:
            NoKeyError: They have no key, and what is in conflict goes by one.
        """
        present, others = frozenset(given), frozenset(filled)
        layout = self._made.get((present, others))
        if layout is None:
            # What was not given is left to the database, unless the model has a
            # value for it.
            written = {
                name
                for name, info in self.into.model_fields.items()
                if name in present
                or name in others
                or name in self._composed
                or (
                    info.get_default(call_default_factory=False) is not None
                    and not info.is_required()
                )
                or info.default_factory is not None
            }
            written -= unwritten_fields(self.into)
            written |= set() if written else self._one_null()
            # Keys are composed of others as well.
            parts = written.union(*(self._composed.get(name, ()) for name in written))
            fields = [name for name in self.into.model_fields if name in parts]
            composed = (n for n, of in self._composed.items() if present & of)
            given_here = present.union(composed, self.computed)
            layout = Layout(
                self.mapper, fields + list(self.computed), given_here, parts - written
            )
            if self.allowed is not None:
                layout.given = frozenset(filter(self._is_allowed(layout), layout.given))
            layout.made_of = present, others
            self._made[present, others] = layout
            for_upsert = self.on_conflict != "raise"
            layout.find_key(self.mapper, self.dialect, for_upsert=for_upsert)
        if self.on_conflict != "raise" and not layout.key:
            raise NoKeyError(self._lacks_key(layout))
        return layout

    def _one_null(self) -> set[str]:
        """Return a field that is null in a row that gives nothing, as in a flush."""
        for name, info in self.into.model_fields.items():
            column = self.mapper.columns.get(name)
            if (
                isinstance(column, Column)
                and not column.primary_key
                and column.default is None
                and column.server_default is None
                and info.get_default() is None
                and not info.is_required()
            ):
                return {name}
        return set()

    def _is_allowed(self, layout: Layout) -> Callable[[Column[Any]], bool]:
        names = self.allowed or frozenset()
        prop = self.mapper.get_property_by_column
        return lambda c: layout.names[c] in names or prop(c).key in names

    def _lacks_key(self, layout: Layout) -> str:
        keys = [f"({', '.join(names)})" for names in identifiers(self.mapper).names]
        unusable = []
        for unique in _indexes(self.mapper):
            why = unique.why_not_named(self.dialect)
            if why:
                unusable.append(f"; the index {unique.name} on {unique} is none: {why}")
            else:
                keys.append(str(unique))
        return (
            f"on_conflict={self.on_conflict!r} needs a unique key of "
            f"{self.mapper.class_.__name__} among the fields "
            f"({', '.join(layout.fields)}); its keys are {' or '.join(keys)}"
            + "".join(unusable)
        )
