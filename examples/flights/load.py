"""Loading the five files, in sync or async code as the URL asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from examples.flights.models import Base
from examples.flights.schemas import FILES
from tenure import Database, LoadReport

#: What the files write where nothing is known.
NOTHING = ("", "NA")

Reports = dict[str, LoadReport]
OnConflict = Literal["raise", "update", "skip"]
#: Called after each batch with the name of the file and the report so far.
Shown = Callable[[str, LoadReport], None]


def load_all(
    url: str,
    paths: Mapping[str, Path],
    *,
    on_conflict: OnConflict = "raise",
    shown: Shown | None = None,
) -> Reports:
    """
    Load every file into the database at *url*, each in one transaction.

    Dangling references become NULL where the table allows it, and are counted.
    """
    db = Database(url)
    if db.is_async:
        return asyncio.run(_load_all_async(db, paths, on_conflict, shown))
    reports = {}
    with db:
        db.create_all(Base.metadata)
        for name, into in FILES.items():
            with db.session_manager() as session, session.bulk() as bulk:
                reports[name] = bulk.load(
                    paths[name],
                    into,
                    on_missing="null",
                    on_conflict=on_conflict,
                    null=NOTHING,
                    progress=_named(shown, name),
                )
    return reports


async def _load_all_async(
    db: Database,
    paths: Mapping[str, Path],
    on_conflict: OnConflict,
    shown: Shown | None,
) -> Reports:
    reports = {}
    async with db:
        await db.acreate_all(Base.metadata)
        for name, into in FILES.items():
            async with db.async_session_manager() as session, session.bulk() as bulk:
                reports[name] = await bulk.load(
                    paths[name],
                    into,
                    on_missing="null",
                    on_conflict=on_conflict,
                    null=NOTHING,
                    progress=_named(shown, name),
                )
    return reports


def _named(shown: Shown | None, name: str) -> Callable[[LoadReport], None] | None:
    return None if shown is None else lambda report: shown(name, report)
