"""The work of ``tenure load``, in sync or async code as the driver of the URL needs."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import event, inspect, make_url
from sqlalchemy.exc import SQLAlchemyError

from tenure import Database, LoadReport, RoutingError, Session, SessionBulk
from tenure.errors import said

from ._mistake import Mistake
from ._model import tables_of
from ._signals import Interrupts, Pipe


@dataclass(slots=True)
class Job:
    """
    One load: what was asked for.

    Attributes:
        sources: Paths, patterns and URLs, or ``-`` for standard input.
        options: What goes to ``bulk.load()`` as it is.
    """

    sources: Sequence[str]
    into: type[Any]
    url: str
    create_tables: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, interrupts: Interrupts) -> LoadReport:
        """
        Load, in one scope of one database.

        Raises:
            Mistake: It could not begin.
            LoadError: The source cannot be used, or has too many bad rows.
            sqlalchemy.exc.SQLAlchemyError: The database failed midway.
        """
        with self._opened(interrupts) as source:
            return self._run(source, interrupts)

    @contextmanager
    def _opened(self, interrupts: Interrupts) -> Iterator[Any]:
        """Return a source for ``bulk.load()``: paths, or a pipe where it is no file."""
        [source, *more] = self.sources
        if more and "-" in self.sources:
            raise Mistake("standard input is loaded by itself, not with files")
        if source == "-" and sys.stdin is None:
            raise Mistake("standard input is closed")
        is_pipe = Path(source).exists() and not (
            Path(source).is_file() or Path(source).is_dir()
        )
        if more or (source != "-" and not is_pipe):
            yield source if not more else list(self.sources)
            return
        # A copy of the descriptor: closing it does not close standard input.
        descriptor = (
            os.dup(sys.stdin.fileno())
            if source == "-"
            else os.open(source, os.O_RDONLY)
        )
        with (
            io.FileIO(descriptor) as file,
            io.BufferedReader(Pipe(file, source, interrupts)) as pipe,
        ):
            yield pipe

    def _run(self, source: Any, interrupts: Interrupts) -> LoadReport:
        try:
            db = Database(self.url)
            is_async = db.is_async
        except RoutingError as error:
            raise Mistake(f"--url: {error}") from error
        if is_async:
            return interrupts.run(self._run_async(db, source, interrupts))
        with db:
            try:
                with db.session_manager() as session:
                    return self._load(session, source, interrupts)
            finally:
                interrupts.over()

    async def _run_async(
        self, db: Database, source: Any, interrupts: Interrupts
    ) -> LoadReport:
        async with db:
            try:
                async with db.async_session_manager() as session:
                    return await session.run_sync(self._load, source, interrupts)
            finally:
                interrupts.over()

    def _load(self, session: Any, source: Any, interrupts: Interrupts) -> LoadReport:
        self._check_tables(session)
        bulk: SessionBulk = session.bulk()
        event.listen(session, "before_commit", interrupts.hold)
        shown = self.options.get("progress")

        def progress(report: LoadReport) -> None:
            if shown is not None:
                shown(report)
            interrupts.release()

        options = {**self.options, "progress": progress}
        return bulk.load(source, self.into, **options)

    def _check_tables(self, session: Session) -> None:
        """Connect; create what is missing, in the transaction of the load, or say so."""
        try:
            connection = session.connection()
        except Exception as error:  # Each driver has its own ways to fail here.
            raise Mistake(f"--url: {_unreachable(self.url, error)}") from error
        tables = tables_of(self.into)
        if self.create_tables:
            try:
                tables[0].metadata.create_all(connection)
            except SQLAlchemyError as error:
                raise Mistake(
                    f"the tables could not be created: {said(error)}"
                ) from error
            if self.options.get("commit") == "part":
                session.commit()  # for workers to see them
            return
        there = inspect(connection)
        missing = [
            table.fullname
            for table in tables
            if not there.has_table(table.name, schema=table.schema)
        ]
        if missing:
            raise Mistake(
                f"{described(self.url)} has no table {', '.join(sorted(missing))}; "
                f"create what is missing with --create-tables"
            )
        session.rollback()


def described(url: str) -> str:
    """Name a database without its password and its options, which may be secret."""
    return make_url(url).set(query={}).render_as_string(hide_password=True)


def _unreachable(url: str, error: Exception) -> str:
    if isinstance(error, RoutingError):
        return str(error)
    return f"cannot open {described(url)}: {said(error)}"
