"""
Resolve references by key, compared with the bare statement and with doing it by hand.

    python bench/resolve.py --url sqlite:///resolve.db [--full] [--rounds 3]

A table is asked for keys in random order. ``bare`` sends the keys of a text and a
number with the driver's own call, as one JSON array or as arrays, and fetches every
answer; ``bind`` and ``hydrate`` are ``bulk.resolve()`` on references that were
validated before. ``by hand`` is a chunked ``IN`` and a dictionary, over the same
natural key of one text. What takes turns is compared round by round; only ratios
mean something on a busy machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import (
    String,
    UniqueConstraint,
    and_,
    create_engine,
    insert,
    make_url,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, Key, Session

SIZES = [1_000, 10_000, 100_000]
FULL = 1_000_000
BATCH = 10_000
#: Keys of one ``IN`` by hand; SQLite takes 32 766 parameters.
CHUNK = 5_000
#: Keys for what is slow.
FEW = 300


class Base(DeclarativeBase):
    pass


class Reading(Base):
    __tablename__ = "bench_readings"
    __table_args__ = (UniqueConstraint("station", "hour"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    station: Mapped[str] = mapped_column(String(20))
    hour: Mapped[int]
    value: Mapped[float]
    note: Mapped[str | None] = mapped_column(String(20))


class Payload(BaseModel):
    reading: Annotated[Reading, Key("code")]


BARE = {
    "sqlite": (
        "SELECT k.key, r.id FROM json_each(?) AS k LEFT JOIN bench_readings AS r"
        " ON r.station = json_extract(k.value, '$[0]')"
        " AND r.hour = json_extract(k.value, '$[1]')"
    ),
    "postgresql": (
        "SELECT k.n, r.id FROM unnest(%s::text[], %s::int[]) WITH ORDINALITY"
        " AS k(station, hour, n) JOIN bench_readings AS r"
        " ON r.station = k.station AND r.hour = k.hour"
    ),
    "mysql": (
        "SELECT k.n, r.id FROM JSON_TABLE(%s, '$[*]' COLUMNS (n FOR ORDINALITY,"
        " station VARCHAR(20) PATH '$[0]', hour INT PATH '$[1]')) AS k"
        " LEFT JOIN bench_readings AS r"
        " ON r.station = k.station AND r.hour = k.hour"
    ),
}
Row = tuple[str, str, int]


def chunks(keys: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]


def bare(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    dialect = session.get_bind().dialect.name
    cursor: Any = session.connection().connection.cursor()

    def run() -> int:
        found: list[Any] = []
        for chunk in chunks(rows, BATCH):
            keys = [row[1:] for row in chunk]
            parameters: Any = (json.dumps(keys),)
            if dialect == "postgresql":
                parameters = ([k[0] for k in keys], [k[1] for k in keys])
            cursor.execute(BARE[dialect], parameters)
            found += cursor.fetchall()
        return len(found)

    return run


def resolving(
    strategy: Any, key: Key, names: Sequence[str]
) -> Callable[[Session, Sequence[Row]], Callable[[], int]]:
    def prepared(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
        adapter: TypeAdapter[Any] = TypeAdapter(list[Annotated[Reading, key]])
        places = [("code", "station", "hour").index(name) for name in names]
        given = [
            {name: row[place] for name, place in zip(names, places, strict=True)}
            for row in rows
        ]
        bulk = session.bulk()
        with bulk:
            references = adapter.validate_python(given)

        def run() -> int:
            assert len(references) == len(rows)
            return bulk.resolve(strategy=strategy).resolved

        return run

    return prepared


def identities_by_hand(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    def run() -> int:
        known: dict[str, int] = {}
        for chunk in chunks([row[0] for row in rows], CHUNK):
            statement = select(Reading.code, Reading.id).where(Reading.code.in_(chunk))
            known.update((code, key) for code, key in session.execute(statement))
        return len([known[row[0]] for row in rows])

    return run


def entities_by_hand(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    def run() -> int:
        known: dict[str, Reading] = {}
        for chunk in chunks([row[0] for row in rows], CHUNK):
            statement = select(Reading).where(Reading.code.in_(chunk))
            known.update((found.code, found) for found in session.scalars(statement))
        return len([known[row[0]] for row in rows])

    return run


def tuple_in(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    condition = tuple_(Reading.station, Reading.hour).in_([row[1:] for row in rows])
    return lambda: len(session.scalars(select(Reading).where(condition)).all())


def or_chain(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    condition = or_(
        *(and_(Reading.station == row[1], Reading.hour == row[2]) for row in rows)
    )
    return lambda: len(session.scalars(select(Reading).where(condition)).all())


def one_by_one(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    def run() -> int:
        found = [
            session.scalars(
                select(Reading).where(Reading.station == row[1], Reading.hour == row[2])
            ).one()
            for row in rows
        ]
        return len(found)

    return run


def validating(session: Session, rows: Sequence[Row]) -> Callable[[], int]:
    bulk = session.bulk()

    def run() -> int:
        with bulk:
            return len([Payload.model_validate({"reading": row[0]}) for row in rows])

    return run


COMPOSITE = ("station", "hour")
Prepared = Callable[[Session, Sequence[Row]], Callable[[], int]]
WAYS: dict[str, Prepared] = {
    "bare": bare,
    "bind": resolving("bind", Key(*COMPOSITE), COMPOSITE),
    "hydrate": resolving("hydrate", Key(*COMPOSITE), COMPOSITE),
    "bind, one text": resolving("bind", Key("code"), ("code",)),
    "by hand, identity": identities_by_hand,
    "hydrate, one text": resolving("hydrate", Key("code"), ("code",)),
    "by hand, entity": entities_by_hand,
    "validate a model": validating,
}
SLOW: dict[str, Prepared] = {
    "hydrate": WAYS["hydrate"],
    "tuple IN": tuple_in,
    "OR chain": or_chain,
    "one by one": one_by_one,
}
#: What each is measured against, and how much slower it may be.
AGAINST = {
    "bind": ("bare", 2.0),
    "bind, one text": ("by hand, identity", 1.5),
    "hydrate, one text": ("by hand, entity", 1.2),
}


def measured(
    db: Database, ways: dict[str, Prepared], rows: Sequence[Row], rounds: int
) -> dict[str, list[float]]:
    """Give the microseconds for each key, round by round."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        order = list(ways.items())
        for name, prepared in order if turn % 2 else order[::-1]:
            with db.session() as session:
                run = prepared(session, rows)
                gc.collect()
                began = time.perf_counter()
                found = run()
                seconds = time.perf_counter() - began
                assert found == len(rows), (name, found)
            spent[name].append(1_000_000 * seconds / len(rows))
    return spent


def fill(url: str, count: int) -> list[Row]:
    rows = [(f"R{n:07}", f"S{n % 1_000:04}", n // 1_000) for n in range(count)]
    engine = create_engine(make_url(url))
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for chunk in chunks(rows, 50_000):
            values = [
                {"code": c, "station": s, "hour": h, "value": 0.5, "note": "n"}
                for c, s, h in chunk
            ]
            connection.execute(insert(Reading), values)
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE bench_readings")
    engine.dispose()
    return rows


def report(sizes: Sequence[int], spent: dict[int, dict[str, list[float]]]) -> None:
    print("microseconds for each key\n")
    print(f"{'keys':20}" + "".join(f"{size:>10,}" for size in sizes) + "     ratio")
    for name in WAYS:
        figures = "".join(f"{median(spent[size][name]):10.2f}" for size in sizes)
        beside = AGAINST.get(name)
        ratio = ""
        if beside is not None:
            pairs = zip(
                spent[sizes[-1]][name], spent[sizes[-1]][beside[0]], strict=True
            )
            ratio = f"{median(a / b for a, b in pairs):10.2f} of {beside[0]}"
            ratio += f" (wanted: {beside[1]})"
        print(f"{name:20}{figures}{ratio}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Resolve references, compared.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="a million keys as well")
    arguments = parser.parse_args()
    sizes = [*SIZES, FULL] if arguments.full else SIZES
    rows = fill(arguments.url, sizes[-1] * 6 // 5)
    chosen = random.Random(1).sample(rows, sizes[-1])
    with Database(arguments.url) as db:
        measured(db, WAYS, chosen[:100], 1)  # what is done once for a process
        spent = {
            size: measured(db, WAYS, chosen[:size], arguments.rounds) for size in sizes
        }
        report(sizes, spent)
        slow = measured(db, SLOW, chosen[:FEW], arguments.rounds)
        print(f"\n{FEW} keys, microseconds for each\n")
        for name, figures in slow.items():
            print(f"{name:20}{median(figures):10.2f}")
        Base.metadata.drop_all(db.manager.engines["default"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
