"""
The floor on PostgreSQL: what somebody who knows it writes without a library.

The bytes of the files are copied as they are: rows without references straight into
their tables, the others as text into a temporary table, where one INSERT ... SELECT
per table casts them and finds what they refer to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import psycopg

WEATHER = """
INSERT INTO weather (
    origin_id, time_hour, temp, dewp, humid, wind_dir, wind_speed, wind_gust,
    precip, pressure, visib
)
SELECT
    origin.id, raw.time_hour::timestamptz, temp::float, dewp::float, humid::float,
    wind_dir::float, wind_speed::float, wind_gust::float, precip::float,
    pressure::float, visib::float
FROM raw_weather AS raw
JOIN airports AS origin ON origin.faa = raw.origin
"""

FLIGHTS = """
INSERT INTO flights (
    airline_id, flight, time_hour, plane_id, origin_id, destination_id, weather_id,
    year, month, day, hour, minute, dep_time, sched_dep_time, dep_delay,
    arr_time, sched_arr_time, arr_delay, air_time, distance
)
SELECT
    airline.id, raw.flight::int, raw.time_hour::timestamptz, plane.id, origin.id,
    destination.id, weather.id, raw.year::int, raw.month::int, raw.day::int,
    raw.hour::int, raw.minute::int, raw.dep_time::int, raw.sched_dep_time::int,
    raw.dep_delay::int, raw.arr_time::int, raw.sched_arr_time::int,
    raw.arr_delay::int, raw.air_time::int, raw.distance::int
FROM raw_flights AS raw
JOIN airlines AS airline ON airline.carrier = raw.carrier
JOIN airports AS origin ON origin.faa = raw.origin
LEFT JOIN airports AS destination ON destination.faa = raw.dest
LEFT JOIN planes AS plane ON plane.tailnum = raw.tailnum
LEFT JOIN weather
    ON weather.origin_id = origin.id
    AND weather.time_hour = raw.time_hour::timestamptz
"""


def load(url: str, paths: Mapping[str, Path]) -> None:
    """
    Load the five files in one transaction.
    """
    with psycopg.connect(url.replace("+psycopg", "", 1)) as connection:
        for name in ("airlines", "airports", "planes"):
            _copy(connection, name, paths[name])
        for name, statement in (("weather", WEATHER), ("flights", FLIGHTS)):
            columns = ", ".join(f"{column} text" for column in _header(paths[name]))
            connection.execute(
                f"CREATE TEMP TABLE raw_{name} ({columns}) ON COMMIT DROP"
            )
            _copy(connection, f"raw_{name}", paths[name])
            connection.execute(statement)


def _copy(
    connection: psycopg.Connection[tuple[object, ...]], table: str, path: Path
) -> None:
    columns = ", ".join(_header(path))
    statement = f"COPY {table} ({columns}) FROM STDIN (FORMAT csv, HEADER, NULL 'NA')"
    with (
        connection.cursor() as cursor,
        path.open("rb") as file,
        cursor.copy(statement) as copy,
    ):
        while block := file.read(1 << 18):
            copy.write(block)


def _header(path: Path) -> list[str]:
    with path.open(encoding="utf-8") as file:
        return file.readline().strip().split(",")
