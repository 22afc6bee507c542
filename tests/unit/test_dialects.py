"""What column types and drivers need on each kind of database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    DateTime,
    Interval,
    String,
    TypeDecorator,
    create_engine,
    func,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect

from tenure.bulk.dialects import bind_processors, has_sql_around_values, underlying

URLS = [
    "sqlite://",
    "postgresql+psycopg://",
    "postgresql+asyncpg://",
    "mysql+pymysql://",
    "mysql+asyncmy://",
]


class Loud(TypeDecorator[str]):
    """Upper case, by a function of the database."""

    impl = String(20)
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return func.upper(bindparam)


class Louder(TypeDecorator[str]):
    """Another decorator around it."""

    impl = Loud
    cache_ok = True


class Moment(TypeDecorator[datetime]):
    """A decorator that changes nothing."""

    impl = DateTime
    cache_ok = True


@pytest.fixture(params=URLS, ids=str)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return create_engine(request.param).dialect


def test_percents(dialect: Dialect) -> None:
    """SQL without parameters undoes what the style of parameters doubles."""
    doubles: bool = dialect.identifier_preparer._double_percents

    assert doubles == (dialect.paramstyle in ("format", "pyformat")), (
        "SQLAlchemy doubles percent signs elsewhere: see write.tables.unescaped()"
    )


@pytest.mark.parametrize(
    "kind", [Loud(), Louder(), String(), JSON(), Interval()], ids=repr
)
def test_sql_around_values(dialect: Dialect, kind: Any) -> None:
    """A type that renders SQL around its values is known by it, decorated or not."""
    assert isinstance(kind, (Loud, Louder)) == has_sql_around_values(kind, dialect)


@pytest.mark.parametrize("kind", [Louder(), Moment(), Interval(), String()], ids=repr)
def test_underlying(dialect: Dialect, kind: Any) -> None:
    """What is sent in the end is no decorator."""
    assert not isinstance(underlying(kind, dialect), TypeDecorator)
    if isinstance(kind, Louder):
        assert isinstance(underlying(kind, dialect), String)


def test_variant() -> None:
    """The type that a mapping names for a dialect counts, not the general one."""
    kind = String().with_variant(postgresql.CITEXT(), "postgresql")
    dialect = create_engine("postgresql+psycopg://").dialect

    assert isinstance(underlying(kind, dialect), postgresql.CITEXT)


@pytest.mark.parametrize("kind", [DateTime(), Moment()], ids=repr)
def test_zones(dialect: Dialect, kind: Any) -> None:
    """Where a driver drops the zone, so do we, before values are compared."""
    [processor] = bind_processors([kind], dialect)
    noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
    if dialect.name == "mysql":
        assert processor is not None
        assert noon.replace(tzinfo=None) == processor(noon)
