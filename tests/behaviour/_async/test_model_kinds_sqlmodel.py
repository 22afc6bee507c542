"""References to and from models of SQLModel: mapped classes that are Pydantic models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import inspect, text

from tenure import AsyncSession, Database, Ref, Spec

pytest.importorskip("sqlmodel")

from tests.fixtures.kinds_sqlmodel import Hero, Model, Team

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Model.metadata)
        yield db


@pytest.fixture(params=["bind", "hydrate"])
def strategy(request: pytest.FixtureRequest) -> Any:
    return request.param


class HeroIn(Spec[Hero]):
    name: str
    team: Ref[Team] | None = None


async def heroes(session: AsyncSession) -> list[tuple[Any, ...]]:
    rows = await session.execute(
        text(
            "SELECT name, age, code FROM hero LEFT JOIN team ON team_id = team.id "
            "ORDER BY name"
        )
    )
    return [tuple(row) for row in rows]


@pytest.fixture(autouse=True)
async def teams(session: AsyncSession) -> None:
    session.add(Hero(name="old", age=50, team=Team(code="t", motto="kept")))
    await session.commit()
    session.expunge_all()


async def test_spec(session: AsyncSession, strategy: Any) -> None:
    """A ``Spec`` of one: defaults for what is new, nothing else for what exists."""
    async with session.bulk() as bulk:
        for given in (
            {"name": "new", "team": "t"},
            {"name": "old"},
            {"name": "other", "team": "u"},
        ):
            bulk.add(HeroIn.model_validate(given))
        bulk.add(Team(code="u"))
        await bulk.resolve(strategy=strategy)
        report = await bulk.commit()

    assert ["created", "unchanged", "created", "created"] == report.statuses
    assert [("new", 30, "t"), ("old", 50, "t"), ("other", 30, "u")] == await heroes(
        session
    )


@pytest.mark.parametrize("on_conflict", ["resolve", "update"])
async def test_instances(
    session: AsyncSession, strategy: Any, on_conflict: str
) -> None:
    """Instances are values; only what was given to them changes a row."""
    async with session.bulk() as bulk:
        bulk.add(Team(code="t"))
        bulk.add(Hero(name="old", age=51))
        bulk.add(Hero(name="new"))
        if on_conflict == "resolve":
            await bulk.resolve(strategy=strategy)
            report = await bulk.commit(on_conflict="update")
        else:
            report = await bulk.commit(on_conflict="update")

    assert ["unchanged", "updated", "created"] == report.statuses
    assert [("new", 30, None), ("old", 51, "t")] == await heroes(session)
    assert [("kept",)] == [
        tuple(row) for row in await session.execute(text("SELECT motto FROM team"))
    ]


async def test_in_a_payload(session: AsyncSession, strategy: Any) -> None:
    """A reference in a plain model, and an instance that is given for one."""

    class Payload(BaseModel):
        captain: Ref[Hero]
        team: Ref[Team]

    new = Team(code="new")
    async with session.bulk() as bulk:
        payload = Payload.model_validate({"captain": "old", "team": new})
        await bulk.resolve(strategy=strategy)

    assert new is payload.team
    assert isinstance(payload.captain, Hero)
    assert (1,) == inspect(payload.captain).identity
