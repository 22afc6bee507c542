"""Tables as wide as a database has them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Column, Integer, SmallInteger, delete, func, select
from sqlalchemy.orm import DeclarativeBase

from tenure import Database, Spec

pytestmark = pytest.mark.every_database

#: InnoDB has 1 017 columns; PostgreSQL 1 600; SQLite 2 000, and no more in a result, where
#: a look-up has one of its own. Source: the manuals' pages of limits.
MOST = {"mysql": 1_017, "postgresql": 1_600, "sqlite": 1_990}


@pytest.fixture(scope="module")
def wide(module_url: str) -> Iterator[tuple[Database, Any, Any]]:
    """Give a database, a class with as many columns as can be, and its Spec."""

    class Base(DeclarativeBase):
        pass

    spec: Any = Spec
    with Database(module_url) as db:
        width = MOST[db.manager.engines["default"].dialect.name]
        columns = {f"c{n}": Column(SmallInteger) for n in range(width - 1)}
        key = Column(Integer, primary_key=True, autoincrement=False)
        body: dict[str, Any] = {"__tablename__": "wide", "id": key, **columns}
        entity: Any = type("Wide", (Base,), body)
        types = dict.fromkeys(columns, int) | {"id": int}
        into = type("WideIn", (spec[entity],), {"__annotations__": types})
        db.create_all(Base.metadata)
        yield db, entity, into


@pytest.mark.parametrize("on_conflict", ["raise", "update", "skip"])
@pytest.mark.parametrize("write", ["load", "commit"])
def test_widest(wide: tuple[Database, Any, Any], on_conflict: Any, write: str) -> None:
    db, entity, into = wide
    names = [name for name in into.model_fields if name != "id"]
    rows = [{"id": n, **dict.fromkeys(names, n)} for n in range(1, 4)]
    with db.session_manager() as session, session.bulk() as bulk:
        if write == "load":
            report: Any = bulk.load(rows, into, on_conflict=on_conflict)
        else:
            bulk.validate(list[into], rows)
            report = bulk.commit(on_conflict=on_conflict)
    with db.session_manager(auto_commit=True) as session:
        total = session.scalar(select(func.sum(getattr(entity, names[-1]))))
        session.execute(delete(entity))
    assert (3, 6) == (report.created, total)
