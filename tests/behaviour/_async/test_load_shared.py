"""Loads whose rows are read and validated by processes, and written by one transaction."""

from __future__ import annotations

import csv
import json
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tenure import (
    AsyncSession,
    LoadError,
    LoadReport,
    RejectedRowsError,
    Spec,
    spec_of,
)
from tests.fixtures.models import Author, Book, Node
from tests.fixtures.shared import (
    AuthorIn,
    BookIn,
    NodeIn,
    TitledIn,
    UnsendableIn,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]

COLUMNS = ("isbn", "title", "pages", "author", "editor")
#: One of each kind: missing, twice, invalid, broken, too wide.
ROWS = [
    ("1", "one", "10", "a", ""),
    ("2", "two", "", "b", "a"),
    ("3", "three", "x", "a", ""),
    ("4", "four\nlines", "", "zz", ""),
    ("5", 'with "quotes"', "5", "b", "yy"),
    ("1", "again", "", "a", ""),
    ("6", "six", "6", "zz", "zz"),
    ("7", "seven", "7", "a", "b"),
    ("8", "eight", "8", "a", "b", "more"),
    ("9", "", "", "b", ""),
    ("2", "again", "1", "b", ""),
]


def written(path: Path, rows: Any = ROWS) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    return path


async def load(
    session: AsyncSession, source: Any, into: Any = BookIn, **options: Any
) -> LoadReport:
    async with session.bulk() as bulk:
        return await bulk.load(source, into, **options)


async def stored(session: AsyncSession) -> list[Any]:
    rows = await session.execute(
        select(Book.isbn, Book.title, Book.pages, Book.author_id, Book.editor_id)
    )
    return sorted(map(tuple, rows))


def told(report: LoadReport) -> dict[str, Any]:
    """What has to be equal, whoever has done it."""
    found = report.as_dict()
    for name in ("seconds", "rows_per_second"):
        del found[name]
    found["missing"] = {
        name: sorted(count.missing_keys.items())
        for name, count in report.references.items()
    }
    return found


@pytest.fixture
async def authors(session: AsyncSession) -> None:
    session.add_all([Author(code="a"), Author(code="b")])
    await session.commit()


@pytest.fixture
def workers(processes: Executor) -> dict[str, Any]:
    return {"executor": processes, "parts": 4}


@pytest.mark.usefixtures("authors")
class TestEqual:
    @pytest.mark.parametrize("into", [BookIn, TitledIn])
    @pytest.mark.parametrize(
        "options",
        [
            {"on_missing": "reject"},
            {"on_missing": "null", "on_conflict": "skip"},
            {"on_missing": "create", "on_conflict": "update"},
        ],
        ids=["reject", "null", "create"],
    )
    async def test_once(
        self,
        session: AsyncSession,
        workers: dict[str, Any],
        tmp_path: Path,
        options: dict[str, Any],
        into: Any,
    ) -> None:
        """The report, the rejects file and the rows are those of one process."""
        path = written(tmp_path / "books.csv")
        mine, theirs = tmp_path / "mine.jsonl", tmp_path / "theirs.jsonl"
        options |= {"max_errors": None, "dry_run": True}

        expected = await load(session, path, into, rejects=str(mine), **options)
        shared = await load(
            session, path, into, rejects=str(theirs), **options, **workers
        )
        assert expected.rejected > 1
        assert told(expected) == told(shared)
        assert mine.read_text() == theirs.read_text()

        del options["dry_run"]
        await load(session, path, into, **options)
        rows = await stored(session)
        for book in await session.scalars(select(Book)):
            await session.delete(book)
        await session.commit()
        await load(session, path, into, **options, **workers)
        names = [(isbn, title, pages) for isbn, title, pages, *_ in rows]
        assert names == [
            (isbn, title, pages) for isbn, title, pages, *_ in await stored(session)
        ]

    async def test_batches(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """A load that is cut short resumes where one process would."""
        path = written(tmp_path / "books.csv")
        options: dict[str, Any] = {"commit": "batch", "batch_size": 1}
        reports = []
        for shared in ({}, workers):
            with pytest.raises(RejectedRowsError) as raised:
                await load(session, path, **options, **shared, max_errors=2)
            report: Any = raised.value.report
            reports.append((report.kept, report.resume, report.rejected))
            for book in await session.scalars(select(Book)):
                await session.delete(book)
            await session.commit()

        assert reports[0] == reports[1]

    async def test_several_files(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        paths = [
            written(tmp_path / f"{n}.csv", ROWS[n * 4 : n * 4 + 4]) for n in range(3)
        ]
        options: dict[str, Any] = {"max_errors": None, "dry_run": True}

        expected = await load(session, paths, **options)
        assert {str(path) for path in paths} == {r.file for r in expected.rejects}
        assert told(expected) == told(await load(session, paths, **options, **workers))

    async def test_errors_in_order(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """What is wrong with a later file does not hide what came before."""
        paths = [written(tmp_path / f"{n}.csv", ROWS[:4]) for n in range(2)]
        paths[1].write_text("isbn,other\n1,2\n")
        for options in ({}, workers):
            with pytest.raises(
                RejectedRowsError, match=r"first at line \d of .*0\.csv"
            ):
                await load(session, paths, batch_size=1, **options)

    async def test_names(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """Rejected rows are read again as they were, whatever was guessed."""
        loose, guessed = tmp_path / "loose.csv", tmp_path / "guessed.csv"
        loose.write_text("CODE , Name\n" + "a,A\nc,C\n" * 3)
        guessed.write_text("code;name\n" + "a;A\nc;C\n" * 3)
        common: dict[str, Any] = {"max_errors": None, "dry_run": True}
        for path, options in ((loose, {"header": "loose"}), (guessed, {})):
            expected = await load(session, path, AuthorIn, **options, **common)
            shared = await load(session, path, AuthorIn, **options, **common, **workers)
            assert expected.rejected
            assert told(expected) == told(shared)

    async def test_objects(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """Rows that set other fields than those before keep their order."""
        path = tmp_path / "authors.jsonl"
        rows = [
            {"code": f"{'a' if n % 3 else n}"} | ({"name": "N"} if n % 2 else {})
            for n in range(20)
        ]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        common: dict[str, Any] = {"max_errors": None, "dry_run": True, "batch_size": 3}
        expected = await load(session, path, AuthorIn, **common)
        shared = await load(session, path, AuthorIn, **common, **workers)
        assert expected.rejected
        assert told(expected) == told(shared)

    async def test_json_lines(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "books.jsonl"
        rows = [dict(zip(COLUMNS, row, strict=False)) for row in ROWS]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows) + "[1]\n{\n")
        options: dict[str, Any] = {"max_errors": None, "dry_run": True}
        for into in (BookIn, TitledIn):
            expected = await load(session, path, into, **options)
            shared = await load(session, path, into, **options, **workers)
            assert told(expected) == told(shared)

    async def test_start(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """What lies before is read by nobody."""
        path = written(tmp_path / "books.csv")
        options: dict[str, Any] = {"max_errors": None, "dry_run": True}
        for start in (2, 7, 9, 13, 99):
            expected = await load(session, path, start=start, **options)
            shared = await load(session, path, start=start, **options, **workers)
            assert told(expected) == told(shared)

    async def test_generators(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """What can be gone through once is meant for all parts."""
        path = tmp_path / "authors.csv"
        path.write_text("code,name,email\na,NA,x\nb,B,-\n")
        for options in ({}, workers):
            report = await load(
                session,
                path,
                AuthorIn,
                on_conflict="update",
                update_fields=(name for name in ["name"]),
                null=(text for text in ["NA", "-"]),
                ignore=(name for name in ["email"]),
                **options,
            )
            assert 2 == report.updated + report.unchanged
            found = await session.execute(select(Author.code, Author.name))
            assert {("a", None), ("b", "B")} == set(map(tuple, found))

    async def test_mapped_class(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        path = tmp_path / "authors.csv"
        path.write_text("code,name\nc,C\nd,\n")

        assert 2 == (await load(session, path, Author, **workers)).created
        report = await load(
            session, path, spec_of(Author), on_conflict="skip", **workers
        )
        assert 2 == report.skipped


class TestTrees:
    async def test_children_first(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """Rows may name rows of other parts, before or after them."""
        path = tmp_path / "nodes.csv"
        lines = [f"n{n},n{n + 1}\n" for n in range(40)]
        path.write_text("".join(["code,parent\n", *lines, "n40,\n"]))

        report = await load(session, path, NodeIn, batch_size=3, **workers)

        assert 41 == report.created
        found = await session.scalars(select(Node.parent_id))
        assert 1 == list(found).count(None)


class TestRefused:
    async def test_options(self, session: AsyncSession, tmp_path: Path) -> None:
        path = tmp_path / "authors.csv"
        path.write_text("code\nc\n")
        for options, message in (
            ({"commit": "part"}, "commit='part' is for loads over workers"),
            ({"parts": 2}, "parts is for loads over workers"),
            ({"resume": "x"}, "resume is for loads over workers"),
            ({"executor": 4}, "4 has none"),
        ):
            with pytest.raises(LoadError, match=message):
                await load(session, path, AuthorIn, **options)

    async def test_sources(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """What nobody else can read is refused before anything is done."""
        with pytest.raises(LoadError, match="give the path of a file"):
            await load(session, [{"code": "a"}], AuthorIn, **workers)

    async def test_local_model(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        class LocalIn(Spec[Author]):
            code: str

        path = tmp_path / "authors.csv"
        path.write_text("code\nc\n")
        with pytest.raises(LoadError, match="at the top of a module") as raised:
            await load(session, path, LocalIn, **workers)
        assert "\n" not in str(raised.value)

    async def test_values(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """What a model makes of a row has to reach the caller."""
        path = tmp_path / "authors.csv"
        path.write_text("code,name\nc,C\n")
        with pytest.raises(LoadError, match="read cannot be sent: ") as raised:
            await load(session, path, UnsendableIn, **workers)
        assert "\n" not in str(raised.value)

    async def test_shut_down(self, session: AsyncSession, tmp_path: Path) -> None:
        path = tmp_path / "authors.csv"
        path.write_text("code\nc\n")
        pool = ThreadPoolExecutor(1)
        pool.shutdown()
        with pytest.raises(LoadError, match="the executor takes no work: cannot sched"):
            await load(session, path, AuthorIn, executor=pool)

    async def test_columns(
        self, session: AsyncSession, workers: dict[str, Any], tmp_path: Path
    ) -> None:
        """What is wrong with the source as a whole is found by the caller."""
        path = tmp_path / "authors.csv"
        path.write_text("code,nmae\nc,C\n")
        with pytest.raises(LoadError, match="knows no column 'nmae'"):
            await load(session, path, AuthorIn, **workers)

    async def test_threads(self, session: AsyncSession, tmp_path: Path) -> None:
        """Any executor will do."""
        path = tmp_path / "authors.csv"
        path.write_text("code\n" + "".join(f"c{n}\n" for n in range(50)))
        with ThreadPoolExecutor(2) as pool:
            report = await load(session, path, AuthorIn, executor=pool, parts=5)
        assert 50 == report.created
