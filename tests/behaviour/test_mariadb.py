"""What MariaDB needs words of its own for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter
from sqlalchemy import (
    DECIMAL,
    VARBINARY,
    Enum,
    String,
    UniqueConstraint,
    event,
    insert,
    select,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import (
    ConcurrentUseError,
    Database,
    Ref,
    RoutingError,
    async_session_manager,
    session_manager,
)
from tests.fixtures.pools import Pools
from tests.fixtures.things import Thing


@pytest.fixture
def db(mariadb_url: str, pools: Pools) -> Iterator[Database]:
    with Database(mariadb_url, pool_size=1, max_overflow=0) as db:
        Thing.__table__.create(db.manager.engines["default"])
        yield db
    assert [] == pools.out


class TestRead:
    def test_refused(self, db: Database) -> None:
        """A block that reads refuses what writes, before it is sent."""
        with session_manager(role="read") as session:
            with pytest.raises(RoutingError, match="role='read' refuses"):
                session.execute(insert(Thing).values(name="a"))

    def test_database_says_no(self, db: Database) -> None:
        """What gets past us is refused by the database."""
        with session_manager(role="read") as session:
            assert [] == session.scalars(select(Thing)).all()
            with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                session.connection().execute(insert(Thing).values(name="a"))

    def test_next_one_writes(self, db: Database) -> None:
        """The connection writes again for the next block."""
        for name in "ab":
            with session_manager(role="read") as session:
                session.scalars(select(Thing)).all()
            with session_manager(auto_commit=True) as session:
                session.add(Thing(name=name))
        with session_manager(role="read") as session:
            assert ["a", "b"] == session.scalars(select(Thing.name)).all()

    def test_commits(self, db: Database) -> None:
        """Each transaction of the block is one that reads."""
        with session_manager(role="read") as session:
            for _ in range(2):
                session.execute(text("SELECT 1"))
                with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                    session.connection().execute(insert(Thing).values(name="a"))
                session.rollback()


def test_scopes(db: Database) -> None:
    """Joining, savepoints and callbacks are as anywhere."""
    ran = []
    with session_manager(auto_commit=True) as session:
        session.on_commit(lambda: ran.append("commit"))
        session.add(Thing(name="a"))
        with pytest.raises(ValueError, match="oh"):
            with session_manager(savepoint=True):
                session.add(Thing(name="b"))
                session.flush()
                raise ValueError("oh")
    with session_manager() as session:
        assert ["a"] == session.scalars(select(Thing.name)).all()

    assert ["commit"] == ran


@pytest.fixture
async def async_db(db: Database) -> AsyncIterator[Database]:
    """Give the other face of the same manager: one URL is a pair."""
    yield db
    await db.adispose()


@pytest.mark.anyio
class TestAsync:
    async def test_scopes(self, async_db: Database) -> None:
        """The async face of the pair joins, commits and calls back as any."""
        ran = []
        async with async_session_manager(auto_commit=True) as session:
            session.on_commit(lambda: ran.append("commit"))
            session.add(Thing(name="a"))
            async with async_session_manager() as inner:
                assert session is inner
        with session_manager() as sync_session:
            assert ["a"] == sync_session.scalars(select(Thing.name)).all()

        assert ["commit"] == ran

    async def test_read(self, async_db: Database) -> None:
        """Reading is asked of the database, for one transaction."""
        async with async_session_manager(role="read") as session:
            connection = await session.connection()
            with pytest.raises(DBAPIError, match="READ ONLY transaction"):
                await connection.execute(insert(Thing).values(name="a"))
        async with async_session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))

    async def test_concurrent_use(self, async_db: Database) -> None:
        """Two tasks at once: the second is told, the first is unharmed."""
        async with async_session_manager() as session:
            results = await asyncio.gather(
                session.scalar(text("SELECT 1")),
                session.scalar(text("SELECT 1")),
                return_exceptions=True,
            )

        assert 1 == results[0]
        assert isinstance(results[1], ConcurrentUseError)


class Base(DeclarativeBase):
    pass


class Item(Base):
    """The mapping does not say what is compared how; the table does."""

    __tablename__ = "item"
    __table_args__ = (UniqueConstraint("town", "number"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    town: Mapped[str | None] = mapped_column(String(20))
    number: Mapped[int | None] = mapped_column(mysql.BIGINT(unsigned=True))
    exact: Mapped[str | None] = mapped_column(String(20), unique=True)
    latin: Mapped[str | None] = mapped_column(String(20), unique=True)
    fixed: Mapped[str | None] = mapped_column(String(5), unique=True)
    colour: Mapped[str | None] = mapped_column(Enum("red", "green"), unique=True)
    raw: Mapped[bytes | None] = mapped_column(VARBINARY(20), unique=True)
    price: Mapped[Decimal | None] = mapped_column(DECIMAL(60, 20), unique=True)
    moment: Mapped[datetime | None] = mapped_column(unique=True)
    day: Mapped[date | None] = mapped_column(unique=True)
    hour: Mapped[time | None] = mapped_column(unique=True)


ITEM = """
CREATE TABLE item (
    id INT AUTO_INCREMENT PRIMARY KEY,
    town VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci,
    number BIGINT UNSIGNED,
    exact VARCHAR(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin UNIQUE,
    latin VARCHAR(20) CHARACTER SET latin1 COLLATE latin1_swedish_ci UNIQUE,
    fixed CHAR(5) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci UNIQUE,
    colour ENUM('red', 'green') UNIQUE,
    raw VARBINARY(20) UNIQUE,
    price DECIMAL(60, 20) UNIQUE,
    moment DATETIME(6) UNIQUE,
    day DATE UNIQUE,
    hour TIME(6) UNIQUE,
    UNIQUE (town, number)
)
"""


@pytest.fixture
def items(mariadb_url: str) -> Iterator[Database]:
    with Database(mariadb_url) as db:
        with db.manager.engines["default"].begin() as connection:
            # A default that cannot hold what is asked for must not matter.
            connection.exec_driver_sql("ALTER DATABASE CHARACTER SET latin1")
            connection.exec_driver_sql(ITEM)
            filler = [{"number": n, "exact": f"x{n}"} for n in range(1_000)]
            connection.execute(insert(Item), filler)
        yield db


NOON = datetime.fromisoformat("2024-05-01T12:00:00.123456")


class TestLookUps:
    """Keys are compared by the columns of the table, with its indexes."""

    @pytest.mark.parametrize(
        ("row", "key", "found"),
        [
            ({"exact": "Zürich"}, {"exact": "Zürich"}, True),
            ({"exact": "Zürich"}, {"exact": "zürich"}, False),
            ({"exact": "a"}, {"exact": "a "}, False),
            ({"exact": "a\0"}, {"exact": "a\0"}, True),
            ({"exact": "a\0"}, {"exact": "a"}, False),
            ({"exact": '"q\\n'}, {"exact": '"q\\n'}, True),
            ({"exact": "\U0001f600"}, {"exact": "\U0001f600"}, True),
            ({"exact": "\U0001f600"}, {"exact": "\U0001f601"}, False),
            ({"latin": "Zürich"}, {"latin": "zÜRICH"}, True),
            ({"latin": "?"}, {"latin": "☃"}, False),
            ({"latin": "?ü"}, {"latin": "?ü"}, True),
            ({"latin": "?ü"}, {"latin": "?ä"}, False),
            ({"fixed": "ab"}, {"fixed": "AB  "}, True),
            ({"fixed": "abcde"}, {"fixed": "abcdef"}, False),
            ({"town": "Zürich", "number": 2**64 - 1},
             {"town": "zurich", "number": 2**64 - 1}, True),
            ({"town": "a", "number": 2**64 - 1}, {"town": "a", "number": 2**64}, False),
            ({"town": "a", "number": 0}, {"town": "a", "number": -1}, False),
            ({"town": "a"}, {"town": "A", "number": None}, True),
            ({"colour": "red"}, {"colour": "red"}, True),
            ({"raw": b"\0\xffa"}, {"raw": b"\0\xffa"}, True),
            ({"raw": b"a"}, {"raw": b"A"}, False),
            ({"price": Decimal("0.1")}, {"price": Decimal("0.10")}, True),
            ({"price": Decimal("0.1")}, {"price": Decimal(f"0.1{0:030}1")},
             False),
            ({"price": Decimal(10**39)}, {"price": Decimal(10**39)}, True),
            ({"moment": NOON}, {"moment": NOON}, True),
            ({"moment": NOON}, {"moment": NOON.replace(tzinfo=UTC)}, True),
            ({"moment": NOON}, {"moment": NOON.replace(microsecond=0)}, False),
            ({"day": NOON.date()}, {"day": NOON.date()}, True),
            ({"hour": NOON.time()}, {"hour": NOON.time()}, True),
            ({"hour": NOON.time()}, {"hour": time(12)}, False),
        ],
        ids=str,
    )  # fmt: skip
    def test_by_hand(
        self, items: Database, row: Any, key: dict[str, Any], found: bool
    ) -> None:
        """A key finds what a WHERE written by hand finds."""
        with items.session() as session:
            session.execute(insert(Item), [row])
            condition = [getattr(Item, name) == value for name, value in key.items()]
            by_hand = (
                session.scalars(select(Item.id).where(*condition)).all()
                # A text that its character set has not is an error by hand.
                if "☃" not in key.values()
                else []
            )
            with session.bulk() as bulk:
                held = TypeAdapter(Ref[Item]).validate_python(key)
                resolution = bulk.resolve(raise_errors=False)

            assert (found, found) == (bool(by_hand), bool(resolution.resolved))
            assert by_hand == ([held.id] if found else [])

    @pytest.mark.parametrize(
        "key",
        [
            {"id": 1},
            {"town": "a", "number": 1},
            {"exact": "a"},
            {"latin": "a"},
            {"latin": "é"},
            {"fixed": "a"},
            {"colour": "red"},
            {"raw": b"a"},
            {"price": Decimal("1.5")},
            {"moment": NOON},
            {"day": NOON.date()},
            {"hour": NOON.time()},
        ],
        ids=str,
    )
    def test_index(self, items: Database, key: dict[str, Any]) -> None:
        """Each key is one probe of the index, whatever its type and collation."""
        sent: list[tuple[str, Any]] = []
        engine = items.manager.engines["default"]
        with items.session() as session, session.bulk() as bulk:
            TypeAdapter(Ref[Item]).validate_python(key)

            @event.listens_for(engine, "before_cursor_execute")
            def collect(c: Any, cursor: Any, text: str, given: Any, *_: Any) -> None:
                sent.append((text, given))

            bulk.resolve(raise_errors=False)
            event.remove(engine, "before_cursor_execute", collect)
            [(statement, parameters)] = sent
            plan = session.connection().exec_driver_sql(
                f"EXPLAIN {statement}", parameters
            )
            kinds = {row.table: row.type for row in plan}

        assert {"tenure_key": "ALL", "item": "eq_ref"} == kinds

    def test_more_than_a_packet(self, items: Database) -> None:
        """Keys that are too long for one statement are asked for in several."""
        long = "x" * 10_000
        with items.session() as session, session.bulk() as bulk:
            keys = [{"exact": f"{long}{n}"} for n in range(2_000)] + [{"exact": "x7"}]
            held = TypeAdapter(list[Ref[Item]]).validate_python(keys)
            resolution = bulk.resolve(raise_errors=False)
            found = held[-1].id

        assert (1, 2_000) == (resolution.resolved, resolution.unresolved)
        assert isinstance(found, int)
