"""Values of a bulk: found among the rows that exist, and written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import inspect
from sqlalchemy.orm import (
    Mapper,
    RelationshipProperty,
    Session,
    make_transient,
    make_transient_to_detached,
)
from sqlalchemy.orm.attributes import set_committed_value
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import ResolutionError, SessionError
from ..keys import Shape, columns_of, identifiers
from ..references import Proxy, columns_held, instance_for, settle_instance, target_of
from ..resources import Spec, as_attribute, given_fields
from ._dialects import bind_processors
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

    @property
    def held(self) -> dict[str, Any]:
        """The attributes that were given, references as they are."""
        if isinstance(self.given, Spec):
            return given_fields(self.given)
        held = inspect(self.given).dict
        return {name: held[name] for name in _set_attributes(self.given)}

    def made(self) -> Any:
        """Give the mapped instance, made from a ``Spec`` when first needed."""
        if self.instance is None:
            given = self.given
            self.instance = given.to_resource() if isinstance(given, Spec) else given
        return self.instance

    def forget(self) -> None:
        """Be a new value again."""
        self.is_row = self.is_filled = False
        if isinstance(self.given, Spec):
            self.instance = None


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


def _keyed(
    session: Session, values: Sequence[Value], on_duplicate: OnDuplicate
) -> tuple[list[tuple[Value, Proxy, tuple[Any, ...]]], list[Value]]:
    """Pair each value with its key in columns; give the superseded ones apart."""
    keyed: dict[Any, tuple[Value, Proxy, tuple[Any, ...]]] = {}
    superseded: list[Value] = []
    twice: list[Failure] = []
    for value in values:
        instance = value.made()
        shape = _identifier_of(instance)
        if shape is None:
            continue
        held = inspect(instance).dict
        key = tuple(held[name] for name in shape.names)
        columns: list[Any] = []
        for part, part_value in zip(shape.parts, key, strict=True):
            known = part_values(part, part_value, lambda proxy: proxy._seance_row)
            if known is None:
                break
            columns.extend(known)
        else:
            token = (shape, tuple(columns))
            earlier = keyed.get(token)
            if earlier is not None and earlier[0].made() is not instance:
                if on_duplicate == "raise":
                    names = dict(zip(shape.names, key, strict=True))
                    twice.append(Failure(shape.entity, names, "ambiguous"))
                    continue
                if on_duplicate == "first":
                    superseded.append(value)
                    continue
                superseded.append(earlier[0])
            keyed[token] = (value, Proxy(shape, key), tuple(columns))
    if twice:
        raise ResolutionError(twice)
    return list(keyed.values()), superseded


def _rows_of(
    session: Session, keyed: Sequence[tuple[Value, Proxy, tuple[Any, ...]]]
) -> dict[int, dict[str, Any]]:
    """Look up the rows of keyed values: their loaded columns by attribute."""
    found: dict[int, dict[str, Any]] = {}
    groups: dict[Shape, tuple[list[Proxy], list[tuple[Any, ...]]]] = {}
    for _, proxy, columns in keyed:
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
    given = value.instance
    if given is None and not isinstance(value.given, Spec):
        given = value.instance = value.given
    if row is None:
        if given is None:
            value.instance = value.entity(**attributes)
        else:
            _replace_proxies(given)
            held = inspect(given).dict
            for name, attribute in attributes.items():
                # Another value that it refers to turned out to be a known instance.
                if name in held and held[name] is not attribute:
                    setattr(given, name, attribute)
        return
    mapper = inspect(value.entity)
    identity = tuple(
        row[mapper.get_property_by_column(column).key] for column in mapper.primary_key
    )
    known = session.identity_map.get(mapper.identity_key_from_primary_key(identity))
    value.was_known = known is not None
    if given is None:
        value.instance = instance_for(mapper, identity, session)
    elif known is None:
        _make_persistent(session, given, mapper, identity)
    elif known is not given:
        discard(session, given)
        value.instance = known
    _apply(session, value.instance, attributes, row, key)
    if fills:
        for name in inspect(value.instance).unloaded & row.keys():
            set_committed_value(value.instance, name, row[name])
        value.is_filled = True
    value.is_row = True


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
    held = inspect(instance).dict
    for relationship in inspect(type(instance)).relationships:
        # Or the collection on the other side would bring it back.
        if relationship.key in held and relationship._reverse_property:
            setattr(instance, relationship.key, [] if relationship.uselist else None)


@contextmanager
def set_aside(values: Iterable[Value]) -> Iterator[None]:
    """
    Take new values out of the collections of other instances for a while.

    A flush meanwhile finds them there and warns that they are not in the session.
    """
    aside: list[tuple[Any, str, Any]] = []
    for value in values:
        instance = value.instance
        if instance is None or not inspect(instance).transient:
            continue
        held = inspect(instance).dict
        for relationship in inspect(value.entity).relationships:
            if held.get(relationship.key) and relationship._reverse_property:
                given = held[relationship.key]
                given = list(given) if relationship.uselist else given
                aside.append((instance, relationship.key, given))
                setattr(
                    instance, relationship.key, [] if relationship.uselist else None
                )
    yield
    for instance, name, given in aside:
        setattr(instance, name, given)


def _replace_proxies(instance: Any) -> None:
    """Put the instances that proxies stand for in the place of the proxies."""
    held = inspect(instance).dict
    for relationship in inspect(type(instance)).relationships:
        value = held.get(relationship.key)
        # The state behind both is the same one: nothing changes for the session.
        if type(value) is Proxy:
            held[relationship.key] = target_of(value)
        elif isinstance(value, list) and Proxy in set(map(type, value)):
            list.__setitem__(value, slice(None), [as_attribute(v) for v in value])


def _set_attributes(instance: Any) -> list[str]:
    state = inspect(instance)
    return [prop.key for prop in state.mapper.attrs if prop.key in state.dict]


def _apply(
    session: Session,
    instance: Any,
    attributes: Mapping[str, Any],
    row: Mapping[str, Any],
    key: Collection[str],
) -> None:
    """Set what differs from the row, or from what the session has changed in it."""
    mapper = inspect(type(instance))
    primary = {mapper.get_property_by_column(c).key for c in mapper.primary_key}
    held = inspect(instance).dict
    for name, value in attributes.items():
        if name in primary:
            continue
        prop = mapper.attrs[name]
        if isinstance(prop, RelationshipProperty):
            if name not in held and _is_the_same_row(prop, value, row):
                set_committed_value(instance, name, value)
            elif held.get(name, _UNSET) is not value:
                for column in prop.local_columns:
                    _load(instance, mapper.get_property_by_column(column).key, row)
                setattr(instance, name, value)
            continue
        _load(instance, name, row)
        if name in key:
            continue
        if name not in held or not _equal(session, prop, held[name], value):
            setattr(instance, name, value)


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
    return held == tuple([row.get(key, _UNSET) for key in keys])


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


def flush(
    session: Session,
    values: Sequence[Value],
    *,
    on_conflict: OnConflict,
    update_fields: Iterable[str] | None,
    on_duplicate: OnDuplicate,
) -> BulkReport:
    """Write values through the unit of work; see ``SessionBulk.flush``."""
    # Others may add meanwhile.
    values = list(values)
    statuses: dict[Value, Status] = {}
    with session.no_autoflush:
        for value in values:
            _replace_proxies(value.made())
        if on_conflict != "raise":
            new = [v for v in values if not v.is_row]
            keyed, superseded = _keyed(session, new, on_duplicate)
            found = _rows_of(session, keyed)
            statuses |= dict.fromkeys(superseded, "skipped")
            allowed = None if update_fields is None else set(update_fields)
            for value, proxy, _ in keyed:
                row = found.get(id(proxy))
                if row is None:
                    continue
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
            if value in statuses:
                discard(session, value.instance)
            elif inspect(value.instance).persistent:
                changed = session.is_modified(value.instance)
                statuses[value] = "updated" if changed else "unchanged"
            else:
                session.add(value.instance)
                statuses[value] = "created"
    session.flush()
    for value in values:
        value.is_row = value.is_row or statuses[value] != "skipped"
    return BulkReport([statuses[value] for value in values])
