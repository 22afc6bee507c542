"""Small mistakes, and what is said of them."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from contextvars import Context
from typing import Any

import pytest
from sqlalchemy import text

from tenure import (
    Database,
    SessionError,
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
