"""From a URL to a connection: pairs of engines, each made when first used."""

from .commits import (
    FAILED,
    Commit,
    assigned_xid,
    begin_commit,
    end_commit,
    refuse_ended,
    watch_commits,
)
from .counting import changes
from .drivers import is_async_url
from .manager import DatabaseManager, recipe_of
from .read_only import begin_reading, end_reading
from .sqlite import begin_late

__all__ = [
    "FAILED",
    "Commit",
    "DatabaseManager",
    "assigned_xid",
    "begin_commit",
    "begin_late",
    "begin_reading",
    "changes",
    "end_commit",
    "end_reading",
    "is_async_url",
    "recipe_of",
    "refuse_ended",
    "watch_commits",
]
