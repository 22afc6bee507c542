"""What a block that joins the session of another does."""

from __future__ import annotations

from types import FrameType
from typing import Any, ClassVar, NoReturn

from sqlalchemy.orm import Session as _Session

from ..context import READING
from ..errors import RoutingError, SessionError
from ..routing import Role
from ..sessions import Session, Watch


class Joining(Watch):
    """What a block needs in order to join the session of another."""

    kind: ClassVar[str]
    other: ClassVar[str]
    factory: ClassVar[str]
    decorated: ClassVar[type]

    session: Any = None
    # The sync session.
    _core: Any = None
    role: Role | None
    auto_commit: bool
    _transaction: Any = None

    def _note_line(self, frame: FrameType) -> None:
        raise NotImplementedError  # Block does it, which has the line

    def _join(self, session: Any, frame: FrameType) -> None:
        self.session = session
        core = session if isinstance(session, _Session) else session.sync_session
        self._core = core
        if self.role is not None:
            self._take_role(core, owns=False)
        if isinstance(core, Session):
            self.watch(core)
        if self.auto_commit:
            self._note_line(frame)

    def _refuse_kind(self, current: Any) -> NoReturn:
        raise SessionError(
            f"{self.kind}() cannot join the current {type(current).__name__}; "
            f"use {self.other}(), or new=True for a session beside it, or run_sync() "
            f"to call sync code on an async session"
        )

    def _check_ours(self, core: Any, option: str) -> None:
        if not isinstance(core, Session):
            raise SessionError(
                f"{self.kind}({option}) needs a session of tenure, not "
                f"{type(core).__name__}; make the factory with "
                f"{self.factory}_factory()"
            )

    def _take_role(self, core: Any, *, owns: bool) -> None:
        self._check_ours(core, "role=")
        if owns:
            core._role = self.role
        elif self.role == "read":
            # Not on the session: another task may use it meanwhile.
            self.reads = True
            # Those that were left in another context have nothing to say here.
            reading = (each for each in READING.get() if not each.has_ended)
            READING.set((*reading, self))
        elif core._only_reads():
            raise SessionError(
                f"{self.kind}(role='write') inside of a block with role='read'; open "
                f"the outer one for writing, or use new=True"
            )
        else:
            core._go_to_writer()

    def _check_unchanged(self) -> None:
        """Refuse to leave changes behind, in a block that only reads."""
        session = self.watched
        if not self.look():
            return
        changed = session._written_by_readers() or "the database"
        refused = RoutingError(
            f"a block with role='read' has changed {changed}; open the block "
            f"with role='write'"
        )
        self.end_watch(refused)
        raise refused

    def _undone(self) -> SessionError | None:
        """Return why a block cannot succeed whose savepoint is undone."""
        savepoint = getattr(self._transaction, "sync_transaction", self._transaction)
        # None: it was ended by hand. A session of SQLAlchemy's does not tell.
        if self.watched is None or savepoint.session is None or savepoint.is_active:
            return None
        lost: SessionError | None = self.watched._lost_in(savepoint, self)
        return lost
