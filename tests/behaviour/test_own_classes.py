"""Classes of sessions that a program derives: from ours, and from SQLModel's as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlmodel
from sqlalchemy import insert
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm import scoped_session as plain_scoped_session
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelAsyncSession

from tenure import (
    AsyncSession,
    Database,
    RoutingError,
    Session,
    SessionError,
    async_session_factory,
    async_session_manager,
    session_factory,
    session_manager,
)
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.sqlite


class Mine(sqlmodel.Session, Session):  # type: ignore[misc,unused-ignore]  # SQLModel's own
    """A session with ``exec()``."""


class MineAsync(SQLModelAsyncSession, AsyncSession):
    """The same for async code."""

    sync_session_class: type[Any] = Mine


@pytest.fixture
def db(tmp_path: Path) -> Database:
    db = Database(f"sqlite:///{tmp_path}/a.db")
    db.create_all(Base.metadata)
    return db


class TestSQLModel:
    def test_exec(self, db: Database) -> None:
        factory = session_factory(routing=db.manager, class_=Mine)
        with session_manager(using=factory, auto_commit=True) as session:
            session.add(Thing(name="a"))
            assert "a" == session.exec(sqlmodel.select(Thing.name)).one()

        with session_manager(using=factory) as session:
            assert isinstance(session, Mine)
            assert ["a"] == session.exec(sqlmodel.select(Thing.name)).all()

    def test_writes(self, db: Database) -> None:
        """What exec() does is seen as what execute() does: a reader may not write."""
        factory = session_factory(routing=db.manager, class_=Mine)
        statement: Any = insert(Thing).values(name="a")
        with (
            session_manager(using=factory, role="read") as session,
            pytest.raises(RoutingError, match="role='read'"),
        ):
            session.exec(statement)

    def test_joined(self, db: Database) -> None:
        """A joined block that wrote by exec(), and is never committed, is told of."""
        factory = session_factory(routing=db.manager, class_=Mine)
        statement: Any = insert(Thing).values(name="a")
        with (
            pytest.raises(SessionError, match="ended without a commit"),
            session_manager(using=factory),
            session_manager(using=factory, auto_commit=True) as session,
        ):
            session.exec(statement)

    @pytest.mark.anyio
    async def test_async(self, db: Database) -> None:
        factory = async_session_factory(routing=db.manager, class_=MineAsync)
        async with async_session_manager(using=factory, auto_commit=True) as session:
            session.add(Thing(name="a"))
            assert "a" == (await session.exec(sqlmodel.select(Thing.name))).one()
        await db.adispose()

    def test_order(self) -> None:
        """In the other order exec() would call SQLAlchemy's execute(), not ours."""
        with pytest.raises(SessionError, match=r"name tenure\.Session last"):
            type("Wrong", (Session, sqlmodel.Session), {})


class TestRefused:
    @pytest.mark.parametrize("class_", [PlainSession, sqlmodel.Session])
    def test_sync(self, db: Database, class_: type[PlainSession]) -> None:
        with pytest.raises(
            SessionError, match=r"class MySession\(Session, tenure.Sess"
        ):
            session_factory(routing=db.manager, class_=class_)

    def test_async(self, db: Database) -> None:
        with pytest.raises(SessionError, match=r"tenure.AsyncSession\)"):
            async_session_factory(routing=db.manager, class_=SQLModelAsyncSession)

    def test_without_routing(self) -> None:
        """A session of SQLAlchemy's has a bind instead."""
        factory = session_factory(class_=PlainSession, scoped=True)
        assert isinstance(factory, plain_scoped_session)
        assert not isinstance(factory(), Session)
