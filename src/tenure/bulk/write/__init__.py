"""
Write rows of one table, in as few calls of the driver as possible.

And flush before what is pending in the session beside them.
"""

from .bypass import (
    LIFE_EVENTS,
    NOT_SET,
    Attribute,
    OnConflict,
    is_sql,
    why_not_bypassed,
)
from .copy import Copy, do_nothing, draw_keys
from .deferred import Deferred
from .locks import take_write_lock, take_write_locks
from .others import begin_savepoint, flush_others
from .rows import (
    Processed,
    Row,
    Target,
    Written,
    in_key_order,
    one_zone,
)
from .stages import stage
from .staging import Outcome, Stage
from .tables import Habits, TableInDatabase

__all__ = [
    "LIFE_EVENTS",
    "NOT_SET",
    "Attribute",
    "Copy",
    "Deferred",
    "Habits",
    "OnConflict",
    "Outcome",
    "Processed",
    "Row",
    "Stage",
    "TableInDatabase",
    "Target",
    "Written",
    "begin_savepoint",
    "do_nothing",
    "draw_keys",
    "flush_others",
    "in_key_order",
    "is_sql",
    "one_zone",
    "stage",
    "take_write_lock",
    "take_write_locks",
    "why_not_bypassed",
]
