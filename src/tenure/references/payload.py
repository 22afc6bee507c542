"""
What a payload holds, and what it registers with a bulk: all of it, or nothing.

A payload is what validation returns: models and collections, which hold references
and mapped instances. Which containers it may have is said here only.

Pydantic tries the members of a union and drops those that fail, and may refuse a
payload after it has validated most of it. So a payload has a draft, which is passed on
to the bulk when validation has succeeded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, TypeVar
from uuid import UUID

from pydantic import BaseModel, RootModel
from sqlalchemy.orm.attributes import instance_state

from .._private import STATE
from ..context import DRAFT, SESSION_BULK_CONTEXT
from ..mapping import Shape
from .proxy import Proxy, Registry, is_resolved, key_of

T = TypeVar("T")

Loc = tuple[int | str, ...]

#: Types of values that hold no others.
PLAIN = frozenset(
    (
        *(NoneType, str, bytes, int, float, bool, Decimal, UUID),
        *(date, datetime, time, timedelta),
    )
)
_COLLECTIONS = (list, tuple, set, frozenset, deque, Mapping)


# Placeholders: what an instance in a payload stands for.


def reference_in(instance: Any) -> Any:
    """
    Return what a mapped instance in a payload stands for.

    Of a placeholder the reference, or the row if that is known; else itself.
    """
    state = instance_state(instance)
    proxy = state.__dict__.get("_tenure_proxy")
    if proxy is not None:
        return proxy
    # A placeholder shares its state with the row once that is known.
    row = state.obj()
    return instance if row is None else row


def is_placeholder(value: Any) -> bool:
    """Whether *value* is a placeholder whose row is not known yet."""
    if type(value) is Proxy or not hasattr(value, STATE):
        return False
    return "_tenure_proxy" in instance_state(value).__dict__


def is_unresolved(value: Any) -> bool:
    """Whether *value* is a reference that is not resolved."""
    return type(value) is Proxy and not is_resolved(value)


# Containers.


def items_in(value: Any) -> Collection[Any] | None:
    """Return the items of a collection; ``None`` if *value* is none."""
    if not isinstance(value, _COLLECTIONS):
        return None
    return value.values() if isinstance(value, Mapping) else value


def rebuilt(value: Any, change: Callable[[Any], Any]) -> Any:
    """
    Return a collection with *change* applied to its items; *value* if none changed.

    Lists, sets and dicts become plain ones, other collections are of the same type.
    *value* itself is not changed; it is returned if it is no collection.
    """
    items = items_in(value)
    if not items:
        return value
    changed = list(map(change, items))
    if all(new is old for new, old in zip(changed, items, strict=True)):
        return value
    if isinstance(value, list):
        return changed
    if isinstance(value, set):
        return set(changed)
    kind: Any = type(value)
    if isinstance(value, Mapping):
        pairs = dict(zip(value, changed, strict=True))
        return pairs if isinstance(value, dict) else kind(pairs)
    if isinstance(value, deque):
        return kind(changed, value.maxlen)
    # Named tuples take their items one by one.
    return getattr(kind, "_make", kind)(changed)


def replace_in(value: Any) -> Any:
    """
    Return *value* with rows in place of the placeholders that it holds.

    Models, dataclasses, lists, dicts and sets are changed in place, frozen models and
    dataclasses among them; tuples and other immutable collections are made anew.
    """
    return _replaced(value, set())


def _replaced(value: Any, seen: set[int]) -> Any:
    kind = type(value)
    if kind in PLAIN or kind is Proxy or isinstance(value, type):
        return value
    if hasattr(value, STATE):
        found = reference_in(value)
        return value if type(found) is Proxy else found
    if id(value) in seen:
        return value
    seen.add(id(value))

    def change(part: Any) -> Any:
        return _replaced(part, seen)

    if isinstance(value, BaseModel):
        for held in (value.__dict__, value.model_extra or {}):
            held.update([(name, change(part)) for name, part in held.items()])
    elif is_dataclass(value):
        for name, part in _fields_of(value):
            if (new := change(part)) is not part:
                # Not setattr: it may be frozen.
                object.__setattr__(value, name, new)
    else:
        return _refilled(value, rebuilt(value, change))
    return value


def _refilled(value: Any, new: Any) -> Any:
    """Return *value* with the items of *new*; *new* if *value* is immutable."""
    if isinstance(value, set):
        # Even if no item was replaced: a change inside of one may change its hash.
        items = list(new)
        value.clear()
        value.update(items)
    elif isinstance(value, frozenset):
        return type(value)(list(new))
    elif new is value:
        return value
    elif isinstance(value, list):
        value[:] = new
    elif isinstance(value, deque):
        value.clear()
        value.extend(new)
    elif isinstance(value, dict):
        value.update(new)
    else:
        return new
    return value


def _fields_of(value: Any) -> list[tuple[str, Any]]:
    return [(f.name, getattr(value, f.name, None)) for f in fields(value)]


def contents(root: Any) -> Iterator[tuple[Loc, Any]]:
    """
    Yield the references and mapped instances that a payload holds, and where.

    Also what it cannot look into. An instance comes once; what one that is a row
    already holds is left out.
    """
    stack: list[tuple[Loc, Any]] = [((), root)]
    seen: set[int] = set()
    while stack:
        loc, value = stack.pop()
        if type(value) in PLAIN:
            continue
        is_mapped = False
        if type(value) is not Proxy and hasattr(value, STATE):
            value = reference_in(value)
            is_mapped = type(value) is not Proxy
        inner = _parts(value, is_mapped=is_mapped)
        if type(value) is Proxy or inner is None:
            yield loc, value
        elif is_mapped:
            if id(value) in seen:
                continue
            seen.add(id(value))
            yield loc, value
        stack.extend(
            (loc if name is _SAME_LOC else (*loc, name), part)
            for name, part in reversed(inner or ())
        )


# Pydantic's locations leave out the root of a RootModel.
_SAME_LOC = object()


def _parts(value: Any, *, is_mapped: bool) -> list[tuple[Any, Any]] | None:
    """Return what a value holds, by name or position; ``None``: that is unknown."""
    if type(value) is Proxy:
        return list(key_of(value).items())
    if is_mapped:
        state = instance_state(value)
        if state.key is not None:
            return []
        held = state.dict
        return [(n, held[n]) for n in relationship_names(state.mapper) if n in held]
    if isinstance(value, RootModel):
        return [(_SAME_LOC, value.root)]
    if isinstance(value, BaseModel):
        return [*value.__dict__.items(), *(value.model_extra or {}).items()]
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, _COLLECTIONS):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return _fields_of(value)
    return [] if isinstance(value, Enum) else None


def relationship_names(mapper: Any) -> list[str]:
    """Return the names of the relationships of a mapper."""
    found: list[str] = mapper.relationships.keys()
    return found


def held_by(result: Any) -> Collection[int] | None:
    """
    Return the ids of the references and instances that a payload holds.

    ``None`` where it holds what cannot be looked into: it may hold any of them.
    """
    held = set()
    for _, found in contents(result):
        if type(found) is not Proxy and not hasattr(found, STATE):
            return None
        held.add(id(found))
    return held


# Drafts.


class Draft(Registry):
    """
    What one payload has registered so far.

    It shares the references that the bulk has; new ones are in the draft only.

    Attributes:
        base: The registry of the bulk; ``None`` outside of a bulk.
        values: The instances that were made from data.
        inside: The ids of the mappings that are being validated, outermost first.
    """

    def __init__(self, bulk: Any) -> None:
        self._bulk = bulk
        self.base: Registry | None = None if bulk is None else bulk._registry
        super().__init__(None if self.base is None else self.base.held_for)
        self.values: list[Any] = []
        self.inside: list[int] = []

    def recall(self, validator: Any, given: Any) -> Proxy | None:
        """Return the proxy made of an equal input, for this payload or before."""
        found = None if self.base is None else self.base.recall(validator, given)
        return super().recall(validator, given) if found is None else found

    def _at(self, shape: Shape, token: tuple[Any, ...]) -> Proxy | None:
        found = None if self.base is None else self.base._at(shape, token)
        return super()._at(shape, token) if found is None else found

    @property
    def is_empty(self) -> bool:
        """Whether nothing was registered."""
        return not (self._proxies or self.values or self._adopted)

    def run(self, validate: Callable[..., T], *given: Any) -> T:
        """Return what *validate* returns; what it registers goes into this draft."""
        token = DRAFT.set(self)
        try:
            return validate(*given)
        finally:
            DRAFT.reset(token)

    def keep(self, payload: Any, held: Collection[int] | None = None) -> None:
        """
        Pass on to the bulk what was registered.

        Args:
            payload: What validation returned.
            held: What to pass on, see :func:`held_by`; ``None``: everything.
        """
        base = self.base
        if base is None:
            _mark_made(self.values)
            return
        for shape, proxies in self._proxies.items():
            for token, proxy in proxies.items():
                if held is None or id(proxy) in held:
                    found = base.put(shape, token, proxy)
                    if found is not proxy:
                        # Another thread was first.
                        base.adopt(proxy)
        for validator, known in self.raw.items():
            for given, proxy in known.items():
                if held is None or id(proxy) in held:
                    base.remember(validator, given, proxy)
        base._adopted.update(self._adopted)
        values = [v for v in self.values if held is None or id(v) in held]
        if values:
            self._bulk._add_values(values, payload)

    def settle(self, payload: Any) -> None:
        """Pass on what *payload* holds, and begin anew."""
        if not self.is_empty:
            self.keep(payload, held_by(payload))
            self.forget()

    def forget(self) -> None:
        """Begin anew: what was registered belongs to a payload that was refused."""
        for registered in (self._proxies, self.raw, self._adopted):
            registered.clear()
        self._added.clear()
        self.values.clear()
        # The payload was left by an exception.
        self.inside.clear()


@contextmanager
def drafting(bulk: Any) -> Iterator[Draft]:
    """Let payloads that are validated one after the other share a draft."""
    draft = Draft(bulk)
    token = DRAFT.set(draft)
    try:
        yield draft
    finally:
        DRAFT.reset(token)


def current_draft(bulk: Any) -> Draft | None:
    """Return the draft of the payload that is being validated for *bulk*, if any."""
    draft = DRAFT.get()
    base = None if bulk is None else bulk._registry
    return draft if draft is not None and draft.base is base else None


def register_all(value: Any, validate: Callable[[Any], T]) -> T:
    """Validate, and register everything, unless *value* is refused."""
    draft = Draft(SESSION_BULK_CONTEXT.get())
    result = draft.run(validate, value)
    draft.keep(result)
    return result


def register_held(value: Any, handler: Callable[[Any], Any]) -> Any:
    """
    Validate, and register what the result holds, unless *value* is refused.

    A wrap validator of Pydantic. Inside of another payload, the draft of that one
    registers.
    """
    bulk = SESSION_BULK_CONTEXT.get()
    if bulk is None or current_draft(bulk) is not None:
        return handler(value)
    draft = Draft(bulk)
    result = draft.run(handler, value)
    if not draft.is_empty:
        draft.keep(result, held_by(result))
    return result


# Instances made from data outside of a bulk are values of the bulk they are added to.
_MADE = "tenure.made"


def _mark_made(instances: Iterable[Any]) -> None:
    for instance in instances:
        instance_state(instance).info[_MADE] = True


def is_made(instance: Any) -> bool:
    """Whether an instance was made from data outside of a bulk, and is no row yet."""
    state = instance_state(instance)
    # Not state.info, which creates a dictionary.
    return state.key is None and _MADE in state.__dict__.get("info", ())
