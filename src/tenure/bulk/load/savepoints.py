"""
Steps of a load in savepoints, so that a row which is refused harms no other.

:class:`Attempts` tries a step; :class:`RefusingWriter` writes the rows of a batch, finds
those that are refused, and rejects them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Column, Connection, Table, insert
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Mapper, Session

from ...errors import said
from ...mapping import identifiers
from ..dialects import ensure_transaction, is_of_row, orders_alike
from ..lookup import Batch, look_up, refused_by_halves
from ..write import (
    Deferred,
    OnConflict,
    Row,
    Target,
    Written,
    do_nothing,
    in_key_order,
)
from .layout import Layout, Rows
from .report import LoadReport, Rejects
from .spool import folded
from .writers import Writer, writer

T = TypeVar("T")


class Attempts:
    """
    Steps of a load, each in a savepoint.

    Attributes:
        mapper: Whose rows are loaded.
    """

    def __init__(self, session: Session, mapper: Mapper[Any]) -> None:
        self.session = session
        self.mapper = mapper

    def connection(self, mapper: Mapper[Any] | None = None) -> Connection:
        """
        Return the connection that rows are written on, in a transaction.

        Args:
            mapper: Whose rows, if not those that are loaded.
        """
        mapper = mapper or self.mapper
        connection = self.session.connection(
            bind_arguments={"mapper": mapper, "clause": insert(mapper)}
        )
        ensure_transaction(connection)
        return connection

    def tried(self, step: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """Do *step* in a savepoint; give its result, or why a row was refused."""
        self.connection()
        savepoint = self.session.begin_nested()
        # The session sends SAVEPOINT only when it is asked for its connection.
        self.connection()
        try:
            result = step()
            savepoint.commit()
        except Exception as error:
            if not is_of_row(error):
                raise
            savepoint.rollback()
            return None, error
        return result, None

    def refusal(self, step: Callable[[], object]) -> Exception | None:
        """Do *step* in a savepoint and undo it; return why a row was refused, if so."""
        refused: list[Exception] = []

        def tried() -> bool:
            try:
                step()
            except Exception as error:
                if not is_of_row(error):
                    raise
                refused.append(error)
            return False

        self.done_if(tried)
        return refused[0] if refused else None

    def done_if(self, step: Callable[[], bool]) -> bool:
        """Do *step* in a savepoint; undo it if it says that it is not to stay."""
        self.connection()
        savepoint = self.session.begin_nested()
        self.connection()
        is_kept = step()
        if is_kept:
            savepoint.commit()
        else:
            savepoint.rollback()
        return is_kept


#: How many times rejected rows are written again to find what of them was refused.
MOST_TRIALS = 2_000


@dataclass(frozen=True, slots=True)
class _Writing:
    """Rows on their way into their table; ``rows`` as its writer takes them."""

    batch: Rows
    target: Target
    writer: Writer
    deferred: Deferred | None
    rows: list[Row]

    def write(self, rows: Sequence[Row], values: Iterable[Sequence[Any]]) -> Written:
        """Write rows, whose *values* are given by column, and check them."""
        written = self.writer.write(rows)
        if self.deferred is not None:
            self.deferred.check(self.target.columns, values)
        return written


class RefusingWriter:
    """Writes what can be written, counts it, and rejects the rest."""

    def __init__(
        self,
        attempts: Attempts,
        report: LoadReport,
        rejects: Rejects,
        labels: dict[str, str],
        on_conflict: OnConflict,
    ) -> None:
        self.attempts = attempts
        #: Called while the server writes rows, where that is possible.
        self.meanwhile: Callable[[], None] = do_nothing
        self.mapper = attempts.mapper
        self.report = report
        self.rejects = rejects
        self.labels = labels
        self.on_conflict = on_conflict
        self._trials = MOST_TRIALS
        #: What writes rows of each layout, on the connection it is for.
        self._writers: dict[Layout, tuple[Connection, Target, Writer]] = {}
        self._deferred: Deferred | None = None
        #: Whether the mapping has a foreign key that is checked late.
        self._defers = any(
            key.initially
            for table in self.mapper.tables
            if isinstance(table, Table)
            for key in table.foreign_key_constraints
        )

    def write(self, batches: Sequence[Rows]) -> None:
        """Write what is not rejected of *batches*, whose columns are made."""
        for_new = self.on_conflict == "raise"
        parts = [part for each in batches for part in each.by_defaults(for_new=for_new)]
        for batch, kept in self._in_turns(parts):
            self._write(batch, kept)

    def _in_turns(self, batches: Sequence[Rows]) -> Iterator[tuple[Rows, list[int]]]:
        """
        Yield the rows to write at once: rows with one key come one after the other.

        Those that set the same fields are put in order by their writer; others
        are written apart.
        """
        if len(batches) < 2:
            yield from ((batch, batch.kept) for batch in batches)
            return
        keys = [batch.layout.key for batch in batches]
        rows = sorted(
            (batch.records[n][0], place, n)
            for place, batch in enumerate(batches)
            for n in batch.kept
        )
        turns: list[list[list[int]]] = []
        seen: Counter[Any] = Counter()
        for _, place, n in rows:
            batch, key = batches[place], keys[place]
            values = [batch.columns[batch.layout.columns.index(c)][n] for c in key]
            named = key and (batch.layout.nulls_are_equal or None not in values)
            # Folded, since the database may call them equal; one turn too many is harmless.
            token = (key, *map(folded, values)) if named else None
            turn = 0 if token is None else seen[token]
            seen[token] += 1
            if turn >= len(turns):
                turns.append([[] for _ in batches])
            turns[turn][place].append(n)
        for turn_rows in turns:
            for batch, kept in zip(batches, turn_rows, strict=True):
                yield batch, kept

    def _write(self, batch: Rows, kept: list[int]) -> None:
        if not kept:
            return
        connection = self.attempts.connection()
        target, write = self._writer(batch.layout, connection)
        places = [target.columns.index(column) for column in target.key]
        keys = [batch.columns[place] for place in places]
        if self.on_conflict != "raise":
            kept = self._without_null_keys(batch, target, keys, kept)
        defers = self._defers or connection.dialect.name == "postgresql"
        if defers and getattr(self._deferred, "connection", None) is not connection:
            self._deferred = Deferred(connection, self.mapper.tables)
        writing = _Writing(batch, target, write, self._deferred, [])
        try:
            rows = write.rows(batch.columns)
        except StatementError:
            rows, kept = self._made_apart(writing, kept)
        is_ordered = batch.layout.unique is None or batch.layout.unique.is_of_columns
        # Keys that differ here may be equal in an index of expressions.
        if is_ordered and all(
            orders_alike(c.type, connection.dialect) for c in target.key
        ):
            kept = list(in_key_order(kept, keys))
        self._attempt(replace(writing, rows=rows), kept)

    def _writer(self, layout: Layout, connection: Connection) -> tuple[Target, Writer]:
        known = self._writers.get(layout)
        if known is None or known[0] is not connection:
            target = Target(
                self.mapper,
                layout.columns,
                layout.key,
                self.on_conflict,
                layout.given,
                layout.unique,
            )
            write = writer(
                self.attempts.session,
                connection,
                target,
                needs_unit_of_work=layout.has_null_defaults,
                meanwhile=self.meanwhile,
            )
            known = self._writers[layout] = connection, target, write
        return known[1:]

    def _made_apart(
        self, writing: _Writing, kept: list[int]
    ) -> tuple[list[Row], list[int]]:
        """Make the rows one by one, and reject those whose values are refused."""
        columns = writing.batch.columns
        rows: list[Row] = [()] * len(writing.batch.records)
        made = []
        for n in kept:
            try:
                [rows[n]] = writing.writer.rows([[values[n]] for values in columns])
                made.append(n)
            except StatementError as error:
                self._reject_refused(writing, n, error)
        return rows, made

    def _without_null_keys(
        self, batch: Rows, target: Target, keys: list[Any], kept: list[int]
    ) -> list[int]:
        if batch.layout.nulls_are_equal:
            return kept
        for column, values in zip(target.key, keys, strict=True):
            if None not in values:
                continue
            field = self.labels[batch.layout.names[column]]
            message = f"{field!r} is part of the key and null, so it names no row"
            for n in kept:
                if values[n] is None:
                    self.rejects.add(batch.records[n], field, "null", message)
            kept = [n for n in kept if values[n] is not None]
        return kept

    def _attempt(self, writing: _Writing, origins: list[int]) -> None:
        """
        Write rows, in the order given; where one is refused, go on with the others.

        From then on in the order of the source, so that of two rows which exclude
        each other the first one stays.
        """
        if not origins or self._written(writing, origins) is None:
            return
        origins = sorted(origins)
        if writing.target.key and self.on_conflict == "raise":
            self._without_duplicates(writing, origins)
        else:
            self._halved(writing, origins)

    def _written(self, writing: _Writing, origins: Sequence[int]) -> Exception | None:
        """Write rows and count them, or give the error about one of them."""
        rows = [writing.rows[n] for n in origins]
        values = ([values[n] for n in origins] for values in writing.batch.columns)
        written, error = self.attempts.tried(lambda: writing.write(rows, values))
        if written is not None:
            report = self.report
            report.created += written.created
            report.updated += written.updated
            report.unchanged += written.unchanged
            report.skipped += written.skipped
        return error

    def _halved(self, writing: _Writing, origins: list[int]) -> list[int]:
        """Write rows; reject those that are refused, and return them."""
        refused = []
        for n, error in refused_by_halves(origins, partial(self._written, writing)):
            self._reject_refused(writing, n, error)
            refused.append(n)
        return refused

    def _without_duplicates(self, writing: _Writing, origins: list[int]) -> None:
        """
        Write rows, but reject those whose key a row has already.

        Here, or in the database. Asking for them is much cheaper than halving.
        """
        batch, target = writing.batch, writing.target
        columns = [batch.columns[target.columns.index(c)] for c in target.key]
        keys = {n: tuple([values[n] for values in columns]) for n in origins}
        taken = self._taken(target, keys)
        label = ", ".join(
            dict.fromkeys(self.labels[batch.layout.names[c]] for c in target.key)
        )
        first: dict[Any, int] = {}
        turn: list[int] = []
        later: list[int] = []
        for n in origins:
            if n in taken:
                message = f"a row with this ({label}) exists already"
                self.rejects.add(batch.records[n], label, "duplicate", message)
            elif None not in keys[n] and keys[n] in first:
                later.append(n)
            else:
                first.setdefault(keys[n], n)
                turn.append(n)
        while turn:
            free = {keys[n] for n in self._halved(writing, turn)}
            turn = []
            for n in later:
                if keys[n] in free:
                    # The row before it with this key was refused for another reason.
                    free.discard(keys[n])
                    first[keys[n]] = n
                    turn.append(n)
            later = [n for n in later if first[keys[n]] != n]
        for n in later:
            line = batch.records[first[keys[n]]][0]
            there = self.rejects.records.named(line)
            message = f"{there} has the same ({label})"
            self.rejects.add(batch.records[n], label, "duplicate", message)

    def _taken(self, target: Target, keys: dict[int, tuple[Any, ...]]) -> set[int]:
        """Return which of *keys* are those of rows in the database."""
        asked = [n for n, key in keys.items() if None not in key]
        names = [self.mapper.get_property_by_column(c).key for c in target.key]
        shape = identifiers(self.mapper).shape(names)
        width = (False,) * len(names)
        given = [shape.arranged(names, keys[n]) for n in asked]
        wanted = Batch(shape, width, [], given)
        answers, _ = self.attempts.tried(lambda: look_up(self.attempts.session, wanted))
        # Rows whose keys cannot be looked up are found by halving.
        existing = answers[0] if answers is not None else [None] * len(asked)
        return {n for n, row in zip(asked, existing, strict=True) if row is not None}

    def _reject_refused(self, writing: _Writing, origin: int, error: Exception) -> None:
        columns = self._named(writing, error) or self._tried_out(writing, origin, error)
        names = [self.labels[writing.batch.layout.names[c]] for c in columns]
        kind = "integrity" if isinstance(error, IntegrityError) else "data"
        record, fields = writing.batch.records[origin], ", ".join(dict.fromkeys(names))
        self.rejects.add(record, fields, kind, said(error))

    def _named(self, writing: _Writing, error: Exception) -> list[Column[Any]]:
        """Return the columns that the database itself has named."""
        target, message = writing.target, said(error)
        original = getattr(error, "orig", None) or error
        column = getattr(getattr(original, "diag", None), "column_name", None)
        return [
            c
            for c in target.columns
            if c.name == column or f"{target.table.name}.{c.name}" in message
        ]

    def _tried_out(
        self, writing: _Writing, origin: int, error: Exception
    ) -> list[Column[Any]]:
        """Return the columns of a row that is not refused, or not so, without them."""
        columns, key = writing.batch.columns, writing.target.key
        places = [
            place for place, values in enumerate(columns) if values[origin] is not None
        ]
        if len(places) > self._trials:
            return []
        self._trials -= len(places)
        found, unclear = [], []
        for place in places:
            column = writing.target.columns[place]
            stand_in = None
            if not column.nullable:
                stand_in = _another(columns[place], columns[place][origin])
            if (stand_in is None and not column.nullable) or column in key:
                unclear.append(column)
                continue
            row = [[values[origin]] for values in columns]
            row[place] = [stand_in]

            def step(row: Sequence[Sequence[Any]] = row) -> None:
                writing.write(writing.writer.rows(row), row)

            other = self.attempts.refusal(step)
            if other is None or said(other) != said(error):
                found.append(column)
        return found or (unclear if len(unclear) == 1 else [])


def _another(values: Sequence[Any], value: Any) -> Any:
    """Return the first of *values* that is there and not *value*, if any."""
    return next((v for v in values if v is not None and v is not value), None)
