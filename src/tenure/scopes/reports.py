"""What is told of the sessions that are open."""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING
from weakref import WeakSet, ref

from ..sessions import OpenSession, Session, open_sessions

if TYPE_CHECKING:
    from ..engines import DatabaseManager

log = logging.getLogger("tenure")

# Seconds between two looks at open sessions, at most and at least.
_SELDOM, _OFTEN = 5.0, 0.05


class Report(list[OpenSession]):
    """
    The sessions that are open, those open longest first.

    Attributes:
        retries: How often this process has done a unit of work again.
    """

    retries: int = 0


class LeakWatch:
    """
    A thread that logs, once for each, sessions that stay open too long.

    It ends when the manager is collected.

    Args:
        threshold: Seconds.
    """

    def __init__(self, manager: DatabaseManager, threshold: float) -> None:
        self._threshold = threshold
        self._logged: WeakSet[Session] = WeakSet()
        self._stop = Event()
        self._manager = ref(manager, lambda _: self._stop.set())
        Thread(target=self._run, name="tenure-leaks", daemon=True).start()

    def look(self) -> None:
        """Log the sessions that are open for longer than the threshold."""
        manager = self._manager()
        if manager is None:
            return
        for session, described in open_sessions(manager):
            if described.age >= self._threshold and session not in self._logged:
                self._logged.add(session)
                log.warning(
                    "tenure: open for longer than %s s: %s", self._threshold, described
                )

    def _run(self) -> None:
        pause = min(max(self._threshold / 2, _OFTEN), _SELDOM)
        while not self._stop.wait(pause):
            self.look()
