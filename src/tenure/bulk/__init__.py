"""Values and references, resolved together and written as one; files, loaded."""

from typing import TYPE_CHECKING

from .._lazy import lazy

if TYPE_CHECKING:
    from .collected import BulkEntry
    from .core import Bulk
    from .faces import AsyncSessionBulk, SessionBulk
    from .load import LoadReport, Reject
    from .report import BulkReport, Failure, Resolution

__all__ = [
    "AsyncSessionBulk",
    "Bulk",
    "BulkEntry",
    "BulkReport",
    "Failure",
    "LoadReport",
    "Reject",
    "Resolution",
    "SessionBulk",
]

__getattr__ = lazy(
    __name__,
    {
        ".collected": ("BulkEntry",),
        ".core": ("Bulk",),
        ".faces": ("AsyncSessionBulk", "SessionBulk"),
        ".load": ("LoadReport", "Reject"),
        ".report": ("BulkReport", "Failure", "Resolution"),
    },
)
