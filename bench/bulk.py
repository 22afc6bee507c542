"""
Write new instances, and rows by key, compared with doing it by hand.

    python bench/bulk.py --url sqlite:///bulk.db [--rows 100000] [--rounds 3]

``instances``: mapped instances are committed, by ``add_all()`` and by a bulk.
``upsert``: half of the rows exist. ``by hand`` is what one would write for it with the
driver: a staging table filled by COPY on PostgreSQL, ``executemany`` elsewhere. It is
given tuples, ``load`` mappings that it validates, ``bulk`` mapped instances that are
persistent afterwards. ``merge`` is the ORM's, row by row, for a twentieth of the rows.

What is written is the same each time, and is checked. Only ratios of one run mean
something.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from sqlalchemy import Engine, String, create_engine, func, insert, inspect, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Session, Spec


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "bench_items"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    name: Mapped[str | None] = mapped_column(String(20))
    amount: Mapped[int]
    price: Mapped[float]


class ItemIn(Spec[Item]):
    code: str
    name: str | None
    amount: int
    price: float


NAMES = ("code", "name", "amount", "price")
Row = tuple[str, str, int, float]
Contender = Callable[[Engine, list[Any]], None]


def rows(count: int) -> list[Row]:
    return [(f"c{n:08}", f"n{n}", n, n / 4) for n in range(count)]


def instances(given: list[Row]) -> list[Any]:
    return [Item(**dict(zip(NAMES, row, strict=True))) for row in given]


def mappings(given: list[Row]) -> list[Any]:
    return [dict(zip(NAMES, row, strict=True)) for row in given]


def add_all(engine: Engine, given: list[Any]) -> None:
    with Session(engine) as session:
        session.add_all(given)
        session.commit()


def bulk(engine: Engine, given: list[Any]) -> None:
    with Session(engine) as session, session.bulk() as bulk:
        for instance in given:
            bulk.add(instance)
        bulk.commit()
        assert inspect(given[-1]).persistent


def by_hand(engine: Engine, given: list[Any]) -> None:
    columns = ", ".join(NAMES)
    new = ", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])
    upsert = f"ON CONFLICT (code) DO UPDATE SET {new}"
    with engine.begin() as connection:
        run = connection.exec_driver_sql
        if engine.dialect.name == "postgresql":
            run(
                f"CREATE TEMPORARY TABLE stage ON COMMIT DROP AS SELECT {columns} "
                f"FROM bench_items WITH NO DATA"
            )
            driver: Any = connection.connection.driver_connection
            with (
                driver.cursor() as cursor,
                cursor.copy("COPY stage FROM STDIN") as copy,
            ):
                for row in given:
                    copy.write_row(row)
            run(
                f"INSERT INTO bench_items ({columns}) SELECT {columns} FROM stage "
                f"{upsert}"
            )
        elif engine.dialect.name == "sqlite":
            run(
                f"INSERT INTO bench_items ({columns}) VALUES (?, ?, ?, ?) {upsert}",
                given,
            )
        else:
            new = ", ".join(f"{name} = VALUES({name})" for name in NAMES[1:])
            run(
                f"INSERT INTO bench_items ({columns}) VALUES (%s, %s, %s, %s) "
                f"ON DUPLICATE KEY UPDATE {new}",
                given,
            )


def load(engine: Engine, given: list[Any]) -> None:
    with Session(engine) as session, session.bulk() as bulk:
        report = bulk.load(given, ItemIn, on_conflict="update")
    assert len(given) == report.created + report.updated


def upsert(engine: Engine, given: list[Any]) -> None:
    with Session(engine) as session, session.bulk() as bulk:
        for instance in given:
            bulk.add(instance)
        report = bulk.commit(on_conflict="update")
    assert len(given) == report.created + report.updated


def merge(engine: Engine, given: list[Any]) -> None:
    with Session(engine) as session:
        for instance in given:
            known = select(Item.id).where(Item.code == instance.code)
            instance.id = session.scalar(known)
            session.merge(instance)
        session.commit()


#: What each works on, and how much of it.
NEW: dict[str, tuple[Contender, Any, int]] = {
    "add_all": (add_all, instances, 1),
    "bulk": (bulk, instances, 1),
}
BY_KEY: dict[str, tuple[Contender, Any, int]] = {
    "by hand": (by_hand, list, 1),
    "load": (load, mappings, 1),
    "bulk": (upsert, instances, 1),
    "merge": (merge, instances, 20),
}


def prepare(engine: Engine, given: list[Row], *, half: bool) -> None:
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    if half:
        old = [
            {"code": row[0], "name": "old", "amount": -1, "price": 0.0} for row in given
        ]
        with engine.begin() as connection:
            connection.execute(insert(Item), old[::2])


def check(engine: Engine, given: list[Row]) -> None:
    with engine.connect() as connection:
        found = connection.execute(
            select(func.count(), func.sum(Item.amount), func.sum(Item.price))
        ).one()
    expected = len(given), sum(row[2] for row in given), sum(row[3] for row in given)
    if tuple(map(float, found)) != tuple(map(float, expected)):
        raise SystemExit(f"{tuple(found)}, not {expected}")


def compare(
    engine: Engine,
    contenders: dict[str, tuple[Contender, Any, int]],
    count: int,
    rounds: int,
    *,
    half: bool,
) -> dict[str, float]:
    """Give microseconds for each row, the median of rounds that take turns."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, (contender, form, part) in contenders.items():
            given = rows(count // part)
            prepare(engine, given, half=half)
            payload = form(given)
            gc.collect()
            started = time.perf_counter()
            contender(engine, payload)
            spent[name].append((time.perf_counter() - started) / len(given) * 1e6)
            check(engine, given)
    return {name: median(each) for name, each in spent.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare ways to write rows.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    engine = create_engine(arguments.url)
    for title, contenders, half in (
        ("instances", NEW, False),
        ("upsert", BY_KEY, True),
    ):
        found = compare(engine, contenders, arguments.rows, arguments.rounds, half=half)
        first = next(iter(found.values()))
        print(f"{title:12}{'us a row':>10}{'ratio':>8}")
        for name, each in found.items():
            print(f"{name:12}{each:10.1f}{each / first:8.2f}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
