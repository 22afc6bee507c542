"""Coroutine functions at once, each in a scope of its own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from inspect import iscoroutine
from typing import Any, TypeVar

from sqlalchemy.pool import Pool

from ..context import SESSION_CONTEXT, current_application, living
from ..errors import RoutingError, SessionError
from .managers import async_session_manager

log = logging.getLogger("tenure")

T = TypeVar("T")


async def gather(
    *functions: Callable[[], Awaitable[T]],
    limit: int | None = None,
    using: Any = None,
    auto_commit: bool = True,
) -> list[T]:
    """
    Run each of *functions* in a task and a scope of its own; give what they return.

    Each has a session of its own, so they may all talk to the database at once, and
    each ends its own transaction: what one has committed stays if another fails.

    Args:
        functions: Called without arguments: coroutine functions, or what returns an
            awaitable (``functools.partial``, ``lambda``).
        limit: How many run at once; the size of the pool unless given.
        using: The factory of the sessions; else that of the current session, else
            the current application's.
        auto_commit: Commit what a function has written when it returns.

    Raises:
        SessionError: There is no factory, or something cannot be called.
        BaseException: What the first function that failed has raised. The others
            are cancelled, and have ended.
    """
    for function in functions:
        _check(function, functions)
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise SessionError(f"limit is a number from 1 on, not {limit!r}")
    if not functions:
        return []
    using = using or _factory()
    slots = asyncio.Semaphore(limit or _pool_size(using) or len(functions))

    failures: list[BaseException] = []

    async def run(function: Callable[[], Awaitable[T]]) -> T:
        try:
            async with (
                slots,
                async_session_manager(using=using, new=True, auto_commit=auto_commit),
            ):
                return await function()
        except asyncio.CancelledError:
            raise
        except BaseException as failed:
            failures.append(failed)
            raise

    tasks = [asyncio.ensure_future(run(function)) for function in functions]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        # Also when it is us who were cancelled.
        for task in tasks:
            task.cancel()
        await _ended(tasks)
    for another in failures[1:]:
        log.error("tenure: another function of gather() failed", exc_info=another)
    if failures:
        raise failures[0]
    return [task.result() for task in tasks]


async def _ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait until all have ended, even if we are cancelled meanwhile."""
    cancelled: asyncio.CancelledError | None = None
    while left := [task for task in tasks if not task.done()]:
        try:
            await asyncio.wait(left)
        except asyncio.CancelledError as another:
            cancelled = another
    if cancelled is not None:
        raise cancelled


def _check(function: Any, functions: Iterable[Any]) -> None:
    if callable(function) and not iscoroutine(function):
        return
    for each in functions:
        if iscoroutine(each):
            # Nobody will.
            each.close()
    raise SessionError(
        f"gather() takes functions, and calls them: not {function!r}; give the "
        f"function itself, or functools.partial() of it"
    )


def _factory() -> Any:
    session: Any = living(SESSION_CONTEXT.get())
    scope = getattr(session, "_tenure_scope", None)
    if scope is not None and scope.factory == "async_session":
        return scope.using
    application = current_application()
    if application is None:
        raise SessionError(
            "gather() found no session factory: give using=, enter a Database (async "
            "with db:), or install one with Database.install()"
        )
    return application.async_session


def _pool_size(factory: Any) -> int | None:
    """Return the number of connections that are kept; ``None``: any number."""
    options = getattr(getattr(factory, "session_factory", factory), "kw", {})
    bind, routing = options.get("bind"), options.get("routing")
    if bind is None and routing is not None:
        with suppress(RoutingError):
            # None for no entity in particular.
            bind = routing.get_write_engine(async_mode=True)
    pool: Pool | None = getattr(bind, "pool", None)
    size: int | None = getattr(pool, "size", lambda: None)()
    return size or None
