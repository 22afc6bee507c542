"""
Records of a source become valid rows: column by column where the model allows it, row
by row otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from pydantic import ValidationError

from ..write import Row
from .by_column import Columns
from .layout import Layout, Layouts, Rows
from .rejects import Rejects, problems_of
from .sources import Record, Records
from .validate import RowValidator

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
        self.header = records.header
        self.layouts = layouts
        self.rejects = rejects
        self.validator = validator
        self.columns = None if records.json else Columns.of(layouts.into)
        self.layout: Layout | None = None
        if self.header is not None:
            self.layout = layouts.of_header(self.header)
        #: Whether names need no check: those of a table are its header's.
        self._takes_all_names = self.header is not None or layouts.is_open
        self._seen: set[tuple[str, ...]] = set()

    def rows(self, records: Sequence[Record]) -> list[Rows]:
        """Give the valid rows of *records*, by the fields they set."""
        records = self._as_wide_as_the_header(records)
        if not records:
            return []
        checked = None
        if self.columns is not None:
            rows = [row for _, row in records]
            # Where all have the same names, one stands for all.
            if self._takes_all_names or not list(self.layouts.unknown(rows[0])):
                checked = self.columns.validate(rows, self.header)
        if checked is None:
            return self._by_row(records)
        for n in sorted(checked.wrong):
            first, *more = checked.wrong[n]
            self.rejects.add(records[n], *first, tuple(more))
        if len(checked.wrong) == len(records):
            return []
        layout = self.layout or self.layouts.of(checked.given)
        fields = [checked.columns[name] for name in layout.fields]
        batch = Rows(layout, list(records), fields=fields, refused=set(checked.wrong))
        return [batch.only(batch.kept) if batch.refused else batch]

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

    def _by_row(self, records: Sequence[Record]) -> list[Rows]:
        validate, header = self.validator.validate, self.header
        values, given = self.validator.values, self.validator.given
        takes_all_names, layout = self._takes_all_names, self.layout
        found: dict[Layout, tuple[list[Record], list[Row]]] = {}
        for record in records:
            row = record[1]
            if header is not None:
                row = dict(zip(header, row))  # noqa: B905  # as wide as it
            try:
                valid = validate(row)
            except ValidationError as error:
                first, *more = problems_of(error)
                self.rejects.add(record, *first, tuple(more))
                continue
            if not (takes_all_names or self._has_known_names(record)):
                continue
            its = layout or self.layouts.of(given(valid))
            if its not in found:
                found[its] = [], []
            kept, taken = found[its]
            kept.append(record)
            taken.append(its.get(values(valid)))
        return [
            Rows(its, kept, fields=list(zip(*taken, strict=True)))
            for its, (kept, taken) in found.items()
        ]

    def _has_known_names(self, record: Record) -> bool:
        """Reject an object that has a name the model does not know."""
        names = tuple(json.loads(record[1]) if self.json else record[1])
        if names in self._seen:
            return True
        for name in self.layouts.unknown(names):
            message = f"unknown field {name!r}"
            self.rejects.add(record, name, "extra_forbidden", message)
            return False
        if len(self._seen) < _KEPT_NAMES:
            self._seen.add(names)
        return True
