"""Sessions that ask a :class:`DatabaseManager` which engine to use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import Connection, event, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Mapper, SessionTransaction
from sqlalchemy.orm import Session as _Session

from .bulk import SessionBulk
from .engines import begin_late
from .errors import SessionError
from .routing import writes

if TYPE_CHECKING:
    from .async_sessions import AsyncSession
    from .engines import DatabaseManager


class Session(_Session):
    """
    SQLAlchemy's ``Session``, which also knows its databases.

    Args:
        bind: As in SQLAlchemy; it comes before *routing*.
        routing: The manager asked for an engine where no bind answers.
        proxy: The async session that this one serves.
    """

    def __init__(
        self,
        bind: Any = None,
        routing: DatabaseManager | None = None,
        proxy: AsyncSession | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(bind, *args, **kwargs)
        self.routing = routing
        # Weak: a cycle would leave an abandoned async session to the collector.
        self._proxy = None if proxy is None else ref(proxy)
        self._written = False
        self._watches: list[Watch] = []
        self._half_done: tuple[BaseException, SessionTransaction | None] | None = None

    @property
    def proxy(self) -> AsyncSession | None:
        """The async session that this one serves."""
        return None if self._proxy is None else self._proxy()

    @property
    def async_mode(self) -> bool:
        """Whether this session serves an async one."""
        return self._proxy is not None

    def get_bind(
        self,
        mapper: Any = None,
        *args: Any,
        clause: Any = None,
        bind: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        Give the engine for a mapper or a statement.

        What SQLAlchemy would choose from ``binds`` and ``bind`` comes first,
        then the routers, then the database ``default``. Once a transaction has
        written, all of it goes where writing goes.

        Raises:
            RoutingError: No engine, or an unknown one.
        """
        if self._flushing or (clause is not None and writes(clause)):
            self._note_write()
        routing = self.routing
        if (
            routing is None
            or bind is not None
            or self.bind is not None
            or self._has_bind_for(mapper, clause)
        ):
            return super().get_bind(mapper, *args, clause=clause, bind=bind, **kwargs)
        role = "write" if self._written or self._flushing else "read"
        engine = routing.route(
            mapper.class_ if isinstance(mapper, Mapper) else mapper,
            role,  # type: ignore[arg-type]  # one of the two
            async_mode=self.async_mode,
            session=self.proxy or self,
            statement=clause,
            in_transaction=self.in_transaction(),
        )
        return engine.sync_engine if self.async_mode else engine

    def _has_bind_for(self, mapper: Any, clause: Any) -> bool:
        # Public since SQLAlchemy 2.1.
        if not getattr(self, "binds", None) and not getattr(
            self, "_Session__binds", None
        ):
            return False
        try:
            _Session.get_bind(self, mapper, clause=clause)
        except UnboundExecutionError:
            return False
        return True

    def _note_write(self) -> None:
        self._written = True
        if not self._flushing:
            # What a flush writes was looked at before it: see _flushes().
            for watch in self._watches:
                watch.has_written = True

    def commit(self, *, expire: bool | None = None) -> None:
        """
        Commit.

        Args:
            expire: Overrides ``expire_on_commit`` for this one commit.

        Raises:
            SessionError: A joined block wrote and failed, and its error was
                swallowed; roll back first.
        """
        if expire is None or expire == self.expire_on_commit:
            super().commit()
            return
        before, self.expire_on_commit = self.expire_on_commit, expire
        try:
            super().commit()
        finally:
            self.expire_on_commit = before

    def bulk(self, *, proxy_reference: bool = True) -> SessionBulk:
        """Give a new bulk on this session, to be entered with ``with``."""
        return SessionBulk(self, proxy_reference=proxy_reference)


class Watch:
    """
    What a block that joined a session has written itself.

    What waited to be written before it began is not its own, though a query of
    the block may flush it.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.has_written = False
        self._waited = _waiting(session)
        session._watches.append(self)

    def look(self) -> bool:
        """Take in what waits to be written now; say whether any is the block's."""
        if not self.has_written:
            self.has_written = any(
                key not in self._waited or _differ(values, self._waited[key])
                for key, values in _waiting(self.session).items()
            )
        return self.has_written

    def forget(self) -> None:
        """The transaction has ended, and what was written with it."""
        self.has_written = False
        self._waited = {}

    def end(self, error: BaseException | None) -> bool:
        """
        End with the block, and say whether it has written.

        If it failed after that, the work is half done.
        """
        session = self.session
        has_written = self.look()
        session._watches.remove(self)
        if error is not None and has_written:
            transaction = session.get_nested_transaction() or session.get_transaction()
            session._half_done = error, transaction
        return has_written


def _waiting(session: Session) -> dict[Any, dict[str, Any]]:
    """Give what a flush would write: each object, and the values it has changed."""
    if session._is_clean():
        return {}
    return {
        (kind, state): {key: state.dict.get(key) for key in state.committed_state}
        for kind, instances in (
            ("new", session.new),
            ("dirty", session.dirty),
            ("deleted", session.deleted),
        )
        for state in map(inspect, instances)
    }


def _differ(left: dict[str, Any], right: dict[str, Any]) -> bool:
    # By identity: a value's own == may do anything.
    return left.keys() != right.keys() or any(
        value is not right[key] for key, value in left.items()
    )


@event.listens_for(Session, "after_begin")
def _begins(
    session: Session, transaction: SessionTransaction, connection: Connection
) -> None:
    if connection.dialect.name == "sqlite" and not transaction.nested:
        event.listen(connection, "savepoint", begin_late)


@event.listens_for(Session, "before_flush")
def _flushes(session: Session, context: Any, instances: Any) -> None:
    for watch in session._watches:
        watch.look()


@event.listens_for(Session, "before_commit")
def _refuse_half_done(session: Session) -> None:
    if session._half_done is not None and session.get_nested_transaction() is None:
        cause, _ = session._half_done
        raise SessionError(
            "a joined block wrote and then failed "
            f"({type(cause).__name__}: {cause}), and its error was swallowed; "
            "this work is half done: roll back, or open that block with "
            "savepoint=True"
        ) from cause


@event.listens_for(Session, "after_soft_rollback")
def _rolled_back(session: Session, previous: SessionTransaction) -> None:
    if session._half_done is None:
        return
    _, transaction = session._half_done
    while transaction is not None:
        if transaction is previous:
            session._half_done = None
            return
        transaction = transaction.parent


@event.listens_for(Session, "after_transaction_end")
def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session._written = False
        session._half_done = None
        for watch in session._watches:
            watch.forget()
