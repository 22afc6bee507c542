"""
The command line: ``tenure load``.

Needs the extra ``cli``; without it there is only the advice to install it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

_run: Callable[[Sequence[str] | None], int] | None
try:
    from ._app import run as _run
except ModuleNotFoundError as error:
    if error.name not in {"typer", "rich"}:
        raise
    _run = None

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command line and give its exit code.

    0: all rows were loaded; 1: nothing is kept; 2: it could not begin; 3: some rows
    are kept, others were rejected or not reached; 130: it was interrupted.

    Args:
        arguments: What follows the name of the program; ``None``: what this
            process was given.
    """
    if _run is None:
        print(
            "tenure: the command line needs typer and rich; "
            "install them with: pip install 'tenure[cli]'",
            file=sys.stderr,
        )
        return 2
    return _run(arguments)
