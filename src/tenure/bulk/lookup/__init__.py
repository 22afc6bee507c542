"""References in, rows out: many keys for each statement."""

from .key_tables import bind_processors, ensure_transaction, orders_alike
from .plan import BATCH, Batch, batches, by_shape
from .resolver import (
    Outcome,
    Strategy,
    Unfound,
    attributes_of,
    failure,
    look_up,
    part_values,
    resolve,
)

__all__ = [
    "BATCH",
    "Batch",
    "Outcome",
    "Strategy",
    "Unfound",
    "attributes_of",
    "batches",
    "bind_processors",
    "by_shape",
    "ensure_transaction",
    "failure",
    "look_up",
    "orders_alike",
    "part_values",
    "resolve",
]
