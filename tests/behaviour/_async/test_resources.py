"""Mapped classes as payloads: what a bulk makes of them, and what is never written."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextvars import copy_context
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from sqlalchemy import func, select, text

from tenure import (
    AsyncSession,
    Database,
    Key,
    Proxy,
    Ref,
    ResolutionError,
    Spec,
    UnresolvedReferenceError,
)
from tests.fixtures.flights import (
    Airline,
    Airport,
    Base,
    Flight,
    Leg,
    Member,
    Pilot,
    Steward,
    Tag,
    Trip,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


@pytest.fixture
async def session(db: Database) -> AsyncIterator[AsyncSession]:
    async with db.async_session() as session:
        yield session


class FlightIn(Spec[Flight]):
    number: int
    airline: Ref[Airline]


class AirportIn(Spec[Airport]):
    code: str
    name: str


class LegIn(Spec[Leg]):
    flight: Ref[Flight]
    position: int


class FlightWithOrigin(Spec[Flight]):
    number: int
    airline: Ref[Airline]
    origin: AirportIn


class Envelope(BaseModel):
    flight: Flight


async def airlines(session: AsyncSession, *codes: str) -> None:
    """Write airlines that nobody has loaded."""
    session.add_all([Airline(code=code, name=f"the {code}") for code in codes])
    await session.commit()
    session.expunge_all()


async def count(session: AsyncSession, entity: type[Base]) -> int | None:
    return await session.scalar(select(func.count()).select_from(entity))


async def written(session: AsyncSession, columns: str, table: str) -> list[Any]:
    rows = await session.execute(text(f"SELECT {columns} FROM {table} ORDER BY 1"))
    return [tuple(row) for row in rows]


class TestWriting:
    async def test_references(self, session: AsyncSession) -> None:
        """A value whose reference was resolved is a row with its foreign key."""
        await airlines(session, "AA", "BB")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate({"number": 1, "airline": "BB"})
            other = Flight.resource_validate({"number": 2, "airline": {"code": "BB"}})
            await bulk.resolve()
            assert type(flight.__dict__["airline"]) is Airline
            report = await bulk.commit()

        assert ["created", "created"] == report.statuses
        assert flight.airline is other.airline
        assert [(1, "BB"), (2, "BB")] == await written(
            session, "number, code", "flight JOIN airline ON airline_id = airline.id"
        )

    async def test_nested(self, session: AsyncSession) -> None:
        """Values inside of values are rows, linked both ways."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate(
                {
                    "number": 1,
                    "airline": "AA",
                    "origin": {"code": "CDG", "name": "Roissy"},
                    "legs": [{"position": 1}, {"position": 2, "note": "long"}],
                    "tags": [{"name": "new", "colour": "red"}],
                    "crew": [
                        {"kind": "pilot", "name": "Ann", "hours": 9},
                        {"kind": "steward", "name": "Bo", "language": "fr"},
                    ],
                }
            )
            kinds = [type(entry.instance) for entry in bulk.entries()]
            await bulk.resolve()
            report = await bulk.commit()

        assert [Proxy, Airport, Leg, Leg, Tag, Pilot, Steward, Flight] == kinds
        assert 7 == report.created
        assert [flight] * 2 == [leg.flight for leg in flight.legs]
        assert {"Ann", "Bo"} == set(flight.crew)
        assert [(1, None), (2, "long")] == await written(
            session, "position, note", "leg JOIN flight ON flight_id = flight.id"
        )
        assert [("Ann", 9, None), ("Bo", None, "fr")] == await written(
            session, "name, hours, language", "member WHERE flight_id IS NOT NULL"
        )
        assert [("new",)] == await written(
            session, "name", "tag JOIN flight_tag ON tag_id = tag.id"
        )

    async def test_references_in_collections(self, session: AsyncSession) -> None:
        """Lists, sets and dictionaries of references hold the rows afterwards."""
        await airlines(session, "AA")
        session.add_all([Tag(name="a"), Tag(name="b"), Pilot(name="Ann")])
        session.add(Trip(code="part"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            flight = Flight.resource_validate(
                {
                    "number": 1,
                    "airline": "AA",
                    "tags": ["a", {"name": "b"}, {"name": "c", "colour": "red"}],
                    "crew": ["Ann", {"kind": "pilot", "name": "Bo", "hours": 1}],
                }
            )
            trip = Trip.resource_validate(
                {
                    "code": "whole",
                    "note": "n",
                    "parts": ["part", {"code": "x", "note": ""}],
                }
            )
            await bulk.resolve(strategy="hydrate", raise_errors=False)
            assert {"a", "b", "c"} == {tag.name for tag in flight.tags}
            assert isinstance(flight.tags, set)
            assert {"Ann", "Bo"} == set(flight.crew)
            await bulk.commit()

        assert [("a",), ("b",), ("c",)] == await written(
            session, "name", "tag JOIN flight_tag ON tag_id = tag.id"
        )
        assert 2 == await count(session, Member)
        assert [("part",), ("x",)] == await written(
            session, "code", f"trip WHERE parent_id = {trip.id}"
        )

    async def test_of_the_same_bulk(self, session: AsyncSession) -> None:
        """A reference to a value of the bulk is that value; circles are, too."""
        async with session.bulk() as bulk:
            one, two, three = Trip.resource_validate_many(
                [
                    {"code": "1", "parent": "2"},
                    {"code": "2", "parent": "3"},
                    {"code": "3", "parts": ["2"]},
                ]
            )
            resolution = await bulk.resolve()
            await bulk.commit()

        assert 0 == resolution.unresolved
        assert (two, three, None) == (one.parent, two.parent, three.parent)
        assert [("1", "2"), ("2", "3")] == await written(
            session,
            "part.code, whole.code",
            "trip part JOIN trip whole ON part.parent_id = whole.id",
        )

    async def test_unset_stays_unset(self, session: AsyncSession) -> None:
        """Defaults are those of the column; an update touches what was given."""
        await airlines(session, "AA", "BB")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate(
                {"number": 1, "airline": "AA", "price": "1.50", "tail": "N1"}
            )
            assert "status" not in flight.__dict__
            await bulk.resolve()
            await bulk.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            Flight.resource_validate(
                {"number": 1, "airline": "BB", "status": "late", "tail": None}
            )
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        assert ["updated"] == report.statuses
        assert [(1, "late", 1.5, None, "BB")] == [
            (number, status, float(price), tail, code)
            for number, status, price, tail, code in await written(
                session,
                "number, status, db_price, tail, code",
                "flight JOIN airline ON airline_id = airline.id",
            )
        ]

    @pytest.mark.parametrize("scope", ["all", "references"])
    async def test_update_of_nested_values(
        self, session: AsyncSession, scope: Literal["all", "references"]
    ) -> None:
        """Values inside of values that are rows already are updated as well."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            Flight.resource_validate(
                {"number": 1, "airline": "AA", "legs": [{"position": 1}]}
            )
            await bulk.resolve()
            await bulk.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            airline = bulk.validate(
                Envelope,
                {
                    "flight": {
                        "number": 1,
                        "status": "late",
                        "airline": {
                            "code": "AA",
                            "name": "new",
                            "flights": [{"number": 2, "notes": ["n"]}],
                        },
                    }
                },
            ).flight.airline
            await bulk.resolve(scope=scope, raise_errors=False)
            report = await bulk.commit(on_conflict="update")

        assert "new" == airline.name
        assert (2, 1) == (report.updated, report.created)
        assert [("AA", "new")] == await written(session, "code, name", "airline")
        assert [(1, "late", 1), (2, "planned", 1)] == await written(
            session, "number, status, airline_id", "flight"
        )
        assert 1 == await count(session, Leg)

    async def test_update_of_collections(self, session: AsyncSession) -> None:
        """A collection of a row becomes what was given for it, of whatever kind."""
        await airlines(session, "AA")
        for names in (["a", "b"], ["b", "c"], []):
            session.expunge_all()
            async with session.bulk() as bulk:
                Flight.resource_validate(
                    {
                        "number": 1,
                        "airline": "AA",
                        "tags": [{"name": name, "colour": "red"} for name in names],
                    }
                )
                await bulk.resolve(raise_errors=False)
                await bulk.commit(on_conflict="update")

            assert [(name,) for name in names] == await written(
                session, "name", "tag JOIN flight_tag ON tag_id = tag.id"
            )

    @pytest.mark.parametrize("order", [1, -1])
    async def test_made_outside_and_named_by_another(
        self, session: AsyncSession, order: int
    ) -> None:
        """A reference to a value with references of its own, whichever comes first."""
        await airlines(session, "AA")

        class NamedLeg(Spec[Leg]):
            position: int
            flight: Annotated[Flight, Key("number")]

        values: list[Any] = [
            Flight.resource_validate({"number": 1, "airline": "AA"}),
            NamedLeg.model_validate({"position": 1, "flight": 1}),
        ]
        async with session.bulk() as bulk:
            for value in values[::order]:
                bulk.add(value)
            await bulk.resolve()
            report = await bulk.commit()

        assert 2 == report.created

    async def test_made_outside_one_by_one(self, session: AsyncSession) -> None:
        """References that were made apart are one new value of the bulk."""
        flights = [
            Flight.resource_validate({"number": number, "airline": "ZZ"})
            for number in (1, 2)
        ]
        async with session.bulk() as bulk:
            for flight in flights:
                bulk.add(flight)
            airline = Airline(code="ZZ", name="z")
            bulk.add(airline)
            resolution = await bulk.resolve()
            report = await bulk.commit()

        assert (1, 0) == (resolution.resolved, resolution.unresolved)
        assert 3 == report.created
        assert 2 == await session.scalar(
            select(func.count()).where(Flight.airline_id.is_not(None))
        )

    async def test_new_values_on_both_sides_of_a_collection(
        self, session: AsyncSession
    ) -> None:
        """Nothing is lost of it in a session that is in a transaction already."""
        await airlines(session, "AA")
        session.add(Tag(name="old"))
        await session.commit()
        await session.scalar(select(func.count()).select_from(Tag))
        async with session.bulk() as bulk:
            new = Tag(name="new")
            bulk.add(new)
            given = {"number": 1, "airline": "AA", "tags": ["new", "old"]}
            Flight.resource_validate(given)
            await bulk.resolve()
            await bulk.commit()

        assert [("new",), ("old",)] == sorted(
            await written(session, "name", "tag JOIN flight_tag ON tag_id = tag.id")
        )

    async def test_with_placeholders(self, session: AsyncSession) -> None:
        """A value's references may be asked for as instances of their classes."""
        await airlines(session, "AA")
        async with session.bulk(proxy_reference=False) as bulk:
            given = {"number": 1, "airline": "AA", "tags": ["a"]}
            flight = Flight.resource_validate(given)
            missing = await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError, match="'a'"):
                await bulk.flush()
            before = await session.scalar(select(func.count()).select_from(Flight))
            tag = Tag(name="a")
            bulk.add(tag)
            await bulk.resolve(strategy="hydrate")
            held = flight.airline.code, flight.tags
            report = await bulk.commit()

        assert 1 == missing.unresolved
        assert 0 == before
        assert 2 == report.created
        assert ("AA", {tag}) == held

    async def test_made_outside(self, session: AsyncSession) -> None:
        """Validated before there is a bulk, a payload is added with all it holds."""
        await airlines(session, "AA")
        flight = Flight.resource_validate(
            {"number": 1, "airline": "AA", "origin": {"code": "CDG", "name": "R"}}
        )
        async with session.bulk() as bulk:
            bulk.add(flight)
            bulk.add(flight)
            await bulk.resolve()
            report = await bulk.commit()

        assert 2 == report.created
        assert [("AA", "CDG")] == await written(
            session,
            "airline.code, airport.code",
            "flight JOIN airline ON airline_id = airline.id "
            "JOIN airport ON origin_id = airport.id",
        )

    async def test_added_late(self, session: AsyncSession) -> None:
        """What was made outside refers to what the bulk has resolved before."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            bulk.validate(Ref[Airline], "AA")
            await bulk.resolve()
        flight = Flight.resource_validate({"number": 1, "airline": "AA"})
        bulk.add(flight)
        await bulk.commit()

        assert [(1, 1)] == await written(session, "number, airline_id", "flight")

    async def test_inside_of_a_model(self, session: AsyncSession) -> None:
        """A model that holds a value made before is added with the value."""
        await airlines(session, "AA")
        given = {"flight": {"number": 1, "airline": "AA"}}
        envelope = Envelope.model_validate(given)
        async with session.bulk() as bulk:
            bulk.add(envelope)
            await bulk.resolve()
            report = await bulk.commit()

        assert ["created"] == report.statuses

    async def test_without_references(self, session: AsyncSession) -> None:
        """A value that refers to nothing needs no bulk."""
        flight = Flight.resource_validate(
            {
                "number": 1,
                "airline": {
                    "code": "AA",
                    "name": "n",
                    "flights": [{"number": 2, "notes": []}],
                },
            }
        )
        session.add(flight)
        await session.commit()

        assert [(1, 1), (2, 1)] == await written(
            session, "number, airline_id", "flight"
        )

    async def test_instance_is_used(self, session: AsyncSession) -> None:
        """An instance in a payload is used as it is, and is no value of the bulk."""
        airline = Airline(code="AA", name="n")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate({"number": 1, "airline": airline})
            same = Flight.resource_validate(flight)
            values = bulk.get(Base, scope="values")
            await bulk.commit()

        assert airline is flight.airline
        assert same is flight
        assert [flight] == values
        assert [flight] == airline.flights


class TestUnresolved:
    """What is not resolved is never written, by any way."""

    async def test_add(self, session: AsyncSession) -> None:
        """``session.add`` of a value with an unresolved reference names its key."""
        flight = Flight.resource_validate({"number": 1, "airline": "XX"})
        with pytest.raises(UnresolvedReferenceError, match=r"Airline\(code='XX'\)"):
            session.add(flight)
        with pytest.raises(UnresolvedReferenceError, match=r"Airline\(code='XX'\)"):
            await session.flush()
        await session.rollback()

        assert 0 == await count(session, Flight)

    async def test_optional(self, session: AsyncSession) -> None:
        """A reference that may be null does not become null."""
        airline = Airline(code="AA", name="n")
        flight = Flight.resource_validate(
            {"number": 1, "airline": airline, "origin": "XXX"}
        )
        with pytest.raises(UnresolvedReferenceError, match=r"Airport\(code='XXX'\)"):
            session.add(flight)

    async def test_merge(self, session: AsyncSession) -> None:
        """So does ``session.merge``."""
        flight = Flight.resource_validate({"number": 1, "airline": "XX"})
        with pytest.raises(UnresolvedReferenceError, match=r"Airline\(code='XX'\)"):
            await session.merge(flight)

    @pytest.mark.parametrize("name", ["tags", "legs", "crew"])
    async def test_collection(self, session: AsyncSession, name: str) -> None:
        """So do collections that hold one."""
        given = {
            "tags": ["xx"],
            "legs": [
                {"flight": {"id": 1}, "position": 1},
                {"position": 2, "note": "n"},
            ],
            "crew": ["xx"],
        }[name]
        airline = Airline(code="AA", name="n")
        flight = Flight.resource_validate(
            {"number": 1, "airline": airline, name: given}
        )
        with pytest.raises(UnresolvedReferenceError):
            await session.merge(flight)
        with pytest.raises(UnresolvedReferenceError):
            session.add(flight)

    async def test_by_cascade(self, session: AsyncSession) -> None:
        """A value that comes into the session by what refers to it is not written."""
        flight = Flight.resource_validate({"number": 1, "airline": "XX"})
        leg = Leg(position=1)
        session.add(leg)
        with pytest.raises(UnresolvedReferenceError):
            leg.flight = flight
            await session.flush()
        await session.rollback()

        assert 0 == await count(session, Leg)

    async def test_missing(self, session: AsyncSession) -> None:
        """What was not found is not written, and can be resolved when it is there."""
        async with session.bulk() as bulk:
            flight = Flight.resource_validate(
                {"number": 1, "airline": "AA", "tags": ["a"], "crew": []}
            )
            await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError):
                await bulk.flush()
            assert type(flight.airline) is Proxy
            session.add_all([Airline(code="AA", name="n"), Tag(name="a")])
            await session.flush()
            await bulk.resolve(strategy="hydrate")
            await bulk.commit()

        assert "n" == flight.airline.name
        assert ["a"] == [tag.name for tag in flight.tags]
        assert 1 == await count(session, Flight)

    async def test_waits_for_the_other_side(self, session: AsyncSession) -> None:
        """What refers to a value that waits for a reference waits with it."""
        async with session.bulk() as bulk:
            first = Flight.resource_validate(
                {
                    "number": 1,
                    "airline": {
                        "code": "AA",
                        "name": "n",
                        "flights": [{"number": 2, "notes": []}, {"id": 7}],
                    },
                }
            )
            resolution = await bulk.resolve(raise_errors=False)
            assert 1 == resolution.unresolved
            with pytest.raises(UnresolvedReferenceError, match=r"Flight\(id=7\)"):
                session.add(first)
            session.expunge_all()
            other = Airline(code="BB", name="b")
            session.add(Flight(id=7, number=7, airline=other))
            await session.flush()
            await bulk.resolve()
            await bulk.commit()

        assert {1, 2, 7} == {flight.number for flight in first.airline.flights}
        assert [(1, "AA"), (2, "AA"), (7, "AA")] == await written(
            session, "number, code", "flight JOIN airline ON airline_id = airline.id"
        )

    async def test_by_two_references_of_one_row(self, session: AsyncSession) -> None:
        """A key is the same whichever reference to what it holds was looked at."""
        await airlines(session, "AA")
        session.add(Flight(number=1, airline_id=1))
        await session.commit()
        outside = LegIn(flight={"number": 1}, position=7)
        async with session.bulk() as bulk:
            bulk.validate(Ref[Flight], {"number": 1})
            bulk.add(outside)
            await bulk.resolve()
            key = {"flight": {"number": 1}, "position": 7}
            leg = bulk.validate(Ref[Leg], key)
            bulk.add(FlightIn(number=1, airline="AA"))
            await bulk.resolve()
            await bulk.commit()

        assert 7 == leg.position

    async def test_leads_nobody_to_it(self, session: AsyncSession) -> None:
        """What waits for one reference is not reached by way of the others."""
        session.add(Tag(name="red"))
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            bulk.validate(Flight, {"number": 1, "airline": "AA", "tags": ["red"]})
            await bulk.resolve()
            await bulk.flush()
            bulk.validate(Flight, {"number": 2, "airline": "ZZ", "tags": ["red"]})
            [tag] = bulk.get(Tag)
            tag.colour = "dark"
            await session.flush()
            assert 1 == await session.scalar(select(func.count(Flight.id)))
            session.add(Airline(code="ZZ", name="of ZZ"))
            await session.flush()
            await bulk.resolve()
            await bulk.commit()

        found = await session.scalars(
            select(Flight.number).join(Flight.tags).order_by(Flight.number)
        )
        assert [1, 2] == list(found)

    async def test_many_to_many(self, session: AsyncSession) -> None:
        """So it is on both sides of a link table."""
        async with session.bulk() as bulk:
            flight = Flight.resource_validate(
                {
                    "number": 1,
                    "airline": {"code": "AA", "name": "n"},
                    "tags": [{"name": "t", "flights": [{"id": 7}]}],
                }
            )
            with pytest.raises(UnresolvedReferenceError, match=r"Flight\(id=7\)"):
                session.add(flight)
            session.expunge_all()
            session.add(Flight(id=7, number=7, airline=Airline(code="BB", name="n")))
            await session.flush()
            await bulk.resolve()
            await bulk.commit()

        assert [(1,), (7,)] == await written(
            session, "number", "flight JOIN flight_tag ON flight_id = flight.id"
        )

    async def test_references_only_of_both_sides(self, session: AsyncSession) -> None:
        """Nor does one that waited hide from what another one of them sets."""
        session.add(Trip(code="x"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            trip = Trip.resource_validate(
                {"code": "2", "parent": {"code": "1", "note": "n", "parts": ["x"]}}
            )
            await bulk.resolve(scope="references")
            session.add(trip)
            await session.commit()

        assert [("2", "1"), ("x", "1")] == await written(
            session,
            "part.code, whole.code",
            "trip part JOIN trip whole ON part.parent_id = whole.id",
        )

    async def test_references_only(self, session: AsyncSession) -> None:
        """After resolving only references a value can be added as it is."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate({"number": 1, "airline": "AA"})
            await bulk.resolve(scope="references")
            assert Airline is type(flight.__dict__["airline"])
            session.add(flight)
            await session.commit()

        assert 1 == await count(session, Flight)


class TestRegistration:
    """A payload registers all that it holds, or nothing."""

    @pytest.mark.parametrize(
        "bad",
        [
            {"number": 1, "airline": "XX", "nope": 1},
            {"number": -1, "airline": "XX"},
            {"number": 1, "airline": {"code": "XX", "name": "n"}, "origin": []},
            {
                "number": "x",
                "airline": {"code": "XX", "name": "n", "flights": [{"id": 7}]},
            },
        ],
    )
    async def test_refused(self, session: AsyncSession, bad: Any) -> None:
        """Nothing is left of a refused payload; what was there before stays."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            Flight.resource_validate({"number": 3, "airline": "AA"})
            for _ in range(2):
                with pytest.raises(ValidationError):
                    Flight.resource_validate(bad)
            with pytest.raises(ValidationError):
                Flight.resource_validate({"number": "x", "airline": "AA"})
            assert [Proxy, Flight] == [type(e.instance) for e in bulk.entries()]
            await bulk.resolve()
            report = await bulk.commit()

        assert 1 == report.created

    async def test_one_of_many(self, session: AsyncSession) -> None:
        """Of a list all are good, or none is there."""
        async with session.bulk() as bulk:
            with pytest.raises(ValidationError) as caught:
                Flight.resource_validate_many(
                    [{"number": 1, "airline": "XX"}, {"number": 2}]
                )

            assert [] == list(bulk.entries())
        assert (1, "airline") == caught.value.errors()[0]["loc"]

    async def test_spec(self, session: AsyncSession) -> None:
        """So it is with a spec, and with what it is made of."""
        async with session.bulk() as bulk:
            for given in (
                {"number": "x", "airline": "XX"},
                {"number": 1, "airline": "XX", "origin": {"code": 1}},
            ):
                with pytest.raises(ValidationError):
                    FlightWithOrigin.model_validate(given)
            assert [] == list(bulk.entries())
            FlightIn.model_validate({"number": 1, "airline": "AA"})
            assert 1 == len(bulk.get(Airline))

    async def test_union_in_a_spec(self, session: AsyncSession) -> None:
        """The branch of a union that was tried and dropped leaves nothing."""

        class Either(Spec[Flight]):
            airline: Ref[Airline] | AirlineIn

        class AirlineIn(Spec[Airline]):
            code: str
            name: str

        Either.model_rebuild(_types_namespace={"AirlineIn": AirlineIn})
        async with session.bulk() as bulk:
            Either.model_validate({"airline": {"code": "AA", "name": "n"}})
            assert [] == list(bulk.entries())

    async def test_dropped_after_success(self, session: AsyncSession) -> None:
        """Nor does one that was good, but not as good as another one."""

        class ByReference(Spec[Flight]):
            number: int
            airline: Ref[Airline]

        class ByText(Spec[Flight]):
            number: str
            airline: str

        class Holder(Spec[Airline]):
            flights: list[ByReference | ByText]

        async with session.bulk() as bulk:
            given = [{"number": "1", "airline": "AA"}]
            found = bulk.validate(list[ByReference | ByText], given)
            holder = Holder.model_validate({"flights": given})

            assert [ByText, ByText] == [*map(type, [*found, *holder.flights])]
            assert [] == bulk.get(Airline)
            assert found == bulk.get(Flight)

    async def test_dropped_with_its_references(self, session: AsyncSession) -> None:
        """What only the branch that was dropped refers to is not looked for."""

        class One(BaseModel):
            it: Ref[Airline]
            x: int = 0

        class Two(BaseModel):
            it: Ref[Airport]
            y: int

        async with session.bulk() as bulk:
            bulk.validate(One | Two, {"it": "XX", "y": 1})

            assert [Airport] == [entry.entity for entry in bulk.entries()]

    async def test_out_of_sight(self, session: AsyncSession) -> None:
        """A reference inside of what nobody can look into stays."""

        class Box:
            def __init__(self, content: Any) -> None:
                self.content = content

        class Boxed(Spec[Flight]):
            airline: Annotated[Ref[Airline], AfterValidator(Box)]

        async with session.bulk() as bulk:
            Boxed.model_validate({"airline": "AA"})

            assert 1 == len(bulk.get(Airline))

    async def test_plain_model(self, session: AsyncSession) -> None:
        """``bulk.validate`` does it for any type."""

        class Order(BaseModel):
            airline: Ref[Airline]
            flight: Flight

            @model_validator(mode="after")
            def refuse(self) -> Order:
                if self.flight.number == 13:
                    raise ValueError("13 is no number")
                return self

        await airlines(session, "AA")
        async with session.bulk() as bulk:
            bad = {"airline": "XX", "flight": {"number": 13, "airline": "YY"}}
            with pytest.raises(ValidationError):
                bulk.validate(Order, bad)
            assert [] == list(bulk.entries())
            good = bulk.validate_json(
                Order, '{"airline": "AA", "flight": {"number": 1, "airline": "AA"}}'
            )
            await bulk.resolve()
            await bulk.commit()

        assert good.flight.airline == good.airline
        assert 1 == await count(session, Flight)

    async def test_adds_what_add_would(self, session: AsyncSession) -> None:
        """Specs and instances that come out are values, in lists as well."""
        airline = Airline(code="AA", name="n")
        async with session.bulk() as bulk:
            bulk.validate(FlightIn, {"number": 1, "airline": airline})
            bulk.validate(
                TypeAdapter(dict[str, FlightIn]),
                {"x": {"number": 2, "airline": airline}},
            )
            bulk.validate(list[Flight], [{"number": 3, "airline": airline}])
            bulk.validate(Ref[Airline], "AA")
            bulk.validate(int, "1")
            await bulk.resolve(raise_errors=False)
            report = await bulk.commit()

        assert 3 == report.created

    async def test_without_a_block(self, session: AsyncSession) -> None:
        """``bulk.validate`` registers with its own bulk, whichever is current."""
        other = session.bulk()
        async with session.bulk() as bulk:
            other.validate(Flight, {"number": 1, "airline": "AA"})
            Flight.resource_validate({"number": 2, "airline": "BB"})

            assert ["AA"] == [proxy.code for proxy in other.get(Airline)]
            assert ["BB"] == [proxy.code for proxy in bulk.get(Airline)]

    async def test_at_the_same_time(self, session: AsyncSession) -> None:
        """A payload that is refused takes nothing from one of another thread."""

        def meanwhile(code: str) -> None:
            Flight.resource_validate({"number": 1, "airline": code})

        class Slow(Spec[Flight]):
            number: int
            airline: Ref[Airline]

            @model_validator(mode="after")
            def wait(self) -> Slow:
                code = "XX" if self.number < 0 else "YY"
                thread = threading.Thread(target=outside.run, args=(meanwhile, code))
                thread.start()
                thread.join()
                if self.number < 0:
                    raise ValueError("refused")
                return self

        async with session.bulk() as bulk:
            outside = copy_context()
            with pytest.raises(ValidationError):
                Slow.model_validate({"number": -1, "airline": "XX"})
            kept = [proxy.code for proxy in bulk.get(Airline)]
            slow = Slow.model_validate({"number": 1, "airline": "YY"})
            session.add_all([Airline(code=code, name=code) for code in ("XX", "YY")])
            await session.flush()
            await bulk.resolve(strategy="hydrate")

            assert ["XX"] == kept
            assert 2 == len(bulk.get(Airline))
            assert "YY" == slow.airline.name

    async def test_location(self, session: AsyncSession) -> None:
        """A failure says where the payload holds the reference."""
        async with session.bulk() as bulk:
            bulk.validate(
                list[Flight],
                [
                    {"number": 1, "airline": "XX"},
                    {
                        "number": 2,
                        "airline": {
                            "code": "B",
                            "name": "n",
                            "flights": [{"number": 5}],
                        },
                    },
                    {"number": 3, "airline": "XX", "tags": ["x"]},
                ],
            )
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()

        assert {
            (0, "airline"),
            (2, "airline"),
            (1, "airline", "flights", 0),
            (2, "tags", 0),
        } == {problem["loc"] for problem in caught.value.errors()}

    async def test_location_of_values(self, session: AsyncSession) -> None:
        """So it does for payloads that registered by themselves."""
        async with session.bulk() as bulk:
            Flight.resource_validate({"number": 1, "airline": "XX"})
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()

        assert [("airline",)] == [p["loc"] for p in caught.value.errors()]


class TestSpec:
    async def test_nested(self, session: AsyncSession) -> None:
        """A spec inside of a spec becomes an instance inside of an instance."""
        await airlines(session, "AA")
        given = {"number": 1, "airline": "AA", "origin": {"code": "CDG", "name": "R"}}
        async with session.bulk() as bulk:
            bulk.add(FlightWithOrigin.model_validate(given))
            await bulk.resolve()
            await bulk.commit()

        assert [(1, "CDG")] == await written(
            session, "number, code", "flight JOIN airport ON origin_id = airport.id"
        )

    async def test_list(self, session: AsyncSession) -> None:
        """So do lists of specs."""

        class LegIn(Spec[Leg]):
            position: int

        class WithLegs(FlightIn):
            legs: list[LegIn]

        await airlines(session, "AA")
        async with session.bulk() as bulk:
            given = {"number": 1, "airline": "AA", "legs": [{"position": 1}]}
            bulk.add(WithLegs.model_validate(given))
            await bulk.resolve()
            await bulk.commit()

        assert 1 == await count(session, Leg)

    async def test_registers_when_added(self, session: AsyncSession) -> None:
        """Validated in a bulk, a spec registers its references; it is a value by add."""
        async with session.bulk() as bulk:
            spec = FlightIn.model_validate({"number": 1, "airline": "AA"})
            before = bulk.get(Flight)
            bulk.add(spec)

            assert [] == before
            assert [spec] == bulk.get(Flight)


class TestHierarchy:
    async def test_reference_to_an_abstract_class(self, session: AsyncSession) -> None:
        """A reference to an abstract class is the row of whatever class it is."""
        session.add(Pilot(name="Ann", hours=3))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            bulk.validate(Ref[Member], "Ann")
            await bulk.resolve()

            assert [Pilot] == [type(member) for member in bulk.get(Member)]

    async def test_values(self, session: AsyncSession) -> None:
        """Each value is of the class that it says."""
        async with session.bulk() as bulk:
            bulk.validate(
                list[Member],
                [
                    {"kind": "pilot", "name": "Ann", "hours": 2},
                    {"kind": "steward", "name": "Bo"},
                ],
            )
            await bulk.resolve(raise_errors=False)
            await bulk.commit()

        assert [("Ann", "pilot"), ("Bo", "steward")] == await written(
            session, "name, kind", "member"
        )


class TestWritingOut:
    async def test_row(self, session: AsyncSession) -> None:
        """A row is written out as its columns."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate(
                {
                    "number": 1,
                    "airline": "AA",
                    "price": "1.50",
                    "legs": [{"position": 1}],
                }
            )
            await bulk.resolve()
            await bulk.commit()
        await session.refresh(flight)

        assert {
            "id": flight.id,
            "number": 1,
            "tail": None,
            "status": "planned",
            "price": "1.50",
            "notes": None,
            "twice": 2,
            "airline_id": flight.airline_id,
            "origin_id": None,
        } == TypeAdapter(Flight).dump_python(flight, mode="json")

    async def test_not_loaded(self, session: AsyncSession) -> None:
        """What would have to be loaded is an error that names it."""
        await airlines(session, "AA")
        async with session.bulk() as bulk:
            flight = Flight.resource_validate({"number": 1, "airline": "AA"})
            await bulk.resolve()
            await bulk.commit()
        session.expire(flight, ["status"])

        with pytest.raises(Exception, match="is not loaded"):
            TypeAdapter(Flight).dump_json(flight)
