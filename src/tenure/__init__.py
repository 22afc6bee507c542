"""
The session layer for SQLAlchemy.

The public names. Those of the async face need greenlet, so they are imported
when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .bulk import (
    AsyncSessionBulk,
    Bulk,
    BulkEntry,
    BulkReport,
    LoadReport,
    Resolution,
    SessionBulk,
)
from .context import (
    APP_CONTEXT,
    SESSION_BULK_CONTEXT,
    SESSION_CONTEXT,
    context_scope,
)
from .current import (
    current_async_session,
    current_session,
    on_commit,
    on_rollback,
    using,
)
from .database import Database
from .engines import DatabaseManager
from .errors import (
    CommitOutcomeUnknownError,
    ConcurrentUseError,
    DatabaseError,
    DeadlineExceededError,
    LoadError,
    LostWriteError,
    PrimaryUnavailableError,
    RejectedRowsError,
    ResolutionError,
    RoutingError,
    SessionError,
    StaleReplicaError,
    TenureError,
    UnresolvedReferenceError,
)
from .gathering import gather
from .references import Key, Proxy, Ref
from .reports import OpenSession
from .resources import Resource, Spec, entity_of
from .routing import Choice, DatabaseRouter
from .scopes import async_session_manager, session_manager
from .scoping import SessionFactory, scoped_session, session_factory
from .sessions import Session

if TYPE_CHECKING:
    from .async_sessions import (
        AsyncSession,
        AsyncSessionFactory,
        async_scoped_session,
        async_session_factory,
    )

__version__ = "0.1.0.dev0"

_ASYNC = (
    "AsyncSession",
    "AsyncSessionFactory",
    "async_scoped_session",
    "async_session_factory",
)

__all__ = [
    "APP_CONTEXT",
    "SESSION_BULK_CONTEXT",
    "SESSION_CONTEXT",
    "AsyncSession",
    "AsyncSessionBulk",
    "AsyncSessionFactory",
    "Bulk",
    "BulkEntry",
    "BulkReport",
    "Choice",
    "CommitOutcomeUnknownError",
    "ConcurrentUseError",
    "Database",
    "DatabaseError",
    "DatabaseManager",
    "DatabaseRouter",
    "DeadlineExceededError",
    "Key",
    "LoadError",
    "LoadReport",
    "LostWriteError",
    "OpenSession",
    "PrimaryUnavailableError",
    "Proxy",
    "Ref",
    "RejectedRowsError",
    "Resolution",
    "ResolutionError",
    "Resource",
    "RoutingError",
    "Session",
    "SessionBulk",
    "SessionError",
    "SessionFactory",
    "Spec",
    "StaleReplicaError",
    "TenureError",
    "UnresolvedReferenceError",
    "async_scoped_session",
    "async_session_factory",
    "async_session_manager",
    "context_scope",
    "current_async_session",
    "current_session",
    "entity_of",
    "gather",
    "on_commit",
    "on_rollback",
    "scoped_session",
    "session_factory",
    "session_manager",
    "using",
]


def __getattr__(name: str) -> Any:
    if name in _ASYNC:
        return getattr(import_module(".async_sessions", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
