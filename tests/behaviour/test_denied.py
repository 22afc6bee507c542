"""Tables that may not be read."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import create_engine, event, make_url, select, text

from tenure import Database, Ref, ResolutionError
from tests.fixtures.models import Author, Base, Country

pytestmark = pytest.mark.every_database

READABLE = [name for name in Base.metadata.tables if name != "country"]


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    """Give a database in which ``country`` may not be read."""
    name = f"tenure_{uuid.uuid4().hex[:12]}"
    owner = create_engine(url)
    Base.metadata.create_all(owner)
    with owner.begin() as connection:
        run = connection.exec_driver_sql
        run("INSERT INTO author (code) VALUES ('a')")
        if owner.dialect.name == "postgresql":
            run(f"CREATE ROLE {name} LOGIN")
            run(f"GRANT SELECT ON {', '.join(READABLE[:-1])} TO {name}")
        elif owner.dialect.name == "mysql":
            run(f"CREATE USER {name}")
            for table in READABLE:
                run(f"GRANT SELECT ON `{table}` TO {name}")
    given = make_url(url)
    if owner.dialect.name != "sqlite":
        given = given.set(username=name, password=None)
    with Database(given) as db:
        if owner.dialect.name == "sqlite":
            event.listen(db.manager.engines["default"], "connect", _refuse)
        yield db
    with owner.begin() as connection:
        if owner.dialect.name == "postgresql":
            connection.exec_driver_sql(f"DROP OWNED BY {name}")
            connection.exec_driver_sql(f"DROP ROLE {name}")
        elif owner.dialect.name == "mysql":
            connection.exec_driver_sql(f"DROP USER {name}")
    owner.dispose()


def _refuse(connection: Any, _: object) -> None:
    def decide(action: int, table: str | None, *_: object) -> int:
        reads = action == sqlite3.SQLITE_READ and table == "country"
        return sqlite3.SQLITE_DENY if reads else sqlite3.SQLITE_OK

    connection.set_authorizer(decide)


def test_denied(db: Database) -> None:
    """Every reference to that entity fails, the others are found all the same."""
    with db.session() as session, session.bulk() as bulk:
        author = TypeAdapter(Ref[Author]).validate_python("a")
        countries = TypeAdapter(list[Ref[Country]]).validate_python(["fr", "de", 1])
        with pytest.raises(ResolutionError, match=r"is denied: .*country") as caught:
            bulk.resolve()
        session.rollback()
        resolution = bulk.resolve(raise_errors=False)

        assert ["denied"] * 3 == [failure.reason for failure in caught.value.failures]
        assert {Country} == {failure.entity for failure in resolution.failures}
        assert (1, 3) == (resolution.resolved, resolution.unresolved)
        assert len(countries) == len(resolution.failures)
        assert author.id == session.scalar(select(Author.id))


def test_in_a_transaction(db: Database) -> None:
    """Where an error ends a transaction, what could not be asked for says so."""
    with db.session() as session, session.bulk() as bulk:
        session.execute(text("SELECT 1"))
        held = TypeAdapter(list[Ref[Country]]).validate_python(["fr"])
        author = TypeAdapter(Ref[Author]).validate_python("a")
        resolution = bulk.resolve(raise_errors=False)
        ends = session.get_bind().dialect.name == "postgresql"
        failed = {failure.entity: failure for failure in resolution.failures}

        assert len(held) + ends == len(failed)
        assert "denied" == failed[Country].reason
        if ends:
            assert "the transaction was ended" in str(failed[Author])
            session.rollback()
            assert 1 == bulk.resolve(raise_errors=False).resolved
        assert isinstance(author.id, int)
