"""Values of a bulk: found among the rows that exist, and written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import inspect
from sqlalchemy.orm import Session, make_transient, make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from ..errors import ResolutionError, SessionError
from ..keys import Shape, identifiers
from ..references import Proxy, is_resolved, settle_instance, target_of
from ..resources import Spec
from ._plan import batches
from ._report import BulkReport, Failure, Status
from ._run import Strategy, failure, look_up, part_values

OnConflict = Literal["raise", "update", "skip"]
OnDuplicate = Literal["raise", "first", "last"]


@dataclass(slots=True, eq=False)
class Value:
    """One value: what was given, and the mapped instance it is or describes."""

    given: Any
    entity: type[Any]
    instance: Any = None
    #: Whether it is known to be a row already.
    is_row: bool = False

    def made(self) -> Any:
        """Give the mapped instance, made from a ``Spec`` when first needed."""
        if self.instance is None:
            given = self.given
            self.instance = given.to_resource() if isinstance(given, Spec) else given
        return self.instance

    def forget(self) -> None:
        """Be a new value again."""
        self.is_row = False
        if isinstance(self.given, Spec):
            self.instance = None


def reference_to(instance: Any) -> Proxy:
    """
    Give a proxy for the row that the set attributes of *instance* name.

    Raises:
        SessionError: They name none.
    """
    state = inspect(instance)
    shape = _identifier_of(instance)
    if shape is None:
        raise SessionError(
            f"{instance!r} has no complete identifier set, so it refers to no row"
        )
    proxy = Proxy(shape, tuple(state.dict[name] for name in shape.names))
    if state.persistent:
        row = tuple(getattr(instance, c.key) for c in identifiers(shape.mapper).fetched)
        settle_instance(proxy, row, instance)
    return proxy


def _identifier_of(instance: Any) -> Shape | None:
    """Give the first identifier all of whose attributes are set and not null."""
    state = inspect(instance)
    for names, shape in identifiers(type(instance)).spellings.items():
        if all(state.dict.get(name) is not None for name in names):
            return shape
    return None


def _token(value: Any) -> Any:
    if type(value) is Proxy:
        if value._seance_target is None:
            return ("proxy", id(value))
        value = value._seance_target
    if hasattr(value, "_sa_instance_state"):
        return ("instance", id(value))
    return value


def index(
    values: Sequence[Value], shapes: Iterable[Shape]
) -> Callable[[Proxy], Any] | None:
    """Give what finds the value of the bulk that a reference names, if any."""
    if not values:
        return None
    found: dict[Shape, dict[tuple[Any, ...], Any]] = {}
    for shape in shapes:
        members = found[shape] = {}
        for value in values:
            if not issubclass(value.entity, shape.entity):
                continue
            # A spec whose own references are not resolved is no instance yet.
            source = value.instance
            if source is None and not isinstance(value.given, Spec):
                source = value.given
            if source is None:
                continue
            held = source.__dict__
            if all(held.get(name) is not None for name in shape.names):
                token = tuple(_token(held[name]) for name in shape.names)
                members.setdefault(token, source)

    def known(proxy: Proxy) -> Any:
        return found[proxy._seance_shape].get(
            tuple(_token(value) for value in proxy._seance_values)
        )

    return known


def _keyed(
    session: Session, values: Sequence[Value], on_duplicate: OnDuplicate
) -> tuple[list[tuple[Value, Proxy, tuple[Any, ...]]], list[Value]]:
    """Pair each value with its key in columns; give the superseded ones apart."""
    keyed: dict[Any, tuple[Value, Proxy, tuple[Any, ...]]] = {}
    superseded: list[Value] = []
    twice: list[Failure] = []
    for value in values:
        instance = value.made()
        shape = _identifier_of(instance)
        if shape is None:
            continue
        held = inspect(instance).dict
        key = tuple(held[name] for name in shape.names)
        columns: list[Any] = []
        for part, part_value in zip(shape.parts, key, strict=True):
            known = part_values(part, part_value, lambda proxy: proxy._seance_row)
            if known is None:
                break
            columns.extend(known)
        else:
            token = (shape, tuple(columns))
            earlier = keyed.get(token)
            if earlier is not None and earlier[0].made() is not instance:
                if on_duplicate == "raise":
                    names = dict(zip(shape.names, key, strict=True))
                    twice.append(Failure(shape.entity, names, "ambiguous"))
                    continue
                if on_duplicate == "first":
                    superseded.append(value)
                    continue
                superseded.append(earlier[0])
            keyed[token] = (value, Proxy(shape, key), tuple(columns))
    if twice:
        raise ResolutionError(twice)
    return list(keyed.values()), superseded


def bind(
    session: Session, values: Sequence[Value], strategy: Strategy
) -> tuple[int, list[Failure]]:
    """
    Find the rows that values have already and bind the values to them.

    Returns how many were bound, and a failure for each that is new.
    """
    ready = [v for v in values if not v.is_row and _is_complete(v)]
    keyed, _ = _keyed(session, ready, "first")
    found = _rows_of(session, keyed)
    missing = []
    for value, proxy, _ in keyed:
        row = found.get(id(proxy))
        if row is None:
            names = proxy._seance_shape.names
            key = dict(zip(names, proxy._seance_values, strict=True))
            missing.append(Failure(value.entity, key, "missing"))
        else:
            _become(session, value, row)
            if strategy == "hydrate":
                unloaded = inspect(value.instance).unloaded
                columns = inspect(value.entity).column_attrs.keys()
                wanted = [name for name in columns if name in unloaded]
                if wanted:
                    session.refresh(value.instance, wanted)
    return len(found), missing


def _is_complete(value: Value) -> bool:
    if not isinstance(value.given, Spec):
        return True
    held = value.given.__dict__
    return all(type(v) is not Proxy or is_resolved(v) for v in held.values())


def _rows_of(
    session: Session, keyed: Sequence[tuple[Value, Proxy, tuple[Any, ...]]]
) -> dict[int, dict[str, Any]]:
    """Look up the rows of keyed values: their loaded columns by attribute."""
    found: dict[int, dict[str, Any]] = {}
    groups: dict[Shape, tuple[list[Proxy], list[tuple[Any, ...]]]] = {}
    for _, proxy, columns in keyed:
        group = groups.setdefault(proxy._seance_shape, ([], []))
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
                        failure((batch.proxies[place], "ambiguous", answers))
                        for place, answers in several.items()
                    ]
                )
            for proxy, row in zip(batch.proxies, rows, strict=True):
                if row is not None:
                    found[id(proxy)] = dict(zip(names, row, strict=True))
    return found


def _become(session: Session, value: Value, row: dict[str, Any]) -> None:
    """Make a value the session's instance of its row; set attributes count as new."""
    instance = value.made()
    mapper = inspect(type(instance))
    state = inspect(instance)
    identity = [
        row[mapper.get_property_by_column(column).key] for column in mapper.primary_key
    ]
    key = mapper.identity_key_from_primary_key(identity)
    present = session.identity_map.get(key)
    given = {name: state.dict[name] for name in _set_attributes(instance)}
    if present is not None and present is not instance:
        _apply(present, given)
        if instance in session.new:
            session.expunge(instance)
        value.instance = present
    elif present is None:
        if state.session is not None:
            session.expunge(instance)
        make_transient(instance)
        for column, part in zip(mapper.primary_key, identity, strict=True):
            state.dict[mapper.get_property_by_column(column).key] = part
        make_transient_to_detached(instance)
        session.add(instance)
        for name in given:
            if name in row:
                set_committed_value(instance, name, row[name])
        _apply(instance, given)
    value.is_row = True


def _set_attributes(instance: Any) -> list[str]:
    state = inspect(instance)
    return [prop.key for prop in state.mapper.attrs if prop.key in state.dict]


def _apply(instance: Any, given: dict[str, Any]) -> None:
    primary = {
        column.key
        for column in inspect(type(instance)).primary_key
        if column.key is not None
    }
    for name, value in given.items():
        if name not in primary:
            wanted = target_of(value) if type(value) is Proxy else value
            if instance.__dict__.get(name, _UNSET) != wanted:
                setattr(instance, name, wanted)


_UNSET = object()


def flush(
    session: Session,
    values: Sequence[Value],
    *,
    on_conflict: OnConflict,
    update_fields: Iterable[str] | None,
    on_duplicate: OnDuplicate,
) -> BulkReport:
    """Write values through the unit of work; see ``SessionBulk.flush``."""
    statuses: dict[int, Status] = {}
    for value in values:
        value.made()
    if on_conflict != "raise":
        allowed = None if update_fields is None else set(update_fields)
        new = [v for v in values if not v.is_row]
        keyed, superseded = _keyed(session, new, on_duplicate)
        found = _rows_of(session, keyed)
        statuses.update((id(value), "skipped") for value in superseded)
        for value, proxy, _ in keyed:
            row = found.get(id(proxy))
            if row is None:
                continue
            if on_conflict == "skip":
                statuses[id(value)] = "skipped"
                continue
            if allowed is not None:
                kept = allowed | set(proxy._seance_shape.names)
                for name in set(_set_attributes(value.made())) - kept:
                    inspect(value.instance).dict.pop(name, None)
            _become(session, value, row)
    for value in values:
        if id(value) in statuses:
            if value.instance in session:
                session.expunge(value.instance)
            continue
        state = inspect(value.instance)
        if state.persistent:
            changed = session.is_modified(value.instance)
            statuses[id(value)] = "updated" if changed else "unchanged"
        else:
            session.add(value.instance)
            statuses[id(value)] = "created"
    session.flush()
    for value in values:
        value.is_row = statuses[id(value)] != "skipped" or value.is_row
    return BulkReport([statuses[id(value)] for value in values])
