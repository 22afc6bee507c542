"""The next batch is read and validated while the database writes one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from sqlalchemy import event, func, select

from tenure import AsyncSession, LoadError, LoadReport, RejectedRowsError, Spec
from tenure.bulk.read import Records
from tests.fixtures.models import Author

pytestmark = pytest.mark.anyio


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None


def plainly(code: str) -> str:
    return code


class CheckedIn(Spec[Author]):
    code: Annotated[str, AfterValidator(plainly)]


async def load(
    session: AsyncSession, source: Any, into: Any = AuthorIn, **options: Any
) -> LoadReport:
    async with session.bulk() as bulk:
        return await bulk.load(source, into, **options)


def bind_of(session: Any) -> Any:
    return getattr(session, "sync_session", session).get_bind(Author)


async def codes(session: AsyncSession) -> list[str]:
    return sorted(await session.scalars(select(Author.code)))


@pytest.fixture
def done(session: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note when a batch is read, and when one is written."""
    found: list[str] = []
    take = Records.take

    def taking(self: Records, size: int) -> Any:
        found.append("read")
        return take(self, size)

    def releasing(*_: object) -> None:
        found.append("written")

    monkeypatch.setattr(Records, "take", taking)
    event.listen(bind_of(session), "release_savepoint", releasing)
    return found


class TestOrder:
    @pytest.mark.parametrize("into", [AuthorIn, CheckedIn])
    async def test_of_a_file(
        self, session: AsyncSession, done: list[str], tmp_path: Path, into: Any
    ) -> None:
        """By COPY it is; not where a program's own function may use the session."""
        path = tmp_path / "a.csv"
        path.write_text("code\na\nb\nc\n")
        bind = bind_of(session)

        await load(session, path, into, batch_size=1)

        assert list("abc") == await codes(session)
        assert 4 == done.count("read")
        first = done.index("written")
        is_ahead = bind.dialect.name == "postgresql" and into is AuthorIn
        assert (2 if is_ahead else 1) == done[:first].count("read")

    async def test_of_rows(self, session: AsyncSession, done: list[str]) -> None:
        """Rows may come from the session itself."""
        await load(session, ({"code": code} for code in "abc"), batch_size=1)

        first = done.index("written")
        assert 1 == done[:first].count("read")


class TestErrors:
    async def test_reading(self, session: AsyncSession, tmp_path: Path) -> None:
        """The batch before a damaged line is written and counted first."""
        path = tmp_path / "a.csv"
        lines = [f"a{n}\n".encode() for n in range(3_000)]
        path.write_bytes(b"".join([b"code\n", *lines, b"\xff\n"]))

        with pytest.raises(LoadError, match="UTF-8") as raised:
            await load(session, path, batch_size=1_000, commit="batch", errors="strict")

        report: Any = raised.value.report
        # The text is decoded in blocks, so some of the last lines are lost.
        assert 2_000 <= report.kept == report.rows == len(await codes(session))
        assert report.kept + 2 == report.resume

    async def test_invalid(self, session: AsyncSession, tmp_path: Path) -> None:
        """What is wrong with the next batch does not keep this one from its commit."""
        path = tmp_path / "a.csv"
        path.write_text("code,name\na,A\nb,B\nc\nd,D\n")

        with pytest.raises(RejectedRowsError) as raised:
            await load(session, path, batch_size=2, commit="batch")

        report: Any = raised.value.report
        assert list("ab") == await codes(session)
        assert (2, 4) == (report.kept, report.resume)

    async def test_refused(self, session: AsyncSession, tmp_path: Path) -> None:
        """A batch that is refused is written row by row; the next one is not lost."""
        path = tmp_path / "a.csv"
        path.write_text("code\na\nb\na\nc\nc\nd\n")
        seen: list[tuple[int, int, int]] = []

        def progress(report: LoadReport) -> None:
            seen.append((report.rows, report.rejected, report.bytes_read))

        report = await load(
            session, path, batch_size=2, max_errors=None, progress=progress
        )

        assert list("abcd") == await codes(session)
        assert [4, 6] == [reject.line for reject in report.rejects]
        assert [2, 4, 6, 6] == [rows for rows, _, _ in seen]
        assert [0, 1, 2, 2] == [rejected for _, rejected, _ in seen]
        assert report.bytes_read == report.bytes_total == path.stat().st_size

    async def test_too_long(self, session: AsyncSession, tmp_path: Path) -> None:
        """A row that the server refuses in the last batch undoes all of them."""
        path = tmp_path / "a.csv"
        path.write_text("code\na\n" + "x" * 40 + "\n")
        bind = bind_of(session)
        if bind.dialect.name == "sqlite":
            pytest.skip("SQLite does not look at the length of a text")

        with pytest.raises(RejectedRowsError) as raised:
            await load(session, path, batch_size=1)

        report: Any = raised.value.report
        assert ["data"] == [reject.reason for reject in report.rejects]
        assert 0 == await session.scalar(select(func.count()).select_from(Author))
