"""
The tables every contender loads into: made before a run, examined after it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from examples.flights.models import Airport, Base, Flight, Plane, Weather

ONCE = {"airlines": 16, "airports": 1_458, "planes": 3_322, "weather": 26_115}
# For each copy of the flights. The sums tell whether references lead to the right
# rows: seats of the planes, altitudes in feet, visibility in miles.
PER_COPY = {
    "flights": 336_776,
    "flights without plane": 52_606,
    "flights without destination": 7_602,
    "flights without weather": 1_556,
    "minutes in the air": 49_326_610,
    "seats": 38_851_317,
    "altitudes": 197_878_141,
    "visibilities": 3_102_681,
}


def engine(url: str) -> Engine:
    """
    Give an engine with the settings that all contenders share.

    On SQLite foreign keys are enforced, a transaction begins with BEGIN, and the
    journal and its flushing stay as they are by default.
    """
    made = create_engine(url)
    if made.dialect.name == "sqlite":
        event.listen(made, "connect", _connected)
        event.listen(made, "begin", _begun)
    return made


def _connected(connection: Any, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")


def _begun(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN")


def empty(url: str) -> None:
    """
    Drop the tables and make them anew, leaving no work behind for the next run.
    """
    made = create_engine(url, isolation_level="AUTOCOMMIT")
    with made.connect() as connection:
        Base.metadata.drop_all(connection)
        if made.dialect.name == "sqlite":
            connection.exec_driver_sql("VACUUM")
        Base.metadata.create_all(connection)
        if made.dialect.name == "postgresql":
            # Not everybody may; it only spares a run the pages of the one before.
            with suppress(DBAPIError):
                connection.exec_driver_sql("CHECKPOINT")
    made.dispose()


def check(url: str, copies: int) -> None:
    """
    Compare what is in the tables with what is in the files.

    Raises:
        SystemExit: Something differs; the message says what.
    """
    expected = ONCE | {name: copies * count for name, count in PER_COPY.items()}
    made = engine(url)
    with Session(made) as session:
        found = _counts(session) | _sums(session)
    made.dispose()
    wrong = [
        f"{name}: {found[name]:,}, not {count:,}"
        for name, count in expected.items()
        if found[name] != count
    ]
    if wrong:
        raise SystemExit("\n".join(wrong))


def _counts(session: Session) -> dict[str, int]:
    counts = {
        table.name: session.scalars(select(func.count()).select_from(table)).one()
        for table in Base.metadata.sorted_tables
    }
    for name, column in {
        "plane": Flight.plane_id,
        "destination": Flight.destination_id,
        "weather": Flight.weather_id,
    }.items():
        missing = select(func.count()).where(column.is_(None))
        counts[f"flights without {name}"] = session.scalars(missing).one()
    return counts


def _sums(session: Session) -> dict[str, int]:
    origin, destination = aliased(Airport), aliased(Airport)
    sums = (
        select(
            func.sum(Flight.air_time),
            func.sum(Plane.seats),
            func.sum(origin.alt) + func.sum(destination.alt),
            func.sum(Weather.visib),
        )
        .join(Flight.origin.of_type(origin))
        .outerjoin(Flight.destination.of_type(destination))
        .outerjoin(Flight.plane)
        .outerjoin(Flight.weather)
    )
    names = ("minutes in the air", "seats", "altitudes", "visibilities")
    return {
        name: round(total or 0)
        for name, total in zip(names, session.execute(sums).one(), strict=True)
    }
