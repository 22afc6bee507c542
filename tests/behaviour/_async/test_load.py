"""Loading: what becomes of the rows of a source, and of those that are bad."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.ext.asyncio import create_async_engine

from tenure import (
    AsyncSession,
    Database,
    Key,
    LoadError,
    LoadReport,
    Ref,
    RejectedRowsError,
    Spec,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.models import (
    Account,
    Author,
    Base,
    Book,
    Colour,
    Country,
    Party,
    Person,
    Region,
    Sample,
    Seat,
    Site,
    Tag,
    Use,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class BookIn(Spec[Book]):
    isbn: str
    title: str
    pages: int | None = None
    barcode: int | None = None
    author: Ref[Author]
    editor: Ref[Author] | None = None


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None
    email: str | None = None


class SampleIn(Spec[Sample]):
    backwards: str | None = None
    colour: Colour | None = None
    token: uuid.UUID | None = None
    moment: datetime | None = None
    mark: str | None = None
    label: str
    price: Decimal | None = None
    ratio: float | None = None
    whole: int | None = None
    raw: bytes | None = None


class CountryIn(Spec[Country]):
    code: str
    name: str | None = None


class TagIn(Spec[Tag]):
    name: str
    note: str | None = None


class AccountIn(Spec[Account]):
    code: str
    balance: int


class PersonIn(Spec[Person]):
    code: str
    name: str | None = None
    born: int | None = None


def written(folder: Path, *lines: str, name: str = "source.csv") -> Path:
    path = folder / name
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def rejected(path: Path) -> list[tuple[int, str, str]]:
    """Read a rejects file: line, field and reason of each row."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [(row["line"], row["field"], row["reason"]) for row in rows]


def counts(report: LoadReport) -> tuple[int, int, int, int, int, int]:
    """Rows, created, updated, unchanged, skipped, rejected; what is kept adds up."""
    parts = (
        report.created,
        report.updated,
        report.unchanged,
        report.skipped,
        report.rejected,
    )
    assert sum(parts) == report.rows or not report.committed
    return report.rows, *parts


async def count(session: AsyncSession, entity: type[Base]) -> int:
    found = await session.scalars(select(func.count()).select_from(entity))
    return found.one()


async def books(session: AsyncSession) -> list[tuple[Any, ...]]:
    rows = await session.execute(
        text(
            "SELECT b.isbn, b.title, a.code FROM book b "
            "JOIN author a ON a.id = b.author_id ORDER BY b.isbn"
        )
    )
    return [tuple(row) for row in rows]


def bare(session: AsyncSession) -> Any:
    """Give the session that callbacks are called in."""
    return getattr(session, "sync_session", session)


async def two_authors(session: AsyncSession) -> None:
    session.add_all([Author(code="a1"), Author(code="a2")])
    await session.commit()


LIBRARY = (
    "isbn,title,author,editor",
    "1,One,a1,a2",
    "2,Two,a1,",
    "3,Three,a2,zz",
    "4,Four,zz,a1",
    "5,,a1,a1",
)


class TestCounts:
    async def test_created(self, session: AsyncSession, tmp_path: Path) -> None:
        """Good rows become rows, the others are rejected with their reasons."""
        await two_authors(session)
        source = written(tmp_path, *LIBRARY)
        async with session.bulk() as bulk:
            report = await bulk.load(source, BookIn, max_errors=None)

        assert (5, 2, 0, 0, 0, 3) == counts(report)
        assert [("1", "One", "a1"), ("2", "Two", "a1")] == await books(session)
        assert [
            (4, "editor", "missing"),
            (5, "author", "missing"),
            (6, "title", "string_type"),
        ] == sorted((r.line, r.field, r.reason) for r in report.rejects)
        authors = report.references["Author"]
        assert (5, 2) == (authors.resolved, authors.missing)
        assert {("zz",): 2} == authors.missing_keys
        assert report.committed

    async def test_missing_is_null(self, session: AsyncSession, tmp_path: Path) -> None:
        """``null`` keeps a row without its reference, where the table allows it."""
        await two_authors(session)
        source = written(tmp_path, *LIBRARY)
        async with session.bulk() as bulk:
            report = await bulk.load(source, BookIn, max_errors=None, on_missing="null")
        editors = await session.execute(
            text("SELECT isbn FROM book WHERE editor_id IS NULL ORDER BY isbn")
        )

        assert (5, 3, 0, 0, 0, 2) == counts(report)
        assert ["2", "3"] == editors.scalars().all()
        assert "and it is required" in report.rejects[-1].message

    @pytest.mark.parametrize("batch_size", [1, 3, 1_000])
    async def test_duplicates(
        self, session: AsyncSession, tmp_path: Path, batch_size: int
    ) -> None:
        """Whether rows with one key are in one batch makes no difference."""
        await two_authors(session)
        source = written(
            tmp_path, "isbn,title,author", "z,1,a1", "y,1,a1", "z,2,a1", "z,1,a1",
            "y,1,a1", "x,1,a1",
        )  # fmt: skip
        found = {}
        policies: list[Any] = ["raise", "skip", "update"]
        for policy in policies:
            async with session.bulk() as bulk:
                report = await bulk.load(
                    source,
                    BookIn,
                    max_errors=None,
                    on_conflict=policy,
                    batch_size=batch_size,
                )
                again = await bulk.load(
                    source,
                    BookIn,
                    max_errors=None,
                    on_conflict=policy,
                    batch_size=batch_size,
                )
            titles = [title for _, title, _ in await books(session)]
            found[policy] = (counts(report), counts(again), titles)
            await session.execute(text("DELETE FROM book"))
            await session.commit()

        assert {
            "raise": ((6, 3, 0, 0, 0, 3), (6, 0, 0, 0, 0, 6), ["1", "1", "1"]),
            "skip": ((6, 3, 0, 0, 3, 0), (6, 0, 0, 0, 6, 0), ["1", "1", "1"]),
            "update": ((6, 3, 2, 1, 0, 0), (6, 0, 2, 4, 0, 0), ["1", "1", "1"]),
        } == found

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_first_of_two_stays(
        self, session: AsyncSession, tmp_path: Path, batch_size: int
    ) -> None:
        """Of two rows that exclude each other by another key, the first one stays."""
        await two_authors(session)
        source = written(
            tmp_path, "isbn,title,author,barcode", "z,t,a1,7", "b,t,a1,8", "a,t,a1,7"
        )
        async with session.bulk() as bulk:
            report = await bulk.load(
                source, BookIn, max_errors=None, batch_size=batch_size
            )

        assert ["b", "z"] == [isbn for isbn, _, _ in await books(session)]
        assert [4] == [reject.line for reject in report.rejects]

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_second_is_first_then(
        self, session: AsyncSession, tmp_path: Path, batch_size: int
    ) -> None:
        """A row that is refused does not make a later one with its key a duplicate."""
        await two_authors(session)
        source = written(
            tmp_path, "isbn,title,author,barcode", "a,t,a1,7", "b,t,a1,7", "b,u,a1,8",
            "b,v,a1,9",
        )  # fmt: skip
        async with session.bulk() as bulk:
            report = await bulk.load(
                source, BookIn, max_errors=None, batch_size=batch_size
            )

        assert [("a", "t", "a1"), ("b", "u", "a1")] == await books(session)
        assert [(3, "integrity"), (5, "duplicate")] == [
            (reject.line, reject.reason) for reject in report.rejects
        ]

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_rows_of_different_fields(
        self, session: AsyncSession, batch_size: int
    ) -> None:
        """Rows of one key are written in their order, also if their fields differ."""
        rows: list[dict[str, Any]] = [
            {"code": "a", "name": "1"},
            {"code": "a", "name": "2", "email": "2"},
            {"code": "a", "name": "3"},
        ]
        async with session.bulk() as bulk:
            report = await bulk.load(
                rows, AuthorIn, on_conflict="update", batch_size=batch_size
            )
            again = await bulk.load(
                rows, AuthorIn, max_errors=None, batch_size=batch_size
            )
        found = await session.execute(text("SELECT code, name, email FROM author"))

        assert (3, 1, 2, 0, 0, 0) == counts(report)
        assert (3, 0, 0, 0, 0, 3) == counts(again)
        assert [("a", "3", "2")] == [tuple(row) for row in found]

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_equal_by_collation_in_order(
        self, session: AsyncSession, batch_size: int
    ) -> None:
        """So they are if only the database takes their keys for equal."""
        rows: list[dict[str, Any]] = [
            {"name": "x"},
            {"name": "a", "note": "1"},
            {"name": "A"},
            {"name": "b"},
            {"name": "B", "note": "2"},
        ]
        async with session.bulk() as bulk:
            report = await bulk.load(
                rows, TagIn, max_errors=None, batch_size=batch_size
            )

        assert [3, 5] == sorted(reject.line for reject in report.rejects)

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    @pytest.mark.parametrize("policy", ["raise", "skip", "update"])
    async def test_collation(
        self, session: AsyncSession, policy: Any, batch_size: int
    ) -> None:
        """What a collation calls equal is a duplicate, in whatever batch."""
        rows = [{"name": name, "note": name} for name in ("b", "a", "A", "B", "c")]
        async with session.bulk() as bulk:
            report = await bulk.load(
                rows, TagIn, max_errors=None, on_conflict=policy, batch_size=batch_size
            )
        notes = await session.scalars(select(Tag.note))

        assert {
            "raise": ((5, 3, 0, 0, 0, 2), {"a", "b", "c"}),
            "skip": ((5, 3, 0, 0, 2, 0), {"a", "b", "c"}),
            "update": ((5, 3, 2, 0, 0, 0), {"A", "B", "c"}),
        }[policy] == (counts(report), set(notes))

    @pytest.mark.parametrize("policy", ["update", "skip"])
    async def test_twice(self, session: AsyncSession, policy: Any) -> None:
        """Loading again what is there changes nothing, whatever its types."""
        rows: list[dict[str, Any]] = [
            {"label": "a", "colour": "r", "price": "1.10", "ratio": 0.1, "mark": "abc"},
            {"label": "b", "token": str(uuid.UUID(int=5)), "whole": 2**31 - 1},
            {"label": "c", "moment": "2024-05-01T12:00:00+02:00", "backwards": "x"},
            {"label": "é", "raw": b"\x00\x01"},
        ]
        async with session.bulk() as bulk:
            first = await bulk.load(rows, SampleIn, on_conflict=policy)
            second = await bulk.load(rows, SampleIn, on_conflict=policy)

        assert (4, 4, 0, 0, 0, 0) == counts(first)
        expected = (0, 4, 0) if policy == "update" else (0, 0, 4)
        assert expected == (second.updated, second.unchanged, second.skipped)

    async def test_only_given_fields_change(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        """Rows may differ in the fields they set; what one leaves out stays."""
        session.add_all(Author(code=c, name="old", email="old") for c in "abc")
        await session.commit()
        source = written(
            tmp_path,
            '{"code": "a", "name": "new"}',
            '{"code": "b", "email": "new"}',
            '{"code": "c", "name": null}',
            '{"code": "d"}',
            name="source.jsonl",
        )
        async with session.bulk() as bulk:
            report = await bulk.load(source, AuthorIn, on_conflict="update")
        rows = await session.execute(
            text("SELECT code, name, email FROM author ORDER BY code")
        )

        assert (4, 1, 3, 0, 0, 0) == counts(report)
        assert [
            ("a", "new", "old"),
            ("b", "old", "new"),
            ("c", None, "old"),
            ("d", None, None),
        ] == [tuple(row) for row in rows]

    async def test_null_in_the_key(self, session: AsyncSession) -> None:
        """A null in the key names no row, so such a row cannot be updated."""

        class SeatIn(Spec[Seat]):
            hall: str | None
            row: int | None

        rows = [{"hall": "a", "row": 1}, {"hall": "a", "row": None}]
        async with session.bulk() as bulk:
            created = await bulk.load(rows, SeatIn)
            updated = await bulk.load(
                rows, SeatIn, on_conflict="update", max_errors=None
            )

        assert (2, 2, 0, 0, 0, 0) == counts(created)
        assert (2, 0, 0, 1, 0, 1) == counts(updated)
        assert [("row", "null")] == [(r.field, r.reason) for r in updated.rejects]


class TestReferences:
    async def test_nested_and_composed(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        """Keys of columns, of other references, and of references inside those."""

        class SiteIn(Spec[Site]):
            code: str
            region: Ref[Region]

        class RegionIn(Spec[Region]):
            country: Ref[Country]
            zone: int

        session.add(Country(code="fr"))
        await session.commit()
        async with session.bulk() as bulk:
            await bulk.load([{"country": "fr", "zone": n} for n in (1, 2)], RegionIn)
            source = written(
                tmp_path,
                '{"code": "x", "region": {"country": "fr", "zone": 2}}',
                '{"code": "y", "region": {"country": "de", "zone": 2}}',
                '{"code": "z", "region": {"country": "fr", "zone": 3}}',
                name="source.jsonl",
            )
            report = await bulk.load(source, SiteIn, max_errors=None)
        sites = await session.execute(
            text("SELECT s.code, r.zone FROM site s JOIN region r ON r.id = region_id")
        )

        assert [("x", 2)] == [tuple(row) for row in sites]
        assert {("de", 2): 1, ("fr", 3): 1} == report.references["Region"].missing_keys

    async def test_instances(self, session: AsyncSession) -> None:
        """A row may hold the instance itself, known to the session or expired."""
        await two_authors(session)
        author = (await session.scalars(select(Author).filter_by(code="a2"))).one()
        session.expire(author)
        async with session.bulk() as bulk:
            rows = [{"isbn": "1", "title": "t", "author": author}]
            report = await bulk.load(rows, BookIn)

        assert (1, 1, 0, 0, 0, 0) == counts(report)
        assert [("1", "t", "a2")] == await books(session)

    @pytest.mark.parametrize(
        ("name", "key"),
        [("label", "a\0b"), ("whole", 2**70), ("backwards", "refused")],
        ids=["nul", "huge", "refused"],
    )
    async def test_key_that_cannot_be(
        self, session: AsyncSession, name: str, key: Any
    ) -> None:
        """A key that its column cannot hold rejects its row, not the load."""

        class UseIn(Spec[Use]):
            sample: Annotated[Sample, Key(name)]

        good = 1 if name == "whole" else "a"
        session.add(Sample(**{name: good}))
        await session.commit()
        rows = [{"sample": value} for value in (good, key, good)]
        async with session.bulk() as bulk:
            report = await bulk.load(rows, UseIn, max_errors=1)

        assert (3, 2, 0, 0, 0, 1) == counts(report)
        assert ["missing"] == [reject.reason for reject in report.rejects]

    async def test_later_row_may_be_there_then(self, session: AsyncSession) -> None:
        """What one batch does not find is asked for again by the next."""
        await two_authors(session)

        def source() -> Iterator[dict[str, Any]]:
            for isbn in ("1", "2"):
                yield {"isbn": isbn, "title": "t", "author": "late"}

        async with session.bulk() as bulk:

            def progress(report: LoadReport) -> None:
                if report.rows == 1:
                    bulk.session.add(Author(code="late"))

            report = await bulk.load(
                source(), BookIn, batch_size=1, max_errors=None, progress=progress
            )

        assert (2, 1, 0, 0, 0, 1) == counts(report)


class TestBadRows:
    async def test_too_many(self, session: AsyncSession, tmp_path: Path) -> None:
        """More bad rows than allowed: nothing is written, the report is exact."""
        await two_authors(session)
        source = written(tmp_path, *LIBRARY)
        async with session.bulk() as bulk:
            for limit in (0, 2):
                with pytest.raises(RejectedRowsError) as caught:
                    await bulk.load(source, BookIn, max_errors=limit)

                assert (5, 0, 0, 0, 0, 3) == counts(caught.value.report)
                assert not caught.value.report.committed
                assert [] == await books(session)
            report = await bulk.load(source, BookIn, max_errors=3)

        assert (5, 2, 0, 0, 0, 3) == counts(report)

    async def test_stops_reading(self, session: AsyncSession) -> None:
        """Without a file for rejects there is no use in reading on."""
        read: list[int] = []

        def source() -> Iterator[dict[str, Any]]:
            for n in range(100):
                read.append(n)
                yield {"code": None}

        async with session.bulk() as bulk:
            with pytest.raises(RejectedRowsError) as caught:
                await bulk.load(source(), AuthorIn, batch_size=10)

        assert 10 == len(read) == caught.value.report.rows

    @pytest.mark.parametrize("limit", [None, 0])
    async def test_rejects_file(
        self, session: AsyncSession, tmp_path: Path, limit: int | None
    ) -> None:
        """Every rejected row goes to the file, also when nothing is kept."""
        await two_authors(session)
        source = written(
            tmp_path,
            "isbn,title,author,pages",
            '1,"two',
            'lines",a1,1',
            "2,t,zz,x",
            "3,t,a1",
            "1,t,a1,",
            "4,t,zz,",
        )
        target = tmp_path / "rejects.jsonl"
        async with session.bulk() as bulk:
            if limit is None:
                report = await bulk.load(
                    source, BookIn, rejects=target, max_errors=None, batch_size=2
                )
            else:
                with pytest.raises(RejectedRowsError) as caught:
                    await bulk.load(
                        source, BookIn, rejects=target, max_errors=0, batch_size=2
                    )
                report = caught.value.report

        assert (5, int(limit is None), 0, 0, 0, 4) == counts(report)
        assert [
            (4, "pages", "int_parsing"),
            (5, "", "columns"),
            (6, "isbn", "duplicate"),
            (7, "author", "missing"),
        ] == sorted(rejected(target))

    async def test_rejected_again(self, session: AsyncSession, tmp_path: Path) -> None:
        """A file of an earlier run is not left behind as if it were this one's."""
        target = written(tmp_path, "old", name="rejects.jsonl")
        async with session.bulk() as bulk:
            await bulk.load([{"code": "a"}], AuthorIn, rejects=target)

        assert [] == rejected(target)

    @pytest.mark.parametrize("is_path", [True, False])
    async def test_rejects_are_continued(
        self, session: AsyncSession, tmp_path: Path, is_path: bool
    ) -> None:
        """With a start, what the file says of rows before it stays."""
        path = tmp_path / "rejects.jsonl"
        rows = [{"code": code} for code in ("a", None, "b", "c", None, None)]
        async with session.bulk() as bulk:
            with pytest.raises(RejectedRowsError) as caught:
                await bulk.load(
                    rows, AuthorIn, rejects=path, batch_size=2, max_errors=1,
                    commit="batch",
                )  # fmt: skip
            assert [2, 5, 6] == [line for line, _, _ in rejected(path)]
            start = caught.value.report.resume
            assert start is not None
            with nullcontext(path) if is_path else path.open("a") as target:
                await bulk.load(
                    rows, AuthorIn, rejects=target, start=start, max_errors=None
                )

        assert 5 == start
        # An open file is the caller's to cut.
        again = [] if is_path else [5, 6]
        assert [2, *again, 5, 6] == [line for line, _, _ in rejected(path)]
        assert 3 == await count(session, Author)

    async def test_json(self, session: AsyncSession, tmp_path: Path) -> None:
        """Lines that are no JSON, no object, or name unknown fields are rejected."""
        source = written(
            tmp_path,
            '{"code": "a"}',
            "{code}",
            "[1]",
            "",
            '{"code": "b", "nmae": "x"}',
            '{"name": "x"}',
            '{"code": "c"}',
            name="source.jsonl",
        )
        async with session.bulk() as bulk:
            report = await bulk.load(source, AuthorIn, max_errors=None)

        assert (6, 2, 0, 0, 0, 4) == counts(report)
        assert [
            (2, "json_invalid"),
            (3, "model_type"),
            (5, "extra_forbidden"),
            (6, "missing"),
        ] == sorted((r.line, r.reason) for r in report.rejects)

    @pytest.mark.parametrize(
        "row",
        [
            {"label": "a\0b"},
            {"label": "a", "whole": 2**70},
            {"label": "a", "backwards": "refused"},
        ],
        ids=["nul", "huge", "refused"],
    )
    @pytest.mark.parametrize("policy", ["raise", "update"])
    async def test_refused_by_the_database(
        self, session: AsyncSession, policy: Any, row: Any
    ) -> None:
        """A value that the column cannot hold rejects its row alone."""
        rows = [{"label": "x"}, row, {"label": "y"}]
        async with session.bulk() as bulk:
            report = await bulk.load(
                rows, SampleIn, max_errors=None, on_conflict=policy
            )

        # Only PostgreSQL does not take a text with NUL as any other.
        refuses = session.get_bind().dialect.name == "postgresql"
        accepted = not refuses and "\0" in row["label"]
        assert (3, 2 + accepted) == (report.rows, report.created)

    async def test_rejects_over_the_source(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        """A source is never overwritten by its own rejects, open or not."""
        path = written(tmp_path, "code", "a", "a")
        before = path.read_bytes()
        (tmp_path / "link").symlink_to(path)
        with path.open(encoding="utf-8") as file:
            async with session.bulk() as bulk:
                for source in (path, file, tmp_path / "link"):
                    with pytest.raises(LoadError, match="overwrite the source"):
                        await bulk.load(source, AuthorIn, format="csv", rejects=path)

        assert before == path.read_bytes()

    async def test_names_that_json_has_not(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        """Whatever the keys of a mapping are, it can be written as rejected."""
        path = tmp_path / "rejects.jsonl"
        rows: list[Any] = [{b"code": "a", ("b", 1): 2}]
        async with session.bulk() as bulk:
            await bulk.load(rows, AuthorIn, max_errors=None, rejects=path)

        assert [(1, "code", "missing")] == rejected(path)

    async def test_rejects_of_something_else(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        """What is in a file that is continued and is no rejected row is dropped."""
        path = tmp_path / "rejects.jsonl"
        path.write_bytes(
            b'\xff\xfe\n{"line": 1, "field": "", "reason": "x"}\n{"line": '
        )
        rows: list[Any] = [{}, {}]
        async with session.bulk() as bulk:
            await bulk.load(rows, AuthorIn, max_errors=None, rejects=path, start=2)

        assert [(1, "", "x"), (2, "code", "missing")] == rejected(path)

    async def test_rejects_that_cannot_be_written(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        """A rejects file that cannot be made is an error before anything is read."""
        async with session.bulk() as bulk:
            with pytest.raises(LoadError, match="cannot write rejects"):
                await bulk.load(
                    [{"code": "a"}], AuthorIn, rejects=tmp_path / "no" / "file"
                )

        assert 0 == await count(session, Author)


class TestTransactions:
    @pytest.mark.parametrize("batch_size", [1, 2, 1_000])
    async def test_earlier_work_survives(
        self, session: AsyncSession, tmp_path: Path, batch_size: int
    ) -> None:
        """A load that fails undoes itself, not what the session did before."""
        await two_authors(session)
        session.add(Author(code="mine"))
        await session.flush()
        source = written(tmp_path, *LIBRARY)
        async with session.bulk() as bulk:
            with pytest.raises(RejectedRowsError):
                await bulk.load(source, BookIn, batch_size=batch_size)
        in_transaction = session.in_transaction()
        seen = await count(session, Author)
        await session.commit()

        assert in_transaction
        assert 3 == seen == await count(session, Author)
        assert [] == await books(session)

    async def test_earlier_work_is_committed(self, session: AsyncSession) -> None:
        """A load that succeeds ends the transaction it was started in."""
        session.add(Author(code="mine"))
        await session.flush()
        async with session.bulk() as bulk:
            report = await bulk.load([{"code": "a"}], AuthorIn)
        await session.rollback()

        assert report.committed
        assert 2 == await count(session, Author)

    @pytest.mark.parametrize("joined", [False, True])
    async def test_batches_are_kept(self, session: AsyncSession, joined: bool) -> None:
        """``commit="batch"`` keeps the batches before the one that fails."""
        if joined:
            session.add(Author(code="mine"))
            await session.flush()
        rows = [{"code": code} for code in ("a", "b", "c", None, "d")]
        async with session.bulk() as bulk:
            with pytest.raises(RejectedRowsError) as caught:
                await bulk.load(rows, AuthorIn, batch_size=2, commit="batch")
            await session.rollback()
            kept = await count(session, Author)
            report = await bulk.load(
                rows[4:], AuthorIn, batch_size=2, commit="batch", max_errors=None
            )

        assert caught.value.report.committed
        assert 2 + joined == kept
        assert "only 2 were written" in str(caught.value)
        assert (1, 1, 0, 0, 0, 0) == counts(report)

    @pytest.mark.parametrize("joined", [False, True])
    @pytest.mark.parametrize("commit", ["once", "batch"])
    async def test_dry_run(
        self, session: AsyncSession, commit: Any, joined: bool
    ) -> None:
        """A dry run tells what would happen, and writes nothing."""
        if joined:
            session.add(Author(code="mine"))
            await session.flush()
        rows = [{"code": code} for code in ("a", "b", "c", None)]
        async with session.bulk() as bulk:
            report = await bulk.load(
                rows,
                AuthorIn,
                batch_size=2,
                commit=commit,
                max_errors=None,
                dry_run=True,
            )
        await session.commit()

        assert (4, 3, 0, 0, 0, 1) == counts(report)
        assert report.dry_run
        assert not report.committed
        assert joined == await count(session, Author)

    async def test_plain_engine(self, db: Database, async_url: str) -> None:
        """An engine made by hand, whose driver begins late, never commits half."""
        assert db
        engine = create_async_engine(async_url)
        async with AsyncSession(engine) as session:
            for earlier in (False, True):
                if earlier:
                    await count(session, Author)
                async with session.bulk() as bulk:
                    for dry_run, code in ((False, None), (True, "d")):
                        rows = [{"code": c} for c in ("a", "b", "c", code)]
                        with suppress(RejectedRowsError):
                            await bulk.load(
                                rows, AuthorIn, batch_size=1, dry_run=dry_run
                            )
                        async with AsyncSession(engine) as other:
                            assert 0 == await count(other, Author)
            async with session.bulk() as bulk:
                await bulk.load([{"code": "a"}], AuthorIn, batch_size=1)
        async with AsyncSession(engine) as other:
            assert 1 == await count(other, Author)
        await engine.dispose()

    async def test_error_of_the_source(self, session: AsyncSession) -> None:
        """An error of the source undoes the load, and is seen as it is."""

        def source() -> Iterator[dict[str, Any]]:
            yield {"code": "a"}
            raise KeyError("source")

        async with session.bulk() as bulk:
            with pytest.raises(KeyError, match="source"):
                await bulk.load(source(), AuthorIn, batch_size=1)

        assert 0 == await count(session, Author)

    async def test_error_of_progress(self, session: AsyncSession) -> None:
        """The same for an error of the callback; batches are as large as asked."""
        seen: list[int] = []

        def progress(report: LoadReport) -> None:
            seen.append(report.rows)
            if report.rows > 4:
                raise KeyError("enough")

        async with session.bulk() as bulk:
            with pytest.raises(KeyError, match="enough"):
                await bulk.load(
                    ({"code": str(n)} for n in range(100)),
                    AuthorIn,
                    batch_size=2,
                    progress=progress,
                )

        assert [2, 4, 6] == seen
        assert 0 == await count(session, Author)

    @pytest.mark.parametrize("joined", [False, True])
    @pytest.mark.parametrize("commit", ["once", "batch"])
    async def test_error_after_the_commit(
        self, session: AsyncSession, commit: Any, joined: bool
    ) -> None:
        """What raises after a commit does not make the report forget it."""
        if joined:
            session.add(Author(code="mine"))
            await session.flush()

        def fail(committed: Any) -> None:
            if committed.get_nested_transaction() is None:
                raise KeyError("after")

        rows = [{"code": code} for code in "abcd"]
        event.listen(bare(session), "after_commit", fail)
        async with session.bulk() as bulk:
            with pytest.raises(KeyError, match="after") as caught:
                await bulk.load(rows, AuthorIn, batch_size=2, commit=commit)
        event.remove(bare(session), "after_commit", fail)
        report: LoadReport = caught.value.report  # type: ignore[attr-defined]  # load() sets it

        kept = await count(session, Author) - joined
        assert {"once": (4, None), "batch": (2, 3)}[commit] == (kept, report.resume)
        assert (kept, kept, True) == (report.created, report.kept, report.committed)

    @pytest.mark.parametrize("joined", [False, True])
    @pytest.mark.parametrize("who", ["progress", "the source"])
    async def test_transaction_that_others_end(
        self, session: AsyncSession, who: str, joined: bool
    ) -> None:
        """Who undoes rows of the load meanwhile makes it fail, not lie."""
        if joined:
            session.add(Author(code="mine"))
            await session.flush()

        def undo(caller: str) -> None:
            if caller == who:
                bare(session).rollback()

        def source() -> Iterator[dict[str, Any]]:
            yield {"code": "a"}
            yield {"code": "b"}
            undo("the source")
            yield {"code": "c"}

        async with session.bulk() as bulk:
            with pytest.raises(LoadError, match=f"{who} committed or rolled back"):
                await bulk.load(
                    source(),
                    AuthorIn,
                    batch_size=2,
                    progress=lambda _: undo("progress"),
                )

        assert 0 == await count(session, Author)

    async def test_between_batches(self, session: AsyncSession) -> None:
        """After each commit of ``commit="batch"`` the session is free for others."""

        def progress(report: LoadReport) -> None:
            bare(session).rollback()

        rows = [{"code": code} for code in "abc"]
        async with session.bulk() as bulk:
            report = await bulk.load(
                rows, AuthorIn, batch_size=2, commit="batch", progress=progress
            )

        assert 3 == report.kept == await count(session, Author)


class TestWaysOfWriting:
    @pytest.mark.parametrize("policy", ["raise", "skip", "update"])
    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_events(
        self, session: AsyncSession, policy: Any, batch_size: int
    ) -> None:
        """With mapper events the unit of work writes: the same rows and counts."""
        rows = [
            {"code": code, "name": name}
            for code, name in zip("badbacda", "11122311", strict=True)
        ]
        seen: list[str] = []
        results = []

        def listen(mapper: object, connection: object, author: Author) -> None:
            seen.append(author.code)

        for listened in (False, True):
            session.add(Author(code="c", name="1"))
            await session.commit()
            if listened:
                event.listen(Author, "before_insert", listen)
            try:
                async with session.bulk() as bulk:
                    report = await bulk.load(
                        rows,
                        AuthorIn,
                        on_conflict=policy,
                        max_errors=None,
                        batch_size=batch_size,
                    )
            finally:
                if listened:
                    event.remove(Author, "before_insert", listen)
            found = await session.execute(
                text("SELECT code, name FROM author ORDER BY code")
            )
            lines = sorted(reject.line for reject in report.rejects)
            results.append((counts(report), lines, [tuple(row) for row in found]))
            await session.execute(text("DELETE FROM author"))
            await session.commit()

        assert results[0] == results[1]
        assert {"a", "b", "d"} <= set(seen)

    async def test_versions_and_defaults(self, session: AsyncSession) -> None:
        """Version counters and defaults made in Python are as for one object."""
        rows = [{"code": code, "balance": 1} for code in "aba"]
        rows[2]["balance"] = 2
        async with session.bulk() as bulk:
            report = await bulk.load(rows, AccountIn, on_conflict="update")
            again = await bulk.load(rows[1:], AccountIn, on_conflict="update")
        found = await session.execute(
            text("SELECT code, balance, note, version FROM account ORDER BY code")
        )

        assert (3, 2, 1, 0, 0, 0) == counts(report)
        assert (2, 0, 0, 2, 0, 0) == counts(again)
        assert [
            ("a", 2, "made in python", 2),
            ("b", 1, "made in python", 1),
        ] == [tuple(row) for row in found]

    async def test_known_to_the_session(self, session: AsyncSession) -> None:
        """What the session knew stays in it; what the load made does not."""
        session.add(Account(code="a", balance=1))
        await session.commit()
        [mine] = await session.scalars(select(Account))
        rows = [{"code": code, "balance": 2} for code in "ab"]
        async with session.bulk() as bulk:
            await bulk.load(rows, AccountIn, on_conflict="update")
        await session.refresh(mine)

        assert [mine] == list(session)
        assert 2 == mine.balance

    async def test_inheritance(self, session: AsyncSession) -> None:
        """An entity over two tables gets its row in both."""
        rows = [{"code": code, "name": code, "born": 1900} for code in "ab"]
        async with session.bulk() as bulk:
            created = await bulk.load(rows, PersonIn)
            rows[0]["born"] = 1901
            updated = await bulk.load(rows, PersonIn, on_conflict="update")
        found = (await session.scalars(select(Party).order_by(Party.code))).all()

        assert (2, 2, 0, 0, 0, 0) == counts(created)
        assert (2, 0, 1, 1, 0, 0) == counts(updated)
        assert [Person, Person] == [type(party) for party in found]

    async def test_extra_columns(self, session: AsyncSession, tmp_path: Path) -> None:
        """Columns that the model does not know are an error that names them."""
        source = written(tmp_path, "code,nmae", "a,b")
        async with session.bulk() as bulk:
            with pytest.raises(LoadError, match="knows no column 'nmae'"):
                await bulk.load(source, AuthorIn)
            with pytest.raises(LoadError, match="has no column 'code'"):
                await bulk.load(written(tmp_path, "name", "b"), AuthorIn)

    @pytest.mark.parametrize(
        "options",
        [
            {"on_conflict": "x"},
            {"on_missing": "make"},
            {"commit": "never"},
            {"format": "xml"},
            {"batch_size": 0},
            {"max_errors": -1},
            {"start": 0},
        ],
        ids=str,
    )
    async def test_wrong_options(
        self, session: AsyncSession, options: dict[str, Any]
    ) -> None:
        """An option that does not exist is an error before anything is read."""
        async with session.bulk() as bulk:
            with pytest.raises(LoadError, match=next(iter(options))):
                await bulk.load([{"code": "a"}], AuthorIn, **options)


class TestMemory:
    async def test_one_batch_ahead(self, session: AsyncSession) -> None:
        """No more than one batch of a source is held at a time."""
        await two_authors(session)
        produced = 0
        ahead: list[int] = []

        def source() -> Iterator[dict[str, Any]]:
            nonlocal produced
            for n in range(30_000):
                produced += 1
                yield {"isbn": str(n), "title": "t", "author": f"a{1 + n % 2}"}

        def progress(report: LoadReport) -> None:
            ahead.append(produced - report.rows)

        async with session.bulk() as bulk:
            report = await bulk.load(
                source(), BookIn, batch_size=5_000, progress=progress
            )

        assert (30_000, 30_000, 0, 0, 0, 0) == counts(report)
        # The last one is called when there is nothing left to read.
        assert [0] * 7 == ahead

    async def test_statements(self, db: Database, session: AsyncSession) -> None:
        """The number of statements depends on batches, not on rows."""
        await two_authors(session)
        numbers = []
        for rows in (10, 2_000):
            source = [
                {"isbn": f"{rows}-{n}", "title": "t", "author": f"a{1 + n % 2}"}
                for n in range(rows)
            ]
            engine = db.manager.async_engines["default"]
            with count_statements(engine) as statements:
                async with session.bulk() as bulk:
                    await bulk.load(source, BookIn)
            numbers.append(statements.count)

        assert numbers[0] == numbers[1]
