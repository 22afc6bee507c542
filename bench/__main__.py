"""
Run every benchmark on every database there is, and print the tables.

    python -m bench [--rounds 3] [--only flights,resolve]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from tools.servers import MariaDB, PostgreSQL, Server, ServerUnavailable

HERE = Path(__file__).resolve().parent
BENCHMARKS = {
    "flights": ("flights.py", []),
    "flights, twice the rows": (
        "flights.py",
        ["--scale", "2", "--only", "floor,load", "--rounds", "1"],
    ),
    "baseball": ("baseball.py", []),
    "workers": ("workers.py", []),
    "resolve": ("resolve.py", []),
    "bulk": ("bulk.py", []),
    "scopes": ("scopes.py", []),
}

# These have a database of their own.
IN_MEMORY = {"scopes"}
# These know MariaDB.
ON_MARIADB = {"bulk", "resolve"}


def machine() -> str:
    """Say what this was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("sqlalchemy", "pydantic", "psycopg")
    )
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}; "
        f"Python {platform.python_version()}, {libraries}"
    )


def databases(stack: ExitStack) -> Iterator[tuple[str, str]]:
    """Give each database's name and URL; servers are started for this, durable."""
    folder = stack.enter_context(tempfile.TemporaryDirectory())
    yield "SQLite", f"sqlite:///{folder}/bench.db"
    servers: list[tuple[str, type[Server], str]] = [
        ("PostgreSQL", PostgreSQL, "psycopg"),
        ("MariaDB", MariaDB, "pymysql"),
    ]
    for name, kind, driver in servers:
        try:
            server = stack.enter_context(kind.create(durable=True))
        except ServerUnavailable as error:
            print(f"{name} left out: {error}")
            continue
        server.create_database("bench")
        yield name, server.url(driver, "bench")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument("--only", default=",".join(BENCHMARKS))
    parser.add_argument("--rounds", help="rounds of each; a benchmark's own if absent")
    arguments = parser.parse_args()
    print(machine())
    with ExitStack() as stack:
        for database, url in databases(stack):
            for name, (script, options) in BENCHMARKS.items():
                if name.partition(",")[0] not in arguments.only.split(","):
                    continue
                if name in IN_MEMORY and database != "SQLite":
                    continue
                if name not in ON_MARIADB and database == "MariaDB":
                    continue
                print(f"\n{name}, {database}\n", flush=True)
                command = [sys.executable, str(HERE / script), "--url", url, *options]
                if arguments.rounds and "--rounds" not in options:
                    command += ["--rounds", arguments.rounds]
                environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
                subprocess.run(command, check=True, env=environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
