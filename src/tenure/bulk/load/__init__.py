"""Files and other sources, loaded batch by batch."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .link import LoadMissing
    from .loader import Commit, LoadOptions, Progress, Source, load
    from .report import LoadReport, Reject

__all__ = [
    "Commit",
    "LoadMissing",
    "LoadOptions",
    "LoadReport",
    "Progress",
    "Reject",
    "Source",
    "load",
]

__getattr__ = lazy(
    __name__,
    {
        ".link": ("LoadMissing",),
        ".loader": ("Commit", "LoadOptions", "Progress", "Source", "load"),
        ".report": ("LoadReport", "Reject"),
    },
)
