"""
The floor on SQLite: what somebody who knows it writes without a library.

Rows without references go straight into their tables. The others go as text into a
temporary table, and one INSERT ... SELECT per table finds what they refer to;
text becomes numbers by the affinity of the columns.
"""

from __future__ import annotations

import csv
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

# As SQLAlchemy writes and reads a DateTime.
MOMENT = "replace(substr(raw.time_hour, 1, 19), 'T', ' ') || '.000000'"

WEATHER = f"""
INSERT INTO weather (
    origin_id, time_hour, temp, dewp, humid, wind_dir, wind_speed, wind_gust,
    precip, pressure, visib
)
SELECT
    origin.id, {MOMENT}, nullif(temp, 'NA'), nullif(dewp, 'NA'),
    nullif(humid, 'NA'), nullif(wind_dir, 'NA'), nullif(wind_speed, 'NA'),
    nullif(wind_gust, 'NA'), nullif(precip, 'NA'), nullif(pressure, 'NA'),
    nullif(visib, 'NA')
FROM raw_weather AS raw
JOIN airports AS origin ON origin.faa = raw.origin
"""

# CROSS JOIN keeps SQLite from reading the staged rows once per airline. Inserted in
# the order of the unique constraint, its index grows at its end only: with the
# default cache of 2 MB this is a quarter faster than the order of the file.
FLIGHTS = f"""
INSERT INTO flights (
    airline_id, flight, time_hour, plane_id, origin_id, destination_id, weather_id,
    year, month, day, hour, minute, dep_time, sched_dep_time, dep_delay,
    arr_time, sched_arr_time, arr_delay, air_time, distance
)
SELECT
    airline.id, raw.flight, {MOMENT}, plane.id, origin.id, destination.id,
    weather.id, raw.year, raw.month, raw.day, raw.hour, raw.minute,
    nullif(raw.dep_time, 'NA'), raw.sched_dep_time, nullif(raw.dep_delay, 'NA'),
    nullif(raw.arr_time, 'NA'), raw.sched_arr_time, nullif(raw.arr_delay, 'NA'),
    nullif(raw.air_time, 'NA'), raw.distance
FROM raw_flights AS raw
CROSS JOIN airlines AS airline ON airline.carrier = raw.carrier
CROSS JOIN airports AS origin ON origin.faa = raw.origin
LEFT JOIN airports AS destination ON destination.faa = raw.dest
LEFT JOIN planes AS plane ON plane.tailnum = raw.tailnum
LEFT JOIN weather
    ON weather.origin_id = origin.id AND weather.time_hour = {MOMENT}
ORDER BY airline.id, CAST(raw.flight AS INTEGER), raw.time_hour
"""


def load(url: str, paths: Mapping[str, Path]) -> None:
    """
    Load the five files in one transaction.
    """
    file = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("BEGIN")
        for name in ("airlines", "airports", "planes"):
            _insert(connection, name, paths[name])
        for name, statement in (("weather", WEATHER), ("flights", FLIGHTS)):
            _stage(connection, name, paths[name])
            connection.execute(statement)
        connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, table: str, path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows)
        values = ", ".join("nullif(?, 'NA')" for _ in header)
        connection.executemany(
            f"INSERT INTO {table} ({', '.join(header)}) VALUES ({values})", rows
        )


def _stage(connection: sqlite3.Connection, table: str, path: Path) -> None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        header = next(rows)
        connection.execute(f"CREATE TEMP TABLE raw_{table} ({', '.join(header)})")
        marks = ", ".join("?" for _ in header)
        connection.executemany(f"INSERT INTO raw_{table} VALUES ({marks})", rows)
