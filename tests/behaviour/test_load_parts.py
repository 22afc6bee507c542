"""
Keys that a file gives in columns of its own, or as floats.

The most common shape of normalised data: the file says year and team, the table has a
``team_id``. By load from every kind of file, by commit, and by the command.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import Field, model_validator
from sqlalchemy import ForeignKey, String, UniqueConstraint, delete, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import Database, Key, LoadError, Spec
from tenure.cli import main

pytestmark = pytest.mark.every_database


class Base(DeclarativeBase):
    pass


class Team(Base):
    __tablename__ = "part_team"
    __table_args__ = (UniqueConstraint("year", "code"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    year: Mapped[int]
    code: Mapped[str] = mapped_column(String(5))


class Batting(Base):
    __tablename__ = "part_batting"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    hits: Mapped[int | None]
    team_id: Mapped[int | None] = mapped_column(ForeignKey("part_team.id"))
    team: Mapped[Team | None] = relationship()


class BattingIn(Spec[Batting]):
    number: int
    year: int
    code: str
    team: Annotated[Team, Key(year="year", code="code")]
    hits: int


class LooseIn(Spec[Batting]):
    """All parts may be missing."""

    number: int
    year: int | None = None
    code: str | None = Field(None, validation_alias="team code")
    team: Annotated[Team | None, Key(year="year", code="code")]
    hits: int | None = None


class ExcludedIn(Spec[Batting]):
    """Fields that only a validator needs say so."""

    number: int
    singles: int = Field(exclude=True)
    doubles: int = Field(exclude=True)
    hits: int | None = None

    @model_validator(mode="after")
    def add(self) -> ExcludedIn:
        self.hits = self.singles + self.doubles
        return self


@pytest.fixture
def db(module_url: str) -> Iterator[Database]:
    with Database(module_url) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            session.execute(delete(Batting))
            session.execute(delete(Team))
            session.add_all([Team(year=2006, code="CHN"), Team(year=2007, code="CHN")])
        yield db


def csv_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    with (folder / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "a.csv"


def json_lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder / "a.jsonl"


def parquet_file(folder: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    return folder / "a.parquet"


def mappings(folder: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


Make = Callable[[Path, list[dict[str, Any]]], Any]
each_source = pytest.mark.parametrize(
    "make", [csv_file, json_lines, parquet_file, mappings], ids=lambda f: f.__name__
)


def load(db: Database, source: Any, into: Any, **options: Any) -> Any:
    with db.session_manager() as session, session.bulk() as bulk:
        return bulk.load(source, into, **options)


def stored(db: Database) -> list[tuple[Any, ...]]:
    wanted = select(Batting.number, Team.year, Batting.hits)
    with db.session_manager() as session:
        rows = session.execute(wanted.outerjoin(Batting.team).order_by(Batting.number))
        return [tuple(row) for row in rows]


@each_source
@pytest.mark.parametrize("kind", [int, float])
def test_columns_of_the_file(
    db: Database, tmp_path: Path, make: Make, kind: Any
) -> None:
    rows = [
        {"number": kind(n), "year": kind(year), "code": "CHN", "hits": kind(n)}
        for n, year in enumerate((2006, 2007, 2006, 1999))
    ]
    report = load(db, make(tmp_path, rows), BattingIn, max_errors=None)
    assert [(0, 2006, 0), (1, 2007, 1), (2, 2006, 2)] == stored(db)
    assert ["team"] == [reject.field for reject in report.rejects]
    assert 3 == report.references["Team"].resolved


@each_source
def test_nothing_of_a_key(db: Database, tmp_path: Path, make: Make) -> None:
    """Where a source gives no part of a key, the row has none."""
    load(db, make(tmp_path, [{"number": 1}, {"number": 2}]), LooseIn)
    assert [(1, None, None), (2, None, None)] == stored(db)


@each_source
def test_update(db: Database, tmp_path: Path, make: Make) -> None:
    """An update touches the reference only if a part of its key is given."""
    first = [{"number": n, "year": 2006, "team code": "CHN"} for n in (1, 2)]
    load(db, make(tmp_path, first), LooseIn)
    load(
        db,
        make(tmp_path, [{"number": 1, "hits": 5}]),
        LooseIn,
        on_conflict="update",
    )
    gone: dict[str, Any] = {"number": 2, "year": None, "team code": None}
    load(db, make(tmp_path, [gone]), LooseIn, on_conflict="update")
    assert [(1, 2006, 5), (2, None, None)] == stored(db)


def test_update_by_commit(db: Database) -> None:
    """A commit does the same."""
    for rows in (
        [{"number": n, "year": 2006, "team code": "CHN"} for n in (1, 2)],
        [{"number": 1, "hits": 5}, {"number": 2, "year": None, "team code": None}],
    ):
        with db.session_manager() as session, session.bulk() as bulk:
            bulk.validate(list[LooseIn], rows)
            bulk.commit(on_conflict="update")
    assert [(1, 2006, 5), (2, None, None)] == stored(db)


@each_source
def test_for_validators(db: Database, tmp_path: Path, make: Make) -> None:
    rows = [{"number": 1, "singles": 2, "doubles": 3}]
    load(db, make(tmp_path, rows), ExcludedIn)
    with db.session_manager() as session, session.bulk() as bulk:
        bulk.add(ExcludedIn(number=2, singles=1, doubles=1))
        bulk.commit()
    assert [(1, None, 5), (2, None, 2)] == stored(db)


def test_unknown_attribute() -> None:
    """A misspelt one is an error when the class is made, which says the way out."""
    with pytest.raises(
        LoadError,
        match=r"hit is no attribute of Batting; did you mean 'hits'\?.*exclude=True",
    ):
        type("HitIn", (Spec[Batting],), {"__annotations__": {"hit": int}})


def test_by_command(
    db: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = csv_file(tmp_path, [{"number": 1, "year": 2006, "code": "CHN", "hits": 3}])
    url = db.manager.engines["default"].url.render_as_string(hide_password=False)
    into = f"{__name__}:BattingIn"
    assert main(["load", str(source), "--into", into, "--url", url]) == 0
    assert [(1, 2006, 3)] == stored(db)
