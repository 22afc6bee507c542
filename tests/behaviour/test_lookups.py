"""Look-ups of classes that ask for more than their own columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import (
    ForeignKey,
    String,
    TypeDecorator,
    event,
    func,
    inspect,
    select,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    ORMExecuteState,
    mapped_column,
    relationship,
    with_loader_criteria,
)

from tenure import Database, Ref
from tests.fixtures.counting import count_statements

pytestmark = pytest.mark.every_database


class Base(DeclarativeBase):
    pass


class Team(Base):
    __tablename__ = "team"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), unique=True)
    tenant: Mapped[int] = mapped_column(default=1)

    members: Mapped[list[Member]] = relationship(lazy="joined", back_populates="team")


class Member(Base):
    __tablename__ = "member"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20), unique=True)
    team_name: Mapped[str] = mapped_column(ForeignKey("team.name"))

    team: Mapped[Team] = relationship(back_populates="members")


class Loud(TypeDecorator[str]):
    """Written by way of a function of the database."""

    impl = String(20)
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.upper(bindparam)


class Word(Base):
    __tablename__ = "word"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(Loud, unique=True)
    length: Mapped[int]


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        with db.session() as session:
            for team in "ab":
                members = [Member(name=f"{team}{n}") for n in range(3)]
                session.add(Team(name=team, members=members))
            session.commit()
        yield db


def test_joined_collection(db: Database) -> None:
    """What is loaded along with a class is loaded by ``hydrate`` as well."""
    with db.session() as session, session.bulk() as bulk:
        teams = TypeAdapter(list[Ref[Team]]).validate_python(["b", "a"])
        with count_statements(db.manager.engines["default"]) as statements:
            resolution = bulk.resolve(strategy="hydrate")
            names = [[member.name for member in team.members] for team in teams]

    assert 2 == resolution.resolved
    assert [["b0", "b1", "b2"], ["a0", "a1", "a2"]] == [sorted(n) for n in names]
    assert 1 == statements.count


@pytest.mark.parametrize("strategy", ["bind", "hydrate"])
def test_changed_in_the_session(db: Database, strategy: str) -> None:
    """What a foreign key gets is what the row has, whatever was changed since."""
    with db.session() as session:
        team = session.scalars(select(Team).where(Team.name == "a")).unique().one()
        team.name = "new"
        with session.bulk() as bulk:
            [proxy] = TypeAdapter(list[Ref[Team]]).validate_python(["a"])
            bulk.resolve(strategy=strategy)
            assert [team] == bulk.get(Team)

        assert "new" == proxy.name
        assert team in session.dirty
        assert "a" in proxy._tenure_row


@pytest.mark.parametrize("strategy", ["bind", "hydrate"])
def test_criteria_of_the_program(db: Database, strategy: str) -> None:
    """What a session adds to every SELECT holds for look-ups."""
    with db.session() as session:

        @event.listens_for(session, "do_orm_execute")
        def only_tenant(state: ORMExecuteState) -> None:
            criteria = with_loader_criteria(Team, Team.tenant == 2)
            state.statement = state.statement.options(criteria)

        with session.bulk() as bulk:
            TypeAdapter(Ref[Team]).validate_python("a")
            resolution = bulk.resolve(raise_errors=False, strategy=strategy)

    assert (0, 1) == (resolution.resolved, resolution.unresolved)


def test_bound_once(db: Database) -> None:
    """An instance of the session that is expired is loaded again, and is the same."""
    with db.session() as session:
        team = session.scalars(select(Team).where(Team.name == "a")).unique().one()
        session.expire(team)
        with session.bulk() as bulk:
            TypeAdapter(Ref[Team]).validate_python("a")
            bulk.resolve(strategy="hydrate")

            assert [team] == bulk.get(Team)
        assert set() == inspect(team).unloaded


@pytest.mark.parametrize("on_conflict", ["raise", "update"])
def test_keys_with_sql_around_them(db: Database, on_conflict: Any) -> None:
    """A key is asked for, and written, by way of what its type says in SQL."""
    with db.session() as session, session.bulk() as bulk:
        for text in ("one", "three"):
            bulk.add(Word(text=text, length=len(text)))
        bulk.commit(on_conflict=on_conflict)
    with db.session() as session, session.bulk() as bulk:
        words = TypeAdapter(list[Ref[Word]]).validate_python(["tHrEe", "one", "two"])
        resolution = bulk.resolve(raise_errors=False, strategy="hydrate")

        assert 2 == resolution.resolved
        assert [("THREE", 5), ("ONE", 3)] == [(w.text, w.length) for w in words[:2]]
