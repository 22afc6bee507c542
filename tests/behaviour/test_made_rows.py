"""
What Pydantic made of a row is what is written, from every source and by every path.

A new row gets what its model holds; an update touches what was given, or set by the model
itself, and leaves alone what only a default says. Random models, rows and paths are
compared with a reference that asks each instance.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import ConfigDict, Field, computed_field, field_validator, model_validator
from sqlalchemy import String, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

from tenure import Database, LoadError, Session, Spec

pytestmark = pytest.mark.every_database

NAMES = ("a", "b", "c", "d", "e", "f")
#: What a row that is there has.
KEPT = dict.fromkeys(NAMES, "kept")


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "made_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    no: Mapped[int] = mapped_column(unique=True)
    a: Mapped[str | None] = mapped_column(String(40))
    b: Mapped[str | None] = mapped_column(String(40))
    c: Mapped[str | None] = mapped_column(String(40), server_default="database")
    d: Mapped[str | None] = mapped_column(String(40))
    e: Mapped[str | None] = mapped_column(String(40))
    f: Mapped[str | None] = mapped_column(String(40), default="python")


FEATURES = ("before", "after", "post", "default", "validated", "computed")


@cache
def model(features: frozenset[str]) -> type[Any]:
    """Make a Spec in which each of *features* sets a field of its own."""
    body: dict[str, Any] = {
        "__module__": __name__,
        "__annotations__": {
            "no": int,
            **dict.fromkeys("abcdf", str | None),
        },
        **dict.fromkeys("abdf"),
        "c": "default" if "default" in features else None,
    }
    if "before" in features:

        def compose(cls: Any, row: Any) -> Any:
            return {"a": f"before {row['no']}", **row}

        body["compose"] = model_validator(mode="before")(classmethod(compose))
    if "after" in features:

        def fill(self: Any) -> Any:
            self.b = f"after {self.no}"
            return self

        body["fill"] = model_validator(mode="after")(fill)
    if "post" in features:

        def model_post_init(self: Any, context: Any) -> None:
            self.a = f"post {self.no}"

        body["model_post_init"] = model_post_init
    if "validated" in features:
        body["d"] = Field(None, validate_default=True)

        def derive(cls: Any, value: Any) -> Any:
            return f"validated {value}"

        body["derive"] = field_validator("d", mode="before")(classmethod(derive))
    if "computed" in features:

        def e(self: Any) -> str:
            return f"computed {self.no}"

        body["e"] = computed_field(property(e), return_type=str)
    return type("Made", (Spec[Item],), body)


def expected(
    into: type[Any], row: dict[str, Any], *, is_there: bool
) -> dict[str, str | None]:
    """Say what a row becomes: slowly, from the instance that Pydantic makes."""
    made = into.model_validate(row)
    held = {name: getattr(made, name, None) for name in NAMES}
    computed = into.model_computed_fields
    given = {name for name in NAMES if name in made.model_fields_set | {*computed}}
    if is_there:
        return {name: held[name] if name in given else "kept" for name in NAMES}
    # As in a flush, a null becomes the default of its column, also one that was given.
    default = {"c": "database", "f": "python"}
    return {
        name: default.get(name) if held[name] is None else held[name] for name in NAMES
    }


def by_csv(bulk: Any, into: Any, rows: list[Any], folder: Path, **options: Any) -> None:
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    bulk.load(folder / "rows.csv", into, **options)


def by_jsonl(
    bulk: Any, into: Any, rows: list[Any], folder: Path, **options: Any
) -> None:
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    bulk.load(folder / "rows.jsonl", into, **options)


def by_parquet(
    bulk: Any, into: Any, rows: list[Any], folder: Path, **options: Any
) -> None:
    table = pa.Table.from_pylist(rows)
    parquet.write_table(table, folder / "rows.parquet")
    bulk.load(folder / "rows.parquet", into, **options)


def by_rows(
    bulk: Any, into: Any, rows: list[Any], folder: Path, **options: Any
) -> None:
    bulk.load(rows, into, **options)


def by_commit(
    bulk: Any, into: Any, rows: list[Any], folder: Path, **options: Any
) -> None:
    bulk.validate(list[into], rows)
    bulk.commit(**options)


def by_resolve(
    bulk: Any, into: Any, rows: list[Any], folder: Path, **options: Any
) -> None:
    bulk.validate(list[into], rows)
    bulk.resolve()
    bulk.commit(**options)


#: Those whose rows all have the columns of the first.
TABLES = [by_csv, by_parquet]
PATHS = [*TABLES, by_jsonl, by_rows, by_commit, by_resolve]


@pytest.fixture(scope="module")
def db(module_url: str) -> Iterator[Database]:
    with Database(module_url) as db:
        db.create_all(Base.metadata)
        yield db


def reset(db: Database, numbers: list[int]) -> None:
    with db.session_manager(auto_commit=True) as session:
        session.query(Item).delete()
        if numbers:
            session.execute(insert(Item), [{"no": n, **KEPT} for n in numbers])


def stored(session: Session) -> dict[int, dict[str, str | None]]:
    items = session.scalars(select(Item)).all()
    return {item.no: {name: getattr(item, name) for name in NAMES} for item in items}


def compare(
    db: Database,
    features: frozenset[str],
    path: Any,
    rows: list[dict[str, Any]],
    there: list[int],
    folder: Path,
) -> None:
    into = model(features)
    reset(db, there)
    on_conflict = "update" if there else "raise"
    with db.session_manager() as session, session.bulk() as bulk:
        path(bulk, into, rows, folder, on_conflict=on_conflict)
    with db.session_manager() as session:
        found = stored(session)
    assert found == {
        row["no"]: expected(into, row, is_there=row["no"] in there) for row in rows
    }


texts = st.sampled_from(["x", "y", None])
given_names = st.sets(st.sampled_from(["a", "b", "c", "d", "f"])).map(sorted)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    features=st.frozensets(st.sampled_from(FEATURES)),
    path=st.sampled_from(PATHS),
    names=st.lists(given_names, min_size=3, max_size=3),
    values=st.lists(texts, min_size=5, max_size=5),
    is_update=st.booleans(),
)
def test_any(
    db: Database,
    tmp_path: Path,
    features: frozenset[str],
    path: Any,
    names: list[list[str]],
    values: list[str | None],
    is_update: bool,
) -> None:
    if path in TABLES:
        names = [names[0]] * 3
    said = dict(zip("abcdf", values, strict=True))
    rows = [{"no": n, **{k: said[k] for k in names[n]}} for n in range(3)]
    compare(db, features, path, rows, [0, 2] if is_update else [], tmp_path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.__name__))
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("is_update", [False, True], ids=["insert", "update"])
def test_each(
    db: Database, tmp_path: Path, feature: str, path: Any, is_update: bool
) -> None:
    """Each way to set a field, alone, from a source that gives the number only."""
    there = [1] if is_update else []
    compare(db, frozenset({feature}), path, [{"no": 1}, {"no": 2}], there, tmp_path)


class Total(Base):
    __tablename__ = "made_total"

    id: Mapped[int] = mapped_column(primary_key=True)
    no: Mapped[int] = mapped_column(unique=True)
    double: Mapped[int] = column_property(no * 2)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.__name__))
def test_computed_by_both(db: Database, tmp_path: Path, path: Any) -> None:
    """What the database computes itself is not written, whatever it is called."""

    def double(self: Any) -> int:
        return -1

    body = {
        "__module__": __name__,
        "__annotations__": {"no": int},
        "double": computed_field(property(double), return_type=int),
    }
    into: Any = type("TotalIn", (Spec[Total],), body)
    with db.session_manager() as session, session.bulk() as bulk:
        path(bulk, into, [{"no": 2}], tmp_path)
    with db.session_manager(auto_commit=True) as session:
        total = session.scalars(select(Total)).one()
        assert 4 == total.double
        session.delete(total)


class Free(Base):
    __tablename__ = "made_free"

    id: Mapped[int] = mapped_column(primary_key=True)
    a: Mapped[str | None] = mapped_column(String(20))
    b: Mapped[str | None] = mapped_column(String(20))


class FreeIn(Spec[Free]):
    model_config = ConfigDict(extra="ignore")

    a: str | None = None
    b: str | None = None


class TestNothing:
    """A source, or a row of it, that gives nothing the model knows."""

    def test_header(self, db: Database, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("a;b\nx;y\n")
        with (
            db.session_manager() as session,
            session.bulk() as bulk,
            pytest.raises(LoadError, match=r"none of the columns.*\(a, b\).*'a;b'"),
        ):
            bulk.load(tmp_path / "a.csv", FreeIn)

    @pytest.mark.parametrize("path", [by_jsonl, by_rows, by_commit])
    @pytest.mark.parametrize(
        "rows", [[{"a": "x"}, {}], [{}, {"a": "x"}], [{"c": 1}, {"a": "x"}]]
    )
    def test_rows(
        self, db: Database, tmp_path: Path, path: Any, rows: list[dict[str, Any]]
    ) -> None:
        """They are rows of defaults, as in a flush."""
        with db.session_manager(auto_commit=True) as session:
            session.query(Free).delete()
        with db.session_manager() as session, session.bulk() as bulk:
            path(bulk, FreeIn, rows, tmp_path)
        with db.session_manager() as session:
            found = session.execute(select(Free.a, Free.b)).all()
        assert 2 == len(found)
        assert {("x", None), (None, None)} == {tuple(row) for row in found}

    def test_said(self, db: Database) -> None:
        with db.session_manager() as session, session.bulk() as bulk:
            report = bulk.load([{"a": "x"}, {}, {"c": 1}], FreeIn)
        [said] = report.guesses
        assert "the first in line 2, give none of the fields of FreeIn" in said
