"""
Random graphs of values and references, by any schedule: what is in the tables then.

Values are resources or specs at random, and refer to rows that exist and to each
other, also by keys that hold references. They are validated in the bulk or without
it, which is resolved, flushed and rolled back between them. What is expected is worked
out with dictionaries, without any of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter
from sqlalchemy import Column, ForeignKey, String, Table, UniqueConstraint, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    mapped_column,
    relationship,
)

from tenure import (
    ConflictError,
    Database,
    Ref,
    ResolutionError,
    Resource,
    SessionBulk,
    Spec,
)


class Base(DeclarativeBase):
    pass


link = Table(
    "link",
    Base.metadata,
    Column("flight_id", ForeignKey("flight.id"), primary_key=True),
    Column("tag_id", ForeignKey("tag.id"), primary_key=True),
)


class Country(Resource, Base):
    __tablename__ = "country"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(2), unique=True)
    name: Mapped[str | None] = mapped_column(String(20))


class Airport(Resource, Base):
    __tablename__ = "airport"
    __table_args__ = (UniqueConstraint("country_id", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    country_id: Mapped[int] = mapped_column(ForeignKey("country.id"))
    number: Mapped[int]
    name: Mapped[str | None] = mapped_column(String(20))
    country: Mapped[Country] = relationship()
    flights: Mapped[list[Flight]] = relationship(back_populates="origin")


class Tag(Resource, Base):
    __tablename__ = "tag"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), unique=True)
    note: Mapped[str | None] = mapped_column(String(20))
    flights: Mapped[list[Flight]] = relationship(secondary=link, back_populates="tags")


class Flight(Resource, Base):
    __tablename__ = "flight"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[str] = mapped_column(String(20), unique=True)
    status: Mapped[str | None] = mapped_column(String(20))
    origin_id: Mapped[int] = mapped_column(ForeignKey("airport.id"))
    after_id: Mapped[int | None] = mapped_column(ForeignKey("flight.id"))
    origin: Mapped[Airport] = relationship(back_populates="flights")
    after: Mapped[Flight | None] = relationship(
        remote_side=[id], back_populates="before"
    )
    before: Mapped[list[Flight]] = relationship(back_populates="after")
    tags: Mapped[list[Tag]] = relationship(secondary=link, back_populates="flights")


class CountryIn(Spec[Country]):
    code: str
    name: str | None = None


class AirportIn(Spec[Airport]):
    country: Ref[Country]
    number: int
    name: str | None = None


class TagIn(Spec[Tag]):
    name: str
    note: str | None = None


class FlightIn(Spec[Flight]):
    number: str
    status: str
    origin: Ref[Airport]
    after: Ref[Flight] | None = None
    tags: list[Ref[Tag]] = Field(default_factory=list)


#: Each kind of value, as a resource and as a spec.
KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "country": (Country, CountryIn),
    "airport": (Airport, AirportIn),
    "tag": (Tag, TagIn),
    "flight": (Flight, FlightIn),
}


@pytest.fixture(scope="module")
def db(module_url: str) -> Iterator[Database]:
    with Database(module_url) as db:
        db.create_all(Base.metadata)
        yield db


def seeded(db: Database) -> None:
    with db.manager.engines["default"].begin() as connection:
        connection.execute(Flight.__table__.update().values(after_id=None))
        for table in reversed(Base.metadata.sorted_tables):
            connection.execute(table.delete())
    with db.session_manager(auto_commit=True) as session:
        fr, de = Country(code="fr"), Country(code="de")
        first = Airport(country=fr, number=1)
        session.add_all([first, Airport(country=de, number=1)])
        session.add_all([Tag(name="x"), Tag(name="y")])
        session.add(Flight(number="AF1", origin=first))


class Graph:
    """Payloads, and what there is when they are written."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.countries: dict[str, Any] = {"fr": None, "de": None}
        self.airports: dict[tuple[str, int], Any] = {("fr", 1): None, ("de", 1): None}
        self.tags: dict[str, Any] = {"x": None, "y": None}
        self.flights: dict[str, Any] = {"AF1": (None, ("fr", 1), None)}
        self.links: set[tuple[str, str]] = set()
        self.values: list[tuple[str, dict[str, Any]]] = []
        for code in self._some(["fr", "n1", "n2"]):
            self.countries[code] = f"name of {code}"
            self._add("country", code=code, name=self.countries[code])
        places = [(c, n) for c in self.countries for n in (1, 2)]
        for code, number in self._some(places):
            self.airports[code, number] = "named"
            self._add(
                "airport", country=self._country(code), number=number, name="named"
            )
        for name in self._some(["x", "t1", "t2"]):
            self.tags[name] = "noted"
            self._add("tag", name=name, note="noted")
        numbers = self._some(["AF1", "N1", "N2", "N3", "N4"])
        for place, number in enumerate(numbers):
            self._add_flight(
                number, numbers[:place], [] if "AF1" in numbers else ["AF1"]
            )
        self.values = self.draw(st.permutations(self.values))

    def _some(self, of: list[Any]) -> list[Any]:
        return self.draw(st.lists(st.sampled_from(of), unique=True))

    def _add(self, kind: str, **payload: Any) -> None:
        self.values.append((kind, payload))

    def _country(self, code: str) -> Any:
        return self.draw(st.sampled_from([code, {"code": code}]))

    def _add_flight(self, number: str, earlier: list[str], known: list[str]) -> None:
        code, place = self.draw(st.sampled_from(sorted(self.airports)))
        after = self.draw(st.sampled_from([None, *earlier, *known]))
        self.flights[number] = ("set", (code, place), after)
        payload = {
            "number": number,
            "status": "set",
            "origin": {"country": self._country(code), "number": place},
            "after": after and {"number": after},
        }
        if self.draw(st.booleans()):
            names = self._some(sorted(self.tags))
            payload["tags"] = [{"name": name} for name in names]
            self.links |= {(number, name) for name in names}
        self._add("flight", **payload)


def found(db: Database) -> Any:
    before = aliased(Flight)
    with db.session_manager() as session:
        rows = session.execute
        return (
            dict(map(tuple, rows(select(Country.code, Country.name)))),
            {
                (code, number): name
                for code, number, name in rows(
                    select(Country.code, Airport.number, Airport.name).join(Country)
                )
            },
            dict(map(tuple, rows(select(Tag.name, Tag.note)))),
            {
                number: (status, (code, place), after)
                for number, status, code, place, after in rows(
                    select(
                        Flight.number,
                        Flight.status,
                        Country.code,
                        Airport.number,
                        before.number,
                    )
                    .join(Flight.origin)
                    .join(Country)
                    .outerjoin(Flight.after.of_type(before))
                )
            },
            set(map(tuple, rows(select(Flight.number, Tag.name).join(Flight.tags)))),
        )


class Schedule:
    """Takes the values of a graph into a bulk, each in its own way."""

    def __init__(self, data: st.DataObject, graph: Graph) -> None:
        self.draw = data.draw
        self.strategy: Any = self.draw(st.sampled_from(["bind", "hydrate"]))
        self.hands_out = self.draw(st.sampled_from(["proxies", "placeholders"]))
        #: What takes each value into a bulk and gives it, and its payload.
        self.steps: list[tuple[Callable[[SessionBulk], Any], dict[str, Any]]] = []
        for kind, payload in graph.values:
            model = TypeAdapter(self.draw(st.sampled_from(KINDS[kind])))
            how = self.draw(st.sampled_from(["validated", "in the block", "before"]))
            self.steps.append((taking(how, model, payload), payload))

    def run(self, session: Session, bulk: SessionBulk) -> None:
        """Give the values to a bulk, look them up and write them."""
        taken = []
        for take, payload in self.steps:
            taken.append((take(bulk), payload))
            self._between(session, bulk)
        bulk.resolve(strategy=self.strategy)
        for undone in self.draw(st.lists(st.sampled_from([bulk, session]), max_size=2)):
            if self.draw(st.booleans()):
                self._write(bulk, bulk.flush)
            undone.rollback()
            bulk.resolve(strategy=self.strategy)
        self._write(bulk, bulk.commit)
        for value, payload in taken:
            # An instance may have been left for the one that the session knows.
            if isinstance(value, Spec):
                assert all(is_named(getattr(value, n), payload[n]) for n in payload)

    def _write(self, bulk: SessionBulk, write: Callable[..., Any]) -> None:
        """Write new values as they are, and change rows when that is refused."""
        try:
            write()
        except ConflictError:
            bulk.rollback()
            bulk.resolve(raise_errors=False, strategy=self.strategy)
            write(on_conflict="update")

    def _between(self, session: Session, bulk: SessionBulk) -> None:
        steps = ["", "", "resolve", "flush", "rollback", "session.rollback"]
        step = self.draw(st.sampled_from(steps))
        if not step:
            return
        bulk.resolve(raise_errors=False, strategy=self.strategy)
        if step == "flush":
            with suppress(ResolutionError):
                self._write(bulk, bulk.flush)
        elif step == "rollback":
            bulk.rollback()
        elif step == "session.rollback":
            session.rollback()


def taking(
    how: str, model: TypeAdapter[Any], payload: Any
) -> Callable[[SessionBulk], Any]:
    """Give what takes a value into a bulk; one made before is made here."""
    if how == "validated":
        return lambda bulk: bulk.validate(model, payload)
    made = model.validate_python(payload) if how == "before" else None

    def take(bulk: SessionBulk) -> Any:
        value = model.validate_python(payload) if how == "in the block" else made
        bulk.add(value)
        return value

    return take


def is_named(found: Any, key: Any) -> bool:
    """Whether what a payload holds is what its key says."""
    if isinstance(key, list):
        return len(found) == len(key) and all(map(is_named, found, key))
    if isinstance(key, dict):
        return all(is_named(getattr(found, name), key[name]) for name in key)
    if isinstance(found, Country):
        return found.code == key
    return found == key


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_as_with_dictionaries(db: Database, data: st.DataObject) -> None:
    seeded(db)
    graph = Graph(data)
    schedule = Schedule(data, graph)
    with db.session_manager() as session:
        if data.draw(st.booleans()):
            # What the session knows already is used, and agrees afterwards.
            loaded: list[Any] = list(session.scalars(select(Flight)))
            loaded += [airport.flights for airport in session.scalars(select(Airport))]
        with session.bulk(proxy_reference=schedule.hands_out == "proxies") as bulk:
            schedule.run(session, bulk)
    assert found(db) == (
        graph.countries,
        graph.airports,
        graph.tags,
        graph.flights,
        graph.links,
    )


def test_upsert_refers_to_what_waits(db: Database) -> None:
    """What is upserted refers to new rows that the unit of work writes after it."""
    seeded(db)
    de, new = {"country": "de", "number": 1}, {"country": "fr", "number": 2}
    with db.session_manager() as session, session.bulk() as bulk:
        Airport.resource_validate(new | {"name": "named"})
        Flight.resource_validate({"number": "N1", "origin": de})
        Flight.resource_validate(
            {"number": "AF1", "origin": de, "after": {"number": "N1"}}
        )
        Flight.resource_validate(
            {"number": "N2", "origin": new, "after": {"number": "N1"}}
        )
        bulk.resolve(raise_errors=False)
        report = bulk.commit(on_conflict="update")

    flights = {
        "AF1": (None, ("de", 1), "N1"),
        "N1": (None, ("de", 1), None),
        "N2": (None, ("fr", 2), "N1"),
    }
    assert ["created", "created", "updated", "created"] == report.statuses
    assert flights == found(db)[3]
