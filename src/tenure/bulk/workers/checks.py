"""What workers cannot do as the session of the caller would."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ..._private import is_autocommit
from ...engines import recipe_of
from ...errors import LoadError, said
from ..write import LIFE_EVENTS

#: Events of one session, engine or pool whose listeners may change what is written.
_OF_SESSIONS = (
    *("after_begin", "before_flush", "after_flush", "after_flush_postexec"),
    *("before_commit", "after_commit"),
    *("do_orm_execute", *LIFE_EVENTS),
)
_OF_ENGINES = ("begin", "engine_connect", "before_execute", "before_cursor_execute")
_OF_POOLS = ("connect", "first_connect", "checkout")
_OF_DIALECTS = ("do_connect", "do_execute", "do_executemany", "do_execute_no_params")


def check_database(binds: Collection[Engine | Connection]) -> None:
    """
    Refuse a database that a worker would not reach as the caller does.

    Raises:
        LoadError: It is one.
    """
    if any(isinstance(bind, Connection) for bind in binds):
        raise LoadError(
            "the session is bound to a connection, which workers cannot use; bind it to "
            "an engine, or say commit='once'"
        )
    if len({bind.engine for bind in binds}) > 1:
        raise LoadError(
            "the rows and what they name are in several databases, and a worker knows "
            "one; say commit='once'"
        )
    [engine] = {bind.engine for bind in binds}
    if engine.dialect.name == "sqlite":
        raise LoadError(
            "SQLite has one writer at a time, so parts cannot be committed apart; say "
            "commit='once', and workers validate what this process writes"
        )
    if recipe_of(engine) is None:
        raise LoadError(
            "the engine was made by the program, and workers cannot know how; give "
            "Database() the URL and its engine_options, or say commit='once'"
        )
    listened = [
        *_listened(engine, _OF_ENGINES),
        *_listened(engine.pool, _OF_POOLS),
        *_listened(engine.dialect, _OF_DIALECTS),
    ]
    if listened:
        raise LoadError(
            f"the engine has a listener for {', '.join(listened)}, which workers do not "
            f"have; say it by engine_options, or say commit='once'"
        )
    with engine.connect() as connection:
        if is_autocommit(connection):
            raise LoadError(
                "the engine commits each statement by itself (AUTOCOMMIT), so a part "
                "and the note that it is done cannot be written together; use an engine "
                "with transactions, or commit='batch'"
            )


def check_session(session: Session) -> None:
    """
    Refuse a session that has done, or listens to, what workers do not know of.

    Raises:
        LoadError: It is one.
    """
    if session.in_transaction():
        raise LoadError(
            "the session is in a transaction, and workers do not see what it has "
            "written; commit() or rollback() before a load with commit='part'"
        )
    cls = class_of(session)
    try:
        plain = cls()
    except TypeError as error:
        raise LoadError(
            f"workers cannot make a {cls.__name__} by itself: {said(error)}; let it do "
            f"without arguments, or say commit='once'"
        ) from error
    listened = [
        event
        for event in _OF_SESSIONS
        if any(
            each not in getattr(plain.dispatch, event) and not _is_ours(each)
            for each in getattr(session.dispatch, event)
        )
    ]
    if listened:
        raise LoadError(
            f"the session has a listener for {', '.join(listened)}, which workers do "
            f"not have; listen to its class, in a module that they import, or say "
            f"commit='once'"
        )


def class_of(session: Session) -> type[Session]:
    """Return the class of a session, or the base of it that others can import."""
    # A factory makes a class of its own.
    classes: list[type[Session]] = [
        cls
        for cls in type(session).__mro__
        if getattr(sys.modules.get(cls.__module__), cls.__name__, None) is cls
    ]
    return classes[0]


def _listened(target: Any, events: Collection[str]) -> Iterator[str]:
    """Yield those of *events* that somebody listens to, on *target* and not its class."""
    for event in events:
        listeners = getattr(getattr(target.dispatch, event), "listeners", ())
        if not all(map(_is_ours, listeners)):
            yield event


def _is_ours(listener: Any) -> bool:
    while hasattr(listener, "__wrapped__"):
        listener = listener.__wrapped__
    module = getattr(listener, "__module__", None) or ""
    return module.partition(".")[0] in ("tenure", "sqlalchemy")
