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
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.orm.exc import FlushError

from seance import AsyncSession, Session, Spec
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
def test_rows_that_a_trigger_keeps_out(run: Run) -> None:
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
        by_flush(session, Item, ItemIn, "ab")

    with pytest.raises(FlushError):
        run(prepare, work)
