"""
Constraints that are checked at the end of a transaction reject a row of a load, by line.

The foreign keys that Django makes are such, on SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ForeignKey,
    ForeignKeyConstraint,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, Spec

LATE = {"deferrable": True, "initially": "DEFERRED"}


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "late_parent"
    __table_args__ = (UniqueConstraint("a", "b"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    a: Mapped[int]
    b: Mapped[Any] = mapped_column(Uuid)


class Child(Base):
    __tablename__ = "late_child"
    __table_args__ = (ForeignKeyConstraint(["a", "b"], [Parent.a, Parent.b], **LATE),)

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("late_parent.id", **LATE))
    a: Mapped[int | None]
    b: Mapped[Any] = mapped_column(Uuid, nullable=True)
    before_id: Mapped[int | None] = mapped_column(ForeignKey("late_child.id", **LATE))


class ChildIn(Spec[Child]):
    id: int
    parent_id: int | None = None
    a: int | None = None
    b: Any = None
    before_id: int | None = None


A, B = UUID(int=10), UUID(int=11)


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            session.add(Parent(id=1, a=1, b=A))
        yield db


def load(db: Database, *rows: Any, **options: Any) -> Any:
    with db.session_manager() as session, session.bulk() as bulk:
        return bulk.load(rows, ChildIn, **options)


@pytest.mark.parametrize("on_conflict", ["raise", "update", "skip"])
@pytest.mark.parametrize("batch_size", [2, 100])
def test_foreign_key(db: Database, on_conflict: Any, batch_size: int) -> None:
    rows = [{"id": n, "parent_id": 9 if n in (2, 5) else 1} for n in range(1, 7)]
    options = {"on_conflict": on_conflict, "batch_size": batch_size}
    report = load(db, *rows, max_errors=None, **options)
    assert 4 == report.created
    assert [(2, "parent_id"), (5, "parent_id")] == [
        (reject.line, reject.field) for reject in report.rejects
    ]


def test_several_columns(db: Database) -> None:
    rows = [
        {"id": 1, "a": 1, "b": A},
        {"id": 2, "a": 1, "b": B},
        {"id": 3, "a": 1},
    ]
    report = load(db, *rows, max_errors=None)
    assert [(2, "a, b")] == [(each.line, each.field) for each in report.rejects]


@pytest.mark.parametrize("batch_size", [1, 100])
def test_rows_of_the_source(db: Database, batch_size: int) -> None:
    """A row may come before the one it names, if they are of one table."""
    rows = [{"id": 1, "before_id": 2}, {"id": 2}]
    assert 2 == load(db, *rows, batch_size=batch_size).created


def test_what_others_wrote(db: Database) -> None:
    """What the program has written before is not blamed on the rows of the load."""
    with db.session_manager() as session:
        session.add(Child(id=10, parent_id=7))
        session.flush()
        with session.bulk() as bulk:
            report = bulk.load([{"id": 1, "parent_id": 1}], ChildIn, dry_run=True)
        session.rollback()
    assert 1 == report.created


@pytest.mark.sqlite
def test_unchecked(tmp_path: Path) -> None:
    """Where SQLite is told not to check foreign keys, a load does not either."""
    with Database(f"sqlite:///{tmp_path}/a.db") as db:
        db.create_all(Base.metadata)
        with db.session_manager() as session:
            session.execute(text("PRAGMA foreign_keys=OFF"))
            with session.bulk() as bulk:
                report = bulk.load([{"id": 1, "parent_id": 9}], ChildIn)
    assert 1 == report.created


LATE_GUARD = """
CREATE FUNCTION late_guard() RETURNS trigger AS $$
BEGIN
  IF NEW.a = 13 THEN RAISE EXCEPTION 'not this one'; END IF;
  RETURN NULL;
END $$ LANGUAGE plpgsql
"""
LATE_TRIGGER = """
CREATE CONSTRAINT TRIGGER late_guard AFTER INSERT ON late_child
DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION late_guard()
"""


@pytest.mark.postgresql
def test_constraint_trigger(postgresql_url: str) -> None:
    """A trigger that is deferred rejects its row as well, and no row of others."""
    with Database(postgresql_url) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            session.execute(text(LATE_GUARD))
            session.execute(text(LATE_TRIGGER))
        rows = [{"id": 1}, {"id": 2, "a": 13}, {"id": 3}]
        report = load(db, *rows, max_errors=None)
        assert [(2, "a")] == [(each.line, each.field) for each in report.rejects]
        with db.session_manager() as session:
            session.add(Child(id=10, a=13))
            session.flush()
            with session.bulk() as bulk:
                report = bulk.load([{"id": 11}], ChildIn, dry_run=True)
            session.rollback()
        assert 1 == report.created
