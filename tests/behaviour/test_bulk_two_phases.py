"""Bulks of sessions with ``twophase=True``: rows, and what is left of the transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import String, delete, event, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import CommitOutcomeUnknownError, Database, Session, Spec
from tenure.engines import commits
from tests.fixtures.databases import Databases
from tools.servers import PostgreSQL, ServerUnavailable


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)
    amount: Mapped[int]


class ThingIn(Spec[Thing]):
    code: str
    amount: int


#: What a transaction, or a lock, that nobody ends is seen by.
LEFT = {
    "postgresql": "SELECT count(*) FROM pg_prepared_xacts",
    "mysql": "SELECT RELEASE_ALL_LOCKS()",
}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    ],
)
def db(
    request: pytest.FixtureRequest,
    databases: Databases,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Database]:
    folder = tmp_path_factory.mktemp("module")
    started = (
        _preparing(databases)
        if request.param == "postgresql"
        else databases.fresh("mysql+pymysql", folder)
    )
    with started as url, Database(url) as db:
        db.create_all(Base.metadata)
        yield db


@contextmanager
def _preparing(databases: Databases) -> Iterator[str]:
    """Start a server that prepares transactions: by default it does not."""
    try:
        server = PostgreSQL.create()
    except ServerUnavailable as error:
        databases.lacks("postgresql", error)
    with server:
        with psycopg.connect(server.url(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET max_prepared_transactions = 5")
        server.stop()
        server.start()
        yield server.url("psycopg")


@pytest.fixture
def session(db: Database) -> Iterator[Session]:
    with db.session_manager(auto_commit=True) as session:
        session.execute(delete(Thing))
        session.add(Thing(code="a", amount=0))
    with Session(db.manager.engines["default"], twophase=True) as session:
        yield session
    with db.manager.engines["default"].connect() as connection:
        assert 0 == connection.scalar(text(LEFT[connection.dialect.name]))


def stored(session: Session) -> list[tuple[Any, ...]]:
    rows = session.execute(select(Thing.code, Thing.amount).order_by(Thing.code))
    return [tuple(row) for row in rows]


@pytest.mark.parametrize("on_conflict", ["raise", "update", "skip"])
@pytest.mark.parametrize("ending", ["commit", "rollback", "bulk.commit"])
def test_values(session: Session, on_conflict: Any, ending: str) -> None:
    codes = "bc" if on_conflict == "raise" else "abc"
    with session.bulk() as bulk:
        for code in codes:
            bulk.add(Thing(code=code, amount=1))
        if ending == "bulk.commit":
            bulk.commit(on_conflict=on_conflict)
        else:
            bulk.flush(on_conflict=on_conflict)
    if ending == "commit":
        session.commit()
    session.rollback()

    first = ("a", 1 if on_conflict == "update" else 0)
    written = [first, ("b", 1), ("c", 1)]
    assert ([("a", 0)] if ending == "rollback" else written) == stored(session)


@pytest.mark.parametrize("on_conflict", ["raise", "update", "skip"])
@pytest.mark.parametrize("commit", ["once", "batch"])
def test_load(session: Session, on_conflict: Any, commit: Any) -> None:
    codes = "bc" if on_conflict == "raise" else "abc"
    rows = [{"code": code, "amount": 1} for code in codes]
    with session.bulk() as bulk:
        bulk.load(rows, ThingIn, on_conflict=on_conflict, commit=commit, batch_size=2)
    session.rollback()

    first = ("a", 1 if on_conflict == "update" else 0)
    assert [first, ("b", 1), ("c", 1)] == stored(session)


@pytest.mark.parametrize("ending", ["commit", "rollback"])
def test_prepared(session: Session, ending: str) -> None:
    """A program may prepare by itself, and decide afterwards."""
    with session.bulk() as bulk:
        bulk.add(Thing(code="a", amount=1))
        bulk.add(Thing(code="b", amount=1))
        bulk.flush(on_conflict="update")
    session.prepare()
    getattr(session, ending)()

    written = [("a", 1), ("b", 1)]
    assert (written if ending == "commit" else [("a", 0)]) == stored(session)


@contextmanager
def killed(db: Database) -> Iterator[list[str]]:
    """Kill the connection between prepare and commit; give what callbacks have run."""
    if db.manager.urls["default"].get_backend_name() != "postgresql":
        pytest.skip("MariaDB rolls back what is prepared when its connection is lost")
    engine = db.manager.engines["default"]
    ran: list[str] = []

    def kill(connection: Any, xid: Any, is_prepared: bool) -> None:  # an event's
        driver = connection.connection.driver_connection
        with engine.connect() as other:
            pid = driver.info.backend_pid
            other.execute(text(f"SELECT pg_terminate_backend({pid})"))

    with db.session_manager(auto_commit=True) as session:
        session.execute(delete(Thing))
    event.listen(engine, "commit_twophase", kill)
    try:
        yield ran
    finally:
        event.remove(engine, "commit_twophase", kill)


def promise(db: Database, ran: list[str]) -> None:
    with Session(db.manager.engines["default"], twophase=True) as session:
        session.on_commit(lambda: ran.append("commit"))
        session.on_rollback(lambda: ran.append("rollback"))
        session.on_unknown(lambda: ran.append("unknown"))
        session.add(Thing(code="promised", amount=1))
        session.commit()


def test_killed_between_prepare_and_commit(db: Database) -> None:
    """What was promised is committed by another connection."""
    with killed(db) as ran:
        promise(db, ran)

    assert ["commit"] == ran
    with db.session_manager() as session:
        assert 0 == session.scalar(text(LEFT["postgresql"]))
        assert [("promised", 1)] == stored(session)


@pytest.mark.anyio
async def test_killed_in_async_code(db: Database) -> None:
    """As :func:`test_killed_between_prepare_and_commit`."""
    url = db.manager.urls["default"]
    async with Database(url, twophase=True) as both:
        if url.get_backend_name() != "postgresql":
            pytest.skip("MariaDB rolls back what is prepared")
        engine = both.manager.async_engines["default"].sync_engine

        def kill(connection: Any, xid: Any, is_prepared: bool) -> None:  # an event's
            pid = connection.connection.driver_connection.info.backend_pid
            with db.session_manager(new=True) as beside:
                beside.execute(text(f"SELECT pg_terminate_backend({pid})"))

        ran: list[str] = []
        with db.session_manager(auto_commit=True) as session:
            session.execute(delete(Thing))
        event.listen(engine, "commit_twophase", kill)
        async with both.async_session_manager(auto_commit=True) as asynchronous:
            asynchronous.on_commit(lambda: ran.append("commit"))
            asynchronous.add(Thing(code="promised", amount=1))
        assert ["commit"] == ran
    with db.session_manager() as session:
        assert [("promised", 1)] == stored(session)


def test_killed_and_not_there(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not have it says nothing: it is never called committed."""
    monkeypatch.setattr(commits, "DEADLINE", 0.5)
    engine = db.manager.engines["default"]

    def undo(connection: Any, xid: Any, is_prepared: bool) -> None:  # an event's
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as other:
            other.execute(text(f"ROLLBACK PREPARED '{xid}'"))

    with killed(db) as ran:
        event.listen(engine, "commit_twophase", undo)
        try:
            with pytest.raises(CommitOutcomeUnknownError):
                promise(db, ran)
        finally:
            event.remove(engine, "commit_twophase", undo)

    assert ["unknown"] == ran
    with db.session_manager() as session:
        assert [] == stored(session)


def test_killed_and_nobody_answers(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows then; what was promised can be committed by hand."""
    monkeypatch.setattr(commits, "DEADLINE", 0.05)
    monkeypatch.setattr(commits, "beside", lambda *_: None)
    with (
        killed(db) as ran,
        pytest.raises(CommitOutcomeUnknownError, match="by hand") as caught,
    ):
        promise(db, ran)

    engine = db.manager.engines["default"]
    with psycopg.connect(
        engine.url.set(drivername="postgresql").render_as_string(hide_password=False),
        autocommit=True,
    ) as direct:
        (xid,) = direct.execute("SELECT gid FROM pg_prepared_xacts").fetchone() or ("",)
        assert xid in str(caught.value)
        direct.execute(f"COMMIT PREPARED '{xid}'")
        assert direct.execute("SELECT code FROM thing").fetchall() == [("promised",)]
    assert ["unknown"] == ran
