"""Loading files as they come: several at once, with bad lines, by options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Self

import pytest
from pydantic import model_validator
from sqlalchemy import event, func, select

from tenure import (
    AsyncSession,
    LoadError,
    LoadReport,
    Ref,
    RejectedRowsError,
    Spec,
    spec_of,
)
from tests.fixtures.models import Author, Book

pytestmark = pytest.mark.anyio


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None


async def load(
    session: AsyncSession, source: Any, into: Any = AuthorIn, **options: Any
) -> LoadReport:
    async with session.bulk() as bulk:
        return await bulk.load(source, into, **options)


async def stored(session: AsyncSession) -> dict[str, str | None]:
    rows = await session.execute(select(Author.code, Author.name))
    return {code: name for code, name in rows}  # noqa: C416  # rows are no pairs


def write(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.csv").write_text(text)
    return [folder / f"{name}.csv" for name in texts]


class TestSeveral:
    async def test_places(self, session: AsyncSession, tmp_path: Path) -> None:
        """A rejected row has its file, and the line in it."""
        one, two = write(
            tmp_path, one="code,name\na,A\nb\n", two="name,code\nA2,a\nC,c\n"
        )
        rejects = tmp_path / "rejects.jsonl"

        report = await load(session, [one, two], max_errors=None, rejects=str(rejects))

        assert {"a": "A", "c": "C"} == await stored(session)
        assert f"line 2 of '{one}' has the same (code)" in {
            reject.message for reject in report.rejects
        }
        places = {(reject.file, reject.line) for reject in report.rejects}
        assert {(str(one), 3), (str(two), 2)} == places
        found = [json.loads(line) for line in rejects.read_text().splitlines()]
        assert [["b"], {"code": "a", "name": "A2"}] == [each["row"] for each in found]
        assert {"columns": 1, "duplicate": 1} == report.reasons
        assert report.as_dict()["first_rejects"] == found

    async def test_resume(self, session: AsyncSession, tmp_path: Path) -> None:
        """A load that was cut short goes on in the file where it was."""
        paths = write(
            tmp_path, one="code\na\nb\n", two="code\nc\na\n", three="code\nd\n"
        )
        options: dict[str, Any] = {"commit": "batch", "batch_size": 1}
        rejects = tmp_path / "rejects.jsonl"

        with pytest.raises(RejectedRowsError) as raised:
            await load(session, paths, **options, rejects=str(rejects))
        report: Any = raised.value.report
        assert (3, 6) == (report.kept, report.resume)
        assert 1 == len(rejects.read_text().splitlines())
        write(tmp_path, two="code\nc\ne\n")
        again = await load(
            session, paths, **options, start=report.resume, rejects=str(rejects)
        )

        assert (2, None) == (again.created, again.resume)
        assert "" == rejects.read_text()
        assert list("abcde") == sorted(await stored(session))

    async def test_rejects_is_a_source(
        self, session: AsyncSession, tmp_path: Path
    ) -> None:
        paths = write(tmp_path, one="code\na\n", two="code\nb\n")
        for source in (paths, tuple(paths), str(tmp_path / "*.csv"), tmp_path):
            with pytest.raises(LoadError, match="rejects would overwrite the source"):
                await load(session, source, rejects=str(paths[1]))
        assert "code\nb\n" == paths[1].read_text()


class TestBadLines:
    async def test_one_each(self, session: AsyncSession, tmp_path: Path) -> None:
        """Whatever is wrong with a line, it is one rejected row."""
        path = tmp_path / "a.csv"
        path.write_bytes(b'code,name\na,A\nb,"B\nc,\xff\nd,x,y\ne,E\n')
        for size in (1, 2, 10_000):
            report = await load(
                session, path, max_errors=4, batch_size=size, dry_run=True
            )
            assert (5, 2) == (report.rows, report.created)
            assert {3: "quotes", 4: "encoding", 5: "columns"} == {
                each.line: each.reason for each in report.rejects
            }
        with pytest.raises(
            RejectedRowsError, match="first at line 3: a quote is opened"
        ):
            await load(session, path)
        assert {} == await stored(session)

    async def test_only_bad_ones(self, session: AsyncSession, tmp_path: Path) -> None:
        """A batch without a good line is not the end of the source."""
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'\xff\n\xff\n{"code": "a"}\n')
        report = await load(session, path, max_errors=None, batch_size=1)
        assert (3, 1, 2) == (report.rows, report.created, report.rejected)


class TestUpdateFields:
    @pytest.mark.parametrize("header", [True, False])
    async def test_changes(
        self, session: AsyncSession, tmp_path: Path, header: bool
    ) -> None:
        """An update changes the attributes that are named, and no others."""
        await load(session, [{"code": "a", "name": "A"}])
        rows = [{"code": "a", "name": "B"}, {"code": "b", "name": "B"}]
        source: Any = rows
        if header:
            [source] = write(tmp_path, one="code,name\na,B\nb,B\n")

        report = await load(session, source, on_conflict="update", update_fields=[])
        assert (1, 1) == (report.created, report.unchanged)
        assert {"a": "A", "b": "B"} == await stored(session)
        await load(session, source, on_conflict="update", update_fields=["name"])
        assert {"a": "B", "b": "B"} == await stored(session)

    async def test_reference(self, session: AsyncSession) -> None:
        """A relationship stands for its columns."""

        class BookIn(Spec[Book]):
            title: str
            isbn: str
            author: Ref[Author]

        await load(session, [{"code": "a"}, {"code": "b"}])
        row = {"title": "t", "isbn": "1", "author": "a"}
        await load(session, [row], BookIn)
        other = {"title": "u", "isbn": "1", "author": "b"}
        for names, expected in ((["title"], ("u", "a")), (["author"], ("u", "b"))):
            await load(
                session, [other], BookIn, on_conflict="update", update_fields=names
            )
            found = await session.execute(
                select(Book.title, Author.code).join(Book.author)
            )
            assert [expected] == [tuple(row) for row in found]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"update_fields": ["name"]}, "is for on_conflict='update'"),
            ({"update_fields": "name", "on_conflict": "update"}, "is a list"),
            ({"update_fields": ["x"], "on_conflict": "update"}, "no attribute 'x'"),
        ],
    )
    async def test_refused(
        self, session: AsyncSession, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(LoadError, match=message):
            await load(session, [{"code": "a"}], **options)


async def test_row_without_a_key(session: AsyncSession) -> None:
    """An object that does not say which row it is about is one rejected row."""

    class Loose(Spec[Author]):
        code: str | None = None
        name: str | None = None

    rows = [{"code": "a", "name": "A"}, {"name": "B"}, {"code": "c"}]
    report = await load(session, rows, Loose, on_conflict="update", max_errors=1)
    assert {"a": "A", "c": None} == await stored(session)
    [reject] = report.rejects
    assert (2, "key") == (reject.line, reject.reason)
    assert "needs a unique key of Author among the fields" in reject.message


async def test_rows_without_a_key(session: AsyncSession) -> None:
    """A batch of such objects is no other case."""

    class Loose(Spec[Author]):
        code: str | None = None
        name: str | None = None

    rows = [{"name": "A"}, {"name": "B"}, {"code": "c"}]
    for size in (1, 2, 3):
        report = await load(
            session, rows, Loose, on_conflict="skip", max_errors=2, batch_size=size
        )
        assert [(1, "key"), (2, "key")] == [(r.line, r.reason) for r in report.rejects]
    assert {"c": None} == await stored(session)


async def test_refused_rows_name_nothing(session: AsyncSession) -> None:
    """What a row names that its model refuses is not looked up."""

    class Whole(Spec[Book]):
        title: str
        isbn: str
        author: Ref[Author]

        @model_validator(mode="after")
        def check(self) -> Self:
            if self.title == "bad":
                raise ValueError("bad")
            return self

    await load(session, [{"code": "a"}, {"code": "b"}])
    rows = [
        {"title": "t", "isbn": "1", "author": "a"},
        {"title": "bad", "isbn": "2", "author": "hidden"},
        {"title": "bad", "isbn": "3", "author": "a"},
        {"title": "u", "isbn": "4", "author": "b"},
    ]
    asked: list[str] = []
    engine: Any = session.get_bind()

    def executing(c: Any, cursor: Any, sql: str, given: Any, *_: Any) -> None:
        asked.append(repr(given))

    sync_engine = getattr(engine, "sync_engine", engine)
    event.listen(sync_engine, "before_cursor_execute", executing)
    report = await load(session, rows, Whole, max_errors=None)
    event.remove(sync_engine, "before_cursor_execute", executing)
    assert (2, 2) == (report.created, report.rejected)
    assert 2 == report.references["Author"].resolved
    assert "hidden" not in "".join(asked)
    found = await session.execute(select(Book.title, Author.code).join(Book.author))
    assert {("t", "a"), ("u", "b")} == {tuple(row) for row in found}


async def test_mapped_class(session: AsyncSession, tmp_path: Path) -> None:
    """Of a mapped class a Spec is made, with its columns and references."""
    made = spec_of(Book)
    assert {"title", "isbn", "author", "author_id"} <= set(made.model_fields)
    await load(session, [{"code": "a"}], Author)
    [path] = write(tmp_path, one="title,isbn,author\nt,1,a\nu,2,x\n")
    report = await load(session, path, Book, max_errors=None)
    assert (1, 1) == (report.created, report.rejected)
    count = await session.scalar(select(func.count()).select_from(Book))
    assert 1 == count
    with pytest.raises(LoadError, match="is not a mapped class"):
        await load(session, path, str)
    with pytest.raises(TypeError, match="unexpected keyword argument 'delimeter'"):
        await load(session, path, Book, delimeter=";")


@pytest.mark.parametrize("kind", ["jsonl", "rows", "csv"])
async def test_ignored(session: AsyncSession, tmp_path: Path, kind: str) -> None:
    """Columns that are not read are no error; others that are unknown still are."""
    rows = [{"code": "a", "name": "A", "note": "x"}, {"code": "b", "nome": "B"}]
    source: Any = rows
    if kind == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    elif kind == "csv":
        [source] = write(tmp_path, one="code,name,note,nome\na,A,x,\n")
        with pytest.raises(LoadError, match="knows no column 'nome'"):
            await load(session, source, ignore=["note"])
        await load(session, source, ignore=["note", "nome"])
        assert {"a": "A"} == await stored(session)
        return
    report = await load(session, source, ignore=["note"], max_errors=1)
    assert {"a": "A"} == await stored(session)
    [reject] = report.rejects
    assert (2, "nome", "extra_forbidden") == (reject.line, reject.field, reject.reason)
    assert "unknown field 'nome'" == reject.message
    report = await load(session, source, max_errors=None, on_conflict="skip")
    assert [(1, "note"), (2, "nome")] == [(r.line, r.field) for r in report.rejects]


class Validated(AuthorIn):
    @model_validator(mode="after")
    def same(self) -> Self:
        return self


@pytest.mark.parametrize("into", [AuthorIn, Validated])
@pytest.mark.parametrize("kind", ["jsonl", "rows", "csv"])
async def test_ignored_field(
    session: AsyncSession, tmp_path: Path, kind: str, into: Any
) -> None:
    """What the model would read is left out of a table and of mappings."""
    rows = [{"code": "a", "name": "A"}]
    source: Any = rows
    if kind == "csv":
        [source] = write(tmp_path, one="code,name\na,A\n")
    elif kind == "jsonl":
        source = tmp_path / "a.jsonl"
        source.write_text(json.dumps(rows[0]))
        with pytest.raises(
            LoadError, match="ignore names 'name', which AuthorIn reads"
        ):
            await load(session, source, ignore=["name"])
        return
    await load(session, source, ignore=["name"])
    assert {"a": None} == await stored(session)


async def test_unknown_columns(session: AsyncSession, tmp_path: Path) -> None:
    """The error says what would help."""
    [path] = write(tmp_path, one="Code,Name,note\na,A,x\n")
    with pytest.raises(LoadError, match=r"say header='loose' if .* say ignore= or set"):
        await load(session, path)
    with pytest.raises(LoadError, match=r"knows no column 'note' \(.*\); to leave"):
        await load(session, path, header="loose")
    await load(session, path, header="loose", ignore=["note"])
    assert {"a": "A"} == await stored(session)


async def test_guesses(session: AsyncSession, tmp_path: Path) -> None:
    """What was taken for granted is in the report."""
    [path] = write(tmp_path, one="code;name\na;A\n")
    report = await load(session, path)
    assert {"a": "A"} == await stored(session)
    assert ["';' is between the fields"] == [each[:25] for each in report.guesses]
