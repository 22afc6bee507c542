"""A load's report as text, no wider than the terminal where that is possible."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any

from tenure import LoadReport

#: How many missing keys of each entity are named, and how many rejected rows.
MOST_KEYS = 3
MOST_REJECTS = 5

_COUNTS = ("created", "updated", "unchanged", "skipped", "rejected")


def text_of(report: LoadReport, *, rejects: str | None) -> Iterator[str]:
    """Yield the lines that describe a load; *rejects* is the file of rejected rows."""
    width = shutil.get_terminal_size().columns
    yield from _counts(report)
    if report.references:
        yield ""
        yield from _references(report, width)
    yield ""
    yield from _seconds(report)
    if report.rejects:
        yield ""
        yield from _rejects(report, rejects)
    for guess in report.guesses:
        yield ""
        yield f"guessed: {guess}"
    if report.dry_run:
        yield ""
        yield "dry run: nothing was written"
    elif report.load_id is not None and not report.committed:
        yield ""
        yield left_of(report)
    elif report.resume is not None and report.kept:
        yield ""
        yield f"all before line {report.resume:,} is kept; continue with --start there"


def left_of(report: LoadReport) -> str:
    """Return what is done of a load by parts, and how to go on with it."""
    done = sum(part.done for part in report.parts)
    return (
        f"{done} of its parts are committed, with {report.kept:,} rows; load the others "
        f"with the same options and --resume {report.load_id}"
    )


def _counts(report: LoadReport) -> Iterator[str]:
    # What was created and then undone has not been created.
    is_undone = not report.dry_run and report.kept != report.rows - report.rejected
    names = ("kept", "rejected") if is_undone else _COUNTS
    digits = len(f"{report.rows:,}")
    yield report.into
    for name in ("rows", *names):
        label = "rows read" if name == "rows" else name
        yield f"  {label:<9}  {getattr(report, name):>{digits},}"


def _references(report: LoadReport, width: int) -> Iterator[str]:
    is_made = any(count.created for count in report.references.values())
    titles = ["references", "resolved", *["created"] * is_made, "missing", "keys"]
    table: list[Sequence[str]] = [titles]
    most: list[list[str]] = [[]]
    for name, count in report.references.items():
        distinct = f"{len(count.missing_keys):,}" if count.missing else ""
        created = [f"{count.created:,}"] * is_made
        numbers = [f"{count.resolved:,}", *created, f"{count.missing:,}"]
        table.append([f"  {name}", *numbers, distinct])
        most.append(
            [
                f"{_key(key)} ({rows:,})"
                for key, rows in count.missing_keys.most_common(MOST_KEYS)
            ]
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells, keys in zip(table, most, strict=True):
        line = cells[0].ljust(widths[0])
        for cell, size in zip(cells[1:], widths[1:], strict=True):
            line += f"  {cell:>{size}}"
        yield from _wrapped(line.rstrip() if not keys else f"{line}  ", keys, width)


def _wrapped(start: str, items: Sequence[str], width: int) -> Iterator[str]:
    """Append *items* to *start*, wrapped between items, with aligned lines."""
    line = start
    for position, item in enumerate(items):
        last = position == len(items) - 1
        text = item if last else f"{item}, "
        if len(line) > len(start) and len(line) + len(text.rstrip()) > width:
            yield line.rstrip()
            line = " " * len(start)
        line += text
    yield line


def _key(key: tuple[Any, ...]) -> str:
    return " ".join(map(str, key))


def _seconds(report: LoadReport) -> Iterator[str]:
    phases = ", ".join(f"{name} {spent:.2f}" for name, spent in report.seconds.items())
    yield f"{report.total_seconds:.2f} seconds, {report.rows_per_second:,.0f} rows/s"
    yield f"  {phases}"


def _is_one(report: LoadReport) -> bool:
    return all(reject.file is None for reject in report.rejects)


def _rejects(report: LoadReport, path: str | None) -> Iterator[str]:
    yield "rejected"
    # Within a batch, rows that the database refused come after those that are invalid.
    in_order = attrgetter("line") if _is_one(report) else attrgetter("line_of_all")
    first = sorted(report.rejects, key=in_order)[:MOST_REJECTS]
    for reject in first:
        field = f"{reject.field}: " if reject.field else ""
        file = f"{reject.file} " if reject.file else ""
        place = f"{file}line {reject.line:,}"
        yield f"  {place}  {field}{reject.message} [{reject.reason}]"
    more = report.rejected - len(first)
    if more:
        yield f"  and {more:,} more"
    yield f"  all are in {path}" if path else "  write them to a file with --rejects"
