"""What a block that joined a session, or all of its users, wrote in a transaction."""

from __future__ import annotations

from asyncio import _get_running_loop, current_task
from threading import get_ident
from typing import Any

from sqlalchemy import Connection, inspect
from sqlalchemy.orm import SessionTransaction

from .._private import pending
from .exclusive import Writer
from .naming import User

_NOTHING: dict[Any, dict[str, Any]] = {}


class Past(Writer):
    """What somebody had written at some time, without what was undone since."""

    def __init__(self, writer: Writer) -> None:
        self._wrote = writer._wrote
        self._may_have_written = writer._may_have_written

    def add(self, other: Writer) -> None:
        """Take in what *other* has written as well."""
        self._wrote = tuple({*self._wrote, *other._wrote})
        self._may_have_written = tuple(
            {*self._may_have_written, *other._may_have_written}
        )

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing that is not undone."""
        return not (self._wrote or self._may_have_written)


class Watch(Writer):
    """
    What a block that joined a session has written itself; the block derives from it.

    What waited to be written before it began is not its own, though a query of
    the block may flush it.
    """

    #: The session that is watched; ``None``: none is.
    watched: Any = None
    #: The task or thread that has opened the block.
    user: User | None = None
    #: The block only reads. What it executes is refused or harmless, so it is changes
    #: that count.
    reads = False
    # What had been written when the block began.
    _before: Past | None = None
    # How many changes each connection had made before the block did what may write.
    _counted: dict[Connection, int | None] | None = None
    _waited: dict[Any, dict[str, Any]] = _NOTHING

    def watch(self, session: Any) -> None:
        """Begin to look at what *session* writes."""
        self.watched = session
        # In line: current_user().
        loop = _get_running_loop()
        self.user = get_ident() if loop is None else current_task(loop) or loop
        # In line: every block that joins asks.
        new, deleted, modified = pending(session)
        if new or deleted or modified:
            self._waited = _waiting(session)
        if session._wrote or session._may_have_written:
            self._before = Past(session)
        watches = session._watches
        session._watches = (*watches, self) if watches else (self,)

    def look(self) -> bool:
        """Take in what waits to be written now; say whether any is the block's."""
        if self.reads:
            # Flushed it cannot have been, and it may be taken back.
            return self._differs()
        if not self._wrote and self._differs():
            self._note_place(self.watched._innermost, is_sure=True)
        return bool(self._wrote or self._may_have_written)

    def _differs(self) -> bool:
        assert self.watched is not None
        waiting = _waiting(self.watched)
        return bool(waiting) and any(
            key not in self._waited or _differ(values, self._waited[key])
            for key, values in waiting.items()
        )

    def _is_second(self) -> bool:
        """Whether others have written, or begun to, before the block."""
        return bool(self._waited) or not (self._before is None or self._before.is_empty)

    def _end_place(self, savepoint: SessionTransaction, *, is_undone: bool) -> None:
        super()._end_place(savepoint, is_undone=is_undone)
        if self._before is not None:
            self._before._end_place(savepoint, is_undone=is_undone)

    def forget(self) -> None:
        """The transaction has ended, and what was written with it."""
        self._wrote = self._may_have_written = ()
        self._before = self._counted = None
        self._waited = _NOTHING

    def end_watch(
        self, error: BaseException | None, counts_on_commit: bool = False
    ) -> bool:
        """
        End with the block, and say whether it has written.

        Args:
            error: What the block left with.
            counts_on_commit: It succeeds only if its owner commits.
        """
        session = self.watched
        assert session is not None
        if not self._wrote:
            # In line: most blocks leave nothing that waits.
            new, deleted, modified = pending(session)
            if new or deleted or modified:
                has_changed = self.look()
                if self.reads and has_changed:
                    self._note_place(session._innermost, is_sure=True)
        self.watched = None
        watches = session._watches
        session._watches = (
            ()
            if len(watches) == 1 and watches[0] is self
            else tuple(watch for watch in watches if watch is not self)
        )
        if session._when_left is not None:
            session._when_left()
        if not (self._wrote or self._may_have_written):
            return False
        # A generator that nobody asks for more has not failed.
        if isinstance(error, GeneratorExit):
            error = None
        if error is not None or counts_on_commit:
            session._block_ended(self, error)
        return True


def _waiting(session: Any) -> dict[Any, dict[str, Any]]:
    """Return what a flush would write: each object, with its changed values."""
    # Every block that joins asks twice.
    if not any(pending(session)):
        return _NOTHING
    return {
        (kind, state): {key: state.dict.get(key) for key in state.committed_state}
        for kind, instances in (
            ("new", session.new),
            ("dirty", session.dirty),
            ("deleted", session.deleted),
        )
        for state in map(inspect, instances)
    }


def _differ(left: dict[str, Any], right: dict[str, Any]) -> bool:
    # By identity: a value's own == may do anything.
    return left.keys() != right.keys() or any(
        value is not right[key] for key, value in left.items()
    )
