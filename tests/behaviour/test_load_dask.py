"""Loads over a real cluster of Dask: a scheduler, and workers that are processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dask.distributed import Client, LocalCluster
from sqlalchemy import select

from tenure import Database, LoadError
from tests.fixtures.models import Author, Base, Book
from tests.fixtures.shared import AuthorIn, BookIn, DeadlyIn

pytestmark = [pytest.mark.xdist_group("dask")]


@pytest.fixture(scope="module")
def client(flags: Path) -> Iterator[Any]:
    connect: Any = Client
    make: Any = LocalCluster
    with (
        make(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            host="127.0.0.1",
        ) as cluster,
        connect(cluster, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture
def db(server_url: str) -> Iterator[Database]:
    with Database(server_url) as db:
        db.create_all(Base.metadata)
        yield db


def codes(db: Database) -> list[str]:
    with db.session_manager() as session:
        return list(session.scalars(select(Author.code).order_by(Author.code)))


@pytest.mark.parametrize("commit", ["once", "part"])
def test_as_one_process(db: Database, client: Any, tmp_path: Path, commit: Any) -> None:
    """The same rows, references and counts."""
    with db.session_manager(auto_commit=True) as session:
        session.add_all([Author(code="a"), Author(code="b")])
    path = tmp_path / "books.csv"
    rows = [f"{n},title {n},{n},{'abz'[n % 3]},\n" for n in range(60)]
    path.write_text("".join(["isbn,title,pages,author,editor\n", *rows]))
    found = []
    for options in ({}, {"executor": client.get_executor(pure=False), "parts": 5}):
        with db.session_manager() as session, session.bulk() as bulk:
            shared: Any = {**options, "commit": commit} if options else {}
            report = bulk.load(path, BookIn, max_errors=None, **shared)
        with db.session_manager(auto_commit=True) as session:
            books = session.execute(
                select(Book.isbn, Book.title, Author.code).join(Book.author)
            )
            found.append(
                (
                    sorted(map(tuple, books)),
                    report.references,
                    (report.created, report.rejected, report.kept),
                    sorted(reject.line for reject in report.rejects),
                )
            )
            for book in session.scalars(select(Book)):
                session.delete(book)

    assert 40 == len(found[0][0])
    assert found[0] == found[1]


def test_death(db: Database, client: Any, flags: Path, tmp_path: Path) -> None:
    """A worker that dies is replaced by the cluster, and its part loaded once."""
    path = tmp_path / "authors.csv"
    names = [f"c{n:02}" for n in range(40)]
    path.write_text("\n".join(["code", *names, "die1"]))
    (flags / "die1").touch()

    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(
            path,
            DeadlyIn,
            executor=client.get_executor(pure=False),
            commit="part",
            parts=4,
        )

    assert not (flags / "die1").exists()
    assert 41 == report.kept == len(codes(db))


def test_model_of_the_caller(db: Database, client: Any, tmp_path: Path) -> None:
    """What workers cannot import is refused, though Dask could send it."""

    class LocalIn(AuthorIn):
        pass

    path = tmp_path / "authors.csv"
    path.write_text("code\nc\n")
    with (
        db.session_manager() as session,
        session.bulk() as bulk,
        pytest.raises(LoadError, match="at the top of a module"),
    ):
        bulk.load(path, LocalIn, executor=client.get_executor(pure=False))
