"""Which engine: every rule, its place among the others, and what explain() says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, literal, select, text

from tenure import (
    AsyncSession,
    Database,
    RoutingError,
    SessionError,
    async_session_manager,
    using,
)
from tenure.errors import UnknownAliasError
from tests.fixtures.things import Base, Part, Thing

pytestmark = pytest.mark.anyio


class Router:
    """Answers with what it is told to."""

    def __init__(self) -> None:
        self.answers: dict[Any, str | None] = {}
        self.asked = 0

    def get_engine(self, resource: Any, **hints: Any) -> str | None:
        self.asked += 1
        return self.answers.get(hints["role"], self.answers.get(resource))


@pytest.fixture
def router() -> Router:
    return Router()


@pytest.fixture
async def db(async_url: str, router: Router) -> AsyncIterator[Database]:
    aliases = ("default", "a", "b", "c", "d", "e")
    async with Database(dict.fromkeys(aliases, async_url), routers=[router]) as db:
        await db.acreate_all(Base.metadata)
        yield db


def engine(db: Database, alias: str) -> Any:
    return db.manager.async_engines[alias]


def told(session: AsyncSession, *args: Any, **kwargs: Any) -> tuple[str | None, str]:
    choice = session.explain(*args, **kwargs)
    return choice.alias, choice.rule


STATEMENT = select(Thing)
CALL = {"execution_options": {"engine": "b"}}


class TestOrder:
    async def test_all(self, db: Database, router: Router) -> None:
        """Each rule comes before those that follow it."""
        router.answers[Thing] = "e"
        named = STATEMENT.execution_options(engine="c")
        bind = engine(db, "a")
        arguments = {"bind": getattr(bind, "sync_engine", bind)}
        bound = engine(db, "d")
        plain = db.async_session()
        own = db.async_session(binds={Thing: bound})
        with db.using("default"):
            assert ("a", "bind_arguments") == told(
                own, named, bind_arguments=arguments, **CALL
            )
            assert ("b", "execution option") == told(own, named, **CALL)
            assert ("c", "execution option") == told(own, named)
            assert ("default", "using()") == told(own, STATEMENT)
        assert ("d", "binds") == told(own, STATEMENT)
        assert ("d", "bind") == told(db.async_session(bind=bound), STATEMENT)
        assert ("e", "router") == told(plain, STATEMENT)
        assert ("default", "default") == told(plain, Part)

    async def test_as_executed(self, db: Database, router: Router) -> None:
        """What explain() says is where the statement goes."""
        router.answers[Thing] = "e"
        for options in ({}, CALL):
            async with db.async_session() as session:
                said = session.explain(STATEMENT, **options)
                await session.execute(STATEMENT, **options)
                used = db.report()[0].engines

                assert (said.alias,) == used

    async def test_get(self, db: Database) -> None:
        """get() and its like take the option as well."""
        async with db.async_session() as session:
            await session.get(Thing, 1, **CALL)
            assert ("b",) == db.report()[0].engines


class TestPinned:
    async def test_same_engine(self, db: Database, router: Router) -> None:
        """A router that changes its mind does not move a transaction."""
        router.answers[Thing] = "a"
        async with db.async_session() as session:
            await session.scalars(STATEMENT)
            router.answers[Thing] = "b"
            assert ("a", "pinned") == told(session, STATEMENT)
            await session.scalars(STATEMENT)
            assert ("a",) == db.report()[0].engines
            await session.rollback()
            assert ("b", "router") == told(session, STATEMENT)

    async def test_after_a_write(self, db: Database, router: Router) -> None:
        """Once it has written, a transaction reads where it writes."""
        router.answers |= {"read": "a", "write": "default"}
        async with db.async_session() as session:
            assert "a" == told(session, STATEMENT)[0]
            await session.execute(insert(Thing).values(name="a"))
            assert "default" == told(session, STATEMENT)[0]
            await session.rollback()
            assert "a" == told(session, STATEMENT)[0]

    @pytest.mark.parametrize(
        "statement",
        [
            text("CREATE TABLE IF NOT EXISTS other (id INTEGER)"),
            select(func.anything_at_all()),
            text("SELECT anything_at_all(1)"),
            delete(Thing),
            select(Thing).with_for_update(),
        ],
        ids=str,
    )
    async def test_what_may_write(
        self, db: Database, router: Router, statement: Any
    ) -> None:
        """What is not known to read goes where writing goes."""
        router.answers |= {"read": "a", "write": "b"}
        async with db.async_session() as session:
            assert "b" == told(session, statement)[0]

    async def test_connection(self, db: Database, router: Router) -> None:
        """A bare connection may write."""
        router.answers |= {"read": "a", "write": "default"}
        async with db.async_session() as session:
            await session.connection()
            assert ("default",) == db.report()[0].engines

    async def test_write_block(self, db: Database, router: Router) -> None:
        """In a block that writes, reading goes where writing goes from the start."""
        router.answers |= {"read": "a", "write": "default"}
        async with async_session_manager(role="write") as session:
            assert "default" == told(session, STATEMENT)[0]
        async with async_session_manager(role="read") as session:
            assert "a" == told(session, STATEMENT)[0]

    async def test_nothing_is_remembered(self, db: Database, router: Router) -> None:
        """Asking changes nothing."""
        router.answers |= {"read": "a", "write": "default"}
        async with db.async_session() as session:
            told(session, delete(Thing))
            assert "a" == told(session, STATEMENT)[0]
            assert not session.in_transaction()

    async def test_joined_write_block(self, db: Database, router: Router) -> None:
        """A block that writes takes what it has joined along."""
        router.answers |= {"read": "a", "write": "default"}
        async with async_session_manager() as session:
            await session.scalars(STATEMENT)
            async with async_session_manager(role="write"):
                assert "default" == told(session, STATEMENT)[0]
                session.add(Thing(name="a"))
                await session.flush()
                assert {"a", "default"} == {*db.report()[0].engines}

    async def test_asking(self, db: Database, router: Router) -> None:
        """Asking get_bind() is no writing."""
        router.answers |= {"read": "a", "write": "default"}
        async with db.async_session() as session:
            core = getattr(session, "sync_session", session)
            core.get_bind(clause=delete(Thing))
            assert "a" == told(session, STATEMENT)[0]


class TestUsing:
    async def test_nested(self, db: Database) -> None:
        """The innermost block counts, and what was before is back afterwards."""
        session = db.async_session()
        with using("a"):
            with using("b"):
                assert "b" == told(session, STATEMENT)[0]
            assert "a" == told(session, STATEMENT)[0]
        assert "default" == told(session, STATEMENT)[0]

    async def test_interleaved(self, db: Database) -> None:
        """Blocks that are left in another order leave nothing behind."""
        first, second = using("a"), using("b")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert "b" == told(db.async_session(), STATEMENT)[0]
        second.__exit__(None, None, None)

        assert "default" == told(db.async_session(), STATEMENT)[0]

    async def test_other_manager(self, db: Database, async_url: str) -> None:
        """A block of one database says nothing to sessions of another."""
        async with Database({"default": async_url, "x": async_url}) as other:
            with db.using("a"), other.using("x"):
                assert "a" == told(db.async_session(), STATEMENT)[0]
                assert "x" == told(other.async_session(), STATEMENT)[0]

    async def test_unknown(self, db: Database) -> None:
        """An alias that is not there is named, with those that are."""
        with pytest.raises(UnknownAliasError, match=r"'nope'.*known: 'default', 'a'"):
            db.using("nope")
        with using("nope"), pytest.raises(UnknownAliasError, match="'nope'"):
            await db.async_session().scalars(STATEMENT)
        with pytest.raises(UnknownAliasError, match=r"'nope'.*from the call's options"):
            await db.async_session().execute(
                STATEMENT, execution_options={"engine": "nope"}
            )

    async def test_not_an_alias(self) -> None:
        """Something else than an alias is refused at the call."""
        wrong: Any = 7
        with pytest.raises(RoutingError, match="not 7"):
            using(wrong)

    async def test_without_manager(self, db: Database) -> None:
        """A session without a manager cannot know what is meant, and says so."""
        session = AsyncSession(engine(db, "a"))
        with using("a"), pytest.raises(RoutingError, match="has no DatabaseManager"):
            await session.scalars(STATEMENT)

    async def test_twice(self, db: Database) -> None:
        """A block is entered once."""
        block = db.using("a")
        with block, pytest.raises(SessionError, match="entered before"):
            block.__enter__()
        assert "default" == told(db.async_session(), STATEMENT)[0]


class TestExplain:
    async def test_entities(self, db: Database, router: Router) -> None:
        """It takes a class, an instance, a statement, or nothing."""
        router.answers[Thing] = "e"
        session = db.async_session()
        for asked in (Thing, Thing(name="a"), select(Thing), select(Thing.name)):
            assert ("e", "router") == told(session, asked)
        assert ("default", "default") == told(session)
        assert ("default", "default") == told(session, select(literal(1)))

    async def test_text(self, db: Database, router: Router) -> None:
        """It reads as a sentence."""
        router.answers[Thing] = "e"

        assert "e (read), by router: router Router" == str(db.explain(STATEMENT))
        assert "default (write), by default: the default" == str(
            db.explain(insert(Part))
        )

    async def test_current_session(self, db: Database) -> None:
        """The database asks its current session."""
        async with async_session_manager() as session:
            await session.execute(delete(Thing))
            assert "write" == db.explain(STATEMENT).role

    async def test_executes_nothing(self, db: Database) -> None:
        """Nothing is connected to."""
        db.explain(STATEMENT)

        assert [] == db.report()


class TestRouters:
    @pytest.mark.parametrize("answer", [7, "nope"])
    async def test_wrong_answer(
        self, db: Database, router: Router, answer: Any
    ) -> None:
        """A router that answers nonsense is named, where the session is used."""
        router.answers[Thing] = answer
        async with db.async_session() as session:
            with pytest.raises(RoutingError, match=f"router Router.*{answer}|{answer}"):
                await session.scalars(STATEMENT)
