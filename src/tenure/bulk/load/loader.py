"""
Loading: read, validate, resolve, write, report, batch by batch.

Everything of one batch is dropped before the next, apart from a bounded number of
resolved references, and rows that wait for others, which are put aside.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from inspect import iscoroutinefunction
from typing import IO, Any, Literal

from pydantic import BaseModel
from sqlalchemy import Engine, Table, insert
from sqlalchemy.orm import Mapper, Session

from ..._private import is_committed
from ...errors import LoadError, RejectedRowsError
from ...mapping import mapper_of
from ...models import entity_of, spec_of
from ..core import paused
from ..dialects import can_copy
from ..read import ReadOptions, Record, Records, check_choice
from ..write import OnConflict
from .create import Creator
from .failure import explain, undo
from .layout import Layouts, Rows
from .link import Linker, LoadMissing, is_kin, named_by
from .order import InOrder
from .prepared import Ahead, Prepared, Supply, received
from .report import Clock, LoadReport, Rejects, RejectsFile
from .savepoints import Attempts, RefusingWriter
from .validate import Checker, RowValidator

Commit = Literal["once", "batch", "part"]
Progress = Callable[[LoadReport], object]
Source = str | os.PathLike[str] | IO[Any] | Iterable[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """
    The options of ``SessionBulk.load``, which says what they mean.

    Raises:
        LoadError: A value that none can have.
    """

    on_missing: LoadMissing = "reject"
    on_conflict: OnConflict = "raise"
    update_fields: Iterable[str] | None = None
    batch_size: int = 10_000
    commit: Commit = "once"
    max_errors: int | None = 0
    rejects: Any = None
    progress: Progress | None = None
    dry_run: bool = False
    start: int = 1
    reading: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                check_choice(name, getattr(self, name), allowed)
        for name in ("batch_size", "start"):
            if getattr(self, name) < 1:
                raise LoadError(f"{name} is at least 1, not {getattr(self, name)}")
        if self.max_errors is not None and self.max_errors < 0:
            raise LoadError(f"max_errors is 0 or more, or None, not {self.max_errors}")
        if self.update_fields is not None and self.on_conflict != "update":
            raise LoadError(
                f"update_fields is for on_conflict='update', not {self.on_conflict!r}"
            )
        if isinstance(self.update_fields, str):
            raise LoadError(
                f"update_fields is a list of attributes, not {self.update_fields!r}"
            )

    def check_progress(self, *, is_async: bool) -> None:
        """Refuse a coroutine function that nobody can await."""
        if iscoroutinefunction(self.progress) and not is_async:
            raise LoadError(
                f"progress got the coroutine function {self.progress!r}, which a sync "
                f"session cannot await; load with an async session"
            )


_ALLOWED: dict[str, tuple[Any, ...]] = {
    "on_missing": ("reject", "null", "create"),
    "on_conflict": ("raise", "update", "skip"),
    "commit": ("once", "batch", "part"),
}


def load(
    session: Session,
    source: Any,
    into: type[Any],
    options: LoadOptions,
    between: Callable[[object], None] | None = None,
    *,
    supply: Callable[[Layouts], AbstractContextManager[Any]] | None = None,
    finish: Callable[[LoadReport], None] | None = None,
) -> LoadReport:
    """
    Load rows; see ``SessionBulk.load``.

    Args:
        between: Called after each batch, with what ``progress`` returned.
        supply: Opens the source as a ``Supply``, if others read and validate it.
        finish: Called with the report when all is written, before the commit.
    """
    progress, rejects, start = options.progress, options.rejects, options.start
    options.check_progress(is_async=between is not None)
    if not (isinstance(into, type) and issubclass(into, BaseModel)):
        into = spec_of(into)
    mapper = mapper_of(entity_of(into))
    dialect = _engine_of(session, mapper).dialect.name
    layouts = Layouts(into, mapper, options.on_conflict, dialect, options.update_fields)
    file = RejectsFile(rejects, start=start)
    file.check("source", source)
    file.check("database", _database_file(session, mapper))
    opened: AbstractContextManager[Any] = (
        Records(source, options.reading, accepted=layouts.accepted, start=start)
        if supply is None
        else supply(layouts)
    )
    with opened as records:
        file.check("source", *records.paths)
        loader = _Loader(session, records, layouts, options, file)
        loader.finish = finish
        file.open()
        try:
            return loader.run(options.batch_size, _told(progress, between))
        finally:
            file.close()


def _told(
    progress: Progress | None, between: Callable[[object], None] | None
) -> Callable[[LoadReport], None]:
    def tell(report: LoadReport) -> None:
        answer = None if progress is None else progress(report)
        if between is not None:
            between(answer)

    return tell


def _database_file(session: Session, mapper: Mapper[Any]) -> str | None:
    """Return the file of the database that rows go to, if it is SQLite."""
    engine = _engine_of(session, mapper)
    return engine.url.database if engine.dialect.name == "sqlite" else None


def _engine_of(session: Session, mapper: Mapper[Any]) -> Engine:
    return session.get_bind(mapper, clause=insert(mapper)).engine


class _Loader:
    """One load: what was asked for, and how far it is."""

    def __init__(
        self,
        session: Session,
        records: Any,
        layouts: Layouts,
        options: LoadOptions,
        file: RejectsFile,
    ) -> None:
        self.session = session
        self.records = records
        #: Whether others read and validate the source.
        self.is_elsewhere = isinstance(records, Supply)
        self.options = options
        on_conflict = options.on_conflict
        self.commits_batches = options.commit == "batch" and not options.dry_run
        self.mapper = layouts.mapper
        self.layouts = layouts
        into = layouts.into
        self.report = LoadReport(
            into=self.mapper.class_.__name__,
            bytes_total=records.total,
            resume=options.start,
            dry_run=options.dry_run,
            guesses=records.guesses,
        )
        self.rejects = Rejects(self.report, file, records)
        self.attempts = Attempts(session, self.mapper)
        labels = self.layouts.labels
        self.linker = Linker(
            self.attempts, self.report, self.rejects, labels, options.on_missing
        )
        self.writer = RefusingWriter(
            self.attempts, self.report, self.rejects, labels, on_conflict
        )
        named = named_by(self.mapper, into.model_fields)
        self.creator = (
            Creator(self.attempts, self.report, self.linker, named)
            if options.on_missing == "create"
            else None
        )
        self.validator = RowValidator(
            into, json=records.json, refuses_unknown=not records.ignored
        )
        self.checker = Checker(records, self.layouts, self.rejects, self.validator)
        names_itself = any(is_kin(each, self.mapper) for each in named)
        self.in_order = InOrder(self) if names_itself else None
        self.finish: Callable[[LoadReport], None] | None = None
        self.timed = Clock(self.report).timed
        self.ahead = self._ahead(options.batch_size)
        self.line = options.start - 1
        self.committed = self.report.counts()

    def _ahead(self, size: int) -> Ahead | None:
        """Return what prepares a batch while the database writes the one before."""
        bind = _engine_of(self.session, self.mapper)
        # Code of a program may use the session, what is no file may be long in coming,
        # and an event loop cannot wait. The others ask again after writing.
        is_file = bool(self.records.paths and self.records.total)
        can_wait = is_file and self.validator.calls_nobody
        if self.is_elsewhere:
            can_wait = not bind.dialect.is_async
        asks_again = self.creator is not None or self.in_order is not None
        if not can_wait or asks_again or not can_copy(bind):
            return None
        ahead = Ahead(partial(self._prepare_next, size))
        self.writer.meanwhile = ahead.prepare
        return ahead

    def run(self, size: int, tell: Callable[[LoadReport], None]) -> LoadReport:
        """Load everything, and end the transaction."""
        session = self.session
        # A failed load must not undo what the session did before.
        outer = session.begin_nested() if session.in_transaction() else None
        try:
            for _ in self._batches(size):
                if self.is_over and not self.rejects.file.is_given:
                    break
                # Not while rows wait: they lie before the resume point and are not written.
                if self.commits_batches and not self.is_over and not self.waits:
                    self._commit()
                    outer = None  # committed with the rest
                self._tell(tell)
            if self.is_over:
                assert self.options.max_errors is not None
                raise RejectedRowsError(self.report, self.options.max_errors)
            self._tell(tell)
            if self.report.dry_run:
                undo(session, outer)
            else:
                if outer is not None:
                    outer.commit()
                if self.finish is not None:
                    self.finish(self.report)
                self._commit(is_last=True)
            return self.report
        except BaseException as error:
            undo(session, outer)
            explain(error, self.report, self.committed, self.line)
            raise
        finally:
            if self.in_order is not None:
                self.in_order.aside.close()

    @property
    def waits(self) -> bool:
        """Whether rows were put aside."""
        return bool(self.in_order and self.in_order.aside)

    def _batches(self, size: int) -> Iterator[None]:
        """Load batch by batch: those of the source, then what was put aside."""
        while last := self._load_next(size):
            self.line = last
            yield
        while self.in_order is not None and self.in_order.aside:
            with paused():
                self.in_order.load_aside(size)
            yield

    @property
    def is_over(self) -> bool:
        """Whether more rows were rejected than are tolerated."""
        return (
            self.options.max_errors is not None
            and self.report.rejected > self.options.max_errors
        )

    def _tell(self, tell: Callable[[LoadReport], None]) -> None:
        with self._undisturbed("progress"):
            tell(self.report)

    @contextmanager
    def _undisturbed(self, who: str) -> Iterator[None]:
        """
        Call what may use the session, but not end the transaction it is in.

        Raises:
            LoadError: It did: rows that were counted may be gone.
        """
        before = self._transactions
        yield
        if before[0] is not None and before != self._transactions:
            raise LoadError(
                f"{who} committed or rolled back the load's transaction, so its counts "
                f"are unknown; let {who} use a session of its own"
            )

    @property
    def _transactions(self) -> tuple[Any, Any]:
        session = self.session
        return session.get_transaction(), session.get_nested_transaction()

    def _commit(self, *, is_last: bool = False) -> None:
        # Good rows are kept only if there is a record of the bad ones.
        self.rejects.file.flush()
        transaction = self.session.get_transaction()
        try:
            with self.timed("commit"):
                self.session.commit()
        except Exception:
            # A listener may raise after the commit, which has happened nevertheless.
            if transaction is not None and is_committed(transaction):
                self._note_commit(is_last=is_last)
            raise
        self._note_commit(is_last=is_last)

    def _note_commit(self, *, is_last: bool) -> None:
        self.report.committed = True
        self.report.kept = self.report.rows - self.report.rejected
        self.report.resume = None if is_last else self.line + 1
        if self.commits_batches or is_last:
            self.committed = self.report.counts()

    def _load_next(self, size: int) -> int:
        """Load the next batch; give its last line, 0 at the end of the source."""
        # Other tasks run while an async source is awaited.
        with nullcontext() if self.records.is_async else paused():
            if self.ahead is None:
                prepared = self._prepare_next(size)
            else:
                prepared = self.ahead.take()
            if prepared is None:
                self.report.bytes_read = self.records.position
                return 0
            with paused():
                self.load(prepared)
            self.report.bytes_read = prepared.position
            return prepared.records[-1][0]

    def _prepare_next(self, size: int) -> Prepared | None:
        if self.is_elsewhere:
            with self.timed("read"):
                found = self.records.take_validated(size)
            with self.timed("resolve"):
                return None if found is None else received(self, *found)
        with self.timed("read"), self._undisturbed("the source"):
            records = self.records.take(size)
        return self.prepared(records) if records else None

    def prepared(self, records: list[Record]) -> Prepared:
        """Validate records and make their references; nobody learns of it yet."""
        self.linker.forget()
        with self.linker.registering(), self.rejects.held() as rejected:
            with self.timed("validate"):
                batches = self.checker.rows(records)
            with self.timed("resolve"):
                self.linker.make(batches, self.validator)
        return Prepared(records, batches, rejected, self.records.position)

    def load(self, prepared: Prepared, *, is_last: bool = False) -> None:
        """
        Load a batch; rows that wait for rows to come are put aside.

        Args:
            is_last: Whether what the rows wait for can be among those only that
                were put aside; they are of these themselves.
        """
        batches = self.linked(prepared)
        left = 0
        if self.in_order is None:
            self.put(batches)
        else:
            left = self.in_order.put(batches, is_last=is_last)
        self.report.rows += len(prepared.records) - left

    def linked(self, prepared: Prepared) -> list[Rows]:
        """Reject what is not valid, and look up what the other rows name."""
        self.rejects.lines.clear()
        self.rejects.add_all(sorted(prepared.rejected, key=lambda r: r[0][0]))
        with self.timed("resolve"):
            self.linker.look_up()
        return prepared.batches

    def put(self, batches: Sequence[Rows], *, in_circles: bool = False) -> None:
        """Make what is missing, if that is asked for; write rows."""
        creator = None if in_circles else self.creator
        if creator is not None and self._staged:
            creator.take_turns(self._staged)
        while creator is not None and (wanted := creator.wanted(batches)):
            creator.take_turns(self._staged)
            before = self.report.counts()

            def step(creator: Creator = creator, wanted: Any = wanted) -> bool:
                with self.timed("resolve"):
                    creator.create(wanted)
                self._write(batches, is_attempt=True)
                for batch in batches:
                    batch.refused |= {
                        n
                        for n, (line, _) in enumerate(batch.records)
                        if line in self.rejects.lines
                    }
                return not creator.orphans(wanted, batches)

            if self.attempts.done_if(step):
                return
            # Once more, without the rows that were rejected and what they named.
            creator.forget(wanted)
            self.report.unwrite(before)
        self._write(batches, in_circles=in_circles)

    @property
    def _staged(self) -> list[Table]:
        """The table of the rows, if they take turns with those of others."""
        table = self.mapper.local_table
        if self.layouts.on_conflict == "raise" or not isinstance(table, Table):
            return []
        return [table]

    def _write(
        self,
        batches: Sequence[Rows],
        *,
        in_circles: bool = False,
        is_attempt: bool = False,
    ) -> None:
        """Turn rows into columns and write them; what is an attempt keeps fields."""
        with self.timed("resolve"):
            for batch in batches:
                self.linker.link(batch, in_circles=in_circles)
                if not is_attempt:
                    batch.fields = []
        with self.timed("write"):
            self.writer.write(batches)
