"""What a bulk that the database refuses says of its values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from sqlalchemy import JSON, ForeignKey, String, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

from tenure import AsyncSession, Database, ResolutionError, Spec
from tests.fixtures.models import Base, Country, Region

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class CountryIn(Spec[Country]):
    code: str
    name: str | None = None


class OddBase(DeclarativeBase):
    pass


class Versioned(OddBase):
    __tablename__ = "refused_version"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    name: Mapped[str] = mapped_column(String(10))
    __mapper_args__: Mapping[str, Any] = {"version_id_col": version}


class Joined(OddBase):
    __tablename__ = "refused_joined"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))
    __mapper_args__: Mapping[str, Any] = {
        "polymorphic_on": kind,
        "polymorphic_identity": "joined",
    }


class Further(Joined):
    __tablename__ = "refused_further"

    id: Mapped[int] = mapped_column(ForeignKey(Joined.id), primary_key=True)
    name: Mapped[str] = mapped_column(String(10))
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": "further"}


class Odd(OddBase):
    __tablename__ = "odd_key"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[Any] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))
    length: Mapped[int] = mapped_column(unique=True)
    twice: Mapped[int] = column_property(length * 2)
    __identifiers__ = (("key",),)


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


async def refused(
    session: AsyncSession, *values: object, flushes: bool = False
) -> list[Any]:
    """Write values that are refused; give what is said of each that is at fault."""
    async with session.bulk() as bulk:
        for value in values:
            bulk.add(value)
        await bulk.resolve(raise_errors=False)
        with pytest.raises(IntegrityError) as caught:
            await (bulk.flush() if flushes else bulk.commit())
        await session.rollback()

    report = caught.value.report
    assert len(values) == report.failed == len(report.statuses)
    told = "".join(getattr(caught.value, "__notes__", ()))
    for failure in report.failures[:5]:
        assert str(failure) in told
    return [(f.entity, f.key, f.reason) for f in report.failures]


@pytest.mark.parametrize("made_by", [Country, CountryIn])
class TestDuplicates:
    @pytest.mark.parametrize("inside", [False, True])
    async def test_of_rows(
        self, session: AsyncSession, made_by: type, inside: bool
    ) -> None:
        """All values whose key a row has are named, not only the first one."""
        session.add_all([Country(code="aa"), Country(code="bb")])
        await session.commit()
        if inside:
            await session.execute(select(Country))
        values = [made_by(code=code) for code in ("new", "bb", "aa")]
        async with session.bulk() as bulk:
            for value in values:
                bulk.add(value)
            with pytest.raises(IntegrityError) as caught:
                await bulk.commit()
            assert inside is session.in_transaction()

        report = caught.value.report
        assert ["failed"] * 3 == report.statuses
        assert [{"code": "bb"}, {"code": "aa"}] == [f.key for f in report.failures]
        assert {"duplicate"} == {f.reason for f in report.failures}
        assert 2 == await session.scalar(select(func.count(Country.id)))

    async def test_of_values(self, session: AsyncSession, made_by: type) -> None:
        """So are values that have one key."""
        values = [made_by(code=code) for code in ("one", "two", "one")]
        found = await refused(session, *values, flushes=True)

        assert [(Country, {"code": "one"}, "duplicate")] == found


async def test_nulls(session: AsyncSession) -> None:
    """Values that lack what a column needs are named, and so is the column."""
    country = Country(code="aa")
    values = [country, Region(zone=1, country=country), Region(zone=2), Country()]
    async with session.bulk() as bulk:
        for value in values:
            bulk.add(value)
        with pytest.raises(IntegrityError) as caught:
            await bulk.flush()

    report = caught.value.report
    assert [
        "Region() is null: country_id may not be null",
        "Country() is null: code may not be null",
    ] == list(map(str, report.failures))


@pytest.mark.parametrize("entity", [Versioned, Further])
async def test_nulls_that_are_filled(
    db: Database, session: AsyncSession, entity: Any
) -> None:
    """A value is not at fault for what the flush or a joined table fills."""
    await db.acreate_all(OddBase.metadata)
    async with session.bulk() as bulk:
        for value in (entity(name="good"), entity()):
            bulk.add(value)
        with pytest.raises(IntegrityError) as caught:
            await bulk.commit()

    failures = caught.value.report.failures
    assert [(entity, "null", "name may not be null")] == [
        (failure.entity, failure.reason, failure.message) for failure in failures
    ]


async def test_of_no_value(session: AsyncSession) -> None:
    """What nobody can tell is not made up."""
    session.add(Country(code="aa", id=70))
    await session.commit()
    found = await refused(session, Region(country_id=999, zone=1), Country(code="bb"))

    assert [] == found


async def test_unresolved(session: AsyncSession) -> None:
    """An error that names its failures has them in its report as well."""
    async with session.bulk() as bulk:
        for value in (Country(code="aa"), Country(code="aa")):
            bulk.add(value)
        with pytest.raises(ResolutionError) as caught:
            await bulk.commit(on_conflict="update")

    report = caught.value.report
    assert 2 == report.failed
    assert caught.value.failures == report.failures


async def test_keys_without_a_hash(db: Database, session: AsyncSession) -> None:
    """Keys that Python cannot put into a dictionary are told as others are."""
    await db.acreate_all(OddBase.metadata)
    values = [Odd(key=[1], length=1), Odd(key=[2], length=2), Odd(key=[1], length=1)]
    found = await refused(session, *values)

    assert [
        (Odd, {"key": [1]}, "duplicate"),
        (Odd, {"length": 1}, "duplicate"),
    ] == found
