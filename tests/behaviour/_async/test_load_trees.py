"""Loading rows that name rows of the same source, in whatever order they come."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import field_validator
from sqlalchemy import select, text

from tenure import AsyncSession, Database, LoadReport, Ref, Spec
from tests.fixtures.counting import count_statements
from tests.fixtures.trees import (
    Alias,
    Base,
    Circle,
    Drawing,
    FolderIn,
    Part,
    PartIn,
    Shape,
    StepIn,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


async def load(
    session: AsyncSession, rows: Any, into: Any = PartIn, **options: Any
) -> LoadReport:
    async with session.bulk() as bulk:
        report = await bulk.load(rows, into, **{"max_errors": None} | options)
    parts = (report.created, report.updated, report.unchanged, report.skipped)
    assert report.rows == sum(parts) + report.rejected
    return report


async def parents(session: AsyncSession) -> dict[str, str | None]:
    rows = await session.execute(
        text(
            "SELECT p.code, q.code AS parent FROM part p LEFT JOIN part q ON q.id = p.parent_id"
        )
    )
    return {row.code: row.parent for row in rows}


def chain(length: int) -> list[dict[str, Any]]:
    return [
        {"code": str(n), "parent": str(n - 1) if n else None} for n in range(length)
    ]


class TestOrder:
    @pytest.mark.parametrize("batch_size", [1, 7, 1_000])
    @pytest.mark.parametrize("order", ["forwards", "backwards", "random"])
    async def test_any(
        self, session: AsyncSession, order: str, batch_size: int
    ) -> None:
        """Parents may come before their children, after them, or in other batches."""
        rows = chain(30)
        if order == "backwards":
            rows.reverse()
        elif order == "random":
            random.Random(1).shuffle(rows)
        report = await load(session, rows, batch_size=batch_size)

        assert (30, 30) == (report.rows, report.created)
        assert (29, 0) == (
            report.references["Part"].resolved,
            report.references["Part"].missing,
        )
        assert {row["code"]: row["parent"] for row in rows} == await parents(session)

    async def test_long_chain(self, session: AsyncSession) -> None:
        """A chain of thousands needs no deep recursion, and is not quadratic."""
        rows = chain(2_000)[::-1]
        report = await load(session, rows, batch_size=900)

        assert 2_000 == report.created

    async def test_nested_keys(self, session: AsyncSession) -> None:
        """Keys that hold the parent, whose key holds its parent."""
        rows: list[dict[str, Any]] = []
        parent: dict[str, Any] | None = None
        for name in "abcd":
            rows.append({"name": name, "parent": parent})
            parent = {"name": name, "parent": parent}
        report = await load(session, rows[::-1], FolderIn, batch_size=2)
        found = await session.execute(
            text(
                "SELECT f.name, p.name FROM folder f "
                "LEFT JOIN folder p ON p.id = f.parent_id ORDER BY 1"
            )
        )

        assert 4 == report.created
        assert [("a", None), ("b", "a"), ("c", "b"), ("d", "c")] == [
            tuple(row) for row in found
        ]

    async def test_costs_nothing(self, db: Database, session: AsyncSession) -> None:
        """Where parents are known, there is no statement more."""
        await load(session, [{"code": "r"}])
        numbers = []
        for prefix, parent in (("a", None), ("b", "r")):
            rows = [{"code": f"{prefix}{n}", "parent": parent} for n in range(20)]
            with count_statements(db.manager.async_engines["default"]) as statements:
                await load(session, rows)
            numbers.append(statements.count)

        # Two more: the look-up, in a savepoint.
        assert numbers[1] - numbers[0] <= 3


class TestMissing:
    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_policies(self, session: AsyncSession, batch_size: int) -> None:
        """Only what is nowhere in the source is missing."""
        rows = [
            {"code": "c", "parent": "b"},
            {"code": "b", "parent": "z"},
            {"code": "a"},
        ]
        found = {}
        policies: list[Any] = ["reject", "null", "create"]
        for policy in policies:
            report = await load(
                session, rows, on_missing=policy, batch_size=batch_size, dry_run=True
            )
            lines = [(reject.line, reject.reason) for reject in report.rejects]
            again = await load(session, rows, on_missing=policy, batch_size=batch_size)
            assert report.created == again.created
            found[policy] = (sorted(lines), await parents(session))
            await session.execute(text("UPDATE part SET parent_id = NULL"))
            await session.execute(text("DELETE FROM part"))
            await session.commit()

        assert {
            "reject": ([(1, "missing"), (2, "missing")], {"a": None}),
            "null": ([], {"a": None, "b": None, "c": "b"}),
            "create": ([], {"a": None, "b": "z", "c": "b", "z": None}),
        } == found

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_circle(self, session: AsyncSession, batch_size: int) -> None:
        """Rows that need each other are rejected, what needs them is as any other."""
        rows = [
            {"code": "x", "before": "c"},
            {"code": "a", "before": "b"},
            {"code": "b", "before": "c"},
            {"code": "c", "before": "a"},
            {"code": "d", "before": "d"},
        ]
        report = await load(session, rows, StepIn, batch_size=batch_size)

        assert [
            (1, "missing"),
            (2, "circle"),
            (3, "circle"),
            (4, "circle"),
            (5, "circle"),
        ] == sorted((reject.line, reject.reason) for reject in report.rejects)
        assert (
            "before: circular reference: Step('b') and this row need each other"
        ) in map(str, report.rejects)

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_optional_circle(
        self, session: AsyncSession, batch_size: int
    ) -> None:
        """With ``null``, the first row of a circle loses its reference."""
        rows = [{"code": code, "parent": parent} for code, parent in ("ab", "bc", "ca")]
        report = await load(session, rows, on_missing="null", batch_size=batch_size)

        assert 3 == report.created
        assert {"a": None, "b": "c", "c": "a"} == await parents(session)

    @pytest.mark.parametrize("batch_size", [1, 2, 1_000])
    @pytest.mark.parametrize("policy", ["raise", "skip", "update"])
    async def test_one_key(
        self, session: AsyncSession, policy: Any, batch_size: int
    ) -> None:
        """A row that waits keeps its place before later ones of its key."""
        rows = [
            {"code": "a", "parent": "p", "size": 1},
            {"code": "a", "parent": None, "size": 2},
            {"code": "p", "parent": None, "size": 0},
        ]
        report = await load(session, rows, on_conflict=policy, batch_size=batch_size)
        [part] = await session.scalars(select(Part.size).filter_by(code="a"))

        assert (2 if policy == "update" else 1) == part
        assert [2] * (policy == "raise") == [reject.line for reject in report.rejects]

    @pytest.mark.parametrize("batch_size", [1, 1_000])
    async def test_earlier_row_is_enough(
        self, session: AsyncSession, batch_size: int
    ) -> None:
        """A row that names a key is not in a circle with a later row of that key."""
        rows = [
            {"code": "e", "parent": "z"},
            {"code": "e", "parent": "f"},
            {"code": "f", "parent": "e"},
        ]
        report = await load(
            session,
            rows,
            on_missing="null",
            on_conflict="update",
            batch_size=batch_size,
        )

        assert (2, 1) == (report.created, report.updated)
        assert {"e": "f", "f": "e"} == await parents(session)

    async def test_what_cannot_be_made(self, session: AsyncSession) -> None:
        """An abstract class, or a key that is not unique, says so."""

        class DrawingIn(Spec[Drawing]):
            shape: Ref[Shape] | None = None
            circle: Ref[Circle] | None = None
            alias: Ref[Alias] | None = None

        rows = [{"shape": {"code": "a"}}, {"alias": {"name": "b"}}]
        report = await load(session, rows, DrawingIn, on_missing="create")
        made = await load(
            session, [{"circle": {"code": "c"}}], DrawingIn, on_missing="create"
        )

        assert ["is abstract", "not unique"] == [
            word
            for reject in sorted(report.rejects, key=lambda each: each.line)
            for word in ("is abstract", "not unique")
            if word in reject.message
        ]
        assert 1 == made.references["Circle"].created
        assert ["circle"] == list(await session.scalars(text("SELECT kind FROM shape")))


class TestResume:
    async def test_key_of_the_database(self, session: AsyncSession) -> None:
        """A parent named by what the database gives it is found in the same batch."""
        kept = []

        def progress(report: LoadReport) -> None:
            kept.append(report.kept)

        rows = [{"code": "a"}, {"code": "b", "parent": {"id": 1}}, {"code": "c"}]
        await load(session, rows, batch_size=2, commit="batch", progress=progress)

        assert [2, 3, 3] == kept
        assert {"a": None, "b": "a", "c": None} == await parents(session)

    async def test_rows_that_cannot_be_written_down(
        self, session: AsyncSession
    ) -> None:
        """What waits may hold anything, also what cannot go to a file."""
        rows = [
            {"code": "a", "parent": "b", "size": lambda: 1},
            {"code": "c", "parent": "b"},
            {"code": "b"},
        ]

        class AnyIn(PartIn):
            @field_validator("size", mode="before")
            @classmethod
            def called(cls, value: Any) -> Any:
                return value() if callable(value) else value

        report = await load(session, rows, AnyIn, batch_size=1)
        sizes = await session.scalars(select(Part.size).order_by(Part.code))

        assert 3 == report.created
        assert [1, None, None] == list(sizes)

    async def test_waits_to_commit(self, session: AsyncSession) -> None:
        """Nothing behind the resume point is there: rows that wait hold commits."""
        rows = [{"code": "a"}, {"code": "b", "parent": "z"}, {"code": "c"}]
        seen = []

        def progress(report: LoadReport) -> None:
            seen.append((report.rows, report.kept, report.resume))

        report = await load(
            session, rows, batch_size=1, commit="batch", progress=progress
        )

        assert [(1, 1, 2), (1, 1, 2), (2, 1, 2), (3, 2, 4), (3, 2, 4)] == seen
        assert (3, 2, None) == (report.rows, report.kept, report.resume)
