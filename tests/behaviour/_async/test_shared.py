"""Sessions that blocks share: nothing is lost in silence, and no half is committed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from inspect import currentframe
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError

from tenure import (
    AsyncSession,
    Database,
    SessionError,
    async_session_manager,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Thing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    db = Database(async_url)
    await db.acreate_all(Base.metadata)
    async with db:
        yield db
        assert [] == pools.out
        assert [] == pools.dirty


async def names(db: Database) -> list[str]:
    """Give what is committed, read by a session that is nobody else's."""
    async with db.async_session() as session:
        return sorted(await session.scalars(select(Thing.name)))


def here() -> int:
    """Give the number of the line that calls."""
    frame = currentframe()
    assert frame is not None
    assert isinstance(frame.f_back, FrameType)
    return frame.f_back.f_lineno


class Boom(Exception):
    """What no library raises."""


async def add(session: AsyncSession, name: str) -> None:
    session.add(Thing(name=name))


async def flush(session: AsyncSession, name: str) -> None:
    session.add(Thing(name=name))
    await session.flush()


async def execute(session: AsyncSession, name: str) -> None:
    await session.execute(insert(Thing).values(name=name))


async def execute_text(session: AsyncSession, name: str) -> None:
    await session.execute(text("INSERT INTO thing (name) VALUES (:n)"), {"n": name})


async def load(session: AsyncSession, name: str) -> None:
    async with session.bulk() as bulk:
        bulk.add(Thing(name=name))
        await bulk.flush()


async def connect(session: AsyncSession, name: str) -> None:
    connection = await session.connection()
    await connection.execute(insert(Thing).values(name=name))


WRITES = [add, flush, execute, execute_text, load, connect]
writes = pytest.mark.parametrize("write", WRITES)


class TestCountsOnACommit:
    """A joined block with auto_commit=True, whose owner does not commit."""

    @writes
    async def test_named(self, db: Database, write: Any) -> None:
        """The owner raises, and names both blocks by line."""
        ran = []
        with pytest.raises(SessionError, match="ended without a commit") as caught:
            async with async_session_manager() as outer:
                owner = here() - 1
                outer.on_rollback(lambda: ran.append("rollback"))
                outer.on_commit(lambda: ran.append("commit"))
                async with async_session_manager(auto_commit=True) as inner:
                    joined = here() - 1
                    await write(inner, "lost")

        for line in (owner, joined):
            assert f"test_shared.py:{line} in " in str(caught.value)
        assert "auto_commit=True" in str(caught.value)
        assert ["rollback"] == ran
        assert [] == await names(db)

    async def test_decorated(self, db: Database) -> None:
        """The decorator counts on a commit as the block does."""
        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager() as session:

                @async_session_manager(auto_commit=True)
                async def keep() -> None:
                    await execute(session, "lost")

                await keep()

        assert [] == await names(db)

    @writes
    async def test_nested(self, db: Database, write: Any) -> None:
        """A block between them, which counts on nothing, changes nothing."""
        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager():
                async with async_session_manager():
                    async with async_session_manager(auto_commit=True) as inner:
                        await write(inner, "lost")

        assert [] == await names(db)

    @writes
    async def test_savepoint(self, db: Database, write: Any) -> None:
        """A savepoint that is released counts on a commit as well."""
        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager():
                async with async_session_manager(
                    savepoint=True, auto_commit=True
                ) as inner:
                    await write(inner, "lost")

        assert [] == await names(db)

    async def test_committed(self, db: Database) -> None:
        """An owner that commits, by its option or by hand, has nothing to say."""
        async with async_session_manager(auto_commit=True):
            async with async_session_manager(auto_commit=True) as inner:
                inner.add(Thing(name="a"))
        async with async_session_manager() as outer:
            async with async_session_manager(auto_commit=True) as inner:
                inner.add(Thing(name="b"))
            await outer.commit()

        assert ["a", "b"] == await names(db)

    async def test_committed_too_early(self, db: Database) -> None:
        """A commit is for what was written before it."""
        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager() as outer:
                async with async_session_manager(auto_commit=True) as inner:
                    inner.add(Thing(name="a"))
                await outer.commit()
                async with async_session_manager(auto_commit=True) as inner:
                    inner.add(Thing(name="lost"))

        assert ["a"] == await names(db)

    async def test_rolled_back_on_purpose(self, db: Database) -> None:
        """An explicit rollback or close discards in silence."""
        async with async_session_manager() as outer:
            async with async_session_manager(auto_commit=True) as inner:
                inner.add(Thing(name="a"))
            await outer.rollback()
        async with async_session_manager() as outer:
            async with async_session_manager(auto_commit=True) as inner:
                inner.add(Thing(name="b"))
            await outer.close()

        assert [] == await names(db)

    async def test_error(self, db: Database) -> None:
        """An error of the owner stays the error that is raised."""
        with pytest.raises(Boom):
            async with async_session_manager():
                async with async_session_manager(auto_commit=True) as inner:
                    inner.add(Thing(name="a"))
                raise Boom

        assert [] == await names(db)

    async def test_undone_by_a_savepoint(self, db: Database) -> None:
        """What a savepoint around it has undone is not lost in silence."""
        async with async_session_manager():
            with pytest.raises(Boom):
                async with async_session_manager(savepoint=True):
                    async with async_session_manager(auto_commit=True) as inner:
                        await flush(inner, "a")
                    raise Boom

        assert [] == await names(db)

    async def test_kept_by_a_savepoint(self, db: Database) -> None:
        """A savepoint around it that is released keeps the debt."""
        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager():
                async with async_session_manager(savepoint=True):
                    async with async_session_manager(auto_commit=True) as inner:
                        await flush(inner, "a")

        assert [] == await names(db)

    async def test_only_read(self, db: Database) -> None:
        """A block that only read has nothing to lose."""
        async with async_session_manager():
            async with async_session_manager(auto_commit=True) as inner:
                await inner.scalars(select(Thing.name))
                await inner.execute(text("WITH n(x) AS (SELECT 1) SELECT x FROM n"))

    async def test_owner_has_written(self, db: Database) -> None:
        """What the owner itself wrote and gives up is its own affair."""
        async with async_session_manager() as outer:
            outer.add(Thing(name="a"))
            async with async_session_manager(auto_commit=True) as inner:
                await inner.scalars(select(Thing.name))

        assert [] == await names(db)

    async def test_new(self, db: Database) -> None:
        """A block with a session of its own commits."""
        async with async_session_manager():
            async with async_session_manager(new=True, auto_commit=True) as inner:
                inner.add(Thing(name="a"))

        assert ["a"] == await names(db)

    async def test_paused_generator(self, db: Database) -> None:
        """A generator that holds the owner does not swallow its caller's commits."""

        async def numbers() -> AsyncIterator[int]:
            async with async_session_manager():
                yield 1
                yield 2

        generator: Any = numbers()
        async for _ in generator:
            async with async_session_manager(auto_commit=True) as inner:
                await execute(inner, "lost")
            break
        with pytest.raises(SessionError, match="ended without a commit"):
            await generator.aclose()

        assert [] == await names(db)

    async def test_exhausted_generator(self, db: Database) -> None:
        """Nor does one that ends by itself."""

        async def numbers() -> AsyncIterator[int]:
            async with async_session_manager():
                yield 1

        with pytest.raises(SessionError, match="ended without a commit"):
            async for _ in numbers():
                async with async_session_manager(auto_commit=True) as inner:
                    await execute(inner, "lost")

        assert [] == await names(db)

    async def test_closed_generator_inside(self, db: Database) -> None:
        """A joined block in a generator that nobody asks for more has succeeded."""

        async def save() -> AsyncIterator[int]:
            async with async_session_manager(auto_commit=True) as inner:
                await execute(inner, "lost")
                yield 1

        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager():
                generator: Any = save()
                await anext(generator)
                await generator.aclose()

        assert [] == await names(db)


class TestDropsWhatOthersWrote:
    """A joined block that ends the transaction of its owner."""

    @pytest.mark.parametrize("way", ["rollback", "close", "reset", "invalidate"])
    @writes
    async def test_refused(self, db: Database, way: str, write: Any) -> None:
        """It is refused and names the owner; what was written is still there."""
        async with async_session_manager(auto_commit=True) as outer:
            owner = here() - 1
            await write(outer, "kept")
            async with async_session_manager() as inner:
                with pytest.raises(
                    SessionError, match=rf"{way}\(\).*would drop"
                ) as got:
                    await getattr(inner, way)()
            assert f"test_shared.py:{owner} in " in str(got.value)
            assert "savepoint=True" in str(got.value)

        assert ["kept"] == await names(db)

    async def test_of_a_sibling(self, db: Database) -> None:
        async with async_session_manager(auto_commit=True):
            async with async_session_manager() as first:
                await execute(first, "kept")
            async with async_session_manager() as second:
                with pytest.raises(SessionError, match="would drop"):
                    await second.rollback()

        assert ["kept"] == await names(db)

    async def test_in_a_savepoint(self, db: Database) -> None:
        """rollback() ends all, also in a block with a savepoint."""
        async with async_session_manager(auto_commit=True) as outer:
            await execute(outer, "kept")
            async with async_session_manager(savepoint=True) as inner:
                with pytest.raises(SessionError, match="would drop"):
                    await inner.rollback()

        assert ["kept"] == await names(db)

    async def test_its_own(self, db: Database) -> None:
        """What only the block has written it may drop."""
        async with async_session_manager(auto_commit=True) as outer:
            await outer.scalars(select(Thing.name))
            async with async_session_manager() as inner:
                await execute(inner, "dropped")
                await inner.rollback()
            outer.add(Thing(name="kept"))

        assert ["kept"] == await names(db)

    async def test_committed_before(self, db: Database) -> None:
        async with async_session_manager(auto_commit=True) as outer:
            await execute(outer, "kept")
            await outer.commit()
            async with async_session_manager() as inner:
                await execute(inner, "dropped")
                await inner.rollback()

        assert ["kept"] == await names(db)

    async def test_undone_before(self, db: Database) -> None:
        """What a savepoint had undone is not there to be dropped."""
        async with async_session_manager(auto_commit=True) as outer:
            with pytest.raises(Boom):
                async with outer.begin_nested():
                    await execute(outer, "undone")
                    raise Boom
            async with async_session_manager() as inner:
                await inner.rollback()

        assert [] == await names(db)

    async def test_failed_flush(self, db: Database) -> None:
        """After a failed flush nothing is left, and that is not hidden either."""
        async with db.async_session() as session:
            await flush(session, "taken")
            await session.commit()
        with pytest.raises(SessionError, match="would drop"):
            async with async_session_manager(auto_commit=True) as outer:
                await execute(outer, "lost")
                async with async_session_manager() as inner:
                    inner.add(Thing(name="taken"))
                    with pytest.raises(IntegrityError):
                        await inner.flush()
                    await inner.rollback()

        assert ["taken"] == await names(db)

    async def test_by_the_owner(self, db: Database) -> None:
        async with async_session_manager(auto_commit=True) as outer:
            await execute(outer, "dropped")
            async with async_session_manager() as inner:
                await execute(inner, "dropped as well")
            await outer.rollback()

        assert [] == await names(db)


class TestSwallowedInASavepoint:
    """A block with a savepoint that swallows the error of a flush."""

    @pytest.fixture
    async def db(self, db: Database) -> Database:
        async with db.async_session() as session:
            await flush(session, "taken")
            await session.commit()
        return db

    async def test_lost(self, db: Database) -> None:
        """What it wrote before is undone, and it does not succeed."""
        async with async_session_manager(auto_commit=True) as outer:
            await execute(outer, "kept")
            with pytest.raises(
                SessionError, match="all that the block wrote"
            ) as caught:
                async with async_session_manager(savepoint=True) as inner:
                    await execute(inner, "lost")
                    inner.add(Thing(name="taken"))
                    with pytest.raises(IntegrityError):
                        await inner.flush()
            assert isinstance(caught.value.__cause__, IntegrityError)

        assert ["kept", "taken"] == await names(db)

    async def test_nothing_lost(self, db: Database) -> None:
        """A flush that fails, and nothing else, is what savepoints are for."""
        async with async_session_manager(auto_commit=True) as outer:
            await execute(outer, "kept")
            async with async_session_manager(savepoint=True) as inner:
                inner.add(Thing(name="taken"))
                with pytest.raises(IntegrityError):
                    await inner.flush()

        assert ["kept", "taken"] == await names(db)


async def read_in_with(session: AsyncSession) -> None:
    await session.execute(text("WITH a AS (SELECT 1 AS x) SELECT x FROM a"))


async def explain(session: AsyncSession) -> None:
    await session.execute(text("EXPLAIN SELECT name FROM thing"))


async def undone_by_a_block(session: AsyncSession) -> None:
    with pytest.raises(Boom):
        async with async_session_manager(savepoint=True) as inner:
            await execute(inner, "undone")
            raise Boom


async def undone_by_hand(session: AsyncSession) -> None:
    savepoint = await session.begin_nested()
    await execute(session, "undone")
    await savepoint.rollback()


READS = [read_in_with, explain, undone_by_a_block, undone_by_hand]
reads = pytest.mark.parametrize("read", READS)


class TestNotHalfDone:
    """A joined block that failed, and has left nothing."""

    @reads
    async def test_kept(self, db: Database, read: Any) -> None:
        async with async_session_manager(auto_commit=True) as outer:
            await execute(outer, "kept")
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    await read(inner)
                    raise Boom
            await execute(outer, "kept as well")

        assert ["kept", "kept as well"] == await names(db)

    @reads
    async def test_first(self, db: Database, read: Any) -> None:
        """It is the first to use the session."""
        async with async_session_manager(auto_commit=True) as outer:
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    await read(inner)
                    raise Boom
            await execute(outer, "kept")

        assert ["kept"] == await names(db)

    @reads
    async def test_owes_nothing(self, db: Database, read: Any) -> None:
        """It has succeeded, and counts on no commit."""
        async with async_session_manager() as outer:
            await execute(outer, "given up by the owner")
            async with async_session_manager(auto_commit=True) as inner:
                await read(inner)

        assert [] == await names(db)


# A function that only reads and one that writes, of which no text says so.
FUNCTIONS = {
    "postgresql": """
        CREATE OR REPLACE FUNCTION tenure_looks() RETURNS bigint LANGUAGE sql
            AS 'SELECT count(*) FROM thing';
        CREATE OR REPLACE FUNCTION tenure_adds() RETURNS bigint LANGUAGE sql
            AS 'INSERT INTO thing (name) VALUES (''half'') RETURNING id'
    """,
    "mysql": """
        DROP FUNCTION IF EXISTS tenure_looks;
        DROP FUNCTION IF EXISTS tenure_adds;
        CREATE FUNCTION tenure_looks() RETURNS INT READS SQL DATA
            RETURN (SELECT count(*) FROM thing);
        CREATE FUNCTION tenure_adds() RETURNS INT MODIFIES SQL DATA
            BEGIN INSERT INTO thing (name) VALUES ('half'); RETURN 1; END
    """,
    "sqlite": "SELECT 1",
}


class TestMayHaveWritten:
    """A joined block has called what nobody knows; the database is asked."""

    @pytest.fixture
    async def backend(self, db: Database) -> str:
        name = db.manager.urls["default"].get_backend_name()
        backend = "mysql" if name == "mariadb" else name
        async with db.async_session_manager(auto_commit=True) as session:
            for statement in FUNCTIONS[backend].split(";\n"):
                await session.execute(text(statement))
        return backend

    @pytest.fixture
    def looks(self, backend: str) -> Any:
        """Give a statement that only reads."""
        sqlite = backend == "sqlite"
        return text("PRAGMA user_version" if sqlite else "SELECT tenure_looks()")

    @pytest.fixture
    def adds(self, backend: str) -> Any:
        if backend == "sqlite":
            pytest.skip("SQLite has no functions that write")
        return text("SELECT tenure_adds()")

    @pytest.mark.parametrize("is_first", [True, False])
    async def test_looked(self, db: Database, looks: Any, *, is_first: bool) -> None:
        async with async_session_manager(auto_commit=True) as outer:
            if not is_first:
                await execute(outer, "kept")
            with pytest.raises(Boom):
                async with async_session_manager() as inner:
                    await inner.execute(looks)
                    raise Boom
            await execute(outer, "kept as well")

        assert ["kept", "kept as well"][is_first:] == await names(db)

    @pytest.mark.parametrize("is_first", [True, False])
    async def test_added(self, db: Database, adds: Any, *, is_first: bool) -> None:
        with pytest.raises(SessionError, match="half done"):
            async with async_session_manager(auto_commit=True) as outer:
                if not is_first:
                    await execute(outer, "lost")
                with pytest.raises(Boom):
                    async with async_session_manager() as inner:
                        await inner.execute(adds)
                        raise Boom
                await execute(outer, "lost as well")

        assert [] == await names(db)

    @pytest.mark.parametrize("is_first", [True, False])
    async def test_owes(self, db: Database, adds: Any, *, is_first: bool) -> None:
        with pytest.raises(SessionError, match="ended without a commit"):
            async with async_session_manager() as outer:
                if not is_first:
                    await execute(outer, "given up by the owner")
                async with async_session_manager(auto_commit=True) as inner:
                    await inner.execute(adds)

        assert [] == await names(db)

    @pytest.mark.parametrize("is_first", [True, False])
    async def test_owes_nothing(
        self, db: Database, looks: Any, *, is_first: bool
    ) -> None:
        async with async_session_manager() as outer:
            if not is_first:
                await execute(outer, "given up by the owner")
            async with async_session_manager(auto_commit=True) as inner:
                await inner.execute(looks)

        assert [] == await names(db)

    async def test_asked_only_then(
        self, db: Database, backend: str, looks: Any
    ) -> None:
        """Nobody is asked for a block that succeeds and counts on nothing."""
        async with async_session_manager() as outer:
            with count_statements(db.manager.async_engines["default"]) as counted:
                async with async_session_manager() as inner:
                    await inner.execute(looks)
                    await inner.execute(looks)
                await outer.scalars(select(Thing.name))

        # MariaDB counts for a connection, not for its transaction: asked before as well.
        assert 3 + (backend == "mysql") == counted.count
