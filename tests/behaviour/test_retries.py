"""A whole unit of work again, where that is right."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from tenure import (
    CommitOutcomeUnknownError,
    Database,
    DatabaseError,
    SessionError,
    async_session_manager,
    current_session,
    retrying,
    session_manager,
)
from tenure.scopes import retries
from tests.fixtures.things import Base, Thing


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits, and each test has a budget of its own."""
    monkeypatch.setattr(retries, "uniform", lambda low, high: 0.0)
    monkeypatch.setattr(retries, "BUDGET", retries.Budget())


class Busy(DatabaseError):
    """What may be tried again."""

    retryable = True


class Flaky:
    """Fails so many times, and then returns how often it was called."""

    def __init__(
        self, failures: int, error: Callable[[], BaseException] = Busy
    ) -> None:
        self.failures, self.error, self.calls = failures, error, 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error()
        return self.calls


class TestAttempts:
    def test_decorated(self) -> None:
        assert 3 == retrying(Flaky(2))()
        assert 3 == retrying(attempts=3)(Flaky(2))()

    def test_loop(self) -> None:
        work = Flaky(2)
        numbers = []
        for attempt in retrying():
            with attempt:
                numbers.append(attempt.number)
                work()

        assert [1, 2, 3] == numbers

    def test_coroutine_function(self) -> None:
        work = Flaky(2)

        @retrying
        async def call() -> int:
            return work()

        assert 3 == asyncio.run(call())

    def test_async_loop(self) -> None:
        work = Flaky(2)

        async def main() -> None:
            async for attempt in retrying():
                async with attempt:
                    work()

        asyncio.run(main())
        assert 3 == work.calls

    def test_given_up(self) -> None:
        """The last error is raised, with notes about the others."""
        work = Flaky(9)
        with pytest.raises(Busy) as caught:
            retrying(attempts=3)(work)()

        assert 3 == work.calls
        notes = "\n".join(caught.value.__notes__)
        for part in ("3 attempts", "attempt 1 failed: Busy", "attempt 2 failed: Busy"):
            assert part in notes

    @pytest.mark.parametrize(
        "error",
        [
            ValueError,
            KeyboardInterrupt,
            lambda: IntegrityError("INSERT", {}, Exception("UNIQUE")),
            lambda: CommitOutcomeUnknownError("lost"),
        ],
    )
    def test_not_for(self, error: Any) -> None:
        """Other errors come out at once; so does a commit that nobody knows of."""
        work = Flaky(1, error)
        with pytest.raises((Exception, KeyboardInterrupt)):
            retrying(on=CommitOutcomeUnknownError)(work)()

        assert 1 == work.calls

    @pytest.mark.parametrize("on", [KeyError, (KeyError, OSError), lambda error: True])
    def test_on(self, on: Any) -> None:
        assert 2 == retrying(on=on)(Flaky(1, KeyError))()

    def test_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """No attempt begins after it."""
        monkeypatch.setattr(retries, "uniform", lambda low, high: 5.0)
        work = Flaky(1)
        with pytest.raises(Busy) as caught:
            retrying(deadline=1)(work)()

        assert 1 == work.calls
        assert "1 seconds are over" in caught.value.__notes__[0]

    def test_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Waits are random up to a limit that doubles, and ends."""
        longest: list[float] = []

        def noted(low: float, high: float) -> float:
            longest.append(high)
            return low

        monkeypatch.setattr(retries, "uniform", noted)
        retrying(attempts=9)(Flaky(7))()

        assert [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0] == longest

    def test_budget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """All of a process share it, and success fills it again."""
        budget = retries.Budget(most=2)
        monkeypatch.setattr(retries, "BUDGET", budget)
        retrying(Flaky(2))()
        with pytest.raises(Busy) as caught:
            retrying(Flaky(1))()
        for _ in range(10):
            retrying(Flaky(0))()

        assert "has spent its retries" in caught.value.__notes__[0]
        assert 2 == retrying(Flaky(1))()
        assert 3 == budget.spent

    def test_nested(self) -> None:
        """One inside of another leaves the retries to that."""
        work = Flaky(2)
        inner = retrying(attempts=9)(work)
        calls = []

        @retrying(attempts=2)
        def outer() -> int:
            calls.append(1)
            return inner()

        with pytest.raises(Busy):
            outer()

        assert 2 == len(calls) == work.calls

    def test_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, "tenure"):
            retrying(Flaky(1))()

        assert "attempt 1 of 5 failed" in caplog.text


class TestWrong:
    def test_generators(self) -> None:
        def numbers() -> Iterator[int]:
            yield 1

        with pytest.raises(SessionError, match="a generator"):
            retrying(numbers)

    @pytest.mark.parametrize("options", [{"attempts": 0}, {"deadline": -1}])
    def test_options(self, options: dict[str, Any]) -> None:
        with pytest.raises(SessionError, match="is a number"):
            retrying(**options)

    def test_inside_of_a_block(self) -> None:
        with (
            Database("sqlite://") as db,
            db.session_manager(),
            pytest.raises(SessionError, match=r"inside of a block.*test_retries\.py"),
        ):
            retrying(Flaky(0))()

    def test_retry_of_a_block(self) -> None:
        with (
            Database("sqlite://") as db,
            pytest.raises(SessionError, match="retry= is for the decorator"),
            db.session_manager(retry=3),
        ):
            raise AssertionError


class TestDecoratorOfBlocks:
    def test_owner(self, url: str) -> None:
        """Each attempt has a session of its own; only the last one's work is kept."""
        with Database(url) as db:
            db.create_all(Base.metadata)
            work, sessions = Flaky(2), set()

            @session_manager(auto_commit=True, retry=3)
            def call() -> None:
                session = current_session()
                sessions.add(session)
                session.add(Thing(name="a"))
                session.flush()
                work()

            call()
            with db.session_manager() as session:
                assert ["a"] == session.scalars(select(Thing.name)).all()

        assert 3 == len(sessions)

    def test_joined(self, url: str) -> None:
        """Where it joins, the owner has to do all of it again."""
        with Database(url) as db:
            work = Flaky(2)

            @session_manager(retry=retrying(attempts=3))
            def call() -> None:
                work()

            with db.session_manager(), pytest.raises(Busy):
                call()

        assert 1 == work.calls

    def test_async(self) -> None:
        work = Flaky(2)

        @async_session_manager(retry=3)
        async def call() -> int:
            return work()

        async def main() -> int:
            async with Database("sqlite://"):
                return await call()

        assert 3 == asyncio.run(main())


@pytest.mark.postgresql
class TestServer:
    @pytest.fixture
    def db(self, postgresql_url: str) -> Iterator[Database]:
        with Database(postgresql_url, isolation_level="SERIALIZABLE") as db:
            db.create_all(Base.metadata)
            with db.session_manager(auto_commit=True) as session:
                session.add_all([Thing(name="a", note="0"), Thing(name="b", note="0")])
            yield db

    def test_serialization_failure(self, db: Database) -> None:
        """Of two that count up from what they have read, none is lost."""
        barrier = threading.Barrier(2)
        calls = []

        @retrying
        def count() -> None:
            with db.session_manager(auto_commit=True) as session:
                thing = session.scalars(select(Thing).where(Thing.name == "a")).one()
                calls.append(1)
                if len(calls) <= 2:
                    barrier.wait(30)
                thing.note = str(int(thing.note or 0) + 1)

        both(count, count)
        with db.session_manager() as session:
            assert "2" == session.scalar(select(Thing.note).where(Thing.name == "a"))
        assert db.report().retries > 0 or len(calls) == 3

    def test_deadlock(self, db: Database) -> None:
        barrier = threading.Barrier(2)
        calls = []

        def swap(first: str, second: str) -> Callable[[], None]:
            @retrying
            def work() -> None:
                with db.session_manager(auto_commit=True) as session:
                    for number, name in enumerate((first, second)):
                        session.execute(
                            update(Thing).where(Thing.name == name).values(note=first)
                        )
                        calls.append(1)
                        if number == 0 and len(calls) <= 2:
                            barrier.wait(30)

            return work

        both(swap("a", "b"), swap("b", "a"))
        with db.session_manager() as session:
            assert 1 == len({*session.scalars(select(Thing.note))})

    def test_lost_connection(self, db: Database) -> None:
        """A connection that is lost before its COMMIT; the work is done once."""
        calls = []

        @retrying
        def work() -> None:
            with db.session_manager(auto_commit=True) as session:
                session.execute(insert(Thing).values(name="once"))
                calls.append(1)
                if len(calls) == 1:
                    pid = session.scalar(text("SELECT pg_backend_pid()"))
                    with db.manager.engines["default"].connect() as other:
                        other.execute(text(f"SELECT pg_terminate_backend({pid})"))
                    session.execute(text("SELECT 1"))

        work()
        with db.session_manager() as session:
            found = session.scalars(select(Thing.name).where(Thing.name == "once"))
            assert ["once"] == found.all()
        assert 2 == len(calls)


def both(*functions: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except (DatabaseError, OperationalError) as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(each,)) for each in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
