"""
Loading: read, validate, resolve, write, report, batch by batch.

A :class:`Layout` says which columns a row's fields become; it is worked out
once for each set of fields a source gives. Everything of one batch is dropped
before the next, apart from a bounded number of resolved references.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from time import perf_counter
from types import NoneType
from typing import IO, Any, Literal, TypeVar

from pydantic import AliasChoices, AliasPath, ValidationError
from sqlalchemy import Column, Connection, insert
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.orm import Mapper, RelationshipProperty, Session
from sqlalchemy.orm.interfaces import MANYTOONE

from ..context import SESSION_BULK_CONTEXT
from ..errors import LoadError, RejectedRowsError
from ..keys import columns_of, identifiers, mapper_of
from ..references import (
    Key,
    Proxy,
    Registry,
    columns_held,
    is_resolved,
    serialize_reference,
)
from ..resources import check_fields, entity_of
from ._collector import paused
from ._dialects import ensure_transaction, orders_alike
from ._plan import Batch
from ._report import LoadReport, ReferenceCount, Reject
from ._rows import Row, Target
from ._run import look_up, resolve
from ._sources import Record, Records, plain
from ._validate import Refused, RowValidator, alike, problems_of
from ._values import OnConflict
from ._write import Writer, writer

LoadMissing = Literal["reject", "null"]
Commit = Literal["once", "batch"]
Progress = Callable[[LoadReport], None]
Source = str | os.PathLike[str] | IO[Any] | Iterable[Any]

#: Resolved references kept from one batch for the next.
KEPT_REFERENCES = 50_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReferenceField:
    """A field that names a row: what it fills, and with what of that row."""

    name: str
    position: int
    mapper: Mapper[Any]
    local: tuple[Column[Any], ...]
    #: Where the columns of that row are in what a look-up fetched.
    remote: tuple[int, ...]

    @property
    def is_optional(self) -> bool:
        """Whether the row may be written without it."""
        return all(column.nullable for column in self.local)


class Layout:
    """How the fields that rows have become columns."""

    def __init__(self, mapper: Mapper[Any], fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self.references: list[ReferenceField] = []
        plain_columns: list[Column[Any]] = []
        self.plain: list[int] = []
        for position, name in enumerate(fields):
            prop = mapper.attrs[name]
            if isinstance(prop, RelationshipProperty):
                self.references.append(_reference_field(name, position, prop))
            else:
                plain_columns.append(mapper.columns[name])
                self.plain.append(position)
        made = [
            *plain_columns,
            *(column for field in self.references for column in field.local),
        ]
        # In the order of the table, which is the order an INSERT is compiled in.
        tables = sorted(
            mapper.tables, key=lambda table: table is not mapper.local_table
        )
        places = {c: n for n, c in enumerate(c for table in tables for c in table.c)}
        self.order = sorted(range(len(made)), key=lambda n: places[made[n]])
        self.columns = tuple(made[n] for n in self.order)
        #: The attribute each column is filled by.
        self.names = {
            column: name
            for name, column in [
                *(
                    (fields[p], c)
                    for p, c in zip(self.plain, plain_columns, strict=True)
                ),
                *((f.name, c) for f in self.references for c in f.local),
            ]
        }
        get = itemgetter(*fields)
        self.get: Callable[[dict[str, Any]], Row] = (
            get if len(fields) > 1 else lambda held: (get(held),)
        )

    def key(self, mapper: Mapper[Any]) -> tuple[Column[Any], ...]:
        """Give the columns of the first identifier the rows have, if any."""
        known = identifiers(mapper)
        present = set(self.columns)
        for names in known.names:
            columns = tuple(c for name in names for c in known.part(name).columns)
            if present.issuperset(columns) and known.is_unique_in_database(columns):
                return columns
        return ()


def _reference_field(
    name: str, position: int, prop: RelationshipProperty[Any]
) -> ReferenceField:
    if prop.direction is not MANYTOONE or prop.secondary is not None:
        raise LoadError(
            f"{prop.parent.class_.__name__}.{name} is a collection; load() writes "
            f"rows of one table, so only many-to-one references can be in them"
        )
    columns = identifiers(prop.mapper).fetched
    pairs = prop.local_remote_pairs or ()
    return ReferenceField(
        name,
        position,
        prop.mapper,
        columns_of(local for local, _ in pairs),
        tuple(columns.index(remote) for _, remote in pairs),
    )


def accepted_names(model: type[Any], name: str) -> set[str]:
    """Give what an input may call the field *name* of *model*."""
    info = model.model_fields[name]
    config = model.model_config
    alias = info.validation_alias
    names = set()
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    for choice in choices:
        if isinstance(choice, AliasPath):
            names.add(str(choice.path[0]))
        elif choice is not None:
            names.add(choice)
    by_name = config.get("populate_by_name") or config.get("validate_by_name")
    if not names or by_name:
        names.add(name)
    return names


def _label(model: type[Any], name: str) -> str:
    alias = model.model_fields[name].validation_alias
    return alias if isinstance(alias, str) else name


def is_composed(model: type[Any], name: str) -> bool:
    """Whether the field takes its key from other fields."""
    metadata = model.model_fields[name].metadata
    return any(isinstance(item, Key) and item.composed for item in metadata)


class _Rejects:
    """The rejects file: written as rows are rejected, made when there is one."""

    def __init__(self, target: Any) -> None:
        self.is_given = target is not None
        self._target = target
        self._file: Any = target if hasattr(target, "write") else None

    def write(self, reject: Reject) -> None:
        if not self.is_given:
            return
        if self._file is None:
            self._file = open(self._target, "w", encoding="utf-8")  # noqa: SIM115  # close() does
        with self._named():
            self._file.write(json.dumps(reject.as_dict(), default=str) + "\n")

    def flush(self) -> None:
        if self._file is not None and not hasattr(self._target, "write"):
            with self._named():
                self._file.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # Writing tells what went wrong, but not where.
            if not hasattr(self._target, "write"):
                error.filename = os.fspath(self._target)
            raise

    def start(self) -> None:
        """Leave no file of an earlier run behind that looks like this one's."""
        if self.is_given and self._file is None:
            try:
                with open(self._target, "w", encoding="utf-8"):
                    pass
            except OSError as error:
                raise LoadError(
                    f"cannot write rejects to {os.fspath(self._target)!r}: "
                    f"{error.strerror}"
                ) from error

    def close(self) -> None:
        if self._file is not None and not hasattr(self._target, "write"):
            with self._named():
                self._file.close()


def load(
    session: Session,
    source: Source,
    into: type[Any],
    *,
    on_missing: LoadMissing = "reject",
    on_conflict: OnConflict = "raise",
    batch_size: int = 10_000,
    commit: Commit = "once",
    max_errors: int | None = 0,
    rejects: Any = None,
    progress: Progress | None = None,
    dry_run: bool = False,
    null: Iterable[str] = ("",),
    format: str | None = None,
) -> LoadReport:
    """Load rows; see ``SessionBulk.load``."""
    _one_of("on_missing", on_missing, ("reject", "null"))
    _one_of("on_conflict", on_conflict, ("raise", "update", "skip"))
    _one_of("commit", commit, ("once", "batch"))
    _one_of("format", format, (None, "csv", "jsonl"))
    if batch_size < 1:
        raise LoadError(f"batch_size is at least 1, not {batch_size}")
    if max_errors is not None and max_errors < 0:
        raise LoadError(f"max_errors is 0 or more, or None, not {max_errors}")
    if _is_one_file(source, rejects):
        raise LoadError(f"rejects would overwrite the source, {os.fspath(rejects)!r}")
    rejected = _Rejects(rejects)
    with Records(source, format=format, null=null) as records:
        loader = _Loader(
            session,
            records,
            into,
            on_missing=on_missing,
            on_conflict=on_conflict,
            commit=commit,
            dry_run=dry_run,
            max_errors=max_errors,
            rejects=rejected,
        )
        rejected.start()
        try:
            return loader.run(batch_size, progress)
        finally:
            rejected.close()


def _is_one_file(source: Any, rejects: Any) -> bool:
    paths = (source, rejects)
    return all(
        isinstance(path, (str, os.PathLike)) and os.path.exists(path) for path in paths
    ) and os.path.samefile(source, rejects)


def _one_of(name: str, given: Any, allowed: tuple[Any, ...]) -> None:
    if given not in allowed:
        options = ", ".join(repr(option) for option in allowed)
        raise LoadError(f"{name} is one of {options}, not {given!r}")


@dataclass(slots=True)
class _Batch:
    """
    The valid rows of one batch: where each is from, and its values.

    ``rows`` are tuples of fields, ``columns`` the same by column of the table.
    """

    layout: Layout
    records: list[Record]
    rows: list[Row]
    columns: list[Sequence[Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Writing:
    """A batch on its way into its table; ``rows`` as its writer takes them."""

    batch: _Batch
    target: Target
    writer: Writer
    rows: list[Row]


class _Loader:
    """One load: what was asked for, and how far it is."""

    def __init__(
        self,
        session: Session,
        records: Records,
        into: type[Any],
        *,
        on_missing: LoadMissing,
        on_conflict: OnConflict,
        commit: Commit,
        dry_run: bool,
        max_errors: int | None,
        rejects: _Rejects,
    ) -> None:
        self.session = session
        self.records = records
        self.into = into
        self.on_missing = on_missing
        self.on_conflict = on_conflict
        self.commits_batches = commit == "batch" and not dry_run
        self.max_errors = max_errors
        self.rejects = rejects
        self.mapper = mapper_of(entity_of(into))
        check_fields(into, self.mapper)
        self.report = LoadReport(
            into=self.mapper.class_.__name__,
            bytes_total=records.total,
            dry_run=dry_run,
        )
        self.registry = Registry()
        self.interning: Any = _Interning(self.registry)
        self.validator = RowValidator(into, json=records.json)
        self.layouts: dict[Any, Layout] = {}
        self.seen: set[tuple[str, ...]] = set()
        self.composed = {n for n in into.model_fields if is_composed(into, n)}
        self.columns = {n: accepted_names(into, n) for n in into.model_fields}
        #: What a source calls each field.
        self.labels = {n: _label(into, n) for n in into.model_fields}
        self.known_columns = set().union(*self.columns.values())
        self.header_layout: Layout | None = None
        if records.header is not None:
            self._check_columns(records.header)
            self._check_required(records.header)
            self.header_layout = self._layout_of(
                name
                for name in into.model_fields
                if not self.columns[name].isdisjoint(records.header)
            )

    def _check_columns(self, names: Iterable[str]) -> None:
        # A model that says what to do with extra columns has been asked.
        if "extra" in self.into.model_config:
            return
        unknown = [name for name in names if name not in self.known_columns]
        if unknown:
            raise LoadError(
                f"{self.into.__name__} knows no column {', '.join(map(repr, unknown))} "
                f"(it knows {', '.join(sorted(self.known_columns))}); to leave such "
                f"columns out, set model_config = ConfigDict(extra='ignore')"
            )

    def _check_required(self, header: Sequence[str]) -> None:
        validators = self.into.__pydantic_decorators__.model_validators.values()
        if any(validator.info.mode != "after" for validator in validators):
            return  # it may make the column itself
        missing = [
            "/".join(sorted(self.columns[name]))
            for name, info in self.into.model_fields.items()
            if info.is_required()
            and name not in self.composed
            and self.columns[name].isdisjoint(header)
        ]
        if missing:
            raise LoadError(
                f"the source has no column {', '.join(map(repr, missing))}, which "
                f"{self.into.__name__} requires; its columns are {', '.join(header)}"
            )

    def _layout_of(self, given: Iterable[str]) -> Layout:
        """Give the layout for rows that set the fields *given*."""
        present = frozenset(given)
        layout = self.layouts.get(present)
        if layout is None:
            # What was not given is left to the database, unless the model has a
            # value for it.
            fields = [
                name
                for name, info in self.into.model_fields.items()
                if name in present
                or name in self.composed
                or (
                    info.get_default(call_default_factory=False) is not None
                    and not info.is_required()
                )
                or info.default_factory is not None
            ]
            layout = self.layouts[present] = Layout(self.mapper, fields)
            if self.on_conflict != "raise" and not layout.key(self.mapper):
                names = identifiers(self.mapper).names
                raise LoadError(
                    f"on_conflict={self.on_conflict!r} needs a unique key of "
                    f"{self.report.into} among the fields "
                    f"({', '.join(layout.fields)}); its keys are "
                    + " or ".join(f"({', '.join(key)})" for key in names)
                )
        return layout

    def run(self, size: int, progress: Progress | None) -> LoadReport:
        """Load everything, and end the transaction."""
        session = self.session
        # What the session did before is not this load's to undo.
        outer = session.begin_nested() if session.in_transaction() else None
        line = 0
        try:
            rows = iter(self.records)
            while True:
                with paused():
                    last = self._load_next(rows, size)
                if not last:
                    break
                line = last
                self.report.bytes_read = self.records.position
                if self.is_over and not self.rejects.is_given:
                    break
                if self.commits_batches and not self.is_over:
                    self._commit()
                    outer = None  # committed with the rest
                if progress is not None:
                    progress(self.report)
            if self.is_over:
                assert self.max_errors is not None
                raise RejectedRowsError(self.report, self.max_errors)
            if self.report.dry_run:
                self._undo(outer)
            else:
                if outer is not None:
                    outer.commit()
                self._commit()
            return self.report
        except BaseException as error:
            self._undo(outer)
            if isinstance(error, SQLAlchemyError):
                kept = self.report.kept
                error.add_note(
                    f"load: the error came after {self.report.rows:,} rows, in the "
                    f"batch after line {line:,}; "
                    + (f"{kept:,} rows were kept" if kept else "none was kept")
                )
            raise

    @property
    def is_over(self) -> bool:
        """Whether more rows were rejected than are tolerated."""
        return self.max_errors is not None and self.report.rejected > self.max_errors

    def _commit(self) -> None:
        # Good rows are kept only if there is a record of the bad ones.
        self.rejects.flush()
        with self._timed("commit"):
            self.session.commit()
        self.report.committed = True
        self.report.kept = self.report.rows - self.report.rejected

    def _undo(self, outer: Any) -> None:
        """Roll back to where the load began; never hides the error on its way."""
        try:
            if outer is not None and outer.is_active:
                outer.rollback()
            else:
                self.session.rollback()
        except SQLAlchemyError:
            # The connection is gone or the database ended the transaction by
            # itself; either way there is nothing left to undo.
            self.session.invalidate()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        started = perf_counter()
        try:
            yield
        finally:
            seconds = self.report.seconds
            seconds[phase] = seconds.get(phase, 0.0) + perf_counter() - started

    def _load_next(self, rows: Iterator[Record], size: int) -> int:
        """Load the next batch; give its last line, 0 at the end of the source."""
        with self._timed("read"):
            records = list(islice(rows, size))
        if not records:
            return 0
        self.report.rows += len(records)
        with self._timed("validate"):
            batches = self._validated(records)
        with self._timed("resolve"):
            resolved = [(batch, self._in_columns(batch)) for batch in batches]
        with self._timed("write"):
            for batch, kept in self._in_turns(resolved):
                self._write(batch, kept)
        # Only what was found is kept: a row that is missing now may come later.
        if len(self.registry) > KEPT_REFERENCES:
            self.registry.forget()
        else:
            self.registry.forget_unresolved()
        return records[-1][0]

    def _validated(self, records: list[Record]) -> list[_Batch]:
        validate, values = self.validator.validate, self.validator.values
        header = self.records.header
        width = 0 if header is None else len(header)
        layout = self.header_layout
        batches: dict[int, _Batch] = {}
        current = self._batch_for(layout, batches) if layout is not None else None
        token = SESSION_BULK_CONTEXT.set(self.interning)
        try:
            for record in records:
                row = record[1]
                if header is not None:
                    if len(row) != width:
                        self._reject_width(record, width)
                        continue
                    row = dict(zip(header, row))  # noqa: B905  # compared above
                try:
                    valid = validate(row)
                except ValidationError as error:
                    self._reject_invalid(record, error)
                    continue
                if layout is None:
                    if not self._has_known_names(record):
                        continue
                    current = self._batch_for(
                        self._layout_of(self.validator.given(valid)), batches
                    )
                assert current is not None
                current.rows.append(current.layout.get(values(valid)))
                current.records.append(record)
        finally:
            SESSION_BULK_CONTEXT.reset(token)
        return list(batches.values())

    def _batch_for(self, layout: Layout, batches: dict[int, _Batch]) -> _Batch:
        batch = batches.get(id(layout))
        if batch is None:
            batch = batches[id(layout)] = _Batch(layout, [], [])
        return batch

    def _has_known_names(self, record: Record) -> bool:
        """Check the names of an object; those of a CSV file are its header's."""
        if "extra" in self.into.model_config:
            return True
        row = json.loads(record[1]) if self.records.json else record[1]
        names = tuple(row)
        if names in self.seen:
            return True
        for name in names:
            if name not in self.known_columns:
                self._reject(record, name, "extra_forbidden", f"unknown field {name!r}")
                return False
        if len(self.seen) < KEPT_REFERENCES:
            self.seen.add(names)
        return True

    def _in_columns(self, batch: _Batch) -> list[int]:
        """
        Turn fields into columns, references into what they refer to.

        Counts and rejects on the way; gives the rows that are left.
        """
        layout = batch.layout
        if not batch.rows:
            return []
        fields: list[Any] = [alike(c) for c in zip(*batch.rows, strict=True)]
        batch.rows = []
        token = SESSION_BULK_CONTEXT.set(self.interning)
        try:
            invalid = self.validator.references(layout.fields, fields)
        finally:
            SESSION_BULK_CONTEXT.reset(token)
        refused = self._reject_references(batch, invalid)
        unresolved = [p for p in self.registry.added() if not is_resolved(p)]
        if unresolved:
            self._resolve(unresolved)
        columns = [fields[position] for position in layout.plain]
        for reference in layout.references:
            values = fields[reference.position]
            found = _rows_of(reference.mapper, values)
            self._count(batch, reference, values, found, refused)
            for position in reference.remote:
                columns.append(
                    [None if row is None else row[position] for row in found]
                )
        batch.columns = [columns[n] for n in layout.order]
        return [n for n in range(len(batch.records)) if n not in refused]

    def _reject_references(self, batch: _Batch, invalid: list[Refused]) -> set[int]:
        refused: set[int] = set()
        for row, name, error in invalid:
            if row not in refused:
                refused.add(row)
                self._reject(
                    batch.records[row], self.labels[name], error.type, error.message()
                )
        return refused

    def _count(
        self,
        batch: _Batch,
        reference: ReferenceField,
        values: Sequence[Any],
        found: list[Any],
        refused: set[int],
    ) -> None:
        """Count what was found and what is missing; refuse rows that need it."""
        name = reference.mapper.class_.__name__
        count = self.report.references.get(name)
        if count is None:
            count = self.report.references[name] = ReferenceCount()
        empty = found.count(None)
        count.resolved += len(found) - empty
        if not empty:
            return
        required = self.on_missing == "reject" or not reference.is_optional
        for row in [row for row, identity in enumerate(found) if identity is None]:
            value = values[row]
            if value is None:
                continue
            key = _key_values(value)
            count.miss(key)
            if required and row not in refused:
                refused.add(row)
                message = f"there is no {name}({', '.join(map(repr, key))})"
                if self.on_missing == "null":
                    message += ", and it is required"
                self._reject(
                    batch.records[row], self.labels[reference.name], "missing", message
                )

    def _in_turns(
        self, batches: list[tuple[_Batch, list[int]]]
    ) -> Iterator[tuple[_Batch, list[int]]]:
        """
        Give what is written at once: rows of one key one after the other.

        Those that set the same fields are put in order by their writer; others
        are written apart.
        """
        if len(batches) < 2:
            yield from batches
            return
        keys = [batch.layout.key(self.mapper) for batch, _ in batches]
        rows = sorted(
            (batch.records[n][0], place, n)
            for place, (batch, kept) in enumerate(batches)
            for n in kept
        )
        turns: list[list[list[int]]] = []
        seen: Counter[Any] = Counter()
        for _, place, n in rows:
            batch, key = batches[place][0], keys[place]
            values = [batch.columns[batch.layout.columns.index(c)][n] for c in key]
            token = (key, *values) if key and None not in values else None
            turn = 0 if token is None else seen[token]
            seen[token] += 1
            if turn >= len(turns):
                turns.append([[] for _ in batches])
            turns[turn][place].append(n)
        for turn_rows in turns:
            for (batch, _), kept in zip(batches, turn_rows, strict=True):
                yield batch, kept

    def _write(self, batch: _Batch, kept: list[int]) -> None:
        if not kept:
            return
        layout = batch.layout
        target = Target(
            self.mapper, layout.columns, layout.key(self.mapper), self.on_conflict
        )
        places = [target.columns.index(column) for column in target.key]
        keys = [batch.columns[place] for place in places]
        if self.on_conflict != "raise":
            kept = self._without_null_keys(batch, target, keys, kept)
        connection = self._connection()
        write = writer(self.session, connection, target)
        try:
            rows = write.rows(batch.columns)
        except _OF_A_VALUE:
            rows, kept = self._made_apart(_Writing(batch, target, write, []), kept)
        if all(orders_alike(c.type, connection.dialect) for c in target.key):
            kept = _sorted(kept, keys)
        self._attempt(_Writing(batch, target, write, rows), kept)

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
            except _OF_A_VALUE as error:
                self._reject_refused(writing, n, error)
        return rows, made

    def _connection(self) -> Connection:
        """Give the connection that rows are written on, in a transaction."""
        clause = insert(self.mapper)
        connection = self.session.connection(
            bind_arguments={"mapper": self.mapper, "clause": clause}
        )
        ensure_transaction(connection)
        return connection

    def _tried(self, step: Callable[[], T]) -> tuple[T | None, Exception | None]:
        """Do *step* in a savepoint; give its result, or why a row was refused."""
        self._connection()
        savepoint = self.session.begin_nested()
        # The session puts a SAVEPOINT off until it is asked for its connection.
        self._connection()
        try:
            result = step()
            savepoint.commit()
        except Exception as error:
            if not _is_of_a_row(error):
                raise
            savepoint.rollback()
            return None, error
        return result, None

    def _resolve(self, references: list[Proxy]) -> None:
        """Look references up; one whose key is refused stays unresolved."""
        outcome, _ = self._tried(lambda: resolve(self.session, references))
        if outcome is not None:
            outcome.record()
        elif len(references) > 1:
            # In their order: what is inside of a key was registered before it.
            middle = len(references) // 2
            self._resolve(references[:middle])
            self._resolve(references[middle:])

    def _without_null_keys(
        self, batch: _Batch, target: Target, keys: list[Any], kept: list[int]
    ) -> list[int]:
        for column, values in zip(target.key, keys, strict=True):
            if None not in values:
                continue
            field = self.labels[batch.layout.names[column]]
            message = f"{field!r} is part of the key and null, so it names no row"
            for n in kept:
                if values[n] is None:
                    self._reject(batch.records[n], field, "null", message)
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

    def _written(self, writing: _Writing, origins: list[int]) -> Exception | None:
        """Write rows and count them, or give the error about one of them."""
        rows = [writing.rows[n] for n in origins]
        written, error = self._tried(lambda: writing.writer.write(rows))
        if written is not None:
            report = self.report
            report.created += written.created
            report.updated += written.updated
            report.unchanged += written.unchanged
            report.skipped += written.skipped
        return error

    def _halved(self, writing: _Writing, origins: list[int]) -> list[int]:
        """Write rows; find those that are refused by halving, reject and give them."""
        error = self._written(writing, origins) if origins else None
        if error is None:
            return []
        if len(origins) == 1:
            self._reject_refused(writing, origins[0], error)
            return origins
        middle = len(origins) // 2
        refused = self._halved(writing, origins[:middle])
        return refused + self._halved(writing, origins[middle:])

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
                self._reject(batch.records[n], label, "duplicate", message)
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
                    # The one before it was refused for another reason.
                    free.discard(keys[n])
                    first[keys[n]] = n
                    turn.append(n)
            later = [n for n in later if first[keys[n]] != n]
        for n in later:
            line = batch.records[first[keys[n]]][0]
            message = f"line {line} has the same ({label})"
            self._reject(batch.records[n], label, "duplicate", message)

    def _taken(self, target: Target, keys: dict[int, tuple[Any, ...]]) -> set[int]:
        """Say which of *keys* are those of rows in the database."""
        asked = [n for n, key in keys.items() if None not in key]
        names = [self.mapper.get_property_by_column(c).key for c in target.key]
        shape = identifiers(self.mapper).shape(names)
        width = (False,) * len(names)
        wanted = Batch(shape, width, [], [keys[n] for n in asked])
        answers, _ = self._tried(lambda: look_up(self.session, wanted))
        # A key that cannot be asked for is found by halving, too.
        existing = answers[0] if answers is not None else [None] * len(asked)
        return {n for n, row in zip(asked, existing, strict=True) if row is not None}

    def _reject_refused(self, writing: _Writing, origin: int, error: Exception) -> None:
        batch, target = writing.batch, writing.target
        original = getattr(error, "orig", None) or error
        message = str(original).strip().splitlines()[0]
        column = getattr(getattr(original, "diag", None), "column_name", None)
        fields = [
            self.labels[batch.layout.names[c]]
            for c in target.columns
            if c.name == column or f"{target.table.name}.{c.name}" in message
        ]
        kind = "integrity" if isinstance(error, IntegrityError) else "data"
        self._reject(batch.records[origin], ", ".join(fields), kind, message)

    def _reject_width(self, record: Record, width: int) -> None:
        message = f"{len(record[1])} fields where the header has {width}"
        self._reject(record, "", "columns", message)

    def _reject_invalid(self, record: Record, error: ValidationError) -> None:
        problems = problems_of(error)
        field, reason, message = problems[0]
        self._reject(record, field, reason, message, tuple(problems[1:]))

    def _reject(
        self,
        record: Record,
        field: str,
        reason: str,
        message: str,
        more: tuple[tuple[str, str, str], ...] = (),
    ) -> None:
        line, row = record
        reject = Reject(
            line, field, reason, message, plain(row, self.records.header), more
        )
        self.report.rejected += 1
        if len(self.report.rejects) < self.report.MOST_REJECTS:
            self.report.rejects.append(reject)
        self.rejects.write(reject)


class _Interning:
    """What validation asks the current bulk for."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def _add_values(self, values: Sequence[Any], payload: Any) -> None:
        """Leave out rows of other tables: a load writes into one."""


#: What types and drivers raise for a value they cannot take.
_OF_A_VALUE = (ValueError, TypeError, ArithmeticError, LookupError)


def _is_of_a_row(error: Exception) -> bool:
    """Whether the error is about what a row says, not about the statement."""
    if getattr(error, "connection_invalidated", False):
        return False
    if isinstance(error, (IntegrityError, DataError)):
        return True
    original = error.orig if isinstance(error, StatementError) else error
    if isinstance(original, _OF_A_VALUE):
        return True
    # Class 22, data exception: not every driver has a DataError for each of them.
    return (getattr(original, "sqlstate", None) or "").startswith("22")


def _sorted(kept: list[int], keys: list[Any]) -> list[int]:
    """
    Put rows in the order of their key.

    An index is written faster in its order, and two loads that write the same
    rows take their locks in the same order.
    """
    if not keys:
        return kept
    together = list(zip(*keys, strict=True)) if len(keys) > 1 else keys[0]
    try:
        return sorted(kept, key=together.__getitem__)
    except TypeError:
        return kept  # null, or a type without an order


def _rows_of(mapper: Mapper[Any], values: Sequence[Any]) -> list[Row | None]:
    if {Proxy, NoneType}.issuperset(map(type, values)):
        return [None if value is None else value._seance_row for value in values]
    return [_row_of(mapper, value) for value in values]


def _row_of(mapper: Mapper[Any], value: Any) -> Row | None:
    if value is None:
        return None
    if type(value) is Proxy:
        row = value._seance_row
        if row is not None or value._seance_target is None:
            return row
        value = value._seance_target
    row = columns_held(value, identifiers(mapper).fetched)
    return None if None in row[: len(mapper.primary_key)] else row


def _key_values(value: Any) -> Row:
    if type(value) is not Proxy:
        return (repr(value),)
    flat: list[Any] = []
    for part in value._seance_values:
        flat.extend(
            _key_values(part) if type(part) is Proxy else [serialize_reference(part)]
        )
    return tuple(flat)
