"""
What we need of SQLAlchemy and Pydantic beyond their public names.

One function for each need, with the reason why nothing public does. Each has a test in
``tests/test_private.py``, whose failure says what a new version has changed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple

from sqlalchemy.orm import InstanceState, Session


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
