"""Options of sessions, and how they are checked."""

from __future__ import annotations

import threading
from typing import Any, Literal, get_args

from ..errors import SessionError

OnConcurrent = Literal["raise", "serialize"]
OnJoined = Literal["raise", "wait"]
#: Seconds.
JOINED_TIMEOUT = 30.0


def checked(name: str, value: Any, allowed: Any) -> Any:
    """
    Return *value*, one of the literals that *allowed* has.

    Raises:
        SessionError: It is none.
    """
    if value not in get_args(allowed):
        choices = " or ".join(map(repr, get_args(allowed)))
        raise SessionError(f"{name} is {choices}, not {value!r}")
    return value


def checked_seconds(name: str, value: Any) -> float:
    """
    Return *value*, a number of seconds; of more, and infinity, what a thread can wait.

    Raises:
        SessionError: It is not, or not more than 0.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
        return min(value, threading.TIMEOUT_MAX)
    raise SessionError(f"{name} is a number of seconds, more than 0, not {value!r}")
