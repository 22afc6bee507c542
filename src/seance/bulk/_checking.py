"""
Records of a source become valid rows: column by column where the model allows it, row
by row otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from ._columns import Columns, Wrong
from ._layout import Layout, Layouts, Rows
from ._rejects import Rejects, problems_of
from ._rows import Row
from ._sources import Record, Records
from ._validate import RowValidator

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
        columns, header = self.columns, self.header
        if columns is None or not records:
            return self._by_row(records, self._mappings(records))
        if columns.has_before:
            rows, wrong = columns.before(self._mappings(records))
            self._reject(records, wrong)
            left = [n for n in range(len(rows)) if n not in wrong]
            records, rows = [records[n] for n in left], [rows[n] for n in left]
            checked = columns.validate(rows) if rows else None
            if checked is None:
                return self._by_row(records, rows, columns.validate_row)
        else:
            rows = [row for _, row in records]
            checked = None
            # Where all have the same names, one stands for all.
            if self._takes_all_names or not list(self.layouts.unknown(rows[0])):
                checked = columns.validate(rows, header)
            if checked is None:
                return self._by_row(records, self._mappings(records))
        refused = set(checked.wrong)
        self._reject(records, checked.wrong)
        if columns.has_before and not self._takes_all_names:
            refused |= {
                n
                for n, record in enumerate(records)
                if n not in refused and not self._has_known_names(record)
            }
        if len(refused) == len(records):
            return []
        layout = self.layout or self.layouts.of(checked.given)
        fields = [checked.columns[name] for name in layout.fields]
        batch = Rows(layout, list(records), fields=fields, refused=refused)
        return [batch.only(batch.kept) if refused else batch]

    def _as_wide_as_the_header(self, records: Sequence[Record]) -> Sequence[Record]:
        width = None if self.header is None else len(self.header)
        if width is None or {width}.issuperset(len(row) for _, row in records):
            return records
        wrong: Wrong = {
            n: [("", "columns", f"{len(row)} fields where the header has {width}")]
            for n, (_, row) in enumerate(records)
            if len(row) != width
        }
        self._reject(records, wrong)
        return [record for n, record in enumerate(records) if n not in wrong]

    def _reject(self, records: Sequence[Record], wrong: Wrong) -> None:
        for n in sorted(wrong):
            first, *more = wrong[n]
            self.rejects.add(records[n], *first, tuple(more))

    def _mappings(self, records: Sequence[Record]) -> list[Any]:
        """Give rows with the names of their values, or as the text that they are."""
        header = self.header
        if header is None:
            return [row for _, row in records]
        return [dict(zip(header, row, strict=True)) for _, row in records]

    def _by_row(
        self,
        records: Sequence[Record],
        rows: Sequence[Any],
        validate: Callable[[Any], Any] | None = None,
    ) -> list[Rows]:
        """Validate each of *rows*, which are those of *records*, by itself."""
        validate = validate or self.validator.validate
        values, given = self.validator.values, self.validator.given
        found: dict[Layout, tuple[list[Record], list[Row]]] = {}
        for record, row in zip(records, rows, strict=True):
            try:
                valid = validate(row)
            except ValidationError as error:
                first, *more = problems_of(error)
                self.rejects.add(record, *first, tuple(more))
                continue
            if not self._has_known_names(record):
                continue
            layout = self.layout or self.layouts.of(given(valid))
            kept = found.setdefault(layout, ([], []))
            kept[0].append(record)
            kept[1].append(layout.get(values(valid)))
        return [
            Rows(layout, kept, fields=list(zip(*taken, strict=True)))
            for layout, (kept, taken) in found.items()
        ]

    def _has_known_names(self, record: Record) -> bool:
        """Reject an object that has a name the model does not know."""
        if self._takes_all_names:
            return True
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
