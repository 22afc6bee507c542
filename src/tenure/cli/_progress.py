"""The progress bar, on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from tenure import LoadReport


def _whole() -> Column:
    return Column(no_wrap=True)


class _Rows(ProgressColumn):
    def render(self, task: Task) -> Text:
        rows: int = task.fields["rows"]
        speed = rows / task.elapsed if task.elapsed else 0
        return Text(f"{rows:>9,} rows {speed:>7,.0f}/s", no_wrap=True)


class _Share(ProgressColumn):
    """Bytes read of all, in mebibytes; nothing where the size is not known."""

    def render(self, task: Task) -> Text:
        if not task.total:
            return Text("")
        share = f"{task.completed / 2**20:.1f}/{task.total / 2**20:.1f} MiB"
        return Text(share, no_wrap=True)


class Bar:
    """Shows how far one load is, while entered."""

    def __init__(self, sources: Sequence[str]) -> None:
        [first, *more] = sources
        name = "standard input" if first == "-" else first.rpartition("/")[2]
        if more:
            name = f"{len(sources)} sources"
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=_whole()),
            BarColumn(bar_width=None),
            _Share(table_column=_whole()),
            _Rows(table_column=_whole()),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task(name, total=None, rows=0)

    def show(self, report: LoadReport) -> None:
        """Show where *report* is."""
        self._progress.update(
            self._task,
            completed=report.bytes_read,
            total=report.bytes_total or None,
            rows=report.rows,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
