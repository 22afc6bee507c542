"""
Two processes that write the same rows at the same time.

Every row is there once, and nobody gets an error: no deadlock, no duplicate.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import pytest
from sqlalchemy import String, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Database, Spec

ROWS = 50_000


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    writer: Mapped[int]


class ThingIn(Spec[Thing]):
    code: str
    writer: int


def codes(writer: int) -> list[str]:
    """Give the codes that a writer writes, half of them those of the other."""
    numbers = range(writer * ROWS // 2, writer * ROWS // 2 + ROWS)
    # Against each other: whoever sorts nothing waits for the other at once.
    return [f"c{n:08}" for n in (numbers if writer else reversed(numbers))]


def write(url: str, writer: int, how: str, on_conflict: Any, pipe: Connection) -> None:
    rows = [{"code": code, "writer": writer} for code in codes(writer)]
    with Database(url) as db, db.session_manager() as session, session.bulk() as bulk:
        session.scalar(select(func.count()).select_from(Thing))
        session.rollback()
        pipe.send("ready")
        pipe.recv()
        report: Any
        if how == "load":
            report = bulk.load(rows, ThingIn, on_conflict=on_conflict)
        else:
            for row in rows:
                bulk.add(Thing(**row))
            report = bulk.commit(on_conflict=on_conflict)
    pipe.send((report.created, report.updated, report.unchanged, report.skipped))


@pytest.mark.parametrize(
    ("how", "on_conflict"), [("load", "update"), ("values", "update"), ("load", "skip")]
)
def test_two_writers(server_url: str, how: str, on_conflict: str) -> None:
    with Database(server_url) as db:
        db.create_all(Base.metadata)
    spawn = multiprocessing.get_context("spawn")
    writers = []
    for writer in range(2):
        here, there = spawn.Pipe()
        process = spawn.Process(
            target=write, args=(server_url, writer, how, on_conflict, there)
        )
        process.start()
        there.close()
        writers.append((process, here))
    try:
        for _, pipe in writers:
            assert "ready" == pipe.recv()
        for _, pipe in writers:
            pipe.send("go")
        counts = [pipe.recv() for _, pipe in writers]
    finally:
        for process, _ in writers:
            process.join()

    created = [count[0] for count in counts]
    assert ROWS * 3 // 2 == sum(created)
    assert [ROWS, ROWS] == [sum(count) for count in counts]
    with Database(server_url) as db, db.session_manager() as session:
        assert ROWS * 3 // 2 == session.scalar(
            select(func.count(Thing.code.distinct()))
        )
        shared = Thing.code.between(codes(1)[0], codes(0)[0])
        winners = session.execute(
            select(Thing.writer, func.count()).where(shared).group_by(Thing.writer)
        ).all()
    # Whole transactions, one after the other.
    assert [ROWS // 2] == [count for _, count in winners]
