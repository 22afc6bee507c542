"""Which sessions are open: since when, on what, and who has opened them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from traceback import StackSummary, walk_tb
from typing import TYPE_CHECKING, Any

from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import Pool

from .._private import all_sessions
from ..callers import Line

if TYPE_CHECKING:
    from ..engines import DatabaseManager


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


def open_sessions(manager: DatabaseManager) -> Iterator[tuple[Any, OpenSession]]:
    """Yield the sessions of *manager* that are open, those open longest first."""
    yield from _described(
        session
        for session in _ours()
        if session.routing is manager
        and (session._begun is not None or _is_in_block(session))
    )


def name_holders(error: PoolTimeoutError) -> None:
    """Add to the error of a pool which sessions hold its connections, oldest first."""
    pool = _pool_of(error)
    if pool is None:
        return
    # That of one event loop belongs to the pool of the engine.
    pools = (pool, getattr(pool, "pools", pool))
    holders = [
        str(described)
        for _, described in _described(
            session
            for session in _ours()
            if any(each.engine.pool in pools for each in session._connected)
        )
    ]
    error.add_note(
        "its connections are held by:\n" + "\n".join(holders)
        if holders
        else "no session holds its connections: they are used without one"
    )


def _pool_of(error: PoolTimeoutError) -> Pool | None:
    """Return the pool that has raised *error*."""
    found: Pool | None = None
    for frame, _ in walk_tb(error.__traceback__):
        pool = frame.f_locals.get("self")
        if isinstance(pool, Pool):
            found = pool
    return found


def _ours() -> Iterator[Any]:
    """Yield the sessions that know since when they are in a transaction."""
    for session in list(all_sessions.values()):
        if hasattr(session, "_begun"):
            yield session


def _described(sessions: Iterator[Any]) -> list[tuple[Any, OpenSession]]:
    now = time.monotonic()
    found = [(session, _describe(session, now)) for session in sessions]
    return sorted(found, key=lambda pair: -pair[1].age)


def _is_in_block(session: Any) -> bool:
    scope = session._tenure_scope
    return scope is not None and not scope.has_ended


def _describe(session: Any, now: float) -> OpenSession:
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
        engines=tuple(session._name_of(each.engine) for each in session._connected),
        in_transaction=session._begun is not None,
        statement=None if last is None else " ".join(str(last).split()),
        stack=None if scope is None else scope.stack,
    )
