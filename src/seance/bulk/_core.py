"""What a bulk holds, and what it does, written once for a sync session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pydantic import BaseModel
from sqlalchemy import inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Session, SessionTransaction

from ..context import SESSION_BULK_CONTEXT, restore
from ..errors import ResolutionError, SessionError
from ..keys import identifiers
from ..references import (
    Proxy,
    Registry,
    is_resolved,
    key_of,
    shape_of,
    target_of,
    unsettle,
)
from ..resources import Spec, entity_of
from . import _run, _values
from ._collector import paused
from ._dialects import ensure_transaction
from ._local import Local, settle
from ._plan import BATCH
from ._report import BulkReport, Failure, Resolution
from ._run import Strategy
from ._values import OnConflict, OnDuplicate

T = TypeVar("T")
Scope = Literal["all", "references", "values"]


@dataclass(slots=True, eq=False)
class BulkEntry:
    """One thing a bulk holds: a reference (a proxy) or a value."""

    instance: Any
    is_reference: bool
    entity: type[Any]
    is_resolved: bool


class Bulk:
    """What a bulk holds, and what it does; see :class:`SessionBulk`."""

    def __init__(self, session: Any, *, proxy_reference: bool = True) -> None:
        if not proxy_reference:
            raise SessionError(
                "proxy_reference=False is not supported; references are proxies"
            )
        self.session = session
        self.proxy_reference = proxy_reference
        self._registry = Registry()
        self._values: list[_values.Value] = []
        self._models: list[BaseModel] = []
        self._hydrated: set[int] = set()
        #: References that stand for values.
        self._named: list[Proxy] = []
        self._given: set[int] = set()
        # What was current before each block that is open, and before the last left.
        self._previous: list[Any] = []
        self._before: Any = None
        # Work that was there before this bulk is not for it to undo.
        self._began_inside = bool(session.in_transaction())
        self._savepoint: SessionTransaction | None = None

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {len(self._registry)} references, "
            f"{len(self._values)} values>"
        )

    def add(self, instance: Any, *, is_reference: bool = False) -> None:
        """
        Take in a value or references; no I/O.

        Args:
            instance: A mapped instance or a ``Spec`` (values), a proxy, or any
                Pydantic model: the references it holds.
            is_reference: Take a mapped instance as a reference to the row it is.

        Raises:
            SessionError: Anything else.
        """
        if type(instance) is Proxy:
            self._registry.adopt(instance)
        elif isinstance(instance, BaseModel):
            self._models.append(instance)
            for _, proxy in _proxies_in(instance):
                self._registry.adopt(proxy)
            if isinstance(instance, Spec):
                self._add_value(instance, entity_of(type(instance)))
        elif not _is_mapped(instance):
            raise SessionError(
                f"a bulk takes mapped instances, proxies and Pydantic models, "
                f"not {instance!r}"
            )
        elif is_reference:
            self._registry.adopt(_values.reference_to(instance))
        else:
            self._add_value(instance, type(instance))

    def _add_value(self, given: Any, entity: type[Any]) -> None:
        if id(given) not in self._given:
            self._given.add(id(given))
            self._values.append(_values.Value(given, entity))

    def entries(self) -> Iterator[BulkEntry]:
        """Give everything the bulk holds: references, then values, as they came."""
        for proxy in self._registry:
            entity = shape_of(proxy).entity
            yield BulkEntry(proxy, True, entity, is_resolved(proxy))
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
        _check(scope, "scope", ("all", "references", "values"))
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
                if entry.is_reference and entry.is_resolved
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

    def _enter(self) -> None:
        self._began_inside = bool(self.session.in_transaction())
        self._previous.append(SESSION_BULK_CONTEXT.get())
        SESSION_BULK_CONTEXT.set(self)  # type: ignore[arg-type]  # always one of the two below

    def _leave(self) -> None:
        before = self._before = self._previous.pop()
        # Blocks of generators are left in any order.
        while isinstance(before, Bulk) and not before.is_entered:
            before = before._before
        restore(SESSION_BULK_CONTEXT, self, before)

    @property
    def is_entered(self) -> bool:
        """Whether a block of this bulk is open."""
        return bool(self._previous)

    def _resolve(
        self,
        session: Session,
        raise_errors: bool,
        scope: Scope,
        strategy: Strategy,
        batch_size: int | None,
    ) -> Resolution:
        _check(scope, "scope", ("all", "references", "values"))
        _check(strategy, "strategy", ("bind", "hydrate"))
        # One use of the session: another task comes before or after all of it.
        in_turn = getattr(session, "_in_turn", _at_once)
        resolution: Resolution = in_turn(
            lambda: self._look_up(
                session, raise_errors, scope, strategy, batch_size or BATCH
            )
        )
        return resolution

    def _look_up(
        self,
        session: Session,
        raise_errors: bool,
        scope: Scope,
        strategy: Strategy,
        size: int,
    ) -> Resolution:
        references: list[Proxy] = []
        if scope != "values":
            references = [
                proxy
                for proxy in self._registry
                if not is_resolved(proxy)
                or (strategy == "hydrate" and id(proxy) not in self._hydrated)
            ]
        local = Local(list(self._values), self._registry)
        outcome, missing = self._ask(session, references, local, scope, strategy, size)
        failures = self._failures([*outcome.unfound, *missing])
        if failures and raise_errors:
            raise ResolutionError(failures)
        outcome.record()
        rows = {
            value: _run.attributes_of(inspect(value.entity), outcome.rows[id(key)])
            for value, key in local.keys.items()
            if scope != "references" and id(key) in outcome.rows
        }
        # Where values are not asked for, those are made that a reference names.
        named = [local.named(proxy) for proxy in references if local.values]
        values = (
            [value for value in dict.fromkeys(named) if value is not None]
            if scope == "references"
            else list(local.values)
        )
        settled = (
            settle(
                session, values, local, references, rows, fills=strategy == "hydrate"
            )
            if values
            else []
        )
        self._named.extend(settled)
        self._registry.settle_adopted()
        if strategy == "hydrate":
            self._hydrated.update(id(p) for p in references if is_resolved(p))
        return Resolution(
            resolved=outcome.answered + len(settled),
            unresolved=len(outcome.unfound),
            values=sum(value.is_row for value in rows),
            failures=tuple(failures),
        )

    def _ask(
        self,
        session: Session,
        references: list[Proxy],
        local: Local,
        scope: Scope,
        strategy: Strategy,
        size: int,
    ) -> tuple[_run.Outcome, list[_run.Unfound]]:
        hydrates = strategy == "hydrate"
        asked = [
            key
            for value, key in local.keys.items()
            if not value.is_row or (hydrates and not value.is_filled)
        ]
        if scope == "references":
            asked = []
        of_values = {id(key) for key in asked}
        wanted: Collection[Proxy] = references
        if local.values:
            of_values |= {id(p) for p in references if local.named(p) is not None}
            wanted = {id(proxy): proxy for proxy in [*references, *asked]}.values()
        with paused():
            outcome = _run.resolve(
                session,
                wanted,
                strategy=strategy,
                of_values=of_values,
                size=size,
                tells_refused=True,
            )
        return outcome, [
            _run.Unfound(key, "missing")
            for key in asked
            if scope == "values" and id(key) not in outcome.rows
        ]

    def _failures(self, unfound: Iterable[_run.Unfound]) -> list[Failure]:
        places: dict[int, list[tuple[int | str, ...]]] = {}
        found = list(unfound)
        for number, model in enumerate(self._models if found else ()):
            for loc, proxy in _proxies_in(model):
                kept = self._registry.find(proxy)
                where = (number, *loc) if len(self._models) > 1 else loc
                places.setdefault(id(kept), []).append(where)
        return [_run.failure(each, places.get(id(each[0]), ())) for each in found]

    def _flush(
        self,
        session: Session,
        on_conflict: OnConflict,
        update_fields: Iterable[str] | None,
        on_duplicate: OnDuplicate,
    ) -> BulkReport:
        _check(on_conflict, "on_conflict", ("raise", "update", "skip"))
        _check(on_duplicate, "on_duplicate", ("raise", "first", "last"))
        if self._began_inside and self._savepoint is None:
            ensure_transaction(session.connection())
            with _values.set_aside(self._values):
                self._savepoint = session.begin_nested()
        return _values.flush(
            session,
            self._values,
            on_conflict=on_conflict,
            update_fields=update_fields,
            on_duplicate=on_duplicate,
        )

    def _commit(
        self,
        session: Session,
        on_conflict: OnConflict,
        update_fields: Iterable[str] | None,
        on_duplicate: OnDuplicate,
    ) -> BulkReport:
        # Before anything that would have to be undone.
        _check(on_conflict, "on_conflict", ("raise", "update", "skip"))
        _check(on_duplicate, "on_duplicate", ("raise", "first", "last"))
        try:
            report = self._flush(session, on_conflict, update_fields, on_duplicate)
            session.commit()
        except BaseException:
            self._rollback(session)
            raise
        self._savepoint = None
        return report

    def _rollback(self, session: Session) -> None:
        for value in self._values:
            value.forget()
        for proxy in self._named:
            unsettle(proxy)
        self._named.clear()
        savepoint, self._savepoint = self._savepoint, None
        # One that a failed flush has ended is not active, but the current one.
        if savepoint is not None and savepoint is session.get_nested_transaction():
            savepoint.rollback()
        elif savepoint is not None or not self._began_inside:
            session.rollback()
        # Otherwise the bulk has sent nothing: what there is is its session's.


def _at_once(step: Callable[[], T]) -> T:
    return step()


def _check(given: str, name: str, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        options = ", ".join(map(repr, allowed))
        raise SessionError(f"{name} is one of {options}, not {given!r}")


def _is_mapped(instance: Any) -> bool:
    try:
        identifiers(type(instance))
        inspect(instance)
    except (NoInspectionAvailable, ValueError):
        return False
    return True


def _proxies_in(
    value: Any, loc: tuple[int | str, ...] = ()
) -> Iterator[tuple[tuple[int | str, ...], Proxy]]:
    """Give the proxies a payload holds, and where."""
    if type(value) is Proxy:
        yield loc, value
        for name, part in key_of(value).items():
            if type(part) is Proxy:
                yield from _proxies_in(part, (*loc, name))
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _proxies_in(value.__dict__.get(name), (*loc, name))
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _proxies_in(item, (*loc, name))
    elif isinstance(value, (list, tuple, set, frozenset)):
        for position, item in enumerate(value):
            yield from _proxies_in(item, (*loc, position))
