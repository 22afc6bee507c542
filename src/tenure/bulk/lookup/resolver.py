"""
Find the rows that references name, round by round.

The key of a reference may hold a reference. It can be looked up only when that one is
found, so each round looks up the keys whose values are all known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.attributes import instance_state

from ...mapping import Part, Shape, columns_held, identifiers
from ...references import Proxy, instance_found, key_of, rows_found, shape_of
from ..report import Failure
from .ask import BATCH, LookUps, Strategy, batches, by_shape
from .batch import Answers, Batch, KeyValues, Several, Unfound


class Found(NamedTuple):
    """What a look-up found."""

    #: Lets the references stand for their rows.
    record: Callable[[], None]
    #: How many references have a row.
    answered: int
    unfound: list[Unfound]
    #: The rows of values, by the id of their key.
    rows: dict[int, tuple[Any, ...]]


def part_values(
    part: Part, value: Any, row_of: Callable[[Proxy], tuple[Any, ...] | None]
) -> tuple[Any, ...] | None:
    """Return a key attribute as columns; ``None`` while they are not known."""
    if part.target is None or value is None:
        return (value,) * len(part.columns)
    if type(value) is Proxy:
        row = row_of(value)
        if row is not None:
            columns = identifiers(shape_of(value).mapper).fetched
            return tuple([row[columns.index(remote)] for remote in part.remote])
        if value._tenure_target is None:
            return None
        value = value._tenure_target
    held = columns_held(value, part.remote)
    return None if None in held else held


def resolve(
    session: Session,
    proxies: Iterable[Proxy],
    *,
    strategy: Strategy = "bind",
    of_values: Collection[int] = frozenset(),
    size: int = BATCH,
    tells_refused: bool = False,
) -> Found:
    """
    Look up the rows of *proxies*; change nothing before ``record()`` is called.

    Args:
        of_values: The proxies (their ids) that are keys of values: whole rows are
            fetched for them, and there may be none.
        size: Keys of one statement.
        tells_refused: Return keys and tables that were refused as not found, instead
            of raising the error.
    """
    work = _Rounds(session, strategy, of_values, size, tells_refused=tells_refused)
    waiting = by_shape(proxies)
    # Only keys inside other keys have to be found by the proxy they are of.
    work.keeps_rows = any(shape.is_nested for shape in waiting)
    while waiting:
        ready, left = work.ready(waiting)
        if not ready:
            break
        waiting = left
        for shape, members, keys in ready:
            others, own = _apart(members, keys, of_values)
            work.look_up_values(shape, *own)
            work.look_up_references(shape, *others)
    if strategy == "hydrate":
        _fill_subclasses(work.lookups, work.answered, size)
    # A key that is still waiting holds a reference without a row.
    work.unfound.extend(
        Unfound(proxy, "missing")
        for members in waiting.values()
        for proxy in members
        if id(proxy) not in of_values
    )
    return Found(work.record, work.count, work.unfound, work.whole_rows)


_Keys = tuple[Sequence[Proxy], Sequence[KeyValues]]


class _Rounds:
    """What the rounds of one ``resolve`` have found so far."""

    def __init__(
        self,
        session: Session,
        strategy: Strategy,
        of_values: Collection[int],
        size: int,
        *,
        tells_refused: bool,
    ) -> None:
        self.session = session
        self.strategy = strategy
        self.of_values = of_values
        self.size = size
        self.unfound: list[Unfound] = []
        self.lookups = LookUps(session, self.unfound if tells_refused else None)
        self.answered: list[tuple[Sequence[Proxy], Answers]] = []
        self.count = 0
        #: The rows of references, by the id of the proxy, if keys may need them.
        self.rows: dict[int, tuple[Any, ...]] = {}
        self.keeps_rows = False
        #: The same for keys of values.
        self.whole_rows: dict[int, tuple[Any, ...]] = {}

    def ready(
        self, waiting: dict[Shape, list[Proxy]]
    ) -> tuple[
        list[tuple[Shape, Sequence[Proxy], Sequence[KeyValues]]],
        dict[Shape, list[Proxy]],
    ]:
        """Return the keys whose values are known, then the references of the others."""
        ready: list[tuple[Shape, Sequence[Proxy], Sequence[KeyValues]]] = []
        left: dict[Shape, list[Proxy]] = {}
        for shape, members in waiting.items():
            if not shape.is_nested:
                values = [proxy._tenure_values for proxy in members]
                ready.append((shape, members, values))
                continue
            pairs = [(proxy, self._columns_of(proxy)) for proxy in members]
            now = [(proxy, columns) for proxy, columns in pairs if columns is not None]
            if now:
                known, keys = zip(*now, strict=True)
                ready.append((shape, known, keys))
            if len(now) < len(pairs):
                left[shape] = [proxy for proxy, columns in pairs if columns is None]
        return ready, left

    def _columns_of(self, proxy: Proxy) -> tuple[Any, ...] | None:
        values: list[Any] = []
        parts = shape_of(proxy).parts
        for part, value in zip(parts, proxy._tenure_values, strict=True):
            columns = part_values(part, value, self._row_of)
            if columns is None:
                return None
            values.extend(columns)
        return tuple(values)

    def _row_of(self, proxy: Proxy) -> tuple[Any, ...] | None:
        row = self.rows.get(id(proxy)) or self.whole_rows.get(id(proxy))
        return row or proxy._tenure_row

    def look_up_values(
        self, shape: Shape, proxies: Sequence[Proxy], keys: Sequence[KeyValues]
    ) -> None:
        """Look up keys of values, which may have no row."""
        for whole in batches(shape, proxies, keys, size=self.size):
            columns = whole_row(shape.mapper)
            for batch, rows, several in self.lookups.ask(whole, columns=columns):
                self.unfound.extend(_unfound(batch, rows, several, required=False))
                self.whole_rows |= {
                    id(proxy): row
                    for n, (proxy, row) in enumerate(
                        zip(batch.proxies, rows, strict=True)
                    )
                    if row is not None and n not in several
                }

    def look_up_references(
        self, shape: Shape, proxies: Sequence[Proxy], keys: Sequence[KeyValues]
    ) -> None:
        """Look up keys of references, each of which has to have one row."""
        for whole in batches(shape, proxies, keys, size=self.size):
            for batch, rows, several in self.lookups.ask(whole, self.strategy):
                if None in rows or several:
                    self.unfound.extend(_unfound(batch, rows, several))
                    for n in several:
                        rows[n] = None
                self.count += len(rows) - rows.count(None)
                self.answered.append((batch.proxies, rows))
                if self.keeps_rows:
                    self.rows |= {
                        id(proxy): row
                        for proxy, row in zip(batch.proxies, rows, strict=True)
                        if row is not None
                    }

    def record(self) -> None:
        """Resolve the references to their rows."""
        for members, rows in self.answered:
            if self.strategy == "hydrate":
                for proxy, row in zip(members, rows, strict=True):
                    if row is not None:
                        instance_found(proxy, row[:-1], row[-1])
            else:
                rows_found(members, rows, self.session)


def _apart(
    proxies: Sequence[Proxy], keys: Sequence[KeyValues], of_values: Collection[int]
) -> tuple[_Keys, _Keys]:
    """Split keys into those of references only and those of values."""
    if not of_values:
        return (proxies, keys), ((), ())
    split: tuple[list[Any], list[Any]] = ([], [])
    for pair in zip(proxies, keys, strict=True):
        split[id(pair[0]) in of_values].append(pair)
    others, own = (([p for p, _ in each], [k for _, k in each]) for each in split)
    return others, own


def _unfound(
    batch: Batch, rows: Answers, several: Several, *, required: bool = True
) -> Iterator[Unfound]:
    width = len(batch.shape.primary_key)
    for n, row in enumerate(rows):
        if n in several:
            identities = [each[:width] for each in several[n]]
            yield Unfound(batch.proxies[n], "ambiguous", identities)
        elif row is None and required:
            yield Unfound(batch.proxies[n], "missing")


def failure(unfound: Unfound, locations: Iterable[Any] = ()) -> Failure:
    """Describe a reference that was not found."""
    return Failure(
        shape_of(unfound.proxy).entity,
        key_of(unfound.proxy),
        unfound.reason,
        tuple(locations),
        tuple(unfound.rows),
        unfound.message,
    )


def _fill_subclasses(
    lookups: LookUps, answered: Iterable[tuple[Sequence[Proxy], Answers]], size: int
) -> None:
    """Load the columns that only the own class of an instance has, class by class."""
    groups: dict[Mapper[Any], dict[tuple[Any, ...], Proxy]] = {}
    for members, rows in answered:
        if not members or len(shape_of(members[0]).mapper.self_and_descendants) == 1:
            continue
        for proxy, row in zip(members, rows, strict=True):
            if row is None:
                continue
            state: Any = instance_state(row[-1])
            if state.mapper is not shape_of(proxy).mapper and _lacks(state):
                groups.setdefault(state.mapper, {})[state.key[1]] = proxy
    for mapper, instances in groups.items():
        names = [mapper.get_property_by_column(c).key for c in mapper.primary_key]
        shape = identifiers(mapper).shape(names)
        proxies = list(instances.values())
        keys = [shape.arranged(names, key) for key in instances]
        for whole in batches(shape, proxies, keys, size=size):
            for _ in lookups.ask(whole, "hydrate"):
                pass


def _lacks(state: Any) -> bool:
    """Return whether a column is not loaded that loading the class loads."""
    return any(
        not prop.deferred and prop.key not in state.dict
        for prop in state.mapper.column_attrs
    )


def whole_row(mapper: Mapper[Any]) -> tuple[Any, ...]:
    """Return what a look-up fetches for a value: the usual, then every attribute."""
    return (
        *identifiers(mapper).fetched,
        *(prop.columns[0] for prop in mapper.column_attrs),
    )


def attributes_of(mapper: Mapper[Any], row: tuple[Any, ...]) -> dict[str, Any]:
    """Return a row of :func:`whole_row` by attribute."""
    names = [prop.key for prop in mapper.column_attrs]
    return dict(zip(names, row[-len(names) :], strict=True))
