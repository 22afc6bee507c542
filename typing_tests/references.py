"""What a type checker infers; checked, never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, assert_type

from pydantic import BaseModel, TypeAdapter
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import (
    AsyncSession,
    BulkReport,
    Choice,
    Database,
    Key,
    LoadReport,
    Ref,
    Resolution,
    Resource,
    Session,
    Spec,
    async_session_manager,
    carry,
    gather,
    on_rollback,
    session_manager,
)


class Base(DeclarativeBase):
    pass


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str]


class Trip(BaseModel):
    origin: Ref[City]
    destination: Ref[City] | None
    stops: list[Ref[City]]
    home: Annotated[City, Key("code")]


class CityIn(Spec[City]):
    code: str


class Visit(Resource, Base):
    __tablename__ = "visit"

    id: Mapped[int] = mapped_column(primary_key=True)


def references_are_what_they_refer_to(trip: Trip, spec: CityIn) -> None:
    assert_type(trip.origin, City)
    assert_type(trip.destination, City | None)
    assert_type(trip.stops, list[City])
    assert_type(trip.home, City)
    assert_type(trip.origin.code, str)
    assert_type(spec.to_resource(), City)


def resources_are_of_their_class() -> None:
    assert_type(Visit.resource_validate({}), Visit)
    assert_type(Visit.resource_validate_json("{}"), Visit)
    assert_type(Visit.resource_validate_many([{}]), list[Visit])


def scopes_give_sessions(db: Database) -> None:
    with db.session_manager() as session, session.bulk() as bulk:
        assert_type(session, Session)
        assert_type(bulk.get(City), list[City])
        assert_type(bulk.resolve(), Resolution)
        assert_type(bulk.load("x.csv", CityIn), LoadReport)


async def async_scopes_give_async_sessions(db: Database) -> None:
    async with db.async_session_manager() as session, session.bulk() as bulk:
        assert_type(session, AsyncSession)
        assert_type(await bulk.resolve(), Resolution)
        assert_type(await bulk.commit(on_conflict="update"), BulkReport)
        assert_type(await bulk.rollback(), None)
        assert_type(await bulk.load("x.csv", CityIn), LoadReport)


async def decorators_keep_functions() -> None:
    @session_manager
    def bare(number: int) -> str:
        return ""

    @session_manager(auto_commit=True)
    def called(number: int) -> str:
        return ""

    @async_session_manager
    async def awaited(number: int) -> str:
        return ""

    assert_type(bare(1), str)
    assert_type(called(1), str)
    assert_type(await awaited(1), str)


def rows_are_of_the_class(session: Session) -> None:
    with session.bulk() as bulk:
        assert_type(bulk.add(CityIn(code="a")), City)
        assert_type(bulk.add(City(code="a")), City)
        assert_type(bulk.validate(CityIn, {}), CityIn)
        assert_type(bulk.validate(list[CityIn], []), list[CityIn])
        assert_type(bulk.validate(TypeAdapter(CityIn | None), {}), CityIn | None)


async def gathered(db: Database) -> None:
    async def count() -> int:
        return 1

    assert_type(await gather(count, count), list[int])


def callbacks_are_what_they_were(session: Session) -> None:
    @session.on_commit
    def send() -> int:
        return 1

    assert_type(send(), int)
    assert_type(on_rollback(send), Callable[[], int])
    assert_type(session.explain(City), Choice)


async def carried_functions_are_what_they_were() -> None:
    def count(number: int) -> str:
        return ""

    async def ask(number: int) -> str:
        return ""

    assert_type(carry(count)(1), str)
    assert_type(await carry(ask)(1), str)
