"""Sessions and their factories: which engine, which session, what a commit does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from itertools import groupby
from typing import Any

import pytest
from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session as SyncSession
from sqlalchemy.sql.expression import union_all

from tenure import (
    SESSION_CONTEXT,
    AsyncSession,
    Database,
    DatabaseManager,
    RoutingError,
    SessionError,
    async_scoped_session,
    async_session_factory,
    async_session_manager,
    context_scope,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.pools import Pools
from tests.fixtures.things import Base, Part, Thing

pytestmark = pytest.mark.anyio


class Recorder:
    """A router that keeps what it was asked, and answers by role."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.hints: list[dict[str, Any]] = []

    @property
    def roles(self) -> list[str]:
        return [role for role, _ in self.asked]

    def get_read_engine(self, resource: Any, **hints: Any) -> str:
        self.asked.append(("read", resource))
        self.hints.append(hints)
        return "copy"

    def get_write_engine(self, resource: Any, **hints: Any) -> str:
        self.asked.append(("write", resource))
        self.hints.append(hints)
        return "default"


@pytest.fixture(autouse=True)
async def nothing_left(pools: Pools) -> AsyncIterator[None]:
    """Whatever a test does, connections are back and clean."""
    yield
    assert [] == pools.out
    assert [] == pools.dirty
    assert SESSION_CONTEXT.get() is None


@pytest.fixture
def router() -> Recorder:
    return Recorder()


@pytest.fixture
async def db(
    async_url: str, router: Recorder, nothing_left: None
) -> AsyncIterator[Database]:
    """Give a database under two names, for reading and for writing."""
    db = Database({"default": async_url, "copy": async_url}, routers=[router])
    await db.acreate_all(Base.metadata)
    yield db
    await db.adispose()


class TestSession:
    async def test_arguments(self, db: Database) -> None:
        """The manager comes second; everything else is SQLAlchemy's."""
        async with AsyncSession(None, db.manager, autoflush=False) as session:
            assert db.manager is session.routing
            assert session.autoflush is False

    async def test_faces(self, db: Database) -> None:
        """The sync session knows whether it serves an async one, and which."""
        async with db.async_session() as session:
            core: Any = getattr(session, "sync_session", session)

            assert (core is not session) is core.async_mode
            assert (session if core.async_mode else None) is core.proxy

    async def test_without_anything(self) -> None:
        """Without bind and manager it is SQLAlchemy's error."""
        async with AsyncSession() as session:
            with pytest.raises(UnboundExecutionError):
                await session.scalars(select(Thing))

    @pytest.mark.parametrize("expire", [None, False, True])
    @pytest.mark.parametrize("default", [False, True])
    async def test_expire(
        self, db: Database, expire: bool | None, default: bool
    ) -> None:
        """A commit may override expire_on_commit, for itself only."""
        factory = async_session_factory(routing=db.manager, expire_on_commit=default)
        async with factory() as session:
            one = Thing(name="one")
            session.add(one)
            await session.commit(expire=expire)
            assert (default if expire is None else expire) is ("name" not in vars(one))

            two = Thing(name="two")
            session.add(two)
            await session.commit()
            assert default is ("name" not in vars(two))

    async def test_expire_after_an_error(self, db: Database) -> None:
        """A commit that fails leaves the option as it was."""
        async with db.async_session() as session:
            core: Any = getattr(session, "sync_session", session)
            before = core.expire_on_commit
            session.add(Part(thing_id=999))
            with pytest.raises(Exception, match=r"(?i)foreign key"):
                await session.commit(expire=not before)

            assert before is core.expire_on_commit


STATEMENTS: dict[str, tuple[Any, str]] = {
    "select": (select(Thing), "read"),
    "table": (select(Thing.__table__), "read"),
    "text": (text("SELECT name FROM thing"), "read"),
    "text, typed": (text("SELECT name FROM thing").columns(Thing.name), "read"),
    "entities of text": (
        select(Thing).from_statement(text("SELECT * FROM thing")),
        "read",
    ),
    "union": (union_all(select(Thing.id), select(Part.id)), "read"),
    "insert": (insert(Thing).values(name="a"), "write"),
    "update": (update(Thing).values(note="a"), "write"),
    "delete": (delete(Thing), "write"),
    "other text": (text("DELETE FROM thing"), "write"),
    "for update": (select(Thing).with_for_update(), "write"),
}


class TestRouting:
    @pytest.mark.parametrize("kind", STATEMENTS)
    async def test_role(self, db: Database, router: Recorder, kind: str) -> None:
        """A statement that writes or locks is for the write engine, others to read."""
        statement, role = STATEMENTS[kind]
        async with db.async_session() as session:
            await session.execute(statement)

        assert [role] == router.roles

    async def test_flush(self, db: Database, router: Recorder) -> None:
        """A flush is for the write engine."""
        async with db.async_session() as session:
            session.add(Thing(name="a"))
            await session.flush()

        assert {("write", Thing)} == set(router.asked)

    async def test_reads_what_it_wrote(self, db: Database, router: Recorder) -> None:
        """Once it has written, a transaction reads where it has written."""
        async with db.async_session() as session:
            await session.scalars(select(Thing))
            session.add(Thing(name="a"))
            thing = (await session.scalars(select(Thing))).one()
            await session.refresh(thing)
            await session.rollback()
            await session.scalars(select(Thing))

        assert ["read", "write", "read"] == [role for role, _ in groupby(router.roles)]

    async def test_hints(self, db: Database, router: Recorder) -> None:
        """A router gets the mapped class, the session, the statement, and where it is."""
        statement = select(Thing)
        async with db.async_session() as session:
            await session.execute(statement)
            await session.execute(text("SELECT 1"))

        (_, first), (_, second) = router.asked
        assert (Thing, None) == (first, second)
        assert session is router.hints[0]["session"]
        assert statement is router.hints[0]["statement"]
        assert [False, True] == [hints["in_transaction"] for hints in router.hints]

    async def test_bind_argument(self, db: Database, router: Recorder) -> None:
        """A bind given with the statement comes before all."""
        engine = db.manager.async_engines["copy"]
        bind = getattr(engine, "sync_engine", engine)
        async with db.async_session() as session:
            with count_statements(engine) as counted:
                await session.execute(
                    insert(Thing).values(name="a"), bind_arguments={"bind": bind}
                )

        assert 1 == counted.count
        assert [] == router.asked

    async def test_binds(self, db: Database, router: Recorder) -> None:
        """What *binds* names comes before the routers, which get the rest."""
        engine = db.manager.async_engines["default"]
        factory = async_session_factory(routing=db.manager, binds={Thing: engine})
        async with factory() as session:
            with count_statements(engine) as counted:
                await session.scalars(select(Thing))
                await session.scalars(select(Part))

        assert 1 == counted.count
        assert [("read", Part)] == router.asked

    async def test_bind(self, db: Database, router: Recorder) -> None:
        """The session's own bind comes before the routers."""
        engine = db.manager.async_engines["copy"]
        async with async_session_factory(engine, db.manager)() as session:
            with count_statements(engine) as counted:
                await session.execute(insert(Thing).values(name="a"))

        assert 1 == counted.count
        assert [] == router.asked

    async def test_unknown_alias(self, async_url: str) -> None:
        """A router that names no database is named, and so are the known ones."""

        class Lost:
            def get_engine(self, resource: Any) -> str:
                return "nowhere"

        async with Database(async_url, routers=[Lost()]) as db:
            async with db.async_session() as session:
                with pytest.raises(RoutingError) as caught:
                    await session.scalars(select(Thing))

        assert (
            "no database 'nowhere' (from router TestRouting.test_unknown_alias."
            "<locals>.Lost); known: 'default'"
        ) == str(caught.value)

    async def test_failing_router(self, async_url: str) -> None:
        """A router that raises is named, with its error as the cause."""

        class Broken:
            def db_for_read(self, model: Any, **hints: Any) -> str:
                raise ZeroDivisionError("oh")

        async with Database(async_url, routers=[Broken()]) as db:
            async with db.async_session() as session:
                with pytest.raises(RoutingError, match=r"Broken.*db_for_read.*oh") as e:
                    await session.scalars(select(Thing))

        assert isinstance(e.value.__cause__, ZeroDivisionError)

    async def test_no_default(self, async_url: str) -> None:
        """Where no router answers, there has to be a database 'default'."""
        async with Database({"main": async_url}) as db:
            async with db.async_session() as session:
                with pytest.raises(RoutingError, match="no database 'default'"):
                    await session.scalars(select(Thing))


class TestTransactions:
    """What SQLite's driver would leave out of a transaction is part of it."""

    @pytest.mark.parametrize(
        "statement",
        [
            "WITH one (name) AS (SELECT 'b') INSERT INTO thing (name) SELECT * FROM one",
            "CREATE TABLE other (id INTEGER)",
            "SAVEPOINT mine",
        ],
    )
    async def test_rolled_back(self, db: Database, statement: str) -> None:
        """Whatever a transaction does first, a rollback undoes all of it."""
        async with db.async_session() as session:
            await session.execute(text(statement))
            if "SAVEPOINT" in statement:
                await session.execute(text("INSERT INTO thing (name) VALUES ('a')"))
                await session.execute(text("RELEASE SAVEPOINT mine"))
            await session.rollback()

            assert [] == list(await session.scalars(select(Thing)))
            if "CREATE" in statement:
                await session.execute(text(statement))

    async def test_engine_of_the_users_own(self, db: Database, async_url: str) -> None:
        """A released savepoint is undone with the rest, on any engine."""
        engine = create_async_engine(async_url)
        async with AsyncSession(engine) as session:
            async with session.begin_nested():
                session.add(Thing(name="a"))
            await session.rollback()
            assert [] == list(await session.scalars(select(Thing)))
        await engine.dispose()


class TestFactories:
    async def test_keywords(self, db: Database) -> None:
        """Every keyword of SQLAlchemy's is passed on, the class included."""

        class Own(AsyncSession):
            pass

        factory = async_session_factory(
            routing=db.manager, class_=Own, autoflush=False, info={"a": 1}
        )
        async with factory() as session:
            assert isinstance(session, Own)
            assert {"a": 1} == session.info
            assert session.autoflush is False
            assert db.manager is session.routing

    async def test_positional(self) -> None:
        """What else is positional is refused, as SQLAlchemy does."""
        with pytest.raises(TypeError, match="takes keywords"):
            async_session_factory(None, None, False, None, True)  # type: ignore[call-overload]  # on purpose

    async def test_bind(self, db: Database) -> None:
        """Without a manager a bind is all it takes."""
        factory = async_session_factory(db.manager.async_engines["default"])
        async with async_session_manager(using=factory) as session:
            assert [] == list(await session.scalars(select(Thing)))
            assert session.routing is None

    async def test_scoped(self, db: Database) -> None:
        """A scoped factory has SQLAlchemy's methods, and bulk and routing."""
        factory = async_session_factory(routing=db.manager, scoped=True)
        assert isinstance(factory, async_scoped_session)
        assert factory() is factory()
        assert db.manager is factory.routing
        assert factory() is factory.bulk().session

        factory.add(Thing(name="a"))
        await factory.commit()
        assert ["a"] == list(await factory.scalars(select(Thing.name)))
        await factory.remove()
        assert not factory.registry.has()

    async def test_scope_with_a_scoped_factory(self, db: Database) -> None:
        """A block's session is the registry's, and leaves it with the block."""
        factory = async_session_factory(routing=db.manager, scoped=True)
        async with async_session_manager(using=factory, auto_commit=True) as session:
            assert session is factory()
            factory.add(Thing(name="a"))

        assert not factory.registry.has()
        assert ["a"] == list(await factory.scalars(select(Thing.name)))
        await factory.remove()

    async def test_scoped_in_use(self, db: Database) -> None:
        """A session that was in the registry before stays there, unharmed."""
        factory = async_session_factory(routing=db.manager, scoped=True)
        mine = factory()
        mine.add(Thing(name="a"))
        async with async_session_manager(using=factory) as session:
            assert mine is not session

        assert mine is factory()
        assert 1 == len(mine.new)
        await factory.remove()

    async def test_registry_after_an_error(self, db: Database) -> None:
        """Also a block that fails leaves nothing in the registry."""
        factory = async_session_factory(routing=db.manager, scoped=True)
        with pytest.raises(ZeroDivisionError):
            async with async_session_manager(using=factory):
                raise ZeroDivisionError

        assert not factory.registry.has()


class TestContextScope:
    """One session for each scope: scopefunc=context_scope."""

    @pytest.fixture
    def scoped(self, db: Database) -> async_scoped_session[AsyncSession]:
        factory = async_session_factory(
            routing=db.manager, scoped=True, scopefunc=context_scope
        )
        assert isinstance(factory, async_scoped_session)
        return factory

    async def test_block_of_the_factory(
        self, scoped: async_scoped_session[AsyncSession]
    ) -> None:
        """A block made of the registry has the registry's session, nested ones too."""
        async with async_session_manager(using=scoped) as outer:
            assert outer is scoped()
            async with async_session_manager(using=scoped, new=True) as inner:
                assert inner is scoped()
                assert inner is not outer
            assert outer is scoped()

        assert 0 == len(scoped.registry.registry)

    async def test_other_block(
        self, db: Database, scoped: async_scoped_session[AsyncSession]
    ) -> None:
        """In another's block it has a session of its own, which ends with the block."""
        async with db.async_session_manager() as current:
            mine = scoped()
            assert mine is scoped()
            assert mine is not current
            mine.add(Thing(name="a"))
            await mine.flush()
            async with db.async_session_manager():
                assert mine is scoped()

        assert not mine.in_transaction()
        assert 0 == len(scoped.registry.registry)
        async with db.async_session_manager():
            assert mine is not scoped()

    async def test_outside(self, scoped: async_scoped_session[AsyncSession]) -> None:
        """Outside of blocks it has one for the context."""
        assert scoped() is scoped()
        await scoped.scalars(select(Thing))
        await scoped.remove()

        assert 0 == len(scoped.registry.registry)

    async def test_joined_block(
        self, scoped: async_scoped_session[AsyncSession]
    ) -> None:
        """A block that has joined is part of the scope it has joined."""
        async with async_session_manager(using=scoped) as outer:
            async with async_session_manager():
                assert outer is scoped()

    async def test_cannot_be_closed(
        self, db: Database, scoped: async_scoped_session[AsyncSession]
    ) -> None:
        """One that cannot be closed is raised, and the block has ended all the same."""

        class Broken(AsyncSession):
            async def close(self) -> None:
                raise LookupError("no")

        scoped.session_factory.class_ = Broken
        with pytest.raises(LookupError, match="no"):
            async with db.async_session_manager():
                scoped()

        assert SESSION_CONTEXT.get() is None


async def test_own_close(db: Database) -> None:
    """A block closes by the close() of its session's class, used or not."""
    closed = []

    class Own(AsyncSession):
        async def close(self) -> None:
            closed.append(self)
            await super().close()

    factory = async_session_factory(routing=db.manager, class_=Own)
    async with async_session_manager(using=factory):
        pass
    async with async_session_manager(using=factory) as session:
        await session.scalars(select(Thing))

    assert 2 == len(closed)


def plain_session(engine: Any) -> Any:
    """Give a session of the class that ours is derived from."""
    return AsyncSession.__mro__[1](engine)


@pytest.mark.parametrize("options", [{"role": "read"}, {"expire": False}])
async def test_options_of_ours(db: Database, options: Any) -> None:
    """What only our sessions know is refused for others, when the block is entered."""
    factory = partial(plain_session, db.manager.async_engines["default"])
    with pytest.raises(SessionError, match="needs a session of tenure, not"):
        async with async_session_manager(using=factory, **options):
            pass


async def test_events_of_the_session(db: Database) -> None:
    """Events of SQLAlchemy's sessions reach ours."""
    seen = []

    def committed(session: SyncSession) -> None:
        seen.append(session)

    event.listen(SyncSession, "after_commit", committed)
    async with db.async_session() as session:
        await session.scalars(select(Thing))
        await session.commit()
    event.remove(SyncSession, "after_commit", committed)

    assert [getattr(session, "sync_session", session)] == seen


async def test_manager_without_a_database() -> None:
    """A manager of nothing is no error before it is asked."""
    async with AsyncSession(routing=DatabaseManager({})) as session:
        with pytest.raises(RoutingError, match="known: none"):
            await session.scalars(select(Thing))
