"""Values are written, by key or as new rows, with what becomes of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from ..errors import ResolutionError
from ..mapping import Shape
from ..references import Proxy, key_of, relationship_names
from .attach import discard, innermost, place
from .lookup import Unfound, batches, failure, look_up
from .naming import Named, choose, keys_of, token_of_key
from .new_rows import write_new
from .report import BulkReport, Failure, Status
from .upsert import merge
from .value import Value, replace_proxies, set_attributes
from .write import OnConflict

OnDuplicate = Literal["raise", "first", "last"]

#: A value, and its keys.
Keyed = tuple[Value, list[Named]]

#: Values that are written at once.
BATCH = 100_000


def _keyed(
    values: Sequence[Value], on_duplicate: OnDuplicate
) -> tuple[list[Keyed], list[Value]]:
    """Pair each value with its keys in columns; give the superseded ones apart."""
    keyed: dict[Any, Keyed] = {}
    superseded: list[Value] = []
    twice: list[Failure] = []
    for value in values:
        instance = value.made()
        keys = list(keys_of(instance))
        if not keys:
            continue
        proxy, columns = keys[0]
        token = token_of_key(proxy._tenure_shape, columns)
        earlier = keyed.get(token)
        if earlier is not None and earlier[0].made() is not instance:
            if on_duplicate == "raise":
                entity = proxy._tenure_shape.entity
                message = "more than one value of this bulk has this key"
                key = key_of(proxy)
                twice.append(Failure(entity, key, "ambiguous", message=message))
                continue
            if on_duplicate == "first":
                superseded.append(value)
                continue
            superseded.append(earlier[0])
        keyed[token] = (value, keys)
    if twice:
        raise ResolutionError(twice)
    return list(keyed.values()), superseded


def _chosen(
    keyed: Iterable[Keyed], rows: Mapping[int, dict[str, Any]]
) -> list[tuple[Value, Proxy]]:
    """Pair each value that has a row with the key that names it."""

    def identity(key: Proxy) -> tuple[Any, ...] | None:
        row, mapper = rows.get(id(key)), key._tenure_shape.mapper
        if row is None:
            return None
        return tuple(
            row[mapper.get_property_by_column(column).key]
            for column in mapper.primary_key
        )

    chosen = [(value, choose((k for k, _ in keys), identity)) for value, keys in keyed]
    failures = [each for _, each in chosen if isinstance(each, Failure)]
    if failures:
        raise ResolutionError(failures)
    return [(value, key) for value, key in chosen if type(key) is Proxy]


def rows_of(session: Session, keyed: Sequence[Keyed]) -> dict[int, dict[str, Any]]:
    """Look up the rows of keyed values: their loaded columns by attribute."""
    found: dict[int, dict[str, Any]] = {}
    groups: dict[Shape, tuple[list[Proxy], list[tuple[Any, ...]]]] = {}
    for proxy, columns in (key for _, keys in keyed for key in keys):
        group = groups.setdefault(proxy._tenure_shape, ([], []))
        group[0].append(proxy)
        group[1].append(columns)
    for shape, (proxies, keys) in groups.items():
        names = [prop.key for prop in shape.mapper.column_attrs]
        wanted = tuple(prop.columns[0] for prop in shape.mapper.column_attrs)
        for batch in batches(shape, proxies, keys):
            rows, several = look_up(session, batch, columns=wanted)
            if several:
                raise ResolutionError(
                    [
                        failure(Unfound(batch.proxies[place], "ambiguous", answers))
                        for place, answers in several.items()
                    ]
                )
            for proxy, row in zip(batch.proxies, rows, strict=True):
                if row is not None:
                    found[id(proxy)] = dict(zip(names, row, strict=True))
    return found


def flush(
    session: Session,
    values: Sequence[Value],
    *,
    on_conflict: OnConflict,
    update_fields: Iterable[str] | None,
    on_duplicate: OnDuplicate,
    size: int = BATCH,
) -> BulkReport:
    """Write values; see ``SessionBulk.flush``."""
    # Others may add meanwhile.
    values = list(values)
    statuses: dict[Value, Status] = {}
    with session.no_autoflush:
        kinds = {kind: inspect(kind) for kind in {value.entity for value in values}}
        related = {kind: bool(relationship_names(kinds[kind])) for kind in kinds}
        keys = {
            kind: [mapper.get_property_by_column(c).key for c in mapper.primary_key]
            for kind, mapper in kinds.items()
        }
        for value in values:
            if related[value.entity]:
                value.remember()
            instance = value.made()
            if related[value.entity]:
                replace_proxies(instance)
            state = instance._sa_instance_state
            if state.key is None:
                held = state.dict
                value.unkeyed = tuple(
                    [name for name in keys[value.entity] if held.get(name) is None]
                )
        if on_conflict != "raise":
            allowed = None if update_fields is None else set(update_fields)
            new = [v for v in values if not v.is_row]
            instances = [value.instance for value in new]
            merged = merge(session, instances, on_conflict, allowed, size)
            for value in new:
                outcome = merged.get(value.instance._sa_instance_state)
                if outcome is not None:
                    statuses[value], instance = outcome
                    if instance is not value.instance:
                        discard(session, value.instance)
                        value.instance, value.was_known = instance, True
            keyed, superseded = _keyed(
                [v for v in new if v not in statuses], on_duplicate
            )
            found = rows_of(session, keyed)
            statuses |= dict.fromkeys(superseded, "skipped")
            for value, proxy in _chosen(keyed, found):
                row = found[id(proxy)]
                if on_conflict == "skip":
                    statuses[value] = "skipped"
                    continue
                held = inspect(value.instance).dict
                attributes = {
                    name: held[name]
                    for name in set_attributes(value.instance)
                    if allowed is None or name in allowed
                }
                names = proxy._tenure_shape.names
                place(session, value, attributes, row, key=names)
        for value in values:
            if statuses.get(value) == "skipped":
                discard(session, value.instance)
            elif value in statuses:
                continue
            elif value.instance._sa_instance_state.key is not None:
                changed = session.is_modified(value.instance)
                statuses[value] = "updated" if changed else "unchanged"
            else:
                statuses[value] = "created"
        created = [v.instance for v in values if statuses[v] == "created"]
        new_ones = [i for i in created if i._sa_instance_state.key is None]
        write_new(session, new_ones, size)
        session.flush()
    written_in = innermost(session)
    for value in values:
        if statuses[value] != "unchanged":
            value.placed_in = written_in
        value.is_row = value.is_row or statuses[value] != "skipped"
    return BulkReport([statuses[value] for value in values])
