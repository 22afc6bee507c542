"""Preparing the next batch while the database writes one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..read import Record
from .layout import Rows
from .report import Rejected


@dataclass(slots=True)
class Prepared:
    """A batch that is read and validated, with what of it is rejected."""

    records: list[Record]
    batches: list[Rows]
    rejected: list[Rejected]
    #: How far the source has been read.
    position: int


class Ahead:
    """
    Gives batches in order, each prepared while the one before is written.

    What preparing a batch raises is raised when it is that batch's turn: those before it
    are settled first.

    Args:
        prepare: Prepares the next batch; ``None``: there is none.
    """

    def __init__(self, prepare: Callable[[], Prepared | None]) -> None:
        self._prepare = prepare
        self._is_ready = False
        self._next: Prepared | None = None
        self._error: Exception | None = None

    def prepare(self) -> None:
        """Prepare the next batch, if that has not been done."""
        if self._is_ready:
            return
        self._is_ready = True
        try:
            self._next = self._prepare()
        except Exception as error:  # noqa: BLE001  # take() raises it
            self._error = error

    def take(self) -> Prepared | None:
        """Return the next batch."""
        self.prepare()
        found, error = self._next, self._error
        self._is_ready, self._next, self._error = False, None, None
        if error is not None:
            raise error
        return found
