"""
Batches that are read and validated: while the one before is written, or elsewhere.

Another process that validates sends the values by field and the lines of the rows, not
the records: one that the rejects file needs is read again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from typing import Any, overload

from ...references import Registry
from ..read import Record, Records
from .layout import Layouts, Rows
from .link import registering_with, sendable
from .report import LoadReport, Problem, Rejected, Rejects, RejectsFile
from .validate import Checker, RowValidator


@dataclass(slots=True)
class Prepared:
    """A batch that is read and validated, with what of it is rejected."""

    records: Sequence[Record]
    batches: list[Rows]
    rejected: list[Rejected]
    #: How far the source has been read.
    position: int


class Ahead:
    """
    Gives batches in order, each prepared while the one before is written.

    What preparing a batch raises is raised when it is that batch's turn: those before it
    are settled first.

    Args:
        prepare: Prepares the next batch; ``None``: there is none.
    """

    def __init__(self, prepare: Callable[[], Prepared | None]) -> None:
        self._prepare = prepare
        self._is_ready = False
        self._next: Prepared | None = None
        self._error: Exception | None = None

    def prepare(self) -> None:
        """Prepare the next batch, if that has not been done."""
        if self._is_ready:
            return
        self._is_ready = True
        try:
            self._next = self._prepare()
        except Exception as error:  # noqa: BLE001  # take() raises it
            self._error = error

    def take(self) -> Prepared | None:
        """Return the next batch."""
        self.prepare()
        found, error = self._next, self._error
        self._is_ready, self._next, self._error = False, None, None
        if error is not None:
            raise error
        return found


# Elsewhere


@dataclass(slots=True)
class ValidRows:
    """Rows that set the same fields: their lines, and their values by field."""

    layout: tuple[frozenset[str], frozenset[str]]
    lines: list[int]
    fields: Sequence[Sequence[Any]]


@dataclass(slots=True)
class Validated:
    """A batch as another process sends it."""

    lines: list[int]
    rows: list[ValidRows]
    #: Rejected rows in the order of their lines: the line, field, reason and message,
    #: and what else is wrong.
    rejected: list[tuple[int, str, str, str, tuple[Problem, ...]]]
    #: The first row that gives nothing the model knows.
    first_empty: int | None = None

    def __len__(self) -> int:
        return len(self.lines)

    def part(self, first: int, size: int) -> Validated:
        """Return *size* records from the one at place *first* on, or what is left."""
        lines = self.lines[first : first + size]
        rows = []
        for each in self.rows:
            place = bisect_left(each.lines, lines[0])
            end = bisect_right(each.lines, lines[-1])
            if place < end:
                fields = [values[place:end] for values in each.fields]
                rows.append(ValidRows(each.layout, each.lines[place:end], fields))
        # As they come in this batch.
        rows.sort(key=lambda each: each.lines[0])
        place = bisect_left(self.rejected, lines[0], key=itemgetter(0))
        end = bisect_right(self.rejected, lines[-1], key=itemgetter(0))
        return Validated(lines, rows, self.rejected[place:end], self.first_empty)

    def joined(self, others: Iterable[Validated]) -> Validated:
        """Return these records, and those of *others* after them."""
        lines: list[int] = []
        rejected: list[Any] = []
        rows: dict[Any, tuple[list[int], list[list[Any]]]] = {}
        first_empty = None
        for some in chain([self], others):
            lines += some.lines
            rejected += some.rejected
            first_empty = some.first_empty if first_empty is None else first_empty
            for each in some.rows:
                mine = rows.setdefault(each.layout, ([], [[] for _ in each.fields]))
                mine[0].extend(each.lines)
                for values, more in zip(mine[1], each.fields, strict=True):
                    values.extend(more)
        joined = [ValidRows(layout, *mine) for layout, mine in rows.items()]
        return Validated(lines, joined, rejected, first_empty)


def validated(records: Records, layouts: Layouts, size: int) -> Iterator[Validated]:
    """Validate the records of a source, in batches of *size*, to be sent."""
    report = LoadReport()
    rejects = Rejects(report, RejectsFile(None), records)
    validator = RowValidator(
        layouts.into, json=records.json, refuses_unknown=not records.ignored
    )
    checker = Checker(records, layouts, rejects, validator)
    while taken := records.take(size):
        with registering_with(Registry()), rejects.held() as rejected:
            batches = checker.rows(taken)
            lines = [line for line, _ in taken]
            rows = [
                ValidRows(
                    batch.layout.made_of,
                    lines
                    if len(batch) == len(lines)
                    else [line for line, _ in batch.records],
                    list(map(sendable, batch.fields)),
                )
                for batch in batches
            ]
        yield Validated(
            lines,
            rows,
            sorted(((each[0][0], *each[1:]) for each in rejected), key=itemgetter(0)),
            checker.first_empty,
        )


class Supply(ABC):
    """
    A source that others read and validate; beside that, it is as ``Records``.

    Attributes:
        position: How far it has been taken.
    """

    is_async = False
    position: int

    @abstractmethod
    def take_validated(
        self, size: int
    ) -> tuple[Validated, Callable[[int], Any]] | None:
        """Return the next *size* records, and what reads the row of a line again."""


def received(loader: Any, batch: Validated, row_of: Callable[[int], Any]) -> Prepared:
    """
    Return a batch that was validated elsewhere, with its references made.

    Args:
        loader: What is to write it.
        row_of: Reads the row of a line again.
    """
    linker, rejects = loader.linker, loader.rejects
    linker.forget()
    with linker.registering(), rejects.held() as rejected:
        rows = [
            Rows(
                loader.layouts.of(*each.layout),
                _Distant(each.lines, row_of),
                fields=list(map(linker.received, each.fields)),
            )
            for each in batch.rows
        ]
        linker.make(rows, loader.validator)
    for line, name, reason, message, more in batch.rejected:
        rejected.append((_distant(line, row_of), name, reason, message, more))
    if batch.first_empty is not None:
        loader.checker.note_empty(batch.first_empty)
    records = _Distant(batch.lines, row_of)
    return Prepared(records, rows, rejected, loader.records.position)


class _Record(tuple[int, Any]):  # noqa: SLOT001  # it has row_of as well
    """A record whose row is read again when it is asked for."""

    row_of: Callable[[int], Any]

    def __getitem__(self, place: Any) -> Any:
        line = super().__getitem__(0)
        return line if place == 0 else (line, self.row_of(line))[place]

    def __iter__(self) -> Iterator[Any]:
        yield self[0]
        yield self[1]

    def __reduce__(self) -> Any:
        return tuple, ((self[0], self[1]),)


def _distant(line: int, row_of: Callable[[int], Any]) -> Record:
    record = _Record((line, None))
    record.row_of = row_of
    return record


class _Distant(Sequence[Record]):
    """The records of some lines."""

    def __init__(self, lines: Sequence[int], row_of: Callable[[int], Any]) -> None:
        self._lines = lines
        self._row_of = row_of

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Record]: ...
    def __getitem__(self, place: int | slice) -> Any:
        if isinstance(place, slice):
            return _Distant(self._lines[place], self._row_of)
        return _distant(self._lines[place], self._row_of)
