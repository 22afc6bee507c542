"""From references to their rows, many keys in one statement."""

from .ask import BATCH, Strategy, batches, by_shape, look_up, refused_by_halves
from .batch import Batch, Unfound
from .resolver import Found, attributes_of, failure, part_values, resolve

__all__ = [
    "BATCH",
    "Batch",
    "Found",
    "Strategy",
    "Unfound",
    "attributes_of",
    "batches",
    "by_shape",
    "failure",
    "look_up",
    "part_values",
    "refused_by_halves",
    "resolve",
]
