"""
Why rows of a class are not written past the unit of work.

The unit of work asks each object what to do. Where nothing of a program looks on, and
the table is all there is, the same can be done for all rows at once. This is the one
place that says where; it is asked once for each class and set of columns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import repeat
from typing import Any, Literal

from sqlalchemy import ClauseElement, Column, Table
from sqlalchemy.orm import Mapper, Session

from ..._private import insert_defaults
from ...mapping import property_of

_FLUSH_EVENTS = ("before_flush", "after_flush", "after_flush_postexec")
#: Events of a session about one object, which a flush of new objects sends.
LIFE_EVENTS = (
    "after_attach",
    "before_attach",
    "pending_to_persistent",
    "transient_to_pending",
)

OnConflict = Literal["raise", "update", "skip"]


def why_not_bypassed(
    session: Session,
    mapper: Mapper[Any],
    *,
    on_conflict: OnConflict = "raise",
    columns: Collection[Column[Any]] | None = None,
) -> str | None:
    """
    Return the reason why only the unit of work can write rows; ``None``: none.

    Args:
        columns: The columns of rows that were never instances, as those of a file;
            ``None``: the rows are mapped instances, and stay in the session.
    """
    return next(_reasons(session, mapper, on_conflict, columns), None)


def _reasons(
    session: Session,
    mapper: Mapper[Any],
    on_conflict: OnConflict,
    columns: Collection[Column[Any]] | None,
) -> Iterator[str]:
    name, table = mapper.class_.__name__, mapper.local_table
    # The listener of our sessions only checks the role, as connection() does.
    own = getattr(session, "_flush_listener", None)
    for event in (*_FLUSH_EVENTS, *(LIFE_EVENTS if columns is not None else ())):
        if any(each is not own for each in getattr(session.dispatch, event)):
            yield f"the session has a listener for {event}"
    updates = on_conflict == "update"
    for event in (
        *("before_insert", "after_insert"),
        *(("before_update", "after_update") if updates else ()),
    ):
        if getattr(mapper.dispatch, event):
            yield f"{name} has a listener for {event}"
    if mapper.class_manager.dispatch.refresh_flush:
        yield f"{name} has a listener for refresh_flush"
    if not isinstance(table, Table) or mapper.tables != [table]:
        yield f"{name} is not one table"
        return
    if mapper.version_id_col is not None:
        yield f"{name} counts versions"
    if mapper.polymorphic_on is not None and (
        columns is not None or on_conflict != "raise"
    ):
        yield f"a row of {name} may be of another class"
    if any(insert_defaults(mapper).values()):
        yield f"attributes of {name} have defaults apart from those of columns"
    if updates:
        for column in table.columns:
            if column.onupdate is not None or (
                column.server_onupdate is not None and columns is None
            ):
                yield f"{name}.{column.key} changes with each update"
    if columns is None:
        yield from _of_instances(mapper, table)
    else:
        yield from _of_columns(mapper, table, columns)


def _of_instances(mapper: Mapper[Any], table: Table) -> Iterator[str]:
    """Yield what a flush does to an instance that is not done for many at once."""
    name = mapper.class_.__name__
    if not mapper.batch:
        yield f"{name} is mapped with batch=False"
    if mapper.base_mapper.eager_defaults is True:
        yield f"{name} is mapped with eager_defaults=True"
    for prop in mapper.column_attrs:
        if any(getattr(each, "table", None) is not table for each in prop.columns):
            yield f"{name}.{prop.key} is SQL"
    for relationship in mapper.relationships:
        if relationship.post_update:
            yield f"{name}.{relationship.key} has post_update"
    for column in table.columns:
        if column.computed is not None:
            yield f"{name}.{column.key} is computed"
        default = column.default
        if default is None or (default.is_sequence and column.primary_key):
            continue
        if property_of(mapper, column) is None or default_maker(column) is None:
            yield f"{name}.{column.key} has a default made by SQL, or from the row"


def _of_columns(
    mapper: Mapper[Any], table: Table, columns: Collection[Column[Any]]
) -> Iterator[str]:
    """Yield what is done when the attributes of an instance are set."""
    name = mapper.class_.__name__
    for column in columns:
        key = mapper.get_property_by_column(column).key
        # Methods with @validates are listeners for "set", too.
        if mapper.class_manager[key].dispatch.set:
            yield f"{name}.{key} has a validator, or a listener for set"
    present = set(columns)
    for column in table.columns:
        default = column.default
        if column not in present and default is not None and not default.is_sequence:
            yield f"{name}.{column.key} has a default made by Python"


def default_maker(column: Column[Any]) -> Callable[[], Any] | None:
    """Return what makes the default of a column, if Python does so by itself."""
    default: Any = column.default
    if default is None or default.is_sequence or default.is_clause_element:
        return None
    if default.is_scalar:
        return repeat(default.arg).__next__
    # SQLAlchemy wraps functions that take no context in one of its own.
    where = getattr(default.arg, "__globals__", {}).get("__name__")
    if where != "sqlalchemy.sql.schema":
        return None
    return lambda: default.arg(None)


class Attribute:
    """A column of the rows, the attribute it is, and its default."""

    __slots__ = ("column", "evaluates_none", "is_left_out", "key", "maker")

    def __init__(self, mapper: Mapper[Any], of: Any) -> None:
        self.column: Column[Any] = of
        self.key = mapper.get_property_by_column(of).key
        #: Whether None is a value of its own, as the null of JSON is.
        self.evaluates_none = of.type.should_evaluate_none
        #: Makes the value where none was set.
        self.maker = default_maker(of)
        #: Whether a row without a value does without the column.
        self.is_left_out = self.maker is None and (
            of.server_default is not None or of.primary_key or self.evaluates_none
        )

    @property
    def nothing(self) -> Any:
        """What stands for no value."""
        return NOT_SET if self.evaluates_none else None


def is_sql(kind: type[Any]) -> bool:
    """Whether values of a type are SQL, not values of a column."""
    return issubclass(kind, ClauseElement) or hasattr(kind, "__clause_element__")


class _NotSet:
    pass


NOT_SET = _NotSet()
