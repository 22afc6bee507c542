"""
References: naming a row by its key in a Pydantic model.

``Ref[Airline]`` is ``Airline`` to a type checker; to Pydantic it accepts a key
and gives a :class:`Proxy`, which stands for the row until
:meth:`~tenure.SessionBulk.resolve` has found it and delegates to it from then
on. Validated inside a bulk, equal keys give one and the same proxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import (
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from sqlalchemy import Column, inspect
from sqlalchemy.exc import MissingGreenlet, StatementError
from sqlalchemy.orm import Mapper, Session, make_transient_to_detached
from sqlalchemy.util.concurrency import in_greenlet

from ..context import ATTEMPT, SESSION_BULK_CONTEXT
from ..errors import LoadError, UnresolvedReferenceError
from ..mapping import Identifiers, Part, Shape, column_type, identifiers, mapper_of

T = TypeVar("T")

_get = object.__getattribute__
_set = object.__setattr__


class Proxy:
    """
    Stands for the row a reference names.

    Before it is resolved only the attributes of its key can be read; anything
    else raises :exc:`UnresolvedReferenceError`. Afterwards it delegates to the
    session's instance for that row: attributes, equality, hash, ``isinstance``
    and SQLAlchemy's ``inspect()``.

    A set or dict that was made before keeps the hash of the key. It can be walked
    through; to be searched, it is made again from a list of its items.
    """

    __slots__ = (
        "__weakref__",
        "_tenure_row",
        "_tenure_session",
        "_tenure_shape",
        "_tenure_target",
        "_tenure_values",
    )

    # A row is what a look-up fetched: primary key first, then what dependents need.
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
                # What Python asks of any object; hasattr() must have its answer.
                raise AttributeError(name)
            raise UnresolvedReferenceError(shape.entity, key_of(self), repr(name))
        target = target_of(self)
        try:
            if _would_wait(target, name):
                raise MissingGreenlet("it would have to be loaded")
            return getattr(target, name)
        except (MissingGreenlet, StatementError) as error:
            # From within an attribute that is made of others it comes wrapped.
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
        # Sets and keys of dicts ask for it as they are validated.
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
    """Give what tells keys apart that no registry has made one."""
    if type(value) is Proxy:
        parts = tuple(_spelled(part) for part in value._tenure_values)
        return value._tenure_shape, parts
    return token_of(value)


def is_resolved(proxy: Proxy) -> bool:
    """Whether the row *proxy* stands for is known."""
    return proxy._tenure_row is not None or proxy._tenure_target is not None


def shape_of(proxy: Proxy) -> Shape:
    """Give the key shape that *proxy* was made with."""
    return proxy._tenure_shape


def key_of(proxy: Proxy) -> dict[str, Any]:
    """Give the key of *proxy* by attribute name."""
    return dict(zip(proxy._tenure_shape.names, proxy._tenure_values, strict=True))


def target_of(proxy: Proxy, wanted: str = "row") -> Any:
    """
    Give the instance *proxy* stands for; no I/O.

    Raises:
        UnresolvedReferenceError: It is not resolved.
    """
    target = proxy._tenure_target
    if target is None:
        row = proxy._tenure_row
        shape = proxy._tenure_shape
        if row is None:
            raise UnresolvedReferenceError(shape.entity, key_of(proxy), wanted)
        # Made on first use: most references of a bulk only lend their key, and
        # a mapped instance costs more than the look-up did.
        known = identifiers(shape.mapper)
        width = len(shape.primary_key)
        others = zip(known.fetched[width:], row[width:], strict=True)
        mapper = known.mapper_for(row)
        target = instance_for(mapper, row[:width], proxy._tenure_session, others)
        _set(proxy, "_tenure_target", target)
    return target


def settle(
    proxies: Sequence[Proxy],
    rows: Sequence[tuple[Any, ...] | None],
    session: Session | None,
) -> None:
    """Record the row each proxy stands for; its instance lives in *session*."""
    for proxy, row in zip(proxies, rows, strict=True):
        if row is not None:
            _set_row(proxy, row)
            _set_session(proxy, session)


def settle_instance(proxy: Proxy, row: tuple[Any, ...] | None, instance: Any) -> None:
    """Record the very instance that *proxy* stands for."""
    if row is not None:
        _set(proxy, "_tenure_row", row)
    _set(proxy, "_tenure_target", instance)


def unsettle(proxy: Proxy) -> None:
    """Forget what *proxy* stands for."""
    for name in ("_tenure_row", "_tenure_session", "_tenure_target"):
        _set(proxy, name, None)


def _follow(proxy: Proxy, other: Proxy) -> None:
    """Let *proxy* stand for what *other* stands for."""
    for name in ("_tenure_row", "_tenure_session", "_tenure_target"):
        _set(proxy, name, _get(other, name))


def columns_held(instance: Any, columns: Iterable[Column[Any]]) -> tuple[Any, ...]:
    """Give columns of a mapped instance, ``None`` for what is not loaded; no I/O."""
    state = inspect(instance)
    mapper = state.mapper
    # What is expired is still the same row.
    known = dict(zip(mapper.primary_key, state.identity or (), strict=False))
    return tuple(
        state.dict.get(mapper.get_property_by_column(column).key, known.get(column))
        for column in columns
    )


def instance_for(
    mapper: Mapper[Any],
    identity: tuple[Any, ...],
    session: Session | None,
    others: Iterable[tuple[Column[Any], Any]] = (),
) -> Any:
    """
    Give the session's instance of a row, made if it has none.

    Args:
        others: Columns that are known beside the identity, for a new one.
    """
    key = mapper.identity_key_from_primary_key(identity)
    if session is not None:
        present = session.identity_map.get(key)
        if present is not None:
            return present
    instance = mapper.class_manager.new_instance()
    state = inspect(instance)
    for column, value in (*zip(mapper.primary_key, identity, strict=True), *others):
        state.dict[mapper.get_property_by_column(column).key] = value
    make_transient_to_detached(instance)
    if session is not None:
        session.add(instance)
    return instance


class Registry:
    """
    The references of one bulk: equal keys, one proxy, in the order they came.

    ``raw`` remembers, for each validator, what it made of which input, so that an
    input seen before costs one look-up.
    """

    def __init__(self, hand: Callable[[Any], Any] | None = None) -> None:
        #: Gives what payloads hold for a reference; ``None``: the proxy itself.
        self.hand = hand
        self._proxies: dict[Shape, dict[tuple[Any, ...], Proxy]] = {}
        self.raw: dict[ReferenceValidator, dict[Any, Proxy]] = {}
        #: What was added since :meth:`forget_unresolved`, and where it is kept.
        self._added: list[tuple[dict[Any, Proxy], Any]] = []
        #: Proxies made outside (by their id), with the one that stands for each here.
        self._adopted: dict[int, tuple[Proxy, Proxy]] = {}

    def handed(self, found: Any) -> Any:
        """Give what a payload holds for a reference."""
        return found if self.hand is None else self.hand(found)

    def recall(self, validator: ReferenceValidator, given: Any) -> Proxy | None:
        """Give what *validator* made of an input before."""
        known = self.raw.get(validator)
        return None if known is None else known.get(given)

    def remember(self, validator: ReferenceValidator, given: Any, proxy: Proxy) -> None:
        """Remember what *validator* made of an input."""
        known = self.raw.get(validator)
        if known is None:
            known = self.raw[validator] = {}
        known[given] = proxy
        self._added.append((known, given))

    def intern(
        self, shape: Shape, values: tuple[Any, ...], made: Proxy | None = None
    ) -> Proxy:
        """Give the one proxy for this key: *made* if there is none yet."""
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
        """Keep *proxy* for a key, or give the one that is there."""
        proxies = self._proxies.get(shape)
        if proxies is None:
            proxies = self._proxies.setdefault(shape, {})
        # Another thread may have come first.
        found = proxies.setdefault(token, proxy)
        if found is proxy:
            self._added.append((proxies, token))
        return found

    def adopt(self, proxy: Proxy) -> Proxy:
        """
        Take in a proxy that was made outside; give the one that stands for it.

        The other one follows it: whoever made it holds that one.
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

    def settle_adopted(self) -> None:
        """Let the proxies that were made outside follow those that stand for them."""
        for proxy, found in list(self._adopted.values()):
            _follow(proxy, found)

    def followers(self) -> list[Proxy]:
        """Give the proxies made outside that are not resolved."""
        adopted = list(self._adopted.values())
        return [proxy for proxy, _ in adopted if not is_resolved(proxy)]

    def known(self, proxy: Proxy) -> Proxy:
        """Give the proxy that stands here for one that was made outside."""
        return self._adopted.get(id(proxy), (proxy, proxy))[1]

    def find(self, proxy: Proxy) -> Proxy | None:
        """Give the proxy that stands here for the key of *proxy*."""
        token = []
        for value in proxy._tenure_values:
            inner = self.find(value) if type(value) is Proxy else value
            if inner is None and value is not None:
                return None
            token.append(token_of(inner))
        return self._at(proxy._tenure_shape, tuple(token))

    def __iter__(self) -> Iterator[Proxy]:
        # Others may add meanwhile.
        for proxies in list(self._proxies.values()):
            yield from list(proxies.values())

    def __len__(self) -> int:
        return sum(map(len, self._proxies.values()))

    def added(self) -> list[Proxy]:
        """Give the references added since :meth:`forget_unresolved`."""
        shapes = {id(proxies) for proxies in self._proxies.values()}
        return [kept[key] for kept, key in self._added if id(kept) in shapes]

    def forget(self) -> None:
        """Drop every reference."""
        self._proxies.clear()
        self._adopted.clear()
        self.raw.clear()
        self._added.clear()

    def forget_unresolved(self) -> None:
        """Drop the references that were not found."""
        for kept, key in self._added:
            if not is_resolved(kept[key]):
                del kept[key]
        self._added.clear()


def registering(bulk: Any) -> Registry:
    """Give where references of the payload that is validated go for now."""
    registry: Registry = bulk._registry
    attempt = ATTEMPT.get()
    return attempt if attempt is not None and attempt.base is registry else registry


def token_of(value: Any) -> Any:
    """Give what tells *value* apart in a key: equal to Python is not enough."""
    kind = type(value)
    if kind is str or kind is int:
        return value
    if kind is datetime or kind is time:
        # Equal instants in two zones are two texts to a column without zone; an
        # hour that comes twice when clocks go back differs by its fold only.
        return kind, value, value.tzinfo, value.fold
    if kind is Decimal:
        # A type that stores text keeps 1.0 and 1.00 apart.
        return kind, value.as_tuple()
    if kind is float:
        # 0.0 and -0.0 are equal, and no NaN is equal to itself.
        return kind, value.hex()
    if kind is Proxy or hasattr(value, "_sa_instance_state"):
        # The hash of a proxy changes as it is resolved, and an instance may define
        # equality as it likes; both stay alive in the proxy made here.
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
    """Give what tells an unhashable value apart: what it is written as."""
    if isinstance(value, (set, frozenset)):
        return kind, frozenset([token_of(item) for item in value])
    return kind, repr(value)


class ReferenceValidator:
    """Turns what a payload says into a reference to one entity."""

    def __init__(self, entity: type[Any], key: Key, *, optional: bool = False) -> None:
        self.entity = entity
        self.optional = optional
        self.key = key
        self.sources = tuple(key.composed.values())
        self._identifiers: Identifiers | None = None
        self._nested: dict[str, ReferenceValidator] = {}

    def __call__(self, value: Any) -> Any:
        """Give the instance or proxy that *value* means."""
        bulk = SESSION_BULK_CONTEXT.get()
        if bulk is None:
            return self.reference(value, None)
        registry = registering(bulk)
        # bool is an int and 1.0 == 1: only these two types are looked up as
        # they came, and no str equals an int.
        kind = type(value)
        if kind is not str and kind is not int:
            return registry.handed(self.reference(value, registry))
        found = registry.recall(self, value)
        if found is None:
            found = self.reference(value, registry)
            registry.remember(self, value, found)
        return registry.handed(found)

    def composed(self, value: Any, info: core_schema.ValidationInfo) -> Any:
        """Give the reference whose key is made of the model's own fields."""
        data = info.data
        try:
            parts = tuple([data[source] for source in self.sources])
        except KeyError as error:
            raise PydanticCustomError(
                "reference_part",
                "its key needs the field '{field}', which is not valid, or not "
                "declared before this one",
                {"field": error.args[0]},
            ) from None
        return self.compose(value, parts)

    def compose(self, value: Any, parts: tuple[Any, ...]) -> Any:
        """Give the reference for *value*, or else for the key made of *parts*."""
        if value is not None:
            return self(value)
        if any(part is None for part in parts):
            if not self.optional:
                return self.reference(None, None)
            return None
        bulk = SESSION_BULK_CONTEXT.get()
        shape = self.known.shape(self.key.attributes)
        if bulk is None:
            return self._make(shape, parts, None)
        registry = registering(bulk)
        return registry.handed(self._make(shape, parts, registry))

    @property
    def known(self) -> Identifiers:
        """The identifiers of the entity, read when first needed."""
        if self._identifiers is None:
            found = identifiers(_mapper_of(self.entity))
            for name in self.key.attributes:
                try:
                    found.part(name)
                except KeyError:
                    raise TypeError(
                        f"Key({name!r}): {self.entity.__name__} has no column or "
                        f"many-to-one relationship of that name"
                    ) from None
            self._identifiers = found
        return self._identifiers

    def accepted(self) -> dict[frozenset[str], Shape]:
        """Give the shapes this reference may be spelled in."""
        if self.key.attributes:
            names = self.key.attributes
            return {frozenset(names): self.known.shape(names)}
        return self.known.spellings

    def reference(self, value: Any, registry: Registry | None) -> Any:
        """Give the reference for *value*, interned in *registry* if there is one."""
        if self._identifiers is None:
            # Says so if there can be no reference to it, whatever the value is.
            self.known  # noqa: B018
        if type(value) is Proxy:
            if not issubclass(value._tenure_shape.entity, self.entity):
                raise self._refused(value)
            if registry is None or is_resolved(value):
                return value
            return registry.adopt(value)
        if isinstance(value, self.entity):
            return value
        if value is None:
            raise PydanticCustomError(
                "reference_type",
                "a reference to {entity} is required",
                {"entity": self.entity.__name__},
            )
        if isinstance(value, Mapping):
            shape = self.accepted().get(frozenset(value))
            if shape is None:
                raise self._refused(value)
            return self._make(shape, [value[name] for name in shape.names], registry)
        return self._scalar(value, registry)

    def _scalar(self, value: Any, registry: Registry | None) -> Any:
        shapes = [s for s in self.accepted().values() if len(s.parts) == 1]
        if self.key.attributes and shapes:
            return self._make(shapes[0], [value], registry)
        for fits in (_fits_strictly, _fits):
            fitting = {s.columns: s for s in shapes if fits(s, value)}
            if len(fitting) == 1:
                (shape,) = fitting.values()
                return self._make(shape, [value], registry)
            if fitting:
                example = repr(next(iter(fitting.values())).names[0])
                raise PydanticCustomError(
                    "reference_ambiguous",
                    "could be {keys} of {entity}; give an object such as {example}, "
                    "or name the key with {key}",
                    {
                        "keys": " or ".join(s.names[0] for s in fitting.values()),
                        "entity": self.entity.__name__,
                        "example": f"{{{example}: …}}",
                        "key": f"Key({example})",
                    },
                )
        raise self._refused(value)

    def _make(
        self, shape: Shape, given: Sequence[Any], registry: Registry | None
    ) -> Proxy:
        values = tuple(
            self._value(part, adapter, value, registry)
            for part, adapter, value in zip(
                shape.parts, shape.adapters, given, strict=True
            )
        )
        if all(value is None for value in values):
            raise PydanticCustomError(
                "reference_null",
                "a key of {entity} cannot be only null",
                {"entity": self.entity.__name__},
            )
        if registry is None:
            return Proxy(shape, values)
        return registry.intern(shape, values)

    def _value(
        self, part: Part, adapter: Any, value: Any, registry: Registry | None
    ) -> Any:
        if value is None:
            return None
        try:
            if part.target is None:
                return _validated(part.columns[0], adapter, value)
            nested = self._nested.get(part.name)
            if nested is None:
                nested = ReferenceValidator(part.target.class_, Key())
                self._nested[part.name] = nested
            return nested.reference(value, registry)
        except (ValidationError, UnicodeEncodeError, PydanticCustomError) as error:
            kind = getattr(error, "type", "reference_key")
            raise PydanticCustomError(
                kind,
                "{entity}.{name}: {problem}",
                {
                    "entity": self.entity.__name__,
                    "name": part.name,
                    "problem": _problem(error),
                },
            ) from None

    def _refused(self, value: Any) -> PydanticCustomError:
        shapes = self.accepted().values()
        keys = " or ".join(f"({', '.join(shape.names)})" for shape in shapes)
        return PydanticCustomError(
            "reference_key",
            "{given} does not name a row of {entity}; its keys are {keys}",
            {
                "given": _described(value),
                "entity": self.entity.__name__,
                "keys": keys,
            },
        )

    def json_schema(self, inside: frozenset[type[Any]] = frozenset()) -> dict[str, Any]:
        """Describe what is accepted; *inside* of keys of its own kind, in words only."""
        described: dict[str, Any] = {
            "title": self.entity.__name__,
            "description": f"Reference to a {self.entity.__name__}, by key",
        }
        if self.entity in inside:
            return described
        inside |= {self.entity}
        options: list[dict[str, Any]] = []
        for shape in self.accepted().values():
            properties = {
                part.name: ReferenceValidator(part.target.class_, Key()).json_schema(
                    inside
                )
                if part.target is not None
                else adapter.json_schema()
                if adapter is not None
                else {}
                for part, adapter in zip(shape.parts, shape.adapters, strict=True)
            }
            if len(properties) == 1 and not shape.is_nested:
                options.append(next(iter(properties.values())))
            options.append(
                {
                    "type": "object",
                    "properties": properties,
                    "required": list(properties),
                    "additionalProperties": False,
                }
            )
        unique = [
            option for n, option in enumerate(options) if option not in options[:n]
        ]
        return described | {"anyOf": unique}


# Types that Pydantic would take for another one, which makes one key of several.
_NEVER: dict[type[Any], tuple[type[Any], ...]] = {
    bool: (int, float, Decimal),
    float: (int,),
    bytes: (str, int, float, Decimal),
}


#: What tells that a value is none of a column: both are a ``ValueError``.
_INVALID = (ValidationError, UnicodeEncodeError)


def _validated(column: Column[Any], adapter: TypeAdapter[Any], value: Any) -> Any:
    """Bring *value* to the type of *column*, or raise one of ``_INVALID``."""
    strict = column_type(column) in _NEVER.get(type(value), ())
    found = adapter.validate_python(value, strict=strict or None)
    if type(found) is str and not found.isascii():
        # Half of a surrogate pair: no database has such a text, or could be sent it.
        found.encode()
    return found


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object with {', '.join(map(str, value)) or 'nothing'}"
    return f"a value of type {type(value).__name__}"


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return error.errors()[0]["msg"]
    if isinstance(error, PydanticCustomError):
        return error.message()
    return str(getattr(error, "reason", error))


def _fits(shape: Shape, value: Any) -> bool:
    adapter = shape.adapters[0]
    if adapter is None:
        return False
    try:
        _validated(shape.columns[0], adapter, value)
    except _INVALID:
        return False
    return True


# A text is not taken for a number while a text key is there to take it, so that
# "007" stays a code; other types (UUID, date, Enum) are written as text in JSON.
_WRITTEN_DIFFERENTLY: dict[type[Any], tuple[type[Any], ...]] = {
    str: (int, float, bool),
    int: (str, bool),
    float: (str, int, bool),
    bool: (str, int, float),
}


def _fits_strictly(shape: Shape, value: Any) -> bool:
    expected = column_type(shape.columns[0])
    if expected in _WRITTEN_DIFFERENTLY.get(type(value), ()):
        return False
    if isinstance(value, Enum) and expected is not Any:
        # Pydantic takes its value for the text or number that it is.
        return isinstance(value, expected)
    return _fits(shape, value)


def _is_name(given: Any) -> bool:
    return isinstance(given, str) and bool(given)


class Key:
    """
    Says that a field is a reference, and by which attributes.

    ``Key()`` accepts every identifier of the entity; ``Key("origin",
    "time_hour")`` only this one; ``Key(origin="origin", time_hour="hour")``
    composes the key from the model's own fields, which are declared before it:
    each keyword is an attribute of the entity, its value a field of the model.
    Such a field has no default: what it is composed of is the default.
    """

    __slots__ = ("attributes", "composed")

    def __init__(self, *attributes: str, **composed: str) -> None:
        wrong = [
            each for each in (*attributes, *composed.values()) if not _is_name(each)
        ]
        if wrong:
            raise TypeError(f"Key() takes names of attributes, not {wrong[0]!r}")
        if attributes and composed:
            raise TypeError(
                "Key() takes names of attributes or fields that compose the key, "
                "not both"
            )
        self.attributes = attributes or tuple(composed)
        self.composed = composed

    def __repr__(self) -> str:
        inside = [repr(name) for name in self.attributes if not self.composed]
        inside += [f"{name}={source!r}" for name, source in self.composed.items()]
        return f"Key({', '.join(inside)})"

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Validate with a :class:`ReferenceValidator` in place of the class."""
        entity, optional = _without_none(source)
        check_referable(entity, self)
        validator = ReferenceValidator(entity, self, optional=optional)
        serialization = core_schema.plain_serializer_function_ser_schema(
            serialize_reference, when_used="unless-none"
        )
        if self.composed:
            return core_schema.with_default_schema(
                core_schema.with_info_plain_validator_function(
                    validator.composed,
                    serialization=serialization,
                    metadata=_marked(validator),
                ),
                default=None,
                validate_default=True,
            )
        schema: CoreSchema = core_schema.no_info_plain_validator_function(
            validator, serialization=serialization, metadata=_marked(validator)
        )
        return core_schema.nullable_schema(schema) if optional else schema

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the accepted keys."""
        optional = schema["type"] in ("nullable", "default")
        inner: Any = schema.get("schema", schema)
        found: ReferenceValidator = inner["metadata"]["tenure_reference"]
        described = found.json_schema()
        if optional:
            described["anyOf"] = [*described["anyOf"], {"type": "null"}]
        return described


#: ``Ref[Airline]``: a reference to an airline, by any of its identifiers.
Ref = Annotated[T, Key()]


def check_referable(entity: Any, key: Key) -> None:
    """
    Check what can be checked of a class that may be mapped later.

    Raises:
        TypeError: There can be no reference to it.
    """
    if not isinstance(entity, type) or entity.__module__ in ("builtins", "typing"):
        raise TypeError(
            f"{key!r} marks a mapped class as a reference, not {_name_of(entity)}"
        )
    if entity.__dict__.get("__abstract__"):
        _mapper_of(entity)


def _mapper_of(entity: type[Any]) -> Mapper[Any]:
    try:
        return mapper_of(entity)
    except LoadError as error:
        # No ValueError: it is not the fault of the payload that comes first.
        raise TypeError(f"no reference can be to it: {error}") from None


def _name_of(entity: Any) -> str:
    return entity.__name__ if type(entity) is type else repr(entity)


def _marked(validator: ReferenceValidator) -> dict[str, Any]:
    return {"tenure_reference": validator}


def _without_none(source: Any) -> tuple[Any, bool]:
    if get_origin(source) in (Union, UnionType):
        members = [member for member in get_args(source) if member is not NoneType]
        if len(members) == 1:
            return members[0], len(members) < len(get_args(source))
    return source, False


def serialize_reference(value: Any) -> Any:
    """Give the key a reference was made with, the identity of an instance."""
    if type(value) is Proxy:
        key = {name: serialize_reference(part) for name, part in key_of(value).items()}
    elif hasattr(value, "_sa_instance_state"):
        # That of a placeholder says which reference it is of.
        proxy = getattr(value._sa_instance_state, "_tenure_proxy", None)
        if proxy is not None:
            return serialize_reference(proxy)
        mapper = inspect(type(value))
        names = [mapper.get_property_by_column(c).key for c in mapper.primary_key]
        key = {name: value.__dict__.get(name) for name in names}
    else:
        return value
    return next(iter(key.values())) if len(key) == 1 else key
