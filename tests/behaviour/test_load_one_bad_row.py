"""
One bad row of a source is one rejected row, whatever the reason, and names its column.

What only the server, the driver or a user's type refuses, on three databases, by every
policy for conflicts: the rows beside it are written, and its line is known.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import (
    DDL,
    CheckConstraint,
    Date,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
    TypeDecorator,
    UniqueConstraint,
    delete,
    event,
    select,
)
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, Spec
from tenure.bulk.load import savepoints

pytestmark = pytest.mark.every_database


class Colour(enum.Enum):
    RED = "r"


class Even(TypeDecorator[int]):
    """An even number; says so without a class of its own."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is not None and value % 2:
            raise ValueError("an odd number")
        return value


class Strange(TypeDecorator[int]):
    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value == 13:
            raise RuntimeError("not this one")
        return value


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "bad_parent"

    id: Mapped[int] = mapped_column(primary_key=True)


class Strict(Base):
    """No column may be null, so a value of another row stands in for each."""

    __tablename__ = "bad_strict"

    no: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(5), unique=True)
    word: Mapped[str] = mapped_column(String(5))
    small: Mapped[int] = mapped_column(CheckConstraint("small < 100"))
    large: Mapped[int] = mapped_column(CheckConstraint("large > 100"))


class Thing(Base):
    __tablename__ = "bad_thing"
    __table_args__ = (
        CheckConstraint("checked < 100", name="ck_checked"),
        UniqueConstraint("other", name="uq_other"),
    )

    no: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    word: Mapped[Any] = mapped_column(String(5), nullable=True)
    small: Mapped[Any] = mapped_column(SmallInteger, nullable=True)
    day: Mapped[Any] = mapped_column(Date, nullable=True)
    moment: Mapped[Any] = mapped_column(DateTime, nullable=True)
    hour: Mapped[Any] = mapped_column(Time, nullable=True)
    price: Mapped[Any] = mapped_column(Numeric(6, 2), nullable=True)
    weight: Mapped[Any] = mapped_column(Float, nullable=True)
    data: Mapped[Any] = mapped_column(LargeBinary, nullable=True)
    colour: Mapped[Any] = mapped_column(Enum(Colour), nullable=True)
    even: Mapped[Any] = mapped_column(Even, nullable=True)
    strange: Mapped[Any] = mapped_column(Strange, nullable=True)
    checked: Mapped[Any] = mapped_column(Integer, nullable=True)
    other: Mapped[Any] = mapped_column(Integer, nullable=True)
    parent_id: Mapped[Any] = mapped_column(ForeignKey("bad_parent.id"), nullable=True)
    needed: Mapped[Any] = mapped_column(Text, nullable=False, server_default="x")
    guarded: Mapped[Any] = mapped_column(Integer, nullable=True)
    address: Mapped[Any] = mapped_column(
        Text().with_variant(pg.INET(), "postgresql"), nullable=True
    )


_GUARD = {
    "postgresql": (
        """
        CREATE FUNCTION bad_guard() RETURNS trigger AS $$
        BEGIN
          IF NEW.guarded = 13 THEN RAISE EXCEPTION 'not this one'; END IF;
          RETURN NULL;
        END $$ LANGUAGE plpgsql
        """,
        """
        CREATE CONSTRAINT TRIGGER bad_guard AFTER INSERT OR UPDATE ON bad_thing
        FOR EACH ROW EXECUTE FUNCTION bad_guard()
        """,
    ),
    "mysql": (
        """
        CREATE TRIGGER bad_guard BEFORE INSERT ON bad_thing FOR EACH ROW
        BEGIN
          IF NEW.guarded = 13 THEN
            SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'not this one';
          END IF;
        END
        """,
    ),
    "sqlite": (
        """
        CREATE TRIGGER bad_guard BEFORE INSERT ON bad_thing WHEN NEW.guarded = 13
        BEGIN SELECT RAISE(ABORT, 'not this one'); END
        """,
    ),
}

for _dialect, _statements in _GUARD.items():
    for _statement in _statements:
        event.listen(
            Thing.__table__,
            "after_create",
            DDL(_statement.replace("%", "%%")).execute_if(
                dialect=("mysql", "mariadb") if _dialect == "mysql" else _dialect
            ),
        )

#: Values that some database, driver or type refuses, by column.
BAD: dict[str, tuple[str, Any]] = {
    "too_long": ("word", "abcdefgh"),
    "surrogate": ("word", "\ud800"),
    "nul": ("word", "a\0b"),
    "emoji": ("word", "\U0001f600"),
    "a_list": ("word", ["a", "b"]),
    "a_dict": ("word", {"a": 1}),
    "an_object": ("word", object()),
    "a_set": ("word", {1}),
    "out_of_range": ("small", 70_000),
    "out_of_64_bits": ("small", 2**70),
    "no_number": ("small", "seven"),
    "fraction_text": ("small", "1.5x"),
    "month_13": ("day", "2024-13-01"),
    "day_as_number": ("day", 20240101),
    "no_moment": ("moment", "soon"),
    "year_one": ("moment", datetime(1, 1, 1)),  # noqa: DTZ001
    "no_hour": ("hour", "25:61"),
    "infinite_price": ("price", Decimal("Infinity")),
    "nan_price": ("price", Decimal("NaN")),
    "signaling_nan": ("price", Decimal("sNaN")),
    "large_price": ("price", Decimal("1234567.89")),
    "price_as_word": ("price", "cheap"),
    "nan": ("weight", float("nan")),
    "infinity": ("weight", float("inf")),
    "too_large": ("weight", 10**400),
    "text_as_data": ("data", "text"),
    "colour": ("colour", "BLUE"),
    "colour_as_number": ("colour", 7),
    "odd": ("even", 3),
    "no_even": ("even", "x"),
    "runtime_error": ("strange", 13),
    "check": ("checked", 100),
    "foreign_key": ("parent_id", 99),
    "null": ("needed", None),
    "trigger": ("guarded", 13),
    "address": ("address", "999.1.1.1"),
    "date_for_time": ("hour", date(2024, 1, 1)),
    "time_for_date": ("day", time(1)),
}


class ThingIn(Spec[Thing]):
    no: int
    word: Any = None
    small: Any = None
    day: Any = None
    moment: Any = None
    hour: Any = None
    price: Any = None
    weight: Any = None
    data: Any = None
    colour: Any = None
    even: Any = None
    strange: Any = None
    checked: Any = None
    other: Any = None
    parent_id: Any = None
    guarded: Any = None
    address: Any = None


class NeedingIn(ThingIn):
    needed: Any


class StrictIn(Spec[Strict]):
    code: str
    word: Any
    small: Any
    large: Any


@pytest.fixture(scope="module")
def db(module_url: str) -> Iterator[Database]:
    with Database(module_url) as db:
        db.create_all(Base.metadata)
        yield db


def is_kept(db: Database, row: dict[str, Any]) -> bool:
    """Whether a flush writes *row*."""
    try:
        with db.session_manager() as session:
            session.add(Thing(**row))
            session.flush()
            session.rollback()
    except Exception:  # noqa: BLE001  # whatever it raises
        return False
    return True


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("on_conflict", ["raise", "update", "skip"])
def test_is_rejected(db: Database, name: str, on_conflict: Any) -> None:
    column, value = BAD[name]
    rows = [{"no": no, column: None} for no in range(1, 8)]
    rows[3][column] = value
    into: Any = ThingIn
    if column == "needed":
        into = NeedingIn
        rows = [row | {"needed": "x"} for row in rows]
        rows[3][column] = value
    expected = [] if is_kept(db, rows[3]) else [(4, column)]

    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(rows, into, on_conflict=on_conflict, max_errors=None)
    with db.session_manager(auto_commit=True) as session:
        kept = session.scalars(select(Thing.no).order_by(Thing.no)).all()
        session.execute(delete(Thing))

    assert [(each.line, each.field) for each in report.rejects] == expected
    assert list(kept) == [n for n in range(1, 8) if (n, column) not in expected]
    assert report.created == len(kept)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("word", {"a": 1}),
        ("small", 100),
        ("large", 1),
        ("small", "x"),
        ("word", "\ud800"),
    ],
)
@pytest.mark.parametrize("on_conflict", ["raise", "update"])
def test_column_without_nulls(
    db: Database, column: str, value: Any, on_conflict: Any
) -> None:
    rows = [
        {"code": f"c{n}", "word": f"w{n}", "small": n, "large": 100 + n}
        for n in range(1, 5)
    ]
    rows[1][column] = value
    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(
            rows, StrictIn, on_conflict=on_conflict, max_errors=None, dry_run=True
        )
    assert [(2, column)] == [(each.line, each.field) for each in report.rejects]


def test_column_of_many_rows(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns are tried out so many times, and no more."""
    monkeypatch.setattr(savepoints, "MOST_TRIALS", 6)
    rows = [{"no": n, "guarded": 13} for n in range(5)]
    with db.session_manager() as session, session.bulk() as bulk:
        report = bulk.load(rows, ThingIn, max_errors=None, dry_run=True)
    # Each row has two values.
    assert [*["guarded"] * 3, "", ""] == [each.field for each in report.rejects]
