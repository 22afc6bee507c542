"""Rows of one table, written in as few calls as a driver takes."""

from .copy import Copy
from .locks import take_turn, take_turns
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
    "Copy",
    "Habits",
    "Outcome",
    "Processed",
    "Row",
    "Stage",
    "TableInDatabase",
    "Target",
    "Written",
    "in_key_order",
    "one_zone",
    "stage",
    "take_turn",
    "take_turns",
]
