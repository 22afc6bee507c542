"""What is done when a load fails: undo it, and say how far it got."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ...errors import RejectedRowsError
from .report import LoadReport


def undo(session: Session, outer: Any) -> None:
    """
    Roll back to where the load began; never hides the error on its way.

    Args:
        outer: The savepoint it began with, if the session had done something before.
    """
    try:
        if outer is not None and outer.is_active:
            outer.rollback()
        else:
            session.rollback()
    except SQLAlchemyError:
        # The connection is gone or the database ended the transaction by
        # itself; either way there is nothing left to undo.
        session.invalidate()


def explain(
    error: BaseException, report: LoadReport, committed: LoadReport, line: int
) -> None:
    """
    Add to *error* how far the load got, and its report.

    Args:
        committed: The counts of what was committed.
        line: The last line of the last batch that was written.
    """
    if isinstance(error, SQLAlchemyError):
        kept = report.kept
        error.add_note(
            f"load: the error came after {report.rows:,} rows, in the batch after line "
            f"{max(line, 0):,}; "
            + (
                f"{kept:,} rows were kept, all before line {report.resume:,}"
                if kept
                else "none was kept"
            )
        )
    if isinstance(error, RejectedRowsError):
        for name in ("created", "updated", "unchanged", "skipped"):
            setattr(report, name, getattr(committed, name))
    else:
        report.restore(committed)
        with suppress(AttributeError):  # one with slots has no place for it
            error.report = report  # type: ignore[attr-defined]  # as above
