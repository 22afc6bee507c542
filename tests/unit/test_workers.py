"""What is sent to workers and back, without any."""

from __future__ import annotations

import pickle
from collections import Counter
from concurrent.futures import Executor
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from tenure import LoadError, LoadReport
from tenure.bulk.load.link import _tokens, alike
from tenure.bulk.workers.crew import Crew, run, wait_for
from tenure.bulk.workers.reports import report_of, text_of
from tests.fixtures.shared import Echo


def test_reports() -> None:
    """A report comes back from its text as it was, keys with their types."""
    report = LoadReport(into="Thing", rows=3, rejected=1, guesses=["a"])
    key = (
        *("a", 1, None, 1.5, True),
        *(date(2021, 5, 5), datetime(2021, 5, 5, tzinfo=UTC), time(1, 2)),
        *(Decimal("1.10"), UUID(int=1), b"\xff"),
    )
    report.count_of("City").missing_keys = Counter({key: 2})

    found = report_of(text_of(report))

    assert report == found
    [other] = found.references["City"].missing_keys
    assert list(map(type, key)) == list(map(type, other))


def test_imports() -> None:
    """A worker that lacks a module says so, and does not die of it."""
    _, error = pickle.loads(run(b"cno_such_module\nThing\n."))

    assert isinstance(error, LoadError)
    assert "a worker cannot import what it needs: No module named" in str(error)


@pytest.mark.parametrize("fold", [0, 1])
def test_hours_that_come_twice(fold: int) -> None:
    """Equal times of it are two instants."""
    zone = ZoneInfo("Europe/Berlin")
    times = [
        datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=n) for n in (fold, 1 - fold)
    ]

    assert [fold, 1 - fold] == [each.fold for each in alike(times)]


def test_keys_of_hours_that_come_twice() -> None:
    """A key that is composed of them is two keys."""
    zone = ZoneInfo("Europe/Berlin")
    times = [datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=n) for n in (0, 1)]

    assert 2 == len(set(_tokens(times)))
    assert 3 == len(set(_tokens([*times, None])))


class Breaking(Executor):
    """Takes some jobs, and then no more; notes how many are under way."""

    def __init__(self, pool: Executor, most: int) -> None:
        self.pool = pool
        self.left = most

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("it broke")
        return self.pool.submit(fn, *args, **kwargs)


@pytest.mark.parametrize("at_once", [1, 3])
def test_order_is_kept(processes: Executor, at_once: int) -> None:
    """Also when an executor takes no more: the rest is given out as before."""
    crew = Crew(Breaking(processes, 2), wait_for)
    jobs = [Echo(number) for number in range(7)]
    try:
        found = [
            (job.number, result)
            for job, result in crew.in_order(iter(jobs), at_once=at_once)
        ]
        assert [(n, n) for n in range(7)] == found
        plain = Crew(Breaking(processes, 2), wait_for)
        try:
            results = [n for _, n in plain.results(iter(jobs), at_once=1)]
        finally:
            plain.close()
        assert list(range(7)) == results
    finally:
        crew.close()
