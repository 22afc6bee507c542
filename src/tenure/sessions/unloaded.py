"""
What is said of an attribute that cannot be loaded where it is read.

SQLAlchemy loads attributes that are expired, deferred or relationships when they are
read. Without a session it cannot, and async code cannot wait there. Its errors name
neither the attribute nor what to do, so they get a note.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial
from typing import Any
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.exc import MissingGreenlet, SQLAlchemyError
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty
from sqlalchemy.orm.exc import DetachedInstanceError

from .exclusive import Loader

# Mappers that are configured. Back references add to them later.
_mappers: WeakSet[Mapper[Any]] = WeakSet()


def _explain(
    key: str | None,
    error: SQLAlchemyError,
    state: InstanceState[Any],
    asked: Any,
    *_: Any,
) -> None:
    """Add a note to *error* of the loader of *key*; ``None``: of what is expired."""
    is_detached = isinstance(error, DetachedInstanceError)
    # It may be inside of the error of a statement.
    cause = getattr(error, "orig", None) or error
    if is_detached or isinstance(cause, MissingGreenlet):
        name = key or _read(asked)
        what = _what(state, name, is_expired=key is None)
        error.add_note(_note(what, name, is_detached=is_detached))


def _read(expired: Collection[str]) -> str:
    """Return which of the *expired* attributes is being read."""
    frame = sys._getframe(3)
    # The attribute itself is a few calls further out.
    for _ in range(4):
        key = frame.f_locals.get("key")
        if key in expired:
            return str(key)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return min(expired)


def _what(state: InstanceState[Any], key: str, *, is_expired: bool) -> tuple[str, str]:
    """Return why an attribute has no value, and how it would have one."""
    name = f"{state.class_.__name__}.{key}"
    if is_expired:
        return (
            f"{name} was expired, by a commit or by expire()",
            "commit with expire=False",
        )
    is_relationship = isinstance(state.mapper.attrs[key], RelationshipProperty)
    load = "selectinload" if is_relationship else "undefer"
    return f"{name} was not loaded", f"load it before, with {load}({name})"


def _note(what: tuple[str, str], key: str, *, is_detached: bool) -> str:
    why, remedy = what
    if is_detached:
        return (
            f"{why}, and the instance has no session any more: its block has ended, or "
            f"the session was closed; {remedy}, or read it inside of the block"
        )
    return (
        f"{why}, and async code cannot load it when it is read; {remedy}, or await "
        f"session.refresh(instance, [{key!r}]) first"
    )


def explain_unloaded() -> None:
    """Let the loaders of all mappers that are configured later explain their errors."""
    event.listen(Mapper, "mapper_configured", _configured)
    event.listen(Mapper, "after_configured", _watch_loaders)


def _configured(mapper: Mapper[Any], class_: type[Any]) -> None:
    _mappers.add(mapper)


def _watch_loaders() -> None:
    for mapper in _mappers:
        manager: Any = mapper.class_manager
        load = manager.expired_attribute_loader
        if not isinstance(load, Loader):
            manager.expired_attribute_loader = Loader(load, partial(_explain, None))
        for key, attribute in manager.items():
            impl = attribute.impl
            load = getattr(impl, "callable_", None)
            if load is not None and not isinstance(load, Loader):
                impl.callable_ = Loader(load, partial(_explain, key))
