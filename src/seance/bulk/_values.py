"""Values of a bulk: found among the rows that exist, and written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.orm import (
    Mapper,
    RelationshipProperty,
    Session,
    SessionTransaction,
    make_transient,
    make_transient_to_detached,
    object_session,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.base import PASSIVE_NO_FETCH
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import ResolutionError, SessionError
from ..graphs import (
    Unconnected,
    assign,
    connect,
    is_given,
    items_of,
    lift,
    relationship_names,
)
from ..keys import Shape, columns_of, identifiers
from ..making import check_writable, make
from ..references import (
    Proxy,
    columns_held,
    instance_for,
    key_of,
    settle_instance,
    target_of,
)
from ..resources import Spec, as_attribute, given_fields
from ._dialects import bind_processors
from ._flush import write_new
from ._merge import merge
from ._plan import batches
from ._report import BulkReport, Failure, Status
from ._run import Unfound, failure, look_up, part_values

OnConflict = Literal["raise", "update", "skip"]
OnDuplicate = Literal["raise", "first", "last"]


@dataclass(slots=True, eq=False)
class Value:
    """One value: what was given, and the mapped instance it is or describes."""

    given: Any
    entity: type[Any]
    instance: Any = None
    #: Whether it is known to be a row already, and whether all of it is loaded.
    is_row: bool = False
    is_filled: bool = False
    #: Whether its instance is one that the session knew already.
    was_known: bool = False
    #: The columns a mapped instance had set before it became that of a row.
    payload: dict[str, Any] | None = None
    #: The transaction in which all this became so.
    placed_in: SessionTransaction | None = None
    #: The attributes of its primary key that were left to the database.
    unkeyed: tuple[str, ...] = ()
    #: What a mapped instance refers to, as it was given.
    related: dict[str, Any] | None = None
    #: Whether a mapped instance was that of a row already.
    is_own: bool = False
    #: What a ``Spec`` was before that was undone: others may refer to it.
    former: Any = None

    @classmethod
    def of(cls, given: Any, entity: type[Any]) -> Self:
        """Make the value for a mapped instance, or a ``Spec`` that describes one."""
        if isinstance(given, Spec):
            return cls(given, entity)
        is_own = given._sa_instance_state.key is not None
        return cls(given, entity, given, is_own=is_own)

    @property
    def held(self) -> dict[str, Any]:
        """
        The attributes that are set, references as they are.

        What a ``Spec`` says is said once: its instance may be changed afterwards.
        """
        if self.instance is None:
            return given_fields(self.given)
        held = inspect(self.instance).dict
        return {name: held[name] for name in _set_attributes(self.instance)}

    def adds(self, name: str) -> bool:
        """
        Whether a collection is added to that of the row, instead of replacing it.

        What a mapped instance holds may have come there by back references only,
        and does not say what else there is.
        """
        return not isinstance(self.given, Spec) and not is_given(self.given, name)

    def made(self) -> Any:
        """Give the mapped instance, made from a ``Spec`` when first needed."""
        if self.instance is None:
            self.fill(
                {n: as_attribute(part) for n, part in given_fields(self.given).items()}
            )
        return self.instance

    def fill(self, attributes: Mapping[str, Any]) -> None:
        """Set what differs in the mapped instance, the former one of a ``Spec``."""
        instance = self.instance
        if instance is None:
            former = self.former
            if former is None or former._sa_instance_state.key is not None:
                self.instance = make(self.entity, attributes)
                return
            instance = self.instance = former
        _replace_proxies(instance)
        held = inspect(instance).dict
        for name, attribute in attributes.items():
            # It waited for a reference, or another value that it refers to
            # turned out to be a known instance.
            if held.get(name, _UNSET) is not attribute:
                assign(instance, name, attribute)

    def is_placed_in(self, transaction: SessionTransaction) -> bool:
        """Whether rolling back *transaction* undoes what became of the value."""
        within = self.placed_in
        while within is not None and within is not transaction:
            within = within.parent
        return within is not None

    def forget(self) -> None:
        """Be a new value again, as it was given."""
        self.placed_in = None
        self.is_row = self.is_filled = self.was_known = False
        if not isinstance(self.given, Spec):
            self._undo()
            return
        if self.instance is not None:
            self.former, self.instance = self.instance, None
            if self.former._sa_instance_state.key is None:
                self._unconnect(self.former)

    def remember(self) -> None:
        """Remember what a mapped instance refers to, before any of it is changed."""
        if self.related is None and not isinstance(self.given, Spec):
            state = self.given._sa_instance_state
            held = state.dict
            self.related = {
                name: items_of(held[name])
                if isinstance(held[name], (list, set, dict))
                else held[name]
                for name in relationship_names(state.mapper)
                if name in held
            }

    def _undo(self) -> None:
        """
        Make the mapped instance what was given.

        What it refers to is unconnected, as SQLAlchemy has forgotten it was told.
        """
        given = self.instance = self.given
        payload, self.payload = self.payload, None
        if self.is_own:
            return  # a row's before it came here
        held = inspect(given).dict
        if payload is not None:
            for name in _set_attributes(given):
                held.pop(name)
            held.update(payload)
        self._unconnect(given, keeps=self.related is None)
        for name, value in (self.related or {}).items():
            held[name] = Unconnected(value) if isinstance(value, list) else value

    def _unconnect(self, instance: Any, *, keeps: bool = False) -> None:
        """
        Take an instance out of its session, without what it refers to.

        And without a key that the database made, which it may make for another row now.
        """
        session = object_session(instance)
        if session is not None:
            session.expunge(instance)
        state: Any = instance._sa_instance_state
        if state.key is not None:
            make_transient(instance)
        for name in self.unkeyed:
            state.dict.pop(name, None)
        if keeps:
            return
        for name in relationship_names(state.mapper):
            state.dict.pop(name, None)
            state.committed_state.pop(name, None)
        # What was to be added to collections that were not loaded.
        state.__dict__.pop("_pending_mutations", None)


def reference_to(instance: Any) -> Proxy:
    """
    Give a proxy for the row that the set attributes of *instance* name.

    Raises:
        SessionError: They name none.
    """
    state = inspect(instance)
    shape = _identifier_of(instance)
    if shape is None:
        raise SessionError(
            f"{instance!r} has no complete identifier set, so it refers to no row"
        )
    proxy = Proxy(shape, tuple(state.dict[name] for name in shape.names))
    if state.persistent:
        row = tuple(getattr(instance, c.key) for c in identifiers(shape.mapper).fetched)
        settle_instance(proxy, row, instance)
    return proxy


def _identifier_of(instance: Any) -> Shape | None:
    """Give the first identifier all of whose attributes are set and not null."""
    return next(complete_identifiers(type(instance), inspect(instance).dict), None)


def complete_identifiers(entity: type[Any], held: Mapping[str, Any]) -> Iterator[Shape]:
    """Give the identifiers all of whose attributes are in *held* and not null."""
    for names, shape in identifiers(entity).spellings.items():
        if all(held.get(name) is not None for name in names):
            yield shape


def name_of(instance: Any) -> tuple[type[Any], dict[str, Any]]:
    """Give a class and the key that names an instance, for messages."""
    shape, held = _identifier_of(instance), inspect(instance).dict
    names = () if shape is None else shape.names
    return type(instance), {name: held[name] for name in names}


def one_of_each(shapes: Iterable[Shape]) -> list[Shape]:
    """Give the first spelling of each identifier."""
    found: dict[frozenset[Any], Shape] = {}
    for shape in shapes:
        found.setdefault(frozenset(shape.columns), shape)
    return list(found.values())


#: A value, and its keys, each with its columns.
Keyed = tuple[Value, list["_Key"]]
_Key = tuple[Proxy, tuple[Any, ...]]


def keys_of(instance: Any) -> Iterator[_Key]:
    """Give every identifier that is complete, the first one first."""
    held = inspect(instance).dict
    for shape in one_of_each(complete_identifiers(type(instance), held)):
        key = tuple(held[name] for name in shape.names)
        columns: list[Any] = []
        for part, value in zip(shape.parts, key, strict=True):
            known = part_values(part, value, lambda proxy: proxy._seance_row)
            if known is None:
                break
            columns.extend(known)
        else:
            yield Proxy(shape, key), tuple(columns)


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
        token = (proxy._seance_shape, columns)
        earlier = keyed.get(token)
        if earlier is not None and earlier[0].made() is not instance:
            if on_duplicate == "raise":
                entity = proxy._seance_shape.entity
                message = "more than one value of this bulk has this key"
                key = key_of(proxy)
                twice.append(Failure(entity, key, "ambiguous", message=message))
                continue
            if on_duplicate == "first":
                superseded.append(value)
                continue
            superseded.append(earlier[0])
        keyed[token] = (value, keys)
    if twice:
        raise ResolutionError(twice)
    return list(keyed.values()), superseded


def choose(
    keys: Iterable[Proxy], identity: Callable[[Proxy], tuple[Any, ...] | None]
) -> Proxy | Failure | None:
    """
    Give the first of a value's keys that names a row; a failure if others disagree.

    Args:
        identity: Gives the primary key of the row that a key names.
    """
    found = [(key, named) for key in keys if (named := identity(key)) is not None]
    rows = tuple(dict.fromkeys(named for _, named in found))
    if len(rows) > 1:
        several: dict[str, Any] = {}
        for key, _ in found:
            several |= key_of(key)
        entity = found[0][0]._seance_shape.entity
        return Failure(entity, several, "ambiguous", rows=rows)
    return found[0][0] if found else None


def _chosen(
    keyed: Iterable[Keyed], rows: Mapping[int, dict[str, Any]]
) -> list[tuple[Value, Proxy]]:
    """Pair each value that has a row with the key that names it."""

    def identity(key: Proxy) -> tuple[Any, ...] | None:
        row, mapper = rows.get(id(key)), key._seance_shape.mapper
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
        group = groups.setdefault(proxy._seance_shape, ([], []))
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


def place(
    session: Session,
    value: Value,
    attributes: Mapping[str, Any],
    row: dict[str, Any] | None,
    *,
    key: Collection[str] = (),
    fills: bool = False,
) -> None:
    """
    Make the instance of a value; with a *row*, it is the session's one for it.

    Args:
        attributes: What was given, references as the instances they stand for.
        row: The columns of the row by attribute.
        key: The attributes the row was found by: to the database they are equal.
        fills: Whether the attributes that were not given are those of the row.
    """
    if not value.is_row:
        value.placed_in = innermost(session)
    if value.is_row or row is None:
        value.fill(attributes)
        if row is not None and fills:
            _fill(value, row)
        return
    check_writable(value.entity, attributes)
    if not isinstance(value.given, Spec):
        names = relationship_names(inspect(value.entity))
        value.payload = {n: held for n, held in value.held.items() if n not in names}
    mapper = inspect(value.entity)
    identity = tuple(
        row[mapper.get_property_by_column(column).key] for column in mapper.primary_key
    )
    known = session.identity_map.get(mapper.identity_key_from_primary_key(identity))
    value.was_known = known is not None
    given = value.former if value.instance is None else value.instance
    if given is None:
        value.instance = instance_for(mapper, identity, session)
    elif known is None:
        _make_persistent(session, given, mapper, identity)
        value.instance = given
    else:
        if known is not given:
            discard(session, given)
        value.instance = known
    _apply(session, value.instance, attributes, row, key, adds=value.adds)
    if fills:
        _fill(value, row)
    value.is_row = True


def innermost(session: Session) -> SessionTransaction | None:
    """Give the transaction or savepoint that a session is in."""
    return session.get_nested_transaction() or session.get_transaction()


def _fill(value: Value, row: Mapping[str, Any]) -> None:
    """Set what is not loaded of an instance to what its row has."""
    for name in inspect(value.instance).unloaded & row.keys():
        set_committed_value(value.instance, name, row[name])
    value.is_filled = True


def _make_persistent(
    session: Session, instance: Any, mapper: Mapper[Any], identity: tuple[Any, ...]
) -> None:
    """Make what was given the session's instance of a row, without its attributes."""
    state = inspect(instance)
    discard(session, instance)
    make_transient(instance)
    for name in _set_attributes(instance):
        state.dict.pop(name)
    for column, part in zip(mapper.primary_key, identity, strict=True):
        state.dict[mapper.get_property_by_column(column).key] = part
    make_transient_to_detached(instance)
    session.add(instance)


def discard(session: Session, instance: Any) -> None:
    """Take an instance that is not to be written out of the session and its graph."""
    if instance in session:
        session.expunge(instance)
    for relationship in inspect(type(instance)).relationships:
        # Or the collection on the other side would bring it back.
        if relationship._reverse_property:
            _leave(instance, relationship)


def _leave(
    instance: Any,
    relationship: RelationshipProperty[Any],
    which: Callable[[Any], bool] = lambda other: True,
) -> None:
    """Let an instance and (some of) those it refers to not refer to each other."""
    held = inspect(instance).dict.get(relationship.key)
    if held is None:
        return
    others = items_of(held) if relationship.uselist else [held]
    left = [other for other in others if not which(other)]
    if len(left) == len(others):
        return
    connect(instance, relationship, left if relationship.uselist else None)
    for other in others:
        if which(other):
            _keep_others(other, relationship, instance)


def let_go(session: Session, values: Iterable[Value]) -> None:
    """
    Take new values that are undone out of the collections of rows.

    Where nothing was sent, no rollback has made those forget them. What is no row has
    been given what it refers to, maybe since.
    """
    made = [value.instance for value in values if value.instance is not None]
    new = [each for each in made if each._sa_instance_state.key is None]
    with session.no_autoflush:
        # An event of one must not meet what another one hides from SQLAlchemy.
        for instance in new:
            lift(instance)
        for instance in new:
            for relationship in inspect(type(instance)).relationships:
                # What is a row may well refer to it, as it did before.
                if any(other.uselist for other in relationship._reverse_property):
                    _leave(instance, relationship, _is_row)


def _is_row(instance: Any) -> bool:
    return instance._sa_instance_state.key is not None


def _keep_others(
    other: Any, relationship: RelationshipProperty[Any], instance: Any
) -> None:
    """
    Let a collection that is not loaded have lost nothing but what was added to it.

    It may have forgotten that *instance* was, and a row that this becomes is not to
    leave it.
    """
    waiting = other._sa_instance_state.__dict__.get("_pending_mutations", {})
    for reverse in relationship._reverse_property:
        if reverse.key in waiting:
            waiting[reverse.key].deleted_items.discard(instance)


def _replace_proxies(instance: Any) -> None:
    """Put the instances that proxies stand for in the place of the proxies."""
    state = instance._sa_instance_state
    held = state.dict
    for name in relationship_names(state.mapper):
        value = held.get(name)
        # The state behind both is the same one: nothing changes for the session.
        if type(value) is Proxy:
            held[name] = target_of(value)
        elif isinstance(value, list) and Proxy in set(map(type, value)):
            list.__setitem__(value, slice(None), [as_attribute(v) for v in value])


def _set_attributes(instance: Any) -> list[str]:
    state = inspect(instance)
    held = [prop.key for prop in state.mapper.attrs if prop.key in state.dict]
    if isinstance(instance, BaseModel):
        # SQLModel sets every default, and knows what was given.
        defaults = type(instance).model_fields.keys() - instance.model_fields_set
        held = [name for name in held if name not in defaults]
    return held


def _apply(
    session: Session,
    instance: Any,
    attributes: Mapping[str, Any],
    row: Mapping[str, Any],
    key: Collection[str],
    *,
    adds: Callable[[str], bool],
) -> None:
    """
    Set what differs from the row, or from what the session has changed in it.

    Args:
        adds: Whether a collection is added to, instead of replaced.
    """
    mapper = inspect(type(instance))
    primary = {mapper.get_property_by_column(c).key for c in mapper.primary_key}
    held = inspect(instance).dict
    for name, value in attributes.items():
        if name in primary:
            continue
        prop = mapper.attrs.get(name)
        if prop is None:
            # A hybrid: whatever columns its setter goes to, what they were is known.
            for attribute in row:
                _load(instance, attribute, row)
            setattr(instance, name, value)
            continue
        if isinstance(prop, RelationshipProperty):
            if prop.uselist and adds(name):
                _append(instance, prop, value)
            elif name not in held and _is_the_same_row(prop, value, row):
                set_committed_value(instance, name, value)
            elif held.get(name, _UNSET) is not value:
                for column in prop.local_columns:
                    _load(instance, mapper.get_property_by_column(column).key, row)
                connect(instance, prop, value)
            continue
        _load(instance, name, row)
        if name in key:
            continue
        if name not in held or not _equal(session, prop, held[name], value):
            setattr(instance, name, value)


def complete(value: Value, name: str, given: Any) -> None:
    """Set an attribute of the instance of a value, when what it refers to is made."""
    prop = inspect(value.entity).relationships.get(name)
    if value.is_row and prop is not None and prop.uselist and value.adds(name):
        _append(value.instance, prop, given)
    else:
        assign(value.instance, name, given)


def _append(instance: Any, prop: RelationshipProperty[Any], items: Any) -> None:
    """Add to a collection as a back reference does: it is not loaded for it."""
    state = inspect(instance)
    impl = state.manager[prop.key].impl
    for item in items_of(items):
        # What is said on the other side is done there.
        if not any(is_given(item, other.key) for other in prop._reverse_property):
            impl.append(state, state.dict, item, None, passive=PASSIVE_NO_FETCH)


def _load(instance: Any, name: str, row: Mapping[str, Any]) -> None:
    if name in row and name not in inspect(instance).dict:
        set_committed_value(instance, name, row[name])


def _is_the_same_row(
    prop: RelationshipProperty[Any], target: Any, row: Mapping[str, Any]
) -> bool:
    """Whether the foreign key of *row* refers to *target* already."""
    if prop.direction is not MANYTOONE or prop.secondary is not None:
        return False
    pairs = prop.local_remote_pairs or ()
    keys = [prop.parent.get_property_by_column(local).key for local, _ in pairs]
    if target is None:
        return all(row.get(key, _UNSET) is None for key in keys)
    held = columns_held(target, columns_of(remote for _, remote in pairs))
    # A new one has no key yet, and no row refers to it.
    return None not in held and held == tuple([row.get(key, _UNSET) for key in keys])


def _equal(session: Session, prop: Any, one: Any, other: Any) -> bool:
    """Whether two values of a column are stored alike."""
    if one == other:
        return True
    columns = getattr(prop, "columns", None)
    if columns is None or one is None or other is None:
        return False
    dialect = session.get_bind(prop.parent).dialect
    processor = bind_processors([columns[0].type], dialect)[0]
    return processor is not None and bool(processor(one) == processor(other))


_UNSET = object()
#: Values that are written at once.
BATCH = 100_000


def flush(
    session: Session,
    values: Sequence[Value],
    *,
    on_conflict: OnConflict,
    update_fields: Iterable[str] | None,
    on_duplicate: OnDuplicate,
    size: int = BATCH,
) -> BulkReport:
    """Write values; see ``SessionBulk.flush``."""
    # Others may add meanwhile.
    values = list(values)
    statuses: dict[Value, Status] = {}
    with session.no_autoflush:
        kinds = {kind: inspect(kind) for kind in {value.entity for value in values}}
        related = {kind: bool(relationship_names(kinds[kind])) for kind in kinds}
        keys = {
            kind: [mapper.get_property_by_column(c).key for c in mapper.primary_key]
            for kind, mapper in kinds.items()
        }
        for value in values:
            if related[value.entity]:
                value.remember()
            instance = value.made()
            if related[value.entity]:
                _replace_proxies(instance)
            state = instance._sa_instance_state
            if state.key is None:
                held = state.dict
                value.unkeyed = tuple(
                    [name for name in keys[value.entity] if held.get(name) is None]
                )
        if on_conflict != "raise":
            allowed = None if update_fields is None else set(update_fields)
            new = [v for v in values if not v.is_row]
            instances = [value.instance for value in new]
            merged = merge(session, instances, on_conflict, allowed, size)
            for value in new:
                outcome = merged.get(value.instance._sa_instance_state)
                if outcome is not None:
                    statuses[value], instance = outcome
                    if instance is not value.instance:
                        discard(session, value.instance)
                        value.instance, value.was_known = instance, True
            keyed, superseded = _keyed(
                [v for v in new if v not in statuses], on_duplicate
            )
            found = rows_of(session, keyed)
            statuses |= dict.fromkeys(superseded, "skipped")
            for value, proxy in _chosen(keyed, found):
                row = found[id(proxy)]
                if on_conflict == "skip":
                    statuses[value] = "skipped"
                    continue
                held = inspect(value.instance).dict
                attributes = {
                    name: held[name]
                    for name in _set_attributes(value.instance)
                    if allowed is None or name in allowed
                }
                names = proxy._seance_shape.names
                place(session, value, attributes, row, key=names)
        for value in values:
            if statuses.get(value) == "skipped":
                discard(session, value.instance)
            elif value in statuses:
                continue
            elif value.instance._sa_instance_state.key is not None:
                changed = session.is_modified(value.instance)
                statuses[value] = "updated" if changed else "unchanged"
            else:
                statuses[value] = "created"
        created = [v.instance for v in values if statuses[v] == "created"]
        new_ones = [i for i in created if i._sa_instance_state.key is None]
        write_new(session, new_ones, size)
        session.flush()
    written_in = innermost(session)
    for value in values:
        if statuses[value] != "unchanged":
            value.placed_in = written_in
        value.is_row = value.is_row or statuses[value] != "skipped"
    return BulkReport([statuses[value] for value in values])
