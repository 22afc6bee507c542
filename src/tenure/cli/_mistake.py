"""What the user can mend."""

from __future__ import annotations


class Mistake(Exception):
    """The command cannot begin; the message, one line, says what to do."""


def one_line(error: BaseException) -> str:
    """Return the first line of what *error*, or the driver's error in it, says."""
    original = getattr(error, "orig", None) or error
    lines = str(original).strip().splitlines()
    return lines[0].strip() if lines else type(original).__name__
