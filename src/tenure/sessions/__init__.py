"""Sessions that know their databases and have one user at a time; their factories."""

from typing import TYPE_CHECKING

from .._lazy import lazy
from .callbacks import Callback
from .exclusive import current_user, is_inside
from .factories import SessionFactory, scoped_session, session_factory
from .opened import OpenSession, open_sessions
from .options import JOINED_TIMEOUT, OnConcurrent, OnJoined, checked, checked_seconds
from .session import Session
from .unloaded import explain_unloaded
from .watch import Watch

if TYPE_CHECKING:
    from .aio import (
        AsyncSession,
        AsyncSessionFactory,
        async_scoped_session,
        async_session_factory,
    )

# Before the program configures its mappers.
explain_unloaded()

__all__ = [
    "JOINED_TIMEOUT",
    "AsyncSession",
    "AsyncSessionFactory",
    "Callback",
    "OnConcurrent",
    "OnJoined",
    "OpenSession",
    "Session",
    "SessionFactory",
    "Watch",
    "async_scoped_session",
    "async_session_factory",
    "checked",
    "checked_seconds",
    "current_user",
    "is_inside",
    "open_sessions",
    "scoped_session",
    "session_factory",
]

__getattr__ = lazy(
    __name__,
    {
        ".aio": (
            "AsyncSession",
            "AsyncSessionFactory",
            "async_scoped_session",
            "async_session_factory",
        ),
    },
)
