"""Routing: which alias, and why; no database."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import (
    DDL,
    column,
    delete,
    exists,
    func,
    insert,
    lambda_stmt,
    select,
    table,
    text,
    union,
    update,
)
from sqlalchemy.schema import CreateTable

from tenure import DatabaseRouter, RoutingError
from tenure.routing import DEFAULT, choose, may_migrate
from tenure.statements import writes
from tests.fixtures.things import Thing

THING = table("thing", column("id"), column("name"))
INSERTED = insert(THING).values(name="a").returning(THING.c.id).cte("inserted")

READS = [
    select(THING),
    select(THING.c.id).where(exists().where(THING.c.id == 1)),
    select(func.count()).select_from(THING),
    select(select(THING).cte()),
    union(select(THING), select(THING)),
    text("select 1"),
    text("\n  ( SELECT 1)"),
    text("SELECT * FROM thing WHERE name = 'put into box'"),
    text('SELECT id AS "into" FROM thing -- for update'),
    text("SELECT /* nobody_knows(1) */ count(*) FROM thing WHERE id IN (1, 2)"),
    select(Thing).where(Thing.name == "a", (Thing.id > 1) | Thing.note.is_(None)),
    select(Thing).where(Thing.id.in_(select(THING.c.id))),
    select(Thing.id).where(func.lower(Thing.name) == "a").order_by(func.random()),
    select(func.count(func.distinct(Thing.id))),
    select(text("1")),
    text("VALUES (1)"),
    text("SHOW search_path"),
    text("WITH a AS (SELECT 1) SELECT * FROM a"),
    text(
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
    ),
    text("WITH a (x, y) AS NOT MATERIALIZED (SELECT 1, 2) SELECT 'DELETE' FROM a"),
    text("EXPLAIN SELECT 1"),
    text("EXPLAIN QUERY PLAN SELECT 1"),
    text("EXPLAIN DELETE FROM thing"),
    text("EXPLAIN (COSTS OFF) INSERT INTO thing VALUES (1)"),
    text("EXPLAIN ANALYZE SELECT name FROM thing"),
    text("EXPLAIN (ANALYZE, BUFFERS) SELECT name FROM thing"),
    text("SELECT name FROM thing").columns(THING.c.name),
    select(Thing).from_statement(text("SELECT * FROM thing")),
    lambda_stmt(lambda: select(THING)),
]
WRITES = [
    insert(THING),
    update(THING),
    delete(THING),
    insert(THING).from_select(["id"], select(THING.c.id)),
    select(INSERTED),
    select(INSERTED.c.id),
    select(THING).add_cte(INSERTED),
    select(THING).join(INSERTED, INSERTED.c.id == THING.c.id).select_from(INSERTED),
    select(THING).with_for_update(),
    select(THING).with_for_update(read=True),
    select(select(INSERTED).cte()),
    select(THING).join(INSERTED, INSERTED.c.id == THING.c.id),
    select(THING).where(exists(INSERTED)),
    select(THING).where(THING.c.id == INSERTED.c.id),
    select(THING.c.id, select(THING.c.name).with_for_update().scalar_subquery()),
    select(Thing).where(func.nobody_knows(Thing.id)),
    select(func.nextval("a")),
    select(func.nobody_knows() + 1),
    select(text("nobody_knows(1)")),
    text("SELECT nextval('a')"),
    union(select(THING.c.id), select(INSERTED.c.id)),
    DDL("DROP TABLE thing"),  # type: ignore[no-untyped-call]  # SQLAlchemy's
    CreateTable(Thing.__table__),  # type: ignore[arg-type]  # a Table
    text("INSERT INTO thing VALUES (1)"),
    text("WITH one AS (DELETE FROM thing RETURNING id) SELECT * FROM one"),
    text("CALL anything()"),
    text("WITH one AS (SELECT 1) INSERT INTO thing SELECT * FROM one"),
    text("WITH one AS (SELECT nobody_knows(1)) SELECT * FROM one"),
    text("EXPLAIN ANALYZE DELETE FROM thing"),
    text("EXPLAIN ANALYZE VERBOSE DELETE FROM thing"),
    text("EXPLAIN (BUFFERS, ANALYZE) UPDATE thing SET name = 'a'"),
    text("EXPLAIN ANALYZE SELECT nobody_knows(1)"),
    text("SET LOCAL statement_timeout = 1"),
    text("SELECT * FROM thing FOR UPDATE"),
    text("SELECT * FROM thing FOR NO KEY UPDATE"),
    text("SELECT * FROM thing FOR SHARE"),
    text("SELECT * INTO other FROM thing"),
    text("SELECTED"),
    select(Thing).from_statement(insert(THING).returning(THING)),
    func.anything(),
]


@pytest.mark.parametrize("statement", READS, ids=str)
def test_reads(statement: Any) -> None:
    """What is known to read is a read."""
    assert writes(statement) is False


@pytest.mark.parametrize("statement", WRITES, ids=str)
def test_writes(statement: Any) -> None:
    """What writes, locks, or is not known to read, is a write."""
    assert writes(statement) is True


class Says:
    """A router that gives the same answer to the questions it knows."""

    def __init__(self, answer: Any, *questions: str) -> None:
        self.asked: list[Any] = []
        for question in questions:
            setattr(self, question, self._ask)
        self._answer = answer

    def _ask(self, *arguments: Any, **hints: Any) -> Any:
        self.asked.append((arguments, hints))
        return self._answer


NO_HINTS = {"session": None, "statement": None, "in_transaction": False}


class TestChoose:
    def test_default(self) -> None:
        """Where no router answers, it is the database called default."""
        routers = [DatabaseRouter(), Says(None, "get_engine"), object()]

        assert (DEFAULT, "the default") == choose(routers, None, "read")

    def test_first_answer_wins(self) -> None:
        """The first router that answers is the last that is asked."""
        first, second, third = (
            Says(answer, "get_engine") for answer in (None, "b", "c")
        )

        assert ("b", "router Says") == choose([first, second, third], None, "read")
        assert [1, 1, 0] == [len(router.asked) for router in (first, second, third)]

    @pytest.mark.parametrize(
        ("role", "question"),
        [
            ("read", "get_read_engine"),
            ("write", "get_write_engine"),
            ("read", "db_for_read"),
            ("write", "db_for_write"),
            ("read", "get_engine"),
            ("write", "get_engine"),
            (None, "get_engine"),
        ],
    )
    def test_questions(self, role: Any, question: str) -> None:
        """Each role has questions of its own, in our words and in Django's."""
        router = Says("a", question)

        assert "a" == choose([router], Thing, role)[0]
        assert [((Thing,), {"role": role, **NO_HINTS})] == router.asked

    @pytest.mark.parametrize("role", ["read", "write"])
    def test_other_role(self, role: Any) -> None:
        """A router that knows the other role only is not asked."""
        other = Says("a", f"get_{'write' if role == 'read' else 'read'}_engine")

        assert DEFAULT == choose([other], None, role)[0]

    def test_role_before_engine(self) -> None:
        """An answer for the role comes before one for all, of whatever router."""
        routers = [Says("a", "get_engine"), Says("b", "get_read_engine")]

        assert "b" == choose(routers, None, "read")[0]
        assert "a" == choose(routers, None, "write")[0]

    def test_hints_it_has_parameters_for(self) -> None:
        """A method gets the hints that it takes, and no others."""

        class Narrow:
            def get_read_engine(self, resource: Any, statement: Any = None) -> Any:
                return statement

            def get_write_engine(self, resource: Any) -> str:
                return "all"

        class Static:
            @staticmethod
            def get_engine(resource: Any, *, role: Any) -> Any:
                return role

        routers = [Narrow()]
        assert "alias" == choose(routers, None, "read", statement="alias")[0]
        assert "all" == choose(routers, None, "write", statement="alias")[0]
        assert "read" == choose([Static()], None, "read", session=1)[0]

    @pytest.mark.parametrize("answer", [3, True, object(), ["a"]])
    def test_not_an_alias(self, answer: Any) -> None:
        """Another answer than an alias is named, and whose it is."""
        with pytest.raises(RoutingError, match="router Says answered"):
            choose([Says(answer, "get_engine")], None, "read")

    def test_failing(self) -> None:
        """An error of a router comes as a RoutingError that names it."""

        class Broken(DatabaseRouter):
            def get_read_engine(self, resource: Any = None, **kwargs: Any) -> str:
                raise LookupError("oh")

        with pytest.raises(RoutingError, match=r"Broken failed in get_read_engine\(\)"):
            choose([Broken()], None, "read")

    @given(st.lists(st.sampled_from([None, "a", "b"])))
    def test_any_routers(self, answers: list[str | None]) -> None:
        """The choice is the first answer there is."""
        routers = [Says(answer, "get_engine") for answer in answers]
        wanted = next((answer for answer in answers if answer), DEFAULT)

        assert wanted == choose(routers, None, "read")[0]


class TestMayMigrate:
    @pytest.mark.parametrize("question", ["is_migration_allowed", "allow_migrate"])
    @pytest.mark.parametrize("answer", [True, False])
    def test_first_opinion(self, question: str, answer: bool) -> None:
        """The first opinion counts, asked for in our words or in Django's."""
        router = Says(answer, question)
        routers = [DatabaseRouter(), router, Says(not answer, question)]

        assert answer is may_migrate(routers, "default", "package")
        assert [(("default", "package"), {})] == router.asked

    def test_no_opinion(self) -> None:
        """Without an opinion, migrating is allowed."""
        assert may_migrate([DatabaseRouter(), object()], "default", "package")

    def test_failing(self) -> None:
        """An error of a router is named as any."""

        class Broken(DatabaseRouter):
            def is_migration_allowed(
                self, engine: str, package: str, **kwargs: Any
            ) -> bool:
                raise LookupError("oh")

        with pytest.raises(RoutingError, match="Broken failed in is_migration_allowed"):
            may_migrate([Broken()], "default", "package")
