"""
How a unit of work ends.

:func:`ending` decides, :func:`finish` does, for both faces: the async one calls it
in a greenlet, with :class:`Waiting` around its session.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only

from ..errors import SessionError, TenureError, wrap

log = logging.getLogger("tenure")

#: How a block ends, once it is left. ``"discard"``: closing undoes what was not
#: committed. ``"leave"``: the block that owns the session will end it. ``"lose"``:
#: that block has ended before; what was written since cannot be kept.
Ending = Literal["commit", "rollback", "discard", "leave", "lose"]


def ending(
    error: BaseException | None,
    *,
    owns: bool,
    auto_commit: bool,
    owner_ended: bool = False,
    has_written: bool = False,
) -> Ending:
    """Say how a block ends that left with *error*."""
    if not owns and not owner_ended:
        return "leave"
    if error is not None:
        return "rollback"
    if owns:
        return "commit" if auto_commit else "discard"
    return "lose" if has_written else "discard"


def finish(
    session: Any, how: Ending, error: BaseException | None, expire: bool | None
) -> None:
    """
    End the unit of work and hand the connection back, whatever happens.

    *error* is what the block left with. Raises what the commit or the close
    raised; what a step raises after an error is logged and added to it as a note.
    """
    if how == "discard":
        try:
            session.close()
        finally:
            retire(session)
        return
    try:
        if how == "lose":
            raise SessionError(
                "the block that owns this session ended before this one, which had "
                "joined it; what was written since is lost"
            )
        if how == "commit":
            try:
                _commit(session, expire)
            except BaseException as failed:
                error = failed
                raise
    finally:
        try:
            if error is not None:
                attempt(session.rollback, "rolling back", error)
        finally:
            try:
                attempt(session.close, "closing", error)
            finally:
                retire(session)


def retire(session: Any) -> None:
    """Refuse from now on whatever would begin something on *session*."""
    # The user's factory may make sessions of SQLAlchemy's.
    own = getattr(session, "_retire", None)
    if own is not None:
        own()


def _commit(session: Any, expire: bool | None) -> None:
    if expire is None:
        session.commit()
    else:
        session.commit(expire=expire)


def attempt(step: Callable[[], None], doing: str, error: BaseException | None) -> None:
    """Take *step*; if it fails after *error*, that is a note of it, and logged."""
    try:
        step()
    except Exception as second:
        if error is None:
            raise
        _note(error, doing, second)


def _note(error: BaseException, doing: str, second: Exception) -> None:
    log.error("tenure: %s the session failed", doing, exc_info=second)
    error.add_note(f"{doing} the session failed as well: {second}")


def translate(error: BaseException) -> None:
    """Raise *error* as a :class:`DatabaseError`, if it is one of SQLAlchemy's."""
    if isinstance(error, SQLAlchemyError) and not isinstance(error, TenureError):
        raise wrap(error) from error


class Waiting:
    """An async session as :func:`finish` sees it: waiting looks like a call."""

    def __init__(self, session: Any) -> None:
        self._session = session

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
    if error is None or isinstance(error, Exception):
        raise cancelled
