"""
Types of PostgreSQL that COPY sends: the rows are those of the unit of work.

Each type has a table of its own, so that a type a driver cannot send says which it is.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from types import new_class
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Double,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Text,
    Time,
    Uuid,
    delete,
    func,
    text,
    type_coerce,
)
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import Range
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeDecorator

from tenure import Database, Session, Spec, TenureError
from tests.fixtures.databases import Databases
from tests.fixtures.running import Run, Work, runner

Row = dict[str, Any]
Write = Callable[..., None]

pytestmark = pytest.mark.postgresql


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Loud(TypeDecorator[str]):
    impl = Text
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.upper(type_coerce(bindparam, Text))


EAST = timezone(timedelta(hours=5, minutes=30))
ODD_TEXTS = ["", "\\N", "\\", "a\tb\nc\r", "NULL", "'\"{},\\", "\u00e9\U0001f600"]
#: With asyncpg the first and the last are infinite.
NAIVE = [*map(datetime.fromisoformat, ("0001-01-01", "2024-02-29T01:02:03.6"))]
LAST = datetime.fromisoformat("9999-12-31T23:59:59.999999")
MOMENTS = [datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=z) for z in (UTC, EAST)]

TYPES: dict[str, tuple[Any, list[Any]]] = {
    "text": (Text, ODD_TEXTS),
    "char": (pg.CHAR(5), ["a", "abc "]),
    "bytea": (LargeBinary, [b"", b"\0\xff\\\n\t", bytes(range(256))]),
    "uuid": (Uuid, [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1)]),
    "uuid_text": (Uuid(as_uuid=False), [str(uuid.UUID(int=2**127))]),
    "boolean": (Boolean, [True, False]),
    "bigint": (BigInteger, [-(2**63), 2**63 - 1]),
    "double": (Double, [float("nan"), float("inf"), float("-inf"), -0.0, 5e-324, 0.1]),
    "real": (pg.REAL, [0.1, 1e38]),
    "numeric": (Numeric, [Decimal(n) for n in ("NaN", "1E+3", "0.10", "-1E-30", "7")]),
    "numeric_scaled": (Numeric(8, 2), [Decimal("NaN"), Decimal("1.005"), 3, 0.1]),
    "numeric_infinite": (Numeric, [Decimal("Infinity"), Decimal("-Infinity")]),
    "money": (pg.MONEY, ["$1,000.50", "-3"]),
    "date": (Date, [date.min, date.max, date(2024, 2, 29)]),
    "timestamp": (DateTime, [*NAIVE, LAST]),
    "timestamptz": (
        DateTime(timezone=True),
        [LAST.replace(tzinfo=UTC), *MOMENTS],
    ),
    "timestamp_0": (
        pg.TIMESTAMP(precision=0),
        NAIVE,
    ),
    "time": (Time, [time(0), time(23, 59, 59, 999999)]),
    "timetz": (pg.TIME(timezone=True), [time(1, 2, 3, tzinfo=EAST)]),
    "interval": (Interval, [timedelta(0), timedelta(-1, 1, 1), timedelta(400, 86399)]),
    "interval_of_its_own": (pg.INTERVAL, [timedelta(microseconds=-1), timedelta(40)]),
    "enum": (Enum(Colour), [Colour.RED, "GREEN"]),
    "inet": (pg.INET, ["10.0.0.1", "10.0.0.1/8", "::1"]),
    "cidr": (pg.CIDR, ["10.0.0.0/8", "2001:db8::/32"]),
    "macaddr": (pg.MACADDR, ["08:00:2b:01:02:03"]),
    "oid": (pg.OID, [0, 2**32 - 1]),
    "bit": (pg.BIT(5), ["10101", "00000"]),
    "varbit": (pg.BIT(varying=True), ["1", ""]),
    "json": (pg.JSON, [{"a": [1, None, "\\u00e9"]}, [], "x", 1.5, True]),
    "jsonb": (pg.JSONB, [{"a": [1, None, "\\"], "b": {}}, [], "x", 1.5, None]),
    "int4range": (
        pg.INT4RANGE,
        [
            Range(1, 5),
            Range(1, 5, bounds="[]"),
            Range(None, 3),
            Range(empty=True),
            Range(),
        ],
    ),
    "int8range": (pg.INT8RANGE, [Range(1, 2**40)]),
    "numrange": (pg.NUMRANGE, [Range(Decimal("0.10"), Decimal(5), bounds="(]")]),
    "daterange": (pg.DATERANGE, [Range(date(2024, 1, 1), date(2024, 2, 1))]),
    "tsrange": (pg.TSRANGE, [Range(NAIVE[1], None, bounds="()")]),
    "tstzrange": (pg.TSTZRANGE, [Range(*sorted(MOMENTS)), Range(None, MOMENTS[0])]),
    "int4multirange": (pg.INT4MULTIRANGE, [[Range(1, 3), Range(5, 8)], []]),
    "tstzmultirange": (pg.TSTZMULTIRANGE, [[Range(*sorted(MOMENTS))]]),
    "texts": (ARRAY(Text), [[], ODD_TEXTS, [None, "NULL"], ["{a,b}", '"']]),
    "integers": (ARRAY(Integer), [[1, None, -1], []]),
    "matrix": (ARRAY(Integer, dimensions=2), [[[1, 2], [3, 4]]]),
    "enums": (ARRAY(Enum(Colour)), [[Colour.RED, None], []]),
    "jsons": (ARRAY(pg.JSONB), [[{"a": 1}, [2]]]),
    "ranges": (ARRAY(pg.INT4RANGE), [[Range(1, 5)]]),
    "uuids": (ARRAY(Uuid), [[uuid.UUID(int=1)]]),
    "hstore": (pg.HSTORE, [{}, {"a": "1", "b": None, '"': "\\,=>"}]),
    "citext": (pg.CITEXT, ["aB", "AB", "\\N"]),
    "tsvector": (pg.TSVECTOR, ["a:1 b:2"]),
    "json_array": (ARRAY(pg.JSON), [[{"b": 1, "a": 2}, None]]),
    "domain": (pg.DOMAIN("score", Integer), [1, 2]),
    "loud": (Loud, ["a", "B"]),
}


def _entity(name: str, kind: Any) -> Any:
    def fill(body: dict[str, Any]) -> None:
        body["__module__"] = __name__
        body["__tablename__"] = f"held_{name}"
        body["id"] = mapped_column(Integer, primary_key=True, autoincrement=False)
        body["value"] = mapped_column(kind, nullable=True)

    return new_class(f"Held_{name}", (Base,), exec_body=fill)


ENTITIES = {name: _entity(name, kind) for name, (kind, _) in TYPES.items()}


def _spec(entity: Any) -> Any:
    spec: Any = Spec

    def fill(body: dict[str, Any]) -> None:
        body["__module__"] = __name__
        body["__annotations__"] = {"id": int, "value": Any}

    return new_class("HeldIn", (spec[entity],), exec_body=fill)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("postgresql+psycopg", id="psycopg"),
        pytest.param("postgresql+asyncpg", id="asyncpg"),
    ],
)
def on_postgresql(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    """Give what runs a function with a session of a database with these tables."""
    with databases.fresh(request.param, tmp_path_factory.mktemp("types")) as url:
        with Database(url) as db:
            with db.manager.engines["default"].begin() as connection:
                for extension in ("hstore", "citext"):
                    connection.execute(text(f"CREATE EXTENSION {extension}"))
                connection.execute(text("CREATE DOMAIN late AS timestamptz"))
            # How to send an extension's types is asked by a connection when it is made.
            db.manager.engines["default"].dispose()
            db.create_all(Base.metadata)
            with db.manager.engines["default"].begin() as connection:
                for name, (_, kind) in UNLIKE.items():
                    table = ENTITIES[name].__tablename__
                    connection.execute(
                        text(f"ALTER TABLE {table} ALTER value TYPE {kind} USING NULL")
                    )
            yield runner(db, url)


def by_unit_of_work(session: Session, entity: Any, rows: list[Row]) -> None:
    for row in rows:
        session.merge(entity(**row))
    session.commit()


def by_values(session: Session, entity: Any, rows: list[Row], **options: Any) -> None:
    with session.bulk() as bulk:
        for row in rows:
            bulk.add(entity(**row))
        bulk.commit(**options)


def by_load(session: Session, entity: Any, rows: list[Row], **options: Any) -> None:
    with session.bulk() as bulk:
        bulk.load(rows, _spec(entity), **options)


def written(write: Write, name: str, before: list[Row], rows: list[Row]) -> Work:
    """Give what writes rows, some of them into rows that are there before."""

    def work(session: Session) -> Any:
        entity = ENTITIES[name]
        session.execute(delete(entity))
        by_unit_of_work(session, entity, before)
        session.expunge_all()
        write(session, entity, rows)
        # As the server has it: what a driver reads is not all there is.
        as_text = f"SELECT id, value::text FROM {entity.__tablename__} ORDER BY id"
        return session.execute(text(as_text)).all()

    return work


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("write", [by_values, by_load])
@pytest.mark.parametrize("by_key", [False, True])
def test_the_same_rows(
    on_postgresql: Run,
    request: pytest.FixtureRequest,
    name: str,
    write: Write,
    by_key: bool,
) -> None:
    is_asyncpg = "asyncpg" in request.node.callspec.id
    if is_asyncpg and name in ("bit", "varbit") and not hasattr(pg, "BitString"):
        pytest.skip("SQLAlchemy 2.0 leaves bits to a class of asyncpg")
    values = [*TYPES[name][1], None, TYPES[name][1][0]]
    rows = [{"id": number, "value": value} for number, value in enumerate(values)]
    before: list[Row] = []
    if by_key:
        # The first row is new, and the last is as it was.
        before = [row | {"value": values[0]} for row in rows[1:]]
        write = partial(write, on_conflict="update")

    ours = on_postgresql(written(write, name, before, rows))
    theirs = on_postgresql(written(by_unit_of_work, name, before, rows))
    assert theirs == ours


#: Values that a column may get though they are of another type.
ODD_VALUES: list[Any] = [
    True,
    1,
    70_000,
    2.0,
    2.5,
    0.1 + 0.2,
    1 + 2**-24,
    1e20,
    Decimal("2.5"),
    Decimal("1E+5"),
    "1",
    "t",
    "2024-10-27T02:30:00+02:00",
    b"a\xff",
    date(2024, 10, 27),
    datetime.fromisoformat("2024-10-27T02:30:00.500000"),
    datetime(2024, 10, 27, 23, 30, tzinfo=EAST),
    time(2, 30),
    time(2, 30, tzinfo=EAST),
    timedelta(days=1, seconds=1),
    uuid.UUID(int=7),
    Colour.RED,
    [1, True],
    [0.1 + 0.2, None],
    [datetime(2024, 10, 27, 23, 30, tzinfo=EAST)],
    ["a", "1"],
    {"a": "1"},
    Range(datetime(2024, 10, 27, tzinfo=EAST), None),
    IPv4Address("10.0.0.1"),
    IPv4Interface("10.0.0.1/8"),
]
#: Columns that the database has as another type than the mapping.
UNLIKE = {
    "naive_for_aware": (DateTime, "timestamptz"),
    "aware_for_naive": (DateTime(timezone=True), "timestamp"),
    "date_for_naive": (Date, "timestamp"),
    "naive_for_date": (DateTime, "date"),
    "aware_time_for_naive": (pg.TIME(timezone=True), "time"),
    "numeric_for_integer": (Numeric, "integer"),
    "integer_for_boolean": (Integer, "boolean"),
    "double_for_real": (Double, "real"),
    "double_for_numeric": (Double, "numeric"),
    "text_for_integer": (Text, "integer"),
    "text_for_json": (Text, "jsonb"),
    "text_for_citext": (Text, "citext"),
    "integer_for_bigint": (Integer, "bigint"),
    "naive_for_domain": (DateTime, "late"),
}
ENTITIES |= {name: _entity(name, kind) for name, (kind, _) in UNLIKE.items()}


def one_by_one(write: Callable[[Session, Any], object]) -> Write:
    """Give what writes each row by itself; one that is refused is left out."""

    def written(session: Session, entity: Any, rows: list[Row]) -> None:
        for row in rows:
            # SQLAlchemy does not report all of psycopg's errors as its own.
            with suppress(TenureError, TypeError), session.begin_nested():
                write(session, entity(**row))
            session.expunge_all()

    return written


def flushed(session: Session, instance: Any) -> None:
    session.add(instance)
    session.flush()


def flushed_in_bulk(session: Session, instance: Any, **options: Any) -> None:
    try:
        with session.bulk() as bulk:
            bulk.add(instance)
            bulk.flush(**options)
    except TypeError as error:
        pytest.fail(f"not one of ours: {error!r}")


def what_is_left(session: Session, entity: Any, rows: list[Row], **how: Any) -> None:
    with session.bulk() as bulk:
        report = bulk.load(rows, _spec(entity), max_errors=None, **how)
    assert report.created + report.rejected == len(rows)


@pytest.mark.filterwarnings("ignore:__int__ returned:DeprecationWarning")
@pytest.mark.parametrize("name", ENTITIES)
def test_odd_values(on_postgresql: Run, name: str) -> None:
    """A value of another type is written, or refused, as a flush does."""
    rows = [{"id": number, "value": value} for number, value in enumerate(ODD_VALUES)]
    theirs = on_postgresql(written(one_by_one(flushed), name, [], rows))
    for how in ({}, {"on_conflict": "update"}):
        in_bulk = one_by_one(partial(flushed_in_bulk, **how))
        loaded = partial(what_is_left, **how)
        assert on_postgresql(written(in_bulk, name, [], rows)) == theirs
        assert on_postgresql(written(loaded, name, [], rows)) == theirs
