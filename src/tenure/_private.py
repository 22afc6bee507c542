"""
What we need of SQLAlchemy and Pydantic beyond their public names.

One function for each need, with the reason why nothing public does. Each has a test in
``tests/test_private.py``, whose failure says what a new version has changed.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, NamedTuple, NoReturn

from sqlalchemy import Column
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


class RefusingState(InstanceState[Any]):
    """
    The state of an instance that SQLAlchemy must not load, write or change.

    Nothing public refuses all of that: attribute events leave out loading, and
    session events come after a cascade has reached the instance.
    """

    __slots__ = ()

    def refuse(self, wanted: str) -> NoReturn:
        """Raise an error; *wanted* is what SQLAlchemy needs of the instance."""
        raise NotImplementedError

    @property
    def key(self) -> Any:  # type: ignore[override]  # read only
        """Read by everything that writes an instance or loads from it."""
        self.refuse("row")

    def _load_expired(self, state: Any, passive: Any) -> Any:
        self.refuse("attributes")

    def _modified_event(self, dict_: Any, attr: Any, *args: Any, **kwargs: Any) -> None:
        self.refuse(f"{attr.key!r}" if attr is not None else "row")

    def __getstate__(self) -> dict[str, Any]:
        # A copy would not learn which row was found.
        self.refuse("copy")


class UnmanagedList(list[Any]):
    """
    A list in place of a collection that SQLAlchemy must not use yet.

    Nothing public refuses that: SQLAlchemy takes the adapter of whatever it finds.
    """

    def refuse(self) -> NoReturn:
        """Raise an error."""
        raise NotImplementedError

    @property
    def _sa_adapter(self) -> NoReturn:
        self.refuse()


def is_sentinel(column: Column[Any]) -> bool:
    """
    Whether SQLAlchemy fills *column* to match inserted rows: ``insert_sentinel()``.

    Its public names make such a column, but do not tell one.
    """
    return column._insert_sentinel
