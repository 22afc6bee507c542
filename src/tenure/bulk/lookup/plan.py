"""
References in, batches of look-ups out. Pure.

A key that holds a reference can be asked for only when that one is known, so
planning goes in rounds: each takes what is ready.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...mapping import Shape
from ...references import Proxy, shape_of

#: Keys one look-up asks for.
BATCH = 10_000

Values = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Batch:
    """Keys of one shape, NULL in the same places: what one statement asks for."""

    shape: Shape
    #: For each column of the key, whether it is asked for being NULL.
    nulls: tuple[bool, ...]
    proxies: Sequence[Proxy]
    #: For each key, the values of the columns that are not NULL.
    values: Sequence[Values]

    def part(self, start: int, end: int | None = None) -> Batch:
        """Give the keys from *start* to *end* as a batch."""
        some = slice(start, end)
        return Batch(self.shape, self.nulls, self.proxies[some], self.values[some])


def by_shape(proxies: Iterable[Proxy]) -> dict[Shape, list[Proxy]]:
    """Group references by the shape of their key; order is kept."""
    groups: dict[Shape, list[Proxy]] = {}
    for proxy in proxies:
        shape = shape_of(proxy)
        group = groups.get(shape)
        if group is None:
            group = groups[shape] = []
        group.append(proxy)
    return groups


def batches(
    shape: Shape,
    proxies: Sequence[Proxy],
    values: Sequence[Values],
    *,
    size: int = BATCH,
) -> Iterator[Batch]:
    """
    Group keys of one shape by where they are NULL, at most *size* in a batch.

    *values* are the columns of each key. Each key is in exactly one batch, and
    order is kept inside a group.
    """
    if not values:
        return
    groups: dict[tuple[bool, ...], tuple[Sequence[Proxy], Sequence[Values]]] = {}
    if not any(None in column for column in zip(*values, strict=True)):
        groups[(False,) * len(shape.columns)] = (proxies, values)
    else:
        lists: dict[tuple[bool, ...], tuple[list[Proxy], list[Values]]] = {}
        for proxy, key in zip(proxies, values, strict=True):
            nulls = tuple([value is None for value in key])
            group = lists.setdefault(nulls, ([], []))
            group[0].append(proxy)
            group[1].append(tuple([value for value in key if value is not None]))
        groups.update(lists)
    for nulls, (members, keys) in groups.items():
        for start in range(0, len(members), size):
            end = start + size
            yield Batch(shape, nulls, members[start:end], keys[start:end])
