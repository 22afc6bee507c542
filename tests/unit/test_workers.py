"""What is sent to workers and back, without any."""

from __future__ import annotations

import pickle
from collections import Counter
from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from tenure import LoadError, LoadReport
from tenure.bulk.load.link import _tokens, alike
from tenure.bulk.workers.crew import run
from tenure.bulk.workers.reports import report_of, text_of


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
