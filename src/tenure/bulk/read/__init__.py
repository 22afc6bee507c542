"""Files and other sources, read as numbered records."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .options import Accepted, ReadKeywords, ReadOptions
    from .pulled import Pulled
    from .records import Bad, Record, plain
    from .sources import Records, check_choice

__all__ = [
    "Accepted",
    "Bad",
    "Pulled",
    "ReadKeywords",
    "ReadOptions",
    "Record",
    "Records",
    "check_choice",
    "plain",
]

__getattr__ = lazy(
    __name__,
    {
        ".options": ("Accepted", "ReadKeywords", "ReadOptions"),
        ".pulled": ("Pulled",),
        ".records": ("Bad", "Record", "plain"),
        ".sources": ("Records", "check_choice"),
    },
)
