"""Bulks keep their word: what is added is written, or somebody hears about it."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ForeignKey, String, func, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    mapped_column,
    relationship,
)

from tenure import (
    ConflictError,
    Database,
    LoadError,
    Ref,
    ResolutionError,
    Resource,
    SessionError,
    Spec,
    UnwrittenValuesWarning,
    async_session_manager,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.pools import Pools

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class City(Resource, Base):
    __tablename__ = "kept_city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(10), unique=True)
    name: Mapped[str | None] = mapped_column(String(30))


class Trip(Resource, Base):
    __tablename__ = "kept_trip"
    __writable__ = ("no", "origin")

    id: Mapped[int] = mapped_column(primary_key=True)
    no: Mapped[int] = mapped_column(unique=True)
    note: Mapped[str | None] = mapped_column(String(30))
    origin_id: Mapped[int] = mapped_column(ForeignKey("kept_city.id"))
    origin: Mapped[City] = relationship(backref="trips")


class Stop(MappedAsDataclass, Base):
    __tablename__ = "kept_stop"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    no: Mapped[int]
    city_id: Mapped[int] = mapped_column(ForeignKey("kept_city.id"), init=False)
    city: Mapped[City] = relationship()
    note: Mapped[str] = mapped_column(String(30), default="none")


class TripIn(Spec[Trip]):
    no: int
    origin: Ref[City]


class CityIn(Spec[City]):
    code: str
    name: str | None = None


class StopIn(Spec[Stop]):
    no: int
    city: Ref[City]


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        async with db.async_session_manager(auto_commit=True) as session:
            session.add(City(code="PAR", name="Paris"))
        yield db
        assert [] == pools.out


async def count(db: Database, entity: Any) -> int:
    async with db.async_session() as session:
        return await session.scalar(select(func.count()).select_from(entity)) or 0


class TestForgotten:
    async def test_auto_commit_flushes(self, db: Database) -> None:
        """A block with auto_commit=True writes what its bulk holds."""
        async with async_session_manager(auto_commit=True) as session:
            async with session.bulk() as bulk:
                bulk.validate(TripIn, {"no": 1, "origin": "PAR"})
                await bulk.resolve()

        assert 1 == await count(db, Trip)

    async def test_resolves_first(self, db: Database) -> None:
        async with async_session_manager(auto_commit=True) as session:
            async with session.bulk() as bulk:
                bulk.validate(TripIn, {"no": 1, "origin": "PAR"})

        assert 1 == await count(db, Trip)

    async def test_joined_block_flushes(self, db: Database) -> None:
        """So does one that has joined, and counts on a commit."""
        async with async_session_manager(auto_commit=True):
            async with async_session_manager(auto_commit=True) as session:
                async with session.bulk() as bulk:
                    bulk.add(City(code="LON"))

        assert 2 == await count(db, City)

    async def test_does_not_overwrite(self, db: Database) -> None:
        """Nobody has said that rows may change."""
        with pytest.raises(ConflictError):
            async with async_session_manager(auto_commit=True) as session:
                async with session.bulk() as bulk:
                    bulk.validate(CityIn, {"code": "PAR", "name": "other"})
                    await bulk.resolve()

        async with db.async_session() as session:
            assert "Paris" == await session.scalar(select(City.name))

    async def test_warns(self, db: Database) -> None:
        """Otherwise a warning says how many of which class, and where."""
        async with async_session_manager() as session:
            bulk = await session.bulk().__aenter__()
            bulk.validate(list[CityIn], [{"code": "A"}, {"code": "B"}])
            bulk.validate(TripIn, {"no": 1, "origin": "PAR"})
            with pytest.warns(UnwrittenValuesWarning) as caught:
                await bulk.__aexit__(None, None, None)

        [warning] = caught
        for part in ("2 City, 1 Trip", "discard()", "auto_commit=True"):
            assert part in str(warning.message)
        assert warning.filename == __file__
        assert 0 == await count(db, Trip)

    @pytest.mark.parametrize(
        "way", ["flush", "rollback", "discard", "session", "error", "nothing"]
    )
    async def test_does_not_warn(self, db: Database, way: str) -> None:
        """Nothing is forgotten that was written, given away, or dropped on purpose."""

        async def use() -> None:
            async with async_session_manager() as session, session.bulk() as bulk:
                if way == "nothing":
                    return
                city = City(code="LON")
                bulk.add(city)
                if way == "discard":
                    bulk.discard()
                elif way == "session":
                    session.add(city)
                elif way == "error":
                    raise KeyError
                else:
                    await bulk.flush()
                if way == "rollback":
                    await bulk.rollback()

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if way == "error":
                with pytest.raises(KeyError):
                    await use()
            else:
                await use()

    async def test_error_leaves_the_rest(self, db: Database) -> None:
        """A block that an error leaves writes nothing."""
        with pytest.raises(KeyError):
            async with async_session_manager(auto_commit=True) as session:
                async with session.bulk() as bulk:
                    bulk.add(City(code="LON"))
                    raise KeyError

        assert 1 == await count(db, City)

    async def test_discarded(self, db: Database) -> None:
        """What was dropped is not written later, and may be added again."""
        async with async_session_manager(auto_commit=True) as session:
            async with session.bulk() as bulk:
                city = City(code="LON")
                bulk.add(city)
                bulk.validate(CityIn, {"code": "PAR", "name": "other"})
                await bulk.resolve(raise_errors=False)
                bulk.discard()
                assert [] == bulk.get(City, scope="values")
                bulk.add(city)

        async with db.async_session() as session:
            rows = await session.execute(select(City.code, City.name))
            assert {("PAR", "Paris"), ("LON", None)} == {tuple(row) for row in rows}


class TestResolvesFirst:
    async def test_flush(self, db: Database) -> None:
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(TripIn, {"no": 1, "origin": "PAR"})
            report = await bulk.commit()

        assert ["created"] == report.statuses

    async def test_all_failures(self, db: Database) -> None:
        """All that cannot be resolved is one error, and nothing is written."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.add(City(code="LON"))
            for number, code in enumerate(["X", "Y", "PAR"]):
                bulk.validate(TripIn, {"no": number, "origin": code})
            with pytest.raises(ResolutionError) as caught:
                await bulk.commit()

        assert [{"code": "X"}, {"code": "Y"}] == [f.key for f in caught.value.failures]
        assert 1 == await count(db, City)

    async def test_value_of_the_bulk(self, db: Database) -> None:
        """A reference to a value of the same bulk is that value."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.add(City(code="LON"))
            bulk.validate(TripIn, {"no": 1, "origin": "LON"})
            report = await bulk.commit()

        assert ["created", "created"] == report.statuses

    async def test_what_nobody_holds(self, db: Database) -> None:
        """A reference that no value holds may be missing."""
        async with db.async_session() as session, session.bulk() as bulk:
            TypeAdapter(Ref[City]).validate_python("nowhere")
            bulk.add(City(code="LON"))
            report = await bulk.commit()

        assert ["created"] == report.statuses

    async def test_not_twice(self, db: Database) -> None:
        """What is resolved already is not asked for again."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(TripIn, {"no": 1, "origin": "PAR"})
            await bulk.resolve()
            with count_statements(db.manager.async_engines["default"]) as counted:
                await bulk.flush()
            bulk.discard()

        assert not any("kept_city" in each for each in counted.texts)


class TestRow:
    async def test_of_a_spec(self, db: Database) -> None:
        """add() returns the instance that will be the row."""
        async with async_session_manager(auto_commit=True) as session:
            async with session.bulk() as bulk:
                row = bulk.add(TripIn(no=1, origin="PAR"))  # type: ignore[arg-type]  # a reference
                assert isinstance(row, Trip)
                assert 1 == row.no
                await bulk.flush()
                paris = select(City.id).where(City.code == "PAR")
                assert row.origin_id == await session.scalar(paris)
                assert row is await session.get(Trip, row.id)

    async def test_with_a_constructor(self, db: Database) -> None:
        """A constructor that needs a reference runs when it is there."""
        async with async_session_manager(auto_commit=True) as session:
            async with session.bulk() as bulk:
                row = bulk.add(StopIn(no=1, city="PAR"))  # type: ignore[arg-type]  # a reference
                assert 1 == row.no
                await bulk.flush()
                assert row is (await session.scalars(select(Stop))).one()
                assert ("none", City) == (row.note, type(row.city))

    async def test_of_an_instance(self, db: Database) -> None:
        async with db.async_session() as session, session.bulk() as bulk:
            city = City(code="LON")
            assert city is bulk.add(city)
            assert city is bulk.add(city)
            bulk.discard()

    async def test_changed_before_it_is_written(self, db: Database) -> None:
        """What is set in the instance before is written."""
        async with async_session_manager(auto_commit=True) as session:
            async with session.bulk() as bulk:
                for row in (
                    bulk.add(StopIn(no=1, city="PAR")),  # type: ignore[arg-type]  # a reference
                    bulk.add(CityIn(code="LON")),
                ):
                    setattr(row, "note" if isinstance(row, Stop) else "name", "mine")

        async with db.async_session() as session:
            assert "mine" == await session.scalar(select(Stop.note))
            name = select(City.name).where(City.code == "LON")
            assert "mine" == await session.scalar(name)


class TestSpec:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"nmae": str}, r"Bad.nmae is no attribute of City; did you mean 'name'\?"),
            (
                {"nothing": str | None},
                r"Bad.nothing is no attribute of City; one .*exclude=True",
            ),
        ],
    )
    async def test_unknown_field(self, fields: dict[str, Any], message: str) -> None:
        """A field that the class lacks is an error when the Spec is made."""
        with pytest.raises(LoadError, match=message):
            type("Bad", (Spec[City],), {"__annotations__": fields, "__module__": ""})

    async def test_back_reference(self) -> None:
        """A back reference may not be known yet."""

        class Good(Spec[City]):
            code: str
            trips: list[TripIn] | None = None

        assert "a" == Good(code="a").code


class TestWritable:
    """Nobody assigns by a payload what is not for it."""

    @pytest.mark.parametrize(
        ("entity", "payload", "where"),
        [
            (City, {"id": 7, "code": "LON"}, ("id",)),
            (Trip, {"no": 1, "origin": "PAR", "note": "x"}, ("note",)),
            (Trip, {"no": 1, "origin": "PAR", "id": 1}, ("id",)),
            (Trip, {"no": 1, "origin": {"id": 1, "code": "P"}}, ("origin", "id")),
            (Trip, {"no": 1, "origin_id": 1}, ("origin_id",)),
        ],
    )
    async def test_refused(
        self, entity: Any, payload: dict[str, Any], where: tuple[str, ...]
    ) -> None:
        with pytest.raises(ValidationError) as caught:
            entity.resource_validate(payload)

        found = {
            (error["loc"], error["type"]): error["input"]
            for error in caught.value.errors()
        }
        assert (where, "extra_forbidden") in found

    async def test_reference_by_id(self, db: Database) -> None:
        """A reference may name a row by any key, also by that."""
        async with async_session_manager(auto_commit=True) as session:
            city = (await session.scalars(select(City))).one()
            async with session.bulk() as bulk:
                bulk.validate(Trip, {"no": 1, "origin": {"id": city.id}})

        assert 1 == await count(db, Trip)

    async def test_schema(self) -> None:
        """The schema shows what is accepted."""
        schema = TypeAdapter(Trip).json_schema()
        written = TypeAdapter(Trip).json_schema(mode="serialization")

        assert {"no", "origin"} == schema["properties"].keys()
        assert {"id", "no", "note", "origin_id"} == written["properties"].keys()

    async def test_asked_for(self) -> None:
        """A class may list its primary key."""

        class Own(DeclarativeBase):
            pass

        class Keyed(Resource, Own):
            __tablename__ = "keyed"
            __writable__ = ("id",)
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None]

        assert 7 == Keyed.resource_validate({"id": 7}).id

    async def test_unknown(self) -> None:
        """A list that names what there is not is an error, when it is first used."""

        class Own(DeclarativeBase):
            pass

        class Wrong(Resource, Own):
            __tablename__ = "wrong"
            __writable__ = ("nmae",)
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None]

        with pytest.raises(SessionError, match=r"'nmae'.*did you mean 'name'\?"):
            Wrong.resource_validate({})
