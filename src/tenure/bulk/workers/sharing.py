"""
A load shared among the workers of an executor.

By one transaction, workers read and validate the parts, and the caller writes what they
send in the order of the source. By part, each worker loads and commits its own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.orm import Session

from ...errors import LoadError
from ..load import (
    Layouts,
    LoadOptions,
    LoadReport,
    RejectsFile,
    Supply,
    Validated,
    load,
)
from ..read import Accepted, Parts, Records, cut
from .apart import Apart
from .crew import Crew, Waits
from .jobs import Into, Validate, for_workers

#: How many parts may be under way, or validated and not written: so many, or two for
#: each core of this machine if that is more.
MOST_PARTS = 16
#: Bytes of a part, where nothing is said: some batches.
PART_BYTES = 4_000_000
#: The same where each part is a transaction.
APART_BYTES = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """
    How a load is shared; ``SessionBulk.load`` says what it means.

    Args:
        waits: Waits until one of some futures is done.
    """

    executor: Any
    parts: int | None = None
    resume: Any = None
    parts_table: str
    waits: Waits

    def __post_init__(self) -> None:
        if not callable(getattr(self.executor, "submit", None)):
            raise LoadError(
                f"executor has a submit() as those of concurrent.futures have, "
                f"{self.executor!r} has none"
            )
        if self.parts is not None and self.parts < 1:
            raise LoadError(f"parts is at least 1, not {self.parts}")
        load_id = getattr(self.resume, "load_id", self.resume)
        if self.resume is not None and (not isinstance(load_id, str) or not load_id):
            raise LoadError(
                f"resume is the report, or the load_id, of a load with commit='part', "
                f"not {self.resume!r}"
            )
        if not self.parts_table:
            raise LoadError("parts_table is the name of a table, not an empty text")


def load_shared(
    session: Session,
    source: Any,
    into: type[Any],
    options: LoadOptions,
    between: Callable[[object], None] | None = None,
    *,
    sharing: Sharing,
) -> LoadReport:
    """
    Load rows over workers; see ``SessionBulk.load``.

    Args:
        between: Called after each batch, with what ``progress`` returned.
    """
    options.check_progress(is_async=between is not None)
    model = Into.of(session, into)
    crew = Crew(sharing.executor, sharing.waits)
    try:
        if options.commit == "part":
            return _by_part(session, source, model, options, sharing, crew, between)
        if sharing.resume is not None:
            raise LoadError("resume is for commit='part'; otherwise say start=")
        supply = partial(_supplied, source, model, options, sharing, crew)
        return load(session, source, into, options, between, supply=supply)
    finally:
        crew.close()


def _by_part(
    session: Session,
    source: Any,
    into: Into,
    options: LoadOptions,
    sharing: Sharing,
    crew: Crew,
    between: Callable[[object], None] | None,
) -> LoadReport:
    work = Apart(session, into, options, sharing.resume, sharing.parts_table)
    file = RejectsFile(options.rejects)
    with opened(source, options, sharing, APART_BYTES, work.layouts) as parts:
        file.check("source", *parts.paths)
        try:
            return work.run(parts, crew, file, between)
        finally:
            file.close()


def opened(
    source: Any, options: LoadOptions, sharing: Sharing, size: int, layouts: Layouts
) -> Parts:
    """Cut a source, into as many parts as are wanted or of *size* bytes."""
    accepted, count = layouts.accepted, sharing.parts
    return cut(source, options.reading, accepted=accepted, size=size, count=count)


@contextmanager
def _supplied(
    source: Any,
    into: Into,
    options: LoadOptions,
    sharing: Sharing,
    crew: Crew,
    layouts: Layouts,
) -> Iterator[_Supply]:
    with opened(source, options, sharing, PART_BYTES, layouts) as parts:
        yield _Supply(parts, into, options, crew, layouts.accepted)


class _Supply(Supply):
    """The batches of a source, in its order, as workers validate them."""

    def __init__(
        self,
        parts: Parts,
        into: Into,
        options: LoadOptions,
        crew: Crew,
        accepted: Accepted,
    ) -> None:
        self._reading = options.reading
        self._accepted = accepted
        self.header = parts.header
        self.json = parts.json
        self.ignored = parts.ignored
        self.total = parts.total
        self.paths = parts.paths
        self.guesses = parts.guesses
        self.place = parts.place
        self.named = parts.named
        self.position = 0
        sent = for_workers(options)
        jobs = (Validate(part, into, sent) for part in parts)
        # What is done and waits is in memory.
        at_once = max(2 * (os.cpu_count() or 1), MOST_PARTS)
        self._results = crew.in_order(jobs, at_once=at_once)
        #: What was taken of the workers, and what reads its rows again.
        self._taken: Validated | None = None
        self._place = self._left = 0
        self._again: list[Reread] = []

    def take_validated(
        self, size: int
    ) -> tuple[Validated, Callable[[int], Any]] | None:
        """
        Return the next *size* records, and what reads the row of a line again.

        Not what a worker has sent at once: which rows come together shows in reports.
        """
        if self._left < size:
            self._take_more(size)
        if self._taken is None or not self._left:
            return None
        some = self._taken.part(self._place, size)
        self._place += len(some)
        self._left -= len(some)
        rows = Rereads(self._again)
        self._again = [each for each in self._again if each.last > some.lines[-1]]
        return some, rows

    def _take_more(self, size: int) -> None:
        """Take what workers have sent, until *size* records are there or no more come."""
        pieces = []
        if self._taken is not None and self._left:
            pieces.append(self._taken.part(self._place, self._left))
        count = self._left
        while count < size and (found := next(self._results, None)) is not None:
            job, batch = found
            self.position += job.part.size
            if batch is None:
                continue
            opening = partial(Records, job.part, self._reading, accepted=self._accepted)
            self._again.append(Reread(opening, batch.lines[-1]))
            pieces.append(batch)
            count += len(batch)
        if pieces:
            self._taken = pieces[0].joined(pieces[1:]) if pieces[1:] else pieces[0]
            self._place, self._left = 0, count


class Reread:
    """
    Reads the rows of a part again, once one of them is asked for.

    Attributes:
        last: The last line of the part.
    """

    def __init__(self, opening: Callable[[], Records], last: int) -> None:
        self._opening = opening
        self._rows: dict[int, Any] | None = None
        self.last = last

    def row(self, line: int) -> Any:
        """Return the row of a line."""
        if self._rows is None:
            with self._opening() as records:
                self._rows = dict(records.take(1 << 62))
        return self._rows[line]


class Rereads:
    """Reads the rows of some parts, which follow each other, again."""

    def __init__(self, parts: list[Reread]) -> None:
        self._parts = parts

    def __call__(self, line: int) -> Any:
        """Return the row of a line."""
        return next(each for each in self._parts if line <= each.last).row(line)
