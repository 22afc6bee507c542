"""
Write the values of a bulk, by key or as new rows, and say what became of each.

New rows are written class by class, in the order of their foreign keys. Most bypass the
unit of work; see :mod:`.insertion`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.exc import CircularDependencyError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE
from sqlalchemy.orm.interfaces import MANYTOONE
from sqlalchemy.schema import sort_tables_and_constraints

from .._private import autobegin, begin_part, pending
from ..errors import SessionError
from ..mapping import identifiers
from ..references import relationship_names
from .attach import discard
from .bound import settle_bound
from .insertion import Insertion, State, insertion, members
from .report import BulkReport, Status
from .upsert import OnDuplicate, write_by_key
from .value import (
    Value,
    innermost,
    replace_proxies,
)
from .write import OnConflict

#: Values that are written at once.
BATCH = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushOptions:
    """
    The options of ``SessionBulk.flush``, which says what they mean.

    Raises:
        SessionError: A value that none can have.
    """

    on_conflict: OnConflict = "raise"
    update_fields: Iterable[str] | None = None
    on_duplicate: OnDuplicate = "raise"
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check(self.on_conflict, "on_conflict", ("raise", "update", "skip"))
        check(self.on_duplicate, "on_duplicate", ("raise", "first", "last"))
        check_size(self.batch_size)

    @property
    def size(self) -> int:
        """Values that are written at once."""
        return self.batch_size or BATCH

    @property
    def allowed(self) -> set[str] | None:
        """The attributes that an update may change; ``None``: any."""
        return None if self.update_fields is None else set(self.update_fields)


def check(given: object, name: str, allowed: tuple[str, ...]) -> None:
    """Raise a :class:`SessionError` if an option is none of those allowed."""
    if given not in allowed:
        options = ", ".join(map(repr, allowed))
        raise SessionError(f"{name} is one of {options}, not {given!r}")


def check_size(batch_size: int | None) -> None:
    """Raise a :class:`SessionError` if there can be no batches of a size."""
    if batch_size is not None and batch_size < 1:
        raise SessionError(f"batch_size is at least 1, not {batch_size}")


def flush(
    session: Session, values: Iterable[Value], options: FlushOptions
) -> BulkReport:
    """Write values; see ``SessionBulk.flush``."""
    # Other threads may add values meanwhile.
    values = list(values)
    statuses: dict[Value, Status] = {}
    with session.no_autoflush:
        _make(values)
        skipped: dict[Value, Status] = {}
        if any(value.is_bound for value in values):
            skipped = settle_bound(
                session,
                values,
                options.on_conflict,
                options.on_duplicate,
                options.allowed,
            )
        if options.on_conflict != "raise":
            statuses = write_by_key(
                session,
                [value for value in values if value not in skipped],
                on_conflict=options.on_conflict,
                allowed=options.allowed,
                on_duplicate=options.on_duplicate,
                size=options.size,
            )
        statuses |= skipped
        for value in values:
            if statuses.get(value) == "skipped":
                if value.is_row:
                    continue
                discard(session, value.instance)
            elif value in statuses:
                continue
            elif instance_state(value.instance).key is not None:
                changed = session.is_modified(value.instance)
                statuses[value] = "updated" if changed else "unchanged"
            else:
                statuses[value] = "created"
        created = [v.instance for v in values if statuses[v] == "created"]
        new = [i for i in created if instance_state(i).key is None]
        write_new(session, new, options.size)
        session.flush()
    written_in = innermost(session)
    for value in values:
        if statuses[value] != "unchanged":
            value.placed_in = written_in
        value.is_row = value.is_row or statuses[value] != "skipped"
        # A value that was written may be changed and flushed again.
        value.is_bound = value.is_bound and statuses[value] == "skipped"
    return BulkReport([statuses[value] for value in values])


def _make(values: Iterable[Value]) -> None:
    """Make the instances of values, with instances in place of references."""
    related: dict[type[Any], bool] = {}
    keys: dict[type[Any], list[str]] = {}
    for value in values:
        kind = value.entity
        if kind not in related:
            mapper = inspect(kind)
            related[kind] = bool(relationship_names(mapper))
            keys[kind] = [
                mapper.get_property_by_column(c).key for c in mapper.primary_key
            ]
        if related[kind]:
            value.remember()
        instance = value.made()
        if related[kind]:
            replace_proxies(instance)
        state = instance_state(instance)
        if state.key is None:
            held = state.dict
            value.unkeyed = tuple([n for n in keys[kind] if held.get(n) is None])


def write_new(session: Session, instances: Iterable[Any], size: int) -> None:
    """
    INSERT the rows of new instances, and of those that are new in the session.

    At most *size* at once. Their session's transaction ends as it does when a flush fails.
    """
    writing = _Writing(session, size)
    writing.take(pending(session)[0])
    writing.take(instance_state(instance) for instance in instances)
    transaction = begin_part(autobegin(session))
    try:
        writing.run()
        transaction.commit()
    except BaseException:
        transaction.rollback(_capture_exception=True)
        raise


class _Writing:
    """New instances on their way into their tables."""

    def __init__(self, session: Session, size: int) -> None:
        self.session = session
        self.size = size
        #: In the order they came, by class.
        self.classes: dict[Mapper[Any], list[State]] = {}
        self.states: dict[State, None] = {}
        self._cascades: dict[Mapper[Any], list[Any]] = {}
        self._names: dict[Mapper[Any], set[str]] = {}

    def take(self, given: Iterable[State]) -> None:
        """Take in new instances, and those that a flush would write with them."""
        waiting, taken = deque(given), self.states
        while waiting:
            state = waiting.popleft()
            if state.key is not None or state in taken:
                continue
            taken[state] = None
            mapper = state.mapper
            if mapper not in self.classes:
                self.classes[mapper] = []
            self.classes[mapper].append(state)
            for relationship in self._cascading(mapper):
                held = state.dict.get(relationship.key)
                if held is None:
                    continue
                if relationship.uselist:
                    waiting.extend(instance_state(each) for each in members(held))
                else:
                    waiting.append(instance_state(held))

    def _cascading(self, mapper: Mapper[Any]) -> list[Any]:
        found = self._cascades.get(mapper)
        if found is None:
            found = self._cascades[mapper] = [
                each for each in mapper.relationships if each.cascade.save_update
            ]
        return found

    def run(self) -> None:
        """Write everything."""
        for mapper in _in_order(self.classes):
            states = [state for state in self.classes[mapper] if state.key is None]
            writer = None
            if states and not self._waits_for_rows(mapper):
                writer = insertion(self.session, mapper)
            left = states if writer is None else self._around(writer, states)
            if left:
                if pending(self.session)[2]:
                    # A row that has changed may refer to any of the others.
                    left = [state for state in self.states if state.key is None]
                self.session.add_all([state.obj() for state in left])
                try:
                    self.session.flush()
                except CircularDependencyError as error:
                    circle = _circle(left)
                    if not circle:
                        raise
                    raise Circular(circle) from error

    def _waits_for_rows(self, mapper: Mapper[Any]) -> bool:
        """Whether rows that change or go have to be written before new ones."""
        near = {mapper.base_mapper}
        near |= {
            relationship.mapper.base_mapper
            for relationship in mapper.relationships
            if relationship.direction is MANYTOONE
        }
        _, deleted, modified = pending(self.session)
        return any(s.mapper.base_mapper in near for s in deleted) or any(
            (
                state.mapper.base_mapper in near
                and not self._naming(state.mapper).isdisjoint(state.committed_state)
            )
            or _lets_go(state, mapper)
            for state in modified
        )

    def _naming(self, mapper: Mapper[Any]) -> set[str]:
        """Return the attributes of identifiers, with the relationships among them."""
        found = self._names.get(mapper)
        if found is None:
            known = identifiers(mapper)
            columns = {
                of
                for names in known.names
                for name in names
                for of in known.part(name).columns
            }
            found = self._names[mapper] = {
                mapper.get_property_by_column(of).key for of in columns
            } | {
                relationship.key
                for relationship in mapper.relationships
                if relationship.direction is MANYTOONE
                and not columns.isdisjoint(relationship.local_columns)
            }
        return found

    def _around(self, writer: Insertion, states: Sequence[State]) -> list[State]:
        """Write what can be around the unit of work; give what is left for it."""
        fitting = states
        if not writer.stands_alone:
            fitting = [state for state in states if writer.fits(state, self.states)]
        for some in _levels(writer, fitting):
            for start in range(0, len(some), self.size):
                writer.write(some[start : start + self.size])
        return [state for state in states if state.key is None]


def _lets_go(state: State, mapper: Mapper[Any]) -> bool:
    """Whether objects of a class have left a collection that deletes them then."""
    return any(
        relationship.cascade.delete_orphan
        and relationship.mapper.base_mapper is mapper.base_mapper
        and relationship.key in state.committed_state
        and state.get_history(relationship.key, PASSIVE_NO_INITIALIZE).deleted
        for relationship in state.mapper.relationships
    )


class Circular(Exception):  # told on as a failure of each of them
    """Instances each of which needs the next one's key, and the last one the first's."""

    def __init__(self, instances: list[Any]) -> None:
        super().__init__(instances)
        self.instances = instances


def _circle(states: Iterable[State]) -> list[Any]:
    """Find new instances that refer to each other in a circle."""
    needs: dict[State, list[State]] = {}
    waiting = list(states)
    while waiting:
        state = waiting.pop()
        if state not in needs:
            needs[state] = _parents(state)
            waiting += needs[state]
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        return [state.obj() for state in error.args[1][:0:-1]]
    return []


def _parents(state: State) -> list[State]:
    """Return the new instances that have to be written before *state*."""
    held = [
        state.dict.get(relationship.key)
        for relationship in state.mapper.relationships
        if relationship.direction is MANYTOONE
    ]
    parents: list[State] = [instance_state(p) for p in held if p is not None]
    return [parent for parent in parents if parent.key is None]


def _levels(writer: Insertion, states: Sequence[State]) -> list[Sequence[State]]:
    """
    Return rows in levels: each after those of the same class that it refers to.

    All at once where their keys are known before. Those that refer to something else
    that is not written, or to each other in a circle, are left out.
    """
    if not writer.parents:
        return [states] if states else []
    needs: dict[State, list[State]] = {}
    for state in states:
        for relationship in writer.parents:
            parent = state.dict.get(relationship.key)
            if parent is not None and instance_state(parent).key is None:
                needs.setdefault(state, []).append(instance_state(parent))
    levels: list[Sequence[State]] = [[s for s in states if s not in needs]]
    places = {state: place for place, state in enumerate(states)} if needs else {}
    sorter = TopologicalSorter(needs)
    with suppress(CycleError):
        # It goes on with what is not in a circle.
        sorter.prepare()
    while ready := [state for state in sorter.get_ready() if state in places]:
        sorter.done(*ready)
        following = [state for state in ready if state in needs]
        levels.append(sorted(following, key=places.__getitem__))
    if writer.draws_keys:
        levels = [[state for level in levels for state in level]]
    return [level for level in levels if level]


def _in_order(classes: Iterable[Mapper[Any]]) -> list[Mapper[Any]]:
    """Sort classes by the foreign keys between their tables."""
    mappers = list(classes)
    tables = dict.fromkeys(
        table
        for mapper in mappers
        for table in mapper.tables
        if isinstance(table, Table)
    )
    ordered: Any = sort_tables_and_constraints(tables)  # type: ignore[no-untyped-call]  # as SQLAlchemy has it
    places = {table: place for place, (table, _) in enumerate(ordered)}
    return sorted(
        mappers, key=lambda mapper: max(places.get(t, 0) for t in mapper.tables)
    )
