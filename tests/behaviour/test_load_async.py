"""What only the async face of a load has: sources and callbacks that are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import event, func, select

from tenure import AsyncSession, Database, LoadError, LoadReport, Spec
from tests.fixtures.trees import Base, Owner

pytestmark = pytest.mark.anyio


class OwnerIn(Spec[Owner]):
    code: str


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


@pytest.fixture
async def session(db: Database) -> AsyncIterator[AsyncSession]:
    async with db.async_session() as session:
        yield session


class Source:
    """An async generator, how far it is, and whether it was closed."""

    def __init__(self, length: int = 10, wait_at: int | None = None) -> None:
        self.length = length
        self.wait_at = wait_at
        self.pulled = 0
        self.waiting = asyncio.Event()
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        try:
            for n in range(self.length):
                if n == self.wait_at:
                    self.waiting.set()
                    await asyncio.Event().wait()
                self.pulled += 1
                yield {"code": str(n)}
                await asyncio.sleep(0)
        finally:
            # A close that takes its time is waited for.
            await asyncio.sleep(0)
            self.is_closed = True


async def count(session: AsyncSession) -> int | None:
    return await session.scalar(select(func.count()).select_from(Owner))


async def test_loads(session: AsyncSession) -> None:
    """Rows of an async generator are rows as any other, numbered from 1."""
    source = Source()
    async with session.bulk() as bulk:
        report = await bulk.load(source, OwnerIn, batch_size=3)
        again = await bulk.load(
            Source(), OwnerIn, batch_size=3, start=8, max_errors=None
        )

    assert (10, 10) == (report.rows, report.created)
    assert [8, 9, 10] == [reject.line for reject in again.rejects]
    assert source.is_closed
    assert 10 == await count(session)


async def test_options(session: AsyncSession) -> None:
    """What is said of mappings is for those that are awaited as well."""

    async def source() -> AsyncIterator[dict[str, Any]]:
        yield {"code": "x", "note": "y"}
        yield {"code": "NA", "note": "y"}

    async with session.bulk() as bulk:
        report = await bulk.load(
            source(), OwnerIn, ignore=["note"], null=["NA"], max_errors=1
        )
    [reject] = report.rejects
    assert (1, 2, "code") == (report.created, reject.line, reject.field)
    async with session.bulk() as bulk:
        with pytest.raises(LoadError, match="delimiter has no meaning for mappings"):
            await bulk.load(source(), OwnerIn, delimiter=";")


async def test_back_pressure(db: Database, session: AsyncSession) -> None:
    """No more is asked of the source than the batch that is written."""
    source = Source()
    seen: list[int] = []

    def listen(*_: Any) -> None:
        seen.append(source.pulled)

    engine = db.manager.async_engines["default"].sync_engine
    event.listen(engine, "savepoint", listen)
    async with session.bulk() as bulk:
        await bulk.load(source, OwnerIn, batch_size=4)

    assert [4, 8, 10] == sorted(set(seen))


async def test_cancelled(db: Database, session: AsyncSession) -> None:
    """Cancelled while it waits for the source, a load is undone."""
    source = Source(wait_at=7)

    async def load() -> None:
        async with session.bulk() as bulk:
            await bulk.load(source, OwnerIn, batch_size=2)

    task = asyncio.create_task(load())
    await source.waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await task

    assert source.is_closed
    report: LoadReport = caught.value.report  # type: ignore[attr-defined]  # load() sets it
    assert (0, 1) == (report.rows, report.resume)
    assert not session.in_transaction()
    assert 0 == await count(session)


@pytest.mark.parametrize(
    "options", [{"commit": "never"}, {"batch_size": 1, "max_errors": 0}, {}], ids=str
)
async def test_closed(session: AsyncSession, options: dict[str, Any]) -> None:
    """However a load ends, the generator is closed."""
    source = Source().__aiter__()
    await anext(source)

    def progress(report: LoadReport) -> None:
        raise KeyError("progress")

    async with session.bulk() as bulk:
        with pytest.raises((LoadError, KeyError)):
            await bulk.load(source, OwnerIn, progress=progress, **options)

    with pytest.raises(StopAsyncIteration):
        await anext(source)


class Unwilling:
    """Gives rows, and an error when it is closed."""

    def __init__(self) -> None:
        self.codes = iter("abcd")

    def __aiter__(self) -> Unwilling:
        return self

    async def __anext__(self) -> dict[str, Any]:
        for code in self.codes:
            return {"code": code}
        raise StopAsyncIteration

    async def aclose(self) -> None:
        raise ValueError("closing")


async def test_error_of_closing(session: AsyncSession) -> None:
    """It hides neither what became of the rows nor why the load has failed."""

    def progress(report: LoadReport) -> None:
        raise KeyError("progress")

    async with session.bulk() as bulk:
        with pytest.raises(KeyError, match="progress") as failed:
            await bulk.load(Unwilling(), OwnerIn, progress=progress)
        with pytest.raises(ValueError, match="closing") as caught:
            await bulk.load(Unwilling(), OwnerIn)

    reports: list[LoadReport] = [e.value.report for e in (failed, caught)]  # type: ignore[union-attr]  # load() sets it
    assert [(0, False), (4, True)] == [(r.created, r.committed) for r in reports]
    assert ["load: the source could not be closed: ValueError('closing')"] == (
        failed.value.__notes__
    )
    assert 4 == await count(session)


async def test_no_mapping(session: AsyncSession) -> None:
    """What is no mapping is named by its number."""

    async def source() -> AsyncIterator[Any]:
        yield {"code": "a"}
        yield "b"

    async with session.bulk() as bulk:
        with pytest.raises(LoadError, match="row 2 of the source is no mapping"):
            await bulk.load(source(), OwnerIn)


async def test_progress_is_awaited(session: AsyncSession) -> None:
    """A coroutine function may tell the progress; its error ends the load."""
    seen = []

    async def progress(report: LoadReport) -> None:
        await asyncio.sleep(0)
        seen.append(report.rows)
        if report.rows > 4:
            raise KeyError("enough")

    rows = [{"code": str(n)} for n in range(10)]
    async with session.bulk() as bulk:
        await bulk.load(rows[:4], OwnerIn, batch_size=2, progress=progress)
        with pytest.raises(KeyError):
            await bulk.load(rows[4:], OwnerIn, batch_size=5, progress=progress)

    assert [2, 4, 4, 5] == seen
    assert 4 == await count(session)


async def test_others_run(session: AsyncSession) -> None:
    """The event loop runs after each batch, also of a source that is not async."""
    turns = 0
    seen: list[int] = []

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def progress(report: LoadReport) -> None:
        seen.append(turns)

    task = asyncio.create_task(others())
    rows = [{"code": str(n)} for n in range(6)]
    async with session.bulk() as bulk:
        await bulk.load(rows, OwnerIn, batch_size=2, progress=progress)
    task.cancel()

    assert sorted(set(seen)) == seen


def test_sync_refuses(tmp_path: Any) -> None:
    """A sync session cannot wait, and says so before anything is done."""

    async def progress(report: LoadReport) -> None: ...

    with Database(f"sqlite:///{tmp_path / 'tenure.db'}") as db:
        db.create_all(Base.metadata)
        with db.session() as session, session.bulk() as bulk:
            with pytest.raises(LoadError, match="an async source"):
                bulk.load(Source(), OwnerIn)  # type: ignore[arg-type]  # on purpose
            with pytest.raises(LoadError, match="coroutine function"):
                bulk.load([{"code": "a"}], OwnerIn, progress=progress)
            assert 0 == session.scalar(select(func.count()).select_from(Owner))
