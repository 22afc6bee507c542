"""
What scopes, routing and the guard cost, beside plain SQLAlchemy.

    python bench/scopes.py --rounds 30

Everything is in memory: SQLite, one connection. Plain and ours take turns, round by
round; a time is the median of the rounds, a ratio the median of their ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from statistics import median
from typing import Any

from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import StaticPool

from tenure import (
    AsyncSession,
    DatabaseManager,
    DatabaseRouter,
    Session,
    async_session_manager,
    session_factory,
    session_manager,
)
from tenure.sessions.exclusive import one_at_a_time

CALLS = 2_000


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "bench_row"

    id: Mapped[int] = mapped_column(primary_key=True)


class Reads(DatabaseRouter):
    """Has no opinion on reading."""

    def get_read_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        return None


class Decides(DatabaseRouter):
    """Has one on everything."""

    def get_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        return "default"


class Nothing(Session):
    def do(self) -> None:
        """Do nothing, for anybody."""


class Guarded(Session):
    @one_at_a_time
    def do(self) -> None:
        """Do nothing, for one user at a time."""


ENGINE = create_engine("sqlite://", poolclass=StaticPool)
ASYNC_ENGINE = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
MANAGER = DatabaseManager({"default": (ENGINE, ASYNC_ENGINE)}, [Reads(), Decides()])
PLAIN = sessionmaker(ENGINE)
OURS = sessionmaker(class_=Session, routing=MANAGER)
ASYNC_PLAIN = async_sessionmaker(ASYNC_ENGINE)
ASYNC_OURS = async_sessionmaker(class_=AsyncSession, routing=MANAGER)
SCOPED_PLAIN = scoped_session(PLAIN)
SCOPED_OURS = session_factory(routing=MANAGER, scoped=True)


def plain_block() -> None:
    with PLAIN():
        pass


def our_block() -> None:
    with session_manager(using=OURS):
        pass


def join() -> None:
    with session_manager():
        pass


def plain_scoped() -> None:
    SCOPED_PLAIN()
    SCOPED_PLAIN.remove()


def our_scoped() -> None:
    SCOPED_OURS()
    SCOPED_OURS.remove()


async def plain_async_block() -> None:
    async with ASYNC_PLAIN():
        pass


async def our_async_block() -> None:
    async with async_session_manager(using=ASYNC_OURS):
        pass


async def async_join() -> None:
    async with async_session_manager():
        pass


def asks(session: Any) -> Callable[[], object]:
    return lambda: session.execute(select(Row).where(Row.id == 1)).scalar_one()


def timed(function: Callable[[], object]) -> float:
    """Give microseconds for one call."""
    begun = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - begun) / CALLS * 1e6


def timed_async(
    function: Callable[[], Awaitable[object]],
) -> Callable[[asyncio.Runner], float]:
    async def run() -> float:
        begun = time.perf_counter()
        for _ in range(CALLS):
            await function()
        return (time.perf_counter() - begun) / CALLS * 1e6

    return lambda runner: runner.run(run())


class Table:
    """Runs contenders in turns, and prints a line for each comparison."""

    def __init__(self, rounds: int) -> None:
        self._rounds = rounds
        print(f"{'':34}{'plain':>9}{'tenure':>9}{'ratio':>8}   limit")

    def line(
        self,
        name: str,
        plain: Callable[[], float] | None,
        ours: Callable[[], float],
        limit: str,
    ) -> None:
        """Compare; times in microseconds for one call."""
        pairs = [(plain() if plain else 0.0, ours()) for _ in range(self._rounds)]
        ours_us = median(pair[1] for pair in pairs)
        if plain:
            ratio = f"{median(our / its for its, our in pairs):.3f}"
            plain_us = f"{median(pair[0] for pair in pairs):.2f}"
        else:
            ratio = plain_us = ""
        print(f"{name:34}{plain_us:>9}{ours_us:>9.2f}{ratio:>8}   {limit}", flush=True)

    def difference(
        self,
        name: str,
        less: Callable[[], float],
        more: Callable[[], float],
        limit: str,
    ) -> None:
        """Tell what *more* takes more than *less*, in microseconds for one call."""
        found = median([-(less() - more()) for _ in range(self._rounds)])
        print(f"{name:34}{'':>9}{found:>9.2f}{'':>8}   {limit}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    # The runner of all benchmarks gives one; these are in memory.
    parser.add_argument("--url", help=argparse.SUPPRESS)
    table = Table(parser.parse_args().rounds)
    Base.metadata.create_all(ENGINE)
    with PLAIN.begin() as session:
        session.add(Row(id=1))
    with asyncio.Runner() as runner:
        compare(table, runner)
        runner.run(ASYNC_ENGINE.dispose())
    return 0


def compare(table: Table, runner: asyncio.Runner) -> None:
    def on(function: Callable[[asyncio.Runner], float]) -> Callable[[], float]:
        return lambda: function(runner)

    def of(function: Callable[[], object]) -> Callable[[], float]:
        return lambda: timed(function)

    table.line("open and close", of(plain_block), of(our_block), "1.25")
    table.line(
        "open and close, async",
        on(timed_async(plain_async_block)),
        on(timed_async(our_async_block)),
        "1.25",
    )
    table.line("scoped, and removed", of(plain_scoped), of(our_scoped), "")
    with session_manager(using=OURS):
        table.line("join", None, of(join), "1.5 us")
    table.line("join, async", None, on(joined), "1.5 us")
    with PLAIN() as plain, OURS() as ours:
        mapper = Row.__mapper__
        table.line(
            "get_bind, two routers",
            of(partial(plain.get_bind, mapper)),
            of(partial(ours.get_bind, mapper)),
            "1.5 us",
        )
        table.line("select of one row", of(asks(plain)), of(asks(ours)), "1.05")
        table.line(
            "get_bind, in a transaction",
            None,
            of(partial(ours.get_bind, mapper)),
            "",
        )
        nothing, guarded = Nothing(), Guarded()
        table.difference(
            "guard, for one call", of(nothing.do), of(guarded.do), "0.5 us"
        )
        table.line("make and drop", of(PLAIN), of(OURS), "")


def joined(runner: asyncio.Runner) -> float:
    async def run() -> float:
        async with async_session_manager(using=ASYNC_OURS):
            begun = time.perf_counter()
            for _ in range(CALLS):
                await async_join()
            return (time.perf_counter() - begun) / CALLS * 1e6

    return runner.run(run())


if __name__ == "__main__":
    sys.exit(main())
