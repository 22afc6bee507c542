"""What a block that joined a session has written itself."""

from __future__ import annotations

from typing import Any

from sqlalchemy import inspect

from .._private import pending

_NOTHING: dict[Any, dict[str, Any]] = {}


class Watch:
    """
    What a block that joined a session has written itself; the block derives from it.

    What waited to be written before it began is not its own, though a query of
    the block may flush it.
    """

    #: The session that is watched; ``None``: none is.
    watched: Any = None
    has_written = False
    #: The block only reads. What it executes is refused or harmless, so it is changes
    #: that count.
    reads = False
    _waited: dict[Any, dict[str, Any]] = _NOTHING

    def watch(self, session: Any) -> None:
        """Begin to look at what *session* writes."""
        self.watched = session
        # In line: every block that joins asks.
        new, deleted, modified = pending(session)
        if new or deleted or modified:
            self._waited = _waiting(session)
        watches = session._watches
        session._watches = (*watches, self) if watches else (self,)

    def look(self) -> bool:
        """Take in what waits to be written now; say whether any is the block's."""
        if self.reads:
            # Flushed it cannot have been, and it may be taken back.
            return self._differs()
        if not self.has_written:
            self.has_written = self._differs()
        return self.has_written

    def _differs(self) -> bool:
        assert self.watched is not None
        waiting = _waiting(self.watched)
        return bool(waiting) and any(
            key not in self._waited or _differ(values, self._waited[key])
            for key, values in waiting.items()
        )

    def forget(self) -> None:
        """The transaction has ended, and what was written with it."""
        self.has_written = False
        self._waited = _NOTHING

    def drop(self) -> None:
        """Watch no more."""
        session, self.watched = self.watched, None
        assert session is not None
        if len(session._watches) == 1 and session._watches[0] is self:
            session._watches = ()
        else:
            session._watches = tuple(
                watch for watch in session._watches if watch is not self
            )

    def end_watch(self, error: BaseException | None) -> bool:
        """
        End with the block, and say whether it has written.

        If it failed after that, the work is half done.
        """
        session = self.watched
        assert session is not None
        has_written = self.has_written
        if not has_written:
            # In line: most blocks leave nothing that waits.
            new, deleted, modified = pending(session)
            if new or deleted or modified:
                has_written = self.look()
        self.drop()
        # A generator that nobody asks for more has not failed.
        if error is not None and has_written and not isinstance(error, GeneratorExit):
            session._leave_half_done(error)
        return has_written


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
