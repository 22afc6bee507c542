"""
Constraints that are checked at the end of a transaction reject a row of a load, by line.

The foreign keys that Django makes are such, on SQLite and PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import (
    ForeignKey,
    ForeignKeyConstraint,
    UniqueConstraint,
    Uuid,
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
            if session.get_bind().dialect.name == "mysql":
                pytest.skip("MariaDB defers nothing")
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
