"""Files and other sources, loaded batch by batch."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .layout import Layouts
    from .link import LoadMissing, is_kin, named_by
    from .loader import Commit, LoadOptions, Progress, Source, load
    from .prepared import Supply, Validated, validated
    from .report import LoadReport, PartReport, ReferenceCount, Reject, RejectsFile

__all__ = [
    "Commit",
    "Layouts",
    "LoadMissing",
    "LoadOptions",
    "LoadReport",
    "PartReport",
    "Progress",
    "ReferenceCount",
    "Reject",
    "RejectsFile",
    "Source",
    "Supply",
    "Validated",
    "is_kin",
    "load",
    "named_by",
    "validated",
]

__getattr__ = lazy(
    __name__,
    {
        ".layout": ("Layouts",),
        ".link": ("LoadMissing", "is_kin", "named_by"),
        ".loader": ("Commit", "LoadOptions", "Progress", "Source", "load"),
        ".prepared": ("Supply", "Validated", "validated"),
        ".report": (
            *("LoadReport", "PartReport", "ReferenceCount", "Reject"),
            "RejectsFile",
        ),
    },
)
