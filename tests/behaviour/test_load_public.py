"""Files of public packages, loaded with the models that a user would write."""

from __future__ import annotations

import csv
import json
from collections import Counter
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, Field, field_validator, model_validator
from sqlalchemy import ForeignKey, String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import Database, Ref, Spec


class Base(DeclarativeBase):
    pass


class Country(Base):
    __tablename__ = "public_country"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(2), unique=True)
    name: Mapped[str] = mapped_column(String(100))
    numeric: Mapped[int | None]


class Subdivision(Base):
    __tablename__ = "public_subdivision"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(6), unique=True)
    name: Mapped[str] = mapped_column(String(200))
    country_id: Mapped[int] = mapped_column(ForeignKey("public_country.id"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("public_subdivision.id"))

    country: Mapped[Country] = relationship()
    parent: Mapped[Subdivision | None] = relationship(remote_side=[id])


class Airport(Base):
    __tablename__ = "public_airport"

    icao: Mapped[str] = mapped_column(String(8), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    elevation: Mapped[float | None]
    country_id: Mapped[int] = mapped_column(ForeignKey("public_country.id"))

    country: Mapped[Country] = relationship()


class Source(Base):
    __tablename__ = "public_source"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)


class Generation(Base):
    __tablename__ = "public_generation"

    source_id: Mapped[int] = mapped_column(
        ForeignKey("public_source.id"), primary_key=True
    )
    year: Mapped[date] = mapped_column(primary_key=True)
    net: Mapped[int]

    source: Mapped[Source] = relationship()


class CountryIn(Spec[Country]):
    code: str = Field(validation_alias="alpha_2")
    name: str
    numeric: int

    model_config = ConfigDict(extra="ignore")


class NameIn(Spec[Country]):
    code: str
    name: str


class SubdivisionIn(Spec[Subdivision]):
    code: str
    name: str
    country: Ref[Country]
    parent: Ref[Subdivision] | None = None

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def of_its_code(cls, row: Any) -> Any:
        country = row["code"][:2]
        parent = row.get("parent")
        if parent is not None and "-" not in parent:
            parent = f"{country}-{parent}"
        return {**row, "country": country, "parent": parent}


class AirportIn(Spec[Airport]):
    icao: str
    name: str
    elevation: float | None
    country: Ref[Country]

    model_config = ConfigDict(extra="ignore")


class GenerationIn(Spec[Generation]):
    source: Ref[Source]
    year: date
    net: int = Field(validation_alias="net_generation")

    @field_validator("net", mode="before")
    @classmethod
    def whole(cls, text: str) -> str:
        return text.replace(",", "")


def path_of(package: str, name: str) -> Path:
    # Not imported: what they need otherwise is not here.
    spec = find_spec(package)
    assert spec is not None
    return Path(str(spec.origin)).parent / name


@pytest.fixture
def bulk(url: str) -> Any:
    with Database(url) as db:
        db.create_all(Base.metadata)
        with db.session_manager() as session, session.bulk() as bulk:
            yield bulk


def count(bulk: Any, entity: Any, *where: Any) -> int:
    found: int = bulk.session.scalar(
        select(func.count()).select_from(entity).where(*where)
    )
    return found


def countries(bulk: Any) -> list[dict[str, Any]]:
    path = path_of("pycountry", "databases/iso3166-1.json")
    report = bulk.load(path, CountryIn, path="3166-1")
    rows: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["3166-1"]
    assert len(rows) == report.created == count(bulk, Country)
    return rows


def test_subdivisions(bulk: Any) -> None:
    """An array in a document; rows that name rows of the same file, before or after."""
    countries(bulk)
    path = path_of("pycountry", "databases/iso3166-2.json")
    rows = json.loads(path.read_text("utf-8"))["3166-2"]
    report = bulk.load(
        path, SubdivisionIn, path="3166-2", batch_size=500, on_missing="null"
    )
    codes = {row["code"] for row in rows}
    parents = [
        p if "-" in (p := row["parent"]) else f"{row['code'][:2]}-{p}"
        for row in rows
        if "parent" in row
    ]
    assert len(rows) == report.created == count(bulk, Subdivision)
    assert len(rows) == report.references["Country"].resolved
    named = sum(parent in codes for parent in parents)
    assert 0 < named == report.references["Subdivision"].resolved
    assert named == count(bulk, Subdivision, Subdivision.parent_id.is_not(None))
    missing = Counter((parent,) for parent in parents if parent not in codes)
    assert missing == report.references["Subdivision"].missing_keys


def test_names(bulk: Any) -> None:
    """A table without a header, with comments, updates some attributes."""
    rows = countries(bulk)
    path = path_of("tzdata", "zoneinfo/iso3166.tab")
    report = bulk.load(
        path,
        NameIn,
        header=["code", "name"],
        comment="#",
        quotechar=None,
        on_conflict="update",
        update_fields=["name"],
    )
    lines = path.read_text("utf-8").splitlines()
    names = dict(line.split("\t") for line in lines if not line.startswith("#"))
    before = {row["alpha_2"]: row["name"] for row in rows}
    assert len(names) == report.rows
    assert report.updated == sum(before.get(c, n) != n for c, n in names.items()) > 0
    assert report.created == len(names.keys() - before)
    found = bulk.session.execute(select(Country.code, Country.name)).all()
    assert {**before, **names} == {code: name for code, name in found}  # noqa: C416
    kept = count(bulk, Country, Country.numeric.is_not(None))
    assert len(rows) == kept


def test_airports(bulk: Any, tmp_path: Path) -> None:
    """A large file with references to another; what is missing is told, and kept."""
    known = {row["alpha_2"] for row in countries(bulk)}
    path = path_of("airportsdata", "airports.csv")
    rejects = tmp_path / "rejects.jsonl"
    report = bulk.load(path, AirportIn, max_errors=None, rejects=rejects)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    good = [row for row in rows if row["country"] in known]
    assert (len(rows), len(good)) == (report.rows, report.created)
    assert len(good) == count(bulk, Airport)
    bad = Counter((row["country"],) for row in rows if row["country"] not in known)
    assert bad == report.references["Country"].missing_keys
    assert bad.total() == len(rejects.read_text().splitlines())
    total = bulk.session.scalar(select(func.sum(Airport.elevation)))
    assert total == pytest.approx(sum(float(row["elevation"]) for row in good))


def test_generation(bulk: Any) -> None:
    """What rows name is made with them; the same file again changes nothing."""
    path = path_of("vega_datasets", "_data/iowa-electricity.csv")
    report = bulk.load(path, GenerationIn, on_missing="create")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == report.created == count(bulk, Generation)
    sources = {row["source"] for row in rows}
    assert len(sources) == report.references["Source"].created
    total = bulk.session.scalar(select(func.sum(Generation.net)))
    assert total == sum(int(row["net_generation"]) for row in rows)
    again = bulk.load(path, GenerationIn, on_conflict="update")
    assert len(rows) == again.unchanged
