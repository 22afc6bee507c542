"""Which sessions are open: since when, on what, and who has opened them."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event, Thread
from traceback import StackSummary
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, ref

from .._private import all_sessions
from ..callers import Line
from ..sessions import Session

if TYPE_CHECKING:
    from ..engines import DatabaseManager

log = logging.getLogger("tenure")

# Seconds between two looks at open sessions, at most and at least.
_SELDOM, _OFTEN = 5.0, 0.05


@dataclass(frozen=True, slots=True)
class OpenSession:
    """
    A session in a block or in a transaction.

    Attributes:
        scope: The kind of block that made it; ``None``: no block did.
        line: Where the block was entered, else where the transaction has begun.
        age: Seconds since then.
        role: What the block was opened for.
        engines: Aliases of the databases it holds connections to, else their URLs.
        in_transaction: Whether it is inside of one.
        statement: What it was last asked to execute.
        stack: The stack that has opened the block, if the database has ``debug=True``.
    """

    scope: str | None
    line: Line
    age: float
    role: str | None
    engines: tuple[str, ...]
    in_transaction: bool
    statement: str | None
    stack: StackSummary | None

    def __str__(self) -> str:
        state = "in transaction" if self.in_transaction else "no transaction"
        where = f" on {', '.join(self.engines)}" if self.engines else ""
        lines = [
            f"{self.scope or 'session'} at {self.line}",
        ]
        lines[0] += f", {self.age:.1f} s, role {self.role or 'any'}, {state}{where}"
        if self.statement is not None:
            lines.append(f"  last statement: {self.statement}")
        if self.stack is not None:
            lines += ["  opened by:", *("  " + line for line in self.stack.format())]
        return "\n".join(line.rstrip() for line in lines)


class Report(list[OpenSession]):
    """
    The sessions that are open, those open longest first.

    Attributes:
        retries: How often this process has done a unit of work again.
    """

    retries: int = 0


def open_sessions(manager: DatabaseManager) -> Iterator[tuple[Session, OpenSession]]:
    """Yield the sessions of *manager* that are open, those open longest first."""
    now = time.monotonic()
    found = [
        (session, _describe(session, manager, now))
        for session in list(all_sessions.values())
        if isinstance(session, Session)
        and session.routing is manager
        and (session._begun is not None or _is_in_block(session))
    ]
    yield from sorted(found, key=lambda pair: -pair[1].age)


def _is_in_block(session: Session) -> bool:
    scope = session._tenure_scope
    return scope is not None and not scope.has_ended


def _describe(session: Session, manager: DatabaseManager, now: float) -> OpenSession:
    since, line, _ = session._begun or (now, None, 0)
    scope: Any = session._tenure_scope if _is_in_block(session) else None
    if scope is not None:
        since, line = scope.opened, scope.line
    # It began in a block of its session, which has ended.
    line = line or session._tenure_scope.line
    last = session._last
    return OpenSession(
        scope=None if scope is None else scope.kind,
        line=line,
        age=now - since,
        role=getattr(scope, "role", None),
        engines=tuple(
            manager.alias_of(connection.engine)
            or connection.engine.url.render_as_string()
            for connection in session._connected
        ),
        in_transaction=session._begun is not None,
        statement=None if last is None else " ".join(str(last).split()),
        stack=None if scope is None else scope.stack,
    )


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
