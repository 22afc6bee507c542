"""
What is pending in a session beside a bulk's values: flushed before them, or let be.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import RelationshipProperty, Session, SessionTransaction
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import PASSIVE_NO_INITIALIZE

from ..._private import FLUSHING, PENDING_MUTATIONS, pending
from ...mapping import reverse_sides
from ...models import connect, items_of, unconnected_in


def flush_others(session: Session, instances: Collection[Any]) -> None:
    """
    Flush what is pending in a session and has nothing to do with *instances*.

    It may give away what they take, a key for example, and is not undone with them.
    """
    own = {instance_state(instance) for instance in instances}
    found = [s for some in pending(session) for s in some if s not in own]
    moved = {state: _moved(state) for state in found}
    reached = own
    while reached:
        reached = {state for state in moved if not reached.isdisjoint(moved[state])}
        for state in reached:
            del moved[state]
    if not moved:
        return
    with _set_aside(session, instances), _hidden(session, moved):
        session.flush()


@contextmanager
def _hidden(session: Session, shown: Collection[Any]) -> Iterator[None]:
    """Hide from a session that objects other than *shown* are pending."""
    all_new, all_deleted, modified = pending(session)
    others = {state for state in modified if state not in shown}
    new = {s: obj for s, obj in all_new.items() if s not in shown}
    deleted = {s: obj for s, obj in all_deleted.items() if s not in shown}
    modified -= others
    for state in new:
        del all_new[state]
    for state in deleted:
        del all_deleted[state]
    try:
        yield
    finally:
        if session.is_active:
            modified |= {state for state in others if state.modified}
            all_new.update(new)
            all_deleted.update(deleted)
        else:
            # A rollback leaves the others, which it knows, like this.
            all_new.update(new)
            for instance in new.values():
                session.expunge(instance)


def _moved(state: Any) -> set[Any]:
    """Return what was added to or removed from an object's relationships."""
    found: list[Any] = []
    for relationship in state.mapper.relationships:
        name = relationship.key
        waiting = getattr(state, PENDING_MUTATIONS).get(name)
        if waiting is not None:
            found += [*waiting.added_items, *waiting.deleted_items]
        elif name in state.committed_state:
            history = state.get_history(name, PASSIVE_NO_INITIALIZE)
            found += [*history.added, *history.deleted]
    return {instance_state(each) for each in found if each is not None}


def begin_savepoint(session: Session) -> SessionTransaction:
    """Begin a savepoint; what is pending is flushed inside of it."""
    setattr(session, FLUSHING, True)
    try:
        return session.begin_nested()
    finally:
        setattr(session, FLUSHING, False)


@contextmanager
def _set_aside(session: Session, instances: Iterable[Any]) -> Iterator[None]:
    """
    Take new instances out of the collections of others for a while.

    A flush meanwhile finds them there and warns that they are not in the session.
    """
    aside: list[tuple[Any, RelationshipProperty[Any], Any]] = []
    for instance in instances:
        state = inspect(instance)
        if not state.transient:
            continue
        held, hidden = state.dict, unconnected_in(instance)
        for relationship in state.mapper.relationships:
            name = relationship.key
            if held.get(name) and name not in hidden and reverse_sides(relationship):
                given = held[name]
                given = items_of(given) if relationship.uselist else given
                aside.append((instance, relationship, given))
    # First all of them: taking one out changes the other side as well.
    for instance, relationship, _ in aside:
        connect(instance, relationship, [] if relationship.uselist else None)
    try:
        yield
    finally:
        for instance, relationship, given in aside:
            connect(instance, relationship, given)
        if not session.is_active:
            # The rollback has undone these changes; they are not set again.
            for state in list(pending(session)[2]):
                session.expire(state.obj())
