"""Files and other sources, loaded batch by batch."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .link import LoadMissing
    from .loader import Commit, Progress, Source, load
    from .sources import Pulled

__all__ = [
    "Commit",
    "LoadMissing",
    "Progress",
    "Pulled",
    "Source",
    "load",
]

__getattr__ = lazy(
    __name__,
    {
        ".link": ("LoadMissing",),
        ".loader": ("Commit", "Progress", "Source", "load"),
        ".sources": ("Pulled",),
    },
)
