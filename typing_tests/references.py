"""What a type checker infers; checked, never run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Annotated, assert_type

import sqlmodel
from pydantic import BaseModel, TypeAdapter
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

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
    async_session_factory,
    async_session_manager,
    carry,
    gather,
    on_rollback,
    scoped_session,
    session_factory,
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
        report = bulk.load("x.csv", CityIn)
        assert_type(report, LoadReport)
        with ProcessPoolExecutor(2) as pool:
            bulk.load("x.csv", CityIn, executor=pool, commit="part", resume=report)
        assert_type(report.load_id, str | None)
        assert_type([part.done for part in report.parts], list[bool])


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
        assert_type(bulk.validate(CityIn | None, {}), CityIn | None)
        assert_type(bulk.validate(dict[str, CityIn], {}), dict[str, CityIn])
        assert_type(bulk.validate_json(list[CityIn] | None, ""), list[CityIn] | None)


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


class MySession(Session):
    def mine(self) -> int:
        return 1


class MyAsyncSession(AsyncSession):
    async def mine(self) -> int:
        return 1


def factories_and_blocks_keep_the_class(db: Database) -> None:
    factory = session_factory(routing=db.manager, class_=MySession)
    assert_type(factory, sessionmaker[MySession])
    assert_type(
        session_factory(scoped=True, class_=MySession), scoped_session[MySession]
    )
    assert_type(session_factory(routing=db.manager), sessionmaker[Session])
    with session_manager(using=factory, auto_commit=True) as session:
        assert_type(session, MySession)
        assert_type(session.mine(), int)
    with session_manager(
        using=session_factory(scoped=True, class_=MySession)
    ) as session:
        assert_type(session, MySession)
    with session_manager(using=db.session) as plain:
        assert_type(plain, Session)
    with session_manager() as current:
        assert_type(current, Session)


async def async_factories_and_blocks_keep_the_class(db: Database) -> None:
    factory = async_session_factory(routing=db.manager, class_=MyAsyncSession)
    assert_type(factory, async_sessionmaker[MyAsyncSession])
    async with async_session_manager(using=factory) as session:
        assert_type(session, MyAsyncSession)
        assert_type(await session.mine(), int)
    async with async_session_manager(using=db.async_session) as plain:
        assert_type(plain, AsyncSession)
    async with async_session_manager() as current:
        assert_type(current, AsyncSession)


def sqlmodels_session_keeps_exec(db: Database) -> None:
    class Mine(sqlmodel.Session, Session):  # pyright: ignore[reportIncompatibleMethodOverride]  # SQLModel's own
        pass

    with session_manager(
        using=session_factory(routing=db.manager, class_=Mine)
    ) as session:
        statement = sqlmodel.select(City.code)
        assert_type(session.exec(statement).one(), str)
