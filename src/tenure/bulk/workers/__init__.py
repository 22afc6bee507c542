"""Loads whose rows are read and validated, or also written, by workers of an executor."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .crew import InLoop, wait_for
    from .sharing import Sharing, load_shared

__all__ = ["InLoop", "Sharing", "load_shared", "wait_for"]

__getattr__ = lazy(
    __name__,
    {
        ".crew": ("InLoop", "wait_for"),
        ".sharing": ("Sharing", "load_shared"),
    },
)
