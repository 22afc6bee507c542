"""Files and other sources, read as numbered records."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .options import Accepted, Format, ReadKeywords, ReadOptions
    from .pulled import Pulled
    from .records import Bad, Record, plain
    from .sources import Records

__all__ = [
    "Accepted",
    "Bad",
    "Format",
    "Pulled",
    "ReadKeywords",
    "ReadOptions",
    "Record",
    "Records",
    "plain",
]

__getattr__ = lazy(
    __name__,
    {
        ".options": ("Accepted", "Format", "ReadKeywords", "ReadOptions"),
        ".pulled": ("Pulled",),
        ".records": ("Bad", "Record", "plain"),
        ".sources": ("Records",),
    },
)
