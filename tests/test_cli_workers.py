"""``tenure load --workers`` and ``--dask``: one load, several processes."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask.distributed import LocalCluster
from sqlalchemy import create_engine, insert
from sqlalchemy.pool import NullPool

from tenure import Database
from tenure.cli import main
from tests.fixtures.shop import Base, City
from tests.test_cli import Program, ask, cities, file

PARTS = ("--commit", "part", "--parts", "4", "--workers", "2")


@pytest.fixture
def shop_url(postgresql_url: str) -> str:
    with Database(postgresql_url) as db:
        db.create_all(Base.metadata)
    return postgresql_url


@pytest.fixture
def source(tmp_path: Path) -> str:
    codes = "".join(f"C{n}\n" for n in range(100))
    return str(file(tmp_path / "cities.csv", f"code\n{codes}"))


def load(url: str, source: str, *options: str) -> int:
    into = ("--into", "tests.fixtures.shop:CityIn")
    return main(["load", source, *into, "--url", url, *options])


class TestParts:
    def test_report(self, shop_url: str, source: str, capsys: Any) -> None:
        assert 0 == load(shop_url, source, *PARTS, "--json")

        out, err = capsys.readouterr()
        told = json.loads(out)
        assert "" == err
        assert (100, True) == (told["created"], told["committed"])
        assert [True] * 4 == [part["done"] for part in told["parts"]]
        assert 100 == cities(shop_url)

    def test_resume(
        self, shop_url: str, source: str, tmp_path: Path, capsys: Any
    ) -> None:
        """What failed says how to go on, and that does it."""
        rejects = ("--rejects", str(tmp_path / "rejects.jsonl"))
        with create_engine(shop_url, poolclass=NullPool).begin() as connection:
            connection.execute(insert(City).values(code="C99"))

        assert 3 == load(shop_url, source, *PARTS, *rejects)
        out, err = capsys.readouterr()
        assert re.search(r"^tenure load: 1 of \d+ rows were rejected", err)
        found = re.search(
            r"(\d) of its parts are committed, with (\d+) rows; load the others with "
            r"the same options and --resume (\w{32})",
            out,
        )
        assert found is not None
        assert int(found[2]) + 1 == cities(shop_url)

        resume = ("--resume", found[3], "--max-errors", "1")
        assert 3 == load(shop_url, source, *PARTS, *rejects, *resume)
        assert 100 == cities(shop_url)

    def test_new_tables(self, postgresql_url: str, source: str, capsys: Any) -> None:
        assert 0 == load(postgresql_url, source, *PARTS, "--create-tables")
        assert 100 == cities(postgresql_url)

    def test_once(self, sqlite_shop: str, source: str, capsys: Any) -> None:
        """On SQLite, workers validate."""
        assert 0 == load(sqlite_shop, source, "--workers", "2", "--parts", "3")
        assert 100 == cities(sqlite_shop)
        assert 2 == load(sqlite_shop, source, *PARTS)
        assert "say --commit 'once'" in capsys.readouterr().err
        for options in (("--commit", "part"), ("--parts", "2"), ("--resume", "x")):
            assert 2 == load(sqlite_shop, source, *options)
            assert "with --workers or --dask" in capsys.readouterr().err

    def test_mapped_class(self, sqlite_shop: str, source: str) -> None:
        options = ("--into", "tests.fixtures.shop:City", "--workers", "2")
        assert 0 == load(sqlite_shop, source, *options, "--parts", "2")
        assert 100 == cities(sqlite_shop)


@pytest.fixture
def sqlite_shop(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    with Database(url) as db:
        db.create_all(Base.metadata)
    return url


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    make: Any = LocalCluster
    with make(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.xdist_group("dask")
class TestDask:
    def test_parts(self, shop_url: str, source: str, cluster: str, capsys: Any) -> None:
        options = ("--dask", cluster, "--parts", "4")
        assert 0 == load(shop_url, source, *options, "--commit", "part")
        assert 100 == cities(shop_url)

    def test_unreachable(self, sqlite_shop: str, source: str, capsys: Any) -> None:
        assert 2 == load(sqlite_shop, source, "--dask", "tcp:nobody")
        assert 2 == load(
            sqlite_shop, source, "--dask", "tcp://127.0.0.1:1", "--workers", "2"
        )
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("tenure load: --dask: cannot reach tcp:nobody: ")
        assert "tenure load: --workers and --dask are two ways" in second


@pytest.mark.postgresql
def test_interrupted(postgresql_url: str, source: str, capsys: Any) -> None:
    """A signal ends the transactions of the workers; the rest can be loaded."""
    with Database(postgresql_url) as db:
        db.create_all(Base.metadata)
    engine = create_engine(postgresql_url, poolclass=NullPool)
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    done = "SELECT count(*) FROM tenure_parts WHERE part >= 0"
    with engine.connect() as other, Program(postgresql_url, source, *PARTS) as program:
        # A worker waits for what becomes of this row; the others go on.
        other.execute(insert(City).values(code="C99"))
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as eye:
            while not eye.exec_driver_sql(waiting).scalar():
                assert program.process.poll() is None
            while eye.exec_driver_sql(done).scalar() != 3:
                assert program.process.poll() is None
            program.process.send_signal(signal.SIGINT)
            given_up = "SELECT rejects FROM tenure_parts WHERE part = -1"
            while eye.exec_driver_sql(given_up).scalar() != "given up":
                assert program.process.poll() is None
        other.rollback()
        ended = program.end()

    assert (130, "") == (ended.code, ended.out)
    found = re.search(
        r"^tenure load: interrupted; 3 of its parts .* (\w{32})$", ended.err
    )
    assert found is not None, ended.err
    before = cities(postgresql_url)
    assert 0 < before < 100
    active = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE '%transaction%'"
    assert [(0,)] == ask(postgresql_url, active)
    assert 0 == load(postgresql_url, source, *PARTS, "--resume", found[1])
    assert 100 == cities(postgresql_url)
