"""When a bulk may bypass the unit of work, and when it may not."""

from __future__ import annotations

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, Session


class Base(DeclarativeBase):
    pass


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str]


@pytest.fixture
def db() -> Database:
    db = Database("sqlite://")
    db.create_all(Base.metadata)
    return db


def is_flushed(db: Database) -> bool:
    """Whether a new value of a bulk is written by ``Session.flush()``."""
    seen = []
    with db.session_manager() as session, session.bulk() as bulk:
        bulk.add(City(code="PAR"))
        flushing = type(session)._flush_now
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                type(session),
                "_flush_now",
                lambda self, objects: (
                    seen.append(len(self.new)),
                    flushing(self, objects),
                ),
            )
            bulk.flush()
    return any(seen)


def test_own_listener_is_known_by_itself(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The listener of our sessions is told by identity, wherever its module is."""
    monkeypatch.setattr(Session._flush_listener, "__module__", "elsewhere")

    assert not is_flushed(db)
