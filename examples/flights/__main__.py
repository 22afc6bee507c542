"""
Load the five files, say what became of them, and ask two questions.

::

    python -m examples.flights --url postgresql+psycopg://me@localhost/flights

A second run finds everything as it is, and says so.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import Select, case, func, make_url, select
from sqlalchemy.exc import SQLAlchemyError

from examples.flights.data import extract
from examples.flights.load import Reports, Shown, load_all
from examples.flights.models import Airline, Flight, Weather
from tenure import Database, LoadReport, RoutingError, TenureError

MOST_KEYS = 4
Row = Sequence[Any]


def main() -> int:
    arguments = parse()
    try:
        return demo(arguments.url, arguments.data)
    except (FileNotFoundError, RoutingError) as error:
        print(f"flights: {error}", file=sys.stderr)
        return 2
    except (TenureError, SQLAlchemyError, OSError) as error:
        lines = str(getattr(error, "orig", None) or error).splitlines()
        print(f"flights: {lines[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("flights: interrupted; files that were done are kept", file=sys.stderr)
        return 130


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.flights",
        description="Load a year of flights out of New York.",
    )
    parser.add_argument(
        "--url", default="sqlite:///flights.db", help="default: %(default)s"
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        default=Path(tempfile.gettempdir()) / "nycflights13",
        help="folder for the unzipped file (default: %(default)s)",
    )
    return parser.parse_args()


def demo(url: str, folder: Path) -> int:
    paths = extract(folder)
    print(f"loading the flights of 2013 into {place(url)}\n", flush=True)
    began = perf_counter()
    with progress(paths) as shown:
        reports = load_all(url, paths, on_conflict="update", shown=shown)
    seconds = perf_counter() - began
    sections = [
        table(("rows", "read", *STATUSES), list(row_counts(reports))),
        table(("references", "to", "found", "missing", "keys"), list(found(reports))),
        list(missing(reports)),
        table(("seconds", *PHASES, "total"), list(times(reports))),
        [total(reports, seconds)],
    ]
    for title, columns, statement in questions():
        answer = ask(url, statement)
        sections.append([title, *table(columns, [[str(c) for c in r] for r in answer])])
    print("\n\n".join("\n".join(section) for section in sections))
    return 0


def place(url: str) -> str:
    """
    Say where a database is, without its password.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite" and parsed.database:
        return str(Path(parsed.database).absolute())
    return parsed.render_as_string(hide_password=True)


@contextmanager
def progress(paths: Mapping[str, Path]) -> Iterator[Shown | None]:
    """
    Show a bar for each file, on a terminal only.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    bars = Progress(
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=None),
        TextColumn("{task.percentage:3.0f} %  {task.fields[rows]:>7,} rows"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        expand=True,
    )
    tasks = {
        name: bars.add_task(name, start=False, total=None, rows=0) for name in paths
    }

    def show(name: str, report: LoadReport) -> None:
        bars.start_task(tasks[name])
        bars.update(
            tasks[name],
            completed=report.bytes_read,
            total=report.bytes_total,
            rows=report.rows,
        )

    with bars:
        yield show


STATUSES = ("created", "updated", "unchanged")
PHASES = ("read", "validate", "resolve", "write", "commit")


def row_counts(reports: Reports) -> Iterator[Row]:
    for name, report in reports.items():
        counts = [getattr(report, status) for status in STATUSES]
        yield name, *(f"{count:,}" for count in (report.rows, *counts))


def found(reports: Reports) -> Iterator[Row]:
    for name, report in reports.items():
        for entity, count in report.references.items():
            distinct = len(count.missing_keys)
            counts = (count.resolved, count.missing, distinct)
            yield name, entity, *(f"{number:,}" for number in counts)


def missing(reports: Reports) -> Iterator[str]:
    yield "most often missing"
    for report in reports.values():
        for entity, count in report.references.items():
            if not count.missing:
                continue
            most = count.missing_keys.most_common(MOST_KEYS)
            for number, (key, rows) in enumerate(most):
                label = "" if number else entity
                yield f"{label:10}  {' '.join(map(str, key)):<30}  {rows:>7,}"


def times(reports: Reports) -> Iterator[Row]:
    for name, report in reports.items():
        spent = [report.seconds.get(phase, 0.0) for phase in PHASES]
        yield name, *(f"{each:.2f}" for each in (*spent, report.total_seconds))


def total(reports: Reports, seconds: float) -> str:
    rows = sum(report.rows for report in reports.values())
    return (
        f"{rows:,} rows in {seconds:.1f} seconds, {rows / seconds:,.0f} rows/s, "
        f"{peak():.0f} MiB at most"
    )


def peak() -> float:
    """
    Give this process's peak resident set in MiB.
    """
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def table(header: Row, rows: Sequence[Row]) -> list[str]:
    """
    Align columns: texts to the left, anything that begins with a digit to the right.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    numeric = [
        all(row[place].lstrip("-")[:1].isdigit() for row in rows)
        for place in range(len(header))
    ]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def questions() -> Iterator[tuple[str, Row, Select[Any]]]:
    late = func.avg(Flight.arr_delay)
    yield (
        "Which airlines arrive latest? Minutes, on average:",
        ("airline", "delay", "flights"),
        select(Airline.name, late, func.count(Flight.arr_delay))
        .join(Flight.airline)
        .group_by(Airline.name)
        .order_by(late.desc())
        .limit(5),
    )
    weather = case(
        (Weather.precip > 0, "rain or snow"),
        (Weather.wind_speed >= 20, "dry, wind of 20 mph or more"),
        else_="dry, less wind",
    )
    delay = func.avg(Flight.dep_delay)
    yield (
        "What does the weather do to departures? Minutes, on average:",
        ("weather", "delay", "flights"),
        select(weather, delay, func.count(Flight.dep_delay))
        .join(Flight.weather)
        .group_by(weather)
        .order_by(delay.desc()),
    )


def ask(url: str, statement: Select[Any]) -> list[Row]:
    """
    Run a query in a scope; give its rows as texts.
    """
    db = Database(url)
    answer = (
        asyncio.run(_ask_async(db, statement)) if db.is_async else _ask(db, statement)
    )
    return [(name, f"{delay:.1f}", f"{flights:,}") for name, delay, flights in answer]


def _ask(db: Database, statement: Select[Any]) -> Sequence[Row]:
    with db, db.session_manager() as session:
        return session.execute(statement).all()


async def _ask_async(db: Database, statement: Select[Any]) -> Sequence[Row]:
    async with db, db.async_session_manager() as session:
        rows: Sequence[Row] = (await session.execute(statement)).all()
        return rows


if __name__ == "__main__":
    sys.exit(main())
