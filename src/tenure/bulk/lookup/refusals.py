"""What the error of a look-up is about, and how PostgreSQL goes on after one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from ...errors import codes
from ..dialects import is_of_value
from .postgresql import is_never_refused

Refusal = Literal["denied", "invalid"]

# insufficient_privilege. Source: PostgreSQL, "PostgreSQL Error Codes".
_DENIED_STATE = "42501"
# SQLITE_AUTH; ER_TABLEACCESS_DENIED_ERROR, ER_COLUMNACCESS_DENIED_ERROR.
# Source: SQLite, "Result and Error Codes"; MariaDB, "MariaDB Error Codes".
_DENIED_NUMBERS = (23, 1142, 1143)


def refusal(error: Exception) -> Refusal | None:
    """
    Return what an error of a look-up is about.

    ``denied``: the table may not be read. ``invalid``: the type, the driver or the
    database refused one of the keys. ``None``: neither.
    """
    if isinstance(error, DBAPIError) and not error.connection_invalidated:
        state, number = codes(error.orig)
        if state == _DENIED_STATE or number in _DENIED_NUMBERS:
            return "denied"
    return "invalid" if is_of_value(error) else None


class Recovery:
    """
    Keep a transaction of PostgreSQL usable when a look-up is refused.

    An error ends the transaction there. One in which nothing else was done is begun
    again; in any other, a savepoint protects it from keys that may be refused.

    Args:
        column_types: Those of the columns of the keys.
        others_work: Whether the transaction had begun before these look-ups.
    """

    def __init__(
        self, connection: Connection, column_types: Sequence[Any], *, others_work: bool
    ) -> None:
        self.connection = connection
        self._others_work = others_work
        self._needs_savepoint = others_work and not all(
            is_never_refused(column_type, connection.dialect)
            for column_type in column_types
        )

    @contextmanager
    def protected(self) -> Iterator[None]:
        """Run one look-up."""
        with self.connection.begin_nested() if self._needs_savepoint else nullcontext():
            yield

    def recover(self) -> bool:
        """Make the connection usable after an error; return whether that worked."""
        if _is_usable(self.connection):
            return True
        if self._others_work:
            return False
        driver: Any = self.connection.connection
        self.connection.dialect.do_rollback(driver)
        return True


def is_idle(connection: Connection) -> bool:
    """Return whether the driver of PostgreSQL says that no transaction has begun."""
    driver: Any = connection.connection.driver_connection
    if hasattr(driver, "is_in_transaction"):
        return not driver.is_in_transaction()
    status = getattr(getattr(driver, "info", None), "transaction_status", None)
    return status is not None and int(status) == 0


def _is_usable(connection: Connection) -> bool:
    # Not by SQLAlchemy: it is no statement of the caller's.
    try:
        cursor = connection.connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
    except Exception:  # noqa: BLE001 - whatever it is, the transaction has ended
        return False
    return True
