"""The commands: arguments in, exit code out."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from sqlalchemy.exc import SQLAlchemyError

from tenure import LoadError, LoadReport, RejectedRowsError
from tenure.errors import said

from ._load import Job
from ._mistake import Mistake
from ._model import imported, place_of
from ._progress import Bar
from ._report import text_of
from ._signals import interruptible

DONE, FINDINGS, USAGE, INTERRUPTED = 0, 1, 2, 130

# click's error of a wrong command line: some versions of typer depend on click, others
# contain it.
_UsageError: Any = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="tenure",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class OnMissing(StrEnum):
    reject = "reject"
    null = "null"
    create = "create"


class OnConflict(StrEnum):
    raise_ = "raise"
    update = "update"
    skip = "skip"


class Commit(StrEnum):
    once = "once"
    batch = "batch"


class Format(StrEnum):
    csv = "csv"
    jsonl = "jsonl"
    parquet = "parquet"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name; see :func:`tenure.cli.main`."""
    try:
        code = app(arguments, prog_name="tenure", standalone_mode=False)
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx else "tenure"
        message = error.format_message().strip().rstrip(".")
        message = f"{message[:1].lower()}{message[1:]}" if message else "no command"
        _say(f"{command}: {message}; see {command} --help")
        return USAGE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    return code if isinstance(code, int) else DONE


@app.callback()
def tenure() -> None:
    """The session layer for SQLAlchemy, from the command line."""


def _max_errors(text: str) -> int | None:
    if text == "all":
        return None
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter(
        f"a number of rows or 'all', not {text!r}", param_hint="--max-errors"
    )


@app.command()
def load(
    source: Annotated[
        str,
        typer.Argument(
            help="File of CSV or JSON Lines, also compressed by gzip, or of Parquet; "
            "- is standard input.",
        ),
    ],
    into: Annotated[
        str,
        typer.Option(
            metavar="MODULE:NAME",
            help="The Spec that says what a row is, such as shop.schemas:OrderIn.",
        ),
    ],
    url: Annotated[
        str,
        typer.Option(metavar="URL", help="The URL of the database, as for SQLAlchemy."),
    ],
    on_missing: Annotated[
        OnMissing,
        typer.Option(
            help="What to do if a reference is not found: reject the row, write NULL, or "
            "create the row it refers to."
        ),
    ] = OnMissing.reject,
    on_conflict: Annotated[
        OnConflict,
        typer.Option(
            help="What to do if the key of a row exists: reject the row, update what "
            "exists, or skip the row."
        ),
    ] = OnConflict.raise_,
    rejects: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Where rejected rows go, as JSON Lines."),
    ] = None,
    max_errors: Annotated[
        str,
        typer.Option(
            metavar="N|all",
            help="How many rows may be rejected; with more, nothing is written.",
        ),
    ] = "0",
    batch_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Rows for each statement.")
    ] = 10_000,
    commit: Annotated[
        Commit, typer.Option(help="Commit at the end, or after each batch.")
    ] = Commit.once,
    start: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="LINE",
            help="Begin at this line; a load with --commit batch that failed says which.",
        ),
    ] = 1,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="A text of a CSV file that means NULL; may be repeated. Without it, "
            "the empty text does.",
        ),
    ] = None,
    format: Annotated[
        Format | None,
        typer.Option(
            help="The format, if the name of the source does not tell; csv for -."
        ),
    ] = None,
    create_tables: Annotated[
        bool,
        typer.Option("--create-tables", help="Create the tables that are missing."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything, then roll back.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object.")
    ] = False,
) -> int:
    """
    Load rows: validate each, resolve its references, write it.

    Exit code 1: rows were rejected, or the database failed midway. 2: it could not
    begin. 130: interrupted.
    """
    limit = _max_errors(max_errors)
    bar = Bar(source) if sys.stderr.isatty() and not as_json else None
    command = _Load(rejects, as_json=as_json, bar=bar)
    shown_format = format or (Format.csv if source == "-" else None)
    return command.run(
        source,
        into,
        url,
        create_tables=create_tables,
        on_missing=on_missing.value,
        on_conflict=on_conflict.value,
        rejects=rejects,
        max_errors=limit,
        batch_size=batch_size,
        commit=commit.value,
        start=start,
        null=[""] if null is None else null,
        format=shown_format and shown_format.value,
        dry_run=dry_run,
    )


class _Load:
    """One run of ``tenure load``: its progress, and its messages."""

    def __init__(self, rejects: Path | None, *, as_json: bool, bar: Bar | None) -> None:
        self.rejects = rejects
        self.as_json = as_json
        self.bar = bar
        self.report: LoadReport | None = None
        self.is_complete = False

    def run(
        self,
        source: str,
        into: str,
        url: str,
        *,
        create_tables: bool,
        **options: Any,
    ) -> int:
        """Load and print; give the exit code."""
        error = None
        try:
            with interruptible() as interrupts, self._shown():
                job = Job(
                    source,
                    imported(into),
                    url,
                    create_tables,
                    {**options, "progress": self._progress},
                )
                self.report = job.run(interrupts)
            self.is_complete = True
            code = FINDINGS if self.report.rejected else DONE
        except (Exception, KeyboardInterrupt) as failed:
            told = self._failure(failed)
            if told is None:
                raise
            code, error = told
        if error is not None:
            _say(f"tenure load: {error}")
        return code if self._print(code, error) else code or FINDINGS

    def _shown(self) -> AbstractContextManager[Any]:
        return self.bar or nullcontext()

    def _progress(self, report: LoadReport) -> None:
        self.report = report
        if self.bar is not None:
            self.bar.show(report)

    def _failure(self, error: BaseException) -> tuple[int, str] | None:
        """Return the exit code for *error*, and what to say; none for a bug of ours."""
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED, f"interrupted; {self._kept()}"
        if isinstance(error, RejectedRowsError):
            self.report = cast(LoadReport, error.report)
            self.is_complete = True
            return FINDINGS, str(error)
        if isinstance(error, Mistake):
            return USAGE, str(error)
        if isinstance(error, LoadError):
            kept = self.report and self.report.kept
            return USAGE, f"{error}; {self._kept()}" if kept else str(error)
        if isinstance(error, (SQLAlchemyError, OSError)):
            notes = [note.removeprefix("load: ") for note in _notes(error)]
            text = said(error)
            if isinstance(error, OSError) and error.filename is not None:
                text = f"cannot write {error.filename!r}: {error.strerror}"
            return FINDINGS, "; ".join([text, *(notes or [self._kept()])])
        place = place_of(error)
        if place is None:
            return None
        message = f"{type(error).__name__}: {said(error)} ({place})"
        return USAGE, f"the model failed: {message}; {self._kept()}"

    def _kept(self) -> str:
        report = self.report
        if report is not None and report.kept:
            return (
                f"{report.kept:,} rows were kept; continue with --start {report.resume}"
            )
        if report is not None and "commit" in report.seconds:
            return "nobody knows whether the commit has happened"
        return "nothing was written"

    def _print(self, code: int, error: str | None) -> bool:
        """Print what there is to tell; give whether that could be done."""
        path = None
        if self.rejects is not None and self.report and self.report.rejected:
            path = os.fspath(self.rejects)
        if self.as_json:
            told: dict[str, Any] = {} if self.report is None else self.report.as_dict()
            if error is not None:
                told["error"] = error
            text = json.dumps({**told, "rejects": path, "exit": code})
        elif self.report is not None and self.is_complete:
            text = "\n".join(text_of(self.report, rejects=path))
        else:
            return True
        try:
            print(text, flush=True)
        except OSError as failed:
            # Python would try to write it again when it ends, and print an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(failed, BrokenPipeError):
                _say(f"tenure load: the report cannot be printed: {failed.strerror}")
                return False
        return True


def _notes(error: BaseException) -> list[str]:
    return [" ".join(note.split()) for note in getattr(error, "__notes__", ())]


def _say(line: str) -> None:
    print(" ".join(line.splitlines()), file=sys.stderr)
