"""Rows that references name and that are not there: made of their keys."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Table, select
from sqlalchemy.orm import Mapper

from ...errors import said
from ...mapping import Shape, identifiers, is_filled, property_of
from ...references import Proxy, is_resolved, row_lost, rows_found, shape_of
from ..lookup import by_shape, part_values, refused_by_halves
from ..write import Row, Target, take_write_locks
from .layout import Rows
from .link import Linker, is_pending, nested_in
from .report import LoadReport
from .savepoints import Attempts
from .writers import writer


class Creator:
    """
    Makes rows of keys, each once, whoever else does so at the same time.

    An INSERT that leaves a row alone which is there, then one more look-up: what
    another transaction has made meanwhile is found by it.

    Args:
        named: What the rows that are loaded may name, also inside of keys.
    """

    def __init__(
        self,
        attempts: Attempts,
        report: LoadReport,
        linker: Linker,
        named: Collection[Mapper[Any]],
    ) -> None:
        self.attempts = attempts
        self._named = named
        self.report = report
        self.linker = linker
        self._lacks: dict[Shape, str] = {}
        self._turns_of: Any = None

    def take_turns(self, more: Collection[Table]) -> None:
        """
        Wait until nobody else makes what may be missing, until the transaction ends.

        Not table by table as rows are made: another load may need them in another
        order, which the rows of the sources decide.

        Args:
            more: Tables that are written into, too.
        """
        session = self.attempts.session
        connection = self.attempts.connection()
        if self._turns_of is not session.get_transaction():
            self._turns_of = session.get_transaction()
            take_write_locks(connection, {*more, *self._tables})

    @cached_property
    def _tables(self) -> set[Table]:
        """The tables of what can be made, for the rows that are loaded to name."""
        return {
            mapper.local_table
            for mapper in self._named
            if isinstance(mapper.local_table, Table)
            and not all(map(_lacking, identifiers(mapper).spellings.values()))
        }

    def wanted(self, batches: Iterable[Rows]) -> list[Proxy]:
        """
        Return the references to insert: those of rows that are not rejected.

        What is inside of a key comes before it. A row that will be rejected, as
        one of its references cannot be made, wants none of the others either.
        """
        found: dict[int, Proxy] = {}
        for batch in batches:
            columns = [batch.fields[r.position] for r in batch.layout.references]
            columns = [values for values in columns if any(map(is_pending, values))]
            for n in batch.kept if columns else ():
                named = [values[n] for values in columns if is_pending(values[n])]
                if not any(map(self._is_impossible, named)):
                    for value in named:
                        found |= {id(p): p for p in nested_in(value) if is_pending(p)}
        return list(found.values())

    def _is_impossible(self, reference: Proxy) -> bool:
        problems = self.linker.problems
        for each in nested_in(reference):
            if is_resolved(each):
                continue
            problem = problems.get(id(each)) or self._problem(each)
            if problem:
                problems[id(each)] = problems[id(reference)] = problem
                return True
        return False

    def _problem(self, reference: Proxy) -> str:
        shape = shape_of(reference)
        if None in reference._tenure_values:
            return "a key that is null in part is not kept unique by the database"
        if shape not in self._lacks:
            self._lacks[shape] = _lacking(shape)
        return self._lacks[shape]

    def create(self, wanted: Sequence[Proxy]) -> None:
        """Make the rows that *wanted* name, and let these stand for them."""
        left = list(wanted)
        while left:
            ready = [
                reference
                for reference in left
                if all(map(is_resolved, nested_in_key(reference)))
            ]
            if not ready:
                break  # what is inside of them could not be made
            for shape, references in by_shape(ready).items():
                self._create(shape, references)
            done = set(map(id, ready))
            left = [reference for reference in left if id(reference) not in done]
        for reference in left:
            self._is_impossible(reference)

    def _create(self, shape: Shape, references: list[Proxy]) -> None:
        keyed = [(_columns_of(reference), reference) for reference in references]
        with suppress(TypeError):  # a type without an order
            # Two loads that make the same rows take their locks in one order.
            keyed.sort(key=lambda pair: pair[0])
        columns = _in_table_order(shape.mapper, shape.columns)
        places = [shape.columns.index(column) for column in columns]
        rows = [tuple([key[place] for place in places]) for key, _ in keyed]
        references = [reference for _, reference in keyed]
        target = Target(shape.mapper, columns, columns, "skip")
        refused = self._write(target, rows, references)
        self.linker.resolve(references)
        for reference in references:
            if not is_resolved(reference):
                self._look_again(reference)
            if not is_resolved(reference):
                self.linker.problems[id(reference)] = refused.get(
                    id(reference),
                    "it was inserted, but not found afterwards; does a trigger remove it?",
                )

    def _write(
        self, target: Target, rows: list[Row], references: list[Proxy]
    ) -> dict[int, str]:
        """Insert rows; return by reference why the database refused one."""
        connection = self.attempts.connection(target.mapper)
        write = writer(self.attempts.session, connection, target)
        count = self.report.count_of(target.mapper.class_.__name__)

        def step(some: Sequence[int]) -> Exception | None:
            columns = list(zip(*(rows[n] for n in some), strict=True))
            written, error = self.attempts.tried(
                lambda: write.write(write.rows(columns))
            )
            if written is not None:
                count.created += written.created
            return error

        return {
            id(references[n]): f"it cannot be inserted: {said(error)}"
            for n, error in refused_by_halves(range(len(rows)), step)
        }

    def _look_again(self, reference: Proxy) -> None:
        """
        Look for a row that another transaction has made since this one began.

        A snapshot of ours may be too old to show it; what is read to be locked is
        what has been committed. (MySQL, "Consistent Nonlocking Reads".)
        """
        shape = shape_of(reference)
        conditions = [
            column == value
            for column, value in zip(shape.columns, _columns_of(reference), strict=True)
        ]
        statement = (
            select(*identifiers(shape.mapper).fetched)
            .select_from(shape.entity)
            .where(*conditions)
            .with_for_update(read=True)
        )
        session, connection = self.attempts.session, self.attempts.connection

        def look() -> Any:
            return connection(shape.mapper).execute(statement).one_or_none()

        row, _ = self.attempts.tried(look)
        if row is not None:
            rows_found([reference], [tuple(row)], session)

    def orphans(self, wanted: Iterable[Proxy], batches: Iterable[Rows]) -> bool:
        """Whether something was made that no row names which is not rejected."""
        named = {
            id(each)
            for batch in batches
            for reference in batch.layout.references
            for n in batch.kept
            for each in nested_in(batch.fields[reference.position][n])
        }
        return any(is_resolved(p) and id(p) not in named for p in wanted)

    def forget(self, wanted: Iterable[Proxy]) -> None:
        """Make *wanted* unresolved again: what was inserted has been undone."""
        for reference in wanted:
            row_lost(reference)


def nested_in_key(reference: Proxy) -> Iterable[Proxy]:
    """Return the references in the key of *reference*."""
    return (each for each in nested_in(reference) if each is not reference)


def _columns_of(reference: Proxy) -> Row:
    values: list[Any] = []
    parts = shape_of(reference).parts
    for part, value in zip(parts, reference._tenure_values, strict=True):
        columns = part_values(part, value, lambda proxy: proxy._tenure_row)
        assert columns is not None, "what is inside of a key is resolved before it"
        values.extend(columns)
    return tuple(values)


def _in_table_order(
    mapper: Mapper[Any], columns: Collection[Column[Any]]
) -> tuple[Column[Any], ...]:
    """Sort *columns* as an INSERT is compiled."""
    places = {c: n for n, c in enumerate(c for t in mapper.tables for c in t.c)}
    return tuple(sorted(columns, key=places.__getitem__))


def _lacking(shape: Shape) -> str:
    """Return why a key of *shape* alone is not enough for a new row; empty if it is."""
    mapper, name = shape.mapper, shape.entity.__name__
    if mapper.polymorphic_on is not None and mapper.polymorphic_identity is None:
        return f"{name} is abstract, so none can be made"
    if not identifiers(mapper).is_unique_in_database(shape.columns):
        return (
            f"({', '.join(shape.names)}) of {name} is not unique in the database, so "
            f"none can be made safely"
        )
    lacks = dict.fromkeys(
        _attribute_of(mapper, column)
        for table in mapper.tables
        if isinstance(table, Table)
        for column in table.columns
        if not is_filled(mapper, column)
        and set(shape.columns).isdisjoint(_same(mapper, column))
    )
    if lacks:
        return f"no {name} can be made of its key alone: it lacks {', '.join(lacks)}"
    return ""


def _same(mapper: Mapper[Any], column: Column[Any]) -> Iterable[Column[Any]]:
    """Return the columns that are one attribute: keys of joined tables are."""
    prop: Any = property_of(mapper, column)
    return (column,) if prop is None else prop.columns


def _attribute_of(mapper: Mapper[Any], column: Column[Any]) -> str:
    prop = property_of(mapper, column)
    return column.name if prop is None else prop.key
