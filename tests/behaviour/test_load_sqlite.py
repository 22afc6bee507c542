"""Loads into SQLite, whose counts come from the numbers of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, LoadError, LoadReport, Session, Spec

pytestmark = pytest.mark.sqlite


class Base(DeclarativeBase):
    pass


class Counted(Base):
    __tablename__ = "counted"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    size: Mapped[int]


class Copied(Base):
    __tablename__ = 'the "copied"'

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    size: Mapped[int]


class CountedIn(Spec[Counted]):
    name: str
    size: int


class CopiedIn(Spec[Copied]):
    name: str
    size: int


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Database(f"sqlite:///{tmp_path / 'tenure.db'}") as db:
        db.create_all(Base.metadata)
        with db.session() as session:
            yield session


def load(
    session: Session, into: type[CountedIn | CopiedIn], rows: dict[str, int]
) -> LoadReport:
    source = [{"name": name, "size": size} for name, size in rows.items()]
    with session.bulk() as bulk:
        return bulk.load(source, into, on_conflict="update")


def test_numbers_are_not_used_again(session: Session) -> None:
    """With AUTOINCREMENT numbers have gaps; what was created is counted all the same."""
    load(session, CountedIn, {"a": 1, "b": 1, "c": 1, "d": 1})
    session.execute(text("DELETE FROM counted WHERE name IN ('c', 'd')"))
    session.commit()
    report = load(session, CountedIn, {"a": 1, "b": 2, "c": 3, "e": 4})

    assert (2, 1, 1) == (report.created, report.updated, report.unchanged)
    assert [1, 2, 3, 4] == session.scalars(select(Counted.size)).all()


def test_triggers_that_insert(session: Session) -> None:
    """Rows that a trigger adds to the same table are not the load's."""
    session.execute(
        text(
            '''
            CREATE TRIGGER copy AFTER INSERT ON "the ""copied""" WHEN NEW.size > 0
            BEGIN
                INSERT INTO "the ""copied""" (name, size)
                VALUES (NEW.name || '-', -NEW.size);
            END
            '''
        )
    )
    session.commit()
    first = load(session, CopiedIn, {"a": 1, "b": 1})
    second = load(session, CopiedIn, {"a": 2, "b": 1, "c": 1})

    assert (2, 0, 0) == (first.created, first.updated, first.unchanged)
    assert (1, 1, 1) == (second.created, second.updated, second.unchanged)


def test_rejects_are_not_the_database(session: Session, tmp_path: Path) -> None:
    """A rejects file that is the database itself is refused, and nothing is lost."""
    load(session, CountedIn, {"a": 1})
    rejects = tmp_path / "." / "tenure.db"
    with session.bulk() as bulk, pytest.raises(LoadError, match="the database"):
        bulk.load([{"name": "b", "size": "x"}], CountedIn, rejects=rejects)

    assert ["a"] == list(session.scalars(select(Counted.name)))
