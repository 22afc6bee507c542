"""Loads whose parts are each committed by the worker that loads it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, insert
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ...errors import LoadError, RejectedRowsError
from ..load import (
    LoadOptions,
    LoadReport,
    PartReport,
    RejectsFile,
    is_kin,
    named_by,
)
from ..read import Part, Parts
from .crew import Crew
from .done import Done, DonePart, place_of
from .jobs import Access, Into, Loaded, LoadPart
from .reports import add

E = TypeVar("E", bound=BaseException)

#: Options of pools: a worker has one connection, or two.
_OF_POOLS = ("pool", "max_overflow")


class Apart:
    """
    One load by parts.

    Args:
        resume: The report, or the ``load_id``, of a load that was cut short.
        parts_table: The table that says which parts are done.
    """

    def __init__(
        self,
        session: Session,
        into: Into,
        options: LoadOptions,
        resume: Any,
        parts_table: str,
    ) -> None:
        self._into = into
        self._options = options
        self.layouts = into.layouts
        self._mapper = self.layouts.mapper
        self._named = named_by(self._mapper, self.layouts.into.model_fields)
        binds = {
            session.get_bind(mapper, clause=insert(mapper))
            for mapper in (self._mapper, *self._named)
        }
        self._check(session, binds)
        self._engine = next(iter(binds)).engine
        self._access = _access_to(session, self._engine)
        self._resumes = resume is not None
        load_id = getattr(resume, "load_id", resume) or uuid.uuid4().hex
        self._done = Done(load_id, parts_table)
        self.report = LoadReport(
            into=self._mapper.class_.__name__, load_id=load_id, resume=None
        )
        self._started = perf_counter()
        self._earlier: dict[int, DonePart] = {}
        self._loaded: dict[int, Loaded] = {}
        self._parts: dict[int, Part] = {}

    def _check(self, session: Session, binds: Collection[Engine | Connection]) -> None:
        """
        Refuse what cannot be done by part.

        Raises:
            LoadError: It is something like this.
        """
        options = self._options
        if any(isinstance(bind, Connection) for bind in binds):
            raise LoadError(
                "the session is bound to a connection, which workers cannot use; bind "
                "it to an engine, or say commit='once'"
            )
        if len({bind.engine for bind in binds}) > 1:
            raise LoadError(
                "the rows and what they name are in several databases, and a worker "
                "knows one; say commit='once'"
            )
        if any(bind.dialect.name == "sqlite" for bind in binds):
            raise LoadError(
                "SQLite has one writer at a time, so parts cannot be committed apart; "
                "say commit='once', and workers validate what this process writes"
            )
        if options.dry_run:
            raise LoadError("a dry run writes no parts; say commit='once' for it")
        if options.start != 1:
            raise LoadError(
                "start is no way to go on with parts: those done may be anywhere; say "
                "resume= with the report"
            )
        if session.in_transaction():
            raise LoadError(
                "the session is in a transaction, and workers do not see what it has "
                "written; commit() or rollback() before a load with commit='part'"
            )
        own = [
            mapper.class_.__name__
            for mapper in self._named
            if is_kin(mapper, self._mapper)
        ]
        if own:
            raise LoadError(
                f"rows of {self._mapper.class_.__name__} name rows of the same source "
                f"({', '.join(sorted(own))}), which may be in another part; say "
                f"commit='once'"
            )

    def run(
        self,
        parts: Parts,
        crew: Crew,
        file: RejectsFile,
        between: Callable[[object], None] | None,
    ) -> LoadReport:
        """Load what is not done."""
        about = {
            "into": self._into.given.__name__,
            "on_conflict": self._options.on_conflict,
            "files": [Path(path).name for path in parts.paths],
            "bytes": parts.total,
            "bytes of a part": parts.size,
        }
        done = self._done
        self.report.bytes_total = parts.total
        if self._resumes:
            self._earlier = done.go_on(self._engine, about)
            for number, part in self._earlier.items():
                self._loaded[number] = Loaded(part.report, part.rejects)
        else:
            done.begin(self._engine, about)
        for earlier in self._loaded.values():
            file.write_all(earlier.rejects)
        try:
            # The parts are tiny, and a cluster may have any number of workers.
            self._add_up()
            for job, loaded in crew.results(self._jobs(parts), at_once=1_000):
                self._loaded[job.number] = loaded
                self._add(job.part, loaded)
                file.write_all(loaded.rejects)
                self._tell(between)
            self._add_up()
            self._check_rejected()
        except RejectedRowsError as error:
            self._end_badly(crew, file)
            # It says how many rows are kept.
            raise self._explained(
                RejectedRowsError(self.report, error.max_errors)
            ) from None
        except BaseException as error:
            self._end_badly(crew, file)
            self._explained(error)
            raise
        self.report.committed = True
        done.end(self._engine)
        return self.report

    def _jobs(self, parts: Parts) -> Iterator[LoadPart]:
        options = replace(
            self._options, commit="once", progress=None, rejects=None, start=1
        )
        for part in parts:
            self._parts[part.number] = part
            earlier = self._earlier.get(part.number)
            if earlier is not None and earlier.place != place_of(part):
                raise LoadError(
                    f"the load {self._done.load_id!r} cannot go on: its part "
                    f"{part.number} was {earlier.place} and is {place_of(part)}, so the "
                    f"source has changed"
                )
            if earlier is not None:
                self._add(part, self._loaded[part.number])
            else:
                yield LoadPart(part, self._into, options, self._access, self._done)

    def _add_up(self) -> None:
        """Add up what is done, in the order of the source."""
        before = self.report
        self.report = LoadReport(
            into=before.into,
            load_id=before.load_id,
            resume=None,
            bytes_total=before.bytes_total,
        )
        for number, part in sorted(self._parts.items()):
            self._add(part, self._loaded.get(number))

    def _add(self, part: Part, loaded: Loaded | None) -> None:
        """Add what a part gave, if it has been loaded."""
        report = self.report
        # Of several processes at once, only the time that passed means something.
        report.seconds = {"load": perf_counter() - self._started}
        is_done = loaded is not None and loaded.is_done
        rows = 0
        if loaded is not None:
            add(report, loaded.report)
            report.bytes_read += part.size
            rows = loaded.report.rows if is_done else 0
        report.parts.append(
            PartReport(part.number, part.file.name, part.lines, rows, is_done)
        )

    def _check_rejected(self) -> None:
        most = self._options.max_errors
        if most is not None and self.report.rejected > most:
            # A part that has more by itself is not done; those that are stay so.
            raise RejectedRowsError(self.report, most)

    def _tell(self, between: Callable[[object], None] | None) -> None:
        self._check_rejected()
        progress = self._options.progress
        answer = None if progress is None else progress(self.report)
        if between is not None:
            between(answer)

    def _end_badly(self, crew: Crew, file: RejectsFile) -> None:
        """Have the workers give up, and find out what is done."""
        with suppress(SQLAlchemyError):
            self._done.give_up(self._engine)
        crew.close()
        # Some may have committed since somebody listened.
        with suppress(SQLAlchemyError):
            for number, part in self._done.committed(self._engine).items():
                if number not in self._loaded:
                    self._loaded[number] = Loaded(part.report, part.rejects)
                    file.write_all(part.rejects)
        self._add_up()

    def _explained(self, error: E) -> E:
        """Say in *error* what is done, and how to go on."""
        ready = sum(part.done for part in self.report.parts)
        error.add_note(
            f"load: {ready} parts of {self.report.load_id} are committed; to load the "
            f"others say resume={self.report.load_id!r}, or resume= with the report"
        )
        with suppress(AttributeError):
            error.report = self.report  # type: ignore[attr-defined]  # as of any load
        return error


def _access_to(session: Session, engine: Engine) -> Access:
    """Return how a worker reaches the database of *engine*."""
    routing = getattr(session, "routing", None)
    is_async = engine.dialect.is_async
    known = None if routing is None else routing.recipe(engine)
    if known is None:
        known = {"async_url" if is_async else "url": engine.url}
    for name in ("engine_options", "async_engine_options"):
        options = known.get(name, {})
        known[name] = {
            key: value
            for key, value in options.items()
            if not key.startswith(_OF_POOLS)
        }
    return Access({"default": known}, is_async, dict(engine.get_execution_options()))
