"""Scopes: what is decided, without a database."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import sessionmaker

from tenure import (
    SessionError,
    async_session_factory,
    async_session_manager,
    session_factory,
    session_manager,
)
from tenure.scopes.scope import decide, ending

BOTH = (False, True)


@pytest.mark.parametrize("savepoint", BOTH)
@pytest.mark.parametrize("on_missing", ["create", "raise"])
class TestDecide:
    def test_new(self, on_missing: str, savepoint: bool) -> None:
        """With new=True it is always another session."""
        for current, same in itertools.product(BOTH, BOTH):
            assert "create" == decide(
                current=current,
                same_factory=same,
                new=True,
                on_missing=on_missing,
                savepoint=savepoint,
            )

    def test_current(self, on_missing: str, savepoint: bool) -> None:
        """A current session of the factory is joined, or is given a savepoint."""
        assert ("savepoint" if savepoint else "join") == decide(
            current=True,
            same_factory=True,
            new=False,
            on_missing=on_missing,
            savepoint=savepoint,
        )

    def test_other_factory(self, on_missing: str, savepoint: bool) -> None:
        """A current session of another factory is not."""
        assert "create" == decide(
            current=True,
            same_factory=False,
            new=False,
            on_missing=on_missing,
            savepoint=savepoint,
        )

    def test_missing(self, on_missing: str, savepoint: bool) -> None:
        """Without a current session one is made, or missed."""
        assert ("create" if on_missing == "create" else None) == decide(
            current=False,
            same_factory=True,
            new=False,
            on_missing=on_missing,
            savepoint=savepoint,
        )


class TestEnding:
    @pytest.mark.parametrize(
        ("error", "auto_commit", "wanted"),
        [
            (None, False, "discard"),
            (None, True, "commit"),
            (KeyError(), False, "rollback"),
            (KeyError(), True, "rollback"),
            (KeyboardInterrupt(), True, "rollback"),
            (GeneratorExit(), True, "rollback"),
        ],
    )
    def test_owner(
        self, error: BaseException | None, auto_commit: bool, wanted: str
    ) -> None:
        """An owner commits if it was told to and all went well."""
        assert wanted == ending(error, owns=True, auto_commit=auto_commit)

    @pytest.mark.parametrize("error", [None, KeyError()])
    @pytest.mark.parametrize("auto_commit", BOTH)
    @pytest.mark.parametrize("has_written", BOTH)
    def test_joined(
        self, error: BaseException | None, auto_commit: bool, has_written: bool
    ) -> None:
        """A joined block leaves the session to its owner."""
        assert "leave" == ending(
            error, owns=False, auto_commit=auto_commit, has_written=has_written
        )

    @pytest.mark.parametrize(
        ("error", "has_written", "wanted"),
        [
            (None, False, "discard"),
            (None, True, "lose"),
            (KeyError(), False, "rollback"),
            (KeyError(), True, "rollback"),
        ],
    )
    def test_orphaned(
        self, error: BaseException | None, has_written: bool, wanted: str
    ) -> None:
        """A joined block whose owner has ended has to end the session itself."""
        assert wanted == ending(
            error,
            owns=False,
            auto_commit=True,
            owner_ended=True,
            has_written=has_written,
        )


class TestArguments:
    """What is wrong is said at the call, with what was given and what is allowed."""

    @pytest.mark.parametrize(
        ("manager", "factory", "other"),
        [
            (session_manager, async_sessionmaker(), "async_session_manager"),
            (session_manager, async_session_factory(), "async_session_manager"),
            (
                session_manager,
                async_session_factory(scoped=True),
                "async_session_manager",
            ),
            (async_session_manager, sessionmaker(), "session_manager"),
            (async_session_manager, session_factory(), "session_manager"),
            (async_session_manager, session_factory(scoped=True), "session_manager"),
        ],
    )
    def test_factory_of_the_other_kind(
        self, manager: Any, factory: Any, other: str
    ) -> None:
        """A factory of the other kind is named, and what to use for it."""
        with pytest.raises(SessionError, match=rf"got a factory of .*use {other}\(\)"):
            manager(using=factory)

    @pytest.mark.parametrize("manager", [session_manager, async_session_manager])
    @pytest.mark.parametrize("wrong", [7, "default", object()])
    def test_no_factory(self, manager: Any, wrong: Any) -> None:
        """What cannot be called is no factory."""
        with pytest.raises(SessionError, match="using is a session factory, not"):
            manager(using=wrong)

    @pytest.mark.parametrize("manager", [session_manager, async_session_manager])
    def test_on_missing(self, manager: Any) -> None:
        """There are two things to do where no session is current."""
        with pytest.raises(SessionError, match="'create' or 'raise', not 'maybe'"):
            manager(on_missing="maybe")
