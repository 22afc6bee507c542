"""
Bulks: values and references collected, resolved together, written as one.

:class:`Bulk` holds what was collected and does everything on a sync session;
the two public classes differ in whether one waits for it.
"""

from __future__ import annotations

from asyncio import sleep
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from contextlib import nullcontext
from functools import partial
from inspect import isawaitable, signature
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, Unpack

from sqlalchemy.orm import Session
from sqlalchemy.util import await_only

from ..errors import LoadError
from . import load as loads
from . import read, workers
from .collected import Scope
from .core import Bulk
from .lookup import Strategy
from .report import BulkReport, Resolution
from .save import FlushOptions
from .upsert import OnDuplicate
from .write import OnConflict

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from os import PathLike

    from sqlalchemy.ext.asyncio import AsyncSession

    from .load import Commit, LoadMissing, LoadReport, Progress, Source
    from .read import ReadKeywords, ReadOptions

#: Where it is noted which parts of a load are done.
PARTS_TABLE = "tenure_parts"

P = ParamSpec("P")
R = TypeVar("R")


class SessionBulk(Bulk):
    """
    Values and references, resolved in few statements and written together.

    ``with session.bulk() as bulk:`` makes it current: what Pydantic validates
    inside registers its references here.

    Args:
        session: Where rows are looked up and written.
        proxy_reference: References are proxies; ``False``: placeholders, which are
            instances of the mapped class, updated in place when they are resolved.
    """

    session: Session

    def __init__(self, session: Session, *, proxy_reference: bool = True) -> None:
        super().__init__(session, proxy_reference=proxy_reference)

    def __enter__(self) -> Self:
        self._enter()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._values and self._is_flushed_at_the_end():
                self.flush()
        finally:
            self._leave()

    def resolve(
        self,
        *,
        raise_errors: bool = True,
        scope: Scope = "all",
        strategy: Strategy = "bind",
        batch_size: int | None = None,
    ) -> Resolution:
        """
        Look up the rows that references name, and the rows values have already.

        One statement for each ``batch_size`` keys (10 000) of an entity and key
        shape; reads only, never flushes.

        Args:
            raise_errors: Without it, what is not found stays unresolved.
            scope: References, values or both.
            strategy: ``"bind"`` learns identities, ``"hydrate"`` loads the rows.

        Raises:
            ResolutionError: With every failure; nothing was changed.
        """
        return self._do(self._resolve, raise_errors, scope, strategy, batch_size)

    def flush(
        self,
        *,
        on_conflict: OnConflict = "raise",
        update_fields: Iterable[str] | None = None,
        batch_size: int | None = None,
        on_duplicate: OnDuplicate = "raise",
    ) -> BulkReport:
        """
        Resolve what is not resolved (``"bind"``), then write the values.

        Args:
            on_conflict: What to do where a row has the value's identifier.
            update_fields: The attributes an update may change; all set ones if
                not given.
            batch_size: Values that go out at once (100 000).
            on_duplicate: What to do with two values for one identifier.

        Raises:
            ResolutionError: References have no row each, or two values have one
                identifier; nothing was written.
            ConflictError: With ``"raise"``, a value that :meth:`resolve` has bound to
                a row would change it.
        """
        options = FlushOptions(
            on_conflict=on_conflict,
            update_fields=update_fields,
            on_duplicate=on_duplicate,
            batch_size=batch_size,
        )
        return self._do(self._flush, options)

    def commit(
        self,
        *,
        on_conflict: OnConflict = "raise",
        update_fields: Iterable[str] | None = None,
        batch_size: int | None = None,
        on_duplicate: OnDuplicate = "raise",
    ) -> BulkReport:
        """
        :meth:`flush`, then commit the session; on an error, :meth:`rollback`.
        """
        options = FlushOptions(
            on_conflict=on_conflict,
            update_fields=update_fields,
            on_duplicate=on_duplicate,
            batch_size=batch_size,
        )
        return self._do(self._commit, options)

    def rollback(self) -> None:
        """
        Undo what this bulk wrote; its values are new again.

        Back to where it began, if the session was in a transaction already.
        """
        self._do(self._rollback)

    def load(
        self,
        source: Source,
        into: type[Any],
        *,
        on_missing: LoadMissing = "reject",
        on_conflict: OnConflict = "raise",
        update_fields: Iterable[str] | None = None,
        batch_size: int = 10_000,
        commit: Commit = "once",
        max_errors: int | None = 0,
        rejects: str | PathLike[str] | Any = None,
        progress: Progress | None = None,
        dry_run: bool = False,
        start: int = 1,
        executor: Executor | None = None,
        parts: int | None = None,
        resume: LoadReport | str | None = None,
        parts_table: str = PARTS_TABLE,
        **reading: Unpack[ReadKeywords],
    ) -> LoadReport:
        """
        Load rows: validate each, resolve its references, write it.

        Memory is bounded by *batch_size*, whatever the length of the source; with an
        *executor*, by some parts of it. A row may name another one of the source,
        before or after it.
        Ends the session's transaction: commits it (*commit* ``"once"``: at the
        end, ``"batch"``: after each batch) or rolls it back. An error of whatever
        kind has the ``report`` of what was kept.

        Args:
            source: A path, a pattern (``"2024-*.csv"``), a folder or a URL of files of
                CSV, JSON or Parquet, also compressed; a list of these, read one after
                the other; an open file; or an iterable of mappings.
            into: A ``Spec`` of the mapped class to write to; of the class itself,
                ``spec_of`` makes one.
            on_missing: A row whose reference names nothing is rejected, written
                with NULL there if the column allows it, or what it names is made,
                with the attributes of its key.
            on_conflict: What to do where a row has the same identifier.
            update_fields: The attributes that an update may change; ``None``: those
                that the source gives, and what the model has set itself.
            batch_size: Rows for each statement.
            max_errors: Rejected rows that are tolerated; ``None``: any number.
            rejects: Path (or open text file) that gets rejected rows as JSON
                Lines.
            progress: Called after each batch, and before the end, with the report
                so far.
            dry_run: Do everything, then roll back.
            start: The line (of rows without lines: the number; of several files:
                counted through) to begin with: ``report.resume`` of a load that was
                cut short.
            executor: Workers that share the load: any executor of
                ``concurrent.futures``, or one like these, as Dask's
                ``client.get_executor()``. They read and validate parts of the files;
                with ``commit="part"`` each also writes and commits its own.
            parts: How many parts the source is cut into; without it their size is
                chosen, for *commit* ``"part"`` about 8 MB.
            resume: The report, or the ``load_id``, of a load with ``commit="part"``
                that was cut short: the parts that are not done are loaded.
            parts_table: The table in which parts that are done are noted; it is made.
            reading: How the source is read; see ``ReadKeywords``.

        Raises:
            LoadError: The source, the model or an option cannot be used.
            RejectedRowsError: More than *max_errors* rows were rejected.
            DatabaseError: The database failed; a note says how far it got.
        """
        self._begin_writing("load")
        options = loads.LoadOptions(
            on_missing=on_missing,
            on_conflict=on_conflict,
            update_fields=_listed(update_fields),
            batch_size=batch_size,
            commit=commit,
            max_errors=max_errors,
            rejects=rejects,
            progress=progress,
            dry_run=dry_run,
            start=start,
            reading=_read_options(reading),
        )
        work = _work(commit, executor, parts, resume, parts_table, is_async=False)
        return self._do(work, source, into, options)


def _awaited(
    method: Callable[Concatenate[SessionBulk, P], R],
) -> Callable[Concatenate[AsyncSessionBulk, P], Coroutine[Any, Any, R]]:
    """Return the async twin of a method: the same, run in a greenlet."""

    async def twin(self: AsyncSessionBulk, /, *args: P.args, **kwargs: P.kwargs) -> R:
        bulk: Any = self
        return await self.session.run_sync(lambda _: method(bulk, *args, **kwargs))

    twin.__name__ = method.__name__
    twin.__qualname__ = f"AsyncSessionBulk.{method.__name__}"
    twin.__doc__ = f"Async :meth:`SessionBulk.{method.__name__}`."
    # functools.wraps would set __wrapped__, and inspect would find a sync function.
    vars(twin)["__signature__"] = signature(method)
    return twin


class AsyncSessionBulk(Bulk):
    """Async :class:`SessionBulk`."""

    session: AsyncSession

    def __init__(self, session: AsyncSession, *, proxy_reference: bool = True) -> None:
        super().__init__(session, proxy_reference=proxy_reference)

    async def __aenter__(self) -> Self:
        self._enter()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None and self._values and self._is_flushed_at_the_end():
                await self.flush()
        finally:
            self._leave()

    resolve = _awaited(SessionBulk.resolve)
    flush = _awaited(SessionBulk.flush)
    commit = _awaited(SessionBulk.commit)
    rollback = _awaited(SessionBulk.rollback)

    async def load(
        self,
        source: Source | AsyncIterable[Any],
        into: type[Any],
        *,
        on_missing: LoadMissing = "reject",
        on_conflict: OnConflict = "raise",
        update_fields: Iterable[str] | None = None,
        batch_size: int = 10_000,
        commit: Commit = "once",
        max_errors: int | None = 0,
        rejects: str | PathLike[str] | Any = None,
        progress: Progress | None = None,
        dry_run: bool = False,
        start: int = 1,
        executor: Executor | None = None,
        parts: int | None = None,
        resume: LoadReport | str | None = None,
        parts_table: str = PARTS_TABLE,
        **reading: Unpack[ReadKeywords],
    ) -> LoadReport:
        """
        Async :meth:`SessionBulk.load`.

        The event loop runs between statements and after each batch; reading and
        validating a batch keeps it busy.

        Args:
            source: May also be an async iterable of mappings: a batch is asked of it
                when the one before is written. One that can be closed is, at the end.
            progress: What it returns is awaited, if it can be.
        """
        self._begin_writing("load")
        pulled = read.Pulled(source) if isinstance(source, AsyncIterable) else None
        async with nullcontext() if pulled is None else pulled.closed():
            options = loads.LoadOptions(
                on_missing=on_missing,
                on_conflict=on_conflict,
                update_fields=_listed(update_fields),
                batch_size=batch_size,
                commit=commit,
                max_errors=max_errors,
                rejects=rejects,
                progress=progress,
                dry_run=dry_run,
                start=start,
                reading=_read_options(reading),
            )
            work = _work(commit, executor, parts, resume, parts_table, is_async=True)
            report = await self.session.run_sync(
                lambda _: self._do(
                    work, pulled or source, into, options, _let_others_run
                )
            )
            if pulled is not None:
                pulled.report = report
        return report


def _read_options(reading: ReadKeywords) -> ReadOptions:
    for name in reading.keys() - set(read.ReadOptions.__slots__):
        raise TypeError(f"load() got an unexpected keyword argument {name!r}")
    for name in ("header", "ignore", "null"):
        if name in reading:
            reading[name] = _listed(reading[name])  # type: ignore[literal-required]  # see above
    return read.ReadOptions(**reading)


def _listed(given: Any) -> Any:
    """Return an iterable as what can be gone through more than once; not a text."""
    is_list = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    return tuple(given) if is_list else given


def _work(
    commit: str,
    executor: Any,
    parts: int | None,
    resume: Any,
    parts_table: str,
    *,
    is_async: bool,
) -> Callable[..., LoadReport]:
    """Return what loads, over workers or not."""
    if executor is not None:
        sharing = workers.Sharing(
            executor=executor,
            parts=parts,
            resume=resume,
            parts_table=parts_table,
            waits=workers.InLoop() if is_async else workers.wait_for,
        )
        return partial(workers.load_shared, sharing=sharing)
    for wanted, is_said in (
        ("commit='part'", commit == "part"),
        ("parts", parts is not None),
        ("resume", resume is not None),
        ("parts_table", parts_table != PARTS_TABLE),
    ):
        if is_said:
            raise LoadError(
                f"{wanted} is for loads over workers; say executor= as well, such as "
                f"a ProcessPoolExecutor"
            )
    return loads.load


def _let_others_run(answer: object) -> None:
    """Wait for what a callback gave, and for one round of the event loop."""
    if isawaitable(answer):
        await_only(answer)
    await_only(sleep(0))
