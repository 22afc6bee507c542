"""
Count the modules that a record, a value, a reference and a statement pass.

    python tools/journeys.py [--list]

Each journey is a whole one: a block is opened, the work is done, the block is left. It
runs once before it is counted, so that what is read off mappers is known. A module
counts if one of its functions is called. Ends with 1 if a journey passes more modules
than its limit.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

import tenure
from tenure import Database, Ref, Spec

SOURCE = Path(tenure.__file__).parent

#: How many modules each may pass.
LIMITS = {"record": 30, "value": 26, "reference": 18, "statement": 9}

Journey = Callable[[Database], object]


class Base(DeclarativeBase):
    pass


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)


class Trip(Base):
    __tablename__ = "trip"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    city_id: Mapped[int] = mapped_column(ForeignKey("city.id"))
    city: Mapped[City] = relationship()


class TripIn(Spec[Trip]):
    number: int
    city: Ref[City]


def journeys(file: Path) -> dict[str, Journey]:
    """Give what is done on each journey."""

    def record(db: Database) -> None:
        with db.session_manager() as session, session.bulk() as bulk:
            bulk.load(file, TripIn)

    def value(db: Database) -> None:
        with db.session_manager() as session, session.bulk() as bulk:
            bulk.add(TripIn.model_validate({"number": 1, "city": "PAR"}))
            bulk.resolve()
            bulk.commit()

    def reference(db: Database) -> None:
        with db.session_manager() as session, session.bulk() as bulk:
            TripIn.model_validate({"number": 1, "city": "PAR"})
            bulk.resolve()

    def statement(db: Database) -> None:
        with db.session_manager() as session:
            session.scalars(select(City)).all()

    return {
        "record": record,
        "value": value,
        "reference": reference,
        "statement": statement,
    }


def world() -> Database:
    """Make a database with two cities."""
    db = Database("sqlite://")
    db.create_all(Base.metadata)
    with db.session_manager(auto_commit=True) as session:
        session.add_all([City(code="PAR"), City(code="ROM")])
    return db


def passed(journey: Journey) -> dict[str, set[str]]:
    """Give the functions that a journey calls, by module."""
    journey(world())
    db = world()
    found: dict[str, set[str]] = defaultdict(set)

    def note(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{SOURCE}/"):
            module = Path(code.co_filename).relative_to(SOURCE).with_suffix("")
            found[".".join(module.parts)].add(code.co_qualname)

    sys.setprofile(note)
    try:
        journey(db)
    finally:
        sys.setprofile(None)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the modules of journeys.")
    parser.add_argument("--list", action="store_true", help="name the modules as well")
    arguments = parser.parse_args()
    print(f"{'journey':<10}  {'modules':>7}  {'limit':>5}  {'functions':>9}")
    longer = False
    with TemporaryDirectory() as folder:
        file = Path(folder, "trips.csv")
        file.write_text("number,city\n1,PAR\n2,ROM\n")
        for name, journey in journeys(file).items():
            found = passed(journey)
            longer |= len(found) > LIMITS[name]
            functions = sum(map(len, found.values()))
            print(f"{name:<10}  {len(found):>7}  {LIMITS[name]:>5}  {functions:>9}")
            if arguments.list:
                print("".join(f"    {module}\n" for module in sorted(found)))
    return int(longer)


if __name__ == "__main__":
    sys.exit(main())
