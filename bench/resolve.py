"""
Resolve references by a composite key, and compare with the bare statement.

    python bench/resolve.py --url sqlite:///resolve.db --keys 100000 --rounds 5

A table of 200 000 rows is asked for half of them, in random order, by a key of a
text and a number. ``bare`` sends the keys with the driver's own call (SQLite: one
JSON array joined with the table, PostgreSQL: arrays with ordinality) and fetches
every answer; ``bind`` is ``bulk.resolve()`` on references that were validated
before. The two take turns; only the ratio of a round means something.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from statistics import median
from typing import Annotated, Any

from pydantic import TypeAdapter
from sqlalchemy import UniqueConstraint, create_engine, event, insert, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from seance import Database, Key

ROWS = 200_000


class Base(DeclarativeBase):
    pass


class Reading(Base):
    __tablename__ = "bench_readings"
    __table_args__ = (UniqueConstraint("station", "hour"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    station: Mapped[str]
    hour: Mapped[int]
    value: Mapped[float]


BARE = {
    "sqlite": (
        "SELECT k.key, r.id FROM json_each(?) AS k CROSS JOIN bench_readings AS r"
        " ON r.station = json_extract(k.value, '$[0]')"
        " AND r.hour = json_extract(k.value, '$[1]')"
    ),
    "postgresql": (
        "SELECT k.n, r.id FROM unnest(%s::text[], %s::int[]) WITH ORDINALITY"
        " AS k(station, hour, n) JOIN bench_readings AS r"
        " ON r.station = k.station AND r.hour = k.hour"
    ),
}


def bare(db: Database, keys: list[tuple[str, int]], size: int) -> float:
    engine = db.manager.engines["default"]
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        began = time.perf_counter()
        found = 0
        for start in range(0, len(keys), size):
            chunk = keys[start : start + size]
            if engine.dialect.name == "sqlite":
                parameters: Any = (json.dumps(chunk),)
            else:
                parameters = ([k[0] for k in chunk], [k[1] for k in chunk])
            cursor.execute(BARE[engine.dialect.name], parameters)
            found += len(cursor.fetchall())
        seconds = time.perf_counter() - began
        assert found == len(keys)
        return seconds
    finally:
        connection.close()


def bind(db: Database, keys: list[tuple[str, int]], size: int) -> tuple[float, int]:
    adapter: TypeAdapter[Any] = TypeAdapter(
        list[Annotated[Reading, Key("station", "hour")]]
    )
    given = [{"station": station, "hour": hour} for station, hour in keys]
    sent = 0

    def count(*_: Any) -> None:
        nonlocal sent
        sent += 1

    engine = db.manager.engines["default"]
    with db.session_manager() as session, session.bulk() as bulk:
        references = adapter.validate_python(given)
        event.listen(engine, "before_cursor_execute", count)
        began = time.perf_counter()
        resolution = bulk.resolve(strategy="bind", batch_size=size)
        seconds = time.perf_counter() - began
        event.remove(engine, "before_cursor_execute", count)
        assert resolution.resolved == len(references) == len(keys)
    return seconds, sent


def main() -> int:
    parser = argparse.ArgumentParser(description="Resolve references, compared.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=10_000, help="keys a statement")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.keys > ROWS:
        parser.error(f"at most {ROWS} keys")

    rows = [(f"S{n % 1_000:04}", n // 1_000) for n in range(ROWS)]
    engine = create_engine(make_url(arguments.url))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        values = [{"station": s, "hour": h, "value": 0.5} for s, h in rows]
        connection.execute(insert(Reading), values)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE bench_readings")
    engine.dispose()

    keys = random.Random(1).sample(rows, arguments.keys)
    ours, theirs, ratios = [], [], []
    statements = 0
    with Database(arguments.url) as db:
        for turn in range(arguments.rounds):
            if turn % 2:
                mine, statements = bind(db, keys, arguments.batch)
                hand = bare(db, keys, arguments.batch)
            else:
                hand = bare(db, keys, arguments.batch)
                mine, statements = bind(db, keys, arguments.batch)
            ours.append(mine)
            theirs.append(hand)
            ratios.append(mine / hand)
        Base.metadata.drop_all(db.manager.engines["default"])
    per_key = 1_000_000 / arguments.keys
    print(f"{'':8}{'seconds':>10}{'us/key':>10}{'statements':>12}{'ratio':>8}")
    for name, seconds, ratio in (
        ("bare", median(theirs), 1.0),
        ("bind", median(ours), median(ratios)),
    ):
        print(
            f"{name:8}{seconds:10.3f}{seconds * per_key:10.2f}"
            f"{statements:12}{ratio:8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
