"""A value that a type refuses without a word rejects its row, and no other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, TypeDecorator, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import Database, Ref, Spec
from tenure.errors import said


class Code(TypeDecorator[str]):
    """A text that may not be blank, and says so without a word."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value == "bad":
            raise ValueError
        if value == "blank":
            raise ValueError("  \n ")
        return value


class Base(DeclarativeBase):
    pass


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(Code, unique=True)


class Trip(Base):
    __tablename__ = "trip"

    id: Mapped[int] = mapped_column(primary_key=True)
    city_id: Mapped[int | None] = mapped_column(ForeignKey("city.id"))
    city: Mapped[City] = relationship()


class CityIn(Spec[City]):
    code: str


class TripIn(Spec[Trip]):
    city: Ref[City]


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        yield db


@pytest.mark.parametrize("on_conflict", ["raise", "update"])
@pytest.mark.parametrize("bad", ["bad", "blank"])
def test_value(db: Database, bad: str, on_conflict: Any) -> None:
    """The row is rejected with the class of the error; the others are written."""
    rows = [{"code": code} for code in ("a", bad, "b")]
    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(rows, CityIn, max_errors=None, on_conflict=on_conflict)
        codes = set(session.scalars(select(City.code)))

    assert {"a", "b"} == codes
    assert [(2, "ValueError")] == [(r.line, r.message) for r in report.rejects]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_value_in_a_file(db: Database, tmp_path: Path, kind: str) -> None:
    """As from mappings, with the line of a text and the number of a Parquet row."""
    codes = ["a", "bad", "b"]
    file = tmp_path / f"cities.{kind}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        table = pytest.importorskip("pyarrow").table({"code": codes})
        parquet.write_table(table, file)
    elif kind == "csv":
        file.write_text("code\n" + "\n".join(codes))
    else:
        file.write_text("\n".join(json.dumps({"code": code}) for code in codes))

    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(file, CityIn, max_errors=None)
        kept = set(session.scalars(select(City.code)))

    assert {"a", "b"} == kept
    assert [(3 if kind == "csv" else 2, "ValueError")] == [
        (reject.line, reject.message) for reject in report.rejects
    ]


@pytest.mark.parametrize("message", ["", " \n", "first\nsecond", "  first  "])
def test_what_a_driver_said(message: str) -> None:
    """The first line of a driver's error, or its class where it said nothing."""
    error = DBAPIError("INSERT", {}, OSError(message))

    assert ("first" if "first" in message else "OSError") == said(error)


@pytest.mark.parametrize("bad", ["bad", "blank"])
def test_reference_that_is_made(db: Database, bad: str) -> None:
    """A row whose reference cannot be made is rejected, and says why."""
    rows = [{"city": code} for code in ("a", bad, "b")]
    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(rows, TripIn, max_errors=None, on_missing="create")
        codes = set(session.scalars(select(City.code)))

    assert {"a", "b"} == codes
    assert [2] == [reject.line for reject in report.rejects]


@pytest.mark.parametrize("bad", ["bad", "blank"])
def test_reference_that_is_looked_up(db: Database, bad: str) -> None:
    """A key that its type refuses is a missing reference."""
    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load([{"city": bad}], TripIn, max_errors=None)

    assert ["missing"] == [reject.reason for reject in report.rejects]


@pytest.mark.parametrize("bad", ["bad", "blank"])
def test_resolve(db: Database, bad: str) -> None:
    """resolve() names it, with the class of the error."""
    with db.session_manager() as session, session.bulk() as bulk:
        TripIn.model_validate({"city": bad})
        found = bulk.resolve(raise_errors=False)

    assert ["invalid"] == [failure.reason for failure in found.failures]
    assert "ValueError" in str(found.failures[0])
