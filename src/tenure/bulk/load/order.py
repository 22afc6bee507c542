"""
The order in which rows of one batch can be written that name each other.

Pure, but for asking which rows wait elsewhere. Which row answers a reference is
for the database to say: keys that look alike only tell when it is worth asking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Mapper

from ...mapping import identifiers
from ...references import Proxy, is_resolved, shape_of
from .layout import Layout, Rows
from .link import is_kin, is_pending, nested_in
from .spool import Aside, hint_of_key, hint_of_reference


@dataclass(slots=True, eq=False)
class Waiter:
    """A row: where it is, what stands for it, and what it waits for."""

    place: int
    position: int
    line: int
    key: bytes | None
    tokens: Collection[bytes]
    #: The ids of the references to rows of this load that are not resolved.
    pending: dict[int, Proxy] = field(default_factory=dict)
    #: Whether an earlier row with its key waits in another batch.
    is_behind: bool = False


class Order:
    """
    The rows of one batch, as they become ready.

    A row is ready when all it names of its own entity is resolved, and all earlier
    rows with its key are written.
    """

    def __init__(
        self, batches: Sequence[Rows], mapper: Mapper[Any], aside: Aside
    ) -> None:
        self.batches = batches
        self.mapper = mapper
        self.aside = aside
        self._queues: dict[Any, deque[Waiter]] = {}
        self._named: dict[int, list[Waiter]] = {}
        self._alike: dict[bytes, dict[int, Proxy]] = {}
        self._doubtful: dict[int, Waiter] = {}
        waiters = sorted(self._waiters(), key=lambda waiter: waiter.line)
        lines = {waiter.line for waiter in waiters}
        for waiter in waiters:
            earlier = aside.earlier(waiter.key, waiter.line)
            waiter.is_behind = not lines.issuperset(earlier)
            self._queue(waiter).append(waiter)
            for number, reference in waiter.pending.items():
                self._named.setdefault(number, []).append(waiter)
                for each in nested_in(reference):
                    if is_pending(each):
                        alike = self._alike.setdefault(hint_of_reference(each), {})
                        alike[id(each)] = each
            self._doubtful[id(waiter)] = waiter

    def _waiters(self) -> Iterator[Waiter]:
        for place, batch in enumerate(self.batches):
            layout = batch.layout
            spellings = _spellings(self.mapper, layout)
            key = _key_names(self.mapper, layout)
            fields = dict(zip(layout.fields, batch.fields, strict=True))
            named = [batch.fields[r.position] for r in layout.references]
            for n in batch.kept:
                tokens = {
                    names: hint_of_key(names, [fields[name][n] for name in names])
                    for names in spellings
                }
                pending = {
                    id(p): p for values in named for p in _own(values[n], self.mapper)
                }
                line = batch.records[n][0]
                own = tokens.get(key)
                yield Waiter(place, n, line, own, tokens.values(), pending)

    def _queue(self, waiter: Waiter) -> deque[Waiter]:
        key = waiter.line if waiter.key is None else waiter.key
        return self._queues.setdefault(key, deque())

    def ready(self) -> list[Waiter]:
        """Take the rows that can be written first."""
        return self._taken(list(self._queues.values()))

    def _taken(self, queues: Iterable[deque[Waiter]]) -> list[Waiter]:
        found = []
        for queue in queues:
            while queue and not queue[0].pending and not queue[0].is_behind:
                found.append(queue.popleft())
        return sorted(found, key=lambda waiter: waiter.line)

    def after(
        self,
        settled: Sequence[Waiter],
        resolve: Callable[[Sequence[Proxy]], None],
        *,
        is_new: bool,
    ) -> list[Waiter]:
        """
        Take the rows that can be written now that others are settled.

        Args:
            resolve: Looks references up.
            is_new: Whether there are rows that were not there before.
        """
        touched = [self._queue(waiter) for waiter in settled]
        alike = self._named_alike(settled)
        for number in alike:
            for waiter in self._named.get(number, ()):
                self._doubtful[id(waiter)] = waiter
        for queue in touched:
            if queue:
                self._doubtful[id(queue[0])] = queue[0]
        if not is_new:
            return self._taken(touched)
        resolve([p for p in alike.values() if is_pending(p)])
        ready = self._taken([*touched, *self._freed(alike)])
        if not ready and self._named:
            # Keys that differ in Python may be equal to the database.
            every = {
                number: p for each in self._alike.values() for number, p in each.items()
            }
            resolve([p for p in every.values() if is_pending(p)])
            ready = self._taken(self._freed(every))
        return ready

    def _named_alike(self, settled: Iterable[Waiter]) -> dict[int, Proxy]:
        found: dict[int, Proxy] = {}
        for waiter in settled:
            for token in waiter.tokens:
                found |= self._alike.get(token, {})
        return found

    def _freed(self, references: dict[int, Proxy]) -> list[deque[Waiter]]:
        """Note which of *references* are resolved; give the queues this concerns."""
        freed = []
        for number, reference in references.items():
            if is_resolved(reference):
                for waiter in self._named.pop(number, ()):
                    waiter.pending.pop(number, None)
                    freed.append(self._queue(waiter))
        return freed

    def lacking(self) -> list[Waiter]:
        """Take the rows that wait for what no row that is left can be."""
        found = []
        doubtful, self._doubtful = self._doubtful, {}
        for waiter in doubtful.values():
            queue = self._queue(waiter)
            if not queue or queue[0] is not waiter or waiter.is_behind:
                continue
            tokens = map(hint_of_reference, waiter.pending.values())
            if not any(map(self.aside.is_expected, tokens)):
                found.append(queue.popleft())
        return sorted(found, key=lambda waiter: waiter.line)

    def rows(self, waiters: Sequence[Waiter]) -> list[Rows]:
        """Return *waiters* as rows to write."""
        places: dict[int, list[int]] = {}
        for waiter in waiters:
            places.setdefault(waiter.place, []).append(waiter.position)
        return [self.batches[place].only(kept) for place, kept in places.items()]

    @property
    def left(self) -> list[Waiter]:
        """The rows that are not ready."""
        left = [waiter for queue in self._queues.values() for waiter in queue]
        return sorted(left, key=lambda waiter: waiter.line)

    def put_aside(self) -> None:
        """Put the rows that are left aside, to wait for other batches."""
        for waiter in self.left:
            self.aside.put(
                self.batches[waiter.place].records[waiter.position],
                key=waiter.key,
                has=waiter.tokens,
                wants=[hint_of_reference(p) for p in waiter.pending.values()],
            )


class InOrder:
    """
    Loads rows that reference rows of the same source, in whatever order they come.

    Args:
        loader: Validates rows and looks up their references, then writes them.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.aside = Aside()

    def put(self, batches: Sequence[Rows], *, is_last: bool) -> int:
        """
        Write rows after those that they reference; return how many are put aside.

        Args:
            is_last: They were put aside before, and no others will come.
        """
        loader, aside = self.loader, self.aside
        if not (aside or any(has_pending(batch, loader.mapper) for batch in batches)):
            loader.put(batches)
            return 0
        with loader.timed("resolve"):
            order = Order(batches, loader.mapper, aside)
        if is_last:
            # These rows were rejected meanwhile.
            aside.remove(loader.rejects.lines)
        ready = order.ready()
        while True:
            while ready:
                ready = self._write(order, ready)
            with loader.timed("resolve"):
                if is_last:
                    ready = order.lacking()
                else:
                    order.put_aside()
            if not ready:
                return len(order.left)

    def _write(self, order: Order, ready: Sequence[Waiter]) -> list[Waiter]:
        """Write rows; return those that can be written after them."""
        report = self.loader.report
        before = report.created + report.updated
        self.loader.put(order.rows(ready))
        self.aside.remove(waiter.line for waiter in ready)
        is_new = report.created + report.updated > before
        with self.loader.timed("resolve"):
            return order.after(ready, self.loader.linker.resolve, is_new=is_new)

    def load_aside(self, size: int) -> None:
        """Load some of the rows that were put aside."""
        before = len(self.aside)
        with self.loader.timed("read"):
            records = self.aside.free(size)
        if records:
            self.loader.load(self.loader.prepared(records), is_last=True)
        else:
            # A row written meanwhile may have the key of one that still waits.
            for each in self.aside.everything(size):
                self.loader.load(self.loader.prepared(each), is_last=True)
        if len(self.aside) == before:
            self._load_circles(size)

    def _load_circles(self, size: int) -> None:
        """Load or reject rows that wait for each other, where none can be first."""
        loader = self.loader
        circles = self.aside.circles(size)
        if loader.options.on_missing == "null":
            # The first is written without its reference; the others follow.
            circles = [records[:1] for records in circles]
        records = sorted((r for each in circles for r in each), key=lambda r: r[0])
        loader.put(loader.linked(loader.prepared(records)), in_circles=True)
        self.aside.remove(line for line, _ in records)
        loader.report.rows += len(records)


def has_pending(batch: Rows, mapper: Mapper[Any]) -> bool:
    """Whether a row names one of *mapper* that is not resolved."""
    return any(
        True
        for reference in batch.layout.references
        for value in batch.fields[reference.position]
        for _ in _own(value, mapper)
    )


def _own(value: Any, mapper: Mapper[Any]) -> Iterator[Proxy]:
    """Yield the references to rows of *mapper* in *value* that are not resolved."""
    if not is_pending(value):
        return
    if is_kin(shape_of(value).mapper, mapper):
        yield value
        return
    for part in value._tenure_values:
        yield from _own(part, mapper)


def _spellings(mapper: Mapper[Any], layout: Layout) -> list[tuple[str, ...]]:
    """Return the identifiers whose attributes are all fields of *layout*."""
    present = set(layout.fields)
    return [
        shape.names
        for names, shape in identifiers(mapper).spellings.items()
        if present.issuperset(names)
    ]


def _key_names(mapper: Mapper[Any], layout: Layout) -> tuple[str, ...]:
    """Return the attributes of the identifier that rows of *layout* conflict by."""
    columns = layout.key
    wanted = {layout.names[column] for column in columns}
    return next(
        (names for names in _spellings(mapper, layout) if set(names) == wanted), ()
    )
