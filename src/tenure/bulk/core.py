"""What a bulk does with what it holds, written once for a sync session."""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from .._private import pending
from ..context import SESSION_BULK_CONTEXT
from ..errors import ConflictError, ResolutionError
from ..models import Spec, connect_all, instances_in, is_waiting
from ..references import (
    Placeholders,
    Proxy,
    Registry,
    is_resolved,
    key_of,
    replace_in,
    row_lost,
    shape_of,
)
from . import blame, save
from .attach import let_go
from .collected import SCOPES, Holding, Scope, watch_rollbacks
from .dialects import ensure_transaction
from .lookup import (
    BATCH,
    Found,
    Strategy,
    Unfound,
    attributes_of,
    failure,
    resolve,
)
from .match import Local, match_values
from .report import BulkReport, Failure, Resolution, describe
from .save import Circular, FlushOptions, check, check_size
from .upsert import Keyed
from .value import Value
from .write import begin_savepoint, flush_others

R = TypeVar("R")

STRATEGIES = ("bind", "hydrate")


class Bulk(Holding):
    """What a bulk holds, and what it does; see :class:`SessionBulk`."""

    def __init__(self, session: Any, *, proxy_reference: bool = True) -> None:
        self.session = session
        self.proxy_reference = proxy_reference
        placeholders = None if proxy_reference else Placeholders()
        self._placeholders = placeholders
        self._registry = Registry(None if placeholders is None else placeholders.of)
        self._values = []
        self._payloads = {}
        self._given = {}
        #: Values that were part of a flush, whatever came of it; others came later.
        self._tried = 0
        self._mapped = {}
        self._hydrated: set[int] = set()
        #: References that stand for values.
        self._named: list[Proxy] = []
        # The bulk that was current before each open block; and before the last one
        # that has ended.
        self._previous: list[Any] = []
        self._before: Any = None
        # A transaction that was open before is not rolled back by this bulk.
        self._began_inside = bool(session.in_transaction())
        self._savepoint: SessionTransaction | None = None
        #: What was rolled back, by whomever, since values were last looked at.
        self._rolled_back: list[SessionTransaction] = []

    def _enter(self) -> None:
        self._began_inside = bool(self.session.in_transaction())
        self._previous.append(SESSION_BULK_CONTEXT.get())
        SESSION_BULK_CONTEXT.set(self)

    def _leave(self) -> None:
        before = self._before = self._previous.pop()
        # Generators may end their blocks in any order.
        while isinstance(before, Bulk) and not before.is_entered:
            before = before._before
        if SESSION_BULK_CONTEXT.get() is self:
            SESSION_BULK_CONTEXT.set(before)

    @property
    def is_entered(self) -> bool:
        """Whether a block of this bulk is open."""
        return bool(self._previous)

    @property
    def _sync_session(self) -> Any:
        return getattr(self.session, "sync_session", self.session)

    def _do(self, work: Callable[..., R], *args: Any) -> R:
        """Do *work* on the session, which nobody else uses meanwhile."""
        session = self._sync_session
        in_turn = getattr(session, "_in_turn", None)
        if in_turn is None:
            # SQLAlchemy's own session has no lock to take.
            return work(session, *args)
        result: R = in_turn(work, *args)
        return result

    def _resolve(
        self,
        session: Session,
        raise_errors: bool,
        scope: Scope,
        strategy: Strategy,
        batch_size: int | None,
    ) -> Resolution:
        if scope not in SCOPES:
            check(scope, "scope", SCOPES)
        if strategy not in STRATEGIES:
            check(strategy, "strategy", STRATEGIES)
        if batch_size is not None:
            check_size(batch_size)
        self._forget_undone(session)
        references = [] if scope == "values" else self._to_resolve(strategy)
        size = batch_size or BATCH
        if not self._values:
            found = self._look_up(session, references, strategy, frozenset(), size)
            failures = self._failures(found.unfound)
            if failures and raise_errors:
                raise ResolutionError(failures)
            self._record(session, found)
            self._note_resolved(session, references, strategy)
            unresolved = len(found.unfound)
            return Resolution(found.answered, unresolved, failures=tuple(failures))
        local = Local(list(self._values), self._registry)
        found, missing = self._ask(session, references, local, scope, strategy, size)
        failures = self._failures([*found.unfound, *missing])
        failures += local.choose(found.rows)
        if failures and raise_errors:
            raise ResolutionError(failures)
        rows = {
            value: attributes_of(inspect(value.entity), found.rows[id(key)])
            for value, key in local.keys.items()
            if scope != "references" and id(key) in found.rows
        }
        if any(not value.is_row for value in rows):
            # Values set in instances of the session must be undone with this bulk.
            self._mark_beginning(session)
        self._record(session, found)
        followers = self._registry.followers()
        matched = self._match(
            session, local, scope, strategy, rows, references, followers
        )
        self._note_resolved(session, references, strategy)
        return Resolution(
            resolved=found.answered
            + len({id(p) for p in matched}.difference(map(id, followers))),
            unresolved=len(found.unfound),
            values=sum(value.is_row for value in rows),
            failures=tuple(failures),
        )

    def _to_resolve(self, strategy: Strategy) -> list[Proxy]:
        """Return the references that are not resolved, or not loaded yet."""
        return [
            proxy
            for proxy in self._registry
            if not is_resolved(proxy)
            or (strategy == "hydrate" and id(proxy) not in self._hydrated)
        ]

    def _record(self, session: Session, found: Found) -> None:
        """Resolve references to the rows that were found."""
        with paused():
            found.record()
        if self._placeholders is not None:
            self._placeholders.bind(session)
        # Values may hold proxies that were made outside of this bulk.
        self._registry.update_adopted()

    def _match(
        self,
        session: Session,
        local: Local,
        scope: Scope,
        strategy: Strategy,
        rows: Mapping[Value, dict[str, Any]],
        references: Collection[Proxy],
        followers: Collection[Proxy],
    ) -> list[Proxy]:
        """Bind values to their rows; return the references that are values now."""
        values = list(local.values)
        if scope == "references":
            # With scope="references" only the values that a reference names are made.
            named = [local.named(proxy) for proxy in references]
            values = [value for value in dict.fromkeys(named) if value is not None]
        fills = strategy == "hydrate"
        every = [*references, *followers]
        matched = match_values(session, values, local, every, rows, fills=fills)
        self._named.extend(matched)
        self._registry.update_adopted()
        return matched

    def _note_resolved(
        self, session: Session, references: Iterable[Proxy], strategy: Strategy
    ) -> None:
        """Replace placeholders, and connect what waited for references."""
        if self._placeholders is not None:
            self._placeholders.share_rows()
            for payload in self._payloads.values():
                replace_in(payload)
        if self._values:
            self._connect(session, lambda instance: not is_waiting(instance))
        if strategy == "hydrate":
            self._hydrated.update(id(p) for p in references if is_resolved(p))

    def _look_up(
        self,
        session: Session,
        wanted: Iterable[Proxy],
        strategy: Strategy,
        of_values: Collection[int],
        size: int,
    ) -> Found:
        with paused():
            return resolve(
                session,
                wanted,
                strategy=strategy,
                of_values=of_values,
                size=size,
                tells_refused=True,
            )

    def _connect(self, session: Session, wanted: Callable[[Any], bool]) -> None:
        """Connect the references that values hold, as SQLAlchemy relationships."""
        with session.no_autoflush:
            connect_all(
                value.given
                for value in self._values
                if self._mapped.get(value.entity, True)
                and not isinstance(value.given, Spec)
                and wanted(value.given)
            )

    def _ask(
        self,
        session: Session,
        references: list[Proxy],
        local: Local,
        scope: Scope,
        strategy: Strategy,
        size: int,
    ) -> tuple[Found, list[Unfound]]:
        hydrates = strategy == "hydrate"
        asked = [
            key
            for value in local.keys
            if not value.is_row or (hydrates and not value.is_filled)
            for key in local.keys_of(value)
        ]
        if scope == "references":
            asked = []
        of_values = {id(key) for key in asked}
        wanted: Collection[Proxy] = references
        if local.values:
            of_values |= {id(p) for p in references if local.named(p) is not None}
            wanted = {id(proxy): proxy for proxy in [*references, *asked]}.values()
        found = self._look_up(session, wanted, strategy, of_values, size)
        of_values = {id(key) for key in asked}
        return found, [
            Unfound(key, "missing")
            for value, key in local.keys.items()
            if scope == "values"
            and id(key) in of_values
            and not any(id(each) in found.rows for each in local.keys_of(value))
        ]

    def _failures(self, unfound: Iterable[Unfound]) -> list[Failure]:
        places: dict[int, list[tuple[int | str, ...]]] = {}
        found = list(unfound)
        for loc, proxy in self._references() if found else ():
            kept = self._registry.find(proxy)
            places.setdefault(id(kept), []).append(loc)
        return [failure(each, places.get(id(each[0]), ())) for each in found]

    def _flush(self, session: Session, options: FlushOptions) -> BulkReport:
        self._tried = len(self._values)
        self._begin_writing("flush")
        try:
            if not all(map(is_resolved, self._registry)):
                self._resolve_held(session)
            self._forget_undone(session)
            self._connect(session, lambda instance: True)
            self._mark_beginning(session)
            if any(pending(session)[1:]):
                self._flush_others(session)
            with paused():
                return save.flush(session, self._values, options)
        except Circular as error:
            refused = ResolutionError(
                blame.circular(error.instances, self._references())
            )
            blame.tell(refused, len(self._values), refused.failures)
            raise refused from error.__cause__
        except (ResolutionError, ConflictError) as error:
            blame.tell(error, len(self._values), error.failures)
            raise
        except SQLAlchemyError as error:
            blame.tell(error, len(self._values), ())
            with suppress(Exception):  # which would hide what the database said
                keyed = blame.suspects(error, options.on_conflict, self._values)
                blame.tell(error, len(self._values), blame.told_by_mappings(keyed))
            raise

    def _resolve_held(self, session: Session) -> None:
        """
        Resolve references that are not.

        Raises:
            ResolutionError: With those that a value holds.
        """
        failures = self._resolve(session, False, "references", "bind", None).failures
        held = {
            describe(shape_of(proxy).entity, key_of(proxy))
            for value in (self._values if failures else ())
            for part in value.held.values()
            for proxy in instances_in(part)
            if type(proxy) is Proxy and not is_resolved(proxy)
        }
        if found := [
            each for each in failures if describe(each.entity, each.key) in held
        ]:
            raise ResolutionError(found)

    def _mark_beginning(self, session: Session) -> None:
        """Begin a savepoint after the work that was there before this bulk."""
        if self._began_inside and self._savepoint is None:
            self._flush_others(session)
            ensure_transaction(session.connection())
            self._savepoint = begin_savepoint(session)

    def _flush_others(self, session: Session) -> None:
        own = [v.instance for v in self._values if v.instance is not None]
        flush_others(session, own)

    def _forget_undone(self, session: Session) -> None:
        """Forget what became of values in transactions that were rolled back."""
        watch_rollbacks(session, self)
        while self._rolled_back:
            self._forget(session, self._rolled_back.pop())

    def _forget(self, session: Session, transaction: SessionTransaction) -> None:
        undone = [v for v in self._values if v.is_placed_in(transaction)]
        instances = {id(value.instance) for value in undone}
        let_go(session, undone)
        for value in undone:
            value.forget()
        for proxy in self._named:
            if id(proxy._tenure_target) in instances:
                row_lost(proxy)
        self._named = [proxy for proxy in self._named if is_resolved(proxy)]

    def _begin_writing(self, name: str) -> None:
        """Tell a session of tenure that this bulk writes; it may refuse."""
        begin_writing = getattr(self._sync_session, "_begin_writing", None)
        if begin_writing is not None:
            begin_writing(f"bulk.{name}")

    def _commit(self, session: Session, options: FlushOptions) -> BulkReport:
        try:
            report = self._flush(session, options)
            session.commit()
        except BaseException as error:
            keyed: list[Keyed] = []
            with suppress(Exception):  # as in _flush
                if not getattr(error, "report", BulkReport()).failures:
                    keyed = blame.suspects(error, options.on_conflict, self._values)
            self._rollback(session)
            with suppress(Exception):
                if keyed:
                    blame.tell(
                        error, len(self._values), blame.told_by_rows(session, keyed)
                    )
            raise
        self._savepoint = None
        return report

    def _rollback(self, session: Session) -> None:
        self._forget_undone(session)
        savepoint, self._savepoint = self._savepoint, None
        whole = session.get_transaction()
        # After a failed flush the savepoint is inactive, and still the current one.
        if savepoint is not None and savepoint is session.get_nested_transaction():
            savepoint.rollback()
        elif savepoint is not None or not self._began_inside:
            session.rollback()
        # Otherwise this bulk has sent nothing, and there is nothing to undo.
        self._forget_undone(session)
        if whole is not None:
            self._forget(session, whole)


_lock = Lock()
_pauses: list[object] = []


@contextmanager
def paused() -> Iterator[None]:
    """
    Pause Python's cyclic garbage collector inside the block, in any thread.

    Building tens of thousands of small containers makes it run again and again over
    everything the process holds, to find nothing: a third of the time of a load, two
    thirds of a large ``resolve``. Other code's garbage waits for one batch at most.
    Source: Mercurial, ``util.nogc``.
    """
    with _lock:
        # If the program has switched it off itself, it stays off.
        mine = bool(_pauses) or gc.isenabled()
        if mine:
            _pauses.append(None)
            gc.disable()
    try:
        yield
    finally:
        if mine:
            with _lock:
                _pauses.pop()
                if not _pauses:
                    gc.enable()
