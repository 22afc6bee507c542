"""
Records become valid rows: field by field where the model allows it, else row by row.

Row by row, references are validated apart: a reference costs more to validate than to
look up in a dictionary, and a column of them holds few different ones. So where a model
does nothing with a reference itself, rows are validated with references left as they
came, and each different one is validated once. The results and errors are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from operator import attrgetter, itemgetter
from types import NoneType
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError, from_json

from ...context import SESSION_BULK_CONTEXT
from ...errors import LoadError
from ...models import computed_attributes
from ...references import Proxy, ReferenceValidator, drafting
from ..read import Bad, Record, Records
from ..write import Row, one_zone
from .by_column import Columns, fields_of
from .layout import Layout, Layouts, NoKeyError, Rows
from .report import Problem, Rejects, problems_of

#: A row (by position) and field that is no valid reference, and why.
Refused = tuple[int, str, PydanticCustomError]


class RowValidator:
    """
    Validates records into models, and columns into references.

    Args:
        refuses_unknown: Whether JSON must not have names that the model does not know,
            unless the model itself says what to do with them.

    Attributes:
        later: The fields whose references :meth:`references` makes.
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
        #: Whether :attr:`validate` refuses names that the model does not know.
        self.refuses_unknown = (
            refuses_unknown
            and json
            and fields is not None
            and fields.knows_its_names
            and "extra" not in model.model_config
        )
        validator: Any = (
            model.__pydantic_validator__
            if fields is None
            else fields.validator(refuses_unknown=self.refuses_unknown)
        )
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

    def references(
        self, fields: Sequence[str], columns: list[Sequence[Any]]
    ) -> list[Refused]:
        """
        Turn the columns of :attr:`later` fields into references, in place.

        Called with the bulk current that references register with.
        """
        refused: list[Refused] = []
        places = {name: place for place, name in enumerate(fields)}
        for name, validator in self.later.items():
            if name not in places:
                continue
            if validator.sources:
                made = self._composed(validator, places, columns, name, refused)
            else:
                optional = name in self.optional
                given = columns[places[name]]
                made = _each(validator, name, given, refused, optional=optional)
            columns[places[name]] = made
        return refused

    def _composed(
        self,
        validator: ReferenceValidator,
        places: dict[str, int],
        columns: list[Sequence[Any]],
        name: str,
        refused: list[Refused],
    ) -> list[Any]:
        given = columns[places[name]]
        sources = [columns[places[source]] for source in validator.sources]
        broken = {row for row, _, _ in refused}
        tokens = list(zip(*map(_tokens, sources), strict=True))
        if not {NoneType}.issuperset(map(type, given)):
            # A value that was given is used instead of a composed key.
            broken.update(row for row, value in enumerate(given) if value is not None)
            given = _each(validator, name, given, refused, optional=True)
        made: dict[Any, Any] = {}
        wrong: dict[Any, PydanticCustomError] = {}
        for row, token in enumerate(tokens):
            if token not in made and row not in broken:
                made[token] = None
                try:
                    parts = tuple([column[row] for column in sources])
                    made[token] = validator.compose(None, parts)
                except PydanticCustomError as error:
                    wrong[token] = error
        if wrong:
            refused.extend(
                (row, name, wrong[token])
                for row, token in enumerate(tokens)
                if token in wrong and row not in broken
            )
        return [
            made.get(token) if value is None else value
            for token, value in zip(tokens, given, strict=True)
        ]


def _values_of(model: type[BaseModel]) -> Callable[[Any], dict[str, Any]]:
    """Return what gives the values of an instance of *model*, by field."""
    computed = computed_attributes(model)
    if not computed:
        return attrgetter("__dict__")
    return lambda made: made.__dict__ | {name: getattr(made, name) for name in computed}


def _tokens(values: Sequence[Any]) -> Sequence[Any]:
    """Return for each value what identifies it among the values of its column."""
    kinds = set(map(type, values))
    if kinds <= {Proxy, NoneType}:
        return list(map(id, values))
    if kinds == {str}:
        return values
    if kinds == {datetime} and one_zone(values):
        return values
    return [
        id(value)
        if type(value) is Proxy
        else (datetime, value, value.tzinfo)
        if type(value) is datetime
        else (type(value), value)
        for value in values
    ]


class _References(dict[Any, Any]):
    """What a validator makes of texts, each made once."""

    def __init__(self, validator: ReferenceValidator, *, optional: bool) -> None:
        super().__init__({None: None} if optional else {})
        self.validator = validator
        self.wrong: dict[Any, PydanticCustomError] = {}

    def __missing__(self, text: str | None) -> Any:
        found = None
        try:
            found = self.validator(text)
        except PydanticCustomError as error:
            self.wrong[text] = error
        self[text] = found
        return found


def _each(
    validator: ReferenceValidator,
    name: str,
    given: Sequence[Any],
    refused: list[Refused],
    *,
    optional: bool,
) -> list[Any]:
    # Other types need a token: 1, 1.0 and True are one key of a dict.
    if {str, NoneType}.issuperset(map(type, given)):
        made = _References(validator, optional=optional)
        references = list(map(made.__getitem__, given))
        if made.wrong:
            refused.extend(
                (row, name, made.wrong[value])
                for row, value in enumerate(given)
                if value in made.wrong
            )
        return references
    references = []
    for row, value in enumerate(given):
        try:
            is_null = value is None and optional
            references.append(None if is_null else validator(value))
        except PydanticCustomError as error:
            refused.append((row, name, error))
            references.append(None)
    return references


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
        self.columns = None if records.json else Columns.of(layouts.into)
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
        checked = None
        rows = [row for _, row in records]
        if self._of_names is not None:
            rows = list(map(self._of_names, rows))
        # If all rows have the same names, the first is enough.
        if self.columns is not None and (
            self._takes_all_names or not list(self.layouts.unknown(rows[0]))
        ):
            checked = self.columns.validate(rows, self.names)
        if checked is None:
            return self._by_row(records, rows)
        for n, (first, *more) in sorted(checked.wrong.items()):
            self.rejects.add(records[n], *first, tuple(more))
        if len(checked.wrong) == len(records):
            return []
        try:
            layout = self.layout or self.layouts.of(checked.given)
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

    def _by_row(self, records: Sequence[Record], rows: Sequence[Any]) -> list[Rows]:
        values, given = self.validator.values, self.validator.given
        takes_all_names, layout = self._takes_all_names, self.layout
        found: dict[Layout, tuple[list[Record], list[Row]]] = {}
        last: Layout | None = None
        last_names: set[str] = set()
        for record, valid in self._valid(records, rows):
            if not (takes_all_names or self._has_known_names(record)):
                continue
            names = given(valid)
            its = layout
            if its is None and last is not None and names == last_names:
                its = last
            try:
                its = its or self._layout(names, values(valid))
            except NoKeyError as error:
                self.rejects.add(record, "", "key", str(error))
                continue
            if names != last_names and (
                not self.validator.may_add or names.issuperset(self.layouts.labels)
            ):
                last, last_names = its, names
            if not its.fields:
                self._reject_empty(record)
                continue
            if not names:
                self.note_empty(record[0])
            if its not in found:
                found[its] = [], []
            kept, taken = found[its]
            kept.append(record)
            taken.append(its.get(values(valid)))
        return [
            Rows(its, kept, fields=list(zip(*taken, strict=True)))
            for its, (kept, taken) in found.items()
        ]

    def _valid(
        self, records: Sequence[Record], rows: Sequence[Any]
    ) -> list[tuple[Record, Any]]:
        """Return the records that are valid, each with what validation returned."""
        validate = self.validator.validate
        if self.names is not None:
            # They are as wide as it.
            rows = [dict(zip(self.names, row)) for row in rows]  # noqa: B905
        if not self.validator.makes_models:
            return list(self._validated(records, rows, validate))
        with drafting(SESSION_BULK_CONTEXT.get()) as draft:

            def settled(row: Any) -> Any:
                try:
                    valid = validate(row)
                except ValidationError:
                    draft.forget()
                    raise
                draft.settle(valid)
                return valid

            return list(self._validated(records, rows, settled))

    def _validated(
        self,
        records: Sequence[Record],
        rows: Sequence[Any],
        validate: Callable[[Any], Any],
    ) -> Iterator[tuple[Record, Any]]:
        for record, row in zip(records, rows, strict=True):
            try:
                valid = validate(row)
            except ValidationError as error:
                first, *more = map(self._named, problems_of(error))
                self.rejects.add(record, *first, tuple(more))
            else:
                yield record, valid

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
        names = tuple(from_json(record[1]) if self.json else record[1])
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
