"""Async sources, for code that runs in a greenlet."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy.util import await_only

from .records import Record, mapping


class Pulled:
    """
    An async source, for code that runs under ``run_sync``.

    Nothing is asked of it before the first :meth:`take`.

    Attributes:
        report: What became of its rows, once that is certain.
    """

    def __init__(self, source: AsyncIterable[Any]) -> None:
        self.report: Any = None
        self._rows = aiter(source)
        self._number = 0

    def take(self, size: int, start: int) -> list[Record]:
        """Wait for *size* mappings, or the last ones, from row *start* on."""
        return await_only(self._take(size, start))

    async def _take(self, size: int, start: int) -> list[Record]:
        records: list[Record] = []
        while len(records) < size:
            try:
                row = await anext(self._rows)
            except StopAsyncIteration:
                break
            self._number += 1
            if self._number >= start:
                records.append(mapping(self._number, row))
        return records

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """
        Close it after the block, if it can be closed, as an async generator can.

        An error of that has the report, or is a note of the error that ends the block.
        """
        try:
            yield
        except BaseException as error:
            try:
                await self._close()
            except Exception as failed:  # noqa: BLE001  # whatever a source raises
                error.add_note(f"load: the source could not be closed: {failed!r}")
            raise
        try:
            await self._close()
        except Exception as error:
            with suppress(AttributeError):  # one with slots has no place for it
                error.report = self.report  # type: ignore[attr-defined]  # as above
            raise

    async def _close(self) -> None:
        close = getattr(self._rows, "aclose", None)
        if close is not None:
            await close()
