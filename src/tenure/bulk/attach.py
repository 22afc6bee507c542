"""Attach a value to the session's instance of its row, or detach it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import (
    Mapper,
    RelationshipProperty,
    Session,
    make_transient,
    make_transient_to_detached,
)
from sqlalchemy.orm.attributes import instance_state, set_committed_value
from sqlalchemy.orm.base import PASSIVE_NO_FETCH
from sqlalchemy.orm.interfaces import MANYTOONE

from .._private import PENDING_MUTATIONS
from ..mapping import (
    check_writable,
    columns_held,
    columns_of,
    instance_for,
    reverse_sides,
)
from ..models import Spec, assign, connect, is_given, items_of, lift
from ..references import relationship_names
from .dialects import bind_processors
from .value import (
    UNSET,
    Value,
    innermost,
    set_attributes,
)


def attach(
    session: Session,
    value: Value,
    attributes: Mapping[str, Any],
    row: dict[str, Any],
    *,
    key: Collection[str] = (),
    fills: bool = False,
) -> None:
    """
    Attach a value to the session's instance of its row.

    Args:
        attributes: What was given, with instances in place of references.
        row: The columns of the row by attribute.
        key: The attributes the row was found by: equal to the database.
        fills: Whether attributes that were not given become those of the row.
    """
    if value.is_row:
        value.fill(attributes)
        if fills:
            _fill(value, row)
        return
    value.placed_in = innermost(session)
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
    for name in set_attributes(instance):
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
        # A collection on the other side that still holds it would flush it.
        if reverse_sides(relationship):
            _leave(instance, relationship)


def _leave(
    instance: Any,
    relationship: RelationshipProperty[Any],
    which: Callable[[Any], bool] = lambda other: True,
) -> None:
    """Remove the links between an instance and (some of) those it refers to."""
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
    new = [each for each in made if instance_state(each).key is None]
    with session.no_autoflush:
        # First all of them: setting one fires events that read the others.
        for instance in new:
            lift(instance)
        for instance in new:
            for relationship in inspect(type(instance)).relationships:
                # Only links from rows: a new object may go on referring to it.
                if any(other.uselist for other in reverse_sides(relationship)):
                    _leave(instance, relationship, _is_row)


def _is_row(instance: Any) -> bool:
    return instance_state(instance).key is not None


def _keep_others(
    other: Any, relationship: RelationshipProperty[Any], instance: Any
) -> None:
    """
    Take back what was added to a collection that is not loaded.

    It may have forgotten that *instance* was, and a row that this becomes is not to
    leave it.
    """
    waiting = instance_state(other).__dict__.get(PENDING_MUTATIONS, {})
    for reverse in reverse_sides(relationship):
        if reverse.key in waiting:
            waiting[reverse.key].deleted_items.discard(instance)


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
            # A hybrid: its setter may set any column, so load them all before.
            for attribute in row:
                _load(instance, attribute, row)
            setattr(instance, name, value)
            continue
        if isinstance(prop, RelationshipProperty):
            if prop.uselist and adds(name):
                _append(instance, prop, value)
            elif name not in held and _is_the_same_row(prop, value, row):
                set_committed_value(instance, name, value)
            elif held.get(name, UNSET) is not value:
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
        # An item whose own side of the relationship was given is added there.
        if not any(is_given(item, other.key) for other in reverse_sides(prop)):
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
        return all(row.get(key, UNSET) is None for key in keys)
    held = columns_held(target, columns_of(remote for _, remote in pairs))
    # A new target has no key yet, so the row cannot refer to it.
    return None not in held and held == tuple([row.get(key, UNSET) for key in keys])


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
