"""What a session makes of a pool that fails."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import event, select

from tenure import Database
from tests.fixtures.things import Base, Thing


def test_connection_cannot_be_given_back(url: str) -> None:
    """A commit is one, even if its connection cannot be given back afterwards."""
    ran: list[str] = []
    lost: list[Any] = []
    with Database(url) as db, db.session() as session:
        db.create_all(Base.metadata)
        engine = db.manager.engines["default"]

        def fail(connection: Any, record: Any) -> None:
            event.remove(engine, "checkin", fail)
            lost.append(connection)
            raise LookupError("no")

        session.add(Thing(name="a"))
        session.on_commit(lambda: ran.append("commit 1"))
        session.on_rollback(lambda: ran.append("rollback 1"))
        session.flush()
        event.listen(engine, "checkin", fail)
        with pytest.raises(LookupError):
            session.commit()
        assert ["commit 1"] == ran

        session.on_commit(lambda: ran.append("commit 2"))
        session.on_rollback(lambda: ran.append("rollback 2"))
        session.rollback()
        assert ["commit 1", "rollback 2"] == ran
        assert ["a"] == session.scalars(select(Thing.name)).all()
    for connection in lost:
        connection.close()
