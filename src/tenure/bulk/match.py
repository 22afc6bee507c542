"""
The values of a bulk as what its references may name.

A reference whose key belongs to a value is that value, whether it is a row yet
or not. Values are made from what describes them in the order in which they refer
to each other, and bound to their rows on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from .._private import STATE
from ..mapping import Shape, identifiers, with_bases
from ..models import Spec, as_attribute, instances_in, items_of, lift
from ..references import (
    Proxy,
    Registry,
    instance_found,
    is_resolved,
    relationship_names,
    target_of,
    token_of,
)
from .attach import attach, complete
from .report import Failure
from .value import Value, choose, complete_identifiers, innermost, one_of_each


class Local:
    """
    Finds the value that a reference names.

    Attributes:
        held: The attributes that each value was given, references as they are.
        keys: What each value is looked up by: the reference of the bulk that has
            its key, or else one made here. Of two values with one key, the first.
        others: Its keys by its other identifiers.
    """

    def __init__(self, values: Sequence[Value], registry: Registry) -> None:
        self.values = values
        self.keys: dict[Value, Proxy] = {}
        self.others: dict[Value, list[Proxy]] = {}
        self._registry = registry
        self.held = {value: _kept(value) for value in values}
        self._targets: dict[int, Any] = {}
        self._by_given: dict[int, Value] = {}
        for value in values:
            self._by_given[id(value.given)] = value
            self._by_given[id(value.instance)] = value
            self._by_given[id(value.former)] = value
        self._by_given.pop(id(None), None)
        self._by_token: dict[Any, Value] = {}
        shapes = {
            value: list(complete_identifiers(value.entity, held))
            for value, held in self.held.items()
        }
        self._index(shapes)
        self._find_keys({v: one_of_each(each) for v, each in shapes.items() if each})

    def _index(self, shapes: Mapping[Value, list[Shape]]) -> None:
        nested = any(shape.is_nested for each in shapes.values() for shape in each)
        while True:
            found: dict[Any, Value] = {}
            for value, each in shapes.items():
                for shape in each:
                    parts = self._parts(value, shape)
                    for same in with_bases(shape):
                        given = same.arranged(shape.names, parts)
                        found.setdefault(self._token(same, given), value)
            stable = found.keys() == self._by_token.keys()
            self._by_token = found
            # A nested key is compared by the value it names, known from the pass before.
            if stable or not nested:
                return

    def _find_keys(self, shapes: dict[Value, list[Shape]]) -> None:
        waiting = {
            value: shape
            for value, (shape, *_) in shapes.items()
            if self._by_token[self._token(shape, self._parts(value, shape))] is value
        }
        while waiting:
            ready = [
                value
                for value, shape in waiting.items()
                if not any(self.named(p) in waiting for p in self._parts(value, shape))
            ]
            if not ready:
                break  # keys that hold each other name no row
            for value in ready:
                self.keys[value] = self._key(value, waiting.pop(value))
        for value in self.keys:
            others = [self._key(value, shape) for shape in shapes[value][1:]]
            if others:
                self.others[value] = others

    def _key(self, value: Value, shape: Shape) -> Proxy:
        parts = []
        for part in self._parts(value, shape):
            inner = self.named(part)
            if inner is None:
                parts.append(part)
            elif inner.is_row:
                # Its key is known already and need not be looked up.
                parts.append(inner.instance)
            else:
                parts.append(self.keys.get(inner, part))
        key = Proxy(shape, tuple(parts))
        return self._registry.find(key) or key

    def keys_of(self, value: Value) -> list[Proxy]:
        """Return the keys that *value* is looked up by, the first one first."""
        return [self.keys[value], *self.others.get(value, ())]

    def choose(self, rows: Mapping[int, tuple[Any, ...]]) -> list[Failure]:
        """
        Keep for each value the first key that names a row; give those that disagree.

        Args:
            rows: The rows of keys, by their id.
        """

        def identity(key: Proxy) -> tuple[Any, ...] | None:
            row = rows.get(id(key))
            return None if row is None else row[: len(key._tenure_shape.primary_key)]

        failures = []
        for value in self.others:
            chosen = choose(self.keys_of(value), identity)
            if isinstance(chosen, Failure):
                failures.append(chosen)
                del self.keys[value]
            elif chosen is not None:
                self.keys[value] = chosen
        return failures

    def _parts(self, value: Value, shape: Shape) -> list[Any]:
        parts = [self.held[value][name] for name in shape.names]
        found = [next(instances_in(part), part) for part in parts]
        # The registry's proxy, which is the one that is looked up.
        return [self._registry.known(p) if type(p) is Proxy else p for p in found]

    def named(self, given: Any) -> Value | None:
        """Return the value of this bulk that a reference or an instance is, if any."""
        if type(given) is not Proxy:
            return self._by_given.get(id(given))
        given = self._registry.known(given)
        target = self._target(given)
        if target is not None:
            return self._by_given.get(id(target))
        return self._by_token.get(
            self._token(given._tenure_shape, given._tenure_values)
        )

    def instance(self, given: Any) -> Any:
        """Return the instance of *given*: a value may have had another one before."""
        named = self._by_given.get(id(given))
        return given if named is None or named.instance is None else named.instance

    def _target(self, proxy: Proxy) -> Any:
        """Return what identified *proxy* when first seen: a key keeps its token."""
        found = self._targets.get(id(proxy), self)
        if found is self:
            # Another proxy of the same row may have made its instance already.
            found = target_of(proxy) if is_resolved(proxy) else None
            self._targets[id(proxy)] = found
        return found

    def _token(self, shape: Shape, parts: Sequence[Any]) -> Any:
        return shape, tuple([self._part_token(part) for part in parts])

    def _part_token(self, part: Any) -> Any:
        if type(part) is not Proxy and not hasattr(part, STATE):
            return token_of(part)
        named = self.named(part)
        if named is not None:
            return "value", id(named)
        if type(part) is not Proxy:
            return token_of(part)
        part = self._registry.known(part)
        target = self._target(part)
        if target is not None:
            return token_of(target)
        return self._token(part._tenure_shape, part._tenure_values)


def match_values(
    session: Session,
    values: Sequence[Value],
    local: Local,
    references: Iterable[Proxy],
    rows: Mapping[Value, dict[str, Any]],
    *,
    fills: bool,
) -> list[Proxy]:
    """
    Make the instances of *values*, and let the references to them be them.

    A value that holds a reference which is not resolved is left as it is.

    Args:
        rows: The rows that values have; a value with one is bound to it.
        fills: Whether that sets the attributes that were not given.

    Returns:
        The references that are values now.
    """
    waiting: dict[Value, list[Proxy]] = {}
    for proxy in references:
        named = local.named(proxy)
        if named is not None:
            waiting.setdefault(named, []).append(proxy)
    done: list[Proxy] = []
    late: list[tuple[Value, str, Any]] = []
    with session.no_autoflush:
        # First all of them: setting one fires events that read the others.
        ordered = list(_in_order(values, local))
        for value, _ in ordered:
            if not isinstance(value.given, Spec):
                lift(value.given)
        for value, left_out in ordered:
            # As it was given: the values before may have changed back references.
            held, row = local.held[value], rows.get(value)
            attributes = {}
            for name, part in held.items():
                if name in left_out:
                    late.append((value, name, part))
                    continue
                attribute = as_attribute(part, local.instance)
                if row is not None or not _stands(value, name, part, attribute):
                    attributes[name] = attribute
            names = local.keys[value]._tenure_shape.names if row else ()
            for name in value.defaults - {*names} if row else ():
                attributes.pop(name, None)
            if row is None:
                if not value.is_row:
                    value.placed_in = innermost(session)
                value.fill(attributes)
            else:
                was_row = value.is_row
                attach(session, value, attributes, row, key=names, fills=fills)
                # An instance that was persistent before it was added is the user's to change.
                value.is_bound = value.is_bound or not (was_row or value.is_own)
            for proxy in waiting.get(value, ()):
                instance_found(proxy, _fetched(proxy, row), value.instance)
                done.append(proxy)
        for value, name, part in late:
            attribute = as_attribute(part, local.instance)
            if value.is_row or not _stands(value, name, part, attribute):
                complete(value, name, attribute)
    return done


def _stands(value: Value, name: str, given: Any, attribute: Any) -> bool:
    """Whether a collection is there already; others may have joined it since."""
    return (
        attribute is given
        and isinstance(given, list)
        and value.instance is not None
        and name in inspect(value.instance).dict
    )


def _kept(value: Value) -> dict[str, Any]:
    """Return what was added for a value, with its collections as they are now."""
    held = value.held
    if value.instance is None:
        return held  # of a Spec, which nothing changes
    value.remember()
    for name in relationship_names(inspect(value.entity)):
        if isinstance(held.get(name), (list, set, dict)):
            held[name] = items_of(held[name])
    return held


def _fetched(proxy: Proxy, row: dict[str, Any] | None) -> tuple[Any, ...] | None:
    if row is None:
        return None
    mapper = proxy._tenure_shape.mapper
    return tuple(
        row[mapper.get_property_by_column(column).key]
        for column in identifiers(mapper).fetched
    )


def _in_order(
    values: Sequence[Value], local: Local
) -> Iterator[tuple[Value, frozenset[str]]]:
    """
    Return values after those they refer to, without those that cannot be made yet.

    Where they refer to each other in a circle, each comes with the attributes
    that have to be set later.
    """
    needs: dict[Value, dict[str, set[Value]]] = {}
    users: dict[Value, set[Value]] = {}
    blocked: list[Value] = []
    for value in values:
        needs[value] = {}
        for name, part in local.held[value].items():
            for inner in instances_in(part):
                named = local.named(inner)
                if named is not None and named is not value:
                    needs[value].setdefault(name, set()).add(named)
                    users.setdefault(named, set()).add(value)
                elif named is value:
                    needs[value].setdefault(name, set()).add(named)
                elif type(inner) is Proxy and not is_resolved(inner):
                    blocked.append(value)
    while blocked:
        value = blocked.pop()
        if needs.pop(value, None) is not None:
            blocked.extend(users.get(value, ()))
    count = {value: len(set().union(*each.values())) for value, each in needs.items()}
    ready = [value for value in needs if not count[value]]
    while needs:
        for value in ready:
            del needs[value]
            yield value, frozenset()
            for user in users.get(value, ()):
                # Others wait for a reference that is not resolved.
                if user in count:
                    count[user] -= 1
        ready = [
            user
            for v in ready
            for user in users.get(v, ())
            if user in needs and not count[user]
        ]
        ready = list(dict.fromkeys(ready))
        if not ready:
            # The rest is a circle, or depends on one.
            for value, each in needs.items():
                yield (
                    value,
                    frozenset(n for n, on in each.items() if not on.isdisjoint(needs)),
                )
            return
