"""
What we need of SQLAlchemy and Pydantic beyond their public names.

One name for each need, with the reason why nothing public does. Each has a test in
``tests/test_private.py``, whose failure says what a new version has changed. Getters are
``attrgetter``: most are asked for with every statement, and it costs no call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NoReturn

from sqlalchemy import Column, Connection
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import InstanceState, Mapper, Session, SessionTransaction
from sqlalchemy.orm.session import SessionTransactionState, _sessions
from sqlalchemy.pool import AsyncAdaptedQueuePool, ConnectionPoolEntry
from sqlalchemy.types import TypeEngine

#: The attribute by which a mapped instance has a state, for ``hasattr()``:
#: ``inspect()`` walks the classes of a value, and this is asked for each of a payload.
STATE = "_sa_instance_state"

# Of a session and of a transaction.
_NEW = "_new"

#: Give what a flush of a session would write, as the session itself keeps it: the new
#: and the deleted objects by state, and the set of changed states. ``session.new`` and
#: the like copy it.
pending: Callable[[Session], tuple[dict[Any, Any], dict[Any, Any], set[Any]]] = (
    attrgetter(_NEW, "_deleted", "identity_map._modified")
)

#: Give the states that became persistent in a transaction: new again if it rolls back.
made_in: Callable[[Any], Any] = attrgetter(_NEW)

#: Whether a session is inside of a flush; no event says so to ``get_bind()``. Set by
#: who begins a savepoint that is not to flush what is pending before it.
FLUSHING = "_flushing"
is_flushing: Callable[[Session], bool] = attrgetter(FLUSHING)

#: Begin a part of a session's transaction that ends it as a failed flush does.
autobegin: Callable[[Any], Any] = Session._autobegin_t
begin_part: Callable[[Any], Any] = SessionTransaction._begin

#: What a flush does to objects that have got their rows: checked, kept by the session,
#: without changes. There is no other way to make many of them persistent at once.
save_impl: Callable[..., None] = Session._save_impl
register_persistent: Callable[..., None] = Session._register_persistent
before_attach: Callable[..., bool] = Session._before_attach
commit_all_states: Callable[..., None] = InstanceState._commit_all_states

#: Whether an object has left the collection that would delete it: a flush leaves it out.
is_orphan: Callable[..., bool] = Mapper._is_orphan
was_orphaned: Callable[[Any], bool] = attrgetter("_orphaned_outside_of_session")

#: The attribute of a state with what waits for a collection that is not loaded.
PENDING_MUTATIONS = "_pending_mutations"

#: All sessions in memory, as ``close_all_sessions()`` has them: nothing is to be written
#: down when a session is made.
all_sessions: Mapping[Any, Any] = _sessions

#: Give the binds of a session by table and mapper; public since SQLAlchemy 2.1.
binds: Callable[[Session], Any] = attrgetter(
    "binds" if hasattr(Session(), "binds") else "_Session__binds"
)

#: Give the parts of a SELECT: its FROM, CTEs, columns, joins and conditions. What
#: is public builds expressions of them, which takes fifty times as long.
parts_of_select: Callable[[Any], tuple[Any, ...]] = attrgetter(
    "_from_obj",
    "_independent_ctes",
    "_raw_columns",
    "_setup_joins",
    "_where_criteria",
)

#: Whether all rows of a result were read; ``closed`` is true after ``close()`` only.
is_read: Callable[[Any], bool] = attrgetter("_soft_closed")

#: Give the lock of a query: FOR UPDATE and the like.
lock_of_select: Callable[[Any], Any] = attrgetter("_for_update_arg")

#: Give the statement that a lambda statement stands for.
statement_of_lambda: Callable[[Any], Any] = attrgetter("_resolved")

#: Give the defaults that attributes have apart from their columns, by table; SQLAlchemy
#: 2.0 has none.
_DEFAULTS = "_insert_orm_defaults"
insert_defaults: Callable[[Any], dict[Any, Any]] = (
    attrgetter(_DEFAULTS) if hasattr(Mapper, _DEFAULTS) else lambda mapper: {}
)


def is_committed(transaction: SessionTransaction) -> bool:
    """
    Whether *transaction* was committed, whatever was raised afterwards.

    An event says so as well, but not after a listener that comes before has failed.
    """
    return transaction._state is SessionTransactionState.COMMITTED


class RefusingState(InstanceState[Any]):
    """
    The state of an instance that SQLAlchemy must not load, write or change.

    Nothing public refuses all of that: attribute events leave out loading, and
    session events come after a cascade has reached the instance.
    """

    __slots__ = ()

    def refuse(self, wanted: str) -> NoReturn:
        """Raise an error; *wanted* is what SQLAlchemy needs of the instance."""
        raise NotImplementedError  # each of them has its own text

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
        raise NotImplementedError  # each of them has its own text

    @property
    def _sa_adapter(self) -> NoReturn:
        self.refuse()


def is_sentinel(column: Column[Any]) -> bool:
    """
    Whether SQLAlchemy fills *column* to match inserted rows: ``insert_sentinel()``.

    Its public names make such a column, but do not tell one.
    """
    return column._insert_sentinel


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
