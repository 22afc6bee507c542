"""
What the five files say, as Pydantic models bound to the tables.

A reference takes the place of the key in the file: ``carrier`` names an airline,
``tailnum`` a plane. The weather of a flight has no column of its own; its key is
made of two others.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from examples.flights.models import Airline, Airport, Flight, Plane, Weather
from tenure import Key, Ref, Spec


class AirlineIn(Spec[Airline]):
    carrier: str
    name: str


class AirportIn(Spec[Airport]):
    faa: str
    name: str
    lat: float
    lon: float
    alt: int
    tz: int
    dst: str
    tzone: str | None


class PlaneIn(Spec[Plane]):
    tailnum: str
    year: int | None
    type: str
    manufacturer: str
    model: str
    engines: int
    seats: int
    speed: int | None
    engine: str


class WeatherIn(Spec[Weather]):
    # year, month, day and hour repeat time_hour in local time
    model_config = ConfigDict(extra="ignore")

    origin: Ref[Airport]
    time_hour: datetime
    temp: float | None
    dewp: float | None
    humid: float | None
    wind_dir: float | None
    wind_speed: float | None
    wind_gust: float | None
    precip: float | None
    pressure: float | None
    visib: float | None


class FlightIn(Spec[Flight]):
    airline: Ref[Airline] = Field(validation_alias="carrier")
    number: int = Field(validation_alias="flight")
    plane: Ref[Plane] | None = Field(validation_alias="tailnum")
    origin: Ref[Airport]
    destination: Ref[Airport] | None = Field(validation_alias="dest")
    time_hour: datetime
    weather: Annotated[Weather | None, Key(origin="origin", time_hour="time_hour")]
    year: int
    month: int
    day: int
    hour: int
    minute: int
    dep_time: int | None
    sched_dep_time: int
    dep_delay: int | None
    arr_time: int | None
    sched_arr_time: int
    arr_delay: int | None
    air_time: int | None
    distance: int


#: The files in the order in which they can be loaded: what is referred to first.
FILES: dict[str, type[Spec[Any]]] = {
    "airlines": AirlineIn,
    "airports": AirportIn,
    "planes": PlaneIn,
    "weather": WeatherIn,
    "flights": FlightIn,
}
