"""
What we need of SQLAlchemy and Pydantic beyond their public names.

One function for each need, with the reason why nothing public does. Each has a test in
``tests/test_private.py``, whose failure says what a new version has changed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple

from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry


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


class HookedPool(AsyncAdaptedQueuePool):
    """
    A pool whose steps can be overridden by public names.

    SQLAlchemy has no public hook for where connections come from and return to, nor
    for the time before which all of them count as lost.
    """

    #: Connections opened before this time, in seconds, are replaced at checkout.
    invalid_before: float = 0

    #: Return an idle connection, or wait for one, or open one.
    get_entry = AsyncAdaptedQueuePool._do_get

    def _do_get(self) -> ConnectionPoolEntry:
        return self.get_entry()

    def return_entry(self, entry: ConnectionPoolEntry) -> None:
        """Take a connection back."""
        super()._do_return_conn(entry)

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        self.return_entry(record)

    def create_entry(self) -> ConnectionPoolEntry:
        """Open a connection."""
        return super()._create_connection()

    def _create_connection(self) -> ConnectionPoolEntry:
        return self.create_entry()

    @property
    def _invalidate_time(self) -> float:
        return self.invalid_before

    @_invalidate_time.setter
    def _invalidate_time(self, time: float) -> None:
        self.invalid_before = time
