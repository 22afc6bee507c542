"""
Proxies, which stand for rows, and the registry that keeps one proxy for each key.

``Ref[Airline]`` is ``Airline`` to a type checker. Pydantic accepts a key there and
makes a :class:`Proxy` of it. Once :meth:`~tenure.SessionBulk.resolve` has found the
row, the proxy delegates to its instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, time
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.orm import Session
from sqlalchemy.util.concurrency import in_greenlet

from .._private import STATE
from ..context import DRAFT
from ..errors import UnresolvedReferenceError
from ..mapping import Shape, identifiers, instance_for

T = TypeVar("T")

_get = object.__getattribute__
_set = object.__setattr__


class Proxy:
    """
    Stands for the row that has a key.

    Before it is resolved, only the attributes of its key can be read; anything
    else raises :exc:`UnresolvedReferenceError`. Afterwards it delegates to the
    session's instance of that row: attributes, equality, hash, ``isinstance``
    and SQLAlchemy's ``inspect()``.

    Resolving changes the hash. A set or dict made before can still be iterated;
    to search it, make a new one from its items.
    """

    __slots__ = (
        "__weakref__",
        "_tenure_row",
        "_tenure_session",
        "_tenure_shape",
        "_tenure_target",
        "_tenure_values",
    )

    # What the look-up fetched: ``Identifiers.fetched``, the primary key first.
    _tenure_row: tuple[Any, ...] | None
    _tenure_session: Session | None
    _tenure_shape: Shape
    _tenure_target: Any
    _tenure_values: tuple[Any, ...]

    def __init__(self, shape: Shape, values: tuple[Any, ...]) -> None:
        _set(self, "_tenure_shape", shape)
        _set(self, "_tenure_values", values)
        _set(self, "_tenure_row", None)
        _set(self, "_tenure_target", None)
        _set(self, "_tenure_session", None)

    def __getattr__(self, name: str) -> Any:
        shape = self._tenure_shape
        if self._tenure_row is None and self._tenure_target is None:
            if name in shape.names:
                return self._tenure_values[shape.names.index(name)]
            if name.startswith("__") and not hasattr(shape.entity, name):
                # Python looks for such names in any object, with hasattr().
                raise AttributeError(name)
            raise UnresolvedReferenceError(shape.entity, key_of(self), repr(name))
        target = target_of(self)
        try:
            if _would_wait(target, name):
                raise MissingGreenlet("the attribute is not loaded")
            return getattr(target, name)
        except (MissingGreenlet, StatementError) as error:
            # StatementError wraps one that an attribute of other attributes raised.
            if not isinstance(getattr(error, "orig", error), MissingGreenlet):
                raise
            raise UnresolvedReferenceError(
                shape.entity, key_of(self), repr(name), is_bound=True
            ) from error

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(target_of(self, f"{name!r}"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(target_of(self, f"{name!r}"), name)

    @property  # type: ignore[misc]  # isinstance() asks __class__, as for a mock
    def __class__(self) -> type[Any]:
        if self._tenure_target is not None:
            return type(self._tenure_target)
        shape, row = self._tenure_shape, self._tenure_row
        if row is None or shape.mapper.polymorphic_on is None:
            return shape.entity
        return identifiers(shape.mapper).mapper_for(row).class_

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(other) is Proxy:
            if not is_resolved(self) or not is_resolved(other):
                return (
                    not is_resolved(self)
                    and not is_resolved(other)
                    and _spelled(self) == _spelled(other)
                )
            other = target_of(other)
        return is_resolved(self) and bool(target_of(self) == other)

    def __hash__(self) -> int:
        # Pydantic hashes it while it validates a set, before it is resolved.
        return hash(target_of(self) if is_resolved(self) else _spelled(self))

    def __repr__(self) -> str:
        if is_resolved(self):
            return repr(target_of(self))
        key = ", ".join(f"{k}={v!r}" for k, v in key_of(self).items())
        return f"<{self._tenure_shape.entity.__name__}({key}), not resolved>"

    def __str__(self) -> str:
        return str(target_of(self)) if is_resolved(self) else repr(self)

    def __dir__(self) -> list[str]:
        return dir(self._tenure_target or self._tenure_shape.entity)

    def __copy__(self) -> Proxy:
        return self

    def __deepcopy__(self, memo: Any) -> Proxy:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _itself, (target_of(self, "pickle"),)


# Proxy.__setattr__ delegates; these reach the slots, and faster.
_set_row = Proxy.__dict__["_tenure_row"].__set__
_set_session = Proxy.__dict__["_tenure_session"].__set__


def _itself(instance: T) -> T:
    return instance


def _would_wait(target: Any, name: str) -> bool:
    """Whether reading an attribute needs I/O that async code has to await."""
    state = inspect(target)
    return (
        name not in state.dict
        and getattr(state.session, "async_mode", False)
        and name in state.mapper.attrs
        and not in_greenlet()
    )


def _spelled(value: Any) -> Any:
    """Return what two proxies of one key have in common without a registry."""
    if type(value) is Proxy:
        parts = tuple(_spelled(part) for part in value._tenure_values)
        return value._tenure_shape, parts
    return token_of(value)


def is_resolved(proxy: Proxy) -> bool:
    """Whether the row that *proxy* stands for is known."""
    return proxy._tenure_row is not None or proxy._tenure_target is not None


def shape_of(proxy: Proxy) -> Shape:
    """Return the shape of the key of *proxy*."""
    return proxy._tenure_shape


def key_of(proxy: Proxy) -> dict[str, Any]:
    """Return the key of *proxy*: values by attribute."""
    return dict(zip(proxy._tenure_shape.names, proxy._tenure_values, strict=True))


def target_of(proxy: Proxy, wanted: str = "row") -> Any:
    """
    Return the instance that *proxy* stands for; no I/O.

    Raises:
        UnresolvedReferenceError: *proxy* is not resolved.
    """
    target = proxy._tenure_target
    if target is None:
        row = proxy._tenure_row
        shape = proxy._tenure_shape
        if row is None:
            raise UnresolvedReferenceError(shape.entity, key_of(proxy), wanted)
        # Made when first used: most references of a bulk only fill foreign keys,
        # and to make a mapped instance costs more than to look the row up.
        known = identifiers(shape.mapper)
        width = len(shape.primary_key)
        others = zip(known.fetched[width:], row[width:], strict=True)
        mapper = known.mapper_for(row)
        target = instance_for(mapper, row[:width], proxy._tenure_session, others)
        _set(proxy, "_tenure_target", target)
    return target


def rows_found(
    proxies: Sequence[Proxy],
    rows: Sequence[tuple[Any, ...] | None],
    session: Session | None,
) -> None:
    """Record the row of each proxy; *session* will have its instance."""
    for proxy, row in zip(proxies, rows, strict=True):
        if row is not None:
            _set_row(proxy, row)
            _set_session(proxy, session)


def instance_found(proxy: Proxy, row: tuple[Any, ...] | None, instance: Any) -> None:
    """Record the instance that *proxy* stands for, and its row, if there is one."""
    if row is not None:
        _set(proxy, "_tenure_row", row)
    _set(proxy, "_tenure_target", instance)


def row_lost(proxy: Proxy) -> None:
    """Make *proxy* unresolved again: its row was rolled back."""
    for name in ("_tenure_row", "_tenure_session", "_tenure_target"):
        _set(proxy, name, None)


def _follow(proxy: Proxy, other: Proxy) -> None:
    """Make *proxy* stand for what *other* stands for."""
    for name in ("_tenure_row", "_tenure_session", "_tenure_target"):
        _set(proxy, name, _get(other, name))


class Registry:
    """
    The references of one bulk: one proxy for each key, in the order they came.

    ``raw`` caches, for each validator, which proxy an input led to, so that equal
    inputs cost one look-up.

    Args:
        held_for: Returns what payloads hold for a proxy; ``None``: the proxy itself.
    """

    def __init__(self, held_for: Callable[[Any], Any] | None = None) -> None:
        self.held_for = held_for
        self._proxies: dict[Shape, dict[tuple[Any, ...], Proxy]] = {}
        self.raw: dict[Any, dict[Any, Proxy]] = {}
        #: What was added since :meth:`forget_unresolved`: a dictionary and its key.
        self._added: list[tuple[dict[Any, Proxy], Any]] = []
        #: Proxies made outside of the bulk, by id, each with ours for the same key.
        self._adopted: dict[int, tuple[Proxy, Proxy]] = {}

    def recall(self, validator: Any, given: Any) -> Proxy | None:
        """Return the proxy that *validator* made of an equal input, if any."""
        known = self.raw.get(validator)
        return None if known is None else known.get(given)

    def remember(self, validator: Any, given: Any, proxy: Proxy) -> None:
        """Remember the proxy that *validator* made of an input."""
        known = self.raw.get(validator)
        if known is None:
            known = self.raw[validator] = {}
        known[given] = proxy
        self._added.append((known, given))

    def intern(
        self, shape: Shape, values: tuple[Any, ...], made: Proxy | None = None
    ) -> Proxy:
        """Return the one proxy for a key: *made*, or a new one, if there is none."""
        token = tuple([token_of(value) for value in values])
        found = self._at(shape, token)
        return (
            self.put(shape, token, made or Proxy(shape, values))
            if found is None
            else found
        )

    def _at(self, shape: Shape, token: tuple[Any, ...]) -> Proxy | None:
        proxies = self._proxies.get(shape)
        return None if proxies is None else proxies.get(token)

    def put(self, shape: Shape, token: tuple[Any, ...], proxy: Proxy) -> Proxy:
        """Return the proxy for a key: *proxy*, unless there is one already."""
        proxies = self._proxies.get(shape)
        if proxies is None:
            proxies = self._proxies.setdefault(shape, {})
        # Another thread may have been first.
        found = proxies.setdefault(token, proxy)
        if found is proxy:
            self._added.append((proxies, token))
        return found

    def adopt(self, proxy: Proxy) -> Proxy:
        """
        Return our proxy for the key of one that was made outside of the bulk.

        Once ours is resolved, so is the other one: a payload may hold it.
        """
        shape = proxy._tenure_shape
        given = proxy._tenure_values
        values = tuple(self.adopt(v) if type(v) is Proxy else v for v in given)
        same = all(mine is theirs for mine, theirs in zip(values, given, strict=True))
        found = self.intern(shape, values, proxy if same else None)
        if found is not proxy:
            self._adopted[id(proxy)] = proxy, found
            if is_resolved(proxy) and not is_resolved(found):
                _follow(found, proxy)
            else:
                _follow(proxy, found)
        return found

    def update_adopted(self) -> None:
        """Make the proxies from outside stand for what ours stand for."""
        for proxy, found in list(self._adopted.values()):
            _follow(proxy, found)

    def followers(self) -> list[Proxy]:
        """Return the proxies from outside that are not resolved."""
        adopted = list(self._adopted.values())
        return [proxy for proxy, _ in adopted if not is_resolved(proxy)]

    def known(self, proxy: Proxy) -> Proxy:
        """Return our proxy for one that was adopted, else *proxy* itself."""
        return self._adopted.get(id(proxy), (proxy, proxy))[1]

    def find(self, proxy: Proxy) -> Proxy | None:
        """Return our proxy for the key of *proxy*, if there is one."""
        token = []
        for value in proxy._tenure_values:
            inner = self.find(value) if type(value) is Proxy else value
            if inner is None and value is not None:
                return None
            token.append(token_of(inner))
        return self._at(proxy._tenure_shape, tuple(token))

    def __iter__(self) -> Iterator[Proxy]:
        # Another thread may add some meanwhile.
        for proxies in list(self._proxies.values()):
            yield from list(proxies.values())

    def __len__(self) -> int:
        return sum(map(len, self._proxies.values()))

    def added(self) -> list[Proxy]:
        """Return the proxies added since :meth:`forget_unresolved`."""
        shapes = {id(proxies) for proxies in self._proxies.values()}
        return [kept[key] for kept, key in self._added if id(kept) in shapes]

    def forget(self) -> None:
        """Forget every proxy."""
        self._proxies.clear()
        self._adopted.clear()
        self.raw.clear()
        self._added.clear()

    def forget_unresolved(self) -> None:
        """Forget the new proxies that are not resolved."""
        for kept, key in self._added:
            if not is_resolved(kept[key]):
                del kept[key]
        self._added.clear()


def registering(bulk: Any) -> Registry:
    """Return the draft of the payload being validated, else the bulk's registry."""
    registry: Registry = bulk._registry
    draft = DRAFT.get()
    return draft if draft is not None and draft.base is registry else registry


def token_of(value: Any) -> Any:
    """Return what two values have in common only if they are the same in a key."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is datetime or kind is time:
        # A column without a time zone stores equal instants of two zones as two
        # texts. When clocks go back, an hour comes twice and differs by fold only.
        return kind, value, value.tzinfo, value.fold
    if kind is Decimal:
        # A column type that stores text keeps 1.0 and 1.00 apart.
        return kind, value.as_tuple()
    if kind is float:
        # 0.0 and -0.0 are equal, and no NaN is equal to itself.
        return kind, value.hex()
    if kind is Proxy or hasattr(value, STATE):
        # The hash of a proxy changes when it is resolved, and a class may define
        # equality as it likes. The proxy that has this key keeps both alive.
        return "instance", id(value)
    if isinstance(value, Mapping):
        items = [(token_of(name), token_of(item)) for name, item in value.items()]
        return kind, tuple(items)
    if isinstance(value, (list, tuple)):
        return kind, tuple([token_of(item) for item in value])
    try:
        hash(value)
    except TypeError:
        return _written(kind, value)
    return kind, value


def _written(kind: type[Any], value: Any) -> Any:
    """Return what tells an unhashable value apart: its items, or its repr()."""
    if isinstance(value, (set, frozenset)):
        return kind, frozenset([token_of(item) for item in value])
    return kind, repr(value)
