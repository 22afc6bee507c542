"""
What we need of SQLAlchemy and Pydantic beyond their public names.

One function for each need, with the reason why nothing public does. Each has a test in
``tests/test_private.py``, whose failure says what a new version has changed.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.types import TypeEngine


class Pending(NamedTuple):
    """The collections in which a session keeps what a flush would write."""

    new: MutableMapping[InstanceState[Any], Any]
    deleted: MutableMapping[InstanceState[Any], Any]
    modified: set[InstanceState[Any]]


def pending(session: Session) -> Pending:
    """
    Give what a flush of *session* would write, as the session itself keeps it.

    ``session.new`` and the like copy it, and are asked for with every statement.
    """
    return Pending(session._new, session._deleted, session.identity_map._modified)


def state_of(value: Any) -> InstanceState[Any] | None:
    """
    Give SQLAlchemy's state of a mapped instance; ``None`` for any other value.

    ``inspect()`` walks the classes of a value, and this is asked for each of a payload.
    """
    return getattr(value, "_sa_instance_state", None)


def variant_of(column_type: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """
    Return the type that ``with_variant()`` named for *dialect*, or the type itself.

    ``dialect_impl()`` chooses it too, but returns the dialect's adaption of it, which
    no longer says which type the mapping named.
    """
    return column_type._variant_mapping.get(dialect.name, column_type)


def is_autocommit(connection: Connection) -> bool:
    """
    Return whether each statement of *connection* is a transaction of its own.

    ``get_isolation_level()`` asks the database; this knows it from the options.
    """
    return connection._is_autocommit_isolation()


def dbapi_errors_of_asyncpg(module: Any) -> Mapping[type[Any], type[Exception]]:
    """
    Return the DBAPI error that SQLAlchemy raises for each of asyncpg's errors.

    Only SQLAlchemy's cursor translates errors, and COPY needs asyncpg's own connection.
    """
    errors: Mapping[type[Any], type[Exception]] = module._asyncpg_error_translate
    return errors
