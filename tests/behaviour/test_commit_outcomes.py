"""What happened to a COMMIT is never guessed: answers are lost on purpose."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import event, insert, make_url, select, text
from sqlalchemy.engine import URL
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session as PlainSession

import tenure.engines.commits
from tenure import (
    CommitOutcomeUnknownError,
    Database,
    DatabaseError,
    PartialCommitError,
    SessionError,
)
from tests.fixtures.proxies import Proxy, When
from tests.fixtures.things import Base, Thing

SYNC = ["postgresql+psycopg"]
ASYNC = ["postgresql+psycopg", "postgresql+asyncpg"]
#: What is cut when it is sent.
WORDS = [b"BEGIN", b"INSERT", b"PG_CURRENT_XACT", b"COMMIT", b"COMMIT"]
NAMES = [f"n{number:03}" for number in range(100)]
whens = pytest.mark.parametrize("when", ["before", "after"])

pytestmark = [
    # A connection that was cut is not closed by its driver.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def create(db: Database) -> None:
    """Create the table; MariaDB cannot have the other one."""
    engine = db.manager.engines["default"]
    Base.metadata.create_all(engine, tables=[Base.metadata.tables["thing"]])


class Cut:
    """A database behind a proxy, the same without, and what callbacks have run."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        assert self.url.host is not None
        assert self.url.port is not None
        self.proxy = Proxy(self.url.host, self.url.port)
        self.direct = Database(self.url)
        create(self.direct)
        self.ran: list[str] = []

    def through(self, driver: str) -> URL:
        return self.url.set(
            drivername=driver, host="127.0.0.1", port=self.proxy.port
        ).difference_update_query(["host", "port"])

    def watch(self, session: Any) -> None:
        session.on_commit(lambda: self.ran.append("commit"))
        session.on_rollback(lambda: self.ran.append("rollback"))
        session.on_unknown(lambda: self.ran.append("unknown"))

    def kept(self) -> list[str]:
        with PlainSession(self.direct.manager.engines["default"]) as session:
            return sorted(session.scalars(select(Thing.name)))


class Kills:
    """Connections cut at random, one for each name, and what callbacks said of them."""

    def __init__(self, cut: Cut, seed: int) -> None:
        self.cut = cut
        self.chance = random.Random(seed)
        self.expected: list[str] = []
        self.errors: list[DatabaseError] = []

    @contextmanager
    def one(self, name: str) -> Iterator[None]:
        ran = self.cut.ran
        ran.clear()
        try:
            yield
        except DatabaseError as error:
            self.errors.append(error)
        if ran == ["commit"]:
            self.expected.append(name)
        assert len(ran) <= 1
        assert "unknown" not in ran

    def begin(self, session: Any) -> None:
        self.cut.watch(session)
        when: When = self.chance.choice(["before", "after"])
        self.cut.proxy.cut(when, self.chance.choice(WORDS))

    def check(self) -> None:
        self.cut.proxy.cut("before", b"nothing")
        assert self.expected == self.cut.kept()
        assert not any(isinstance(e, CommitOutcomeUnknownError) for e in self.errors)
        # It has cut, and not always before something was kept.
        assert self.errors
        assert self.expected


@pytest.fixture
def cut(postgresql_url: str) -> Iterator[Cut]:
    made = Cut(postgresql_url)
    with made.proxy:
        yield made
    made.direct.dispose()


@pytest.fixture
def few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure.engines.commits, "DEADLINE", 0.1)


def write(db: Database, cut: Cut, name: str, when: When | None) -> BaseException | None:
    try:
        with db.session_manager(auto_commit=True) as session:
            cut.watch(session)
            session.add(Thing(name=name))
            session.flush()
            if when is not None:
                cut.proxy.cut(when)
    except DatabaseError as error:
        return error
    return None


async def write_async(
    db: Database, cut: Cut, name: str, when: When | None
) -> BaseException | None:
    try:
        async with db.async_session_manager(auto_commit=True) as session:
            cut.watch(session)
            session.add(Thing(name=name))
            await session.flush()
            if when is not None:
                cut.proxy.cut(when)
    except DatabaseError as error:
        return error
    return None


@pytest.mark.postgresql
class TestAsked:
    """PostgreSQL says what became of the transaction."""

    @whens
    @pytest.mark.parametrize("driver", SYNC)
    def test_sync(self, cut: Cut, driver: str, when: When) -> None:
        with Database(cut.through(driver)) as db:
            error = write(db, cut, "a", when)
            self.check(cut, when, error)
            # The session's database can be used further.
            assert write(db, cut, "b", None) is None

    @whens
    @pytest.mark.parametrize("driver", ASYNC)
    @pytest.mark.anyio
    async def test_async(self, cut: Cut, driver: str, when: When) -> None:
        async with Database(cut.through(driver)) as db:
            error = await write_async(db, cut, "a", when)
            self.check(cut, when, error)
            assert await write_async(db, cut, "b", None) is None

    def check(self, cut: Cut, when: When, error: BaseException | None) -> None:
        if when == "after":
            assert error is None
            assert ["commit"] == cut.ran
            assert ["a"] == cut.kept()
        else:
            assert isinstance(error, OperationalError | DatabaseError)
            assert not isinstance(error, CommitOutcomeUnknownError)
            assert ["rollback"] == cut.ran
            assert [] == cut.kept()

    @pytest.mark.parametrize("driver", SYNC)
    def test_kills_sync(self, cut: Cut, driver: str) -> None:
        """However often, and wherever: no callback contradicts the database."""
        kills = Kills(cut, seed=11)
        with Database(cut.through(driver)) as db:
            for name in NAMES:
                with kills.one(name), db.session_manager(auto_commit=True) as session:
                    kills.begin(session)
                    session.execute(insert(Thing).values(name=name))
        kills.check()

    @pytest.mark.parametrize("driver", ASYNC)
    @pytest.mark.anyio
    async def test_kills(self, cut: Cut, driver: str) -> None:
        """As :meth:`test_kills_sync`."""
        kills = Kills(cut, seed=7)
        async with Database(cut.through(driver)) as db:
            for name in NAMES:
                with kills.one(name):
                    async with db.async_session_manager(auto_commit=True) as session:
                        kills.begin(session)
                        await session.execute(insert(Thing).values(name=name))
        kills.check()

    @pytest.mark.parametrize("driver", SYNC)
    @pytest.mark.usefixtures("few_seconds")
    def test_nobody_answers(self, cut: Cut, driver: str) -> None:
        """Then neither is said, and on_unknown runs."""
        with Database(cut.through(driver)) as db:
            with db.session_manager(auto_commit=True) as session:
                session.scalars(select(Thing.name)).all()
            with (
                pytest.raises(CommitOutcomeUnknownError) as caught,
                db.session_manager(auto_commit=True) as session,
            ):
                cut.watch(session)
                session.execute(insert(Thing).values(name="a"))
                cut.proxy.cut("after")
                cut.proxy.is_down = True

        assert not caught.value.retryable
        assert isinstance(caught.value.__cause__, Exception)
        assert ["unknown"] == cut.ran
        assert ["a"] == cut.kept()

    @whens
    @pytest.mark.parametrize("driver", SYNC)
    def test_only_read(self, cut: Cut, driver: str, when: When) -> None:
        """Of a transaction that has not written nothing can be lost."""
        with Database(cut.through(driver)) as db, pytest.raises(OperationalError):
            with db.session_manager(auto_commit=True) as session:
                cut.watch(session)
                session.scalars(select(Thing.name)).all()
                cut.proxy.cut(when)

        assert ["rollback"] == cut.ran


@pytest.mark.mariadb
class TestMariaDB:
    def test_unknown(self, mariadb_url: str) -> None:
        """MariaDB cannot be asked."""
        cut = Cut(mariadb_url)
        with cut.proxy, Database(cut.through("mysql+pymysql")) as db:
            error = write(db, cut, "a", "after")
            assert isinstance(error, CommitOutcomeUnknownError)
            assert ["unknown"] == cut.ran
            assert ["a"] == cut.kept()
        cut.direct.dispose()

    def test_deadlock_that_was_swallowed(self, mariadb_url: str) -> None:
        """A deadlock undoes all of the transaction, not only the statement."""
        with Database(mariadb_url) as db:
            create(db)
            with db.session_manager(auto_commit=True) as session:
                session.add_all([Thing(name="a"), Thing(name="b")])
            for_update = "SELECT * FROM thing WHERE name = '{}' FOR UPDATE"
            with pytest.raises(SessionError, match="ended the transaction"):
                deadlock(db, for_update)
            with db.session_manager() as session:
                names = session.scalars(select(Thing.name).order_by(Thing.name))
                assert ["a", "b"] == names.all()


def deadlock(db: Database, for_update: str) -> None:
    """Let one of two transactions be refused, swallow that, and go on writing."""
    from threading import Barrier, Thread

    barrier, errors = Barrier(2), []

    def run(first: str, second: str) -> None:
        try:
            with db.session_manager(auto_commit=True) as session:
                session.execute(insert(Thing).values(name=f"of {first}"))
                session.execute(text(for_update.format(first)))
                barrier.wait(30)
                try:
                    session.execute(text(for_update.format(second)))
                except OperationalError:
                    session.execute(insert(Thing).values(name=f"after {first}"))
                else:
                    session.rollback()
        except SessionError as error:
            errors.append(error)

    threads = [Thread(target=run, args=names) for names in ("ab", "ba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.postgresql
class TestEndedBefore:
    """PostgreSQL makes of a COMMIT a rollback, after an error, and says nothing."""

    @pytest.mark.parametrize("driver", ASYNC)
    @pytest.mark.anyio
    async def test_refused(self, cut: Cut, driver: str) -> None:
        async with Database(cut.url.set(drivername=driver)) as db:
            with pytest.raises(SessionError, match="a statement has failed") as caught:
                async with db.async_session_manager(auto_commit=True) as session:
                    cut.watch(session)
                    await session.execute(insert(Thing).values(name="lost"))
                    with pytest.raises(Exception, match="nothing"):
                        await session.execute(text("SELECT nothing"))

        assert "savepoint=True" in str(caught.value)
        assert caught.value.__cause__ is not None
        assert ["rollback"] == cut.ran
        assert [] == cut.kept()

    @pytest.mark.parametrize("driver", ASYNC)
    @pytest.mark.anyio
    async def test_undone_by_a_savepoint(self, cut: Cut, driver: str) -> None:
        """With a savepoint around what failed the commit is whole."""
        async with Database(cut.url.set(drivername=driver)) as db:
            async with db.async_session_manager(auto_commit=True) as session:
                cut.watch(session)
                await session.execute(insert(Thing).values(name="kept"))
                with pytest.raises(Exception, match="nothing"):
                    async with session.begin_nested():
                        await session.execute(text("SELECT nothing"))

        assert ["commit"] == cut.ran
        assert ["kept"] == cut.kept()

    def test_rolled_back(self, cut: Cut) -> None:
        """After a rollback a new transaction has nothing to do with it."""
        with Database(cut.url) as db, db.session_manager(auto_commit=True) as session:
            with pytest.raises(Exception, match="nothing"):
                session.execute(text("SELECT nothing"))
            session.rollback()
            session.add(Thing(name="kept"))

        assert ["kept"] == cut.kept()


@pytest.mark.postgresql
def test_partial(cut: Cut, tmp_path: Any) -> None:
    """Of several databases the error says which have committed, and neither runs."""
    urls = {"default": f"sqlite:///{tmp_path}/p.db", "ledger": cut.through(SYNC[0])}
    partial: list[PartialCommitError] = []
    with Database(urls) as db:
        db.create_all(Base.metadata)
        for _ in range(40):
            cut.ran.clear()
            try:
                with db.session_manager(auto_commit=True) as session:
                    cut.watch(session)
                    for alias in urls:
                        with db.using(alias):
                            session.execute(insert(Thing).values(name="a"))
                    cut.proxy.cut("before")
            except PartialCommitError as error:
                partial.append(error)
                break
            except DatabaseError:
                # The other one was first.
                assert ["rollback"] == cut.ran
        with db.session_manager() as session:
            assert ["a"] == session.scalars(select(Thing.name)).all()

    [error] = partial
    assert (("default",), ("ledger",)) == (error.committed, error.failed)
    assert ["unknown"] == cut.ran
    assert [] == cut.kept()


def test_interrupted_in_the_commit_of_sqlite(tmp_path: Any) -> None:
    """An interruption that comes when the COMMIT is done does not undo it."""
    ran: list[str] = []
    with Database(f"sqlite:///{tmp_path}/i.db") as db:
        engine = db.manager.engines["default"]

        class Interrupted(sqlite3.Connection):
            def commit(self) -> None:
                super().commit()
                if armed:
                    armed.clear()
                    raise KeyboardInterrupt

        armed: list[bool] = []

        @event.listens_for(engine, "do_connect")
        def connect(dialect: Any, record: Any, arguments: Any, options: Any) -> None:
            options["factory"] = Interrupted

        db.create_all(Base.metadata)

        with pytest.raises(KeyboardInterrupt), db.session_manager() as session:
            session.on_commit(lambda: ran.append("commit"))
            session.on_rollback(lambda: ran.append("rollback"))
            session.add(Thing(name="a"))
            session.flush()
            armed.append(True)
            session.commit()
        with db.session_manager() as session:
            assert ["a"] == session.scalars(select(Thing.name)).all()

    assert ["commit"] == ran
