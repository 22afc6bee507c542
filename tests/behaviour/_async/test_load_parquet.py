"""Loading Parquet files: types, nulls, columns, progress."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import func, select

from tenure import AsyncSession, LoadError, LoadReport, Spec
from tests.fixtures.models import Author, Sample

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

pytestmark = pytest.mark.anyio


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None


class SampleIn(Spec[Sample]):
    label: str
    moment: datetime | None = None
    price: Decimal | None = None
    ratio: float | None = None
    whole: int | None = None
    raw: bytes | None = None


def written(folder: Path, columns: Any, **options: Any) -> Path:
    path = folder / "source.parquet"
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    parquet.write_table(table, path, **options)
    return path


async def load(
    session: AsyncSession, source: Any, into: Any = AuthorIn, **options: Any
) -> LoadReport:
    async with session.bulk() as bulk:
        return await bulk.load(source, into, **options)


async def test_types(session: AsyncSession, tmp_path: Path) -> None:
    """Values come as what they are: nothing goes through text."""
    moment = datetime(2024, 5, 1, 12, 30, 0, 123456, tzinfo=UTC)
    nanoseconds = pa.scalar(moment, pa.timestamp("us", "UTC")).cast(
        pa.timestamp("ns", "Europe/Paris")
    )
    table = pa.table(
        {
            "label": pa.array(["a", "b", "a b"]).dictionary_encode(),
            "moment": pa.array(
                [nanoseconds.value + 7, None, None], pa.timestamp("ns", "Europe/Paris")
            ),
            "price": pa.array([Decimal("1.10"), None, None], pa.decimal128(6, 2)),
            "ratio": pa.array([0.1, None, None]),
            "whole": pa.array([2**31 - 1, None, None], pa.int32()),
            "raw": pa.array([b"\x00\x01", None, None]),
        }
    )
    report = await load(session, written(tmp_path, table), SampleIn)
    sample = (await session.scalars(select(Sample).filter_by(label="a"))).one()

    assert (3, 3) == (report.rows, report.created)
    assert (Decimal("1.10"), 0.1, 2**31 - 1, b"\x00\x01") == (
        sample.price,
        sample.ratio,
        sample.whole,
        sample.raw,
    )
    # SQLite keeps what the clock showed, and no zone.
    shown = moment.astimezone(ZoneInfo("Europe/Paris"))
    assert sample.moment in (moment, shown.replace(tzinfo=None))


@pytest.mark.parametrize("batch_size", [2, 1_000])
async def test_rows(session: AsyncSession, tmp_path: Path, batch_size: int) -> None:
    """Rows are numbered from 1, over row groups; those before a start are left out."""
    codes = [str(n) for n in range(10)]
    path = written(tmp_path, {"code": codes, "name": [None] * 10}, row_group_size=4)
    first = await load(session, path, batch_size=batch_size, start=6)
    second = await load(
        session, path, batch_size=batch_size, max_errors=None, rejects=tmp_path / "r"
    )

    assert (5, 5) == (first.rows, first.created)
    assert [6, 7, 8, 9, 10] == [reject.line for reject in second.rejects]
    assert {"code": "5", "name": None} == second.rejects[0].row
    assert 10 == await session.scalar(select(func.count()).select_from(Author))


async def test_progress(session: AsyncSession, tmp_path: Path) -> None:
    """Bytes grow by row groups, to the whole."""
    path = written(tmp_path, {"code": [str(n) for n in range(9)]}, row_group_size=3)
    seen = []

    def progress(report: LoadReport) -> None:
        seen.append((report.bytes_read, report.bytes_total))

    await load(session, path, batch_size=4, progress=progress)

    assert sorted(seen) == seen
    assert 0 < seen[0][0] < seen[0][1]
    assert seen[-1][0] == seen[-1][1]


async def test_columns(session: AsyncSession, tmp_path: Path) -> None:
    """Columns are checked before any row is read."""
    with pytest.raises(LoadError, match="knows no column 'nmae'"):
        await load(session, written(tmp_path, {"code": ["a"], "nmae": ["b"]}))
    with pytest.raises(LoadError, match="has no column 'code'"):
        await load(session, written(tmp_path, {"name": ["b"]}))


async def test_unreadable(session: AsyncSession, tmp_path: Path) -> None:
    """What is no Parquet, is cut off or cannot be sought in, is an error that says so."""
    path = tmp_path / "source.parquet"
    with pytest.raises(LoadError, match="cannot read"):
        await load(session, path)
    path.write_text("code\na\n")
    with pytest.raises(LoadError, match="as Parquet"):
        await load(session, path)
    data = written(tmp_path, {"code": ["a"]}).read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(LoadError, match="as Parquet"):
        await load(session, path)


async def test_open_file(session: AsyncSession, tmp_path: Path) -> None:
    """An open file is read, and left open."""
    with written(tmp_path, {"code": ["a"]}).open("rb") as file:
        report = await load(session, file, format="parquet")
        assert not file.closed

    assert 1 == report.created


async def test_not_installed(
    session: AsyncSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pyarrow the error names the extra."""
    path = written(tmp_path, {"code": ["a"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LoadError, match=r"install tenure\[parquet\]"):
        await load(session, path)
