"""Write rows of one table, in as few calls of the driver as possible."""

from .bypass import LIFE_EVENTS, OnConflict, default_maker, why_not_bypassed
from .copy import Copy
from .locks import take_write_lock, take_write_locks
from .rows import (
    Processed,
    Row,
    Target,
    Written,
    in_key_order,
    one_zone,
)
from .staging import Outcome, Stage, stage
from .tables import Habits, TableInDatabase

__all__ = [
    "LIFE_EVENTS",
    "Copy",
    "Habits",
    "OnConflict",
    "Outcome",
    "Processed",
    "Row",
    "Stage",
    "TableInDatabase",
    "Target",
    "Written",
    "default_maker",
    "in_key_order",
    "one_zone",
    "stage",
    "take_write_lock",
    "take_write_locks",
    "why_not_bypassed",
]
