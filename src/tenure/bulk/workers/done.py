"""The table that says which parts of a load are done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.dialects.mysql import LONGTEXT
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from ...errors import LoadError
from ..load import LoadReport
from ..read import Part
from .reports import report_of, text_of

#: Characters of rejected rows in one row: a server takes no statement of any length.
_PIECE = 1_000_000
#: The number of the row of the load itself.
_LOAD = -1
_WANTED = "wanted"
_GIVEN_UP = "given up"


@dataclass(frozen=True, slots=True)
class Loaded:
    """
    What a part gave: its report, and lines for the rejects file.

    Attributes:
        is_done: Whether it is committed; else too many of its rows were rejected.
        place: Where it is in its source, if it was noted.
    """

    report: LoadReport
    rejects: str
    is_done: bool = True
    place: str = ""


@dataclass(frozen=True)
class Done:
    """
    What is known of the parts of one load.

    A part's row is inserted when it is begun, and committed with the rows of the part. So
    nobody loads a part twice, whatever became of the answer to a commit.

    Args:
        load_id: The load.
        table_name: The table, with its schema before a dot if it has one.
    """

    load_id: str
    table_name: str

    @cached_property
    def table(self) -> Table:
        """The table; each row is a part of a load."""
        schema, _, name = self.table_name.rpartition(".")
        long = Text().with_variant(LONGTEXT(), "mysql", "mariadb")
        return Table(
            name,
            MetaData(schema=schema or None),
            Column("load_id", String(32), primary_key=True),
            Column("part", Integer, primary_key=True, autoincrement=False),
            Column("piece", Integer, primary_key=True, autoincrement=False),
            Column("place", long),
            Column("report", long),
            Column("rejects", long),
        )

    def __getstate__(self) -> tuple[str, str]:
        return self.load_id, self.table_name

    def __setstate__(self, state: tuple[str, str]) -> None:
        for name, value in zip(("load_id", "table_name"), state, strict=True):
            object.__setattr__(self, name, value)

    # By the caller

    def begin(self, engine: Engine, about: dict[str, Any]) -> None:
        """Make the table, if it is not there, and the row of a new load."""
        self._make_table(engine)
        values = {
            **self._row(_LOAD),
            "report": json.dumps(about),
            "rejects": _WANTED,
        }
        with engine.begin() as connection:
            connection.execute(insert(self.table).values(values))

    def _make_table(self, engine: Engine) -> None:
        try:
            self.table.create(engine, checkfirst=True)
        except SQLAlchemyError as error:
            # Another load may have been faster.
            table = self.table
            if not inspect(engine).has_table(table.name, schema=table.schema):
                error.add_note(
                    f"load: the table {self.table_name!r}, which says what parts are "
                    f"done, cannot be made; say parts_table= to name another"
                )
                raise

    def go_on(self, engine: Engine, about: dict[str, Any]) -> dict[int, Loaded]:
        """
        Go on with a load that was cut short; return what each part that is done gave.

        Raises:
            LoadError: There is no such load, or it was another one.
        """
        self._make_table(engine)
        with engine.begin() as connection:
            rows = self._rows(connection)
            if _LOAD not in rows:
                raise LoadError(
                    f"the table {self.table_name!r} knows no load {self.load_id!r}: it "
                    f"is complete, or its table has another name; say parts_table="
                )
            before = json.loads(rows.pop(_LOAD)[0].report)
            changed = [name for name in about if before.get(name) != about[name]]
            if changed:
                raise LoadError(
                    f"the load {self.load_id!r} cannot go on: "
                    + ", ".join(
                        f"{name} was {before.get(name)!r} and is {about[name]!r}"
                        for name in changed
                    )
                )
            connection.execute(self._of_load().values(rejects=_WANTED))
        return _read(rows)

    def committed(self, engine: Engine) -> dict[int, Loaded]:
        """Return what each part that is done gave."""
        with engine.begin() as connection:
            rows = self._rows(connection)
        rows.pop(_LOAD, None)
        return _read(rows)

    def _rows(self, connection: Any, number: int | None = None) -> dict[int, Any]:
        """Return the rows of the parts, each with its rejected rows put together."""
        table = self.table
        statement = select(table).where(table.c.load_id == self.load_id)
        if number is not None:
            statement = statement.where(table.c.part == number)
        found: dict[int, Any] = {}
        for row in connection.execute(statement.order_by(table.c.part, table.c.piece)):
            if not row.piece:
                found[row.part] = row, []
            found[row.part][1].append(row.rejects or "")
        return found

    def give_up(self, engine: Engine) -> None:
        """Tell workers that are at it not to commit."""
        with engine.begin() as connection:
            connection.execute(self._of_load().values(rejects=_GIVEN_UP))

    def end(self, engine: Engine) -> None:
        """Forget the load: all its parts are done."""
        with engine.begin() as connection:
            mine = self.table.c.load_id == self.load_id
            connection.execute(delete(self.table).where(mine))

    def _of_load(self) -> Any:
        table = self.table
        return update(table).where(
            table.c.load_id == self.load_id, table.c.part == _LOAD
        )

    # By workers

    def begun(self, part: Part) -> dict[str, Any]:
        """Return the row of a part."""
        return {**self._row(part.number), "place": place_of(part)}

    def _row(self, number: int) -> dict[str, Any]:
        return {"load_id": self.load_id, "part": number, "piece": 0}

    def found(self, session: Session, number: int) -> Loaded | None:
        """Return what a part that is done gave."""
        return _read(self._rows(session, number)).get(number)

    def note(
        self, session: Session, number: int, report: LoadReport, rejects: str
    ) -> None:
        """Note in the transaction of a part that it is done."""
        table = self.table
        session.execute(
            update(table)
            .where(table.c.load_id == self.load_id, table.c.part == number)
            .values(report=text_of(report))
        )
        pieces = range(0, len(rejects), _PIECE)
        rows = [
            {
                **self._row(number),
                "piece": n,
                "rejects": rejects[start : start + _PIECE],
            }
            for n, start in enumerate(pieces, 1)
        ]
        for row in rows:
            session.execute(insert(table).values(row))

    def is_wanted(self, connection: Connection) -> bool:
        """Whether the load has not been given up."""
        table = self.table
        state = connection.execute(
            select(table.c.rejects).where(
                table.c.load_id == self.load_id, table.c.part == _LOAD
            )
        ).scalar()
        return bool(state == _WANTED)


def _read(rows: dict[int, Any]) -> dict[int, Loaded]:
    return {
        number: Loaded(report_of(row.report), "".join(pieces), place=row.place)
        for number, (row, pieces) in rows.items()
        if row.report is not None
    }


def place_of(part: Part) -> str:
    """Return where in its source a part is, as text."""
    where = part.groups or f"{part.start}-{part.stop}"
    return f"{part.file.name} {where} {part.lines}"
