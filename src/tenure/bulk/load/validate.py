"""
Records become valid rows: field by field where the model allows it, else row by row.

Row by row, references are validated apart: a reference costs more to validate than to
look up in a dictionary, and a column of them holds few different ones. So where a model
does nothing with a reference itself, rows are validated with references left as they
came, and each different one is validated once. The results and errors are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaValidator, from_json

from ...context import SESSION_BULK_CONTEXT
from ...errors import LoadError
from ...models import computed_attributes, is_spec_schema
from ...references import Draft, drafting
from ..read import Bad, Record, Records
from ..write import Row
from .by_column import Checked, Columns, fields_of, has_plain_names
from .layout import Layout, Layouts, NoKeyError, Rows
from .report import Problem, Rejects, problems_of


class RowValidator:
    """
    Validates records into models, and columns into references.

    Args:
        refuses_unknown: Whether JSON must not have names that the model does not know,
            unless the model itself says what to do with them.

    Attributes:
        later: The fields whose references are made when rows are linked.
        optional: Those of them that may be null.
    """

    def __init__(
        self,
        model: type[BaseModel],
        *,
        json: bool,
        refuses_unknown: bool = False,
    ) -> None:
        fields = fields_of(model)
        #: Whether :attr:`validate` returns instances of the model.
        self.makes_models = fields is None
        #: Whether :attr:`validate` calls nothing of the user's.
        self.calls_nobody = fields is not None and fields.calls_nobody
        self.later = {} if fields is None else fields.later
        self.optional = set() if fields is None else fields.optional
        wants_known = refuses_unknown and json and "extra" not in model.model_config
        validator: Any
        if fields is None:
            # The draft that its schema begins for each row, the rows of a batch share.
            schema: Any = model.__pydantic_core_schema__
            schema = schema["schema"] if is_spec_schema(schema) else schema
            refusing = _refusing(schema) if wants_known else None
            validator = SchemaValidator(refusing or schema)
            is_refusing = refusing is not None
        else:
            is_refusing = wants_known and fields.knows_its_names
            validator = fields.validator(refuses_unknown=is_refusing)
        #: Whether :attr:`validate` refuses names that the model does not know.
        self.refuses_unknown = is_refusing
        #: Validates one record; raises ``ValidationError``.
        self.validate: Callable[[Any], Any] = (
            validator.validate_json if json else validator.validate_python
        )
        # A model without code of its own need not be made only to be taken apart:
        # its validator also returns the values, the extra ones, and the names of
        # those that were set.
        #: Gives the values by field of what :attr:`validate` gave.
        self.values: Callable[[Any], dict[str, Any]] = (
            itemgetter(0) if fields is not None else _values_of(model)
        )
        #: Gives the names of the fields that were set.
        self.given: Callable[[Any], set[str]] = (
            attrgetter("__pydantic_fields_set__") if fields is None else itemgetter(2)
        )
        #: Whether a row may have fields that its source does not give.
        self.may_add = fields is None or fields.may_add


def _refusing(schema: Any, config: Any = None) -> Any:
    """
    Return the schema of a model that refuses names which it does not know.

    ``None`` where something else than its fields may look at the names.
    """
    if schema["type"] in ("function-after", "model"):
        inner = _refusing(schema["schema"], schema.get("config", config))
        return None if inner is None else {**schema, "schema": inner}
    if schema["type"] != "model-fields" or not has_plain_names(schema, config or {}):
        return None
    return {**schema, "extra_behavior": "forbid"}


def _values_of(model: type[BaseModel]) -> Callable[[Any], dict[str, Any]]:
    """Return what gives the values of an instance of *model*, by field."""
    computed = computed_attributes(model)
    if not computed:
        return attrgetter("__dict__")
    return lambda made: made.__dict__ | {name: getattr(made, name) for name in computed}


def _ignored(_: Any) -> Any:
    """Do nothing: no row has come yet."""


#: Sets of names of objects that are remembered to be known.
_KEPT_NAMES = 50_000


class Checker:
    """Validates the records of one source, and rejects what is wrong with them."""

    def __init__(
        self,
        records: Records,
        layouts: Layouts,
        rejects: Rejects,
        validator: RowValidator,
    ) -> None:
        self.json = records.json
        #: The columns of a table, and those of them that are read.
        self.header = records.header
        self.names = self.header
        self._of_names: Callable[[Any], Sequence[Any]] | None = None
        self.ignored = records.ignored
        self.layouts = layouts
        self.rejects = rejects
        self.validator = validator
        is_table = records.header is not None
        self.columns = Columns.of(layouts.into, json=self.json, is_table=is_table)
        self.layout: Layout | None = None
        if self.header is not None:
            read = [n for n, name in enumerate(self.header) if name not in self.ignored]
            self.names = [self.header[n] for n in read]
            self.layout = layouts.of_header(self.names, may_add=validator.may_add)
            if self.ignored:
                self._of_names = lambda row: [row[n] for n in read]
        elif self.json and not layouts.accepted.names.isdisjoint(self.ignored):
            known = sorted(map(repr, layouts.accepted.names & self.ignored))
            raise LoadError(
                f"ignore names {', '.join(known)}, which {layouts.into.__name__} reads; "
                f"leave it out of the model"
            )
        #: Whether names need no check: those of a table are its header's.
        self._takes_all_names = (
            self.header is not None or layouts.is_open or validator.refuses_unknown
        )
        self._seen: set[tuple[str, ...]] = set()
        #: The first row that gave nothing the model knows.
        self.first_empty: int | None = None
        if self.header is None:
            # Without any key no row can be written.
            layouts.of(layouts.into.model_fields)

    def rows(self, records: Sequence[Record]) -> list[Rows]:
        """Return the valid rows of *records*, by the fields they set."""
        records = self._as_wide_as_the_header(self._readable(records))
        if not records:
            return []
        rows = [row for _, row in records]
        if self._of_names is not None:
            rows = list(map(self._of_names, rows))
        columns = self.columns
        if columns is not None and columns.before is not None:
            if not self.json:
                changed = self._validated(
                    records, self._named_rows(rows), columns.before
                )
                return self._of_changed(columns, changed)
            records, rows, others = self._objects(records)
            changed = self._validated(records, rows, columns.before)
            batches = self._of_changed(columns, changed)
            return [
                *self._with_known_names(batches, records, rows),
                # A line that is no object is given to the model as it is.
                *self._by_row(
                    self._validated(
                        others, [line for _, line in others], self.validator.validate
                    )
                ),
            ]
        checked = None
        # If all rows have the same names, the first is enough.
        if columns is not None and (
            self._takes_all_names or not list(self.layouts.unknown(rows[0]))
        ):
            checked = columns.validate(rows, self.names)
        if checked is None:
            valid = self._valid(records, self._named_rows(rows))
            return self._by_row(valid)
        return self._checked(records, checked)

    def _of_changed(
        self, columns: Columns, changed: Sequence[tuple[Record, Any]]
    ) -> list[Rows]:
        """Return the same of what a model has made of whole rows before."""
        kept = [record for record, _ in changed]
        rows = [row for _, row in changed]
        checked = columns.validate(rows) if rows else None
        if checked is None:
            # Its messages are those about values of Python, whatever the source.
            valid = self._validated(kept, rows, columns.validate_row)
            return self._by_row(valid)
        return self._checked(kept, checked)

    def _checked(self, records: Sequence[Record], checked: Checked) -> list[Rows]:
        """Return rows that were validated by field; reject what is wrong."""
        for n, (first, *more) in sorted(checked.wrong.items()):
            self.rejects.add(records[n], *first, tuple(more))
        if len(checked.wrong) == len(records):
            return []
        others = checked.columns.keys() - set(checked.given)
        filled = [name for name in others if checked.columns[name][0] is not None]
        try:
            layout = self.layout or self.layouts.of(
                checked.given, filled if self.validator.may_add else ()
            )
        except NoKeyError as error:
            for n in set(range(len(records))) - set(checked.wrong):
                self.rejects.add(records[n], "", "key", str(error))
            return []
        if not checked.given:
            self.note_empty(records[0][0])
        if not layout.fields:
            for n in set(range(len(records))) - set(checked.wrong):
                self._reject_empty(records[n])
            return []
        fields = [checked.columns[name] for name in layout.fields]
        batch = Rows(layout, list(records), fields=fields, refused=set(checked.wrong))
        return [batch.only(batch.kept) if batch.refused else batch]

    def _readable(self, records: Sequence[Record]) -> Sequence[Record]:
        if Bad not in set(map(type, map(itemgetter(1), records))):
            return records
        for record in records:
            row = record[1]
            if type(row) is Bad:
                self.rejects.add(record, row.field, row.reason, row.message)
        return [record for record in records if type(record[1]) is not Bad]

    def _as_wide_as_the_header(self, records: Sequence[Record]) -> Sequence[Record]:
        width = None if self.header is None else len(self.header)
        if width is None or {width}.issuperset(len(row) for _, row in records):
            return records
        kept = []
        for record in records:
            if len(record[1]) == width:
                kept.append(record)
            else:
                message = f"{len(record[1])} fields where the header has {width}"
                self.rejects.add(record, "", "columns", message)
        return kept

    def _objects(
        self, records: Sequence[Record]
    ) -> tuple[list[Record], list[Any], list[Record]]:
        """Return the lines of JSON that are objects, these objects, and other lines."""
        found: list[Record] = []
        rows = []
        others = []
        for record in records:
            try:
                row = from_json(record[1])
            except ValueError:
                row = None
            if isinstance(row, dict):
                found.append(record)
                rows.append(row)
            else:
                others.append(record)
        return found, rows, others

    def _with_known_names(
        self, batches: list[Rows], records: Sequence[Record], rows: Sequence[Any]
    ) -> list[Rows]:
        """Return the rows of *batches* that are of objects with names that are known."""
        if self._takes_all_names:
            return batches
        names = {
            line: tuple(row)
            for (line, _), row in zip(records, rows, strict=True)
            if tuple(row) not in self._seen
        }
        if not names:
            return batches
        kept = (
            [
                n
                for n, record in enumerate(batch.records)
                if record[0] not in names or self._are_known(record, names[record[0]])
            ]
            for batch in batches
        )
        pairs = zip(batches, kept, strict=True)
        return [batch.only(rows) for batch, rows in pairs if rows]

    def _named_rows(self, rows: Sequence[Any]) -> Sequence[Any]:
        """Return rows as a model takes them: those of a table with their names."""
        if self.names is None:
            return rows
        # They are as wide as it.
        return [dict(zip(self.names, row)) for row in rows]  # noqa: B905

    def _by_row(self, valid_rows: Iterable[tuple[Record, Any]]) -> list[Rows]:
        """Return rows that were validated one by one, each with what that gave."""
        values, given = self.validator.values, self.validator.given
        takes_all_names, layout = self._takes_all_names, self.layout
        found: dict[Layout, tuple[list[Record], list[Row]]] = {}
        last_names: set[str] | None = None
        keep: Callable[[Any], object] = _ignored
        take: Callable[[Any], object] = _ignored
        get: Callable[[Any], Any] = _ignored
        for record, valid in valid_rows:
            if not (takes_all_names or self._has_known_names(record)):
                continue
            names = given(valid)
            if names == last_names:
                keep(record)
                take(get(values(valid)))
                continue
            try:
                its = layout or self._layout(names, values(valid))
            except NoKeyError as error:
                self.rejects.add(record, "", "key", str(error))
                continue
            if not its.fields:
                self._reject_empty(record)
                continue
            if not names:
                self.note_empty(record[0])
            kept, taken = found.setdefault(its, ([], []))
            kept.append(record)
            taken.append(its.get(values(valid)))
            # What the model has filled differs from row to row, unless all was given.
            if not self.validator.may_add or names.issuperset(self.layouts.labels):
                last_names, get = names, its.get
                keep, take = kept.append, taken.append
        return [
            Rows(its, kept, fields=list(zip(*taken, strict=True)))
            for its, (kept, taken) in found.items()
        ]

    def _valid(
        self, records: Sequence[Record], rows: Sequence[Any]
    ) -> list[tuple[Record, Any]]:
        """Return the records that are valid, each with what validation returned."""
        validate = self.validator.validate
        if not self.validator.makes_models:
            return self._validated(records, rows, validate)
        with drafting(SESSION_BULK_CONTEXT.get()) as draft:
            return self._validated(records, rows, validate, draft)

    def _validated(
        self,
        records: Sequence[Record],
        rows: Sequence[Any],
        validate: Callable[[Any], Any],
        draft: Draft | None = None,
    ) -> list[tuple[Record, Any]]:
        """Validate rows one by one; what they register goes by way of *draft*."""
        found = []
        for record, row in zip(records, rows, strict=True):
            try:
                valid = validate(row)
            except ValidationError as error:
                if draft is not None:
                    draft.forget()
                first, *more = map(self._named, problems_of(error))
                self.rejects.add(record, *first, tuple(more))
            else:
                if draft is not None and not draft.is_empty:
                    draft.settle(valid)
                found.append((record, valid))
        return found

    def note_empty(self, line: int) -> None:
        """Say once that rows give nothing the model knows, and what became of them."""
        if self.first_empty is None:
            self.first_empty, rejects = line, self.rejects
            rejects.report.guesses.append(
                f"some rows, the first in {rejects.records.named(line)}, give none of the "
                f"fields of {self.layouts.into.__name__}; they were taken for rows of defaults"
            )

    def _reject_empty(self, record: Record) -> None:
        message = f"none of the fields of {self.layouts.into.__name__}"
        self.rejects.add(record, "", "columns", message)

    def _layout(self, given: set[str], values: dict[str, Any]) -> Layout:
        """Return the layout of one row: what is set, and what the model has filled."""
        if not self.validator.may_add:
            return self.layouts.of(given)
        others = self.layouts.labels.keys() - given
        filled = [name for name in others if values.get(name) is not None]
        return self.layouts.of(given, filled)

    def _named(self, problem: Problem) -> Problem:
        """Say of a name that is not known which one it is, as everywhere."""
        field, reason, message = problem
        if reason == "extra_forbidden" and self.validator.refuses_unknown:
            message = f"unknown field {field!r}"
        return field, reason, message

    def _has_known_names(self, record: Record) -> bool:
        """Reject an object that has a name the model does not know."""
        row = from_json(record[1]) if self.json else record[1]
        return self._are_known(record, tuple(row))

    def _are_known(self, record: Record, names: tuple[str, ...]) -> bool:
        if names in self._seen:
            return True
        unknown = (n for n in self.layouts.unknown(names) if n not in self.ignored)
        name = next(unknown, None)
        if name is not None:
            message = f"unknown field {name!r}"
            self.rejects.add(record, name, "extra_forbidden", message)
            return False
        if len(self._seen) < _KEPT_NAMES:
            self._seen.add(names)
        return True
