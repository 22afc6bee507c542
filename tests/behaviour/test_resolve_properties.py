"""
Resolving, compared with one query of the ORM for each reference.

Sync only: the async ``resolve`` runs the same code.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import inspect, select, text
from sqlalchemy.orm import Session as PlainSession

from tenure import Database, Key, Proxy, Ref, Session, Spec
from tenure.bulk import Resolution
from tenure.references.proxy import is_resolved, target_of
from tenure.references.validator import ReferenceValidator
from tests.fixtures.models import Base, Country, Node, Region, Seat, Site, Tag, Vehicle

pytestmark = pytest.mark.every_database

codes = st.sampled_from(["fr", "de", "FR", "xx", "f", "é", "'", ""])
numbers = st.integers(-2, 3)
countries = codes | codes.map(lambda code: {"code": code}) | numbers
regions = (
    numbers
    | st.fixed_dictionaries({"country_id": numbers, "zone": numbers})
    | st.fixed_dictionaries({"country": countries, "zone": numbers})
)
keys: dict[Any, st.SearchStrategy[Any]] = {
    Country: countries,
    Region: regions,
    Site: st.fixed_dictionaries({"region": regions, "code": codes})
    | st.fixed_dictionaries({"region_id": numbers, "code": codes}),
    Seat: st.fixed_dictionaries(
        {"hall": st.none() | codes, "row": st.none() | numbers}
    ).filter(lambda key: any(part is not None for part in key.values())),
    Node: codes | numbers,
    Tag: codes,
    Vehicle: st.fixed_dictionaries({"plate": codes}),
}


@st.composite
def references(draw: st.DrawFn) -> list[tuple[Any, Any]]:
    entities = draw(st.lists(st.sampled_from(list(keys)), max_size=12))
    return [(entity, draw(keys[entity])) for entity in entities]


def slowly(session: PlainSession, entity: Any, key: Any) -> list[Any]:
    """Ask for the rows that one key names, in a query of its own."""
    if not isinstance(key, dict):
        names = {Tag: "name"}
        key = {names.get(entity, "code") if isinstance(key, str) else "id": key}
    conditions = []
    for name, value in key.items():
        wanted = value
        if name in {"country", "region"}:
            inner = {"country": Country, "region": Region}[name]
            rows = slowly(session, inner, value)
            if len(rows) != 1:
                return []
            wanted = rows[0]
        conditions.append(getattr(entity, name) == wanted)
    return list(session.scalars(select(entity).where(*conditions)))


@dataclass(frozen=True)
class Data:
    """The rows there are, by the parts of their keys."""

    countries: tuple[str, ...]
    regions: tuple[tuple[int, int], ...]
    sites: tuple[tuple[int, str], ...]
    seats: tuple[tuple[str | None, int | None], ...]
    nodes: tuple[str, ...]

    def instances(self) -> list[Any]:
        """Make them, with small numbers as identities."""
        return [
            *(Country(id=n, code=c) for n, c in enumerate(self.countries)),
            *(Region(id=n, country_id=c, zone=z)
              for n, (c, z) in enumerate(self.regions)),
            *(Site(id=n, region_id=r, code=c)
              for n, (r, c) in enumerate(self.sites)),
            *(Seat(id=n, hall=h, row=r) for n, (h, r) in enumerate(self.seats)),
            *(Node(id=n, code=c) for n, c in enumerate(self.nodes)),
            Tag(id=1, name="Fr"), Tag(id=2, name="xx"), Vehicle(id=1, plate="fr"),
        ]  # fmt: skip


# No two of them are equal to any database; it alone says what else is.
stored = st.sampled_from(["fr", "de", "xx", "é", "'"])


@st.composite
def rows(draw: st.DrawFn) -> Data:
    def some(element: Any, unique_by: Any = lambda it: it) -> tuple[Any, ...]:
        return tuple(draw(st.lists(element, max_size=5, unique_by=unique_by)))

    countries = some(stored)
    regions: tuple[Any, ...] = ()
    sites: tuple[Any, ...] = ()
    if countries:
        regions = some(st.tuples(st.integers(0, len(countries) - 1), numbers))
    if regions:
        sites = some(st.tuples(st.integers(0, len(regions) - 1), stored))
    # What is null in a part may be there twice.
    seats = some(
        st.tuples(st.none() | stored, st.none() | numbers),
        lambda it: object() if None in it else it,
    )
    return Data(countries, regions, sites, seats, some(stored))


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        yield db


@contextmanager
def holding(db: Database, data: Data, *, known: bool) -> Iterator[Session]:
    """Give a session in whose transaction the rows are; undone afterwards."""
    with db.session() as session:
        if session.get_bind().dialect.name == "mysql":
            # Zero is an identity here.
            session.execute(text("SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'"))
        for instance in data.instances():
            session.add(instance)
            session.flush()
        if not known:
            session.expunge_all()
        yield session


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    data=rows(),
    given=references(),
    strategy=st.sampled_from(["bind", "hydrate"]),
    size=st.sampled_from([1, 2, 10_000]),
    known=st.booleans(),
)
def test_as_one_by_one(
    db: Database,
    data: Data,
    given: list[tuple[Any, Any]],
    strategy: Any,
    size: int,
    known: bool,
) -> None:
    """Each reference is found, missing or ambiguous as in a query of its own."""
    with holding(db, data, known=known) as session:
        with session.bulk() as bulk:
            proxies = [ReferenceValidator(entity)(key) for entity, key in given]
            resolution = bulk.resolve(
                raise_errors=False, strategy=strategy, batch_size=size
            )
            again = bulk.resolve(raise_errors=False, strategy=strategy, batch_size=size)
        found: list[Any] = [_found(proxy) for proxy in proxies]
        expected = [slowly(session, entity, key) for entity, key in given]

        assert [rows[0] if len(rows) == 1 else None for rows in expected] == found
        assert 0 == again.resolved
        assert _told(resolution) == _told(again)
        ambiguous = {entity for (entity, _), rows in zip(given, expected, strict=True)
                     if len(rows) > 1}  # fmt: skip
        assert ambiguous == {
            failure.entity
            for failure in resolution.failures
            if failure.reason == "ambiguous"
        } & {entity for entity, _ in given}
        for failure in resolution.failures:
            assert (failure.reason == "ambiguous") == (len(failure.rows) > 1)
        assert all(row in session for row in found if row is not None)
        if strategy == "hydrate":
            assert all("id" in r.__dict__ for r in found if r is not None)


def _told(resolution: Resolution) -> Counter[Any]:
    return Counter((f.entity, f.reason) for f in resolution.failures)


def _found(proxy: Proxy) -> Any:
    return target_of(proxy) if is_resolved(proxy) else None


class CountryIn(Spec[Country]):
    code: str


class RegionIn(Spec[Region]):
    country: Ref[Country]
    zone: int


class SiteIn(Spec[Site]):
    region: Annotated[Region, Key("country", "zone")]
    code: str


few = st.sampled_from(["fr", "de", "new"])
zones = st.integers(0, 1)
country_keys = few.map(lambda code: {"code": code})
region_keys = st.fixed_dictionaries({"country": country_keys, "zone": zones})
site_keys = st.fixed_dictionaries({"region": region_keys, "code": few})
MODELS: dict[Any, Any] = {Country: CountryIn, Region: RegionIn, Site: SiteIn}
either = st.one_of(
    st.tuples(st.just(Country), country_keys),
    st.tuples(st.just(Region), region_keys),
    st.tuples(st.just(Site), site_keys),
)


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    data=rows(),
    given=st.lists(st.tuples(st.booleans(), either), max_size=10),
    strategy=st.sampled_from(["bind", "hydrate"]),
    known=st.booleans(),
)
def test_values_of_the_same_bulk(
    db: Database,
    data: Data,
    given: list[tuple[bool, tuple[Any, Any]]],
    strategy: Any,
    known: bool,
) -> None:
    """A reference is the value that has its key, else the row a query finds."""
    values: dict[Any, Any] = {}
    held: list[tuple[Any, Any, Any]] = []
    with holding(db, data, known=known) as session:
        with session.bulk() as bulk:
            for is_value, (entity, key) in given:
                if is_value and _spelled(entity, key) not in values:
                    model = MODELS[entity].model_validate(key)
                    bulk.add(model)
                    values[_spelled(entity, key)] = model
                elif not is_value:
                    proxy = ReferenceValidator(entity)(key)
                    held.append((entity, key, proxy))
            bulk.resolve(raise_errors=False, strategy=strategy)
            made = {id(v.given): v.instance for v in bulk._values}
        instances = {token: made[id(model)] for token, model in values.items()}

        for entity, key, proxy in held:
            expected = _locally(session, entity, key, instances)
            found = _found(proxy)
            assert expected is found


def _spelled(entity: Any, key: Any) -> Any:
    return entity, json.dumps(key, sort_keys=True)


def _locally(
    session: PlainSession, entity: Any, key: Any, instances: dict[Any, Any]
) -> Any:
    """Give the value with a key, or the one row, or nothing."""
    if _spelled(entity, key) in instances:
        return instances[_spelled(entity, key)]
    conditions = []
    for name, value in key.items():
        wanted = value
        if name in {"country", "region"}:
            inner = {"country": Country, "region": Region}[name]
            wanted = _locally(session, inner, value, instances)
            if wanted is None or not inspect(wanted).persistent:
                return None
        conditions.append(getattr(entity, name) == wanted)
    with session.no_autoflush:
        return session.scalars(select(entity).where(*conditions)).one_or_none()
