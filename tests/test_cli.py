"""The command line, run as a user runs it."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import re
import signal
import socket
import subprocess
import sys
import termios
import textwrap
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import pytest
from sqlalchemy import NullPool, create_engine, make_url, text

from tenure import Database
from tenure.cli import main
from tests.fixtures.databases import Databases
from tests.fixtures.shop import Base
from tools.servers import PostgreSQL, ServerUnavailable

ROOT = Path(__file__).parents[1]
SHOP = "tests.fixtures.shop"
DRIVERS = {"sqlite+aiosqlite": "sqlite", "postgresql+asyncpg": "postgresql+psycopg"}

CITIES = "code\nPAR\nBER\n"
PEOPLE = "name,age,city\nAnn,31,PAR\nBob,old,BER\nCid,5,LON\nDora,7,PAR\n"

#: More than a pipe and the buffers behind it hold, so most of it has been read.
MANY = 100_000


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def counts(self) -> dict[str, int]:
        """The first part of the report."""
        lines = self.out.split("\n\n")[0].splitlines()[1:]
        pairs = [line.rsplit(maxsplit=1) for line in lines]
        return {name.strip(): int(count.replace(",", "")) for name, count in pairs}


Tenure = Callable[..., Done]


@pytest.fixture
def tenure(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> Tenure:
    """Run ``tenure load`` in this process, from the root of the repository."""
    monkeypatch.chdir(ROOT)

    def run(source: Path | str, into: str, url: str, *options: str) -> Done:
        into = into if ":" in into else f"{SHOP}:{into}"
        code = main(["load", str(source), "--into", into, "--url", url, *options])
        out, err = capsys.readouterr()
        return Done(code, out, err)

    return run


def execute(*command: str, cwd: Path = ROOT, **options: Any) -> Done:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        **options,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def create(url: str) -> None:
    with Database(sync(url)) as db:
        db.create_all(Base.metadata)


def ask(url: str, query: str) -> list[Any]:
    engine = create_engine(sync(url), poolclass=NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]


def sync(url: str) -> str:
    parsed = make_url(url)
    driver = DRIVERS.get(parsed.drivername, parsed.drivername)
    return parsed.set(drivername=driver).render_as_string(hide_password=False)


def cities(url: str) -> int:
    count: int = ask(url, "SELECT count(*) FROM city")[0][0]
    return count


def file(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


@pytest.fixture
def shop(url: str, tmp_path: Path, tenure: Tenure) -> str:
    """Give a database with two cities in it."""
    create(url)
    assert 0 == tenure(file(tmp_path / "cities.csv", CITIES), "CityIn", url).code
    return url


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    create(url)
    return url


class TestLoad:
    def test_created(self, url: str, tmp_path: Path, tenure: Tenure) -> None:
        """Rows of a file become rows of a table, and the report says how many."""
        create(url)

        done = tenure(file(tmp_path / "cities.csv", CITIES), "CityIn", url)

        assert (0, "") == (done.code, done.err)
        assert {
            "rows read": 2,
            "created": 2,
            "updated": 0,
            "unchanged": 0,
            "skipped": 0,
            "rejected": 0,
        } == done.counts
        assert [("BER",), ("PAR",)] == ask(url, "SELECT code FROM city ORDER BY code")

    def test_async(self, async_url: str, tmp_path: Path, tenure: Tenure) -> None:
        """A URL of an async driver needs nothing more."""
        create(async_url)

        done = tenure(file(tmp_path / "cities.csv", CITIES), "CityIn", async_url)

        assert (0, "", 2) == (done.code, done.err, done.counts["created"])
        assert 2 == cities(async_url)

    def test_create_tables(self, url: str, tmp_path: Path, tenure: Tenure) -> None:
        """Tables that are missing are created when asked for."""
        source = file(tmp_path / "cities.csv", CITIES)

        assert 0 == tenure(source, "CityIn", url, "--create-tables").code
        assert 2 == cities(url)
        assert [] == ask(url, "SELECT name FROM person")

    def test_create_tables_batches(
        self, url: str, tmp_path: Path, tenure: Tenure
    ) -> None:
        """The first batch commits the tables, and the next ones go on from there."""
        codes = "".join(f"C{n}\n" for n in range(30))
        source = file(tmp_path / "cities.csv", f"code\n{codes}")
        options = ("--create-tables", "--batch-size", "10", "--commit", "batch")

        done = tenure(source, "CityIn", url, *options)

        assert (0, 30) == (done.code, done.counts["created"])
        assert 30 == cities(url)

    def test_unchanged(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """A second run changes nothing, and says so."""
        source = tmp_path / "cities.csv"

        done = tenure(source, "CityIn", shop, "--on-conflict", "update")

        assert (0, 0, 2) == (
            done.code,
            done.counts["created"],
            done.counts["unchanged"],
        )
        assert 2 == cities(shop)

    def test_skip(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """Rows that are there can be left as they are."""
        source = file(tmp_path / "cities.csv", CITIES + "ROM\n")

        done = tenure(source, "CityIn", shop, "--on-conflict", "skip")

        assert (0, 1, 2) == (done.code, done.counts["created"], done.counts["skipped"])

    def test_updated(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """Rows that differ are updated."""
        for age in ("1", "2"):
            source = file(tmp_path / "people.csv", f"name,age,city\nAnn,{age},PAR\n")
            done = tenure(source, "PersonIn", shop, "--on-conflict", "update")

        assert (0, 1) == (done.code, done.counts["updated"])
        assert [("Ann", 2)] == ask(shop, "SELECT name, age FROM person")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("cities.ndjson", '{"code": "PAR"}\n{"code": "BER"}\n'),
            ("cities.jsonl.gz", '{"code": "PAR"}\n{"code": "BER"}\n'),
            ("cities.csv.gz", CITIES),
        ],
    )
    def test_files(
        self, sqlite_url: str, tmp_path: Path, tenure: Tenure, name: str, content: str
    ) -> None:
        """JSON Lines and compressed files are known by their names."""
        path = tmp_path / name
        compressed = gzip.compress(content.encode())
        path.write_bytes(compressed if name.endswith(".gz") else content.encode())

        assert 0 == tenure(path, "CityIn", sqlite_url).code
        assert 2 == cities(sqlite_url)

    @pytest.mark.parametrize(
        ("options", "content"),
        [
            ([], CITIES),
            (["--format", "jsonl"], '{"code": "PAR"}\n{"code": "BER"}\n'),
        ],
    )
    def test_standard_input(
        self, sqlite_url: str, options: list[str], content: str
    ) -> None:
        """Standard input is CSV, unless the format is given."""
        into = ["--into", f"{SHOP}:CityIn", "--url", sqlite_url]

        done = execute("-m", "tenure", "load", "-", *into, *options, input=content)

        assert (0, "", 2) == (done.code, done.err, done.counts["created"])
        assert 2 == cities(sqlite_url)

    def test_null(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """Texts that mean NULL can be named; the empty one is then a text."""
        people = "name,age,city\nAnn,NA,-\n,1,-\n"
        source = file(tmp_path / "people.csv", people)

        assert 0 == tenure(source, "PersonIn", shop, "--null", "NA", "--null", "-").code
        assert [("", 1, None), ("Ann", None, None)] == ask(
            shop, "SELECT name, age, city_id FROM person ORDER BY name"
        )

    def test_missing_is_null(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """A reference to nothing becomes NULL when asked for, and is counted."""
        source = file(tmp_path / "people.csv", "name,age,city\nCid,5,LON\nAnn,1,PAR\n")

        done = tenure(source, "PersonIn", shop, "--on-missing", "null")

        assert 0 == done.code
        assert ["City", "1", "1", "1", "LON", "(1)"] == next(
            line.split() for line in done.out.splitlines() if "LON" in line
        )
        assert [(1,)] == ask(
            shop, "SELECT count(*) FROM person WHERE city_id IS NOT NULL"
        )

    def test_dry_run(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """A dry run tells what would be, and writes nothing."""
        source = file(tmp_path / "cities.csv", "code\nROM\n")

        done = tenure(source, "CityIn", shop, "--dry-run", "--commit", "batch")

        assert (0, 1) == (done.code, done.counts["created"])
        assert "dry run: nothing was written" == done.out.splitlines()[-1]
        assert 2 == cities(shop)

    def test_dry_run_async(
        self, async_url: str, tmp_path: Path, tenure: Tenure
    ) -> None:
        """A dry run writes nothing through an async driver either."""
        create(async_url)
        source = file(tmp_path / "cities.csv", CITIES)

        done = tenure(source, "CityIn", async_url, "--dry-run")

        assert (0, 2) == (done.code, done.counts["created"])
        assert 0 == cities(async_url)

    def test_dry_run_tables(self, url: str, tmp_path: Path, tenure: Tenure) -> None:
        """A dry run does not even leave the tables it created."""
        source = file(tmp_path / "cities.csv", CITIES)

        done = tenure(source, "CityIn", url, "--dry-run", "--create-tables")

        assert (0, 2) == (done.code, done.counts["created"])
        assert 2 == tenure(source, "CityIn", url).code

    def test_json(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """With --json there is one object, and nothing else."""
        source = file(tmp_path / "people.csv", PEOPLE)
        rejects = str(tmp_path / "rejects.jsonl")

        done = tenure(
            source,
            "PersonIn",
            shop,
            *("--json", "--max-errors", "all", "--rejects", rejects),
        )

        assert "" == done.err
        assert 1 == len(done.out.splitlines())
        assert {
            "into": "Person",
            "rows": 4,
            "created": 2,
            "rejected": 2,
            "kept": 2,
            "committed": True,
            "exit": 3,
            "reasons": {"int_parsing": 1, "missing": 1},
            "rejects": rejects,
        }.items() <= done.json.items()
        assert {
            "resolved": 2,
            "missing": 1,
            "created": 0,
            "missing_keys": 1,
        } == done.json["references"]["City"]
        assert done.json["resume"] is None

    def test_create(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """What is missing can be made; the report counts it in a column of its own."""
        source = file(tmp_path / "people.csv", "name,age,city\nAnn,1,XXX\nBob,2,XXX\n")

        done = tenure(source, "PersonIn", shop, "--on-missing", "create")

        assert 0 == done.code
        assert ["references", "resolved", "created", "missing", "keys"] in [
            line.split() for line in done.out.splitlines()
        ]
        assert ["City", "2", "1", "0"] in [
            line.split() for line in done.out.splitlines()
        ]

    def test_start(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """A load in batches that was cut short says where to go on."""
        rows = "".join(f"P{n},{n},\n" for n in range(4))
        source = file(tmp_path / "people.csv", f"name,age,city\n{rows}x,x,\n")
        options = ("--commit", "batch", "--batch-size", "2")

        done = tenure(source, "PersonIn", shop, *options)
        file(tmp_path / "people.csv", f"name,age,city\n{rows}x,1,\n")
        again = tenure(source, "PersonIn", shop, *options, "--start", "6")

        assert (3, 0) == (done.code, again.code)
        assert "all before line 6 is kept" in done.out
        assert [(5,)] == ask(shop, "SELECT count(*) FROM person")

    def test_width(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """No line of the numbers is wider than 80 columns, whatever the keys are."""
        people = "".join(f"Ann{n},1,{'X' * 25}{n % 4}\n" for n in range(9))
        source = file(tmp_path / "people.csv", f"name,age,city\n{people}")

        done = tenure(source, "PersonIn", shop, "--on-missing", "null")

        assert 0 == done.code
        assert 80 >= max(map(len, done.out.splitlines()))
        assert 3 == len(re.findall(r"X\d \(\d\)", done.out))


class TestRejects:
    def test_nothing_is_written(
        self, shop: str, tmp_path: Path, tenure: Tenure
    ) -> None:
        """One bad row is one too many, unless said otherwise."""
        source = file(tmp_path / "people.csv", PEOPLE)

        done = tenure(source, "PersonIn", shop)

        assert 1 == done.code
        assert done.err.startswith("tenure load: 2 of 4 rows were rejected")
        assert 1 == len(done.err.splitlines())
        assert {"rows read": 4, "kept": 0, "rejected": 2} == done.counts
        assert [(0,)] == ask(shop, "SELECT count(*) FROM person")

    def test_tolerated(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """Within the limit good rows are kept; the exit code still tells."""
        source = file(tmp_path / "people.csv", PEOPLE)

        done = tenure(source, "PersonIn", shop, "--max-errors", "2")

        assert (3, "") == (done.code, done.err)
        assert (2, 2) == (done.counts["created"], done.counts["rejected"])
        assert [("Ann",), ("Dora",)] == ask(
            shop, "SELECT name FROM person ORDER BY name"
        )

    def test_file(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """The rejects file says which line, which field and why."""
        source = file(tmp_path / "people.csv", PEOPLE + "Ann,1,PAR\n")
        rejects = tmp_path / "rejects.jsonl"

        done = tenure(source, "PersonIn", shop, "--rejects", str(rejects))

        found = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert 1 == done.code
        assert {
            (3, "age", "int_parsing"),
            (4, "city", "missing"),
            (6, "name", "duplicate"),
        } == {(each["line"], each["field"], each["reason"]) for each in found}
        assert {"name": "Cid", "age": "5", "city": "LON"} == next(
            each["row"] for each in found if each["line"] == 4
        )
        assert f"  all are in {rejects}" == done.out.splitlines()[-1]

    def test_first_are_shown(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """The first few are shown in the order of the source, the rest counted."""
        people = "".join(f"Ann{n},old,PAR\n" for n in range(8))
        source = file(
            tmp_path / "people.csv",
            # The second one is refused last, by the database.
            f"name,age,city\nZoe,1,PAR\nZoe,2,PAR\n{people}",
        )

        done = tenure(source, "PersonIn", shop)

        assert ["3", "4", "5", "6", "7"] == re.findall(
            r"^  line (\d)", done.out, re.MULTILINE
        )
        assert "  and 4 more" in done.out.splitlines()

    def test_batches(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """What was committed before is kept, and counted."""
        codes = "".join(f"C{n}\n" for n in range(25))
        source = file(tmp_path / "cities.csv", f"code\n{codes}C3\n")

        done = tenure(source, "CityIn", shop, "--batch-size", "10", "--commit", "batch")

        assert 3 == done.code
        assert "only 20 were written" in done.err
        assert {"rows read": 26, "kept": 20, "rejected": 1} == done.counts
        assert 22 == cities(shop)

    def test_full_disk(self, sqlite_url: str, tmp_path: Path, tenure: Tenure) -> None:
        """Good rows are not kept when the bad ones cannot be recorded."""
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full here")
        source = file(tmp_path / "cities.csv", CITIES + "PAR\n")
        options = ("--max-errors", "all", "--rejects", "/dev/full")

        done = tenure(source, "CityIn", sqlite_url, *options)

        assert 1 == done.code
        assert (
            "tenure load: cannot write '/dev/full': No space left on device; "
            "nothing was written\n"
        ) == done.err
        assert 0 == cities(sqlite_url)


BROKEN = {
    "zero.py": "x = 1\ny = x / 0\n",
    "typo.py": "class Thing(:\n    pass\n",
    "needs.py": "import no_such_library\n",
    "ends.py": "import sys\nsys.exit('no configuration')\n",
    "empty.py": "",
}


def mistakes() -> Iterator[Any]:
    """Give source, content, model, options, and what the one line must say."""
    cities_in = f"{SHOP}:CityIn"
    into: list[tuple[str, str]] = [
        ("shop:", "--into is written package.module:Name, not 'shop:'"),
        ("no_such:Thing", "--into: there is no module 'no_such' in "),
        ("empty:Thing", "--into: empty has no 'Thing'"),
        ("zero:Thing", "failed: ZeroDivisionError: division by zero (zero.py:2)"),
        ("typo:Thing", "importing typo failed: SyntaxError: invalid syntax (typo.py:1)"),
        ("needs:Thing", "No module named 'no_such_library' (needs.py:1)"),
        ("ends:Thing", "importing ends failed: SystemExit: no configuration"),
        (f"{SHOP}:Base", "'Base' is no model of a mapped class"),
        ("json:loads", "derive it from tenure.Spec[YourClass]"),
    ]  # fmt: skip
    for model, said in into:
        yield pytest.param("c.csv", CITIES, model, [], said, id=f"into-{model}")
    contents: list[tuple[str, str, str | bytes, str]] = [
        ("no-file", "absent.csv", "", "cannot read '"),
        ("no-match", "no-*.csv", "", "no file matches '"),
        ("folder", ".", "", "cannot tell the format of '"),
        ("unknown-column", "c.csv", "code,mayor\nPAR,x\n", "no column 'mayor'"),
        ("missing-column", "c.csv", "mayor\nx\n", "'mayor'"),
        ("twice", "c.csv", "code,code\nPAR,x\n", "names the column 'code' twice"),
        ("empty", "c.csv", "\n", "the CSV source is empty"),
        ("header", "c.csv", b"c\xf6de\nKoeln\n", "say --encoding"),
        ("not-gzip", "c.csv.gz", CITIES, "the source cannot be read at line 1"),
        ("format", "c.txt", CITIES, "cannot tell the format"),
    ]
    for name, source, content, said in contents:
        yield pytest.param(source, content, cities_in, [], said, id=name)
    options: list[tuple[str, list[str], str]] = [
        ("max-errors", ["--max-errors", "some"], "a number of rows or 'all'"),
        ("batch-size", ["--batch-size", "0"], "--batch-size"),
        ("choice", ["--commit", "never"], "--commit"),
        ("unknown", ["--no-such-option"], "no such option"),
        ("rejects", ["--rejects", "no/such/folder/r.jsonl"], "cannot write rejects"),
    ]
    for name, given, said in options:
        yield pytest.param("c.csv", CITIES, cities_in, given, said, id=name)


class TestMistakes:
    @pytest.mark.parametrize(
        ("source", "content", "into", "options", "said"), list(mistakes())
    )
    def test_one_line(
        self,
        sqlite_url: str,
        tmp_path: Path,
        tenure: Tenure,
        monkeypatch: Any,
        source: str,
        content: str | bytes,
        into: str,
        options: list[str],
        said: str,
    ) -> None:
        """A mistake is exit code 2 and one line that says which; nothing is written."""
        for name, code in BROKEN.items():
            file(tmp_path / name, code)
        path = tmp_path / source
        if content:
            path.write_bytes(
                content if isinstance(content, bytes) else content.encode()
            )
        monkeypatch.chdir(tmp_path)
        # The command adds the current directory; afterwards it is gone again.
        monkeypatch.setattr(sys, "path", list(sys.path))

        done = tenure(path, into, sqlite_url, *options)

        assert (2, "") == (done.code, done.out)
        assert 1 == len(done.err.splitlines())
        assert done.err.startswith("tenure load: ")
        assert said in done.err
        assert 0 == cities(sqlite_url)

    @pytest.mark.parametrize(
        ("url", "said"),
        [
            ("shop.db", "the URL cannot be parsed"),
            ("postgresql://me:hush@localhost:port/shop", "the URL cannot be parsed"),
            ("nosuch://me:hush@localhost/shop", "'nosuch'"),
            ("mssql+pyodbc://me:hush@localhost/shop", "'pyodbc'"),
            ("sqlite:////no/such/folder/shop.db", "cannot open sqlite:////no/such"),
        ],
    )
    def test_urls(self, tmp_path: Path, tenure: Tenure, url: str, said: str) -> None:
        """A URL that leads nowhere is exit code 2 and one line, without password."""
        done = tenure(file(tmp_path / "c.csv", CITIES), "CityIn", url)

        assert (2, "", 1) == (done.code, done.out, len(done.err.splitlines()))
        assert done.err.startswith("tenure load: --url: ")
        assert said in done.err
        assert "hush" not in done.err

    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_unreachable(self, tmp_path: Path, tenure: Tenure, driver: str) -> None:
        """A server that does not answer is exit code 2 and one line."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        url = f"postgresql+{driver}://me:hush@127.0.0.1:{port}/shop?password=hush"

        done = tenure(file(tmp_path / "c.csv", CITIES), "CityIn", url)

        assert (2, "", 1) == (done.code, done.out, len(done.err.splitlines()))
        assert done.err.startswith(
            f"tenure load: --url: cannot open postgresql+{driver}://me:***@127.0.0.1:"
        )
        assert "hush" not in done.err

    def test_no_tables(self, url: str, tmp_path: Path, tenure: Tenure) -> None:
        """Tables that are missing are named, also those referred to."""
        source = file(tmp_path / "people.csv", PEOPLE)

        done = tenure(source, "PersonIn", url)

        assert (2, "", 1) == (done.code, done.out, len(done.err.splitlines()))
        assert "has no table city, person; create what is missing" in done.err

    def test_no_key(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """Conflicts cannot be told without a key, and the line says which there are."""
        source = file(tmp_path / "people.csv", "age\n1\n")

        done = tenure(source, "NamelessIn", shop, "--on-conflict", "update")

        assert (2, 1) == (done.code, len(done.err.splitlines()))
        assert "(name)" in done.err

    def test_model_fails(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """A bug in the model is told by its place, not by a stack trace."""
        source = file(tmp_path / "cities.csv", "code\nROM\n")

        done = tenure(source, "BuggyIn", shop)

        assert (2, 1) == (done.code, len(done.err.splitlines()))
        assert re.search(r"KeyError: 'ROM' \(.*shop\.py:\d+\); nothing", done.err)

    def test_json(self, sqlite_url: str, tenure: Tenure) -> None:
        """With --json a mistake is an object as well."""
        done = tenure("absent.csv", "CityIn", sqlite_url, "--json")

        assert (2, 2) == (done.code, done.json["exit"])
        assert (
            "cannot read 'absent.csv': No such file or directory" == done.json["error"]
        )

    @pytest.mark.parametrize("arguments", [[], ["load"], ["load", "x.csv"], ["laod"]])
    def test_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        """What is missing on the command line is one line, too."""
        assert 2 == main(arguments)

        out, err = capsys.readouterr()
        assert ("", 1) == (out, len(err.splitlines()))
        assert re.match(r"tenure( load)?: [a-z].*; see tenure( load)? --help$", err)

    def test_source_is_rejects(self, shop: str, tmp_path: Path, tenure: Tenure) -> None:
        """A source cannot be overwritten by what is rejected from it."""
        source = file(tmp_path / "cities.csv", CITIES)

        done = tenure(source, "CityIn", shop, "--rejects", str(source))

        assert 2 == done.code
        assert CITIES == source.read_text()

    def test_standard_input_is_rejects(self, sqlite_url: str, tmp_path: Path) -> None:
        """Neither can one that the shell has opened."""
        create(sqlite_url)
        source = file(tmp_path / "cities.csv", CITIES)
        into = ["--into", f"{SHOP}:CityIn", "--url", sqlite_url]

        with source.open() as stdin:
            done = execute(
                "-m",
                "tenure",
                "load",
                "-",
                *into,
                "--rejects",
                str(source),
                stdin=stdin,
            )

        assert 2 == done.code
        assert CITIES == source.read_text()

    def test_extra(self) -> None:
        """Without typer there is one line that says what to install."""
        code = "import sys; sys.modules['typer'] = None; import tenure.cli as c; "

        done = execute("-c", f"{code} sys.exit(c.main())")

        assert (2, "", 1) == (done.code, done.out, len(done.err.splitlines()))
        assert "pip install 'tenure[cli]'" in done.err


class TestProgram:
    def test_names(self) -> None:
        """The script and the module are the same program."""
        script = Path(sys.executable).with_name("tenure")
        if not script.exists():
            pytest.skip("tenure is not installed, only on the path")
        command = [str(script), "load", "--help"]
        told = subprocess.run(command, capture_output=True, text=True, check=True)

        assert told.stdout == execute("-m", "tenure", "load", "--help").out

    def test_current_directory(self, tmp_path: Path) -> None:
        """Models are found in the current directory."""
        shop_here = (ROOT / "tests" / "fixtures" / "shop.py").read_text()
        file(tmp_path / "here.py", shop_here)
        file(tmp_path / "cities.csv", CITIES)
        options = ["--into", "here:CityIn", "--url", "sqlite:///shop.db"]

        # As the script does: -m alone would add the directory by itself.
        done = execute(
            *("-P", "-m", "tenure", "load", "cities.csv", *options, "--create-tables"),
            cwd=tmp_path,
        )

        assert (0, "") == (done.code, done.err)
        assert 2 == cities(f"sqlite:///{tmp_path / 'shop.db'}")

    def test_reader_leaves(self, sqlite_url: str, tmp_path: Path) -> None:
        """It is no failure when nobody reads the report to its end."""
        source = file(tmp_path / "cities.csv", CITIES)
        reader, writer = os.pipe()
        os.close(reader)

        with Program(sqlite_url, str(source), stdout=writer) as program:
            os.close(writer)
            done = program.end()

        assert (0, "") == (done.code, done.err)
        assert 2 == cities(sqlite_url)


class Program:
    """``tenure load`` in a process of its own, which reads what a test writes."""

    # Where tests run in the background, SIGINT comes ignored.
    CODE = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from tenure.cli import main; sys.exit(main())"
    )

    def __init__(
        self,
        url: str,
        source: str,
        *options: str,
        stdout: int = subprocess.PIPE,
        inherits: int | None = None,
    ) -> None:
        arguments = ["load", source, "--into", f"{SHOP}:CityIn", "--url", url]
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE, *arguments, *options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=subprocess.PIPE,
            pass_fds=() if inherits is None else (inherits,),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with suppress(BrokenPipeError), self.process:
            pass

    def write(self, codes: range, *, to: IO[bytes] | None = None) -> None:
        """Write cities; when this returns all but the last few have been read."""
        stream = to or self.process.stdin
        assert stream is not None
        header = b"code\n" if codes.start == 0 else b""
        stream.write(header + b"".join(b"C%d\n" % n for n in codes))
        stream.flush()

    @property
    def unread(self) -> int:
        """Bytes of its standard input that it has not taken yet."""
        assert self.process.stdin is not None
        found = fcntl.ioctl(self.process.stdin, termios.FIONREAD, bytes(4))
        return int.from_bytes(found, sys.byteorder)

    def end(self) -> Done:
        """Close its standard input, and wait for it to end."""
        out, err = self.process.communicate(timeout=60)
        return Done(self.process.returncode, (out or b"").decode(), err.decode())


SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


class TestSignals:
    @SIGNALS
    def test_sync(self, shop: str, number: signal.Signals) -> None:
        """A signal in the middle leaves the database as it was."""
        with Program(shop, "-", "--batch-size", "1000") as program:
            program.write(range(MANY))
            program.process.send_signal(number)
            done = program.end()

        assert (130, "") == (done.code, done.out)
        assert "tenure load: interrupted; nothing was written\n" == done.err
        assert 2 == cities(shop)

    @SIGNALS
    def test_async(self, async_url: str, number: signal.Signals) -> None:
        """Also while an event loop waits for a pipe, which gives it no say."""
        create(async_url)
        with Program(async_url, "-", "--batch-size", "1000") as program:
            program.write(range(MANY))
            program.process.send_signal(number)
            done = program.end()

        assert (130, "") == (done.code, done.out)
        assert "tenure load: interrupted; nothing was written\n" == done.err
        assert 0 == cities(async_url)

    def test_waiting(self, async_url: str) -> None:
        """The signal alone is enough: nothing more has to arrive."""
        create(async_url)
        with Program(async_url, "-") as program:
            # Less than a batch, so it goes on to wait for the rest of that.
            program.write(range(100))
            while program.unread:
                assert program.process.poll() is None
            program.process.send_signal(signal.SIGTERM)

            # Its standard input is still open.
            assert 130 == program.process.wait(60)

    def test_pipe(self, sqlite_url: str) -> None:
        """A path that leads to a pipe is waited for as standard input is."""
        reader, writer = os.pipe()
        options = ("--format", "csv", "--batch-size", "1000")
        program = Program(sqlite_url, f"/dev/fd/{reader}", *options, inherits=reader)
        os.close(reader)
        with program, os.fdopen(writer, "wb") as stream:
            program.write(range(MANY), to=stream)
            program.process.send_signal(signal.SIGINT)
            done = program.end()

        assert (130, 1) == (done.code, len(done.err.splitlines()))
        assert 0 == cities(sqlite_url)

    def test_batches(self, shop: str) -> None:
        """What was committed by batches is kept, and the line says how much."""
        options = ("--batch-size", "1000", "--commit", "batch")
        with Program(shop, "-", *options) as program:
            program.write(range(MANY))
            program.process.send_signal(signal.SIGINT)
            done = program.end()

        found = re.fullmatch(
            r"tenure load: interrupted; (\d+),000 rows were kept; "
            r"continue with --start (\d+)\n",
            done.err,
        )
        assert found is not None
        assert cities(shop) == int(found[1]) * 1000 + 2
        # The first line is the header.
        assert int(found[1]) * 1000 + 2 == int(found[2])

    def test_new_tables(self, sqlite_url: str, tmp_path: Path) -> None:
        """Tables created for a load go with it."""
        url = f"sqlite:///{tmp_path / 'new.db'}"
        with Program(url, "-", "--create-tables", "--batch-size", "1000") as program:
            program.write(range(MANY))
            program.process.send_signal(signal.SIGINT)
            done = program.end()

        assert 130 == done.code
        assert [] == ask(url, "SELECT name FROM sqlite_master")

    @pytest.mark.postgresql
    @SIGNALS
    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_locked(
        self, mortal: PostgreSQL, tmp_path: Path, driver: str, number: signal.Signals
    ) -> None:
        """A signal while the database itself lets it wait, amid a COPY."""
        database = f"locked_{driver}_{number}"
        mortal.create_database(database)
        url = mortal.url(driver, database)
        create(url)
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        engine = create_engine(sync(url), poolclass=NullPool)
        source = str(file(tmp_path / "cities.csv", CITIES))
        with engine.connect() as connection, Program(url, source) as program:
            connection.exec_driver_sql("LOCK TABLE city IN EXCLUSIVE MODE")
            while not connection.exec_driver_sql(waiting).scalar():
                assert program.process.poll() is None
            program.process.send_signal(number)
            done = program.end()

        assert (130, "") == (done.code, done.out)
        assert "tenure load: interrupted; nothing was written\n" == done.err
        assert 0 == cities(url)


KEPT = re.compile(r"; (?:none was kept|([\d,]+) rows were kept, all before .*)\n$")


@pytest.fixture(scope="module")
def mortal(databases: Databases) -> Iterator[PostgreSQL]:
    """Give a server that a test may kill."""
    try:
        # Durable: what it has committed must be there after its death.
        server = PostgreSQL.create(durable=True)
    except ServerUnavailable as error:
        databases.lacks("postgresql", error)
    with server:
        yield server


class TestDatabaseFails:
    @pytest.mark.postgresql
    @pytest.mark.parametrize("commit", ["once", "batch"])
    @pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
    def test_server_dies(self, mortal: PostgreSQL, driver: str, commit: str) -> None:
        """A server that dies is one line, which says truly how much was kept."""
        database = f"shop_{driver}_{commit}"
        mortal.create_database(database)
        url = mortal.url(driver, database)
        create(url)
        options = ("--batch-size", "1000", "--commit", commit)
        with Program(url, "-", *options) as program:
            program.write(range(MANY))
            mortal.kill()
            with suppress(BrokenPipeError):
                program.write(range(MANY, 2 * MANY))
            done = program.end()
        mortal.start()

        code = 1 if commit == "once" else 3
        assert (code, "", 1) == (done.code, done.out, len(done.err.splitlines()))
        found = re.search(KEPT, done.err)
        assert found is not None
        assert int((found[1] or "0").replace(",", "")) == cities(url)
        assert ("once" == commit) is (0 == cities(url))

    @pytest.mark.parametrize("commit", ["once", "batch"])
    def test_full_disk(self, sqlite_url: str, tmp_path: Path, commit: str) -> None:
        """A disk that is full is one line, which says truly how much was kept."""
        codes = "".join(f"C{n}\n" for n in range(MANY))
        source = file(tmp_path / "cities.csv", f"code\n{codes}")
        # No file of the process may grow beyond 500 KiB: what a full disk looks like
        # without one. The unit is half a KiB.
        shell = ["sh", "-c", 'ulimit -f 1000 && exec "$@"', "sh"]
        load = ["load", str(source), "--into", f"{SHOP}:CityIn", "--url", sqlite_url]
        options = ["--batch-size", "1000", "--commit", commit]

        done = subprocess.run(
            [*shell, sys.executable, "-m", "tenure", *load, *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

        assert (1 if commit == "once" else 3, "", 1) == (
            done.returncode,
            done.stdout,
            len(done.stderr.splitlines()),
        )
        found = re.search(KEPT, done.stderr)
        assert found is not None
        assert int((found[1] or "0").replace(",", "")) == cities(sqlite_url)
        assert ("once" == commit) is (0 == cities(sqlite_url))

    def test_no_room_for_rows_that_wait(self, tmp_path: Path) -> None:
        """Nor is the temporary file of rows that wait taken for the database."""
        places = "".join(f"P{n},P{n + 1}\n" for n in range(40_000))
        source = file(tmp_path / "places.csv", f"name,within\n{places}")
        model = """
            from sqlalchemy import ForeignKey
            from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
            from tenure import Ref, Spec

            class Base(DeclarativeBase): pass

            class Place(Base):
                __tablename__ = "place"
                id: Mapped[int] = mapped_column(primary_key=True)
                name: Mapped[str] = mapped_column(unique=True)
                within_id: Mapped[int | None] = mapped_column(ForeignKey("place.id"))
                within: Mapped["Place | None"] = relationship(remote_side=[id])

            class PlaceIn(Spec[Place]):
                name: str
                within: Ref[Place] | None
        """
        file(tmp_path / "places.py", textwrap.dedent(model))
        shell = ["sh", "-c", 'ulimit -f 400 && exec "$@"', "sh"]
        load = ["load", str(source), "--into", "places:PlaceIn", "--create-tables"]
        options = ["--url", "sqlite://", "--batch-size", "1000"]

        done = subprocess.run(
            [*shell, sys.executable, "-m", "tenure", *load, *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

        assert (1, "") == (done.returncode, done.stdout)
        assert re.fullmatch(
            "tenure load: rows that wait for others cannot be kept in a temporary file: "
            ".*; nothing was written\n",
            done.stderr,
        )

    def test_locked(self, sqlite_url: str, tmp_path: Path, tenure: Tenure) -> None:
        """A database that another program writes to is one line."""
        source = file(tmp_path / "cities.csv", CITIES)
        engine = create_engine(sqlite_url, poolclass=NullPool)
        with engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

            done = tenure(source, "CityIn", f"{sqlite_url}?timeout=0")

        assert (1, 1) == (done.code, len(done.err.splitlines()))
        assert "database is locked" in done.err


def test_handlers(sqlite_url: str, tmp_path: Path, tenure: Tenure) -> None:
    """A signal handler of the caller's is there again afterwards."""
    before = signal.getsignal(signal.SIGTERM)

    tenure(file(tmp_path / "cities.csv", CITIES), "CityIn", sqlite_url)

    assert before is signal.getsignal(signal.SIGTERM)
