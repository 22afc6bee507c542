"""The front door: every name behind it exists and is explained."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import tenure


@pytest.mark.parametrize("name", tenure.__all__)
class TestNames:
    def test_exists(self, name: str) -> None:
        """What is promised is there."""
        assert hasattr(tenure, name)

    def test_documented(self, name: str) -> None:
        """A class or function says what it is for, in a docstring of its own."""
        given: Any = getattr(tenure, name)
        if not (inspect.isclass(given) or inspect.isfunction(given)):
            return
        assert given.__doc__
        if inspect.isclass(given):
            assert all(given.__doc__ is not base.__doc__ for base in given.__mro__[1:])


def test_sorted() -> None:
    """Each name is listed once, where one would look for it."""
    assert sorted(set(tenure.__all__)) == sorted(tenure.__all__)


def test_unknown() -> None:
    """A name that is not there is an ordinary AttributeError."""
    with pytest.raises(AttributeError, match="'nothing'"):
        tenure.nothing  # noqa: B018  # reading it is the test
