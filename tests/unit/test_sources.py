"""Reading sources: records, their lines, and what cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure import LoadError
from tenure.bulk.read import ReadOptions, Records, plain


def read(source: Any, **options: Any) -> list[tuple[int, Any]]:
    with Records(source, ReadOptions(**options)) as records:
        return records.take(100_000)


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


class TestCsv:
    def test_lines(self, tmp_path: Path) -> None:
        """A record has the line it begins on, whatever came before."""
        text = 'a,b\r\n1,"two\nlines"\r\n\r\n3,"x\r\n\r\ny"\r\n4,5\r\n'
        path = written(tmp_path / "s.csv", text)

        assert [
            (2, ["1", "two\nlines"]),
            (5, ["3", "x\r\n\r\ny"]),
            (8, ["4", "5"]),
        ] == read(path)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            # Never closed: the lines after it are records of their own.
            ('3,"x\n4,5\n6,7\n', {2: "never closed", 3: ["4", "5"], 4: ["6", "7"]}),
            ('3,"5" tall\n4,5\n', {2: "middle of a field", 3: ["4", "5"]}),
            # Closed by the quote of a later line.
            (
                '3,"x\n4,5\n6,"y"\n7,8\n',
                {2: "in a later line", 3: ["4", "5"], 4: ["6", "y"], 5: ["7", "8"]},
            ),
            # What follows may be the rest of the broken field.
            (
                '3,"x\ny"z,1\n4,5\n',
                {2: "in a later line", 3: "do not match", 4: ["4", "5"]},
            ),
            # It opened another field, so what follows is none of ours, whatever it is.
            (
                '1,"bad"x,"multi\n2,fake\nend",y\n4,5\n',
                {2: "middle of", 3: "rest of a", 4: "rest of a", 5: ["4", "5"]},
            ),
            # An odd quote that closes nothing is one of a text.
            (
                '1,"bad"x,"\n2,b\n3,5" tall\n4,5\n',
                {
                    2: "middle of",
                    3: ["2", "b"],
                    4: ["3", '5" tall'],
                    5: ["4", "5"],
                },
            ),
            # A quote that is a character of a field, as everywhere.
            ('3,5" tall\n', {2: ["3", '5" tall']}),
            ('3,"x ""y"" z"\n', {2: ["3", 'x "y" z']}),
        ],
    )
    def test_broken(self, text: str, expected: dict[int, Any]) -> None:
        """What is no record is one bad line, and never another text than was meant."""
        for size in (1, 2, 100):
            with Records(
                io.StringIO(f"a,b\n{text}"), ReadOptions(format="csv")
            ) as records:
                found: dict[int, Any] = {}
                while some := records.take(size):
                    found.update(some)
            assert list(expected) == list(found)
            for line, record in expected.items():
                if isinstance(record, str):
                    assert record in found[line].message
                    assert "quotes" == found[line].reason
                    assert text.splitlines()[line - 2] == plain(found[line], ["a", "b"])
                else:
                    assert record == found[line]

    def test_lines_are_not_kept(self) -> None:
        """After a quote that is never closed, the lines are read in one go."""
        text = '3,"x\n' + '4,""\n' * 5_000
        with Records(io.StringIO(f"a,b\n{text}"), ReadOptions(format="csv")) as records:
            lines: Any = records._lines
            before = [records.take(500) and len(lines._blocks) for _ in range(10)]
            assert [(5_002, ["4", None])] == records.take(500)
        # All are read by the first, and let go block by block.
        assert sorted(before, reverse=True) == before
        assert before[-1] <= 2 < before[0]

    def test_long_field(self) -> None:
        """A field may have any length, and other readers keep their limit."""
        before = csv.field_size_limit()
        long = "x" * 3 * before
        assert [(2, ["1", long])] == read(io.StringIO(f"a,b\n1,{long}\n"), format="csv")
        assert before == csv.field_size_limit()

    def test_header(self, tmp_path: Path) -> None:
        """The first line names the columns; a byte order mark is none of theirs."""
        path = written(tmp_path / "s.csv", b"\xef\xbb\xbfa,b\n1,2\n")
        with Records(path, ReadOptions()) as records:
            assert ["a", "b"] == records.header
            assert [(2, ["1", "2"])] == records.take(100_000)

    @pytest.mark.parametrize(
        ("null", "expected"),
        [
            ([""], [None, "NA", "x"]),
            (["NA"], ["", None, "x"]),
            (["", "NA"], [None, None, "x"]),
            ([], ["", "NA", "x"]),
        ],
    )
    def test_null(self, null: list[str], expected: list[str | None]) -> None:
        """The texts that mean null are those asked for, in rows only."""
        source = io.StringIO("NA,b,c\n,NA,x\n")
        with Records(source, ReadOptions(format="csv", null=null)) as records:
            assert ["NA", "b", "c"] == records.header
            assert [(2, expected)] == records.take(100_000)

    @pytest.mark.parametrize("text", ["", "\n", "\n\n"])
    def test_empty(self, text: str) -> None:
        """A source without a header is an error that says so."""
        if text:
            assert [] == read(io.StringIO(text + "a\n"), format="csv")
        with pytest.raises(LoadError, match="is empty"):
            read(io.StringIO(text), format="csv")

    def test_only_a_header(self) -> None:
        """A header without rows is a source without rows."""
        assert [] == read(io.StringIO("a,b\n"), format="csv")

    def test_twice(self) -> None:
        """Two columns of one name are an error that names it."""
        with pytest.raises(LoadError, match="names the column 'b' twice"):
            read(io.StringIO("a,b,b\n1,2,3\n"), format="csv")

    def test_other_widths(self) -> None:
        """A record of another width is given as it is."""
        assert [(2, ["1"]), (3, ["1", "2", "3"])] == read(
            io.StringIO("a,b\n1\n1,2,3\n"), format="csv"
        )

    def test_nul(self) -> None:
        """A NUL is a character like any other."""
        assert [(2, ["x\0y"])] == read(io.StringIO("a\nx\0y\n"), format="csv")

    @given(
        st.lists(
            st.lists(
                st.text(st.characters(blacklist_categories=["Cs"])), min_size=2,
                max_size=2,
            ),
            max_size=8,
        )
    )  # fmt: skip
    def test_round_trip(self, rows: list[list[str]]) -> None:
        """What a CSV writer wrote is read back, each record on its own line."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, quoting=csv.QUOTE_ALL)
        lines = []
        writer.writerow(["a", "b"])
        for row in rows:
            lines.append(1 + _line_ends(text.getvalue()))
            writer.writerow(row)
        text.seek(0)

        assert list(zip(lines, rows, strict=True)) == read(text, format="csv", null=[])


def _line_ends(text: str) -> int:
    return text.count("\n") + text.count("\r") - text.count("\r\n")


class TestJsonLines:
    def test_lines(self, tmp_path: Path) -> None:
        """Each line is a record, with its number; blank ones are none."""
        path = written(tmp_path / "s.jsonl", '{"a": 1}\n\n  \n{"a": 2}')

        assert [(1, '{"a": 1}\n'), (4, '{"a": 2}')] == read(path)

    @pytest.mark.parametrize("name", ["s.jsonl", "s.ndjson", "S.JSONL"])
    def test_names(self, tmp_path: Path, name: str) -> None:
        """Both endings in use are known, in either case."""
        assert [(1, "{}")] == read(written(tmp_path / name, "{}"))

    def test_empty(self, tmp_path: Path) -> None:
        """An empty file has no records."""
        assert [] == read(written(tmp_path / "s.jsonl", ""))

    def test_separators_inside(self, tmp_path: Path) -> None:
        """Only a line feed ends a line: U+2028 is a character of a text."""
        path = written(tmp_path / "s.jsonl", '{"a": "x\u2028y"}\n{}\n')

        assert [1, 2] == [line for line, _ in read(path)]


class TestGzip:
    def test_read(self, tmp_path: Path) -> None:
        """A compressed file is read as what it holds."""
        path = written(tmp_path / "s.csv.gz", gzip.compress(b"a\n1\n"))

        assert [(2, ["1"])] == read(path)

    def test_position(self, tmp_path: Path) -> None:
        """Progress is counted in bytes as stored."""
        data = gzip.compress(b"a\n" * 10_000)
        with Records(written(tmp_path / "s.csv.gz", data), ReadOptions()) as records:
            assert len(data) == records.total
            records.take(100_000)
            assert len(data) == records.position

    @pytest.mark.parametrize("broken", ["cut", "wrong"])
    def test_broken(self, tmp_path: Path, broken: str) -> None:
        """A broken file is an error with a line, and nothing stays open."""
        data = gzip.compress(b"a\n" + b"12345\n" * 50_000)
        data = data[:-20] if broken == "cut" else b"no gzip file"
        path = written(tmp_path / "s.csv.gz", data)
        with pytest.raises(LoadError, match="cannot be read at line"):
            read(path)


class TestSources:
    @pytest.mark.parametrize("name", ["s.csv", "s.jsonl"])
    def test_not_utf_8(self, tmp_path: Path, name: str) -> None:
        """Bytes of another encoding are one bad line, which names the option."""
        good = b"1" if name == "s.csv" else b"{}"
        path = written(tmp_path / name, b"a\n" + good + b"\nK\xf6ln\n" + good)

        found = dict(read(path))

        assert [2, 3, 4] == list(found)[-3:]
        assert "K\\xf6ln" == plain(found[3], ["a"])
        assert "encoding" == found[3].reason
        assert "say encoding=" in found[3].message
        assert found[3].field == ("a" if name == "s.csv" else "")
        assert "Köln" in str(read(path, encoding="latin-1"))
        assert "K\ufffdln" in str(read(path, errors="replace"))

    @pytest.mark.parametrize("name", ["s.csv", "s.jsonl"])
    def test_strict(self, tmp_path: Path, name: str) -> None:
        """Who wants the load to end with them can have that."""
        path = written(tmp_path / name, b"a\n1\nK\xf6ln\n")
        with pytest.raises(LoadError, match="not UTF-8, at or after line"):
            read(path, errors="strict")

    def test_rows(self) -> None:
        """Mappings are numbered from one, and given as they are."""
        row = {"a": 1}

        assert [(1, row), (2, row)] == read(iter([row, row]))

    def test_other_rows(self) -> None:
        """Anything else in an iterable is an error that says where."""
        with pytest.raises(LoadError, match="row 2 of the source is no mapping"):
            read([{"a": 1}, ["a"]])

    def test_open_files(self, tmp_path: Path) -> None:
        """A file may be open already, as text or as bytes; it stays open."""
        path = written(tmp_path / "s.csv", "a\n1\n")
        with path.open(encoding="utf-8") as text, path.open("rb") as binary:
            assert [(2, ["1"])] == read(text) == read(binary)
            assert not text.closed
            assert not binary.closed

    @pytest.mark.parametrize("source", [1, None, object()])
    def test_no_source(self, source: Any) -> None:
        """What cannot be read at all is refused."""
        with pytest.raises(LoadError, match="a source is a path"):
            read(source)

    def test_format(self, tmp_path: Path) -> None:
        """A name that does not tell needs the format to be said."""
        path = written(tmp_path / "s.txt", "a\n1\n")
        with pytest.raises(LoadError, match="cannot tell the format"):
            read(path)

        assert [(2, ["1"])] == read(path, format="csv")

    def test_missing(self, tmp_path: Path) -> None:
        """A file that is not there is an error that names it."""
        with pytest.raises(LoadError, match=r"cannot read '.*none\.csv'"):
            read(tmp_path / "none.csv")


class TestPlain:
    def test_kinds(self) -> None:
        """A rejected record is given as an object where it can be."""
        assert {"a": "1"} == plain(["1"], ["a"])
        assert ["1", "2"] == plain(["1", "2"], ["a"])
        assert {"a": 1} == plain('{"a": 1}\n', None)
        assert "{a" == plain("{a\n", None)
        assert {"a": 1} == plain({"a": 1}, None)
