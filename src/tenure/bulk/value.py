"""What a value of a bulk is, and by which keys a mapped instance is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.orm import Session, SessionTransaction, make_transient, object_session
from sqlalchemy.orm.attributes import instance_state

from .._private import PENDING_MUTATIONS
from ..errors import SessionError
from ..mapping import Shape, begin, check_writable, construct, identifiers, make
from ..models import (
    Spec,
    Unconnected,
    as_attribute,
    assign,
    defaulted_fields,
    given_fields,
    is_given,
    items_of,
)
from ..references import (
    Proxy,
    instance_found,
    key_of,
    relationship_names,
    target_of,
    token_of,
)
from .lookup import part_values
from .report import Failure

UNSET = object()


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
    #: Whether ``resolve`` has bound it to a row that was there.
    is_bound: bool = False
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
    #: What that holds, if its constructor is still to run, which waits for references.
    begun: dict[str, Any] | None = None

    @classmethod
    def of(cls, given: Any, entity: type[Any]) -> Self:
        """Make the value for a mapped instance, or a ``Spec`` that describes one."""
        if isinstance(given, Spec):
            return cls(given, entity)
        is_own = instance_state(given).key is not None
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
        return {name: held[name] for name in set_attributes(self.instance)}

    def held_before(self) -> dict[str, Any]:
        """Return the attributes that were given, also after it was bound to a row."""
        if isinstance(self.given, Spec):
            return given_fields(self.given)
        if self.payload is None:
            return self.held
        return {**self.payload, **(self.related or {})}

    @property
    def defaults(self) -> frozenset[str]:
        """The attributes that only a default of a ``Spec`` has set."""
        given = self.given
        return defaulted_fields(given) if isinstance(given, Spec) else frozenset()

    def adds(self, name: str) -> bool:
        """
        Whether a collection is added to that of the row, instead of replacing it.

        What a mapped instance holds may have come there by back references only,
        and does not say what else there is.
        """
        return not isinstance(self.given, Spec) and not is_given(self.given, name)

    def promised(self) -> Any:
        """Return the instance, of a ``Spec`` without what it refers to yet."""
        if self.instance is None and self.former is None:
            # A relationship that is set would put it into the session by a cascade.
            related = relationship_names(inspect(self.entity))
            ready = {
                name: as_attribute(part)
                for name, part in given_fields(self.given).items()
                if name not in related
            }
            self.former, self.begun = begin(self.entity, ready)
        return self.former if self.instance is None else self.instance

    def made(self) -> Any:
        """Return the mapped instance, made from a ``Spec`` when first needed."""
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
            if former is None or instance_state(former).key is not None:
                self.instance = make(self.entity, attributes)
                return
            check_writable(self.entity, attributes)
            instance = self.instance = former
            if self.begun is not None:
                begun, self.begun = self.begun, None
                construct(instance, attributes, begun)
                attributes = {}
        replace_proxies(instance)
        held = inspect(instance).dict
        for name, attribute in attributes.items():
            # It waited for a reference, or another value that it refers to
            # turned out to be a known instance.
            if held.get(name, UNSET) is not attribute:
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
        self.is_row = self.is_filled = self.was_known = self.is_bound = False
        if not isinstance(self.given, Spec):
            self._undo()
            return
        if self.instance is not None:
            self.former, self.instance = self.instance, None
            if instance_state(self.former).key is None:
                self._unconnect(self.former)

    def remember(self) -> None:
        """Remember what a mapped instance refers to, before any of it is changed."""
        if self.related is None and not isinstance(self.given, Spec):
            state = instance_state(self.given)
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
            for name in set_attributes(given):
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
        state: Any = instance_state(instance)
        if state.key is not None:
            make_transient(instance)
        for name in self.unkeyed:
            state.dict.pop(name, None)
        if keeps:
            return
        for name in relationship_names(state.mapper):
            state.dict.pop(name, None)
            state.committed_state.pop(name, None)
        # Forget additions that wait for collections that are not loaded.
        state.__dict__.pop(PENDING_MUTATIONS, None)


def replace_proxies(instance: Any) -> None:
    """Replace proxies by the instances they are resolved to."""
    state = instance_state(instance)
    held = state.dict
    for name in relationship_names(state.mapper):
        value = held.get(name)
        # Proxy and instance have the same state, so the session sees no change.
        if type(value) is Proxy:
            held[name] = target_of(value)
        elif isinstance(value, list) and Proxy in set(map(type, value)):
            list.__setitem__(value, slice(None), [as_attribute(v) for v in value])


def set_attributes(instance: Any) -> list[str]:
    state = inspect(instance)
    held = [prop.key for prop in state.mapper.attrs if prop.key in state.dict]
    if isinstance(instance, BaseModel):
        # SQLModel sets all defaults; model_fields_set tells what was given.
        defaults = type(instance).model_fields.keys() - instance.model_fields_set
        held = [name for name in held if name not in defaults]
    return held


#: A key, and its columns.
Named = tuple[Proxy, tuple[Any, ...]]


def reference_to(instance: Any) -> Proxy:
    """
    Return a proxy for the row that the set attributes of *instance* name.

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
        instance_found(proxy, row, instance)
    return proxy


def _identifier_of(instance: Any) -> Shape | None:
    """Return the first identifier all of whose attributes are set and not null."""
    return next(complete_identifiers(type(instance), inspect(instance).dict), None)


def complete_identifiers(entity: type[Any], held: Mapping[str, Any]) -> Iterator[Shape]:
    """Yield the identifiers all of whose attributes are in *held*, and name a row."""
    for names, shape in identifiers(entity).spellings.items():
        nulls = [name for name in names if held.get(name) is None]
        if not nulls or (
            shape.nulls_are_equal and len(nulls) < len(names) and held.keys() >= names
        ):
            yield shape


def name_of(instance: Any) -> tuple[type[Any], dict[str, Any]]:
    """Return a class and the key of an instance, for messages."""
    shape, held = _identifier_of(instance), inspect(instance).dict
    names = () if shape is None else shape.names
    return type(instance), {name: held[name] for name in names}


def one_of_each(shapes: Iterable[Shape]) -> list[Shape]:
    """Return the first spelling of each identifier."""
    found: dict[frozenset[Any], Shape] = {}
    for shape in shapes:
        found.setdefault(frozenset(shape.columns), shape)
    return list(found.values())


def keys_of(instance: Any) -> Iterator[Named]:
    """Yield every identifier that is complete, the first one first."""
    held = inspect(instance).dict
    for shape in one_of_each(complete_identifiers(type(instance), held)):
        key = tuple(held[name] for name in shape.names)
        columns: list[Any] = []
        for part, value in zip(shape.parts, key, strict=True):
            known = part_values(part, value, lambda proxy: proxy._tenure_row)
            if known is None:
                break
            columns.extend(known)
        else:
            yield Proxy(shape, key), tuple(columns)


def choose(
    keys: Iterable[Proxy], identity: Callable[[Proxy], tuple[Any, ...] | None]
) -> Proxy | Failure | None:
    """
    Return the first of a value's keys that names a row; a failure if others disagree.

    Args:
        identity: Gives the primary key of the row that a key names.
    """
    found = [(key, named) for key in keys if (named := identity(key)) is not None]
    rows = tuple(dict.fromkeys(named for _, named in found))
    if len(rows) > 1:
        several: dict[str, Any] = {}
        for key, _ in found:
            several |= key_of(key)
        entity = found[0][0]._tenure_shape.entity
        return Failure(entity, several, "ambiguous", rows=rows)
    return found[0][0] if found else None


def token_of_key(shape: Shape, columns: tuple[Any, ...]) -> Any:
    """Return what identifies a key in a dictionary, also if it cannot be hashed."""
    try:
        hash(columns)
    except TypeError:
        return shape, tuple(map(token_of, columns))
    return shape, columns


def innermost(session: Session) -> SessionTransaction | None:
    """Return the savepoint or transaction that a session is in."""
    return session.get_nested_transaction() or session.get_transaction()
