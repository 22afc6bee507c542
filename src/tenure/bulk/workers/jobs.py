"""What workers do with a part of a source."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from random import uniform
from time import monotonic, sleep
from typing import Any

from pydantic import BaseModel
from sqlalchemy import Engine, insert
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from ...engines import DatabaseManager, recipe_of
from ...errors import LoadError, RejectedRowsError, wrap
from ...mapping import mapper_of
from ...models import entity_of, made_of, spec_of
from ..load import Layouts, LoadOptions, LoadReport, Validated, load, validated
from ..read import Part, Records
from .checks import class_of
from .done import Done, Loaded

#: Options of pools: a worker has one connection, and sometimes another for a moment.
_OF_POOLS = ("pool", "max_overflow")
#: How many times a part is loaded that the database undoes.
_TRIALS = 5
#: Seconds after which a worker asks again whether its load goes on.
_ASKED_AGAIN = 1.0


@dataclass(frozen=True, slots=True)
class Into:
    """The model of rows, as workers find it again."""

    given: type[Any]
    dialect: str

    @classmethod
    def of(cls, session: Session, given: type[Any]) -> Into:
        """Return what a load goes into."""
        entity = entity_of(_spec(given))
        bind = session.get_bind(mapper_of(entity), clause=insert(entity))
        # No module has what spec_of() has made.
        return cls(made_of(given) or given, bind.dialect.name)

    def layouts(self, options: LoadOptions) -> Layouts:
        """Return what it has to do with its mapped class."""
        model = _spec(self.given)
        mapper = mapper_of(entity_of(model))
        fields = options.update_fields
        return Layouts(model, mapper, options.on_conflict, self.dialect, fields)


def _spec(given: type[Any]) -> type[BaseModel]:
    is_model = isinstance(given, type) and issubclass(given, BaseModel)
    return given if is_model else spec_of(given)


def for_workers(options: LoadOptions) -> LoadOptions:
    """Return the options of a load without what stays with the caller."""
    return replace(options, commit="once", progress=None, rejects=None)


@dataclass(frozen=True, slots=True)
class _OfPart:
    """What is done with a part, which messages call it by."""

    part: Part
    into: Into
    options: LoadOptions

    @property
    def number(self) -> int:
        """The number of the part."""
        return self.part.number

    @property
    def name(self) -> str:
        """The part, as messages name it."""
        part = self.part
        where = f"{part.size:,} bytes after line {part.lines} of {part.file.name!r}"
        return f"part {part.number} ({where})"

    @property
    def needs(self) -> str:
        """What a worker has to be able to import."""
        return f"the module {self.into.given.__module__!r}"


@dataclass(frozen=True, slots=True)
class Validate(_OfPart):
    """Read and validate a part."""

    def __call__(self) -> Validated | None:
        """Return its records; ``None``: it has none."""
        options = self.options
        layouts = self.into.layouts(options)
        with Records(
            self.part, options.reading, accepted=layouts.accepted, start=options.start
        ) as records:
            batches = validated(records, layouts, options.batch_size)
            first = next(batches, None)
            return None if first is None else first.joined(batches)


@dataclass(frozen=True, slots=True)
class Access:
    """
    How a worker reaches the database.

    Attributes:
        database: What a :class:`DatabaseManager` is told.
        options: Execution options of the engine, such as ``schema_translate_map``.
        session: The class of sessions, whose listeners may have a say.
        info: What these may read.
    """

    database: Any
    is_async: bool
    options: Mapping[str, Any]
    session: type[Session]
    info: dict[Any, Any]

    @classmethod
    def to(cls, session: Session, engine: Engine) -> Access:
        """Return how a worker reaches the database of a session."""
        known = recipe_of(engine)
        assert known is not None, "check_database() refuses other engines"
        recipe = dict(known)
        for name in ("engine_options", "async_engine_options"):
            recipe[name] = {
                key: value
                for key, value in recipe.get(name, {}).items()
                if not key.startswith(_OF_POOLS)
            }
        return cls(
            {"default": recipe},
            engine.dialect.is_async,
            dict(engine.get_execution_options()),
            class_of(session),
            dict(session.info),
        )

    def use(self, work: Callable[[Session], Any]) -> Any:
        """Call *work* with a session of a connection of its own."""
        manager = DatabaseManager(self.database)
        if self.is_async:
            return asyncio.run(self._use(manager, work))
        try:
            engine = manager.engine("default").execution_options(**self.options)
            with self.session(bind=engine, info=self.info) as session:
                return work(session)
        finally:
            manager.dispose()

    async def _use(self, manager: Any, work: Callable[[Session], Any]) -> Any:
        try:
            engine = manager.engine("default", True).execution_options(**self.options)
            async with AsyncSession(
                engine, sync_session_class=self.session, info=self.info
            ) as session:
                return await session.run_sync(work)
        finally:
            await manager.adispose()


def _is_by_chance(error: BaseException | None) -> bool:
    """Whether an error, or what it came up after, may not come again."""
    while error is not None:
        if isinstance(error, SQLAlchemyError) and wrap(error).retryable:
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True, slots=True)
class LoadPart(_OfPart):
    """Load a part and commit it, unless that has been done."""

    access: Access
    done: Done

    def __call__(self) -> Loaded:
        """
        Load it; again after what ends a transaction by chance, such as a deadlock.

        Parts that write into the same tables may wait for each other's rows.
        """
        left = _TRIALS
        while True:
            try:
                return self.access.use(self._load)  # type: ignore[no-any-return]  # of any work
            except SQLAlchemyError as error:
                left -= 1
                if not left or not _is_by_chance(error):
                    raise
                # Not again at the same time as the other one.
                sleep(uniform(0, 0.1 * 2 ** (_TRIALS - left)))  # noqa: S311  # no secret

    def _load(self, session: Session) -> Loaded:
        done, number = self.done, self.number
        try:
            # Whoever else is at this part ends first: the key is unique.
            session.execute(insert(done.table).values(done.begun(self.part)))
        except IntegrityError as error:
            session.rollback()
            found = done.found(session, number)
            if found is None:
                raise LoadError(
                    f"{self.name}: somebody else has gone on with the load "
                    f"{done.load_id!r}, and it is complete"
                ) from error
            return found
        rejects = io.StringIO()
        asked = monotonic()

        def progress(_: LoadReport) -> None:
            nonlocal asked
            if monotonic() - asked > _ASKED_AGAIN:
                asked = monotonic()
                self._check_wanted(session)

        def finish(report: LoadReport) -> None:
            self._check_wanted(session)
            report.committed, report.kept = True, report.rows - report.rejected
            done.note(session, number, report, rejects.getvalue())

        options = replace(self.options, rejects=rejects, progress=progress)
        try:
            report = load(session, self.part, self.into.given, options, finish=finish)
        except RejectedRowsError as error:
            session.rollback()
            its: Any = error.report
            return Loaded(its, rejects.getvalue(), is_done=False)
        except Exception:
            # The database may have undone all, savepoints and all.
            with suppress(SQLAlchemyError):
                session.rollback()
            raise
        return Loaded(report, rejects.getvalue())

    def _check_wanted(self, session: Session) -> None:
        """Ask on another connection: a transaction may see what was at its beginning."""
        with session.get_bind().engine.connect() as connection:
            if not self.done.is_wanted(connection):
                raise LoadError(
                    f"{self.name}: the load {self.done.load_id!r} has been given up, or "
                    f"the table {self.done.table_name!r} that a worker finds is another"
                )
