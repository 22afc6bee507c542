"""
Loading, compared with a slow loader that does the obvious thing row by row.

Sync only: the async load runs the same code.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select
from sqlalchemy.orm import Session as PlainSession

from tenure import Database, LoadReport, Ref, RejectedRowsError, Spec
from tests.fixtures.models import Author, Base, Book

pytestmark = pytest.mark.every_database


class BookIn(Spec[Book]):
    isbn: str
    title: str
    pages: int | None = None
    barcode: int | None = None
    author: Ref[Author]
    editor: Ref[Author] | None = None


NAMES = tuple(BookIn.model_fields)
REQUIRED = ("isbn", "title", "author")
#: A book as the table has it, references by code.
Stored = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is there, what is loaded, and how."""

    existing: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    format: str
    on_conflict: Any
    on_missing: Any
    max_errors: int | None
    batch_size: int
    commit: Any
    dry_run: bool
    joined: bool
    rejects: bool


@dataclass
class Expected:
    """What the slow loader found."""

    stored: dict[str, Stored]
    authors: set[str] = field(default_factory=lambda: {"a1", "a2"})
    report: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("rows", "created", "updated", "unchanged", "skipped", "rejected"), 0
        )
    )
    rejects: list[tuple[int, str]] = field(default_factory=list)
    is_over: bool = False


def slowly(case: Case) -> Expected:
    """Load row by row, as a reader of the documentation would expect."""
    before = {book["isbn"]: dict(book) for book in case.existing}
    found = Expected(dict(before))
    kept, authors = dict(before), set(found.authors)
    counts = dict(found.report)
    for start in range(0, len(case.rows), case.batch_size):
        for number in range(start, min(start + case.batch_size, len(case.rows))):
            found.report["rows"] += 1
            reason = _one(case, case.rows[number], found)
            if reason in {"created", "updated", "unchanged", "skipped"}:
                found.report[reason] += 1
            else:
                found.report["rejected"] += 1
                line = number + (2 if case.format == "csv" else 1)
                found.rejects.append((line, reason))
        limit = case.max_errors
        found.is_over = limit is not None and found.report["rejected"] > limit
        if found.is_over and not case.rejects:
            break
        if case.commit == "batch" and not found.is_over:
            kept, authors = dict(found.stored), set(found.authors)
            # Of a rehearsal nothing is committed.
            counts = dict(counts if case.dry_run else found.report)
    if found.is_over:
        # Nothing counts as written that is not kept.
        for name in ("created", "updated", "unchanged", "skipped"):
            found.report[name] = counts[name]
    if case.dry_run:
        found.stored, found.authors = before, {"a1", "a2"}
    elif found.is_over:
        found.stored, found.authors = kept, authors
    return found


def _one(case: Case, row: Mapping[str, Any], found: Expected) -> str:
    row = dict.fromkeys(NAMES) | dict(row) if case.format == "csv" else row
    if any(row.get(name) is None for name in REQUIRED):
        return "invalid"
    if row.get("pages") == "x":
        return "invalid"
    book: Stored = dict(row)
    authors = set(found.authors)
    for name in ("author", "editor"):
        if book.get(name) == "zz" and case.on_missing == "create":
            authors.add("zz")
        elif book.get(name) == "zz":
            if case.on_missing == "reject" or name == "author":
                return "missing"
            book[name] = None
    same = found.stored.get(book["isbn"])
    if same is not None and case.on_conflict == "raise":
        return "duplicate"
    if same is not None and case.on_conflict == "skip":
        found.authors = authors
        return "skipped"
    taken = {
        other["barcode"] for isbn, other in found.stored.items() if isbn != book["isbn"]
    }
    if book.get("barcode") is not None and book["barcode"] in taken:
        return "integrity"
    found.authors = authors
    new = (same or dict.fromkeys(NAMES)) | book
    found.stored = found.stored | {book["isbn"]: new}
    if same is None:
        return "created"
    return "unchanged" if new == same else "updated"


def source(case: Case, folder: Path) -> Any:
    if case.format == "rows":
        return iter(case.rows)
    # A file, as the next batch of one is read while a batch is written.
    path = folder / f"rows.{case.format}"
    text = io.StringIO()
    if case.format == "jsonl":
        text.writelines(json.dumps(row) + "\n" for row in case.rows)
    else:
        writer = csv.DictWriter(text, NAMES)
        writer.writeheader()
        writer.writerows(case.rows)
    path.write_text(text.getvalue())
    return path


def stored(session: PlainSession) -> dict[str, Stored]:
    books = session.scalars(select(Book).execution_options(populate_existing=True))
    return {
        book.isbn: {
            "isbn": book.isbn,
            "title": book.title,
            "pages": book.pages,
            "barcode": book.barcode,
            "author": book.author.code,
            "editor": book.editor.code if book.editor else None,
        }
        for book in books
    }


@st.composite
def row_lists(draw: st.DrawFn, *, barcodes: bool) -> list[dict[str, Any]]:
    row = st.fixed_dictionaries(
        {
            "isbn": st.sampled_from("abcd"),
            "title": st.sampled_from(["t", "u", "t", "u", None]),
            "author": st.sampled_from(["a1", "a2", "a1", "a2", "zz", None]),
        },
        optional={
            "pages": st.sampled_from([None, 1, 2, "x"]),
            "editor": st.sampled_from([None, "a1", "a2", "zz"]),
        },
    )
    if not barcodes:
        return draw(st.lists(row, max_size=9))
    # Which of two rows with one barcode stays is not promised where they set
    # different fields, or where one is a second try for a key that was refused.
    complete = {"pages": None, "editor": None}
    found = draw(st.lists(row, max_size=4, unique_by=lambda each: each["isbn"]))
    codes = st.sampled_from([None, 1, 2, 3])
    return [complete | each | {"barcode": draw(codes)} for each in found]


def _unique(books: list[dict[str, Any]]) -> list[dict[str, Any]]:
    codes = [book["barcode"] for book in books if book["barcode"] is not None]
    if len(codes) == len(set(codes)):
        return books
    return [book | {"barcode": None} for book in books]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    on_conflict = draw(st.sampled_from(["raise", "skip", "update"]))
    # Rows of one batch are written in the order of their keys; an update that
    # takes a number from another row may then come before or after that one's.
    barcodes = on_conflict != "update" and draw(st.booleans())
    book = st.fixed_dictionaries(
        {
            "isbn": st.sampled_from("abcd"),
            "title": st.sampled_from("tu"),
            "pages": st.sampled_from([None, 1, 2]),
            "barcode": st.sampled_from([None, 1, 2, 3] if barcodes else [None]),
            "author": st.sampled_from(["a1", "a2"]),
            "editor": st.sampled_from([None, "a1", "a2"]),
        }
    )
    existing = st.lists(book, max_size=3, unique_by=lambda each: each["isbn"])
    return Case(
        existing=_unique(draw(existing)),
        rows=draw(row_lists(barcodes=barcodes)),
        format=draw(st.sampled_from(["csv", "jsonl", "rows"])),
        on_conflict=on_conflict,
        on_missing=draw(st.sampled_from(["reject", "null", "create"])),
        max_errors=draw(st.sampled_from([None, None, 0, 1, 3])),
        batch_size=draw(st.sampled_from([1, 2, 3, 1_000])),
        commit=draw(st.sampled_from(["once", "once", "batch"])),
        dry_run=draw(st.sampled_from([False, False, False, True])),
        joined=draw(st.booleans()),
        rejects=draw(st.booleans()),
    )


@pytest.fixture
def db(url: str) -> Iterator[Database]:
    with Database(url) as db:
        db.create_all(Base.metadata)
        yield db


def prepare(db: Database, case: Case) -> None:
    """Leave exactly what the case says is there."""
    with db.session() as session:
        session.execute(delete(Book))
        session.execute(delete(Author))
        authors = {code: Author(code=code) for code in ("a1", "a2")}
        session.add_all(authors.values())
        for book in case.existing:
            references = {
                name: book[name] and authors[book[name]]
                for name in ("author", "editor")
            }
            session.add(Book(**(book | references)))
        session.commit()


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_as_row_by_row(db: Database, tmp_path: Path, case: Case) -> None:
    """Counts, rejected lines, reasons and rows are those of the slow loader."""
    prepare(db, case)
    expected = slowly(case)
    rejects = io.StringIO() if case.rejects else None
    with db.session() as session:
        if case.joined:
            session.add(Author(code="joined"))
            session.flush()
        report, is_over = load(session, source(case, tmp_path), case, rejects)
        # Work of before a load that failed, or was a rehearsal, is still pending.
        session.commit()
    with db.session() as session:
        found = stored(session)
        authors = set(session.scalars(select(Author.code)))
    reasons = [
        (reject.line, reject.reason)
        if reject.reason in {"missing", "duplicate", "integrity"}
        and (reject.reason != "missing" or "there is no" in reject.message)
        else (reject.line, "invalid")
        for reject in report.rejects
    ]

    assert expected.report == {name: getattr(report, name) for name in expected.report}
    assert sorted(expected.rejects) == sorted(reasons)
    assert expected.is_over is is_over
    assert expected.stored == found
    assert expected.authors | ({"joined"} if case.joined else set()) == authors
    if rejects is not None:
        assert len(expected.rejects) == len(rejects.getvalue().splitlines())


def load(
    session: Any, source: Any, case: Case, rejects: Any
) -> tuple[LoadReport, bool]:
    with session.bulk() as bulk:
        try:
            report = bulk.load(
                source,
                BookIn,
                on_conflict=case.on_conflict,
                on_missing=case.on_missing,
                max_errors=case.max_errors,
                batch_size=case.batch_size,
                commit=case.commit,
                dry_run=case.dry_run,
                rejects=rejects,
            )
        except RejectedRowsError as error:
            return error.report, True
    return report, False
