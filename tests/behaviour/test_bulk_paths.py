"""
Around the unit of work and through it: the same rows, keys, attributes and errors.

Each case is written twice, by ``bulk.flush()`` and by ``add_all()`` and ``flush()``,
into two empty databases that know nothing of each other.
"""

from __future__ import annotations

import enum
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Numeric,
    Sequence,
    String,
    Table,
    event,
    func,
    inspect,
    null,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    deferred,
    mapped_column,
    relationship,
)

from tenure import Database, Session
from tests.fixtures.databases import Databases
from tests.fixtures.running import Run, Work, runner

Build = Callable[[Any], list[Any]]

DRIVERS = [
    pytest.param("sqlite", marks=pytest.mark.sqlite, id="sqlite"),
    pytest.param("postgresql+psycopg", marks=pytest.mark.postgresql, id="psycopg"),
    pytest.param("postgresql+asyncpg", marks=pytest.mark.postgresql, id="asyncpg"),
    pytest.param("mysql+pymysql", marks=pytest.mark.mariadb, id="mariadb"),
]


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


def _of_code(context: Any) -> str:
    return f"made of {context.get_current_parameters()['code']}"


class Plain(Base):
    __tablename__ = "plain"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column("the_code", String(20), unique=True)
    name: Mapped[str | None] = mapped_column(String(20))
    price: Mapped[Decimal | None] = mapped_column(Numeric(8, 2))
    moment: Mapped[datetime | None] = mapped_column(DateTime)
    colour: Mapped[Colour | None]
    raw: Mapped[bytes | None]
    truth: Mapped[bool | None]
    ratio: Mapped[float | None]

    @hybrid_property
    def shout(self) -> str:
        return self.code.upper()


class Defaults(Base):
    __tablename__ = "defaults"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    code: Mapped[str] = mapped_column(String(20))
    scalar: Mapped[int] = mapped_column(default=7)
    called: Mapped[int] = mapped_column(default=lambda: 40 + 2)
    kinds: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)


class Contextual(Base):
    __tablename__ = "contextual"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20))
    made: Mapped[str] = mapped_column(String(40), default=_of_code)


class BySql(Base):
    __tablename__ = "by_sql"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20))
    made: Mapped[str] = mapped_column(String(40), default=func.lower("MADE"))


class Served(Base):
    """Defaults that the database makes, and a flush fetches."""

    __tablename__ = "served"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    state: Mapped[str] = mapped_column(String(20), server_default=text("'new'"))
    other: Mapped[int | None] = mapped_column(server_default=text("3"))


class Unfetched(Base):
    """Defaults that the database makes, and a flush does not fetch."""

    __tablename__ = "unfetched"
    __mapper_args__: Mapping[str, Any] = {"eager_defaults": False}

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(20), server_default=text("'new'"))


class Eager(Base):
    __tablename__ = "eager"
    __mapper_args__: Mapping[str, Any] = {"eager_defaults": True}

    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str] = mapped_column(String(20), server_default=text("'new'"))


class Identified(Base):
    __tablename__ = "identified"

    id: Mapped[int] = mapped_column(Identity(always=True), primary_key=True)
    code: Mapped[str] = mapped_column(String(20))


class Numbered(Base):
    __tablename__ = "numbered"

    id: Mapped[int] = mapped_column(
        Sequence("numbered_numbers", start=100), primary_key=True
    )
    code: Mapped[str] = mapped_column(String(20))


class Calculated(Base):
    __tablename__ = "calculated"

    id: Mapped[int] = mapped_column(primary_key=True)
    side: Mapped[int]
    area: Mapped[int] = mapped_column(Computed("side * side", persisted=True))


class Composite(Base):
    __tablename__ = "composite"

    left: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    right: Mapped[str] = mapped_column(String(10), primary_key=True)
    note: Mapped[str | None] = mapped_column(String(10))


class Json(Base):
    __tablename__ = "json"

    id: Mapped[int] = mapped_column(primary_key=True)
    none_is_json: Mapped[Any] = mapped_column(JSON, nullable=True)
    none_is_null: Mapped[Any] = mapped_column(JSON(none_as_null=True), nullable=True)


class Parent(Base):
    __tablename__ = "parent"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    children: Mapped[list[Child]] = relationship(
        back_populates="parent", cascade="all, delete-orphan"
    )
    notes: Mapped[list[Note]] = relationship()


class Child(Base):
    __tablename__ = "child"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))
    name: Mapped[str] = mapped_column(String(20))
    parent: Mapped[Parent] = relationship(back_populates="children")


class Note(Base):
    """A child that does not know its parent."""

    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parent.id"))


class Coded(Base):
    """Refers to what is not a primary key."""

    __tablename__ = "coded"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_code: Mapped[str | None] = mapped_column(ForeignKey("parent.code"))
    parent: Mapped[Parent | None] = relationship()


class Tree(Base):
    __tablename__ = "tree"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("tree.id"))
    parent: Mapped[Tree | None] = relationship(remote_side=[id])


class Hen(Base):
    __tablename__ = "hen"

    id: Mapped[int] = mapped_column(primary_key=True)
    egg_id: Mapped[int | None] = mapped_column(
        ForeignKey("egg.id", name="hen_egg", use_alter=True)
    )
    egg: Mapped[Egg | None] = relationship(foreign_keys=[egg_id])


class Egg(Base):
    __tablename__ = "egg"

    id: Mapped[int] = mapped_column(primary_key=True)
    hen_id: Mapped[int | None] = mapped_column(ForeignKey("hen.id"))
    hen: Mapped[Hen | None] = relationship(foreign_keys=[hen_id])


tagged = Table(
    "tagged",
    Base.metadata,
    Column("left_id", ForeignKey("left.id"), primary_key=True),
    Column("right_id", ForeignKey("right.id"), primary_key=True),
)


class Left(Base):
    __tablename__ = "left"

    id: Mapped[int] = mapped_column(primary_key=True)
    rights: Mapped[list[Right]] = relationship(secondary=tagged, back_populates="lefts")


class Right(Base):
    __tablename__ = "right"

    id: Mapped[int] = mapped_column(primary_key=True)
    lefts: Mapped[list[Left]] = relationship(secondary=tagged, back_populates="rights")


class Animal(Base):
    __tablename__ = "animal"
    __mapper_args__: Mapping[str, Any] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "animal",
    }

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(10))


class Dog(Animal):
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": "dog"}

    bark: Mapped[str | None] = mapped_column(String(10))


class Fish(Animal):
    __tablename__ = "fish"
    __mapper_args__: Mapping[str, Any] = {"polymorphic_identity": "fish"}

    id: Mapped[int] = mapped_column(ForeignKey("animal.id"), primary_key=True)
    depth: Mapped[int] = mapped_column(default=9)


class Versioned(Base):
    __tablename__ = "versioned"

    id: Mapped[int] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column()
    __mapper_args__: Mapping[str, Any] = {"version_id_col": version}


class Heard(Base):
    __tablename__ = "heard"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))


@event.listens_for(Heard, "before_insert")
def _hear(mapper: object, connection: object, heard: Heard) -> None:
    heard.name = heard.name.upper()


class Odd(Base):
    """What only reading knows, or is not read."""

    __tablename__ = "odd"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    long: Mapped[str | None] = deferred(mapped_column(String(20)))


class Derived(Base):
    __tablename__ = "derived"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    loud: Mapped[str] = column_property(func.upper(name), expire_on_flush=True)


class Data(MappedAsDataclass, Base):
    __tablename__ = "data"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    amount: Mapped[int] = mapped_column(default=5)
    made: Mapped[str] = mapped_column(String(5), insert_default="here", init=False)


def parent(code: str = "p", **more: Any) -> Parent:
    return Parent(code=code, **more)


def _with_seed(session: Any) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    return [Child(parent=seed, name="a"), Child(parent_id=seed.id, name="b")]


def _family(session: Any) -> list[Any]:
    one = parent("p1")
    return [Child(parent=one, name="first"), one, Child(parent=one, name="second")]


def _tree(session: Any) -> list[Any]:
    root = Tree(code="root")
    middle = [Tree(code=f"m{n}", parent=root) for n in range(3)]
    leaves = [Tree(code=f"l{n}", parent=middle[n % 3]) for n in range(7)]
    return [*leaves, *middle, root]


def _many_to_many(session: Any) -> list[Any]:
    rights = [Right(), Right()]
    return [Left(), Left(rights=rights), Left(rights=rights[:1])]


def _hen_and_egg(session: Any) -> list[Any]:
    egg = Egg()
    return [egg, Hen(egg=egg), Egg(hen=Hen())]


def _unset_parent(session: Any) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    return [
        Coded(parent=seed),
        Coded(parent=None),
        Coded(parent_code="seed", parent=None),
        Coded(parent_code="seed"),
        Coded(),
    ]


def _removed(session: Any) -> list[Any]:
    one = parent("p1")
    child = Child(name="lost")
    one.children.append(child)
    one.children.remove(child)
    return [one, Child(name="kept", parent=one)]


CASES: dict[str, Build] = {
    "values set, null and not set": lambda session: [
        Plain(code="a", name="x", price=Decimal("1.50"), truth=True, raw=b"\0\xff"),
        Plain(code="b", name=None, colour=Colour.GREEN, ratio=0.1),
        Plain(code="c", moment=datetime.fromisoformat("2024-02-29T12:30")),
    ],
    "some keys given": lambda session: [
        Plain(id=None, code="a"),
        Plain(code="b"),
        Plain(id=70, code="c"),
    ],
    "SQL for a value": lambda session: [
        Plain(code="a", name="x"),
        Plain(code="b", name=func.lower("ABC")),
        Plain(code="c", name=null()),
    ],
    "defaults made in Python": lambda session: [
        Defaults(id=uuid.UUID(int=1), code="a"),
        Defaults(id=uuid.UUID(int=2), code="b", scalar=1, called=2, kinds={"k": [1]}),
        Defaults(id=uuid.UUID(int=3), code="c", scalar=None, kinds=None),
    ],
    "a default made of other values": lambda session: [
        Contextual(code="a"),
        Contextual(code="b", made="given"),
    ],
    "a default made by SQL": lambda session: [
        BySql(code="a"),
        BySql(code="b", made="x"),
    ],
    "defaults of the database": lambda session: [
        Served(code="a"),
        Served(code="b", other=None),
        Served(code="c", state="old"),
        Served(code="d", other=5, state="x"),
    ],
    "defaults that are not fetched": lambda session: [
        Unfetched(state="old"),
        Unfetched(),
    ],
    "defaults that are fetched at any price": lambda session: [
        Eager(),
        Eager(state="x"),
    ],
    "identity columns": lambda session: [Identified(code="a"), Identified(code="b")],
    "a sequence": lambda session: [Numbered(code="a"), Numbered(code="b")],
    "computed columns": lambda session: [Calculated(side=2), Calculated(side=3)],
    "composite keys": lambda session: [
        Composite(left=2, right="b", note="x"),
        Composite(left=1, right="b"),
    ],
    "JSON, with null and NULL": lambda session: [
        Json(none_is_json=None, none_is_null=None),
        Json(none_is_json={"a": [1, None]}, none_is_null=[1]),
        Json(),
        Json(none_is_json=null()),
    ],
    "parents that exist": _with_seed,
    "parents in the same bulk": _family,
    "parents by another key": _unset_parent,
    "children that do not know": lambda session: [parent("p1", notes=[Note(), Note()])],
    "parents that only cascade": lambda session: [
        Child(name="a", parent=parent("p1")),
        Child(name="b", parent=parent("p2")),
    ],
    "children that only cascade": lambda session: [
        parent("p1", children=[Child(name="a"), Child(name="b")]),
    ],
    "a tree, leaves first": _tree,
    "two classes that refer to each other": _hen_and_egg,
    "many to many": _many_to_many,
    "a child taken away": _removed,
    "one table for several classes": lambda session: [Animal(), Dog(bark="x"), Dog()],
    "a table for each class": lambda session: [Dog(bark="x"), Fish(depth=3), Fish()],
    "versions": lambda session: [Versioned(), Versioned()],
    "events": lambda session: [Heard(name="a"), Heard(name="b")],
    "deferred columns": lambda session: [Odd(name="a", long="x"), Odd(name="b")],
    "what only reading knows": lambda session: [Derived(name="a")],
    "dataclasses": lambda session: [Data(name="a"), Data(name="b", amount=1)],
}


def _a_key_given_away(session: Session) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    seed.code = "renamed"
    return [parent("seed")]


def _a_key_given_away_by_a_parent(session: Session) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    seed.code = "renamed"
    return [parent("seed"), Child(parent=seed, name="a")]


def _another_in_its_place(session: Session) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    session.delete(seed)
    return [parent("other", id=seed.id)]


def _a_parent_with_another_key(session: Session) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    seed.id = 70
    return [Child(parent=seed, name="a")]


def _an_orphan_replaced(session: Session) -> list[Any]:
    seed = session.scalars(select(Parent)).one()
    first = Child(id=7, parent=seed, name="a")
    session.add(first)
    session.flush()
    seed.children.remove(first)
    return [Child(id=7, parent=seed, name="b")]


CHANGED: dict[str, Build] = {
    "a key given away": _a_key_given_away,
    "a key given away by a parent": _a_key_given_away_by_a_parent,
    "another in the place of one deleted": _another_in_its_place,
    "a parent with another key": _a_parent_with_another_key,
    "an orphan replaced": _an_orphan_replaced,
}

REFUSED: dict[str, Build] = {
    "a key that only the database may give": lambda session: [
        Identified(id=70, code="a"),
        Identified(id=71, code="b"),
    ],
    "a duplicate": lambda session: [Plain(code="x"), Plain(code="x")],
    "a duplicate with keys": lambda session: [
        Plain(id=70, code="x", name="given"),
        Plain(id=71, code="x"),
    ],
    "a duplicate with defaults": lambda session: [
        Defaults(id=uuid.UUID(int=1), code="x", scalar=1),
        Defaults(id=uuid.UUID(int=1), code="y", called=2, kinds={"a": 1}),
    ],
    "a missing value": lambda session: [Plain(code="a"), Plain(code=None)],
    "a missing key": lambda session: [Composite(left=1)],
    "a wrong foreign key": lambda session: [Child(parent_id=999, name="a")],
    "a parent of another class": lambda session: [Tree(parent=Plain(code="q"))],
    "a value of the wrong type": lambda session: [Plain(code="a", moment="yesterday")],
    "an impossible enum": lambda session: [Plain(code="a", colour="PINK")],
    "no parent where there must be one": lambda session: [Child(name="a")],
}


@pytest.fixture(scope="module", params=DRIVERS)
def on_database(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    """Give what runs a function with a session of an empty database."""
    with databases.fresh(request.param, tmp_path_factory.mktemp("paths")) as url:
        with Database(url) as db:
            db.create_all(Base.metadata)
            run = runner(db, url)

            def run_empty(work: Work) -> Any:
                _empty(db)
                return run(work)

            yield run_empty


def _empty(db: Database) -> None:
    """Empty every table, and count keys from the first again."""
    with db.manager.engines["default"].begin() as connection:
        tables = Base.metadata.sorted_tables
        names = [connection.dialect.identifier_preparer.format_table(t) for t in tables]
        match connection.dialect.name:
            case "postgresql":
                connection.exec_driver_sql(
                    f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE"
                )
                connection.exec_driver_sql("ALTER SEQUENCE numbered_numbers RESTART")
            case "sqlite":
                connection.exec_driver_sql("PRAGMA defer_foreign_keys = on")
                for name in names:
                    connection.exec_driver_sql(f"DELETE FROM {name}")
            case _:
                connection.exec_driver_sql("SET foreign_key_checks = 0")
                for name in names:
                    connection.exec_driver_sql(f"TRUNCATE {name}")
                connection.exec_driver_sql("SET foreign_key_checks = 1")
                connection.exec_driver_sql("ALTER SEQUENCE numbered_numbers RESTART")


def by_bulk(
    session: Session, instances: list[Any], batch_size: int | None = None
) -> None:
    with session.bulk() as bulk:
        for instance in instances:
            bulk.add(instance)
        bulk.flush(batch_size=batch_size)


def by_unit_of_work(session: Session, instances: list[Any]) -> None:
    session.add_all(instances)
    session.flush()


def written(write: Callable[[Session, list[Any]], None], build: Build) -> Work:
    """Give what writes instances, and says what there is then, and after a rollback."""

    def work(session: Session) -> Any:
        session.add(Parent(code="seed"))
        session.commit()
        instances = build(session)
        write(session, instances)
        found = [rows_of(session), *map(described, instances), bool(session.new)]
        dirty = [described(instance) for instance in session.dirty]
        session.rollback()
        states = [inspect(instance) for instance in instances]
        return (
            found,
            dirty,
            [(state.transient, state.key) for state in states],
            rows_of(session),
        )

    return work


def rows_of(session: Session) -> dict[str, list[Any]]:
    """Read every table, past the session's instances."""
    found = {
        table.name: sorted(session.execute(select(table)).all(), key=repr)
        for table in Base.metadata.sorted_tables
    }
    return {name: rows for name, rows in found.items() if rows}


def described(instance: Any) -> Any:
    """Say what a session knows of an instance."""
    state = inspect(instance)

    def plain(value: Any) -> Any:
        if isinstance(value, list):
            return [plain(item) for item in value]
        if isinstance(value, Base):
            return type(value).__name__, inspect(value).identity
        return value

    return (
        type(instance).__name__,
        state.identity,
        state.persistent,
        state.modified,
        sorted(state.expired_attributes),
        {
            name: plain(value)
            for name, value in sorted(state.dict.items())
            if name[0] != "_"
        },
    )


@pytest.mark.parametrize("name", ["parents in the same bulk", "a tree, leaves first"])
def test_in_batches(on_database: Run, name: str) -> None:
    ours = on_database(written(partial(by_bulk, batch_size=1), CASES[name]))
    theirs = on_database(written(by_unit_of_work, CASES[name]))
    assert ours == theirs


@pytest.mark.parametrize("name", CASES)
def test_the_same_rows_and_instances(on_database: Run, name: str) -> None:
    ours = on_database(written(by_bulk, CASES[name]))
    theirs = on_database(written(by_unit_of_work, CASES[name]))
    assert ours == theirs


def changed(build: Build, *, by_bulk: bool, inside: bool) -> Work:
    """Give what changes rows, and then writes others; it says what there is then."""

    def work(session: Session) -> Any:
        session.add(Parent(code="seed", id=5))
        session.commit()
        if inside:
            session.execute(select(Parent)).all()
        with session.bulk() as bulk:
            instances = build(session)
            if not by_bulk:
                session.add_all(instances)
                session.flush()
            for instance in instances if by_bulk else ():
                bulk.add(instance)
            if by_bulk:
                bulk.flush()
        return rows_of(session), *map(described, instances)

    return work


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", CHANGED)
def test_after_changes(on_database: Run, name: str, inside: bool) -> None:
    """What a session has changed or deleted before is written before."""
    ours = on_database(changed(CHANGED[name], by_bulk=True, inside=inside))
    theirs = on_database(changed(CHANGED[name], by_bulk=False, inside=inside))
    assert ours == theirs


def attributes(instance: Any) -> dict[str, str]:
    """Say what columns are set in an instance."""
    state = inspect(instance)
    names = state.mapper.column_attrs.keys() & state.dict.keys()
    return {name: repr(state.dict[name]) for name in names}


def refused(write: Callable[[Session, list[Any]], None], build: Build) -> Work:
    """Give what writes instances that are refused, and says how."""

    def work(session: Session) -> Any:
        session.add(Parent(code="seed"))
        session.commit()
        instances = build(session)
        given = list(map(attributes, instances))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write(session, instances)
        except Exception as error:  # noqa: BLE001  # whatever it is
            kind = _kind(error)
        else:
            kind = None, None
        # What add_all() refuses, it refuses before the flush.
        active = kind[0] is AssertionError or session.is_active
        session.rollback()
        left = [
            before.items() <= attributes(instance).items()
            for before, instance in zip(given, instances, strict=True)
        ]
        return kind, active, bool(session.new), left, rows_of(session)

    return work


def _kind(error: Exception) -> tuple[Any, Any]:
    if isinstance(error, StatementError) and not isinstance(error, IntegrityError):
        # How a value is refused depends on how it is sent: as text, or in binary.
        return StatementError, None
    return type(error), type(getattr(error, "orig", None))


@pytest.mark.parametrize("name", REFUSED)
def test_the_same_errors(on_database: Run, name: str) -> None:
    ours = on_database(refused(by_bulk, REFUSED[name]))
    theirs = on_database(refused(by_unit_of_work, REFUSED[name]))
    assert ours == theirs
