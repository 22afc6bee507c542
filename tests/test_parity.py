"""The two faces have the same names, and take the same."""

from __future__ import annotations

import inspect
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession as PlainAsyncSession
from sqlalchemy.ext.asyncio import async_scoped_session as plain_async_scoped_session
from sqlalchemy.orm import Session as PlainSession
from sqlalchemy.orm import scoped_session as plain_scoped_session

import tenure
from tenure import Database, DatabaseManager

# (sync, async, what SQLAlchemy has of each)
PAIRS = [
    (tenure.Session, tenure.AsyncSession, PlainSession, PlainAsyncSession),
    (tenure.SessionBulk, tenure.AsyncSessionBulk, object, object),
    (tenure.session_manager, tenure.async_session_manager, object, object),
    (
        tenure.scoped_session,
        tenure.async_scoped_session,
        plain_scoped_session,
        plain_async_scoped_session,
    ),
]
IDS = [sync.__name__ for sync, *_ in PAIRS]

# Only one face can have them.
ONE_SIDED = {
    # What the sync session knows of the async one, and the other way round.
    (tenure.Session, "proxy"),
    (tenure.Session, "async_mode"),
    (tenure.scoped_session, "proxy"),
    (tenure.scoped_session, "async_mode"),
    (tenure.AsyncSession, "sync_session_class"),
    # AsyncSession asks the sync one.
    (tenure.Session, "get_bind"),
    (tenure.Session, "begin"),
    (tenure.Session, "close"),
    (tenure.Session, "connection"),
    (tenure.Session, "flush"),
    # Of the sync ones only in SQLAlchemy 2.0, of the async ones in all.
    (tenure.Session, "close_all"),
    (tenure.scoped_session, "close_all"),
}
SPELT = {"__enter__": "__aenter__", "__exit__": "__aexit__"}


def added(cls: type[Any], plain: type[Any]) -> set[str]:
    """Name what *cls* has that *plain* has not, or has otherwise."""
    return {
        name
        for parent in cls.__mro__
        if parent.__module__.startswith("tenure") and parent not in plain.__mro__
        for name in vars(parent)
        if (cls, name) not in ONE_SIDED
        and (name[0] != "_" or name in SPELT.values())
        # Neither is what SQLAlchemy has, for one user at a time.
        and inspect.unwrap(vars(parent)[name]) is not getattr(plain, name, None)
    } | {
        SPELT[name]
        for parent in cls.__mro__
        if parent.__module__.startswith("tenure")
        for name in vars(parent)
        if name in SPELT
    }


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    return [
        (parameter.name, parameter.kind, parameter.default)
        for parameter in signature(function).parameters.values()
    ]


@pytest.mark.parametrize(
    ("sync", "asynchronous", "plain", "plain_async"), PAIRS, ids=IDS
)
def test_names(sync: Any, asynchronous: Any, plain: Any, plain_async: Any) -> None:
    """What one face adds to SQLAlchemy's, the other adds as well."""
    assert added(sync, plain) == added(asynchronous, plain_async)


@pytest.mark.parametrize(
    ("sync", "asynchronous", "plain", "plain_async"), PAIRS, ids=IDS
)
def test_parameters(sync: Any, asynchronous: Any, plain: Any, plain_async: Any) -> None:
    """Methods of one name take the same, with the same defaults."""
    for name in added(sync, plain) - set(SPELT.values()):
        one, other = getattr(sync, name), getattr(asynchronous, name)
        if not callable(one) or is_open(other):
            continue
        assert parameters(one) == parameters(other), name


@pytest.mark.parametrize(
    ("sync", "asynchronous", "plain", "plain_async"), PAIRS, ids=IDS
)
def test_documented(sync: Any, asynchronous: Any, plain: Any, plain_async: Any) -> None:
    """Both faces are documented, down to their methods."""
    for cls, base in ((sync, plain), (asynchronous, plain_async)):
        assert cls.__doc__
        for name in added(cls, base) - set(SPELT.values()):
            function = getattr(cls, name)
            assert not callable(function) or function.__doc__, f"{cls.__name__}.{name}"


def is_open(function: Any) -> bool:
    """Whether *function* passes on whatever keywords it gets."""
    kinds = {parameter.kind for parameter in signature(function).parameters.values()}
    return Parameter.VAR_KEYWORD in kinds


def test_managers() -> None:
    """The two managers take the same, by keyword only."""
    sync, asynchronous = (
        parameters(manager)
        for manager in (tenure.session_manager, tenure.async_session_manager)
    )

    assert sync == asynchronous
    assert {Parameter.KEYWORD_ONLY} == {kind for _, kind, _ in sync}
    assert ["using", "auto_commit", "new", "on_missing"] == [name for name, *_ in sync][
        :4
    ]


def test_factories() -> None:
    """The two factories take the same; the async one says what a scope is."""
    sync, asynchronous = (
        {name: default for name, _, default in parameters(factory)}
        for factory in (tenure.session_factory, tenure.async_session_factory)
    )

    assert {"scopefunc"} == asynchronous.keys() - sync.keys()
    assert sync == {name: asynchronous[name] for name in sync}


@pytest.mark.parametrize("cls", [Database, DatabaseManager])
def test_a_names(cls: type[Any]) -> None:
    """What waits, beside a method that does not, has its name with an "a" in front."""
    waiting = {
        name
        for name, function in vars(cls).items()
        if iscoroutinefunction(function) and not name.startswith("_")
    }
    assert waiting
    for name in waiting:
        assert parameters(getattr(cls, name[1:])) == parameters(getattr(cls, name)), (
            name
        )


def test_sync_session_class() -> None:
    """The async session runs on ours."""
    assert tenure.Session is tenure.AsyncSession.sync_session_class
