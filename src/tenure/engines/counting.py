"""How much the transaction of a connection has changed, as the database counts it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

# Nothing has an id before the transaction writes. The statistics of the transaction
# count rows of all tables, the system's as well, so also DDL.
# Source: PostgreSQL, "System Information Functions", "The Cumulative Statistics System".
_POSTGRESQL = """
SELECT CASE WHEN pg_current_xact_id_if_assigned() IS NULL THEN 0 ELSE (
    SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) + 1
    FROM pg_stat_xact_all_tables
) END
"""
# Not of rows in temporary tables, which have counters of their own.
# Source: MariaDB, "Server Status Variables".
_MARIADB = """
SELECT sum(variable_value) FROM information_schema.session_status
WHERE variable_name IN ('HANDLER_WRITE', 'HANDLER_UPDATE', 'HANDLER_DELETE')
"""


def changes(connection: Connection, *, is_new: bool = False) -> int | None:
    """
    Return a number that another is not equal to once *connection* has changed data.

    ``None`` where the database does not say. Only SQLite is not asked by a statement.

    Args:
        is_new: Its transaction has changed nothing so far.
    """
    dialect = connection.dialect
    if dialect.name == "sqlite":
        driver: Any = connection.connection.driver_connection
        return getattr(driver, "total_changes", None)
    if dialect.name == "postgresql":
        if is_new:
            return 0
        return int(connection.exec_driver_sql(_POSTGRESQL).scalar_one())
    if dialect.name in ("mysql", "mariadb") and getattr(dialect, "is_mariadb", False):
        return int(connection.exec_driver_sql(_MARIADB).scalar_one())
    return None
