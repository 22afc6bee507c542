"""What a bulk holds: values and references, as they were given. No I/O."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload
from weakref import WeakSet

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import event, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.state import InstanceState

from .._private import STATE
from ..context import SESSION_BULK_CONTEXT
from ..errors import SessionError, UnwrittenValuesWarning
from ..mapping import identifiers
from ..models import Spec, entity_of, unconnected_in
from ..references import (
    Draft,
    Placeholders,
    Proxy,
    Registry,
    contents,
    held_by,
    is_made,
    is_placeholder,
    is_resolved,
    items_in,
    reference_in,
    relationship_names,
    shape_of,
    target_of,
)
from .bound import is_to_write, take_back
from .save import check
from .value import Value, reference_to

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
Scope = Literal["all", "references", "values"]
SCOPES = ("all", "references", "values")


@dataclass(slots=True, eq=False)
class BulkEntry:
    """One thing a bulk holds: a reference (a proxy) or a value."""

    instance: Any
    is_reference: bool
    entity: type[Any]
    is_resolved: bool


class Holding:
    """What a bulk holds; see :class:`SessionBulk`."""

    proxy_reference: bool
    #: Made only where references are placeholders.
    _placeholders: Placeholders | None
    _registry: Registry
    _values: list[Value]
    #: What was given as a whole, by id: where failures are located.
    _payloads: dict[int, Any]
    #: Values that were part of a flush, whatever came of it; others came later.
    _tried: int
    _previous: list[Any]
    _sync_session: Any
    #: The values, by the id of what was given.
    _given: dict[int, Value]
    #: The mapped classes there were instances of, and whether they have relationships.
    _mapped: dict[type[Any], bool]

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {len(self._registry)} references, "
            f"{len(self._values)} values>"
        )

    @overload
    def add(self, instance: Spec[T], *, is_reference: bool = False) -> T: ...

    @overload
    def add(self, instance: T, *, is_reference: bool = False) -> T: ...

    def add(self, instance: Any, *, is_reference: bool = False) -> Any:
        """
        Take in a value or references; no I/O.

        Return the mapped instance that will be the row, of a ``Spec`` the one it
        describes: what it refers to is set when it is resolved or written. Anything else
        is returned as it is. Where the session has an instance of the row already, that
        one is the row: see :meth:`get`.

        Args:
            instance: A mapped instance or a ``Spec`` (values), a proxy, or any
                Pydantic model: the references it holds.
            is_reference: Take a mapped instance as a reference to the row it is.

        Raises:
            SessionError: Anything else.
        """
        self._add(instance, is_reference=is_reference)
        value = self._given.get(id(instance))
        return instance if value is None else value.promised()

    def _add(self, instance: Any, *, is_reference: bool = False) -> None:
        kind = type(instance)
        if kind in self._mapped and not is_reference:
            # The usual case: a class that was seen before.
            self._add_instance(instance, kind)
        elif type(instance) is Proxy:
            self._registry.adopt(instance)
        # An SQLModel instance is a Pydantic model and mapped; it is a value.
        elif isinstance(instance, BaseModel) and not _is_mapped(instance):
            self._take_in(instance)
            if isinstance(instance, Spec):
                self._add_value(instance, entity_of(type(instance)))
        elif not _is_mapped(instance):
            raise SessionError(
                f"a bulk takes mapped instances, proxies and Pydantic models, "
                f"not {instance!r}"
            )
        elif is_reference:
            found = reference_in(instance)
            is_proxy = type(found) is Proxy
            self._registry.adopt(found if is_proxy else reference_to(instance))
        else:
            self._mapped[kind] = bool(relationship_names(inspect(kind)))
            self._add_instance(instance, kind)

    def _add_instance(self, instance: Any, kind: type[Any]) -> None:
        state = instance_state(instance)
        if type(state) is not InstanceState and (
            type(found := reference_in(instance)) is Proxy
        ):
            self._registry.adopt(found)
        elif id(instance) not in self._given:
            value = self._given[id(instance)] = Value.of(instance, kind)
            self._values.append(value)
            if (self._mapped[kind] and unconnected_in(instance)) or (
                "info" in state.__dict__ and is_made(instance)
            ):
                self._take_in(instance)

    @overload
    def validate(self, type_: TypeForm[T], data: Any) -> T: ...

    @overload
    def validate(self, type_: TypeAdapter[T], data: Any) -> T: ...

    @overload
    def validate(self, type_: Any, data: Any) -> Any: ...

    def validate(self, type_: Any, data: Any) -> Any:
        """
        Validate *data* as Pydantic would, and add what comes out; no I/O.

        References register, and so do values of :class:`Resource` and ``Spec``, and
        lists of them. A failure to resolve one says where it is in *data*.

        Args:
            type_: Any type that Pydantic takes, or a ``TypeAdapter``.

        Raises:
            ValidationError: Pydantic's; nothing was added.
        """
        return self._validate(_adapter_of(type_).validate_python, data)

    @overload
    def validate_json(self, type_: TypeForm[T], text: str | bytes) -> T: ...

    @overload
    def validate_json(self, type_: TypeAdapter[T], text: str | bytes) -> T: ...

    @overload
    def validate_json(self, type_: Any, text: str | bytes) -> Any: ...

    def validate_json(self, type_: Any, text: str | bytes) -> Any:
        """
        As :meth:`validate`, of JSON.

        Raises:
            ValidationError: Pydantic's; nothing was added.
        """
        return self._validate(_adapter_of(type_).validate_json, text)

    def _validate(self, validate: Callable[[Any], Any], given: Any) -> Any:
        draft = Draft(self)
        token = SESSION_BULK_CONTEXT.set(self)  # type: ignore[arg-type]  # as _enter
        try:
            payload = draft.run(validate, given)
        finally:
            SESSION_BULK_CONTEXT.reset(token)
        draft.keep(payload, held_by(payload))
        self._take_in(payload)
        for each in _each(payload):
            if isinstance(each, Spec):
                self._add_value(each, entity_of(type(each)))
            elif type(each) is not Proxy and hasattr(each, STATE):
                self._add_value(each, type(each))
        return payload

    def _add_values(self, values: Iterable[Any], payload: Any) -> None:
        for value in values:
            self._add_value(value, type(value))
        self._payloads[id(payload)] = payload

    def _take_in(self, payload: Any) -> None:
        """Register the references of a payload, and its values made outside."""
        self._payloads[id(payload)] = payload
        for _, found in contents(payload):
            if type(found) is Proxy:
                self._registry.adopt(found)
            elif hasattr(found, STATE) and is_made(found):
                self._add_value(found, type(found))

    def _add_value(self, given: Any, entity: type[Any]) -> None:
        if id(given) not in self._given:
            value = self._given[id(given)] = Value.of(given, entity)
            self._values.append(value)

    def discard(self) -> None:
        """
        Drop the values that were never written; no I/O.

        What they would have changed in rows is taken back. References stay.
        """
        left, self._values = self._values[self._tried :], self._values[: self._tried]
        for value in left:
            del self._given[id(value.given)]
            if value.is_bound:
                take_back(self._sync_session, value)

    def _left(self) -> list[Value]:
        """Return the values that would be forgotten: never written, and to be."""
        return [v for v in self._values[self._tried :] if is_to_write(v)]

    def _is_flushed_at_the_end(self) -> bool:
        """
        Whether the session's block writes by itself what is left when the bulk ends.

        A warning otherwise, if something is left.
        """
        if len(self._previous) > 1 or not (left := self._left()):
            return False
        if getattr(self._sync_session, "_commits_by_itself", False):
            return True
        count = Counter(value.entity.__name__ for value in left)
        kinds = ", ".join(f"{number} {name}" for name, number in count.items())
        warnings.warn(
            f"values of a bulk were never written: {kinds}; call flush() or commit(), or "
            f"discard() if that is on purpose, or open the block of the session with "
            f"auto_commit=True",
            UnwrittenValuesWarning,
            stacklevel=3,
        )
        return False

    def entries(self) -> Iterator[BulkEntry]:
        """Return all that the bulk holds: references, then values, in their order."""
        for proxy in self._registry:
            entity = shape_of(proxy).entity
            given = self._placeholders.of(proxy) if self._placeholders else proxy
            yield BulkEntry(given, True, entity, is_resolved(proxy))
        for value in self._values:
            yield BulkEntry(
                value.given if value.instance is None else value.instance,
                False,
                value.entity,
                value.is_row,
            )

    def get(
        self,
        entity: type[T],
        *,
        resolved: bool | None = None,
        scope: Scope = "all",
    ) -> list[T]:
        """
        List what the bulk holds of a mapped class and its subclasses.

        In the order they were added. A resolved reference is given as the
        session's instance, an unresolved one as its proxy.
        """
        check(scope, "scope", SCOPES)
        found = []
        for entry in self.entries():
            if not issubclass(entry.entity, entity):
                continue
            if scope != "all" and entry.is_reference != (scope == "references"):
                continue
            if resolved is not None and entry.is_resolved != resolved:
                continue
            found.append(
                target_of(entry.instance)
                if type(entry.instance) is Proxy and entry.is_resolved
                else entry.instance
            )
        return found

    @property
    def resolved(self) -> dict[type[Any], list[BulkEntry]]:
        """The entries that are known to be rows, by entity."""
        return self._by_entity(resolved=True)

    @property
    def unresolved(self) -> dict[type[Any], list[BulkEntry]]:
        """The entries that are not known to be rows, by entity."""
        return self._by_entity(resolved=False)

    def _by_entity(self, *, resolved: bool) -> dict[type[Any], list[BulkEntry]]:
        found: dict[type[Any], list[BulkEntry]] = {}
        for entry in self.entries():
            if entry.is_resolved is resolved:
                found.setdefault(entry.entity, []).append(entry)
        return found

    def _references(self) -> Iterator[tuple[tuple[int | str, ...], Proxy]]:
        """Yield the references in payloads and values, and their locations."""
        payloads = list(self._payloads.values())
        for number, payload in enumerate(payloads):
            for loc, proxy in contents(payload):
                if type(proxy) is Proxy:
                    yield ((number, *loc) if len(payloads) > 1 else loc), proxy


@lru_cache(256)
def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def _adapter_of(type_: Any) -> TypeAdapter[Any]:
    """Return the ``TypeAdapter`` of a type."""
    if isinstance(type_, TypeAdapter):
        return type_
    try:
        return _adapter(type_)
    except TypeError:
        # The metadata of Annotated need not be hashable, so nothing is cached.
        return TypeAdapter(type_)


def _each(payload: Any) -> Iterator[Any]:
    """Yield a payload, or the items of the collection that it is."""
    items = items_in(payload)
    if items is None:
        # A placeholder stands for a reference, so it is no value.
        yield reference_in(payload) if is_placeholder(payload) else payload
    else:
        for item in items:
            yield from _each(item)


def _is_mapped(instance: Any) -> bool:
    try:
        identifiers(type(instance))
        inspect(instance)
    except (NoInspectionAvailable, ValueError):
        return False
    return True


_BULKS = "tenure.bulks"


def watch_rollbacks(session: Session, bulk: Any) -> None:
    """Record in *bulk* what *session* rolls back from now on."""
    bulks = session.info.get(_BULKS)
    if bulks is None:
        bulks = session.info[_BULKS] = WeakSet()
        event.listen(session, "after_soft_rollback", _tell)
    bulks.add(bulk)


def _tell(session: Session, transaction: SessionTransaction) -> None:
    for bulk in session.info[_BULKS]:
        bulk._rolled_back.append(transaction)
