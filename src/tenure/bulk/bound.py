"""
Values that ``resolve`` has bound to rows, when they are flushed.

They are instances of the session's by then, and hold what was given. ``on_conflict`` is
for them as for values that nobody has looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import RelationshipProperty, Session
from sqlalchemy.orm.attributes import History, instance_state
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from .._private import STATE, autobegin, begin_part
from ..errors import ConflictError, ResolutionError
from ..models import as_attribute, connect
from .report import MORE_THAN_ONE, Failure, Status
from .value import (
    Value,
    complete_identifiers,
    keys_of,
    name_of,
    token_of_key,
)


def settle_bound(
    session: Session,
    values: Sequence[Value],
    on_conflict: str,
    on_duplicate: str,
    allowed: set[str] | None,
) -> dict[Value, Status]:
    """
    Let bound values change their rows, or take back what they would change.

    Return the values that are skipped.

    Args:
        values: All of the bulk; others may name a row that one is bound to.
        allowed: The attributes that an update may change; ``None``: all.

    Raises:
        ConflictError: They may not; the session's transaction ends as it does when a
            flush fails.
        ResolutionError: Two values have one row.
    """
    bound = [value for value in values if value.is_bound]
    if on_conflict == "raise":
        changing = {value: names for value in bound if (names := _changed(value))}
        if changing:
            _refuse(session, changing)
        return {}
    chosen, superseded = _one_for_each_row(values, on_duplicate)
    for value in superseded:
        if value.is_bound:
            take_back(session, value)
    for value in chosen if superseded else ():
        if value.is_bound:
            _give_again(value)
    for value in chosen:
        if not value.is_bound:
            continue
        if on_conflict == "skip":
            take_back(session, value)
        elif allowed is not None:
            left = [name for name in _changed(value) if name not in allowed]
            take_back(session, value, left)
    skipped = [*superseded, *(bound if on_conflict == "skip" else ())]
    return dict.fromkeys(skipped, "skipped")


def _one_for_each_row(
    values: Sequence[Value], on_duplicate: str
) -> tuple[list[Value], list[Value]]:
    """Choose one value for each row that one is bound to; return those, and the others."""
    rows: dict[int, list[Value]] = {}
    named: dict[Any, int] = {}
    for value in values:
        if value.is_bound:
            rows[id(value.instance)] = []
            named |= dict.fromkeys(_tokens(value), id(value.instance))
    for value in values:
        row = id(value.instance)
        if not value.is_row:
            row = next((named[t] for t in _tokens(value) if t in named), row)
        if row in rows:
            rows[row].append(value)
    several = [values for values in rows.values() if len(values) > 1]
    if several and on_duplicate == "raise":
        raise ResolutionError(
            [
                Failure(v.entity, _key(v), "ambiguous", message=MORE_THAN_ONE)
                for values in several
                for v in values[1:]
            ]
        )
    place = -1 if on_duplicate == "last" else 0
    chosen = [values[place] for values in rows.values()]
    return chosen, [v for values in several for v in values if v not in chosen]


def _tokens(value: Value) -> list[Any]:
    """Return what the keys of a value are equal by."""
    keys = keys_of(value.made())
    return [token_of_key(key._tenure_shape, columns) for key, columns in keys]


def _give_again(value: Value) -> None:
    """Set what was given once more, after it was taken back with that of another."""
    state = instance_state(value.instance)
    given = value.held_before()
    primary = {
        state.mapper.get_property_by_column(c).key for c in state.mapper.primary_key
    }
    for name in (primary | value.defaults) & given.keys():
        del given[name]
    value.fill({name: as_attribute(part) for name, part in given.items()})


def _changed(value: Value) -> list[str]:
    """Return the attributes with which a flush would change the row of a value."""
    state = instance_state(value.instance)
    names = []
    for name in value.held_before():
        prop = state.mapper.attrs.get(name)
        if prop is None:
            # A hybrid: its setter may have gone to any column.
            names += [key for key in state.committed_state if key not in names]
            continue
        if name not in state.committed_state:
            # A foreign key may have been set without its relationship.
            continue
        history: History = state.get_history(name, PASSIVE_NO_INITIALIZE)
        if isinstance(prop, RelationshipProperty) and prop.uselist:
            # What is added to a collection does not change this row.
            if history.deleted:
                names.append(name)
        elif history.has_changes():
            names.append(name)
    return list(dict.fromkeys(names))


def _refuse(session: Session, changing: dict[Value, list[str]]) -> None:
    failures = []
    for value, names in changing.items():
        key = _key(value)
        message = f"{', '.join(names)} of its row would be overwritten"
        failures.append(Failure(value.entity, key, "taken", message=message))
    part = begin_part(autobegin(session))
    try:
        raise ConflictError(failures)
    except ConflictError:
        part.rollback(_capture_exception=True)
        raise


def _key(value: Value) -> dict[str, Any]:
    """Return the key by which a value was given; that of its row otherwise."""
    held = inspect(value.instance).dict
    given = {name: held[name] for name in value.held_before() if name in held}
    for shape in complete_identifiers(value.entity, given):
        key = {name: given[name] for name in shape.names}
        break
    else:
        key = name_of(value.instance)[1]
    # In place of a mapped instance, its key: a repr says nothing.
    return {n: name_of(v)[1] if hasattr(v, STATE) else v for n, v in key.items()}


def is_to_write(value: Value) -> bool:
    """Whether a value is new and unknown to any session, or bound and differs."""
    if value.is_bound:
        return bool(_changed(value))
    if value.instance is None:
        return True
    state = instance_state(value.instance)
    return state.key is None and state.session_id is None


def take_back(
    session: Session, value: Value, names: Collection[str] | None = None
) -> None:
    """Make attributes those of the row again: *names*, or all that were changed."""
    instance = value.instance
    mapper = inspect(type(instance))
    expired: set[str] = set()
    with session.no_autoflush:
        for name in _changed(value) if names is None else names:
            prop: Any = mapper.attrs.get(name)
            if isinstance(prop, RelationshipProperty):
                # First off the other side's collection, which would set it again.
                if not prop.uselist:
                    connect(instance, prop, None)
                for column in prop.local_columns:
                    if column in mapper.columns.values():
                        expired.add(mapper.get_property_by_column(column).key)
            expired.add(name)
        if expired:
            session.expire(instance, expired)
