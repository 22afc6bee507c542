"""Runs a plan on a session and matches rows back to references."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from sqlalchemy import Select, and_, inspect, select
from sqlalchemy.orm import Mapper, Session

from ..keys import Part, Shape, identifiers
from ..references import (
    Proxy,
    key_of,
    settle,
    settle_instance,
    shape_of,
)
from ._dialects import asked, on_clause
from ._plan import BATCH, Batch, Values, batches, by_shape
from ._report import Failure, Reason

Strategy = Literal["bind", "hydrate"]

#: A reference that was not found, why, and the rows if there are several.
Unfound = tuple[Proxy, Reason, list[tuple[Any, ...]]]
#: For each key, what was fetched of its row; ``None`` where there is none. With
#: ``hydrate``, the instance comes last.
Rows = list[tuple[Any, ...] | None]
#: For the place of a key, all the rows that answer it, where there are several.
Several = dict[int, list[tuple[Any, ...]]]


def part_values(
    part: Part, value: Any, row_of: Callable[[Proxy], tuple[Any, ...] | None]
) -> tuple[Any, ...] | None:
    """Give a key attribute as columns; ``None`` while it is not known."""
    if part.target is None or value is None:
        return (value,) * len(part.columns)
    if type(value) is Proxy:
        row = row_of(value)
        if row is not None:
            columns = identifiers(shape_of(value).mapper).fetched
            return tuple([row[columns.index(remote)] for remote in part.remote])
        if value._seance_target is None:
            return None
        value = value._seance_target
    mapper = inspect(type(value))
    values = tuple(
        value.__dict__.get(mapper.get_property_by_column(remote).key)
        for remote in part.remote
    )
    return None if None in values else values


def resolve(
    session: Session,
    proxies: Iterable[Proxy],
    *,
    strategy: Strategy = "bind",
    known: Callable[[Proxy], Any] | None = None,
    size: int = BATCH,
) -> tuple[Callable[[], None], int, list[Unfound]]:
    """
    Look up what *proxies* name; nothing is changed.

    Args:
        known: Gives an instance of the same bulk for a reference, asked first.
        size: Keys one statement asks for.

    Returns:
        What records the rows found, how many references they answer, and what
        was not found.
    """
    found: dict[int, tuple[Any, ...]] = {}
    instances: dict[int, Any] = {}
    instances_of: list[Proxy] = []
    answered: list[tuple[Sequence[Proxy], Rows]] = []
    unfound: list[Unfound] = []

    def row_of(proxy: Proxy) -> tuple[Any, ...] | None:
        return found.get(id(proxy)) or proxy._seance_row

    def columns_of(proxy: Proxy) -> tuple[Any, ...] | None:
        values: list[Any] = []
        parts = shape_of(proxy).parts
        for part, value in zip(parts, proxy._seance_values, strict=True):
            local = instances.get(id(value)) if type(value) is Proxy else None
            columns = part_values(part, value if local is None else local, row_of)
            if columns is None:
                return None
            values.extend(columns)
        return tuple(values)

    waiting = by_shape(proxies)
    if known is not None:
        for shape, members in waiting.items():
            local = [(proxy, known(proxy)) for proxy in members]
            instances |= {id(p): i for p, i in local if i is not None}
            instances_of += [p for p, i in local if i is not None]
            waiting[shape] = [p for p, i in local if i is None]
    # Only keys inside other keys have to be found by the proxy they are of.
    nested = any(shape.is_nested for shape in waiting)
    count = len(instances)
    while waiting:
        ready: list[tuple[Shape, Sequence[Proxy], Sequence[Values]]] = []
        left: dict[Shape, list[Proxy]] = {}
        for shape, members in waiting.items():
            if not shape.is_nested:
                values = [proxy._seance_values for proxy in members]
                ready.append((shape, members, values))
                continue
            pairs = [(proxy, columns_of(proxy)) for proxy in members]
            now = [(proxy, columns) for proxy, columns in pairs if columns is not None]
            if now:
                ready.append((shape, *zip(*now, strict=True)))
            if len(now) < len(pairs):
                left[shape] = [proxy for proxy, columns in pairs if columns is None]
        if not ready:
            break
        waiting = left
        for shape, asked_for, keys in ready:
            for batch in batches(shape, asked_for, keys, size=size):
                rows, several = look_up(session, batch, strategy)
                if None in rows or several:
                    unfound.extend(_unfound(batch, rows, several))
                    for place in several:
                        rows[place] = None
                count += len(rows) - rows.count(None)
                answered.append((batch.proxies, rows))
                if nested:
                    found |= {
                        id(proxy): row
                        for proxy, row in zip(batch.proxies, rows, strict=True)
                        if row is not None
                    }
    # What is still waiting has a key inside that names no row.
    unfound.extend(
        (proxy, "missing", []) for left in waiting.values() for proxy in left
    )

    def record() -> None:
        for members, rows in answered:
            if strategy == "hydrate":
                for proxy, row in zip(members, rows, strict=True):
                    if row is not None:
                        settle_instance(proxy, row[:-1], row[-1])
            else:
                settle(members, rows, session)
        for proxy in instances_of:
            settle_instance(proxy, None, instances[id(proxy)])

    return record, count, unfound


def _unfound(batch: Batch, rows: Rows, several: Several) -> Iterator[Unfound]:
    width = len(batch.shape.primary_key)
    for place, row in enumerate(rows):
        if place in several:
            identities = [each[:width] for each in several[place]]
            yield batch.proxies[place], "ambiguous", identities
        elif row is None:
            yield batch.proxies[place], "missing", []


def failure(unfound: Unfound, locations: Iterable[Any] = ()) -> Failure:
    """Describe a reference that was not found."""
    proxy, reason, rows = unfound
    return Failure(
        shape_of(proxy).entity, key_of(proxy), reason, tuple(locations), tuple(rows)
    )


def look_up(
    session: Session,
    batch: Batch,
    strategy: Strategy = "bind",
    columns: tuple[Any, ...] | None = None,
) -> tuple[Rows, Several]:
    """
    Ask for the rows of one batch of keys.

    Reads only, in as many statements as the dialect needs for a batch (one,
    where it takes arrays or JSON); never flushes.

    Args:
        columns: What to fetch instead of the usual.
    """
    mapper = batch.shape.mapper
    wanted = identifiers(mapper).fetched if columns is None else columns
    dialect = session.get_bind(mapper).dialect
    answers: Rows = [None] * len(batch.values)
    several: Several = {}
    for offset, keys in asked(batch, dialect):
        statement = _statement(batch, keys, wanted, strategy)
        with session.no_autoflush:
            rows = _execute(session, mapper, statement, keys.parameters, strategy)
        base = offset - keys.first
        for row in rows:
            place = row[0] + base
            if row[1] is None and keys.outer and all(v is None for v in row[1:]):
                continue
            fetched_row = row[1:] if strategy == "bind" else (*row[2:], row[1])
            if answers[place] is None:
                answers[place] = fetched_row
            else:
                first: Any = answers[place]
                several.setdefault(place, [first]).append(fetched_row)
    return answers, several


def _execute(
    session: Session,
    mapper: Mapper[Any],
    statement: Select[Any],
    parameters: dict[str, Any],
    strategy: Strategy,
) -> Sequence[Any]:
    arguments = {"mapper": mapper}
    # Without entities to load the ORM only adds time, but what the program hooks
    # into it (criteria of a tenant, say) holds for look-ups as well.
    if strategy == "hydrate" or session.dispatch.do_orm_execute:
        return session.execute(statement, parameters, bind_arguments=arguments).all()
    connection = session.connection(bind_arguments=arguments)
    return connection.execute(statement, parameters).all()


def _statement(
    batch: Batch, keys: Any, wanted: tuple[Any, ...], strategy: Strategy
) -> Select[Any]:
    entity = batch.shape.entity
    statement: Select[Any] = (
        select(keys.ordinal, *wanted)
        if strategy == "bind"
        else select(keys.ordinal, entity, *wanted)
    )
    return statement.select_from(keys.table).join(
        entity, and_(*on_clause(batch.shape, batch.nulls, keys)), isouter=keys.outer
    )
