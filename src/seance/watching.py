"""What a block that joined a session has written itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import inspect

if TYPE_CHECKING:
    from .sessions import Session

_NOTHING: dict[Any, dict[str, Any]] = {}


class Watch:
    """
    What a block that joined a session has written itself.

    What waited to be written before it began is not its own, though a query of
    the block may flush it.

    Args:
        reads: The block only reads. What it executes is refused or harmless, so it is
            changes that count.
    """

    __slots__ = ("_waited", "has_written", "reads", "session")

    def __init__(self, session: Session, *, reads: bool = False) -> None:
        self.session = session
        self.reads = reads
        self.has_written = False
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
        waiting = _waiting(self.session)
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
        session = self.session
        if session._watches == (self,):
            session._watches = ()
        else:
            session._watches = tuple(
                watch for watch in session._watches if watch is not self
            )

    def end(self, error: BaseException | None) -> bool:
        """
        End with the block, and say whether it has written.

        If it failed after that, the work is half done.
        """
        session = self.session
        has_written = self.look()
        self.drop()
        # A generator that nobody asks for more has not failed.
        if error is not None and has_written and not isinstance(error, GeneratorExit):
            session._is_half_done(error)
        return has_written


def _waiting(session: Session) -> dict[Any, dict[str, Any]]:
    """Give what a flush would write: each object, and the values it has changed."""
    # As _is_clean(), in one call less: every block that joins asks it twice.
    if not (session.identity_map._modified or session._new or session._deleted):
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
