"""
Insert rows of one class, bypassing the unit of work.

Afterwards the instances are as a flush leaves them: identity, defaults and foreign keys
set, persistent in the session, and new again when it rolls back. Classes and instances
for which that cannot be done are left to the unit of work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Table,
    insert,
)
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.collections import collection_adapter
from sqlalchemy.orm.exc import FlushError
from sqlalchemy.orm.interfaces import MANYTOONE
from sqlalchemy.orm.state import InstanceState

from .._private import (
    before_attach,
    commit_all_states,
    is_orphan,
    made_in,
    pending,
    register_persistent,
    save_impl,
    was_orphaned,
)
from ..mapping import columns_held, identifiers, property_of, reverse_sides
from .dialects import can_copy, orders_alike
from .value import innermost
from .write import (
    LIFE_EVENTS,
    NOT_SET,
    Attribute,
    Copy,
    Habits,
    OnConflict,
    TableInDatabase,
    Target,
    draw_keys,
    in_key_order,
    is_sql,
    why_not_bypassed,
)

State = InstanceState[Any]
Values = list[Any]


def insertion(
    session: Session, mapper: Mapper[Any], on_conflict: OnConflict = "raise"
) -> Insertion | None:
    """Return the writer of new rows of a class; ``None``: only the unit of work can."""
    if why_not_bypassed(session, mapper, on_conflict=on_conflict) is not None:
        return None
    connection = session.connection(
        bind_arguments={"mapper": mapper, "clause": insert(mapper)}
    )
    return Insertion(session, connection, mapper)


def _put_back(held: Sequence[dict[str, Any]], key: str, values: Values) -> None:
    """Set an attribute of instances to what it was."""
    for each, value in zip(held, values, strict=True):
        if value is NOT_SET:
            each.pop(key, None)
        else:
            each[key] = value


class Insertion:
    """Writes new rows of one class."""

    def __init__(
        self, session: Session, connection: Connection, mapper: Mapper[Any]
    ) -> None:
        self.session = session
        self.connection = connection
        self.mapper = mapper
        table: Any = mapper.local_table
        self.table: Table = table
        self.attributes = [
            Attribute(mapper, of)
            for of in self.table.columns
            if property_of(mapper, of) is not None
        ]
        self._key = [mapper.get_property_by_column(c).key for c in mapper.primary_key]
        self._places = {a.column: place for place, a in enumerate(self.attributes)}
        self._place = TableInDatabase(connection, table)
        relationships = [r for r in mapper.relationships if not r.viewonly]
        #: Whether no instance refers to others, or hangs on one.
        self.stands_alone = not relationships and not any(
            other.cascade.delete_orphan and mapper.isa(other.mapper)
            for each in mapper.registry.mappers
            for other in each.relationships
        )
        #: The relationships whose foreign keys are in the rows.
        self.parents = [r for r in relationships if r.direction is MANYTOONE]
        self._collections = [r for r in relationships if r.direction is not MANYTOONE]
        #: Their names.
        self.collections = {relationship.key for relationship in self._collections}
        counter: Any = self.table.autoincrement_column
        #: The column that the database counts up.
        self._counter: int | None = self._places.get(counter)
        #: The columns that the database fills, and whether a flush fetches them.
        self.filled = [
            place
            for place, attribute in enumerate(self.attributes)
            if attribute.column.server_default is not None and place != self._counter
        ]
        # This does what eager_defaults="auto" means; True needs the unit of work.
        self.fetches = (
            mapper.base_mapper.eager_defaults == "auto"
            and self.table.implicit_returning
            and connection.dialect.insert_executemany_returning
        )
        #: What is not in the instances before.
        self._made = [
            place
            for place, attribute in enumerate(self.attributes)
            if attribute.maker is not None or place == self._counter
        ]

    @property
    def _habits(self) -> Habits | None:
        """What to know about the table where rows can be sent by COPY."""
        return self._place.habits if can_copy(self.connection) else None

    @property
    def _copies(self) -> bool:
        habits = self._habits
        return habits is not None and not (
            habits.takes_inserts_only or habits.has_trigger
        )

    @property
    def draws_keys(self) -> bool:
        """Whether keys are drawn before, so that rows may refer to each other."""
        if not self._copies or self._counter is None:
            return False
        of: Any = self.attributes[self._counter].column
        habits = self._habits
        return of.default is not None or (
            habits is not None and habits.sequence is not None
        )

    def fits(self, state: State, writing: Collection[State]) -> bool:
        """
        Whether nothing but the row of *state* would be written for it.

        Args:
            writing: What else is about to be written.
        """
        held = state.dict
        if was_orphaned(state) and is_orphan(self.mapper, state):
            return False
        for relationship in self._collections:
            children = held.get(relationship.key)
            if children and not _name_it(state, relationship, children, writing):
                return False
        for relationship in self.parents:
            parent = held.get(relationship.key)
            if parent is not None:
                its = instance_state(parent)
                is_there = its.key is not None and (
                    its.session_id == self.session.hash_key
                )
                if not its.mapper.isa(relationship.mapper) or (
                    its not in writing and not is_there
                ):
                    return False
        return True

    def write(self, states: Sequence[State]) -> None:
        """
        Write rows, and make their instances persistent.

        Those that have to be left to the unit of work after all are left new.
        """
        held = [state.dict for state in states]
        columns = self.values(held)
        for place in self._made:
            maker = self.attributes[place].maker
            if maker is not None:
                nothing = self.attributes[place].nothing
                columns[place] = [
                    maker() if value is nothing else value for value in columns[place]
                ]
        odd = self.odd(columns)
        if odd:
            if len(odd) < len(states):
                self.write([state for n, state in enumerate(states) if n not in odd])
            return
        self.refer(states, columns, self._draw(states, columns))
        for present, rows in self._alike(columns, len(states)):
            if len(rows) == len(states):
                self._write(states, held, present, columns)
            else:
                self._write(
                    [states[n] for n in rows],
                    [held[n] for n in rows],
                    present,
                    [[values[n] for n in rows] for values in columns],
                )

    def values(self, held: Sequence[dict[str, Any]]) -> list[Values]:
        """Return the values that instances hold, by column."""
        return [
            [each.get(attribute.key, attribute.nothing) for each in held]
            for attribute in self.attributes
        ]

    def refer(
        self, states: Sequence[State], columns: list[Values], drawn: dict[State, Any]
    ) -> None:
        """Copy the keys of parents into the foreign keys that refer to them."""
        for relationship in self.parents:
            name = relationship.key
            pairs: Any = relationship.local_remote_pairs or ()
            remote = [of for _, of in pairs]
            places = [self._places[of] for of, _ in pairs]
            keys: dict[int, tuple[Any, ...]] = {id(None): (None,) * len(places)}
            for n, state in enumerate(states):
                # A flush looks only at what was set through SQLAlchemy.
                if name in state.committed_state:
                    parent: Any = state.dict.get(name)
                    key = keys.get(id(parent))
                    if key is None:
                        key = keys[id(parent)] = self._key_of(parent, remote, drawn)
                    for place, value in zip(places, key, strict=True):
                        columns[place][n] = value
                        state.dict[self.attributes[place].key] = value

    def _key_of(
        self, parent: Any, columns: Sequence[Column[Any]], drawn: dict[State, Any]
    ) -> tuple[Any, ...]:
        """Return the instances that refer to a parent; loads those not there."""
        its = instance_state(parent)
        key = list(columns_held(parent, columns))
        for n, of in enumerate(columns):
            if its in drawn and of is self.table.autoincrement_column:
                # One of these rows refers to another.
                key[n] = drawn[its]
            elif key[n] is None and its.key is not None:
                key[n] = getattr(parent, its.mapper.get_property_by_column(of).key)
        return tuple(key)

    def odd(self, columns: list[Values]) -> set[int]:
        """Return the rows that hold SQL, or lack a key that the database makes."""
        odd: set[int] = set()
        for place, attribute in enumerate(self.attributes):
            values = columns[place]
            if any(map(is_sql, set(map(type, values)))):
                odd.update(n for n, v in enumerate(values) if is_sql(type(v)))
            identity = attribute.column.identity
            if identity is not None and identity.always and self._copies:
                # COPY would accept a value where an INSERT refuses it.
                odd.update(n for n, value in enumerate(values) if value is not None)
            if attribute.column.primary_key and place != self._counter:
                odd.update(n for n, value in enumerate(values) if value is None)
        return odd

    def _alike(
        self, columns: list[Values], count: int
    ) -> list[tuple[list[int], Sequence[int]]]:
        """Group rows by the columns they have."""
        always = [n for n, a in enumerate(self.attributes) if not a.is_left_out]
        groups: dict[tuple[int, ...], Sequence[int]] = {tuple(always): range(count)}
        for place, attribute in enumerate(self.attributes):
            if not attribute.is_left_out:
                continue
            values, nothing = columns[place], attribute.nothing
            absent = values.count(nothing)
            if absent == count:
                continue
            split: dict[tuple[int, ...], Any] = {}
            for present, rows in groups.items():
                if not absent:
                    split[*present, place] = rows
                    continue
                for n in rows:
                    key = present if values[n] is nothing else (*present, place)
                    split.setdefault(key, []).append(n)
            groups = split
        return [(sorted(present), rows) for present, rows in groups.items()]

    def _write(
        self,
        states: Sequence[State],
        held: Sequence[dict[str, Any]],
        present: list[int],
        columns: list[Values],
    ) -> None:
        """Write rows that have the same columns, if it can be done here."""
        filled = [place for place in self.filled if place not in present]
        returned = filled if self.fetches else []
        if self._counter is not None and self._counter not in present:
            returned = [self._counter, *returned]
        can_return = self.connection.dialect.insert_executemany_returning
        if not present or (returned and not can_return):
            return
        unknown = [self.attributes[n].key for n in filled if n not in returned]
        before: dict[str, Values] = {}

        def settle() -> None:
            for place in {*self._made, *returned}:
                key = self.attributes[place].key
                before[key] = [each.get(key, NOT_SET) for each in held]
                for each, value in zip(held, columns[place], strict=True):
                    each[key] = value
            self.make_persistent(states, held)
            for state in states if unknown else ():
                for key in unknown:
                    state.dict.pop(key, None)
                state.expired_attributes.update(unknown)

        if not self._copies or returned:
            self._insert(present, returned, columns)
            settle()
            return
        try:
            # The instances are made persistent while the server works.
            self._copy(present, columns, settle)
        except BaseException:
            for key, values in before.items():
                _put_back(held, key, values)
            raise

    def _draw(self, states: Sequence[State], columns: list[Values]) -> dict[State, Any]:
        """Draw the keys that are not set from the sequence of their column, if any."""
        if not self.draws_keys or self._counter is None or self._habits is None:
            return {}
        keys = columns[self._counter]
        places = [n for n, value in enumerate(keys) if value is None]
        of: Any = self.attributes[self._counter].column
        if not places:
            return {}
        made = draw_keys(self.connection, of, self._habits.sequence, len(places))
        for n, key in zip(places, sorted(made), strict=True):
            keys[n] = key
        return {states[n]: keys[n] for n in places}

    def _copy(
        self, present: list[int], columns: list[Values], meanwhile: Callable[[], None]
    ) -> None:
        sent = tuple(self.attributes[place].column for place in present)
        target = Target(self.mapper, sent, key=(), on_conflict="raise")
        copy = Copy(self.connection, target, self._place)
        order = self._order(present, columns)
        copy.send_columns([columns[place] for place in present], order, meanwhile)

    def _insert(
        self, present: list[int], returned: list[int], columns: list[Values]
    ) -> None:
        """INSERT rows as SQLAlchemy does for many, and fetch what was made."""
        names = [self.attributes[place].column.key for place in present]
        order = self._order(present, columns)
        sent = list(zip(*(columns[place] for place in present), strict=True))
        rows = [dict(zip(names, sent[n], strict=True)) for n in order]
        statement: Any = insert(self.table)
        if not returned:
            self.connection.execute(statement, rows)
            return
        statement = statement.returning(
            *(self.attributes[place].column for place in returned),
            sort_by_parameter_order=True,
        )
        answers = self.connection.execute(statement, rows).all()
        if len(answers) != len(rows):
            raise FlushError(
                f"{len(rows)} rows of {self.table.name!r} were sent and {len(answers)} "
                f"inserted; is there a trigger that keeps some out?"
            )
        for place, values in zip(returned, zip(*answers, strict=True), strict=True):
            made = columns[place] = [None] * len(order)
            for n, value in zip(order, values, strict=True):
                made[n] = value

    def _order(self, present: list[int], columns: list[Values]) -> Sequence[int]:
        """Return rows in the order of their key: locks are taken in one order."""
        count = len(columns[0])
        if self.connection.dialect.name == "sqlite":
            return range(count)  # there is one writer
        known = identifiers(self.mapper)
        for names in known.names:
            key = [
                self._places[of] for name in names for of in known.part(name).columns
            ]
            if self._counter not in key and set(key) <= set(present):
                dialect = self.connection.dialect
                types = [self.attributes[place].column.type for place in key]
                if all(orders_alike(of, dialect) for of in types):
                    return in_key_order(range(count), [columns[n] for n in key])
        return range(count)

    def make_persistent(
        self, states: Sequence[State], held: Sequence[dict[str, Any]]
    ) -> None:
        """Register the instances in the session, as after a flush."""
        session: Any = self.session
        if any(getattr(session.dispatch, name) for name in LIFE_EVENTS):
            for state in states:
                save_impl(session, state)
            register_persistent(session, set(states))
            return
        # As a flush does, without its work for mixed classes, which takes longer than
        # sending the rows.
        keep = session.identity_map.replace
        kind = self.mapper.identity_key_from_primary_key((None,))[0]
        keys = zip(*([each[name] for each in held] for name in self._key), strict=True)
        for state, key in zip(states, keys, strict=True):
            if state.session_id is not None:
                before_attach(session, state, state.obj())
            state.session_id = session.hash_key
            state.key = kind, key, None
            keep(state)
        made_in(innermost(session)).update(dict.fromkeys(states, True))
        every = zip(states, held, strict=True)
        commit_all_states(every, session.identity_map)
        new = pending(session)[0]
        for state in new.keys() & states if new else ():
            del new[state]


def _name_it(
    state: State, relationship: Any, children: Any, writing: Collection[State]
) -> bool:
    """Whether the children in a collection say themselves whose they are."""
    reverses = list(reverse_sides(relationship))
    if len(reverses) != 1 or reverses[0].direction is not MANYTOONE:
        return False
    parent = state.obj()
    return all(
        instance_state(child) in writing
        and instance_state(child).dict.get(reverses[0].key) is parent
        for child in members(children)
    )


#: Gives what is in a collection of a relationship, whatever class that has.
members: Callable[[Any], Iterable[Any]] = collection_adapter
