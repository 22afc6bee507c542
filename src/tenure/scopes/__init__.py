"""Blocks in which a session is current, and how they end."""

from .carrying import carry
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
from .options import OnMissing, Options
from .reports import LeakWatch, Report
from .retries import BUDGET, Retrying, retrying

__all__ = [
    "BUDGET",
    "LeakWatch",
    "OnMissing",
    "Options",
    "Report",
    "Retrying",
    "async_session_manager",
    "carry",
    "current_async_session",
    "current_session",
    "gather",
    "on_commit",
    "on_rollback",
    "on_unknown",
    "retrying",
    "session_manager",
    "using",
]
