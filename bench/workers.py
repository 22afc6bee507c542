"""
Load the flights with one process, and over the workers of executors.

    python bench/workers.py --url postgresql+psycopg://... [--rounds 5]

The other four files are loaded before the clock runs. Executors are warm: they have
imported what they need. Each way loads the same rows, in turns; only ratios within a
round mean something on a busy machine.

- one: this process alone
- once, 1 and 2: processes that validate, and one transaction of the caller
- part, 2: two processes, each commits its parts
- dask, part, 2: the same by a cluster of Dask on this machine
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench import tables  # noqa: E402 - found by the line above
from examples.flights.data import extract  # noqa: E402 - as above
from examples.flights.load import NOTHING  # noqa: E402 - as above
from examples.flights.models import Base  # noqa: E402 - as above
from examples.flights.schemas import FILES  # noqa: E402 - as above
from tenure import Database  # noqa: E402 - as above

#: How many workers, who makes them, and how often is committed.
WAYS: dict[str, tuple[int, str, str]] = {
    "one": (0, "", "once"),
    "once, 1": (1, "processes", "once"),
    "once, 2": (2, "processes", "once"),
    "part, 2": (2, "processes", "part"),
    "dask, part, 2": (2, "dask", "part"),
}


def warm(seconds: float) -> None:
    """Be busy for a moment, so that each worker gets one of these."""
    time.sleep(seconds)


@contextmanager
def executor(count: int, kind: str) -> Iterator[Any]:
    """Give an executor whose workers have started."""
    if kind == "dask":
        from dask.distributed import Client, LocalCluster

        make: Any = LocalCluster
        connect: Any = Client
        with (
            make(
                n_workers=count,
                threads_per_worker=1,
                dashboard_address=":0",
                host="127.0.0.1",
            ) as cluster,
            connect(cluster) as client,
        ):
            yield client.get_executor(pure=False)
    elif kind:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, context) as pool:
            yield pool
    else:
        yield None


def measured(url: str, paths: Mapping[str, Path], way: str, pool: Any) -> float:
    """Return the seconds of a load of the flights, and check what it has done."""
    tables.empty(url)
    options: dict[str, Any] = {"on_missing": "null", "null": NOTHING}
    with Database(url) as db:
        db.create_all(Base.metadata)
        for name, into in FILES.items():
            if name == "flights" and pool is not None:
                options |= {"executor": pool, "commit": WAYS[way][2]}
            with db.session_manager() as session, session.bulk() as bulk:
                started = time.perf_counter()
                bulk.load(paths[name], into, **options)
                seconds = time.perf_counter() - started
    tables.check(url, 1)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description="Load flights over workers.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--data", type=Path, default=Path(tempfile.gettempdir()) / "nycflights13"
    )
    arguments = parser.parse_args()
    paths = extract(arguments.data)
    sqlite = arguments.url.startswith("sqlite")
    ways = [
        way for way, (*_, commit) in WAYS.items() if not (sqlite and commit == "part")
    ]
    runs: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(arguments.rounds):
        first = turn % len(ways)
        for way in ways[first:] + ways[:first]:
            with executor(*WAYS[way][:2]) as pool:
                if pool is not None:
                    for future in [pool.submit(warm, 0.5) for _ in range(4)]:
                        future.result()
                runs[way].append(measured(arguments.url, paths, way, pool))
    print(f"{'':15}  {'seconds':>7}  {'one / this':>10}")
    for way, found in runs.items():
        ratios = [one / this for one, this in zip(runs["one"], found, strict=True)]
        print(f"{way:15}  {median(found):7.2f}  {median(ratios):10.2f}")


if __name__ == "__main__":
    main()
