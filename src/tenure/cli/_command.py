"""One run of ``tenure load``: its progress, its messages, its exit code."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

from sqlalchemy.exc import SQLAlchemyError

from tenure import LoadError, LoadReport, RejectedRowsError
from tenure.errors import IN_WORKER, said

from ._load import Job
from ._mistake import Mistake
from ._model import imported, place_of
from ._progress import Bar
from ._report import left_of, text_of
from ._signals import interruptible
from ._workers import executor

# The options that messages name.
_NAMED = (
    "commit|delimiter|encoding|errors|format|header|ignore|parts_table|path|resume|"
    "skip_rows"
)

DONE, NOTHING, USAGE, IN_PART, INTERRUPTED = 0, 1, 2, 3, 130


class Command:
    """One run of ``tenure load``: its progress, and its messages."""

    def __init__(self, rejects: Path | None, *, as_json: bool, bar: Bar | None) -> None:
        self.rejects = rejects
        self.as_json = as_json
        self.bar = bar
        self.report: LoadReport | None = None
        self.is_complete = False

    def run(
        self,
        sources: Sequence[str],
        into: str,
        url: str,
        *,
        create_tables: bool,
        workers: int | None,
        dask: str | None,
        **options: Any,
    ) -> int:
        """Load and print; give the exit code."""
        error = None
        needs_workers = options["commit"] == "part" or any(
            options[name] is not None for name in ("parts", "resume")
        )
        try:
            with (
                interruptible() as interrupts,
                executor(workers, dask, is_needed=needs_workers) as shared,
                self._shown(),
            ):
                job = Job(
                    sources,
                    imported(into),
                    url,
                    create_tables,
                    {**options, "progress": self._progress, "executor": shared},
                )
                self.report = job.run(interrupts)
            self.is_complete = True
            code = self._unfinished() if self.report.rejected else DONE
        except (Exception, KeyboardInterrupt) as failed:
            told = self._failure(failed)
            if told is None:
                raise
            code, error = told
        if error is not None:
            say(f"tenure load: {error}")
        return code if self._print(code, error) else code or self._unfinished()

    def _unfinished(self) -> int:
        """Return the exit code where not all rows were loaded."""
        report = self.report
        if report is None:
            return NOTHING
        kept = report.rows - report.rejected if report.dry_run else report.kept
        return IN_PART if kept else NOTHING

    def _shown(self) -> AbstractContextManager[Any]:
        return self.bar or nullcontext()

    def _progress(self, report: LoadReport) -> None:
        self.report = report
        if self.bar is not None:
            self.bar.show(report)

    def _failure(self, error: BaseException) -> tuple[int, str] | None:
        """Return the exit code for *error*, and what to say; none for a bug of ours."""
        its = getattr(error, "report", None)
        if isinstance(its, LoadReport) and its.load_id is not None:
            self.report = its
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED, f"interrupted; {self._kept()}"
        if isinstance(error, RejectedRowsError):
            self.report = cast(LoadReport, error.report)
            self.is_complete = True
            return self._unfinished(), _as_options(str(error))
        if isinstance(error, Mistake):
            return USAGE, str(error)
        if isinstance(error, LoadError):
            kept = self.report and self.report.kept
            text = _as_options(str(error))
            return (IN_PART, f"{text}; {self._kept()}") if kept else (USAGE, text)
        if isinstance(error, (SQLAlchemyError, OSError)):
            notes = [note.removeprefix("load: ") for note in _notes(error)]
            if self.report is not None and self.report.load_id is not None:
                notes = [left_of(self.report)]
            text = said(error)
            if isinstance(error, OSError) and error.filename is not None:
                text = f"cannot write {error.filename!r}: {error.strerror}"
            return self._unfinished(), "; ".join([text, *(notes or [self._kept()])])
        place = place_of(error) or next(
            (
                note.removeprefix(IN_WORKER)
                for note in _notes(error)
                if note.startswith(IN_WORKER)
            ),
            None,
        )
        if place is None:
            return None
        message = f"{type(error).__name__}: {said(error)} ({place})"
        return USAGE, f"the model failed: {message}; {self._kept()}"

    def _kept(self) -> str:
        report = self.report
        if report is not None and report.load_id is not None:
            return left_of(report)
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
            text = _as_options("\n".join(text_of(self.report, rejects=path)))
        else:
            return True
        try:
            print(text, flush=True)
        except OSError as failed:
            # Python would try to write it again when it ends, and print an error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(failed, BrokenPipeError):
                say(f"tenure load: the report cannot be printed: {failed.strerror}")
                return False
        return True


def _notes(error: BaseException) -> list[str]:
    return [" ".join(note.split()) for note in getattr(error, "__notes__", ())]


def _as_options(text: str) -> str:
    """Return an error with options as they are written here: ``--skip-rows``."""

    def written(found: re.Match[str]) -> str:
        verb, name, value = found.groups()
        return f"{verb} --{name.replace('_', '-')}{' ' if value else ''}{value}"

    return re.sub(rf"\b(say|use|with|and) ({_NAMED})=('?)", written, text)


def say(line: str) -> None:
    print(" ".join(line.splitlines()), file=sys.stderr)
