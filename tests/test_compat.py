"""What ``make compat`` makes of two runs; the runs themselves take minutes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tools.compat.__main__ import last_words
from tools.compat.runs import OURS, Outcome, Regression, compare, not_ours, read
from tools.compat.selection import (
    ASYNC_SESSIONS,
    DIFFERENCES,
    QUICK_SESSIONS,
    SESSIONS,
    Difference,
)

PASSED, SKIPPED, FAILED = Outcome("passed"), Outcome("skipped"), Outcome("failed", "E")
KNOWN = Difference("a::test_*", says="^E$", reason="it asserts a name")


def line(test: str, outcome: str | None, **made: int) -> str:
    return json.dumps({"test": test, "outcome": outcome, "text": "", "made": made})


class TestCompare:
    @pytest.mark.parametrize(
        ("plain", "ours"),
        [
            ({"a": PASSED}, {"a": FAILED}),
            ({"a": PASSED}, {"a": SKIPPED}),
            ({"a": PASSED}, {}),
            ({"a": SKIPPED}, {"a": FAILED}),
            ({}, {"a": FAILED}),
            ({"a": SKIPPED}, {}),
        ],
    )
    def test_regression(self, plain: Any, ours: Any) -> None:
        """What fails, or is no longer run, with ours only is a regression."""
        (found,), seen = compare(plain, ours, [])

        assert "a" == found.test
        assert not seen

    @pytest.mark.parametrize("outcome", [PASSED, SKIPPED, FAILED])
    def test_same(self, outcome: Outcome) -> None:
        """What comes out the same is none, and neither is what passes with ours."""
        assert ([], set()) == compare({"a": outcome}, {"a": outcome}, [])
        assert ([], set()) == compare({"a": outcome}, {"a": PASSED}, [])

    def test_known(self) -> None:
        """A known difference is told apart."""
        assert ([], {KNOWN}) == compare(
            {"a::test_b": PASSED}, {"a::test_b": FAILED}, [KNOWN]
        )

    def test_known_but_otherwise(self) -> None:
        """A test that is known to fail may not fail in another way."""
        otherwise = Outcome("failed", "another error")

        assert (
            [Regression("a::test_b", "passed", "failed", "another error")],
            set(),
        ) == (compare({"a::test_b": PASSED}, {"a::test_b": otherwise}, [KNOWN]))


class TestRead:
    def test_made(self) -> None:
        """What was made before, in and after a test adds up."""
        run = read([line("a", None, Session=1), line("a", "passed", Session=2)])

        assert {"Session": 3} == run.made
        assert {"a": PASSED} == run.outcomes

    @pytest.mark.parametrize("lines", [("passed", "failed"), ("failed", "passed")])
    def test_worse(self, lines: tuple[str, ...]) -> None:
        """A test whose teardown fails has failed."""
        run = read(line("a", outcome) for outcome in lines)

        assert "failed" == run.outcomes["a"].how
        assert 0 == run.passed

    def test_add(self) -> None:
        """Runs add up."""
        both = read([line("a", "passed", Session=1)], 1.0) + read(
            [line("b", "failed", Session=1, AsyncSession=1)], 2.0
        )

        assert {"a", "b"} == both.outcomes.keys()
        assert {"b"} == both.failed.keys()
        assert {"Session": 2, "AsyncSession": 1} == both.made
        assert 3.0 == both.seconds


class TestMade:
    def test_all(self) -> None:
        """Each of our classes has to have been used, and none of SQLAlchemy's."""
        assert [] == not_ours(dict.fromkeys(OURS, 1))

    @pytest.mark.parametrize("name", OURS)
    def test_none(self, name: str) -> None:
        """A run that tested none of ours says nothing."""
        (wrong,) = not_ours({other: 1 for other in OURS if other != name})

        assert f"no {name} of ours was made" == wrong

    def test_plain(self) -> None:
        """A session of SQLAlchemy's is a hole in the swap."""
        (wrong,) = not_ours({**dict.fromkeys(OURS, 1), "plain Session": 3})

        assert wrong.startswith("3 of SQLAlchemy's")


def test_last_words() -> None:
    """Of a traceback, the error is shown."""
    text = (
        "Traceback (most recent call last):\n"
        '  File "a.py", line 1, in test_a\n    b()\n'
        '  File "b.py", line 2, in b\n    assert x == [], "more"\n           ^^^^^^\n'
        "AssertionError: [1] != []\nassert [1] == []\n"
    )

    assert "AssertionError: [1] != []" == last_words(text)
    assert "Killed" == last_words("Killed")


def test_selection() -> None:
    """Each module is named once, and each difference is of one that is run."""
    assert sorted(set(SESSIONS)) == sorted(SESSIONS)
    assert not {*SESSIONS, *QUICK_SESSIONS} & {*ASYNC_SESSIONS}
    for known in DIFFERENCES:
        module = known.test.partition("::")[0]
        assert module in {*SESSIONS, *ASYNC_SESSIONS}
        assert known.reason
