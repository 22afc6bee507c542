"""Rows of one table, written in as few calls as a driver takes."""

from .bypass import LIFE_EVENTS, OnConflict, default_maker, why_not_bypassed
from .locks import take_turn, take_turns
from .rows import (
    Copy,
    Processed,
    Row,
    Target,
    Written,
    can_copy,
    comparable,
    in_key_order,
    one_zone,
)
from .staging import Outcome, Stage, stage
from .tables import Habits, Place

__all__ = [
    "LIFE_EVENTS",
    "Copy",
    "Habits",
    "OnConflict",
    "Outcome",
    "Place",
    "Processed",
    "Row",
    "Stage",
    "Target",
    "Written",
    "can_copy",
    "comparable",
    "default_maker",
    "in_key_order",
    "one_zone",
    "stage",
    "take_turn",
    "take_turns",
    "why_not_bypassed",
]
