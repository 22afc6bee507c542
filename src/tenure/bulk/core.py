"""What a bulk does with what it holds, written once for a sync session."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from sqlalchemy import event, inspect
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session, SessionTransaction

from ..context import SESSION_BULK_CONTEXT, restore
from ..errors import ResolutionError, SessionError
from ..models import Spec, connect_all, is_waiting
from ..references import Proxy, is_resolved, replace_in, row_lost, target_of
from . import blame, others, save
from .attach import let_go
from .collected import Holding, Scope, check
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
from .match import Local, settle
from .naming import name_of
from .new_rows import Circular
from .pause_gc import paused
from .report import BulkReport, Failure, Resolution, Status, describe
from .save import OnDuplicate
from .write import OnConflict

R = TypeVar("R")


class Bulk(Holding):
    """What a bulk holds, and what it does; see :class:`SessionBulk`."""

    def __init__(self, session: Any, *, proxy_reference: bool = True) -> None:
        super().__init__(proxy_reference=proxy_reference)
        self.session = session
        self._hydrated: set[int] = set()
        #: References that stand for values.
        self._named: list[Proxy] = []
        # What was current before each block that is open, and before the last left.
        self._previous: list[Any] = []
        self._before: Any = None
        # Work that was there before this bulk is not for it to undo.
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
        # Blocks of generators are left in any order.
        while isinstance(before, Bulk) and not before.is_entered:
            before = before._before
        restore(SESSION_BULK_CONTEXT, self, before)

    @property
    def is_entered(self) -> bool:
        """Whether a block of this bulk is open."""
        return bool(self._previous)

    @staticmethod
    def _do(session: Any, work: Callable[..., R], *args: Any, **options: Any) -> R:
        """Do *work* on a session that nobody else uses meanwhile."""
        in_turn = getattr(session, "_in_turn", None)
        if in_turn is None:
            # One of SQLAlchemy's own, which knows no turns.
            return work(session, *args, **options)
        result: R = in_turn(work, *args, **options)
        return result

    def _resolve(
        self,
        session: Session,
        raise_errors: bool,
        scope: Scope,
        strategy: Strategy,
        batch_size: int | None,
    ) -> Resolution:
        check(scope, "scope", ("all", "references", "values"))
        check(strategy, "strategy", ("bind", "hydrate"))
        _check_size(batch_size)
        self._forget_undone(session)
        references: list[Proxy] = []
        if scope != "values":
            references = [
                proxy
                for proxy in self._registry
                if not is_resolved(proxy)
                or (strategy == "hydrate" and id(proxy) not in self._hydrated)
            ]
        local = Local(list(self._values), self._registry)
        outcome, missing = self._ask(
            session, references, local, scope, strategy, batch_size or BATCH
        )
        failures = self._failures([*outcome.unfound, *missing])
        failures += local.choose(outcome.rows)
        if failures and raise_errors:
            raise ResolutionError(failures)
        rows = {
            value: attributes_of(inspect(value.entity), outcome.rows[id(key)])
            for value, key in local.keys.items()
            if scope != "references" and id(key) in outcome.rows
        }
        if any(not value.is_row for value in rows):
            # What is set in an instance of the session's is for this bulk to undo.
            self._mark_beginning(session)
        with paused():
            outcome.record()
        if self._placeholders:
            self._placeholders.bind(session)
        # Values may hold those that were made outside.
        self._registry.update_adopted()
        followers = self._registry.followers()
        # Where values are not asked for, those are made that a reference names.
        named = [local.named(proxy) for proxy in references if local.values]
        values = (
            [value for value in dict.fromkeys(named) if value is not None]
            if scope == "references"
            else list(local.values)
        )
        settled = (
            settle(
                session,
                values,
                local,
                [*references, *followers],
                rows,
                fills=strategy == "hydrate",
            )
            if values
            else []
        )
        self._named.extend(settled)
        self._registry.update_adopted()
        if self._placeholders:
            self._placeholders.share_rows()
            for payload in self._payloads.values():
                replace_in(payload)
        self._connect(session, lambda instance: not is_waiting(instance))
        if strategy == "hydrate":
            self._hydrated.update(id(p) for p in references if is_resolved(p))
        return Resolution(
            resolved=outcome.answered
            + len({id(p) for p in settled}.difference(map(id, followers))),
            unresolved=len(outcome.unfound),
            values=sum(value.is_row for value in rows),
            failures=tuple(failures),
        )

    def _connect(self, session: Session, wanted: Callable[[Any], bool]) -> None:
        """Tell SQLAlchemy of the references that values hold."""
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
        with paused():
            outcome = resolve(
                session,
                wanted,
                strategy=strategy,
                of_values=of_values,
                size=size,
                tells_refused=True,
            )
        of_values = {id(key) for key in asked}
        return outcome, [
            Unfound(key, "missing")
            for value, key in local.keys.items()
            if scope == "values"
            and id(key) in of_values
            and not any(id(each) in outcome.rows for each in local.keys_of(value))
        ]

    def _circular(self, instances: list[Any]) -> list[Failure]:
        """Describe new values that need each other's keys."""
        circle = [name_of(each) for each in instances]
        path = " → ".join(describe(*each) for each in [*circle, circle[0]])
        failures = []
        for instance, (entity, key) in zip(instances, circle, strict=True):
            where = tuple(
                loc
                for loc, proxy in self._references()
                if is_resolved(proxy) and target_of(proxy) is instance
            )
            failures.append(Failure(entity, key, "circular", where, message=path))
        return failures

    def _failures(self, unfound: Iterable[Unfound]) -> list[Failure]:
        places: dict[int, list[tuple[int | str, ...]]] = {}
        found = list(unfound)
        for loc, proxy in self._references() if found else ():
            kept = self._registry.find(proxy)
            places.setdefault(id(kept), []).append(loc)
        return [failure(each, places.get(id(each[0]), ())) for each in found]

    def _flush(
        self,
        session: Session,
        on_conflict: OnConflict,
        update_fields: Iterable[str] | None,
        on_duplicate: OnDuplicate,
        batch_size: int | None,
    ) -> BulkReport:
        _check_writing(on_conflict, on_duplicate, batch_size)
        self._begin_writing(session, "flush")
        self._forget_undone(session)
        self._connect(session, lambda instance: True)
        self._mark_beginning(session)
        if session._deleted or session.identity_map._modified:
            self._flush_others(session)
        try:
            with paused():
                return save.flush(
                    session,
                    self._values,
                    on_conflict=on_conflict,
                    update_fields=update_fields,
                    on_duplicate=on_duplicate,
                    size=batch_size or save.BATCH,
                )
        except Circular as error:
            refused = ResolutionError(self._circular(error.instances))
            self._tell(refused, refused.failures)
            raise refused from error.__cause__
        except ResolutionError as error:
            self._tell(error, error.failures)
            raise
        except SQLAlchemyError as error:
            self._tell(error, ())
            with suppress(Exception):  # which would hide what the database said
                keyed = self._suspects(error, on_conflict)
                self._tell(error, blame.told_by_mappings(keyed))
            raise

    def _suspects(
        self, error: BaseException, on_conflict: OnConflict
    ) -> list[save.Keyed]:
        """Give the values that an error may be about."""
        is_about_values = isinstance(error, IntegrityError) and on_conflict == "raise"
        return blame.new_ones(self._values) if is_about_values else []

    def _tell(self, error: Any, failures: Iterable[Failure]) -> None:
        """Have an error say what became of the values."""
        failed: list[Status] = ["failed"] * len(self._values)
        error.report = BulkReport(failed, tuple(failures))
        if isinstance(error, ResolutionError):
            return  # which says so itself
        for shown in error.report.failures[:_SHOWN]:
            error.add_note(f"bulk: {shown}")

    def _mark_beginning(self, session: Session) -> None:
        """Begin a savepoint after the work that was there before this bulk."""
        if self._began_inside and self._savepoint is None:
            self._flush_others(session)
            ensure_transaction(session.connection())
            self._savepoint = others.begin_savepoint(session)

    def _flush_others(self, session: Session) -> None:
        own = [v.instance for v in self._values if v.instance is not None]
        others.flush_others(session, own)

    def _forget_undone(self, session: Session) -> None:
        """Forget what became of values in transactions that were rolled back."""
        _watch(session, self)
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

    def _begin_writing(self, session: Any, name: str) -> None:
        """Have a session of ours refuse, or note, that this bulk writes."""
        begin_writing = getattr(session, "_begin_writing", None)
        if begin_writing is not None:
            begin_writing(f"bulk.{name}")

    def _commit(
        self,
        session: Session,
        on_conflict: OnConflict,
        update_fields: Iterable[str] | None,
        on_duplicate: OnDuplicate,
        batch_size: int | None,
    ) -> BulkReport:
        # Before anything that would have to be undone.
        _check_writing(on_conflict, on_duplicate, batch_size)
        try:
            report = self._flush(
                session, on_conflict, update_fields, on_duplicate, batch_size
            )
            session.commit()
        except BaseException as error:
            keyed: list[save.Keyed] = []
            with suppress(Exception):  # as in _flush
                if not getattr(error, "report", BulkReport()).failures:
                    keyed = self._suspects(error, on_conflict)
            self._rollback(session)
            with suppress(Exception):
                if keyed:
                    self._tell(error, blame.told_by_rows(session, keyed))
            raise
        self._savepoint = None
        return report

    def _rollback(self, session: Session) -> None:
        self._forget_undone(session)
        savepoint, self._savepoint = self._savepoint, None
        whole = session.get_transaction()
        # One that a failed flush has ended is not active, but the current one.
        if savepoint is not None and savepoint is session.get_nested_transaction():
            savepoint.rollback()
        elif savepoint is not None or not self._began_inside:
            session.rollback()
        # Otherwise the bulk has sent nothing: what there is is its session's.
        self._forget_undone(session)
        if whole is not None:
            self._forget(session, whole)


#: Failures that are written under an error.
_SHOWN = 5

_BULKS = "tenure.bulks"


def _watch(session: Session, bulk: Bulk) -> None:
    """Have *bulk* told of what *session* rolls back."""
    bulks = session.info.get(_BULKS)
    if bulks is None:
        bulks = session.info[_BULKS] = WeakSet()
        event.listen(session, "after_soft_rollback", _tell)
    bulks.add(bulk)


def _tell(session: Session, transaction: SessionTransaction) -> None:
    for bulk in session.info[_BULKS]:
        bulk._rolled_back.append(transaction)


def _check_size(batch_size: int | None) -> None:
    if batch_size is not None and batch_size < 1:
        raise SessionError(f"batch_size is at least 1, not {batch_size}")


def _check_writing(on_conflict: str, on_duplicate: str, batch_size: int | None) -> None:
    check(on_conflict, "on_conflict", ("raise", "update", "skip"))
    check(on_duplicate, "on_duplicate", ("raise", "first", "last"))
    _check_size(batch_size)
