"""Loads whose rows are read and validated, or also written, by workers of an executor."""

from typing import TYPE_CHECKING

from ..._lazy import lazy

if TYPE_CHECKING:
    from .crew import let_others_run, processes, wait_for
    from .sharing import Sharing, load_shared

__all__ = ["Sharing", "let_others_run", "load_shared", "processes", "wait_for"]

__getattr__ = lazy(
    __name__,
    {
        ".crew": ("let_others_run", "processes", "wait_for"),
        ".sharing": ("Sharing", "load_shared"),
    },
)
