"""Files and other sources, read as numbered records."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .cuts import Parts, cut
    from .options import Accepted, ReadKeywords, ReadOptions, check_choice
    from .parts import Part
    from .pulled import Pulled
    from .records import Bad, Record, plain
    from .sources import Records

__all__ = [
    "Accepted",
    "Bad",
    "Part",
    "Parts",
    "Pulled",
    "ReadKeywords",
    "ReadOptions",
    "Record",
    "Records",
    "check_choice",
    "cut",
    "plain",
]

__getattr__ = lazy(
    __name__,
    {
        ".cuts": ("Parts", "cut"),
        ".options": ("Accepted", "ReadKeywords", "ReadOptions", "check_choice"),
        ".parts": ("Part",),
        ".pulled": ("Pulled",),
        ".records": ("Bad", "Record", "plain"),
        ".sources": ("Records",),
    },
)
