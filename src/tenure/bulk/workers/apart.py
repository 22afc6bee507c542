"""Loads whose parts are each committed by the worker that loads it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
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
from .checks import check_database, check_session
from .crew import Crew, pickled
from .done import Done, Loaded, place_of
from .jobs import Access, Into, LoadPart, for_workers
from .reports import add

E = TypeVar("E", bound=BaseException)

#: How many parts are given to the executor: a cluster may have any number of workers.
_AT_ONCE = 1_000


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
        self.layouts = into.layouts(options)
        self._mapper = self.layouts.mapper
        self._named = named_by(self._mapper, self.layouts.into.model_fields)
        binds = {
            session.get_bind(mapper, clause=insert(mapper))
            for mapper in (self._mapper, *self._named)
        }
        self._check(session, binds)
        self._engine = next(iter(binds)).engine
        self._access = Access.to(session, self._engine)
        self._resumes = resume is not None
        load_id = getattr(resume, "load_id", resume) or uuid.uuid4().hex
        self._done = Done(load_id, parts_table)
        self.report = LoadReport(
            into=self._mapper.class_.__name__, load_id=load_id, resume=None
        )
        self._started = perf_counter()
        self._loaded: dict[int, Loaded] = {}
        self._parts: dict[int, Part] = {}

    def _check(self, session: Session, binds: Collection[Engine | Connection]) -> None:
        """
        Refuse what cannot be done by part.

        Raises:
            LoadError: It is something like this.
        """
        check_database(binds)
        check_session(session)
        options = self._options
        if options.dry_run:
            raise LoadError("a dry run writes no parts; say commit='once' for it")
        if options.start != 1:
            raise LoadError(
                "start is no way to go on with parts: those done may be anywhere; say "
                "resume= with the report"
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
        done, about = self._done, self._about(parts)
        self.report.bytes_total = parts.total
        if self._resumes:
            self._loaded = done.go_on(self._engine, about)
        else:
            # Before there is something to go on with.
            pickled((self._into, self._access, self._done), "what a part needs")
            done.begin(self._engine, about)
        # Not before it is known that there is something to go on with.
        file.open()
        for number, loaded in self._loaded.items():
            self._loaded[number] = _written(file, loaded)
        try:
            self._add_up()
            # Of rows with one key the last has to stay, or the first: in their order.
            in_order = self._options.on_conflict != "raise"
            at_once = 1 if in_order else _AT_ONCE
            for job, loaded in crew.results(self._jobs(parts), at_once=at_once):
                self._loaded[job.number] = _written(file, loaded)
                self._add(job.part, loaded)
                self._tell(between)
            self._add_up()
            self._check_rejected()
            done.end(self._engine)
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
        return self.report

    def _about(self, parts: Parts) -> dict[str, Any]:
        """Return what has to be the same when a load goes on."""
        options = self._options
        reading = replace(
            options.reading,
            storage_options=None,
            # They may be sets.
            ignore=tuple(sorted(options.reading.ignore)),
            null=options.reading.null and tuple(sorted(options.reading.null)),
        )
        changing = options.update_fields
        return {
            "bytes": parts.total,
            "bytes of a part": parts.size,
            "into": self._into.given.__qualname__,
            "on_missing": options.on_missing,
            "on_conflict": options.on_conflict,
            "update_fields": None if changing is None else sorted(changing),
            "reading": repr(reading),
            "files": parts.paths,
        }

    def _jobs(self, parts: Parts) -> Iterator[LoadPart]:
        options = for_workers(self._options)
        for part in parts:
            self._parts[part.number] = part
            earlier = self._loaded.get(part.number)
            if earlier is None:
                yield LoadPart(part, self._into, options, self._access, self._done)
                continue
            if earlier.place != place_of(part):
                raise LoadError(
                    f"the load {self._done.load_id!r} cannot go on: its part "
                    f"{part.number} was {earlier.place} and is {place_of(part)}, so the "
                    f"source has changed; load it anew"
                )
            self._add(part, earlier)

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
            report.bytes_read += part.size if is_done else 0
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
            for number, loaded in self._done.committed(self._engine).items():
                if number not in self._loaded:
                    self._loaded[number] = _written(file, loaded)
        self._add_up()

    def _explained(self, error: E) -> E:
        """Say in *error* what is done, and how to go on."""
        ready = sum(part.done for part in self.report.parts)
        error.add_note(
            f"load: {ready} parts are committed; resume={self.report.load_id!r}, or "
            f"resume= with the report, loads the others of the same source"
        )
        with suppress(AttributeError):
            error.report = self.report  # type: ignore[attr-defined]  # as of any load
        return error


def _written(file: RejectsFile, loaded: Loaded) -> Loaded:
    """Write the rejected rows of a part, and return it without them: they may be many."""
    file.write_all(loaded.rejects)
    return replace(loaded, rejects="")
