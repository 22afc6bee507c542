"""
Values written by key: the rows and the report are those of a slow, obvious way.

The slow way asks for each value's row, sets what differs, and adds what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    JSON,
    ColumnElement,
    ForeignKey,
    Numeric,
    String,
    TypeDecorator,
    delete,
    event,
    func,
    inspect,
    select,
    text,
    type_coerce,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    declared_attr,
    mapped_column,
    relationship,
)

from tenure import Database, ResolutionError, Session, Spec


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)


class Stocked:
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column("the code", String(20), unique=True)
    name: Mapped[str | None] = mapped_column(String(20))
    amount: Mapped[int] = mapped_column(default=5)
    state: Mapped[str] = mapped_column(String(20), server_default=text("'new'"))
    shelf_id: Mapped[int | None] = mapped_column(ForeignKey("shelf.id"))

    @declared_attr
    @classmethod
    def shelf(cls) -> Mapped[Shelf | None]:
        return relationship()


class Item(Stocked, Base):
    __tablename__ = "item"


class Watched(Stocked, Base):
    """The same, but for a program that looks on: it goes the general way."""

    __tablename__ = "watched"


@event.listens_for(Watched, "before_update")
def _look_on(mapper: object, connection: object, watched: Watched) -> None:
    pass


class Priced(Base):
    __tablename__ = "priced"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    name: Mapped[str | None] = mapped_column(String(20))
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2), server_default=text("1.5"))
    since: Mapped[datetime] = mapped_column(server_default=text("'2020-01-02 03:04'"))
    note: Mapped[str | None] = mapped_column(String(20), server_default=text("NULL"))


class Lazy(Base):
    __tablename__ = "lazy"
    __mapper_args__: Mapping[str, Any] = {"eager_defaults": False}

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2), server_default=text("1.5"))


class Animal(Base):
    __tablename__ = "animal"
    __mapper_args__: Mapping[str, Any] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
    }

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    code: Mapped[str] = mapped_column(String(20), unique=True)


class Cat(Animal):
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": "cat"}


class Dog(Animal):
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": "dog"}


class Label(TypeDecorator[str]):
    impl = String(20)
    cache_ok = True


class Document(TypeDecorator[Any]):
    impl = JSON
    cache_ok = True


class Loud(TypeDecorator[str]):
    impl = String(20)
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> ColumnElement[str]:
        return func.upper(type_coerce(bindparam, String(20)))


class Decorated(Base):
    __tablename__ = "decorated"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    label: Mapped[str] = mapped_column(Label)
    document: Mapped[Any] = mapped_column(Document)


class DecoratedIn(Spec[Decorated]):
    code: str
    label: str
    document: Any


class Spoken(Base):
    __tablename__ = "spoken"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    word: Mapped[str] = mapped_column(Loud)


class SpokenIn(Spec[Spoken]):
    code: str
    word: str


CODES = st.sampled_from(["a", "b", "c", "d", "e", "é%s:x"])
ATTRIBUTES = st.fixed_dictionaries(
    {"code": CODES},
    optional={
        "name": st.sampled_from([None, "x", "X", "y", 'quo"te']),
        "amount": st.sampled_from([0, 5, 7]),
        "state": st.sampled_from(["new", "old"]),
        "shelf": st.sampled_from([None, "s1", "s2"]),
    },
)
FIELDS = [None, ["name"], ["name", "shelf"], ["amount", "state"], []]


@pytest.fixture(scope="module")
def db(module_url: str) -> Iterator[Database]:
    with Database(module_url) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            session.add_all([Shelf(code="s1"), Shelf(code="s2")])
        yield db


def made(kind: Any, session: Session, attributes: dict[str, Any]) -> Any:
    shelves = {shelf.code: shelf for shelf in session.scalars(select(Shelf))}
    values = dict(attributes)
    if "shelf" in values:
        values["shelf"] = shelves.get(values["shelf"])
    return kind(**values)


def seeded(db: Database, kind: Any, rows: list[dict[str, Any]]) -> None:
    with db.session_manager(auto_commit=True) as session:
        session.execute(delete(kind))
        session.add_all([made(kind, session, row) for row in rows])


def rows_of(db: Database, kind: Any) -> dict[str, Any]:
    with db.session_manager() as session:
        found = session.scalars(select(kind).order_by(kind.code)).all()
        return {
            row.code: (row.name, row.amount, row.state, row.shelf and row.shelf.code)
            for row in found
        }


def slowly(
    session: Session, kind: Any, instances: list[Any], fields: Any, *, update: bool
) -> list[str]:
    statuses = []
    for instance in instances:
        given = {
            name: value
            for name, value in inspect(instance).dict.items()
            if name[0] != "_"
        }
        row = session.scalars(select(kind).where(kind.code == instance.code)).first()
        if row is None:
            session.add(instance)
            session.flush()
            statuses.append("created")
        elif not update:
            statuses.append("skipped")
        else:
            for name, value in given.items():
                if name != "code" and (fields is None or name in fields):
                    setattr(row, name, value)
            statuses.append("updated" if session.is_modified(row) else "unchanged")
            session.flush()
    return statuses


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
@pytest.mark.parametrize("kind", [Item, Watched])
def test_rows_and_report(db: Database, kind: Any, data: st.DataObject) -> None:
    one_each = {"unique_by": lambda row: row["code"]}
    before = data.draw(st.lists(ATTRIBUTES, max_size=4, **one_each))
    after = data.draw(st.lists(ATTRIBUTES, max_size=6, **one_each))
    update = data.draw(st.booleans())
    fields = data.draw(st.sampled_from(FIELDS)) if update else None
    known = data.draw(st.booleans())
    size = data.draw(st.sampled_from([None, 1, 2]))

    seeded(db, kind, before)
    with db.session_manager(auto_commit=True, expire=False) as session:
        loaded = list(session.scalars(select(kind))) if known else []
        instances = [made(kind, session, row) for row in after]
        with session.bulk() as bulk:
            for instance in instances:
                bulk.add(instance)
            report = bulk.commit(
                on_conflict="update" if update else "skip",
                update_fields=fields,
                batch_size=size,
            )
        statuses = report.statuses
        assert not session.new
        assert not session.dirty
        for instance, status in zip(bulk.get(kind), statuses, strict=True):
            assert inspect(instance).persistent == (status != "skipped")
            if status == "skipped":
                continue
            held = {n: v for n, v in inspect(instance).dict.items() if n[0] != "_"}
            held |= {name: getattr(instance, name) for name in ("amount", "state")}
            session.refresh(instance)
            assert held.items() <= inspect(instance).dict.items()
        assert len(loaded) == len(before) * known
    ours = rows_of(db, kind)

    seeded(db, kind, before)
    with db.session_manager(auto_commit=True) as session:
        instances = [made(kind, session, row) for row in after]
        expected = slowly(session, kind, instances, fields, update=update)
    assert rows_of(db, kind) == ours
    assert expected == list(statuses)


@pytest.mark.parametrize("kind", [Item, Watched])
@pytest.mark.parametrize(
    ("choice", "name", "statuses"),
    [
        ("first", "one", ["updated", "skipped", "created"]),
        ("last", "two", ["skipped", "updated", "created"]),
    ],
)
def test_duplicates(
    db: Database, kind: Any, choice: Any, name: str, statuses: list[str]
) -> None:
    seeded(db, kind, [{"code": "a", "name": "zero"}])
    with db.session_manager() as session, session.bulk() as bulk:
        for code, value in [("a", "one"), ("a", "two"), ("b", "three")]:
            bulk.add(kind(code=code, name=value))
        report = bulk.commit(on_conflict="update", on_duplicate=choice)
    assert statuses == report.statuses
    assert {"a": name, "b": "three"} == {k: v[0] for k, v in rows_of(db, kind).items()}


@pytest.mark.parametrize("kind", [Item, Watched])
def test_refused_duplicates(db: Database, kind: Any) -> None:
    seeded(db, kind, [{"code": "a", "name": "zero"}])
    with db.session_manager() as session, session.bulk() as bulk:
        for code, value in [("a", "one"), ("b", "three"), ("a", "two")]:
            bulk.add(kind(code=code, name=value))
        with pytest.raises(ResolutionError, match="'a'"):
            bulk.commit(on_conflict="update")
    assert {"a": "zero"} == {k: v[0] for k, v in rows_of(db, kind).items()}


@pytest.mark.parametrize("kind", [Item, Watched])
@pytest.mark.parametrize("in_transaction", [False, True])
def test_undo(db: Database, kind: Any, in_transaction: bool) -> None:
    """What was written by key is undone with the rest, and can be written again."""
    seeded(db, kind, [{"code": "a", "name": "zero"}])
    with db.session_manager() as session:
        if in_transaction:
            session.add(kind(code="kept"))
            session.flush()
        with session.bulk() as bulk:
            bulk.add(kind(code="a", name="one"))
            bulk.add(kind(code="b", name="two"))
            bulk.flush(on_conflict="update")
            bulk.rollback()
            assert not session.new
            report = bulk.commit(on_conflict="update")
    assert ["updated", "created"] == report.statuses
    kept = {"kept"} if in_transaction else set()
    assert {"a", "b"} | kept == rows_of(db, kind).keys()
    assert "one" == rows_of(db, kind)["a"][0]


def written(
    session: Session, how: str, spec: Any, rows: list[dict[str, Any]]
) -> tuple[int, int, int]:
    """Write rows by key, and count the new, the changed and the others."""
    report: Any
    with session.bulk() as bulk:
        if how == "load":
            report = bulk.load(rows, spec, on_conflict="update")
        else:
            for row in rows:
                bulk.add(spec.model_validate(row))
            report = bulk.commit(on_conflict="update")
    return report.created, report.updated, report.unchanged


@pytest.mark.parametrize("how", ["values", "load"])
def test_decorated_types(db: Database, how: str) -> None:
    """What differs is said by the type that a program's own type wraps."""
    before = {"label": "x", "document": {"k": 1}}
    with db.session_manager(auto_commit=True) as session:
        session.execute(delete(Decorated))
        session.add_all([Decorated(code=code, **before) for code in "abc"])
    rows = [
        {"code": "a"} | before,
        {"code": "b"} | before | {"label": "X"},
        {"code": "c"} | before | {"document": {"k": 2}},
        {"code": "d"} | before,
    ]
    with db.session_manager() as session:
        assert (1, 2, 1) == written(session, how, DecoratedIn, rows)
        found = session.scalars(select(Decorated).order_by(Decorated.code))
        assert rows == [
            {"code": row.code, "label": row.label, "document": row.document}
            for row in found
        ]


@pytest.mark.parametrize("how", ["values", "load"])
def test_sql_around_values(db: Database, how: str) -> None:
    """What a type lets SQL make of a value is made of it, wherever that is written."""
    with db.session_manager(auto_commit=True) as session:
        session.execute(delete(Spoken))
        session.add(Spoken(code="a", word="old"))
    rows = [{"code": "a", "word": "changed"}, {"code": "b", "word": "new"}]
    with db.session_manager() as session:
        assert (1, 1, 0) == written(session, how, SpokenIn, rows)
        found = session.execute(select(Spoken.code, Spoken.word))
        assert [("a", "CHANGED"), ("b", "NEW")] == sorted(map(tuple, found))


def test_class_of_a_row(db: Database) -> None:
    """A row does not become one of another class."""
    with db.session_manager(auto_commit=True) as session:
        session.execute(delete(Animal))
        session.add(Cat(code="a"))
    with db.session_manager() as session, session.bulk() as bulk:
        bulk.add(Dog(code="a"))
        with pytest.raises(SQLAlchemyError):
            bulk.commit(on_conflict="update")
    with db.session_manager() as session:
        assert ["cat"] == list(session.scalars(select(Animal.kind)))


def test_relationship_of_a_known_row(db: Database) -> None:
    """What the session has loaded refers to what its row refers to now."""
    seeded(db, Item, [{"code": "a", "shelf": "s1"}])
    with db.session_manager() as session:
        item = session.scalars(select(Item)).one()
        assert "s1" == (item.shelf and item.shelf.code)
        with session.bulk() as bulk:
            bulk.add(made(Item, session, {"code": "a", "shelf": "s2"}))
            bulk.flush(on_conflict="update")
        assert "s2" == (item.shelf and item.shelf.code)


def test_without_a_transaction(db: Database) -> None:
    """Upserts work, one after the other, where each statement is committed."""
    seeded(db, Item, [{"code": "a", "name": "old"}])
    engine = db.manager.engines["default"].execution_options(
        isolation_level="AUTOCOMMIT"
    )
    for name in ("one", "two"):
        with Session(engine) as session, session.bulk() as bulk:
            bulk.add(Item(code="a", name=name))
            bulk.add(Item(code=name))
            bulk.flush(on_conflict="update")
    assert {"a", "one", "two"} == rows_of(db, Item).keys()
    assert "two" == rows_of(db, Item)["a"][0]


@contextmanager
def statements(session: Session) -> Iterator[list[str]]:
    """Note what is sent meanwhile."""
    sent: list[str] = []

    def note(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        sent.append(statement)

    engine = session.get_bind()
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield sent
    finally:
        event.remove(engine, "before_cursor_execute", note)


def upserted(session: Session, instance: Any) -> tuple[str, Any]:
    """Give what became of an instance, and the session's for its row."""
    with session.bulk() as bulk:
        bulk.add(instance)
        report = bulk.flush(on_conflict="update")
        return report.statuses[0], bulk.get(type(instance))[0]


def loaded(instance: Any) -> dict[str, Any]:
    return {
        name: value for name, value in inspect(instance).dict.items() if name != _SA
    }


_SA = "_sa_instance_state"


@pytest.mark.parametrize("kind", [Priced, Lazy])
def test_defaults_of_the_server(db: Database, kind: Any) -> None:
    """What was created knows them where a flush fetches them, and asks elsewhere."""
    with db.session_manager() as session:
        plain = kind(code="plain")
        session.add(plain)
        session.flush()
        ours = kind(code="ours")
        assert ("created", ours) == upserted(session, ours)
        assert ("price" in loaded(plain)) == ("price" in loaded(ours))
        assert {**loaded(plain), "id": ours.id, "code": "ours"} == loaded(ours)
        with statements(session) as sent:
            assert Decimal("1.50") == ours.price
            if kind is Priced:
                assert "2020-01-02T03:04:00" == ours.since.isoformat()
                assert ours.note is None
        assert (kind is Lazy) == bool(sent)


def test_nulls_of_rows_that_exist(db: Database) -> None:
    """A column that holds NULL is no sign of a row that nobody has seen."""
    with db.session_manager() as session:
        session.add(Priced(code="a", name="x"))
        session.flush()
        session.expunge_all()
        with statements(session) as sent:
            status, _ = upserted(session, Priced(code="a", name="x"))
        assert "unchanged" == status
        assert not [each for each in sent if "tenure_line IN" in each]


@pytest.mark.parametrize("kind", [Item, Watched])
@pytest.mark.parametrize("name", ["old", "new"])
def test_what_was_not_set(db: Database, kind: Any, name: str) -> None:
    """Attributes of an instance that was not new are what its row says."""
    seeded(db, kind, [{"code": "a", "name": "old", "amount": 7, "state": "old"}])
    with db.session_manager() as session:
        status, instance = upserted(session, kind(code="a", name=name))
        assert status == ("unchanged" if name == "old" else "updated")
        assert (name, 7, "old") == (instance.name, instance.amount, instance.state)
