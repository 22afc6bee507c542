"""References of a batch: looked up, counted, turned into columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from types import NoneType
from typing import Any, Literal

from pydantic_core import PydanticCustomError
from sqlalchemy.orm import Mapper

from ...context import SESSION_BULK_CONTEXT
from ...mapping import columns_held, identifiers, mapper_of
from ...references import (
    Proxy,
    ReferenceValidator,
    Registry,
    is_resolved,
    serialize_reference,
    shape_of,
)
from ..lookup import refused_by_halves, resolve
from ..write import Row, one_zone
from .layout import ReferenceField, Rows
from .report import LoadReport, Rejects
from .savepoints import Attempts
from .validate import RowValidator

LoadMissing = Literal["reject", "null", "create"]

#: A row (by position) and field that is no valid reference, and why.
Refused = tuple[int, str, PydanticCustomError]

#: Resolved references kept from one batch for the next.
KEPT_REFERENCES = 50_000


class _Interning:
    """What validation asks the current bulk for."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def _add_values(self, values: Sequence[Any], payload: Any) -> None:
        """Leave out rows of other tables: a load writes into one."""


@contextmanager
def registering_with(registry: Registry) -> Iterator[None]:
    """Make a registry the place where validation registers references."""
    bulk: Any = _Interning(registry)
    token = SESSION_BULK_CONTEXT.set(bulk)
    try:
        yield
    finally:
        SESSION_BULK_CONTEXT.reset(token)


def alike(values: Sequence[Any]) -> Sequence[Any]:
    """
    Return *values*, with one object for all times that are equal.

    Comparing two times in a zone asks both zones each time, which adds up over the
    dictionaries and the sorting that a column goes through.
    """
    if type(values[0]) is not datetime:
        return values
    if set(map(type, values)) != {datetime} or not one_zone(values):
        return values
    known: dict[Any, Any] = {}
    return [known.setdefault(value, value) for value in values]


class Linker:
    """
    The references of one load: equal keys are one proxy, as far as they are kept.

    Attributes:
        problems: Why what a reference names could not be made, by its id.
    """

    def __init__(
        self,
        attempts: Attempts,
        report: LoadReport,
        rejects: Rejects,
        labels: dict[str, str],
        on_missing: LoadMissing,
    ) -> None:
        self.attempts = attempts
        self.report = report
        self.rejects = rejects
        self.labels = labels
        self.on_missing = on_missing
        self.problems: dict[int, str] = {}
        self._registry = Registry()

    def registering(self) -> AbstractContextManager[None]:
        """Make this the place where validation registers references."""
        return registering_with(self._registry)

    def make(self, batches: Iterable[Rows], validator: RowValidator) -> None:
        """Turn keys into references, in a block of ours; reject what is no key."""
        for batch in batches:
            batch.fields = list(map(alike, batch.fields))
            fields = batch.layout.fields
            for row, name, error in make_references(validator, fields, batch.fields):
                if row not in batch.refused:
                    batch.refused.add(row)
                    label, message = self.labels[name], error.message()
                    self.rejects.add(batch.records[row], label, error.type, message)

    def received(self, values: Sequence[Any]) -> Sequence[Any]:
        """Return a column that another process has sent, with references of ours."""
        if Named not in set(map(type, values)):
            return values
        return [self._received(each) for each in values]

    def _received(self, value: Any) -> Any:
        if type(value) is not Named:
            return value
        shape = identifiers(mapper_of(value.entity)).shape(value.names)
        return self._registry.intern(shape, tuple(map(self._received, value.values)))

    def look_up(self) -> None:
        """Look up the references that were made since :meth:`forget`."""
        self.resolve([p for p in self._registry.added() if not is_resolved(p)])

    def resolve(self, references: Sequence[Proxy]) -> None:
        """Look references up; one whose key is refused stays unresolved."""
        session = self.attempts.session

        def step(some: Sequence[Proxy]) -> Exception | None:
            found, error = self.attempts.tried(lambda: resolve(session, some))
            if found is not None:
                found.record()
            return error

        # In order: a nested reference was registered before the key it is in.
        for _ in refused_by_halves(references, step):
            pass  # it stays unresolved

    def is_own(self, reference: Proxy) -> bool:
        """Whether what *reference* names may be a row of this load."""
        return is_kin(shape_of(reference).mapper, self.attempts.mapper)

    def forget(self) -> None:
        """Forget what was not found, which may be there later, or all if it is much."""
        self.problems.clear()
        if len(self._registry) > KEPT_REFERENCES:
            self._registry.forget()
        else:
            self._registry.forget_unresolved()

    def link(self, batch: Rows, *, in_circles: bool = False) -> None:
        """
        Make the columns of *batch*; count its references, reject what lacks one.

        Args:
            in_circles: Whether its rows wait for each other.
        """
        layout = batch.layout
        columns: list[Sequence[Any]] = [batch.fields[n] for n in layout.plain]
        for reference in layout.references:
            values = batch.fields[reference.position]
            found = _rows_of(reference.mapper, values)
            self._count(batch, reference, values, found, in_circles=in_circles)
            for position in reference.remote:
                columns.append(
                    [None if row is None else row[position] for row in found]
                )
        batch.columns = [columns[n] for n in layout.order]

    def _count(
        self,
        batch: Rows,
        reference: ReferenceField,
        values: Sequence[Any],
        found: list[Any],
        *,
        in_circles: bool,
    ) -> None:
        """Count what was found and what is missing; refuse rows that need it."""
        name = reference.mapper.class_.__name__
        count = self.report.count_of(name)
        empty = found.count(None)
        count.resolved += len(found) - empty
        if not empty:
            return
        required = self.on_missing != "null" or not reference.is_optional
        for row in [row for row, identity in enumerate(found) if identity is None]:
            value = values[row]
            if value is None:
                continue
            key = key_values(value)
            count.miss(key)
            if not required or row in batch.refused:
                continue
            batch.refused.add(row)
            label = self.labels[reference.name]
            described = f"{name}({', '.join(map(repr, key))})"
            if in_circles and any(map(self.is_own, nested_in(value))):
                reason = "circle"
                message = (
                    f"circular reference: {described} and this row need each other"
                )
            else:
                reason = "missing"
                message = f"there is no {described}"
                if self.on_missing == "null":
                    message += ", and it is required"
                if id(value) in self.problems:
                    message += f", and {self.problems[id(value)]}"
            self.rejects.add(batch.records[row], label, reason, message)


@dataclass(frozen=True, slots=True)
class Named:
    """A reference on its way from another process: the key, and what has it."""

    entity: type[Any]
    names: tuple[str, ...]
    values: tuple[Any, ...]


def sendable(values: Sequence[Any]) -> Sequence[Any]:
    """Return a column with its references as :class:`Named`."""
    values = alike(values) if values else values
    if Proxy not in set(map(type, values)):
        return values
    return [_sendable(each) for each in values]


def _sendable(value: Any) -> Any:
    if type(value) is not Proxy:
        return value
    shape = shape_of(value)
    values = tuple(map(_sendable, value._tenure_values))
    return Named(shape.entity, shape.names, values)


def make_references(
    validators: RowValidator, fields: Sequence[str], columns: list[Sequence[Any]]
) -> list[Refused]:
    """
    Turn the columns of fields that are references into these, in place.

    Called with the bulk current that references register with.
    """
    refused: list[Refused] = []
    places = {name: place for place, name in enumerate(fields)}
    for name, validator in validators.later.items():
        if name not in places:
            continue
        if validator.sources:
            made = _composed(validator, places, columns, name, refused)
        else:
            optional = name in validators.optional
            given = columns[places[name]]
            made = _each(validator, name, given, refused, optional=optional)
        columns[places[name]] = made
    return refused


def _composed(
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
        # A value that was given is used instead of a composed key.
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
    """Return for each value what identifies it among the values of its column."""
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
        else (datetime, value, value.tzinfo, value.fold)
        if type(value) is datetime
        else (type(value), value)
        for value in values
    ]


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
    # Other types need a token: 1, 1.0 and True are one key of a dict.
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


def is_kin(one: Mapper[Any], other: Mapper[Any]) -> bool:
    """Whether a row of one may be a row of the other."""
    return one.base_mapper is other.base_mapper


def is_pending(value: Any) -> bool:
    """Whether *value* is a reference that is not resolved."""
    return type(value) is Proxy and not is_resolved(value)


def nested_in(value: Any) -> Iterator[Proxy]:
    """Yield the references in a key, and *value* itself last, if it is one."""
    if type(value) is Proxy:
        for part in value._tenure_values:
            yield from nested_in(part)
        yield value


def _rows_of(mapper: Mapper[Any], values: Sequence[Any]) -> list[Row | None]:
    if {Proxy, NoneType}.issuperset(map(type, values)):
        return [None if value is None else value._tenure_row for value in values]
    return [_row_of(mapper, value) for value in values]


def _row_of(mapper: Mapper[Any], value: Any) -> Row | None:
    if value is None:
        return None
    if type(value) is Proxy:
        row = value._tenure_row
        if row is not None or value._tenure_target is None:
            return row
        value = value._tenure_target
    row = columns_held(value, identifiers(mapper).fetched)
    return None if None in row[: len(mapper.primary_key)] else row


def key_values(value: Any) -> Row:
    """Return the key of a reference as plain values, those of keys inside in line."""
    if type(value) is not Proxy:
        return (repr(value),)
    flat: list[Any] = []
    for part in value._tenure_values:
        flat.extend(
            key_values(part) if type(part) is Proxy else [serialize_reference(part)]
        )
    return tuple(flat)


def named_by(mapper: Mapper[Any], fields: Iterable[str]) -> set[Mapper[Any]]:
    """Return the classes that references in *fields* refer to, also inside of keys."""
    seen: set[Mapper[Any]] = set()
    left = [
        mapper.relationships[name].mapper
        for name in fields
        if name in mapper.relationships
    ]
    while left:
        target = left.pop()
        if target not in seen:
            seen.add(target)
            left.extend(
                part.target
                for shape in identifiers(target).spellings.values()
                for part in shape.parts
                if part.target is not None
            )
    return seen
