"""Sessions that know their databases and have one user at a time; their factories."""

from typing import TYPE_CHECKING

from .._lazy import lazy
from .callbacks import Callback, is_inside
from .exclusive import OnConcurrent, checked
from .factories import SessionFactory, scoped_session, session_factory
from .joined import Watch
from .session import Session

if TYPE_CHECKING:
    from .aio import (
        AsyncSession,
        AsyncSessionFactory,
        async_scoped_session,
        async_session_factory,
    )

__all__ = [
    "AsyncSession",
    "AsyncSessionFactory",
    "Callback",
    "OnConcurrent",
    "Session",
    "SessionFactory",
    "Watch",
    "async_scoped_session",
    "async_session_factory",
    "checked",
    "is_inside",
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
