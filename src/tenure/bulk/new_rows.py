"""
Writes new values: class by class, in the order of their foreign keys.

What can be goes around the unit of work; see :mod:`._insert`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Table
from sqlalchemy.exc import CircularDependencyError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE
from sqlalchemy.orm.interfaces import MANYTOONE
from sqlalchemy.schema import sort_tables_and_constraints

from ..mapping import identifiers
from .insertion import Insertion, State, insertion, members


def write_new(session: Session, instances: Iterable[Any], size: int) -> None:
    """
    INSERT the rows of new instances, and of those that are new in the session.

    At most *size* at once. Their session's transaction ends as it does when a flush fails.
    """
    writing = _Writing(session, size)
    writing.take(session._new)
    writing.take(instance._sa_instance_state for instance in instances)
    transaction = session._autobegin_t()._begin()
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
                    waiting.extend(each._sa_instance_state for each in members(held))
                else:
                    waiting.append(held._sa_instance_state)

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
                if self.session.identity_map._modified:
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
        session = self.session
        return any(s.mapper.base_mapper in near for s in session._deleted) or any(
            (
                state.mapper.base_mapper in near
                and not self._naming(state.mapper).isdisjoint(state.committed_state)
            )
            or _lets_go(state, mapper)
            for state in session.identity_map._modified
        )

    def _naming(self, mapper: Mapper[Any]) -> set[str]:
        """Give the attributes that rows are known by, relationships among them."""
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
    while free := [s for s, on in needs.items() if not any(p in needs for p in on)]:
        for state in free:
            del needs[state]
    path: list[State] = []
    following = next(iter(needs), None)
    while following is not None and following not in path:
        path.append(following)
        following = next(parent for parent in needs[following] if parent in needs)
    start = path.index(following) if following is not None else 0
    return [state.obj() for state in path[start:]]


def _parents(state: State) -> list[State]:
    """Give the new instances that have to be written before."""
    held = [
        state.dict.get(relationship.key)
        for relationship in state.mapper.relationships
        if relationship.direction is MANYTOONE
    ]
    parents: list[State] = [p._sa_instance_state for p in held if p is not None]
    return [parent for parent in parents if parent.key is None]


def _levels(writer: Insertion, states: Sequence[State]) -> list[Sequence[State]]:
    """
    Give rows after those of the same class that they refer to.

    All at once where their keys are known before. Those that refer to something else
    that is not written, or to each other in a circle, are left out.
    """
    if not writer.parents:
        return [states] if states else []
    needs: dict[State, list[State]] = {}
    for state in states:
        for relationship in writer.parents:
            parent = state.dict.get(relationship.key)
            if parent is not None and parent._sa_instance_state.key is None:
                needs.setdefault(state, []).append(parent._sa_instance_state)
    ready = [state for state in states if state not in needs]
    users: dict[State, list[State]] = {}
    for state, parents in needs.items():
        for parent in parents:
            users.setdefault(parent, []).append(state)
    count = {state: len(parents) for state, parents in needs.items()}
    places = {state: place for place, state in enumerate(states)} if needs else {}
    levels: list[Sequence[State]] = [ready]
    while levels[-1]:
        following = []
        for state in levels[-1]:
            for user in users.get(state, ()):
                count[user] -= 1
                if not count[user]:
                    following.append(user)
        levels.append(sorted(following, key=places.__getitem__))
    if writer.draws_keys:
        levels = [[state for level in levels for state in level]]
    return [level for level in levels if level]


def _in_order(classes: Iterable[Mapper[Any]]) -> list[Mapper[Any]]:
    """Put classes in the order of the foreign keys between their tables."""
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
