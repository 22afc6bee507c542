"""
Resolving, compared with one query of the ORM for each reference.

Sync only: the async ``resolve`` runs the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session as PlainSession

from seance import Database, Key, Proxy
from seance.references import ReferenceValidator, is_resolved, target_of
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


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        with db.session() as session:
            session.add_all(
                Site(
                    region=Region(country=country, zone=zone, name="r"),
                    code=code,
                    name="s",
                )
                for country in (Country(code="fr"), Country(code="de"))
                for zone, code in ((-1, "fr"), (-2, "de"), (1, "é"))
            )
            session.add_all(
                Seat(hall=hall, row=row)
                for hall, row in (
                    ("fr", 1), ("fr", None), (None, 1), ("de", None), ("de", None),
                )
            )  # fmt: skip
            session.add_all(Node(code=code) for code in ("fr", "de", ""))
            session.add_all([Tag(name="Fr"), Tag(name="xx"), Vehicle(plate="fr")])
            session.commit()
        yield db


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    given=references(),
    strategy=st.sampled_from(["bind", "hydrate"]),
    size=st.sampled_from([1, 2, 10_000]),
    known=st.booleans(),
)
def test_as_one_by_one(
    db: Database,
    given: list[tuple[Any, Any]],
    strategy: Any,
    size: int,
    known: bool,
) -> None:
    """Each reference is found, missing or ambiguous as in a query of its own."""
    with db.session() as session:
        if known:
            for entity in keys:
                session.scalars(select(entity)).all()
        with session.bulk() as bulk:
            proxies = [ReferenceValidator(entity, Key())(key) for entity, key in given]
            resolution = bulk.resolve(
                raise_errors=False, strategy=strategy, batch_size=size
            )
        reasons = {id(f): (f.entity, f.reason) for f in resolution.failures}
        found: list[Any] = [_found(proxy) for proxy in proxies]
        expected = [slowly(session, entity, key) for entity, key in given]

        assert [rows[0] if len(rows) == 1 else None for rows in expected] == found
        ambiguous = {entity for (entity, _), rows in zip(given, expected, strict=True)
                     if len(rows) > 1}  # fmt: skip
        assert ambiguous <= {e for e, reason in reasons.values() if reason != "missing"}
        assert all(row in session for row in found if row is not None)
        if strategy == "hydrate":
            assert all("id" in r.__dict__ for r in found if r is not None)


def _found(proxy: Proxy) -> Any:
    return target_of(proxy) if is_resolved(proxy) else None
