"""Sessions that ask a :class:`DatabaseManager` which engine to use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import event
from sqlalchemy.orm import Mapper, SessionTransaction
from sqlalchemy.orm import Session as _Session
from sqlalchemy.sql import Select, TextClause
from sqlalchemy.sql.dml import UpdateBase

from .bulk import SessionBulk
from .errors import SessionError

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
        self._scope: Any = None
        self._writes = 0
        self._half_done: BaseException | None = None

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
        then the routers, then the database ``default``.

        Raises:
            RoutingError: No engine, or an unknown one.
        """
        writes = self._flushing or _writes(clause)
        if writes:
            self._writes += 1
        routing = self.routing
        if (
            routing is None
            or bind is not None
            or self.bind is not None
            or self._has_bind_for(mapper, clause)
        ):
            return super().get_bind(mapper, *args, clause=clause, bind=bind, **kwargs)
        resource = mapper.class_ if isinstance(mapper, Mapper) else mapper
        engine = routing.route(
            resource, "write" if writes else "read", async_mode=self.async_mode
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
        except Exception:
            return False
        return True

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


def _writes(clause: Any) -> bool:
    if clause is None:
        return False
    if isinstance(clause, UpdateBase):
        return True
    if isinstance(clause, Select):
        return clause._for_update_arg is not None
    if isinstance(clause, TextClause):
        return not clause.text.lstrip().upper().startswith("SELECT")
    return False


@event.listens_for(Session, "before_commit")
def _refuse_half_done(session: Session) -> None:
    cause = session._half_done
    if cause is not None and session.get_nested_transaction() is None:
        raise SessionError(
            "a joined block wrote and then failed "
            f"({type(cause).__name__}: {cause}), and its error was swallowed; "
            "this work is half done: roll back, or open that block with "
            "savepoint=True"
        ) from cause


@event.listens_for(Session, "after_soft_rollback")
def _rolled_back(session: Session, previous: SessionTransaction) -> None:
    if previous.parent is None:
        session._half_done = None
