"""
The session layer for SQLAlchemy: the public names.

What not every program uses is imported when it is first used: bulks, references and
models, and the async face, which needs greenlet.
"""

from typing import TYPE_CHECKING

from ._lazy import lazy
from .context import APP_CONTEXT, SESSION_BULK_CONTEXT, SESSION_CONTEXT, context_scope
from .database import Database
from .engines import DatabaseManager
from .errors import (
    CommitOutcomeUnknownError,
    ConcurrentUseError,
    ConflictError,
    DatabaseError,
    DeadlineExceededError,
    LoadError,
    LostWriteError,
    PartialCommitError,
    PrimaryUnavailableError,
    RejectedRowsError,
    ResolutionError,
    RoutingError,
    SessionError,
    StaleReplicaError,
    TenureError,
    UnresolvedReferenceError,
    UnwrittenValuesWarning,
)
from .routing import Choice, DatabaseRouter
from .scopes import (
    async_session_manager,
    carry,
    current_async_session,
    current_session,
    gather,
    on_commit,
    on_rollback,
    on_unknown,
    retrying,
    session_manager,
    using,
)
from .sessions import (
    OpenSession,
    Session,
    SessionFactory,
    scoped_session,
    session_factory,
)

if TYPE_CHECKING:
    from .bulk import (
        AsyncSessionBulk,
        Bulk,
        BulkEntry,
        BulkReport,
        LoadReport,
        Resolution,
        SessionBulk,
    )
    from .models import Resource, Spec, entity_of, spec_of
    from .references import Key, Proxy, Ref
    from .sessions import (
        AsyncSession,
        AsyncSessionFactory,
        async_scoped_session,
        async_session_factory,
    )

__version__ = "0.1.0.dev0"

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
    "ConflictError",
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
    "PartialCommitError",
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
    "UnwrittenValuesWarning",
    "async_scoped_session",
    "async_session_factory",
    "async_session_manager",
    "carry",
    "context_scope",
    "current_async_session",
    "current_session",
    "entity_of",
    "gather",
    "on_commit",
    "on_rollback",
    "on_unknown",
    "retrying",
    "scoped_session",
    "session_factory",
    "session_manager",
    "spec_of",
    "using",
]

__getattr__ = lazy(
    __name__,
    {
        ".bulk": (
            "AsyncSessionBulk",
            "Bulk",
            "BulkEntry",
            "BulkReport",
            "LoadReport",
            "Resolution",
            "SessionBulk",
        ),
        ".models": ("Resource", "Spec", "entity_of", "spec_of"),
        ".references": ("Key", "Proxy", "Ref"),
        ".sessions": (
            "AsyncSession",
            "AsyncSessionFactory",
            "async_scoped_session",
            "async_session_factory",
        ),
    },
)
