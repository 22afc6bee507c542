"""What is tried in savepoints, so that one row that is refused harms no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, insert
from sqlalchemy.exc import DataError, IntegrityError, StatementError
from sqlalchemy.orm import Mapper, Session

from ..dialects import ensure_transaction

T = TypeVar("T")

#: What types and drivers raise for a value they cannot take.
OF_A_VALUE = (ValueError, TypeError, ArithmeticError, LookupError)


class Attempts:
    """
    Steps of a load, each in a savepoint.

    Attributes:
        mapper: Whose rows are loaded.
    """

    def __init__(self, session: Session, mapper: Mapper[Any]) -> None:
        self.session = session
        self.mapper = mapper

    def connection(self, mapper: Mapper[Any] | None = None) -> Connection:
        """
        Give the connection that rows are written on, in a transaction.

        Args:
            mapper: Whose rows, if not those that are loaded.
        """
        mapper = mapper or self.mapper
        connection = self.session.connection(
            bind_arguments={"mapper": mapper, "clause": insert(mapper)}
        )
        ensure_transaction(connection)
        return connection

    def tried(self, step: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """Do *step* in a savepoint; give its result, or why a row was refused."""
        self.connection()
        savepoint = self.session.begin_nested()
        # The session puts a SAVEPOINT off until it is asked for its connection.
        self.connection()
        try:
            result = step()
            savepoint.commit()
        except Exception as error:
            if not _is_of_a_row(error):
                raise
            savepoint.rollback()
            return None, error
        return result, None

    def done_if(self, step: Callable[[], bool]) -> bool:
        """Do *step* in a savepoint; undo it if it says that it is not to stay."""
        self.connection()
        savepoint = self.session.begin_nested()
        self.connection()
        is_kept = step()
        if is_kept:
            savepoint.commit()
        else:
            savepoint.rollback()
        return is_kept


def _is_of_a_row(error: Exception) -> bool:
    """Whether the error is about what a row says, not about the statement."""
    if getattr(error, "connection_invalidated", False):
        return False
    if isinstance(error, (IntegrityError, DataError)):
        return True
    original = error.orig if isinstance(error, StatementError) else error
    if isinstance(original, OF_A_VALUE):
        return True
    # Class 22, data exception: not every driver has a DataError for each of them.
    return (getattr(original, "sqlstate", None) or "").startswith("22")
