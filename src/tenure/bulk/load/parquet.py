"""Parquet files, read in batches of rows. Needs the extra ``parquet``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from ...errors import LoadError, said

#: Rows that are made objects of Python at once.
_ROWS = 8_192


class Parquet:
    """
    An open Parquet file.

    Args:
        source: A path, or a binary file that can be sought in.

    Attributes:
        columns: Their names.
        total: The bytes of the columns as stored.

    Raises:
        LoadError: It is none, or pyarrow is not installed.
    """

    def __init__(self, source: Any) -> None:
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
            name = source if isinstance(source, str) else getattr(source, "name", "")
            raise LoadError(
                f"cannot read {name!r} as Parquet: {said(error)}"
            ) from error
        schema = self._file.schema_arrow
        self.columns = list(schema.names)
        self._schema = pa.schema(
            [field.with_type(self._in_microseconds(field.type)) for field in schema]
        )
        self._sizes = [
            sum(
                group.column(number).total_compressed_size
                for number in range(group.num_columns)
            )
            for group in map(self._file.metadata.row_group, self._groups)
        ]
        self.total = sum(self._sizes)
        self._position = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def _groups(self) -> range:
        return range(self._file.num_row_groups)

    def tell(self) -> int:
        """Return the bytes of the row groups that were read to their end."""
        return self._position

    def rows(self, start: int) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """
        Yield numbered rows; whole row groups before row *start* are not read.

        Raises:
            LoadError: The file is damaged.
        """
        first = 1
        for group, size in zip(self._groups, self._sizes, strict=True):
            count = self._file.metadata.row_group(group).num_rows
            if first + count > start:
                yield from enumerate(self._rows_of(group), first)
            first += count
            self._position += size

    def _rows_of(self, group: int) -> Iterator[tuple[Any, ...]]:
        try:
            for batch in self._file.iter_batches(_ROWS, row_groups=[group]):
                table = self._pa.Table.from_batches([batch])
                columns = table.cast(self._schema, safe=False).itercolumns()
                yield from zip(*(column.to_pylist() for column in columns), strict=True)
        except (OSError, ValueError, OverflowError) as error:
            raise LoadError(
                f"the Parquet source cannot be read: {said(error)}"
            ) from error

    def _in_microseconds(self, kind: Any) -> Any:
        """Return the type without nanoseconds, which Python does not have."""
        pa = self._pa
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            return pa.timestamp("us", kind.tz)
        if pa.types.is_time64(kind):
            return pa.time64("us")
        if pa.types.is_duration(kind) and kind.unit == "ns":
            return pa.duration("us")
        if pa.types.is_dictionary(kind):
            return self._in_microseconds(kind.value_type)
        if pa.types.is_list(kind):
            return pa.list_(self._in_microseconds(kind.value_type))
        return kind
