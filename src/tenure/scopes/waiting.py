"""How the end of an async block waits: to its end, whoever cancels it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy.util import await_only

from ..context import is_async
from .scope import retire

log = logging.getLogger("tenure")


def closer(session: Any) -> Callable[[], None]:
    """Return a function that closes *session* from inside of a greenlet."""
    return Waiting(session).close if is_async(session) else session.close


class Waiting:
    """An async session as :func:`finish` sees it: waiting looks like a call."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.sync_session = session.sync_session

    def commit(self, **options: Any) -> None:
        await_only(self._session.commit(**options))

    def rollback(self) -> None:
        await_only(self._session.rollback())

    def close(self) -> None:
        await_only(self._session.close())

    def _retire(self) -> None:
        retire(self._session.sync_session)


async def shielded(
    step: Callable[[], Coroutine[Any, Any, None]],
    error: BaseException | None,
    again: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> None:
    """
    Run *step* to its end, also while this task is being cancelled.

    It runs in a task of its own. Who cancels all tasks there are, as
    ``asyncio.run()`` does at its end, cancels that one, too; then *again* runs, or
    *step* once more.

    Args:
        error: What the block left with.

    Raises:
        CancelledError: After the end of *step*, if there was a cancellation; none
            if *error* is one already, or the like.
    """
    cancelled: asyncio.CancelledError | None = None
    for attempted in (step, again or step, again or step):
        task = asyncio.ensure_future(attempted())
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as another:
                cancelled = another
        if not task.cancelled():
            break
        cancelled = cancelled or asyncio.CancelledError()
    if cancelled is None:
        task.result()
        return
    if task.cancelled():
        log.error(
            "tenure: ending a scope was cancelled each time; its connection is out"
        )
        raise cancelled
    failed = task.exception()
    if failed is not None:
        log.error("tenure: ending a cancelled scope failed", exc_info=failed)
        if isinstance(error, GeneratorExit):
            # Who closes the generator hears what it has lost.
            raise failed
    if error is None or isinstance(error, Exception):
        raise cancelled
