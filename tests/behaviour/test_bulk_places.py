"""Bulks and loads write where a flush writes: into tables of any name and schema."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import (
    Connection,
    ForeignKey,
    String,
    create_engine,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.orm.exc import FlushError

from tenure import AsyncSession, Session, Spec
from tests.fixtures.databases import Databases

Work = Callable[[Session], Any]
Run = Callable[..., Any]

DRIVERS = [
    pytest.param("sqlite", marks=pytest.mark.sqlite, id="sqlite"),
    pytest.param("postgresql+psycopg", marks=pytest.mark.postgresql, id="psycopg"),
    pytest.param("postgresql+asyncpg", marks=pytest.mark.postgresql, id="asyncpg"),
    pytest.param("mysql+pymysql", marks=pytest.mark.mariadb, id="mariadb"),
]
ON_POSTGRESQL = DRIVERS[1:3]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)


class ItemIn(Spec[Item]):
    code: str


class Strange(Base):
    __tablename__ = "10%s \"of\" a 'strange' `name`"

    id: Mapped[int] = mapped_column("%d", primary_key=True)
    code: Mapped[str] = mapped_column('the "co%de"', String(20), unique=True)
    name: Mapped[str] = mapped_column("na'me:x", String(20), default="%s")


class StrangeIn(Spec[Strange]):
    code: str


@pytest.fixture
def run(request: pytest.FixtureRequest, databases: Databases, tmp_path: Any) -> Any:
    """Give what runs a function with a session, after one with a connection."""
    with databases.fresh(request.param, tmp_path) as url:

        def run(
            prepare: Callable[[Connection], Any], work: Work, **options: Any
        ) -> Any:
            if make_url(url).get_dialect().is_async:
                return asyncio.run(run_async(prepare, work, options))
            engine = create_engine(url)
            try:
                with engine.begin() as connection:
                    prepare(connection)
                with Session(engine.execution_options(**options)) as session:
                    return work(session)
            finally:
                engine.dispose()

        async def run_async(prepare: Any, work: Work, options: Any) -> Any:
            engine = create_async_engine(url)
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(prepare)
                async with AsyncSession(engine.execution_options(**options)) as session:
                    return await session.run_sync(work)
            finally:
                await engine.dispose()

        yield run


def by_flush(session: Session, kind: Any, spec: Any, codes: str) -> None:
    with session.bulk() as bulk:
        for code in codes:
            bulk.add(kind(code=code))
        bulk.flush()


def by_key(session: Session, kind: Any, spec: Any, codes: str) -> None:
    with session.bulk() as bulk:
        for code in codes:
            bulk.add(kind(code=code))
        bulk.flush(on_conflict="update")


def by_load(session: Session, kind: Any, spec: Any, codes: str) -> None:
    with session.bulk() as bulk:
        bulk.load([{"code": code} for code in codes], spec)


def by_load_by_key(session: Session, kind: Any, spec: Any, codes: str) -> None:
    with session.bulk() as bulk:
        bulk.load([{"code": code} for code in codes], spec, on_conflict="update")


WAYS = [by_flush, by_key, by_load, by_load_by_key]


@pytest.mark.parametrize("run", DRIVERS, indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_odd_names(run: Run, way: Any) -> None:
    """Quotes, percent signs and colons in names are part of names."""

    def work(session: Session) -> Any:
        way(session, Strange, StrangeIn, "ab")
        rows = session.execute(select(Strange.code, Strange.name)).all()
        return sorted(map(tuple, rows))

    assert [("a", "%s"), ("b", "%s")] == run(Base.metadata.create_all, work)


@pytest.mark.parametrize("run", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize("way", WAYS)
def test_translated_schema(run: Run, way: Any) -> None:
    """Rows go where the ``schema_translate_map`` of the connection says."""

    def prepare(connection: Connection) -> None:
        Base.metadata.create_all(connection, [Base.metadata.tables["item"]])
        connection.execute(text('CREATE SCHEMA "ten%ant"'))
        connection.execute(
            text('CREATE TABLE "ten%ant".item (LIKE item INCLUDING ALL)')
        )
        connection.execute(text("INSERT INTO item (code) VALUES ('theirs')"))

    def work(session: Session) -> Any:
        way(session, Item, ItemIn, "ab")
        ours = session.scalars(text('SELECT code FROM "ten%ant".item')).all()
        theirs = session.scalars(text("SELECT code FROM public.item")).all()
        return sorted(ours), theirs

    found = run(prepare, work, schema_translate_map={None: "ten%ant"})
    assert (["a", "b"], ["theirs"]) == found


class Tree(Base):
    __tablename__ = "tree"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("tree.id"))
    parent: Mapped[Tree | None] = relationship(remote_side=[id])


class Goods(Base):
    __tablename__ = "goods"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    name: Mapped[str] = mapped_column(String(20))


class GoodsIn(Spec[Goods]):
    code: str
    name: str


OTHER_SEQUENCE = "CREATE SEQUENCE other START 500"


@pytest.mark.parametrize("run", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize(
    ("changes", "first"),
    [
        (["ALTER SEQUENCE tree_id_seq OWNED BY NONE"], 1),
        (
            [
                OTHER_SEQUENCE,
                "ALTER TABLE tree ALTER id SET DEFAULT nextval('other')",
            ],
            500,
        ),
        (["ALTER TABLE tree ALTER id SET DEFAULT nextval('tree_id_seq') + 70"], 71),
        (
            [
                (
                    "CREATE FUNCTION number() RETURNS trigger LANGUAGE plpgsql AS "
                    "$$ BEGIN NEW.id := NEW.id + 100; RETURN NEW; END $$"
                ),
                (
                    "CREATE TRIGGER number BEFORE INSERT ON tree "
                    "FOR EACH ROW EXECUTE FUNCTION number()"
                ),
            ],
            101,
        ),
        (["ALTER TABLE tree RENAME TO oak", "CREATE VIEW tree AS TABLE oak"], 1),
    ],
    ids=["not owned", "another sequence", "an expression", "a trigger", "a view"],
)
def test_keys_made_in_other_ways(run: Run, changes: list[str], first: int) -> None:
    """Instances know their keys, and those of their parents, however they are made."""

    def prepare(connection: Connection) -> None:
        Base.metadata.create_all(connection, [Base.metadata.tables["tree"]])
        for change in changes:
            connection.exec_driver_sql(change)

    def work(session: Session) -> Any:
        root = Tree(code="root")
        leaf = Tree(code="leaf", parent=root)
        with session.bulk() as bulk:
            bulk.add(leaf)
            bulk.add(root)
            bulk.flush()
        rows = session.execute(
            text("SELECT code, id, parent_id FROM tree ORDER BY id")
        ).all()
        return [tuple(row) for row in rows], root.id, leaf.id, leaf.parent_id

    rows, root, leaf, parent = run(prepare, work)
    assert [("root", root, None), ("leaf", leaf, root)] == rows
    assert first == root == parent


@pytest.mark.parametrize("run", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "changes",
    [
        ["ALTER TABLE item RENAME TO goods", "CREATE VIEW item AS TABLE goods"],
        [
            "CREATE TABLE log (code text)",
            "CREATE RULE noted AS ON INSERT TO item DO ALSO INSERT INTO log SELECT NEW.code",
        ],
        [
            "ALTER TABLE item ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY everything ON item USING (true)",
            "GRANT ALL ON item, item_id_seq TO pg_monitor",
            "SET ROLE pg_monitor",
        ],
    ],
    ids=["view", "rule", "row-level security"],
)
def test_where_there_is_no_copy(run: Run, way: Any, changes: list[str]) -> None:
    """What takes an INSERT and no COPY of PostgreSQL takes bulks, too."""
    by_role = [change for change in changes if change.startswith("SET ROLE")]

    def prepare(connection: Connection) -> None:
        Base.metadata.create_all(connection, [Base.metadata.tables["item"]])
        for change in changes:
            if change not in by_role:
                connection.exec_driver_sql(change)

    def work(session: Session) -> Any:
        for change in by_role:
            session.execute(text(change))
        way(session, Item, ItemIn, "ab")
        logged = []
        if session.scalar(text("SELECT to_regclass('log')")):
            logged = list(session.scalars(text("SELECT code FROM log ORDER BY code")))
        codes = sorted(session.scalars(select(Item.code)))
        session.rollback()
        return codes, logged

    codes, logged = run(prepare, work)
    assert ["a", "b"] == codes
    assert logged in ([], ["a", "b"])
    assert bool(logged) == any("RULE" in change for change in changes)


@pytest.mark.parametrize("run", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize("way", [by_flush, by_key, by_load_by_key])
def test_rows_that_a_trigger_keeps_out(run: Run, way: Any) -> None:
    """A row that did not come to be is an error, as from a flush."""

    def prepare(connection: Connection) -> None:
        Base.metadata.create_all(connection, [Base.metadata.tables["item"]])
        connection.exec_driver_sql(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RETURN NULL; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE INSERT ON item "
            "FOR EACH ROW EXECUTE FUNCTION refuse()"
        )

    def work(session: Session) -> None:
        way(session, Item, ItemIn, "ab")

    with pytest.raises(FlushError):
        run(prepare, work)


PARTITIONED = [
    "CREATE SEQUENCE numbers",
    (
        "CREATE TABLE goods (id integer NOT NULL DEFAULT nextval('numbers'), "
        "code varchar(20) NOT NULL UNIQUE, name varchar(20) NOT NULL) "
        "PARTITION BY RANGE (code)"
    ),
    "CREATE TABLE first PARTITION OF goods FOR VALUES FROM (MINVALUE) TO ('m')",
    # With its columns in another order.
    (
        "CREATE TABLE second (name varchar(20) NOT NULL, code varchar(20) NOT NULL, "
        "id integer NOT NULL DEFAULT nextval('numbers'))"
    ),
    "ALTER TABLE goods ATTACH PARTITION second FOR VALUES FROM ('m') TO (MAXVALUE)",
]


def on_insert(assignment: str) -> list[str]:
    return [
        (
            "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN {assignment}; RETURN NEW; END $$"
        ),
        (
            "CREATE TRIGGER change BEFORE INSERT ON goods "
            "FOR EACH ROW EXECUTE FUNCTION change()"
        ),
    ]


def prepared(changes: list[str]) -> Callable[[Connection], None]:
    def prepare(connection: Connection) -> None:
        if changes is not PARTITIONED:
            Base.metadata.create_all(connection, [Base.metadata.tables["goods"]])
        for change in changes:
            connection.exec_driver_sql(change)
        connection.exec_driver_sql("INSERT INTO goods (code, name) VALUES ('a', 'x')")
        connection.exec_driver_sql("INSERT INTO goods (code, name) VALUES ('z', 'x')")

    return prepare


def names(session: Session) -> dict[str, str]:
    found = session.execute(select(Goods.code, Goods.name))
    return {row.code: row.name for row in found}


@pytest.mark.parametrize("run", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize("on_conflict", ["update", "skip"])
@pytest.mark.parametrize(
    "changes",
    [PARTITIONED, on_insert("NEW.id := NEW.id + 100")],
    ids=["partitions", "a trigger"],
)
def test_what_became_of_rows(run: Run, changes: list[str], on_conflict: Any) -> None:
    """Who writes by key is told what is new, whatever the table is like."""
    rows = [("a", "x"), ("b", "new"), ("y", "new"), ("z", "new")]

    def load(session: Session) -> Any:
        with session.bulk() as bulk:
            twice = [*rows, ("b", "again"), ("y", "new")]
            given = [{"code": code, "name": name} for code, name in twice]
            report = bulk.load(given, GoodsIn, on_conflict=on_conflict)
        counts = report.created, report.updated, report.unchanged, report.skipped
        found = names(session)
        session.execute(text("DELETE FROM goods WHERE code IN ('b', 'y')"))
        session.execute(text("UPDATE goods SET name = 'x'"))
        session.commit()
        return counts, found

    def write(session: Session) -> Any:
        with session.bulk() as bulk:
            for code, name in rows:
                bulk.add(Goods(code=code, name=name))
            report = bulk.commit(on_conflict=on_conflict)
        return report.statuses, names(session)

    loaded, written = run(prepared(changes), lambda s: (load(s), write(s)))
    if on_conflict == "update":
        new = {"a": "x", "b": "new", "y": "new", "z": "new"}
        assert ((2, 2, 2, 0), {**new, "b": "again"}) == loaded
        assert (["unchanged", "created", "created", "updated"], new) == written
    else:
        new = {"a": "x", "b": "new", "y": "new", "z": "x"}
        assert ((2, 0, 0, 4), new) == loaded
        assert (["skipped", "created", "created", "skipped"], new) == written


@pytest.mark.parametrize("run", ON_POSTGRESQL, indirect=True)
@pytest.mark.parametrize("on_conflict", ["update", "skip"])
def test_a_trigger_that_changes_keys(run: Run, on_conflict: Any) -> None:
    """What comes to be under another key is new; what cannot be is an error."""
    prepare = prepared(on_insert("NEW.code := lower(NEW.code)"))

    def work(session: Session) -> Any:
        with session.bulk() as bulk:
            rows = [{"code": code, "name": "new"} for code in ("A", "B", "C", "c")]
            report = bulk.load(rows, GoodsIn, on_conflict=on_conflict, max_errors=9)
        with session.bulk() as bulk:
            goods = Goods(code="D", name="new")
            bulk.add(goods)
            assert ["created"] == bulk.commit(on_conflict=on_conflict).statuses
        with session.bulk() as bulk:
            bulk.add(Goods(code="A", name="new"))
            with pytest.raises(IntegrityError):
                bulk.commit(on_conflict=on_conflict)
        found = session.scalar(text(f"SELECT code FROM goods WHERE id = {goods.id}"))
        left = report.unchanged + report.skipped
        return (report.created, left, report.rejected), found, names(session)

    counts, found, rows = run(prepare, work)
    assert "d" == found
    assert {"a": "x", "z": "x", "b": "new", "c": "new", "d": "new"} == rows
    assert (2, 1, 1) == counts


@pytest.mark.parametrize("run", DRIVERS[3:], indirect=True)
def test_a_key_that_was_changed(run: Run) -> None:
    """A row that is not there under its key is an error that says so."""
    trigger = (
        "CREATE TRIGGER lowered BEFORE INSERT ON goods FOR EACH ROW "
        "SET NEW.code = concat(NEW.code, '!')"
    )

    def work(session: Session) -> None:
        with session.bulk() as bulk:
            bulk.add(Goods(code="B", name="new"))
            bulk.commit(on_conflict="update")

    with pytest.raises(FlushError, match="trigger"):
        run(prepared([trigger]), work)
