"""Small mistakes, and what is said of them."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm.exc import UnmappedInstanceError

from tenure import (
    Database,
    DatabaseError,
    SessionError,
    Spec,
    async_session_manager,
    current_async_session,
    current_session,
    session_manager,
)


@pytest.fixture
def db() -> Iterator[Database]:
    with Database("sqlite://") as db:
        yield db


class TestWithoutParentheses:
    def test_function(self, db: Database) -> None:
        """The decorator works as with parentheses, and the function is itself."""

        @session_manager
        def ask(number: int) -> Any:
            """Ask for it."""
            return current_session().scalar(text(f"SELECT {number}"))

        assert 3 == ask(3)
        assert ("ask", "Ask for it.") == (ask.__name__, ask.__doc__)
        assert ["number"] == list(inspect.signature(ask).parameters)

    def test_method(self, db: Database) -> None:
        class Service:
            number = 4

            @session_manager
            def ask(self) -> Any:
                return current_session().scalar(text(f"SELECT {self.number}"))

        assert 4 == Service().ask()

    def test_coroutine_function(self) -> None:
        @async_session_manager
        async def ask(number: int) -> Any:
            return await current_async_session().scalar(text(f"SELECT {number}"))

        async def main() -> Any:
            async with Database("sqlite://"):
                return await ask(5)

        assert 5 == asyncio.run(main())

    @pytest.mark.parametrize("manager", [session_manager, async_session_manager])
    def test_something_else(self, manager: Any) -> None:
        with pytest.raises(SessionError, match="takes options by their names, not 3"):
            manager(3)

    @pytest.mark.parametrize(
        ("manager", "word"),
        [(session_manager, "coroutine function"), (async_session_manager, "no corout")],
    )
    def test_wrong_kind(self, manager: Any, word: str) -> None:
        """A function of the other kind is refused, as with parentheses."""

        def function() -> None: ...

        async def coroutine_function() -> None: ...

        wrong = coroutine_function if manager is session_manager else function
        with pytest.raises(SessionError, match=word):
            manager(wrong)


class TestWith:
    def test_async_block(self, db: Database) -> None:
        block: Any = async_session_manager()
        with pytest.raises(SessionError, match="write 'async with async_session_man"):
            block.__enter__()

    def test_sync_block(self, db: Database) -> None:
        async def enter() -> None:
            async with session_manager():  # type: ignore[misc]  # what is tested
                raise AssertionError

        with pytest.raises(SessionError, match=r"write 'with session_manager\(\)'"):
            asyncio.run(enter())


def test_repr_has_no_password() -> None:
    db = Database({"default": "postgresql+psycopg://me:secret@host/shop"})

    assert "<Database: default=postgresql+psycopg://me:***@host/shop>" == repr(db)


def test_entered_elsewhere(db: Database) -> None:
    """A database that is entered in another context is spoken of."""

    def enter() -> None:
        with session_manager():
            raise AssertionError

    with pytest.raises(SessionError, match=r"not in this context.*install\(\)"):
        Context().run(enter)
    with db.session_manager():
        pass


class Base(DeclarativeBase):
    pass


class Port(Base):
    __tablename__ = "port"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)


class PortIn(Spec[Port]):
    code: str


class TestInstances:
    """What a session takes are instances."""

    def test_spec(self, db: Database) -> None:
        spec = PortIn(code="a")
        with db.session_manager() as session:
            with pytest.raises(SessionError, match=r"not PortIn; use bulk\.add\(\)"):
                session.add(spec)
            with pytest.raises(SessionError, match=r"use bulk\.add\(\)"):
                session.add_all([Port(code="b"), spec])
            session.add(spec.to_resource())

    def test_spec_async(self, db: Database) -> None:
        async def main() -> None:
            async with db.async_session_manager() as session:
                with pytest.raises(SessionError, match=r"use bulk\.add\(\)"):
                    session.add(PortIn(code="a"))
            await db.adispose()

        asyncio.run(main())

    @pytest.mark.parametrize("name", ["add", "expire", "expunge", "is_modified"])
    def test_something_else(self, db: Database, name: str) -> None:
        """SQLAlchemy's error, which is ours as well."""
        with db.session_manager() as session:
            with pytest.raises(DatabaseError) as caught:
                getattr(session, name)(3)
        assert isinstance(caught.value, UnmappedInstanceError)


class TestTracebacks:
    """They are no longer than SQLAlchemy's own."""

    def printed(self, work: Callable[[], None]) -> list[str]:
        with pytest.raises(IntegrityError) as caught:
            work()
        return traceback.format_exception(caught.value)

    def test_commit(self, db: Database) -> None:
        db.create_all(Base.metadata)
        engine = db.manager.engines["default"]
        pair = [{"code": "a"}, {"code": "a"}]

        def plain() -> None:
            with PlainSession(engine) as session:
                session.add_all([Port(**each) for each in pair])
                session.commit()

        def ours() -> None:
            with db.session_manager() as session:
                session.add_all([Port(**each) for each in pair])
                session.commit()

        def block() -> None:
            with db.session_manager(auto_commit=True) as session:
                session.add_all([Port(**each) for each in pair])

        limit = "".join(self.printed(plain)).count("\n")
        for work in (ours, block):
            lines = "".join(self.printed(work))
            assert lines.count("\n") <= limit
            # The caller's line, and what the driver and SQLAlchemy said.
            assert f"in {work.__name__}" in lines
            assert "sqlite3.IntegrityError: UNIQUE" in lines
            assert "cursor.execute(statement, parameters)" in lines
