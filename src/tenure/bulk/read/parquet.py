"""Parquet files, read in batches of rows. Needs the extra ``parquet``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from ...errors import LoadError, said
from .records import Bad, Record

#: Rows that are made objects of Python at once.
_ROWS = 8_192


class Parquet:
    """
    An open Parquet file.

    Args:
        source: A path, or a binary file that can be sought in.
        name: What messages call it.
        groups: The row groups to read; all, if nothing is said.

    Attributes:
        header: The names of its columns.
        sizes: The bytes of each row group as stored.
        total: Those of the ones to read.

    Raises:
        LoadError: It is none, or pyarrow is not installed.
    """

    def __init__(self, source: Any, name: str, groups: range | None = None) -> None:
        try:
            import pyarrow as pa
            from pyarrow import parquet
        except ImportError as error:
            raise LoadError(
                "reading Parquet needs pyarrow; install tenure[parquet]"
            ) from error
        if hasattr(source, "read") and not source.seekable():
            raise LoadError(
                "a Parquet file begins to be read at its end, so it cannot come from "
                "a pipe; give its path"
            )
        self._pa: Any = pa
        try:
            # pre_buffer would hold whole row groups in memory.
            self._file: Any = parquet.ParquetFile(source, pre_buffer=False)
        except (OSError, ValueError) as error:
            raise LoadError(
                f"cannot read {name!r} as Parquet: {said(error)}"
            ) from error
        schema = self._file.schema_arrow
        self._types = [self._in_microseconds(field.type) for field in schema]
        self.header = list(schema.names)
        self.guesses: list[str] = []
        self.sizes = [
            sum(
                group.column(number).total_compressed_size
                for number in range(group.num_columns)
            )
            for group in map(self._file.metadata.row_group, self._all)
        ]
        self._groups = self._all if groups is None else groups
        if self._groups.stop > len(self.sizes):
            raise LoadError(
                f"{name!r} has fewer row groups than when it was cut into parts; do "
                f"not change a file that is being loaded"
            )
        self.total = sum(self.sizes[group] for group in self._groups)
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def _all(self) -> range:
        return range(self._file.num_row_groups)

    @property
    def end(self) -> int:
        """How many rows it has."""
        return int(self._file.metadata.num_rows)

    def tell(self) -> int:
        """Return the bytes of the row groups that were read to their end."""
        return self._position

    def rows(self, start: int) -> Iterator[Record]:
        """
        Yield numbered rows; whole row groups before row *start* are not read.

        Raises:
            LoadError: The file is damaged.
        """
        first = 1
        for group in range(self._groups.stop):
            count = self._file.metadata.row_group(group).num_rows
            if group in self._groups:
                if first + count > start:
                    yield from enumerate(self._rows_of(group), first)
                self._position += self.sizes[group]
            first += count

    def _rows_of(self, group: int) -> Iterator[Any]:
        batches = self._file.iter_batches(_ROWS, row_groups=[group])
        while True:
            try:
                batch = next(batches, None)
            except (OSError, ValueError) as error:
                raise LoadError(
                    f"the Parquet source cannot be read: {said(error)}"
                ) from error
            if batch is None:
                return
            yield from self._rows_in(batch)

    def _rows_in(self, batch: Any) -> Iterator[Any]:
        wrong: dict[int, tuple[str, str]] = {}
        columns = [
            self._values(column, kind, name, wrong)
            for column, kind, name in zip(
                batch.columns, self._types, batch.schema.names, strict=True
            )
        ]
        rows = zip(*columns, strict=True)
        if not wrong:
            yield from rows
            return
        for number, row in enumerate(rows):
            if number in wrong:
                field, message = wrong[number]
                named = dict(zip(batch.schema.names, row, strict=True))
                yield Bad(named, "value", message, field)
            else:
                yield row

    def _values(
        self, column: Any, kind: Any, name: str, wrong: dict[int, tuple[str, str]]
    ) -> list[Any]:
        """Return the values of a column; note those that Python cannot hold."""
        try:
            if column.type != kind:
                column = column.cast(kind, safe=False)
            values: list[Any] = column.to_pylist()
        except Exception:  # noqa: BLE001  # each type has its own way to refuse
            values = []
            for number, value in enumerate(column):
                try:
                    values.append(value.as_py())
                except Exception as error:  # noqa: BLE001  # as above
                    text = self._text_of(value)
                    values.append(text)
                    message = f"Python cannot hold {text}: {said(error)}"
                    wrong.setdefault(number, (name, message))
        return values

    def _text_of(self, value: Any) -> str:
        try:
            return str(value.cast(self._pa.string()).as_py())
        except Exception:  # noqa: BLE001  # as above
            return f"this {value.type}"

    def _in_microseconds(self, kind: Any) -> Any:
        """Return the type without nanoseconds, which Python does not have."""
        pa, inner = self._pa, self._in_microseconds
        types = pa.types
        if types.is_timestamp(kind) and kind.unit == "ns":
            return pa.timestamp("us", kind.tz)
        if types.is_time64(kind):
            return pa.time64("us")
        if types.is_duration(kind) and kind.unit == "ns":
            return pa.duration("us")
        if types.is_dictionary(kind):
            return inner(kind.value_type)
        if types.is_struct(kind):
            return pa.struct(
                [kind[n].with_type(inner(kind[n].type)) for n in range(kind.num_fields)]
            )
        if types.is_map(kind):
            return pa.map_(inner(kind.key_type), inner(kind.item_type))
        if types.is_fixed_size_list(kind):
            return pa.list_(inner(kind.value_type), kind.list_size)
        if types.is_large_list(kind):
            return pa.large_list(inner(kind.value_type))
        if types.is_list(kind):
            return pa.list_(kind.value_field.with_type(inner(kind.value_type)))
        return kind
