"""Loading with ``on_missing="create"``: what references name is made, once."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, func, select, text

from tenure import AsyncSession, LoadReport, Ref, RejectedRowsError, Spec
from tests.fixtures.models import (
    Author,
    Base,
    Book,
    Country,
    Region,
    Sample,
    Site,
    Use,
)

pytestmark = pytest.mark.anyio


class BookIn(Spec[Book]):
    isbn: str
    title: str
    author: Ref[Author]
    editor: Ref[Author] | None = None


class SiteIn(Spec[Site]):
    code: str
    region: Ref[Region]


def book(isbn: str, author: Any, **others: Any) -> dict[str, Any]:
    return {"isbn": isbn, "title": "t", "author": author} | others


async def count(session: AsyncSession, entity: type[Base]) -> int | None:
    return await session.scalar(select(func.count()).select_from(entity))


async def codes(session: AsyncSession, entity: Any = Author) -> list[str]:
    return list(await session.scalars(select(entity.code).order_by(entity.code)))


async def load(
    session: AsyncSession, rows: Any, into: Any = BookIn, **options: Any
) -> LoadReport:
    async with session.bulk() as bulk:
        return await bulk.load(rows, into, on_missing="create", **options)


def references(report: LoadReport) -> dict[str, tuple[int, int, int]]:
    """Resolved, missing and created, by entity."""
    return {
        name: (count.resolved, count.missing, count.created)
        for name, count in report.references.items()
    }


@pytest.mark.parametrize("batch_size", [1, 2, 1_000])
async def test_once(session: AsyncSession, batch_size: int) -> None:
    """However many rows name it, in however many batches, it is made once."""
    session.add(Author(code="old"))
    await session.commit()
    rows = [book("1", "new"), book("2", "old", editor="new"), book("3", "new")]
    report = await load(session, rows, batch_size=batch_size)
    found = await session.execute(
        text("SELECT isbn, code FROM book JOIN author a ON a.id = author_id ORDER BY 1")
    )

    assert ["new", "old"] == await codes(session)
    assert [("1", "new"), ("2", "old"), ("3", "new")] == [tuple(row) for row in found]
    assert {"Author": (4, 0, 1)} == references(report)


async def test_nested(session: AsyncSession) -> None:
    """What is inside of a key is made before it."""
    session.add(Country(code="fr"))
    await session.commit()
    rows = [
        {"code": "x", "region": {"country": country, "zone": zone}}
        for country, zone in (("fr", 1), ("de", 1), ("de", 2), ("de", 1))
    ]
    rows[3]["code"] = "y"
    report = await load(session, rows, SiteIn)
    found = await session.execute(
        text(
            "SELECT s.code, c.code, zone FROM site s JOIN region r ON r.id = region_id "
            "JOIN country c ON c.id = country_id ORDER BY 1, 2, 3"
        )
    )

    assert [("x", "de", 1), ("x", "de", 2), ("x", "fr", 1), ("y", "de", 1)] == [
        tuple(row) for row in found
    ]
    assert {"Region": (4, 0, 3), "Country": (0, 0, 1)} == references(report)


async def test_lacks_columns(session: AsyncSession) -> None:
    """A key that is not enough for a row rejects what names it, and makes nothing."""

    rows = [book("1", "a"), book("2", {"id": 7})]
    report = await load(session, rows, max_errors=None)

    assert [(2, "author", "missing")] == [
        (r.line, r.field, r.reason) for r in report.rejects
    ]
    assert (
        "there is no Author(7), and no Author can be made of its key alone: it "
        "lacks code"
    ) == report.rejects[0].message
    assert ["a"] == await codes(session)


async def test_one_that_cannot_be(session: AsyncSession) -> None:
    """A row that is rejected for one reference has the others not made."""
    rows = [
        book("1", "a", editor={"id": 7}),
        book("2", "b"),
        {"isbn": "3", "title": None, "author": "c"},
    ]
    report = await load(session, rows, max_errors=None)

    assert ["b"] == await codes(session)
    assert 2 == report.rejected
    assert {"Author": (1, 2, 1)} == references(report)


@pytest.mark.parametrize("batch_size", [1, 1_000])
async def test_rejected_when_written(session: AsyncSession, batch_size: int) -> None:
    """A row that the table refuses leaves nothing behind that only it named."""
    rows = [book("1", "a"), book("1", "b"), book("2", "c"), book("2", "a")]
    report = await load(session, rows, max_errors=None, batch_size=batch_size)

    assert ["a", "c"] == await codes(session)
    assert (4, 2, 2) == (report.rows, report.created, report.rejected)
    assert 2 == report.references["Author"].created
    assert [2, 4] == sorted(reject.line for reject in report.rejects)


async def test_refused_by_the_database(session: AsyncSession) -> None:
    """A key that its column does not hold is a reason of its own row only."""

    class Note(Spec[Use]):
        sample: Ref[Sample]

    rows = [{"sample": {"whole": n}} for n in (1, 2**70, 2)]
    report = await load(session, rows, Note, max_errors=None)

    assert {"Sample": (2, 1, 2)} == references(report)
    assert [(2, "missing")] == [(r.line, r.reason) for r in report.rejects]
    assert "it cannot be inserted: " in report.rejects[0].message
    assert 2 == await count(session, Sample)


@pytest.mark.parametrize("dry_run", [True, False])
async def test_undone(session: AsyncSession, dry_run: bool) -> None:
    """A dry run counts the same and keeps nothing; nor does a refused load."""
    rows = [book("1", "a"), book("2", "b", title=None if not dry_run else "t")]
    if dry_run:
        report = await load(session, rows, dry_run=True)
        assert {"Author": (2, 0, 2)} == references(report)
    else:
        with pytest.raises(RejectedRowsError) as caught:
            await load(session, rows)
        assert {"Author": (1, 0, 1)} == references(caught.value.report)

    assert [] == await codes(session)


async def test_events(session: AsyncSession) -> None:
    """What only the unit of work does is done: events, defaults, discriminators."""
    seen: list[str] = []

    def listen(mapper: object, connection: object, author: Author) -> None:
        seen.append(author.code)
        author.name = author.code.upper()

    event.listen(Author, "before_insert", listen)
    try:
        report = await load(session, [book("1", "a"), book("2", "b"), book("3", "a")])
    finally:
        event.remove(Author, "before_insert", listen)
    names = await session.scalars(select(Author.name).order_by(Author.name))

    assert ["a", "b"] == sorted(seen)
    assert ["A", "B"] == list(names)
    assert {"Author": (3, 0, 2)} == references(report)
