"""
By hand with SQLAlchemy Core: keys looked up in dictionaries, rows in executemany.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select

from bench.files import integer, moment, number, read, utc, word
from bench.tables import engine
from examples.flights.models import Airline, Airport, Base, Plane, Weather

CHUNK = 10_000


def load(url: str, paths: Mapping[str, Path]) -> None:
    """
    Load the five files in one transaction.
    """
    made = engine(url)
    with made.begin() as connection:
        write(connection, "airlines", read(paths["airlines"]))
        write(connection, "airports", map(airport, read(paths["airports"])))
        write(connection, "planes", map(plane, read(paths["planes"])))
        airlines = dict(connection.execute(select(Airline.carrier, Airline.id)).all())
        airports = dict(connection.execute(select(Airport.faa, Airport.id)).all())
        planes = dict(connection.execute(select(Plane.tailnum, Plane.id)).all())
        write(
            connection,
            "weather",
            (weather(row, airports) for row in read(paths["weather"])),
        )
        hours = {
            (origin, utc(hour)): key
            for origin, hour, key in connection.execute(
                select(Weather.origin_id, Weather.time_hour, Weather.id)
            )
        }
        write(
            connection,
            "flights",
            (
                flight(row, airlines, airports, planes, hours)
                for row in read(paths["flights"])
            ),
        )
    made.dispose()


def write(
    connection: Connection, table: str, rows: Iterable[Mapping[str, object]]
) -> None:
    statement = insert(Base.metadata.tables[table])
    pending = iter(rows)
    while chunk := list(islice(pending, CHUNK)):
        connection.execute(statement, chunk)


def airport(row: Mapping[str, str]) -> dict[str, Any]:
    return {
        "faa": row["faa"],
        "name": row["name"],
        "lat": float(row["lat"]),
        "lon": float(row["lon"]),
        "alt": int(row["alt"]),
        "tz": int(row["tz"]),
        "dst": row["dst"],
        "tzone": word(row["tzone"]),
    }


def plane(row: Mapping[str, str]) -> dict[str, Any]:
    return {
        "tailnum": row["tailnum"],
        "year": integer(row["year"]),
        "type": row["type"],
        "manufacturer": row["manufacturer"],
        "model": row["model"],
        "engines": int(row["engines"]),
        "seats": int(row["seats"]),
        "speed": integer(row["speed"]),
        "engine": row["engine"],
    }


def weather(row: Mapping[str, str], airports: Mapping[str, int]) -> dict[str, Any]:
    return {
        "origin_id": airports[row["origin"]],
        "time_hour": moment(row["time_hour"]),
        "temp": number(row["temp"]),
        "dewp": number(row["dewp"]),
        "humid": number(row["humid"]),
        "wind_dir": number(row["wind_dir"]),
        "wind_speed": number(row["wind_speed"]),
        "wind_gust": number(row["wind_gust"]),
        "precip": number(row["precip"]),
        "pressure": number(row["pressure"]),
        "visib": number(row["visib"]),
    }


def flight(
    row: Mapping[str, str],
    airlines: Mapping[str, int],
    airports: Mapping[str, int],
    planes: Mapping[str, int],
    hours: Mapping[tuple[int, datetime], int],
) -> dict[str, Any]:
    origin = airports[row["origin"]]
    hour = moment(row["time_hour"])
    return {
        "airline_id": airlines[row["carrier"]],
        "flight": int(row["flight"]),
        "time_hour": hour,
        "plane_id": planes.get(row["tailnum"]),
        "origin_id": origin,
        "destination_id": airports.get(row["dest"]),
        "weather_id": hours.get((origin, hour)),
        "year": int(row["year"]),
        "month": int(row["month"]),
        "day": int(row["day"]),
        "hour": int(row["hour"]),
        "minute": int(row["minute"]),
        "dep_time": integer(row["dep_time"]),
        "sched_dep_time": int(row["sched_dep_time"]),
        "dep_delay": integer(row["dep_delay"]),
        "arr_time": integer(row["arr_time"]),
        "sched_arr_time": int(row["sched_arr_time"]),
        "arr_delay": integer(row["arr_delay"]),
        "air_time": integer(row["air_time"]),
        "distance": int(row["distance"]),
    }
