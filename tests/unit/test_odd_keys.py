"""Keys that Python compares in its own way: equal ones are one, others never."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import JSON, String, types
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import Ref, ResolutionError, Session, SessionBulk
from tenure.references.proxy import token_of
from tests.fixtures.models import Sample


class Base(DeclarativeBase):
    pass


class Unchecked(types.TypeDecorator[Any]):
    """Takes what it gets: nothing brings keys to one type."""

    impl = JSON
    cache_ok = True

    @property
    def python_type(self) -> Any:
        raise NotImplementedError  # as a type of a user that does not say


class Odd(Base):
    __tablename__ = "odd"

    id: Mapped[int] = mapped_column(primary_key=True)
    anything: Mapped[Any] = mapped_column(Unchecked, unique=True)
    names: Mapped[list[str] | None] = mapped_column(JSON, unique=True)
    text: Mapped[str | None] = mapped_column(String, unique=True)


class Number(enum.IntEnum):
    ONE = 1


class Word(str):
    __slots__ = ()


class Colour(enum.Enum):
    ONE = 1


DIFFERENT = [
    1,
    True,
    1.0,
    "1",
    b"1",
    Decimal(1),
    Decimal("1.0"),
    Number.ONE,
    Colour.ONE,
    0.0,
    -0.0,
    Decimal(0),
    Decimal("-0"),
    -1,
    -2,
    2**61,
    2**61 + 1,
    math.nan,
    math.inf,
    -math.inf,
    Decimal("NaN"),
    Decimal("sNaN"),
    Decimal("Infinity"),
    [1],
    [True],
    (1,),
    [[1]],
    {"a": 1},
    {"a": True},
    {"b": 1},
    {"a": [1, {"b": 2}]},
    {1, 2},
    {1, 3},
    frozenset({1, 2}),
    bytearray(b"1"),
    "",
    [],
    {},
    "a" * 100_000,
    "a" * 100_001,
    "e\u0301",
    "\u00e9",
]


@pytest.fixture
def bulk() -> Iterator[SessionBulk]:
    with Session() as session, session.bulk() as bulk:
        yield bulk


def reference(anything: Any) -> Any:
    return TypeAdapter(Ref[Odd]).validate_python({"anything": anything})


class TestApart:
    def test_different(self, bulk: SessionBulk) -> None:
        """Values that differ in type, sign, digits or depth are keys of their own."""
        found = [reference(value) for value in DIFFERENT]

        assert len(DIFFERENT) == len({id(proxy) for proxy in found})
        assert len(DIFFERENT) == len(bulk.get(Odd))

    def test_outside(self) -> None:
        """The same where no bulk makes one of equal ones."""
        found = [reference(value) for value in DIFFERENT]

        assert all(one != other for one, other in combinations(found, 2))
        assert len(DIFFERENT) == len(set(found))

    @pytest.mark.parametrize("value", DIFFERENT, ids=lambda v: repr(v)[:20])
    def test_equal(self, bulk: SessionBulk, value: Any) -> None:
        """The same value, made twice, is one key: NaN and what has no hash, too."""
        again = [value] if isinstance(value, list) else value
        copied = again[0] if again is not value else type(value)(value)

        assert reference(value) is reference(copied)

    def test_tokens_are_hashable(self) -> None:
        """Whatever tells keys apart goes into a dict."""
        assert len(DIFFERENT) == len({token_of(value) for value in DIFFERENT})


class TestTypes:
    """Where the column says its type, Pydantic brings keys to it first."""

    def test_text(self, bulk: SessionBulk) -> None:
        """A text is a text, of whatever class."""
        adapter = TypeAdapter(Ref[Odd])
        plain = adapter.validate_python({"text": "x"})

        assert plain.text == adapter.validate_python({"text": Word("x")}).text

    @pytest.mark.parametrize("given", ["\ud800", "a\udfffb"])
    def test_lone_surrogates(self, bulk: SessionBulk, given: str) -> None:
        """A text that nothing can encode is refused where it comes in."""
        with pytest.raises(ValidationError):
            TypeAdapter(Ref[Odd]).validate_python({"text": given})

    def test_numbers(self, bulk: SessionBulk) -> None:
        """Numbers of one value are one key of a column of numbers."""
        adapter = TypeAdapter(Ref[Sample])
        wholes = [adapter.validate_python({"whole": n}) for n in (1, "1", Number.ONE)]
        ratios = [adapter.validate_python({"ratio": n}) for n in (1, 1.0, "1")]

        assert 1 == len({id(proxy) for proxy in wholes})
        assert 1 == len({id(proxy) for proxy in ratios})
        with pytest.raises(ValidationError):
            adapter.validate_python({"whole": True})

    def test_error_names_it(self, bulk: SessionBulk) -> None:
        """A key without a hash can be shown."""
        proxy = TypeAdapter(Ref[Odd]).validate_python({"names": ["a", "b"]})

        assert "<Odd(names=['a', 'b']), not resolved>" == repr(proxy)
        assert "Odd(names=" in str(ResolutionError([repr(proxy)]))
