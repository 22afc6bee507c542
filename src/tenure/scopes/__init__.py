"""Blocks in which a session is current, and how they end."""

from .current import (
    current_async_session,
    current_session,
    on_commit,
    on_rollback,
    on_unknown,
    using,
)
from .gathering import gather
from .managers import async_session_manager, session_manager
from .options import DatabaseOptions
from .reports import LeakWatch, OpenSession, open_sessions

__all__ = [
    "DatabaseOptions",
    "LeakWatch",
    "OpenSession",
    "async_session_manager",
    "current_async_session",
    "current_session",
    "gather",
    "on_commit",
    "on_rollback",
    "on_unknown",
    "open_sessions",
    "session_manager",
    "using",
]
