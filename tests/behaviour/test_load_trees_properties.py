"""
Loading rows that name each other, compared with the obvious way to do so.

That one takes the rows one by one: a SELECT for each reference, an object for each
row. A row whose parent is not there waits, and with it all later rows of its key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, select, update

from tenure import Database, LoadReport, Session
from tests.fixtures.trees import Base, Owner, Part, PartIn

pytestmark = pytest.mark.every_database

COUNTS = ("rows", "created", "updated", "unchanged", "skipped", "rejected")


@dataclass(frozen=True)
class Case:
    """What is there, what is loaded, and how."""

    existing: list[str]
    rows: list[dict[str, Any]]
    on_missing: Any
    on_conflict: Any
    batch_size: int
    commit: Any
    is_table: bool


@dataclass
class Slow:
    """The slow loader: what it has done."""

    session: Session
    on_missing: str
    on_conflict: str
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    rejected: dict[int, str] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    named: dict[str, list[int]] = field(default_factory=dict)
    waiting: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def load(self, rows: list[dict[str, Any]]) -> None:
        self.waiting = dict(enumerate(rows, 1))
        for number, row in list(self.waiting.items()):
            if row["size"] == "x":
                self._settled(number, "invalid")
        while self.waiting:
            if not (self._in_order() or self._lacking()):
                self._circles()

    def _in_order(self) -> bool:
        """Write what waits for nothing, in the order of the source."""
        before = len(self.waiting)
        held = set()
        for number, row in list(self.waiting.items()):
            if row["code"] not in held and self._is_there(row):
                self._write(number)
            else:
                held.add(row["code"])
        return len(self.waiting) < before

    def _is_there(self, row: Mapping[str, Any]) -> bool:
        return row["parent"] is None or self._find(Part, row["parent"]) is not None

    def _lacking(self) -> bool:
        """Write one row whose parent is no row that is left."""
        codes = [row["code"] for row in self.waiting.values()]
        for place, (number, row) in enumerate(list(self.waiting.items())):
            if row["code"] not in codes[:place] and row["parent"] not in codes:
                self._write(number)
                return True
        return False

    def _circles(self) -> None:
        """Settle one circle of rows."""
        number = next(iter(self.waiting))
        walk: list[int] = []
        while number not in walk:
            walk.append(number)
            number = self._waits_for(number)
        circle = sorted(walk[walk.index(number) :])
        if self.on_missing == "null":
            self._write(circle[0])
            return
        for each in circle:
            self._count("Part", found=False)
            if self.waiting[each]["owner"] is not None:
                owner = self._find(Owner, self.waiting[each]["owner"])
                self._count("Owner", found=owner is not None)
            self._settled(each, "circle")

    def _waits_for(self, number: int) -> int:
        row = self.waiting[number]
        for other, named in self.waiting.items():
            if named["code"] == row["parent"]:
                return other
        return next(
            n for n, each in self.waiting.items() if each["code"] == row["code"]
        )

    def _find(self, entity: type[Any], code: str) -> Any:
        return self.session.scalars(select(entity).filter_by(code=code)).one_or_none()

    def _count(self, entity: str, *, found: bool) -> None:
        self.named.setdefault(entity, [0, 0])[0 if found else 1] += 1

    def _write(self, number: int) -> None:
        row = self.waiting[number]
        there = self._find(Part, row["code"])
        is_duplicate = there is not None and self.on_conflict == "raise"
        values = {"code": row["code"], "size": row["size"]}
        is_missing = False
        for name, entity in (("parent", Part), ("owner", Owner)):
            if row[name] is None:
                values[f"{name}_id"] = None
                continue
            target = self._find(entity, row[name])
            if target is None and self.on_missing == "create" and not is_duplicate:
                target = entity(code=row[name])
                self.session.add(target)
                self.session.flush()
                self.made[entity.__name__] = self.made.get(entity.__name__, 0) + 1
            self._count(entity.__name__, found=target is not None)
            is_missing |= target is None and self.on_missing == "reject"
            values[f"{name}_id"] = target and target.id
        if is_missing:
            self._settled(number, "missing")
        elif is_duplicate:
            self._settled(number, "duplicate")
        elif there is None:
            self.session.add(Part(**values))
            self._settled(number, "created")
        elif self.on_conflict == "skip":
            self._settled(number, "skipped")
        else:
            same = all(getattr(there, name) == value for name, value in values.items())
            for name, value in values.items():
                setattr(there, name, value)
            self._settled(number, "unchanged" if same else "updated")
        self.session.flush()

    def _settled(self, number: int, outcome: str) -> None:
        del self.waiting[number]
        self.counts["rows"] += 1
        if outcome in self.counts:
            self.counts[outcome] += 1
        else:
            self.counts["rejected"] += 1
            self.rejected[number] = outcome


CODES = "abcdef"

ROW = st.fixed_dictionaries(
    {
        "code": st.sampled_from(CODES),
        "parent": st.sampled_from([None, *CODES, "z"]),
        "owner": st.sampled_from([None, "o1", "o2", "o2"]),
        "size": st.sampled_from([None, 1, 2, 1, 2, 1, 2, "x"]),
    }
)

CASES = st.builds(
    Case,
    existing=st.lists(st.sampled_from(CODES), max_size=2, unique=True),
    rows=st.lists(ROW, max_size=9),
    on_missing=st.sampled_from(["reject", "null", "create"]),
    on_conflict=st.sampled_from(["raise", "update", "skip"]),
    batch_size=st.sampled_from([1, 2, 3, 1_000]),
    commit=st.sampled_from(["once", "batch"]),
    is_table=st.booleans(),
)


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        yield db


def prepare(db: Database, case: Case) -> None:
    """Leave exactly what the case says is there."""
    with db.session() as session:
        session.execute(update(Part).values(parent_id=None))
        session.execute(delete(Part))
        session.execute(delete(Owner))
        session.add(Owner(code="o1"))
        session.add_all(Part(code=code, size=0) for code in case.existing)
        session.commit()


def slowly(db: Database, case: Case) -> tuple[Slow, dict[str, Any]]:
    prepare(db, case)
    with db.session() as session:
        slow = Slow(session, case.on_missing, case.on_conflict)
        slow.load(case.rows)
        session.commit()
        return slow, stored(session)


def stored(session: Session) -> dict[str, Any]:
    owners = {f"owner {code}": None for code in session.scalars(select(Owner.code))}
    parts = session.scalars(select(Part).execution_options(populate_existing=True))
    return owners | {
        part.code: (
            part.size,
            part.parent and part.parent.code,
            part.owner and part.owner.code,
        )
        for part in parts
    }


def load(session: Session, case: Case, **options: Any) -> LoadReport:
    # A table has all columns; an object leaves those out that are null.
    rows = [
        row
        if case.is_table
        else {name: value for name, value in row.items() if value is not None}
        for row in case.rows
    ]
    options = {"commit": case.commit, "max_errors": None} | options
    with session.bulk() as bulk:
        return bulk.load(
            rows,
            PartIn,
            on_missing=case.on_missing,
            on_conflict=case.on_conflict,
            batch_size=case.batch_size,
            **options,
        )


def counts(report: LoadReport) -> dict[str, int]:
    found = {name: getattr(report, name) for name in COUNTS}
    assert report.rows == sum(found.values()) - report.rows
    return found


def named(report: LoadReport) -> dict[str, list[int]]:
    return {
        entity: [count.resolved, count.missing]
        for entity, count in report.references.items()
        if count.resolved or count.missing
    }


def made(report: LoadReport) -> dict[str, int]:
    return {
        entity: count.created
        for entity, count in report.references.items()
        if count.created
    }


SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@SETTINGS
@given(case=CASES)
def test_as_one_by_one(db: Database, case: Case) -> None:
    """Counts, rejected rows, reasons, references and tables are the same."""
    # What an object does not set is not changed; the slow loader sets everything.
    case = replace(case, is_table=case.is_table or case.on_conflict == "update")
    slow, expected = slowly(db, case)
    prepare(db, case)
    with db.session() as session:
        dry = load(session, case, dry_run=True)
        session.rollback()
        untouched = stored(session)
        session.rollback()
        report = load(session, case)
        found = stored(session)
    reasons = {
        reject.line: "invalid" if reject.field == "size" else reject.reason
        for reject in report.rejects
    }

    assert slow.counts == counts(report)
    assert slow.rejected == reasons
    assert expected == found
    assert slow.made == made(report)
    if case.on_missing == "create":
        # Whether a row is there when a rejected one names it depends on batches.
        assert {name: sum(n) for name, n in slow.named.items()} == {
            name: sum(n) for name, n in named(report).items()
        }
    else:
        assert slow.named == named(report)
    assert set(untouched) == {"owner o1", *case.existing}
    assert (counts(dry), named(dry), made(dry)) == (
        counts(report),
        named(report),
        made(report),
    )
    assert (None, 1) == (report.resume, dry.resume)


@contextmanager
def failing(db: Database, number: int, error: BaseException) -> Iterator[None]:
    """Let the statement *number* of whatever is done meanwhile fail."""
    count = 0

    def fail(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise error

    engine = db.manager.engines["default"]
    event.listen(engine, "before_cursor_execute", fail)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", fail)


@SETTINGS
@given(
    case=CASES,
    statement=st.integers(1, 40),
    error=st.sampled_from([KeyboardInterrupt, OSError]),
    in_progress=st.booleans(),
)
def test_interrupted(
    db: Database, case: Case, statement: int, error: Any, in_progress: bool
) -> None:
    """What was kept is what the report says, and going on there gives the whole."""
    case = replace(case, is_table=True)
    _, expected = slowly(db, case)
    prepare(db, case)
    calls = 0

    def progress(report: LoadReport) -> None:
        nonlocal calls
        counts(report)
        calls += 1
        if in_progress and calls == 1 + statement % 7:
            raise error("progress")

    with db.session() as session:
        try:
            with failing(db, 0 if in_progress else statement, error("statement")):
                first = load(session, case, progress=progress)
        except (KeyboardInterrupt, OSError) as failed:
            first = failed.report  # type: ignore[union-attr]  # load() sets it
        session.rollback()
        part = stored(session)
        session.rollback()
        second = None
        if first.resume is not None:
            second = load(session, case, start=first.resume)
        found = stored(session)

    assert expected == found
    assert first.kept == first.rows - first.rejected
    if second is None:
        assert part == expected
        return
    assert first.resume is not None
    kept = replace(case, rows=case.rows[: first.resume - 1])
    slow, expected_part = slowly(db, kept)
    assert expected_part == part
    assert slow.counts == counts(first)
    assert len(case.rows) == first.rows + second.rows
