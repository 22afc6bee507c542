"""Who writes by key into one table of MariaDB takes turns, until a transaction ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, String, create_engine, event, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from tenure import DatabaseError, DeadlineExceededError, Session
from tests.fixtures.databases import Databases

pytestmark = pytest.mark.mariadb


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(20), unique=True)


@pytest.fixture
def engine(databases: Databases, tmp_path: Any) -> Iterator[Engine]:
    with databases.fresh("mysql+pymysql", tmp_path) as url:
        engine = create_engine(url)
        Base.metadata.create_all(engine)
        yield engine
        engine.dispose()


def write(session: Session, code: str = "a") -> None:
    with session.bulk() as bulk:
        bulk.add(Item(code=code))
        bulk.flush(on_conflict="update")


def others_may_write(engine: Engine) -> bool:
    # Not by the connection that the writer may just have given back.
    others = create_engine(engine.url, poolclass=NullPool)
    with Session(others) as session:
        session.execute(text("SET SESSION lock_wait_timeout = 1"))
        try:
            write(session, "other")
        except DeadlineExceededError:
            return False
    return True


def test_nobody_ends(engine: Engine) -> None:
    """Waiting comes to an end, with an error that says for whom and what to do."""
    with Session(engine) as first, Session(engine) as second:
        write(first)
        second.execute(text("SET SESSION lock_wait_timeout = 1"))
        with pytest.raises(DeadlineExceededError, match=r"into item for 1 seconds.*"):
            write(second)
        second.rollback()
        first.commit()
        write(second)
        second.commit()
        assert DeadlineExceededError.retryable


def test_no_lock(engine: Engine) -> None:
    """A server that cannot give the lock is no reason to go on without it."""

    def refuse(conn: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> Any:
        if "GET_LOCK" in statement:
            statement = "SELECT NULL, 1"
        return statement, parameters

    event.listen(engine, "before_cursor_execute", refuse, retval=True)
    with Session(engine) as session, pytest.raises(DatabaseError, match="into item"):
        write(session)


@pytest.mark.parametrize("ending", ["commit", "rollback", "close"])
def test_an_ended_transaction(engine: Engine, ending: str) -> None:
    """Whichever way it ends, others may write then."""
    with Session(engine) as session:
        write(session)
        assert not others_may_write(engine)
        getattr(session, ending)()
        assert others_may_write(engine)


def test_two_phases(engine: Engine) -> None:
    """A transaction that others decide on holds up nobody who writes other rows."""
    with Session(engine, twophase=True) as session:
        write(session)
        session.prepare()
        session.commit()
        assert others_may_write(engine)
        write(session)
        session.rollback()
        assert others_may_write(engine)


def test_a_failed_savepoint(engine: Engine) -> None:
    """A transaction that can only be rolled back does not keep the lock."""
    with engine.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="rollback_only") as session:
            write(session)
            savepoint = connection.begin_nested()
            # As a deadlock does, which ends the transaction on the server.
            connection.exec_driver_sql("ROLLBACK")
            with pytest.raises(DBAPIError):
                savepoint.commit()
            outer.rollback()
        assert others_may_write(engine)


def test_a_lost_connection(engine: Engine) -> None:
    """A rollback of what is lost already says nothing of locks."""
    with Session(engine) as session:
        write(session)
        connection = session.connection()
        number = session.scalar(text("SELECT connection_id()"))
        with engine.connect() as other:
            other.execute(text(f"KILL {number}"))
        with pytest.raises(DBAPIError):
            session.execute(select(Item))
        assert connection.invalidated
        session.rollback()
        write(session)
        session.commit()
        assert ["a"] == list(session.scalars(select(Item.code)))


def listeners(connection: Connection) -> int:
    return sum(
        len(list(getattr(connection.dispatch, name)))
        for name in ("commit", "rollback", "prepare_twophase")
    )


def test_a_long_lived_connection(engine: Engine) -> None:
    """Many transactions of one connection leave as much behind as one."""
    with engine.connect() as connection:
        counts = set()
        for n in range(3):
            with Session(connection) as session:
                write(session, f"c{n}")
                session.commit()
            counts.add(listeners(connection))
        assert 1 == len(counts)
        assert others_may_write(engine)
