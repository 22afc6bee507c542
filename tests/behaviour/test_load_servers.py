"""Loads that others disturb: who creates the same rows, who ends the connection."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import Database, LoadReport, Ref, Session, Spec
from tests.fixtures.trees import Base, Owner, Part, PartIn


@pytest.fixture
def db(server_url: str) -> Iterator[Database]:
    with Database(server_url) as db:
        db.create_all(Base.metadata)
        yield db


def rows(count: int) -> list[dict[str, Any]]:
    return [{"code": f"p{n}", "owner": f"o{n % 3}"} for n in range(count)]


def load(session: Session, source: Any, **options: Any) -> LoadReport:
    with session.bulk() as bulk:
        return bulk.load(source, PartIn, on_missing="create", **options)


def count(session: Session, entity: Any) -> int | None:
    return session.scalar(select(func.count()).select_from(entity))


def test_made_by_others(db: Database) -> None:
    """A row that another transaction makes meanwhile is used, not made again."""
    engine = db.manager.engines["default"]
    done = []

    def listen(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        # The first that writes; from then on MariaDB has others wait.
        if statement.startswith(("INSERT INTO owner", "CREATE TEMP")) and not done:
            done.append(statement)
            with Session(engine) as other:
                other.add(Owner(code="o1"))
                other.commit()

    with db.session() as session:
        event.listen(engine, "before_cursor_execute", listen)
        try:
            report = load(session, rows(6))
        finally:
            event.remove(engine, "before_cursor_execute", listen)
        codes = session.scalars(select(Owner.code).order_by(Owner.code)).all()
        linked = session.scalars(select(Owner.code).join(Part.owner)).all()

    assert done
    assert ["o0", "o1", "o2"] == codes
    assert sorted(["o0", "o1", "o2"] * 2) == sorted(linked)
    owners = report.references["Owner"]
    assert (6, 0, 2) == (owners.resolved, owners.missing, owners.created)


class Shop(DeclarativeBase):
    pass


class Maker(Shop):
    __tablename__ = "maker"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(10), unique=True)


class Buyer(Shop):
    __tablename__ = "buyer"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(10), unique=True)


class Sale(Shop):
    __tablename__ = "sale"

    id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(unique=True)
    maker_id: Mapped[int | None] = mapped_column(ForeignKey("maker.id"))
    buyer_id: Mapped[int | None] = mapped_column(ForeignKey("buyer.id"))

    maker: Mapped[Maker | None] = relationship()
    buyer: Mapped[Buyer | None] = relationship()


class SaleIn(Spec[Sale]):
    number: int
    maker: Ref[Maker] | None = None
    buyer: Ref[Buyer] | None = None


@pytest.mark.parametrize("policy", ["raise", "update"])
def test_made_in_another_order(db: Database, policy: Any) -> None:
    """Two loads that make rows of the same tables never wait for each other."""
    db.create_all(Shop.metadata)
    engine = db.manager.engines["default"]
    is_waiting = threading.Event()
    other: list[LoadReport] = []

    def listen(conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        if not in_main and ("advisory" in statement or "GET_LOCK" in statement):
            is_waiting.set()

    def run(rows: list[dict[str, Any]], progress: Any = None) -> LoadReport:
        with db.session() as session, session.bulk() as bulk:
            return bulk.load(
                rows,
                SaleIn,
                on_missing="create",
                on_conflict=policy,
                batch_size=1,
                progress=progress,
            )

    def progress(report: LoadReport) -> None:
        if report.rows == 1 and not is_waiting.is_set():
            thread.start()
            assert is_waiting.wait(30)

    ours = [{"number": 1, "maker": "m"}, {"number": 2, "buyer": "b"}]
    theirs = [{"number": 3, "buyer": "b"}, {"number": 4, "maker": "m"}]
    thread = threading.Thread(target=lambda: other.append(run(theirs)))
    event.listen(engine, "before_cursor_execute", listen)
    try:
        report = run(ours, progress)
        thread.join()
    finally:
        event.remove(engine, "before_cursor_execute", listen)

    assert [2, 2] == [report.created, *(each.created for each in other)]


@pytest.mark.parametrize("commit", ["once", "batch"])
def test_killed(db: Database, commit: Any) -> None:
    """A connection that is ended leaves what was committed, and the report says so."""

    def progress(report: LoadReport) -> None:
        if report.rows != 6:
            return
        is_mariadb = make_url(db.manager.engines["default"].url).drivername == (
            "mysql+pymysql"
        )
        own = "SELECT connection_id()" if is_mariadb else "SELECT pg_backend_pid()"
        kill = "KILL {}" if is_mariadb else "SELECT pg_terminate_backend({})"
        number = session.scalar(text(own))
        with db.manager.engines["default"].connect() as other:
            other.execute(text(kill.format(number)))

    with db.session() as session:
        with pytest.raises(DBAPIError) as caught:
            load(session, rows(10), batch_size=3, commit=commit, progress=progress)
    report: LoadReport = caught.value.report  # type: ignore[attr-defined]  # load() sets it
    kept = 6 if commit == "batch" else 0
    with db.session() as session:
        assert kept == count(session, Part) == report.kept == report.rows
        assert report.references["Owner"].created if kept else not report.references
        assert kept + 1 == report.resume
        again = load(session, rows(10), batch_size=3, start=report.resume)
        assert 10 == count(session, Part)

    assert 10 - kept == again.created
    assert None is again.resume


@pytest.fixture(
    params=[
        pytest.param("postgresql+asyncpg", marks=pytest.mark.postgresql),
        pytest.param("mysql+asyncmy", marks=pytest.mark.mariadb),
    ]
)
async def async_db(
    request: Any, databases: Any, tmp_path: Path
) -> AsyncIterator[Database]:
    with databases.fresh(request.param, tmp_path) as url:
        async with Database(url) as db:
            await db.acreate_all(Base.metadata)
            yield db


@pytest.mark.anyio
@pytest.mark.parametrize("batch_size", [2, 1_000])
async def test_async(async_db: Database, batch_size: int) -> None:
    """Trees and what is made of keys, by an async driver."""
    source = [{"code": f"p{n}", "parent": f"p{n + 1}"} for n in range(8)]
    source.append({"code": "p8", "owner": "o"})
    async with async_db.async_session() as session:
        async with session.bulk() as bulk:
            dry = await bulk.load(
                source, PartIn, on_missing="create", batch_size=batch_size, dry_run=True
            )
            report = await bulk.load(
                source, PartIn, on_missing="create", batch_size=batch_size
            )
        roots = await session.scalars(select(Part.code).filter_by(parent_id=None))
        assert ["p8"] == list(roots)

    assert 9 == dry.created == report.created
    assert (8, 0) == (
        report.references["Part"].resolved,
        report.references["Part"].missing,
    )
    assert 1 == report.references["Owner"].created
