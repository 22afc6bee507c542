"""When a bulk may bypass the unit of work, and when it may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, validates

from tenure import Database, Session, Spec


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


class CityIn(Spec[City]):
    code: str


class Careful(Base):
    __tablename__ = "careful"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)

    @validates("code")
    def upper(self, key: str, code: str) -> str:
        return code.upper()


class CarefulIn(Spec[Careful]):
    code: str


def written(db: Database, entity: type[Any], work: Callable[[Any], object]) -> set[str]:
    """Do *work* with a bulk, commit, and return the codes in the table."""
    with db.session_manager() as session, session.bulk() as bulk:
        work(bulk)
    with db.session_manager() as session:
        return set(session.scalars(select(entity.code)))


WAYS = {
    "add": lambda spec: lambda bulk: (bulk.add(spec(code="par")), bulk.commit()),
    "load": lambda spec: lambda bulk: bulk.load([{"code": "par"}], spec),
    "load, by key": lambda spec: (
        lambda bulk: bulk.load([{"code": "par"}], spec, on_conflict="update")
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["before_flush", "after_flush"])
def test_listeners_of_the_session(db: Database, way: str, name: str) -> None:
    """A listener for flushes hears of every new row, however it came."""
    heard: list[str] = []

    def listen(session: Any, context: Any, *_: Any) -> None:
        heard.extend(type(each).__name__ for each in session.new)

    event.listen(db.session, name, listen)
    spec = CarefulIn

    assert {"PAR"} == written(db, Careful, WAYS[way](spec))
    assert ["Careful"] == heard


@pytest.mark.parametrize("way", WAYS)
def test_validators(db: Database, way: str) -> None:
    """A method with @validates changes what is written, however it came."""
    assert {"PAR"} == written(db, Careful, WAYS[way](CarefulIn))


@pytest.mark.parametrize("way", WAYS)
def test_attribute_listeners(db: Database, way: str) -> None:
    """So does a listener for an attribute."""

    def lower(target: Any, value: str, *_: Any) -> str:
        return f"<{value}>"

    event.listen(Careful.code, "set", lower, retval=True, propagate=True)
    try:
        assert {"<PAR>"} == written(db, Careful, WAYS[way](CarefulIn))
    finally:
        event.remove(Careful.code, "set", lower)


def test_life_of_objects(db: Database) -> None:
    """A listener for objects that become rows hears of those of a file."""
    heard: list[str] = []
    event.listen(
        db.session,
        "pending_to_persistent",
        lambda session, instance: heard.append(instance.code),
    )
    written(db, City, lambda bulk: bulk.load([{"code": "PAR"}], CityIn))

    assert ["PAR"] == heard
