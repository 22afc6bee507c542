"""What MariaDB needs words of its own for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import DBAPIError

from seance import Database, RoutingError, session_manager
from tests.fixtures.pools import Pools
from tests.fixtures.things import Thing


@pytest.fixture
def db(mariadb_url: str, pools: Pools) -> Iterator[Database]:
    with Database(mariadb_url, pool_size=1, max_overflow=0) as db:
        Thing.__table__.create(db.manager.engines["default"])
        yield db
    assert [] == pools.out


class TestRead:
    def test_refused(self, db: Database) -> None:
        """A block that reads refuses what writes, before it is sent."""
        with session_manager(role="read") as session:
            with pytest.raises(RoutingError, match="role='read' refuses"):
                session.execute(insert(Thing).values(name="a"))

    def test_database_says_no(self, db: Database) -> None:
        """What gets past us is refused by the database."""
        with session_manager(role="read") as session:
            assert [] == session.scalars(select(Thing)).all()
            with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                session.connection().execute(insert(Thing).values(name="a"))

    def test_next_one_writes(self, db: Database) -> None:
        """The connection writes again for the next block."""
        for name in "ab":
            with session_manager(role="read") as session:
                session.scalars(select(Thing)).all()
            with session_manager(auto_commit=True) as session:
                session.add(Thing(name=name))
        with session_manager(role="read") as session:
            assert ["a", "b"] == session.scalars(select(Thing.name)).all()

    def test_commits(self, db: Database) -> None:
        """Each transaction of the block is one that reads."""
        with session_manager(role="read") as session:
            for _ in range(2):
                session.execute(text("SELECT 1"))
                with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                    session.connection().execute(insert(Thing).values(name="a"))
                session.rollback()


def test_scopes(db: Database) -> None:
    """Joining, savepoints and callbacks are as anywhere."""
    ran = []
    with session_manager(auto_commit=True) as session:
        session.on_commit(lambda: ran.append("commit"))
        session.add(Thing(name="a"))
        with pytest.raises(ValueError, match="oh"):
            with session_manager(savepoint=True):
                session.add(Thing(name="b"))
                session.flush()
                raise ValueError("oh")
    with session_manager() as session:
        assert ["a"] == session.scalars(select(Thing.name)).all()

    assert ["commit"] == ran
