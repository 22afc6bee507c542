"""Where the tests come from, what they run in, and the databases they run on."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from sqlalchemy import create_engine, text

from tools.servers import PostgreSQL

ROOT = Path(__file__).parents[2]
# Ignored by git, and removed by "make clean".
CACHE = ROOT / ".venv" / "compat"

SERIES = ("2.0", "2.1")
DATABASES = ("sqlite", "postgresql")

# pytest's arguments for a new, empty database: on a driver that blocks or waits.
Place = Callable[[bool], list[str]]


class PreparationFailed(RuntimeError):
    """Something could not be fetched or installed; the message is pip's."""


@dataclass(frozen=True)
class Environment:
    """
    An interpreter with SQLAlchemy and ours.

    Args:
        source: SQLAlchemy's source distribution of the same version.
    """

    python: Path
    version: str
    source: Path


def installed() -> Environment:
    """Give the environment we run in."""
    version = metadata.version("sqlalchemy")
    return Environment(Path(sys.executable), version, _source(version))


def newest(series: str) -> Environment:
    """
    Give an environment with the newest SQLAlchemy of *series*, "2.1" say.

    Raises:
        PreparationFailed: pip could not make it.
    """
    folder = CACHE / series
    python = folder / "bin" / "python"
    # What comes last into a new environment.
    if not (folder / "bin" / "pip").exists():
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    wanted = ["pytest", "pytest-xdist", f"sqlalchemy=={series}.*"]
    _pip(
        *("install", "--upgrade", *wanted),
        *("--editable", f"{ROOT}[sqlite,postgresql,asyncpg]"),
        python=python,
    )
    code = "from importlib.metadata import version; print(version('sqlalchemy'))"
    version = _run([str(python), "-c", code]).strip()
    return Environment(python, version, _source(version))


@contextlib.contextmanager
def snapshot() -> Iterator[str]:
    """Give a path to import our modules from, as they are now: a run takes minutes."""
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("src", "tools"):
            shutil.copytree(
                ROOT / name,
                Path(temporary) / name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        yield os.pathsep.join((f"{temporary}/src", temporary))


@contextlib.contextmanager
def places(names: Sequence[str]) -> Iterator[dict[str, Place]]:
    """
    Start the servers of the databases *names*.

    Raises:
        ServerUnavailable: One is not installed.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, Place] = {"sqlite": _sqlite}
        if "postgresql" in names:
            found["postgresql"] = _on(stack.enter_context(_PostgreSQL.create()))
        yield {name: found[name] for name in names}


class _PostgreSQL(PostgreSQL):
    def _command(self) -> list[str]:
        return [
            *super()._command(),
            # Without it the tests of two-phase commits are skipped.
            "--max_prepared_transactions=20",
            # A test that fails may leave a transaction open, and the next one would
            # wait for it.
            "--lock_timeout=20s",
        ]


def _sqlite(waits: bool) -> list[str]:
    return ["--db", "aiosqlite" if waits else "sqlite"]


def _on(server: PostgreSQL) -> Place:
    numbers = itertools.count(1)

    def place(waits: bool) -> list[str]:
        name = f"compat{next(numbers)}"
        server.create_database(name)
        engine = create_engine(server.url("psycopg", name))
        with engine.begin() as connection:
            for schema in ("test_schema", "test_schema_2"):
                connection.execute(text(f"CREATE SCHEMA {schema}"))
        engine.dispose()
        return ["--dburi", server.url("asyncpg" if waits else "psycopg", name)]

    return place


def _source(version: str) -> Path:
    """Fetch SQLAlchemy's source distribution, unless it is there; nothing is built."""
    folder = CACHE / "source" / f"sqlalchemy-{version}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        _pip(
            *("download", "--no-binary", "sqlalchemy", "--no-deps"),
            *("--dest", temporary, f"sqlalchemy=={version}"),
        )
        (archive,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        (unpacked,) = (path for path in Path(temporary).iterdir() if path.is_dir())
        shutil.move(unpacked, folder)
    return folder


def _pip(*arguments: str, python: Path | None = None) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    _run([str(python or sys.executable), "-m", "pip", *arguments, *quiet])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = f"{done.stdout}{done.stderr}"[-2000:]
        raise PreparationFailed(f"{' '.join(command)} failed:\n{said}")
    return done.stdout
