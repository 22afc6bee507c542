"""Keys of types that have no hash, or more values than Python tells apart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import ARRAY, JSON, Double, Integer, Numeric, String, inspect
from sqlalchemy.dialects.mysql import VARCHAR
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import AsyncSession, Database, Ref, ResolutionError

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class Base(DeclarativeBase):
    pass


class Odd(Base):
    __tablename__ = "odd"

    # Else a zero is a number for MariaDB to give.
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    thing: Mapped[Any] = mapped_column(
        JSON().with_variant(JSONB(), "postgresql"), unique=True
    )
    path: Mapped[list[int] | None] = mapped_column(
        JSON().with_variant(ARRAY(Integer), "postgresql"), unique=True
    )
    raw: Mapped[bytes | None] = mapped_column(unique=True)
    ratio: Mapped[float | None] = mapped_column(Double, unique=True)
    price: Mapped[Decimal | None] = mapped_column(Numeric(20, 4), unique=True)
    text: Mapped[str | None] = mapped_column(
        # Otherwise blanks at the end and the form of an accent tell nothing apart.
        String(2_001).with_variant(
            VARCHAR(2_001, collation="utf8mb4_nopad_bin"), "mysql"
        ),
        unique=True,
    )


class Versioned(Base):
    """Written by the unit of work."""

    __tablename__ = "versioned"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012  # as SQLAlchemy has it
    thing: Mapped[Any] = mapped_column(
        JSON().with_variant(JSONB(), "postgresql"), unique=True
    )
    number: Mapped[int]


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("thing", [{"a": 1}, {"a": 2}, {"a": [1]}, [1], [2], [1, 2], "x"]),
        ("path", [[1], [2], [1, 2], [2, 1]]),
        ("raw", [b"", b"\0", b"\0\0", b"\xff", b"1"]),
        ("ratio", [1.0, -1.0, 0.1, 1e300, 5e-324]),
        ("price", [Decimal("1.0001"), Decimal("1.0002"), Decimal(2**50), Decimal(-1)]),
        ("text", ["", " ", "1", "a" * 2_000, "a" * 2_001, "\u00e9", "e\u0301", "\\'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_each_is_its_own(
    session: AsyncSession, name: str, values: list[Any]
) -> None:
    """Every key finds its own row, asked for all at once, some of them twice."""
    for number, value in enumerate(values):
        session.add(Odd(id=number, **{"thing": [number, "other"], name: value}))
    await session.commit()
    session.expunge_all()
    async with session.bulk() as bulk:
        found = TypeAdapter(list[Ref[Odd]]).validate_python(
            [{name: value} for value in [*values, *reversed(values)]]
        )
        resolution = await bulk.resolve()

    numbers = [*range(len(values))]
    assert len(values) == resolution.resolved
    assert [(n,) for n in [*numbers, *reversed(numbers)]] == [
        inspect(each).identity for each in found
    ]


async def test_upsert(session: AsyncSession) -> None:
    """Values are found by such keys as well, and two of one key are told apart."""
    session.add(Versioned(thing=[1], number=0))
    await session.commit()
    async with session.bulk() as bulk:
        for thing in ([1], [2], {"a": [1]}):
            bulk.add(Versioned(thing=thing, number=1))
        report = await bulk.commit(on_conflict="update")
        for _ in range(2):
            bulk.add(Versioned(thing=[3], number=2))
        with pytest.raises(ResolutionError, match="more than one value"):
            await bulk.flush(on_conflict="update")

    assert ["updated", "created", "created"] == report.statuses
