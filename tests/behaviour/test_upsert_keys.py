"""
Upserts by keys that are no plain unique constraint, by load and by commit.

Indexes of some of the rows, of expressions, those to which NULLs are equal, constraints
that are checked at the end, and identifiers that are only declared.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Index,
    PrimaryKeyConstraint,
    String,
    UniqueConstraint,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, LoadError, Spec

CONDITION = text("deleted IS NULL")


class Base(DeclarativeBase):
    pass


class Soft(Base):
    """A mail address is unique among what is not deleted."""

    __tablename__ = "key_soft"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(50))
    name: Mapped[str] = mapped_column(String(50))
    deleted: Mapped[str | None] = mapped_column(String(5))


Index(
    "ux_soft",
    Soft.email,
    unique=True,
    postgresql_where=Soft.deleted.is_(None),
    sqlite_where=Soft.deleted.is_(None),
)


class Folded(Base):
    """A mail address is unique whatever its case."""

    __tablename__ = "key_folded"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(50))
    name: Mapped[str] = mapped_column(String(50))


FOLDED = Index("ux_folded", func.lower(Folded.email), unique=True)
FOLDED.ddl_if(dialect=("postgresql", "sqlite"))


class Together(Base):
    """NULL equals NULL."""

    __tablename__ = "key_together"
    __table_args__ = (UniqueConstraint("a", "b", postgresql_nulls_not_distinct=True),)

    id: Mapped[int] = mapped_column(primary_key=True)
    a: Mapped[str] = mapped_column(String(5))
    b: Mapped[str | None] = mapped_column(String(5))
    v: Mapped[int]


class Late(Base):
    """A number is unique at the end of a transaction."""

    __tablename__ = "key_late"
    __table_args__ = (
        UniqueConstraint("k", deferrable=True, initially="DEFERRED").ddl_if(
            dialect="postgresql"
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    k: Mapped[int]
    v: Mapped[int]


class LateBase(DeclarativeBase):
    """For PostgreSQL only."""


class LateKey(LateBase):
    """A primary key is, too."""

    __tablename__ = "key_late_key"
    __table_args__ = (PrimaryKeyConstraint("k", deferrable=True, initially="DEFERRED"),)

    k: Mapped[int] = mapped_column(autoincrement=False)
    v: Mapped[int]


class Declared(Base):
    """Only the mapping says that a code names one row."""

    __tablename__ = "key_declared"
    __identifiers__ = ("code",)

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(5))
    v: Mapped[int]


class SoftIn(Spec[Soft]):
    email: str
    name: str


class SoftAgainIn(Spec[Soft]):
    email: str
    name: str
    deleted: str | None


class FoldedIn(Spec[Folded]):
    email: str
    name: str


class TogetherIn(Spec[Together]):
    a: str
    b: str | None
    v: int


class LateIn(Spec[Late]):
    k: int
    v: int


class LateKeyIn(Spec[LateKey]):
    k: int
    v: int


class DeclaredIn(Spec[Declared]):
    code: str
    v: int


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        yield db


def add(db: Database, entity: Any, *rows: dict[str, Any]) -> None:
    with db.session_manager(auto_commit=True) as session:
        session.execute(insert(entity), rows)


def load(db: Database, into: Any, *rows: Any, **options: Any) -> Any:
    with db.session_manager() as session, session.bulk() as bulk:
        return bulk.load(rows, into, **options)


def commit(db: Database, into: Any, *rows: Any, **options: Any) -> Any:
    with db.session_manager() as session, session.bulk() as bulk:
        for row in rows:
            bulk.add(into(**row))
        return bulk.commit(**options)


def found(db: Database, *columns: Any) -> list[tuple[Any, ...]]:
    with db.session_manager() as session:
        key = inspect(columns[0].class_).primary_key
        rows = session.execute(select(*columns).order_by(*key))
        return [tuple(row) for row in rows]


def counts(report: Any) -> tuple[int, ...]:
    return report.created, report.updated, report.unchanged, report.skipped


class TestSomeRows:
    def test_update(self, db: Database) -> None:
        gone = {"email": "a", "name": "gone", "deleted": "y"}
        add(db, Soft, gone, {"email": "a", "name": "old", "deleted": None})
        rows = [{"email": "a", "name": "new"}, {"email": "b", "name": "first"}]
        again = {"email": "b", "name": "second"}
        report = load(db, SoftIn, *rows, again, on_conflict="update")
        assert (1, 2, 0, 0) == counts(report)
        assert found(db, Soft.name) == [("gone",), ("new",), ("second",)]

    def test_skip(self, db: Database) -> None:
        add(db, Soft, {"email": "a", "name": "old", "deleted": None})
        rows = [{"email": "a", "name": "new"}, {"email": "b", "name": "first"}]
        report = load(db, SoftIn, *rows, on_conflict="skip")
        assert (1, 0, 0, 1) == counts(report)
        assert found(db, Soft.name) == [("old",), ("first",)]

    def test_other_rows(self, db: Database) -> None:
        """A row that the index is not for is new, also where one is like it."""
        rows = [{"email": "a", "name": n, "deleted": "y"} for n in ("one", "two")]
        report = load(db, SoftAgainIn, *rows, on_conflict="update")
        assert (2, 0, 0, 0) == counts(report)

    def test_raise(self, db: Database) -> None:
        """What exists is deleted, so it is no duplicate; what is not deleted is."""
        gone = {"email": "a", "name": "gone", "deleted": "y"}
        add(db, Soft, gone, {"email": "b", "name": "old", "deleted": None})
        rows = [{"email": "a", "name": "new"}, {"email": "b", "name": "new"}]
        report = load(db, SoftIn, *rows, max_errors=None)
        assert [2] == [reject.line for reject in report.rejects]

    def test_commit(self, db: Database) -> None:
        """A commit does not go by it, and says what is there."""
        add(db, Soft, {"email": "a", "name": "old", "deleted": None})
        with pytest.raises(IntegrityError):
            commit(db, SoftIn, {"email": "a", "name": "new"}, on_conflict="update")


class TestExpressions:
    def test_update(self, db: Database) -> None:
        """What the expression is made of changes as well."""
        add(db, Folded, {"email": "A@x", "name": "old"})
        rows = [{"email": "a@X", "name": "new"}, {"email": "b@x", "name": "first"}]
        again = {"email": "B@X", "name": "second"}
        report = load(db, FoldedIn, *rows, again, on_conflict="update")
        assert (1, 2, 0, 0) == counts(report)
        assert found(db, Folded.email, Folded.name) == [
            ("a@X", "new"),
            ("B@X", "second"),
        ]


@pytest.mark.parametrize("write", [load, commit])
class TestBoth:
    @pytest.mark.postgresql
    def test_nulls_are_equal(self, postgresql_url: str, write: Any) -> None:
        with Database(postgresql_url) as db:
            db.create_all(Base.metadata)
            add(db, Together, {"a": "x", "b": None, "v": 1})
            rows = [{"a": "x", "b": None, "v": 2}, {"a": "y", "b": None, "v": 3}]
            report = write(db, TogetherIn, *rows, on_conflict="update")
            assert (1, 1, 0, 0) == counts(report)
            assert found(db, Together.v) == [(2,), (3,)]

    @pytest.mark.postgresql
    @pytest.mark.parametrize("on_conflict", ["update", "skip"])
    @pytest.mark.parametrize("into", [LateIn, LateKeyIn])
    def test_deferred(
        self, postgresql_url: str, write: Any, on_conflict: Any, into: Any
    ) -> None:
        entity = {LateIn: Late, LateKeyIn: LateKey}[into]
        with Database(postgresql_url) as db:
            db.create_all(entity.metadata)
            add(db, entity, {"k": 1, "v": 1})
            rows = [{"k": 1, "v": 2}, {"k": 2, "v": 2}]
            report = write(db, into, *rows, on_conflict=on_conflict)
            assert 1 == report.created
            left = 1 if on_conflict == "skip" else 2
            assert found(db, entity.v) == [(left,), (2,)]

    def test_declared(self, db: Database, write: Any) -> None:
        add(db, Declared, {"code": "a", "v": 1})
        rows = [{"code": "a", "v": 2}, {"code": "b", "v": 3}]
        report = write(db, DeclaredIn, *rows, on_conflict="update")
        assert (1, 1, 0, 0) == counts(report)
        assert found(db, Declared.v) == [(2,), (3,)]


class TestUnusable:
    @pytest.mark.mariadb
    def test_by_name(self, mariadb_url: str) -> None:
        """Where a database cannot name an index, the error does, and says why."""
        with Database(mariadb_url) as db, pytest.raises(LoadError) as caught:
            load(db, FoldedIn, {"email": "a", "name": "b"}, on_conflict="update")
        message = str(caught.value)
        assert "the index ux_folded on (lower(key_folded.email)) is none" in message
        assert "no way to name it" in message

    def test_as_text(self, db: Database) -> None:
        class Other(DeclarativeBase):
            pass

        class Plain(Other):
            __tablename__ = "key_plain"
            __table_args__ = (Index("ux_plain", text("lower(email)"), unique=True),)

            id: Mapped[int] = mapped_column(primary_key=True)
            email: Mapped[str] = mapped_column(String(50))

        class PlainIn(Spec[Plain]):
            email: str

        with pytest.raises(LoadError, match=r"ux_plain.*written as text.*columns"):
            load(db, PlainIn, {"email": "a"}, on_conflict="update")

    def test_lacks_a_field(self, db: Database) -> None:
        """A key is listed with the rows that it is for."""

        class NamesIn(Spec[Soft]):
            name: str

        with pytest.raises(LoadError) as caught:
            load(db, NamesIn, {"name": "a"}, on_conflict="update")
        message = str(caught.value)
        assert "its keys are (id)" in message
        assert "deleted IS NULL" in message
