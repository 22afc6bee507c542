"""
Which values a refused flush failed for, as far as that can be told afterwards.

A database names a constraint, and not always the row, of the first value that it
refuses. What mappings say of the others is looked at here, and what tables do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Column, inspect
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapper, Session
from sqlalchemy.orm.interfaces import MANYTOONE

from ..errors import ConflictError, ResolutionError
from ..mapping import is_filled
from ..references import Proxy, is_resolved, key_of, target_of
from .report import BulkReport, Failure, Status, describe
from .upsert import Keyed, rows_of
from .value import Value, keys_of, name_of, token_of_key

#: Failures that are written under an error.
_SHOWN = 5


def tell(error: Any, count: int, failures: Iterable[Failure]) -> None:
    """Attach to an error the report of *count* values, none of which were written."""
    failed: list[Status] = ["failed"] * count
    error.report = BulkReport(failed, tuple(failures))
    if isinstance(error, (ConflictError, ResolutionError)):
        return  # its message has them
    for failure in error.report.failures[:_SHOWN]:
        error.add_note(f"bulk: {failure}")


def suspects(
    error: BaseException, on_conflict: str, values: Iterable[Value]
) -> list[Keyed]:
    """Return the new values that an error may be about, each with its keys."""
    if not isinstance(error, IntegrityError) or on_conflict != "raise":
        return []
    return [
        (value, list(keys_of(value.instance)))
        for value in values
        if value.instance is not None and inspect(value.instance).key is None
    ]


def circular(
    instances: Sequence[Any], references: Iterable[tuple[Any, Proxy]]
) -> list[Failure]:
    """
    Describe new values each of which needs the key of the next one.

    Args:
        references: The references of the bulk, each with its location.
    """
    circle = [name_of(each) for each in instances]
    path = " → ".join(describe(*each) for each in [*circle, circle[0]])
    located = [(loc, p) for loc, p in references if is_resolved(p)]
    failures = []
    for instance, (entity, key) in zip(instances, circle, strict=True):
        where = tuple(loc for loc, p in located if target_of(p) is instance)
        failures.append(Failure(entity, key, "circular", where, message=path))
    return failures


def told_by_mappings(keyed: Sequence[Keyed]) -> list[Failure]:
    """Name values that lack what a column needs, and those that share a key."""
    failures: list[Failure] = []
    needed: dict[Mapper[Any], list[str]] = {}
    first: dict[Any, Any] = {}
    for value, keys in keyed:
        instance = value.instance
        state = inspect(instance)
        if state.mapper not in needed:
            needed[state.mapper] = list(_needed(state.mapper))
        given = _given(state)
        lacking = [n for n in needed[state.mapper] if given.get(n) is None]
        if lacking:
            message = f"{', '.join(lacking)} may not be null"
            failures.append(Failure(*name_of(instance), "null", message=message))
        for proxy, columns in keys:
            shape = proxy._tenure_shape
            token = token_of_key(shape, columns)
            if first.setdefault(token, instance) is not instance:
                message = "another value of this bulk has this key"
                key = key_of(proxy)
                failures.append(
                    Failure(shape.entity, key, "duplicate", message=message)
                )
    return failures


def _needed(mapper: Mapper[Any]) -> Iterator[str]:
    """Yield the attributes that must be given: nothing else fills their columns."""
    for prop in mapper.column_attrs:
        column: Any = prop.columns[0]
        if isinstance(column, Column) and not is_filled(mapper, column):
            yield prop.key


def _given(state: Any) -> dict[str, Any]:
    """Return the set attributes, and the foreign keys that relationships will set."""
    given = dict(state.dict)
    for relationship in state.mapper.relationships:
        parent = given.get(relationship.key)
        if relationship.direction is MANYTOONE and parent is not None:
            for column in relationship.local_columns:
                given[state.mapper.get_property_by_column(column).key] = parent
    return given


def told_by_rows(session: Session, keyed: Sequence[Keyed]) -> list[Failure]:
    """
    Name values whose key a row has.

    Leaves the session's transaction as it was: open, or not begun.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: That cannot be asked.
    """
    is_inside = session.in_transaction()
    try:
        with session.no_autoflush, session.begin_nested():
            found = rows_of(session, keyed)
    finally:
        if not is_inside:
            session.rollback()
    message = "a row has this key already"
    return [
        Failure(proxy._tenure_shape.entity, key_of(proxy), "duplicate", message=message)
        for _, keys in keyed
        for proxy, _ in keys
        if id(proxy) in found
    ]
