"""Callbacks of sync sessions: what nobody could await is refused."""

from __future__ import annotations

import pytest

from tenure import Session, SessionError


async def notify() -> None:
    """Do nothing, for whoever awaits it."""


class Later:
    """Looks like a plain function."""

    def __call__(self) -> object:
        return notify()


def test_coroutine_function() -> None:
    """A coroutine function is refused when it is registered."""
    with Session() as session:
        for register in (session.on_commit, session.on_rollback):
            with pytest.raises(SessionError, match=r"notify.*cannot await"):
                register(notify)


def test_function_that_gives_a_coroutine() -> None:
    """One that only turns out to be one fails, instead of doing nothing."""
    with Session() as session:
        session.on_commit(Later())
        with pytest.raises(SessionError, match="returned a coroutine"):
            session.commit()
