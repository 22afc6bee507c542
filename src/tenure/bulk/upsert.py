"""
Write values whose row may exist, by key.

Most are upserted by way of a staged table; see :mod:`.write.stages`. For the others the
row is looked up, and the unit of work writes what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import inspect
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state, set_committed_value

from ..errors import ResolutionError
from ..mapping import Shape, identifiers
from ..references import Proxy, key_of
from .attach import attach, discard
from .dialects import orders_alike
from .insertion import Insertion, State, Values, insertion
from .lookup import Unfound, batches, failure, look_up
from .report import MORE_THAN_ONE, Failure, Status
from .value import Named, Value, choose, keys_of, set_attributes, token_of_key
from .write import Outcome, Target, in_key_order, stage

#: A value, and its keys.
Keyed = tuple[Value, list[Named]]

OnDuplicate = Literal["raise", "first", "last"]

#: What became of a value, and the session's instance of its row.
Merged = tuple[Status, Any]


def merge(
    session: Session,
    values: Iterable[Value],
    on_conflict: Literal["update", "skip"],
    allowed: set[str] | None,
    size: int,
) -> dict[State, Merged]:
    """
    Write new values by key, those that can be; say what became of each.

    Args:
        allowed: The attributes that an update may change; ``None``: all that are set.
        size: How many are written at once, where it is known that their keys differ.
    """
    classes: dict[Mapper[Any], list[State]] = {}
    defaults: dict[State, frozenset[str]] = {}
    for value in values:
        state: State = instance_state(value.instance)
        classes.setdefault(state.mapper, []).append(state)
        defaults[state] = value.defaults
    merged: dict[State, Merged] = {}
    for mapper, states in classes.items():
        writer = insertion(session, mapper, on_conflict)
        if writer is None:
            continue
        for (names, left), alike in _alike(writer, states, defaults).items():
            key = _key(writer, names)
            if key:
                may = names - _spelled(writer, left) if left else names
                if allowed is not None:
                    may &= _spelled(writer, allowed)
                merging = _Merging(writer, names, key, on_conflict, may)
                merged |= merging.write(alike, size)
    return merged


def _alike(
    writer: Insertion,
    states: Sequence[State],
    defaults: Mapping[State, frozenset[str]],
) -> dict[tuple[frozenset[str], frozenset[str]], list[State]]:
    """
    Group instances by the columns they set, and those of them that are defaults.

    Without those that must go otherwise.
    """
    names = {attribute.key for attribute in writer.attributes}
    groups: dict[tuple[frozenset[str], frozenset[str]], list[State]] = {}
    for state in states:
        if not writer.fits(state, ()) or not writer.collections.isdisjoint(state.dict):
            continue
        given = names & state.dict.keys()
        for relationship in writer.parents:
            if relationship.key in state.committed_state:
                given |= {
                    writer.mapper.get_property_by_column(local).key
                    for local in relationship.local_columns
                }
        groups.setdefault((frozenset(given), defaults[state]), []).append(state)
    return groups


def _key(writer: Insertion, names: frozenset[str]) -> tuple[str, ...]:
    """Return the one identifier that is set; several could belong to different rows."""
    known = identifiers(writer.mapper)
    complete = [key for key in known.names if names.issuperset(key)]
    if len(complete) != 1:
        return ()
    columns = [of for name in complete[0] for of in known.part(name).columns]
    return complete[0] if known.is_unique_in_database(columns) else ()


class _Merging:
    """Instances of one class that set the same columns, on their way to their rows."""

    def __init__(
        self,
        writer: Insertion,
        names: frozenset[str],
        key: tuple[str, ...],
        on_conflict: Literal["update", "skip"],
        may: frozenset[str],
    ) -> None:
        self.writer = writer
        self.session = writer.session
        self.mapper = writer.mapper
        places = {a.key: place for place, a in enumerate(writer.attributes)}
        self.key = [places[name] for name in key]
        self.given = [places[name] for name in sorted(names)]
        #: What Python makes for a new row.
        self.made = [
            place
            for place, attribute in enumerate(writer.attributes)
            if attribute.maker is not None and place not in self.given
        ]
        self.changing = [
            place
            for place in self.given
            if place not in self.key and writer.attributes[place].key in may
        ]
        self.identity = [
            places[self.mapper.get_property_by_column(of).key]
            for of in self.mapper.primary_key
        ]
        sent = {*self.given, *self.made, *self.identity}
        filled = [place for place in writer.filled if place not in sent]
        #: What the database fills in a new row, where a flush fetches it.
        self.filled = filled if writer.fetches else []
        #: What a new row has that its instance does not know.
        self.unknown = [] if writer.fetches else self._named(filled)
        #: What a row that was there has, or may have otherwise than its instance says.
        known = {*self.key, *self.changing, *self.identity}
        self.unset = self._named(n for n in range(len(places)) if n not in known)
        changed = {writer.attributes[place].column for place in self.changing}
        #: The relationships that an update may change.
        self.parents = [
            relationship.key
            for relationship in self.mapper.relationships
            if not changed.isdisjoint(relationship.local_columns)
        ]
        columns = [attribute.column for attribute in writer.attributes]
        self.target = Target(
            self.mapper,
            tuple(columns[place] for place in [*self.given, *self.made]),
            tuple(columns[place] for place in self.key),
            on_conflict,
        )
        self.stage = stage(
            writer.connection,
            self.target,
            changing=[columns[place] for place in self.changing],
            fetched=[columns[place] for place in [*self.identity, *self.filled]],
        )

    def _named(self, places: Iterable[int]) -> list[str]:
        return [self.writer.attributes[place].key for place in places]

    def write(self, states: Sequence[State], size: int) -> dict[State, Merged]:
        """Write rows; none of them where that cannot be done here."""
        if self.stage is None:
            return {}
        columns = self.writer.values([state.dict for state in states])
        self.writer.refer(states, columns, {})
        wrong = self.writer.odd(columns) | self._defaulted(columns)
        if wrong:
            rest = [state for n, state in enumerate(states) if n not in wrong]
            return self.write(rest, size) if rest else {}
        for place in self.made:
            maker: Any = self.writer.attributes[place].maker
            columns[place] = [maker() for _ in states]
        key = list(zip(*(columns[place] for place in self.key), strict=True))
        exact = all(
            orders_alike(column.type, self.writer.connection.dialect)
            for column in self.target.key
        )
        if exact and len(set(key)) < len(key):
            return {}
        order = in_key_order(range(len(states)), [columns[n] for n in self.key])
        sent = [columns[place] for place in [*self.given, *self.made]]
        rows = self.stage.rows([[values[n] for n in order] for values in sent])
        outcomes: list[Outcome] = []
        step = size if exact else len(rows)
        for start in range(0, len(rows), step):
            some = self.stage.write_each(rows[start : start + step], distinct=exact)
            if some is None:
                return {}
            outcomes += some
        merged: list[Any] = [None] * len(states)
        for n, outcome in zip(order, outcomes, strict=True):
            merged[n] = outcome
        return self._settle(states, columns, merged)

    def _defaulted(self, columns: list[Values]) -> set[int]:
        """Return rows that set NULL in the key, or where a new row has a default."""
        places = [
            place
            for place in self.given
            if place in self.key
            or self.writer.attributes[place].maker is not None
            or self.writer.attributes[place].column.server_default is not None
        ]
        return {
            n
            for place in places
            if None in columns[place]
            for n, value in enumerate(columns[place])
            if value is None
        }

    def _settle(
        self,
        states: Sequence[State],
        columns: list[Values],
        outcomes: Sequence[Outcome],
    ) -> dict[State, Merged]:
        """Make the instances those of their rows, or the session's for it those."""
        merged: dict[State, Merged] = {}
        attributes = self.writer.attributes
        mapper, identities = self.mapper, self.session.identity_map
        width = len(self.identity)
        own: list[State] = []
        for n, (state, outcome) in enumerate(zip(states, outcomes, strict=True)):
            instance = state.obj()
            merged[state] = outcome.status, instance
            if outcome.status == "skipped":
                continue
            identity, filled = outcome.fetched[:width], outcome.fetched[width:]
            present = identities.get(mapper.identity_key_from_primary_key(identity))
            if present is not None and present is not instance:
                merged[state] = outcome.status, present
                for place in self.changing:
                    set_committed_value(
                        present, attributes[place].key, columns[place][n]
                    )
                # Their foreign keys may have changed.
                if self.parents:
                    self.session.expire(present, self.parents)
                continue
            for place, value in zip(self.identity, identity, strict=True):
                state.dict[attributes[place].key] = value
            if outcome.status == "created":
                for place, value in zip(self.filled, filled, strict=True):
                    state.dict[attributes[place].key] = value
                for place in self.made:
                    state.dict[attributes[place].key] = columns[place][n]
            own.append(state)
        self.writer.make_persistent(own, [state.dict for state in own])
        for state in own:
            left = self.unknown if merged[state][0] == "created" else self.unset
            if left:
                self.session.expire(state.obj(), left)
        return merged


def _spelled(writer: Insertion, names: Iterable[str]) -> set[str]:
    """Return the columns of attributes; those of a relationship are its foreign key."""
    found: set[str] = set()
    for name in names:
        prop: Any = writer.mapper.attrs.get(name)
        for column in getattr(prop, "local_columns", None) or prop.columns:
            found.add(writer.mapper.get_property_by_column(column).key)
    return found


def write_by_key(
    session: Session,
    values: Iterable[Value],
    *,
    on_conflict: Literal["update", "skip"],
    allowed: set[str] | None,
    on_duplicate: OnDuplicate,
    size: int,
) -> dict[Value, Status]:
    """
    Write values whose row may exist, or prepare them for the unit of work.

    Return the status of each value for which it is known.

    Args:
        allowed: The attributes that an update may change; ``None``: all that are set.
        size: How many are written at once, where it is known that their keys differ.
    """
    statuses: dict[Value, Status] = {}
    new = [v for v in values if not v.is_row]
    merged = merge(session, new, on_conflict, allowed, size)
    for value in new:
        outcome = merged.get(instance_state(value.instance))
        if outcome is not None:
            statuses[value], instance = outcome
            if instance is not value.instance:
                discard(session, value.instance)
                value.instance, value.was_known = instance, True
    left = [v for v in new if v not in statuses]
    keyed, superseded = _keyed(left, on_duplicate)
    found = rows_of(session, keyed)
    statuses |= dict.fromkeys(superseded, "skipped")
    for value, proxy in _chosen(keyed, found):
        if on_conflict == "skip":
            statuses[value] = "skipped"
            continue
        held, left_alone = inspect(value.instance).dict, value.defaults
        attributes = {
            name: held[name]
            for name in set_attributes(value.instance)
            if (allowed is None or name in allowed) and name not in left_alone
        }
        names = proxy._tenure_shape.names
        attach(session, value, attributes, found[id(proxy)], key=names)
    return statuses


def _keyed(
    values: Sequence[Value], on_duplicate: OnDuplicate
) -> tuple[list[Keyed], list[Value]]:
    """Pair each value with its keys in columns; give the superseded ones apart."""
    keyed: dict[Any, Keyed] = {}
    superseded: list[Value] = []
    twice: list[Failure] = []
    for value in values:
        instance = value.made()
        keys = list(keys_of(instance))
        if not keys:
            continue
        proxy, columns = keys[0]
        token = token_of_key(proxy._tenure_shape, columns)
        earlier = keyed.get(token)
        if earlier is not None and earlier[0].made() is not instance:
            if on_duplicate == "raise":
                entity = proxy._tenure_shape.entity
                key = key_of(proxy)
                twice.append(Failure(entity, key, "ambiguous", message=MORE_THAN_ONE))
                continue
            if on_duplicate == "first":
                superseded.append(value)
                continue
            superseded.append(earlier[0])
        keyed[token] = (value, keys)
    if twice:
        raise ResolutionError(twice)
    return list(keyed.values()), superseded


def _chosen(
    keyed: Iterable[Keyed], rows: Mapping[int, dict[str, Any]]
) -> list[tuple[Value, Proxy]]:
    """Pair each value that has a row with the key that names it."""

    def identity(key: Proxy) -> tuple[Any, ...] | None:
        row, mapper = rows.get(id(key)), key._tenure_shape.mapper
        if row is None:
            return None
        return tuple(
            row[mapper.get_property_by_column(column).key]
            for column in mapper.primary_key
        )

    chosen = [(value, choose((k for k, _ in keys), identity)) for value, keys in keyed]
    failures = [each for _, each in chosen if isinstance(each, Failure)]
    if failures:
        raise ResolutionError(failures)
    return [(value, key) for value, key in chosen if type(key) is Proxy]


def rows_of(session: Session, keyed: Sequence[Keyed]) -> dict[int, dict[str, Any]]:
    """Look up the rows of keyed values: their loaded columns by attribute."""
    found: dict[int, dict[str, Any]] = {}
    groups: dict[Shape, tuple[list[Proxy], list[tuple[Any, ...]]]] = {}
    for proxy, columns in (key for _, keys in keyed for key in keys):
        group = groups.setdefault(proxy._tenure_shape, ([], []))
        group[0].append(proxy)
        group[1].append(columns)
    for shape, (proxies, keys) in groups.items():
        names = [prop.key for prop in shape.mapper.column_attrs]
        wanted = tuple(prop.columns[0] for prop in shape.mapper.column_attrs)
        for batch in batches(shape, proxies, keys):
            rows, several = look_up(session, batch, columns=wanted)
            if several:
                raise ResolutionError(
                    [
                        failure(Unfound(batch.proxies[place], "ambiguous", answers))
                        for place, answers in several.items()
                    ]
                )
            for proxy, row in zip(batch.proxies, rows, strict=True):
                if row is not None:
                    found[id(proxy)] = dict(zip(names, row, strict=True))
    return found
