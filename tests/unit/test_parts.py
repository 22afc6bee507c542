"""Sources cut into parts: what these give together, and what cannot be cut."""

from __future__ import annotations

import codecs
import gzip
import io
import pickle
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pyarrow import parquet

from tenure import LoadError
from tenure.bulk.read import (
    Accepted,
    Bad,
    Part,
    Pulled,
    ReadOptions,
    Records,
    boundaries,
    cut,
)

AB = Accepted(frozenset("ab"), is_open=False)
Given = tuple[Any, ...]


def taken(records: Records) -> list[Given]:
    """Give everything that can be asked of the records of a source."""
    return [
        (line, row, records.place(line), records.named(line))
        for line, row in records.take(100_000)
    ]


def whole(source: Any, **options: Any) -> Given:
    """Read a source in one go."""
    try:
        with Records(source, ReadOptions(**options), accepted=AB) as records:
            found = taken(records)
            return records.header, records.json, found, records.guesses
    except LoadError as error:
        return (str(error),)


def parted(source: Any, size: int, **options: Any) -> Given:
    """Read its parts, each as another process would."""
    found: list[Given] = []
    reading = ReadOptions(**options)
    try:
        with cut(source, reading, accepted=AB, size=size) as parts:
            for number, part in enumerate(parts):
                assert number == part.number
                sent = pickle.loads(pickle.dumps(part))
                assert part == sent
                with Records(sent, reading, accepted=AB) as records:
                    found += taken(records)
                    assert (parts.header, parts.json) == (records.header, records.json)
                    assert records.total == records.position
                    assert set(records.guesses) <= set(parts.guesses)
            return parts.header, parts.json, found, parts.guesses
    except LoadError as error:
        return (str(error),)


def written(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def check(source: Any, **options: Any) -> None:
    """Cut in all ways: the parts give what the source gives."""
    expected = whole(source, **options)
    for size in (*range(1, 12), 20, 50, 10_000):
        assert expected == parted(source, size, **options), size


def parts_of(source: Any, size: int, **options: Any) -> list[Part]:
    with cut(source, ReadOptions(**options), accepted=AB, size=size) as parts:
        return list(parts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Hold the bytes from which the reader of CSV was asked."""
    asked: list[int] = []
    by_reading = boundaries.Text._by_reading

    def spied(text: Any, start: int, line: int, wanted: int) -> Any:
        asked.append(start)
        return by_reading(text, start, line, wanted)

    monkeypatch.setattr(boundaries.Text, "_by_reading", spied)
    return asked


PIECES = [
    *(b"a", b"b", b",", b",", b'"', b'"', b"\n", b"\n", b"\r", b"\r\n", b"5", b" "),
    *(b"#", "é".encode(), "\u00a0".encode(), b"\xff", b"\\", b'""', b'"\n', b'",'),
    *(b'\n"', b'5" nail', codecs.BOM_UTF8, b";", b"NA", b"\0"),
]
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "trim": st.just(True),
        "comment": st.sampled_from(["#", "5", '"', "é"]),
        "escapechar": st.just("\\"),
        "quotechar": st.sampled_from([None, "5", "é", "'"]),
        "null": st.just(["NA", ""]),
        "empty_quoted": st.just("text"),
        "header": st.sampled_from(["loose", ["a", "b"]]),
        "skip_rows": st.integers(0, 3),
        "delimiter": st.sampled_from([";", "é", " "]),
        "errors": st.sampled_from(["replace", "surrogateescape", "backslashreplace"]),
        "encoding": st.sampled_from(["utf-8", "utf-8-sig", "latin-1", "cp1252"]),
    },
)
BLOCKS = st.fixed_dictionaries(
    {
        "_BLOCK": st.sampled_from([1, 5, 20, 1 << 17]),
        "_AHEAD": st.sampled_from([1, 3, 1 << 14]),
        "_LINES": st.sampled_from([1, 2, 100]),
    }
)
LARGE = {"_BLOCK": 1 << 17, "_AHEAD": 1 << 14, "_LINES": 100}


class TestCsv:
    @given(
        st.sampled_from([b"a,b\n", b'"a","b"\r\n', b"", codecs.BOM_UTF8 + b"a,b\r"]),
        st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join),
        OPTIONS,
        BLOCKS,
        st.sampled_from([1, 1, 2, 3, 5, 8, 13, 30]),
    )
    @example(b"a,b\n", b'1,5" nail\n2,"x\ny"\n3,4\n', {}, LARGE, 1)
    # Only a reader of the right encoding sees that the second line closes a field.
    @example(b"a,b\n", '1,"bad"x,"open\nend"\u00a0\n2,"x"\n'.encode(), {}, LARGE, 1)
    # A quote that closes nothing until the end makes all of it doubtful.
    @example(b"a,b\n", b'1,"x\n2,"y\n3,4"\n5,6\n7"8,9\n', {}, LARGE, 1)
    # A comment after a record that was read once more without its blanks.
    @example(b"a,b\n", b'"x" ,1\n#"\n1,2\n', {"trim": True, "comment": "#"}, LARGE, 1)
    # What parses without an error ends inside of a record that follows a comment.
    @example(b"a,b\n", b'#,"\n1,"\n2",3\n4,5\n', {"comment": "#"}, LARGE, 10)
    @example(b"a,b\n", b"x\\\ny,1\n2,3\n", {"escapechar": "\\"}, LARGE, 1)
    @example(b"a,b\n", "1,éx\nyé\n2,3\n".encode(), {"quotechar": "é"}, LARGE, 1)
    # What is no text becomes a quote.
    @example(
        b"a,b\n",
        b"1,\xff\n2\\,3\n4,5\n",
        {"quotechar": "\\", "errors": "backslashreplace"},
        LARGE,
        1,
    )
    # A quote after the mark is one at the beginning of a field.
    @example(codecs.BOM_UTF8, b'"x\ny",1\n2,3\n', {"header": ["a", "b"]}, LARGE, 1)
    def test_any(
        self,
        folder: Path,
        header: bytes,
        text: bytes,
        options: dict[str, Any],
        blocks: Any,
        size: int,
    ) -> None:
        """Whatever a text holds, its parts give what all of it gives."""
        path = written(folder / "any.csv", header + text)
        with patch.multiple(boundaries, **blocks):
            assert whole(path, **options) == parted(path, size, **options)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a,b\n1,2\n3,4\n5,6", ["a,b\n1,2\n", "3,4\n", "5,6"]),
            ("a,b\r\n1,2\r\n3,4\r\n", ["a,b\r\n1,2\r\n", "3,4\r\n"]),
            ("a,b\r1,2\r\r3,4\r", ["a,b\r1,2\r", "\r", "3,4\r"]),
            # Inside of quotes is no end.
            ('a,b\n1,"x\ny"\n3,"4"\n', ['a,b\n1,"x\ny"\n', '3,"4"\n']),
            # A quote inside of a field opens nothing.
            ('a,b\n1,5" x\n3,6" x\n', ['a,b\n1,5" x\n', '3,6" x\n']),
            # What follows a broken record is cut when it is certain again.
            (
                'a,b\n1,"x"y,"z\n2,3\n4,5"\n6,7\n8,9\n',
                ['a,b\n1,"x"y,"z\n2,3\n4,5"\n', "6,7\n", "8,9\n"],
            ),
        ],
    )
    def test_bytes(self, folder: Path, text: str, expected: list[str]) -> None:
        """Each part is as short as it can be, and none is empty."""
        path = written(folder / "bytes.csv", text)
        data = path.read_bytes()

        found = [data[part.start : part.stop] for part in parts_of(path, 1)]

        assert expected == [each.decode() for each in found]
        assert [len(each) for each in found] == [
            each.size for each in parts_of(path, 1)
        ]
        check(path)

    @pytest.mark.parametrize("text", ["a,b\n", "a,b", "a,b\n\n\n", "a,b\n#1\n#2\n"])
    def test_no_rows(self, folder: Path, text: str) -> None:
        """A file without rows has one part, or some without rows."""
        path = written(folder / "header.csv", text)
        assert parts_of(path, 1, comment="#")
        check(path, comment="#")

    @pytest.mark.parametrize("text", ["", "\n\n", "x,a,a\n1,2\n3,4\n", '"a\n1\n2\n'])
    def test_no_header(self, folder: Path, text: str) -> None:
        """What is wrong with a header is said before anything is cut."""
        path = written(folder / "none.csv", text)
        [message] = whole(path)
        with pytest.raises(LoadError) as caught:
            cut(path, ReadOptions(), accepted=AB, size=1)
        assert message == str(caught.value)

    def test_guessed(self, folder: Path) -> None:
        """What is between fields is guessed once, from the header."""
        path = written(folder / "guessed.csv", "a;b\n1,1;2\n3,3;4\n")
        check(path)
        assert ["';' is between"] == [each[:14] for each in whole(path)[3]]
        for part in parts_of(path, 1):
            with Records(part, ReadOptions(), accepted=AB) as records:
                assert whole(path)[3] == records.guesses

    def test_encoding(self, folder: Path) -> None:
        """A mark belongs to the beginning of a file, and to no part of it."""
        bom = codecs.BOM_UTF8
        path = written(folder / "mark.csv", bom + b"a,b\n" + bom + b"1,2\n\xff,3\n")
        check(path)
        _, _, rows, _ = whole(path)
        assert "\ufeff1" == rows[0][1][0]
        assert isinstance(rows[1][1], Bad)

    def test_strict(self, folder: Path) -> None:
        """A part ends with bytes that are no text, if the whole would."""
        # The text is decoded in blocks; the header's has to be a good one.
        rows = b"1,2\n" * 5_000
        path = written(folder / "strict.csv", b"a,b\n" + rows + b"\xff,3\n4,5\n")
        *_, before, bad, last = parts_of(path, 1, errors="strict")
        for part, expected in ((before, 5_001), (last, 5_003)):
            with Records(part, ReadOptions(errors="strict")) as records:
                assert [expected] == [line for line, _ in records.take(9)]
        with Records(bad, ReadOptions(errors="strict")) as records:
            with pytest.raises(LoadError, match="at or after line 5002"):
                records.take(9)

    def test_start(self, folder: Path) -> None:
        """A part can be begun later as a source can: by the line."""
        path = written(folder / "start.csv", "a,b\n1,2\n3,4\n5,6\n")
        _, part = parts_of(path, 10)
        with Records(part, ReadOptions(), accepted=AB, start=4) as records:
            assert [(4, ["5", "6"])] == records.take(9)

    def test_without_quotes(self, folder: Path, slow: list[int]) -> None:
        """Where there are no quotes, nothing is read that could be looked through."""
        path = written(folder / "easy.csv", '"a","b"\n' + "1,é\n" * 1_000)
        assert 1_000 == len(parts_of(path, 1))
        assert [] == slow

    def test_some_quotes(self, folder: Path, slow: list[int]) -> None:
        """Where a record has several lines, only the stretch around it is read."""
        easy = "1,2\n" * 1_000
        path = written(folder / "some.csv", f'a,b\n{easy}1,"2"\n1,"\n"\n{easy}')
        assert 2_002 == len(parts_of(path, 1))
        assert [4 + len(easy) + 6] == slow

    def test_long_field(self, folder: Path, slow: list[int]) -> None:
        """A field with quotes may have any length."""
        long = "x" * 200_000
        path = written(folder / "long.csv", f'a,b\n1,"{long}"\n2,3\n')
        assert 2 == len(parts_of(path, 1))
        assert [] == slow

    def test_last(self, folder: Path, slow: list[int]) -> None:
        """What is not cut any more is not read."""
        text = "a,b\n" + '1,"\n"\n' * 100 + '2,"x\n'
        path = written(folder / "last.csv", text)
        [part] = parts_of(path, len(text))
        assert part.stop is None
        assert [] == slow
        assert 2 == len(parts_of(path, len(text) - 9))
        assert [4] == slow


class TestLazily:
    @pytest.mark.parametrize("row", ["1,2\n", '1,"2"\n', '1,"\n"\n'])
    def test_bytes(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, row: str
    ) -> None:
        """A part can be read while those after it are still to be cut."""
        monkeypatch.setattr(boundaries, "_AHEAD", 1_000)
        path = written(folder / "lazily.csv", "a,b\n" + row * 100_000)
        read = 0
        taking = boundaries.Text._read

        def counted(text: Any, start: int, size: int) -> bytes:
            nonlocal read
            data = taking(text, start, size)
            read = max(read, start + len(data))
            return data

        monkeypatch.setattr(boundaries.Text, "_read", counted)
        with cut(path, ReadOptions(), size=10_000) as parts:
            first = next(parts)
            assert 10_000 <= first.size < 10_100
            assert first.size <= read < 30_000
            with Records(first, ReadOptions()) as records:
                assert 1_600 < len(records.take(10_000))
            next(parts)
            assert read < 50_000

    def test_closed(self, folder: Path) -> None:
        """Who has enough of them closes the files."""
        path = written(folder / "closed.csv", "a,b\n" + '1,"2"\n' * 100)
        with cut(path, ReadOptions(), size=1) as parts:
            next(parts)
        assert [] == list(parts)


class TestJsonLines:
    @given(
        st.lists(
            st.sampled_from([b'{"a": 1}', b'"', b"\n", b"\r", b"\r\n", b" ", b"\xff"]),
            max_size=30,
        ).map(b"".join),
        BLOCKS,
        st.sampled_from(["reject", "replace", "backslashreplace"]),
    )
    def test_any(self, folder: Path, text: bytes, blocks: Any, errors: str) -> None:
        """Each line may begin a part."""
        path = written(folder / "any.jsonl", text)
        with patch.multiple(boundaries, **blocks):
            for size in (1, 7):
                assert whole(path, errors=errors) == parted(path, size, errors=errors)

    def test_lines(self, folder: Path) -> None:
        """Lines are those of the text."""
        path = written(folder / "x.jsonl", '{"a": "\u2028"}\r\n\n{}')
        assert [(0, 14), (14, 15), (15, 17)] == [
            (part.start, part.stop) for part in parts_of(path, 1)
        ]
        check(path)


class TestParquet:
    def test_groups(self, tmp_path: Path) -> None:
        """Parts are row groups, and rows have the numbers they have in the file."""
        table = pa.table({"a": list(range(10)), "b": ["x"] * 10})
        parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3)
        parts = parts_of(tmp_path / "x.parquet", 1)
        assert [range(n, n + 1) for n in range(4)] == [part.groups for part in parts]
        check(tmp_path / "x.parquet")
        two = max(part.size for part in parts) + 1
        assert [range(2), range(2, 4)] == [
            part.groups for part in parts_of(tmp_path / "x.parquet", two)
        ]
        assert whole(tmp_path / "x.parquet") == parted(tmp_path / "x.parquet", two)
        with Records(parts[1], ReadOptions(), start=6) as records:
            assert [(6, (5, "x"))] == records.take(9)[-1:]

    def test_several(self, tmp_path: Path) -> None:
        """Rows are counted through, also where a file of another kind follows."""
        for name in "pq":
            table = pa.table({"a": ["1", "2", "3"], "b": ["x"] * 3})
            parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=2)
        written(tmp_path / "a.csv", "b,a\n1,2\n3,4\n")
        written(tmp_path / "z.csv", "b,a\n1,2\n3,4\n")
        check(str(tmp_path / "*"))


class TestSeveral:
    def test_orders(self, tmp_path: Path) -> None:
        """Columns have the order of the first file, lines are counted through."""
        written(tmp_path / "1.csv", "a,b\n1,2\n3,4\n")
        written(tmp_path / "2.csv", '\n"b";"a"\n5;"6\n6"\n7;8\n9;"x"y\n')
        written(tmp_path / "3.csv", "b,a\n")
        written(tmp_path / "4.csv", "b,a\n9,\xff\n10,11")
        check(str(tmp_path / "*.csv"))
        check(sorted(tmp_path.glob("*.csv")), header="loose", trim=True)

    def test_folders(self, tmp_path: Path) -> None:
        """What the folders say is in the rows of each part."""
        for name, place in (
            ("1", "x"),
            ("2", "y%20z"),
            ("3", "__HIVE_DEFAULT_PARTITION__"),
        ):
            (tmp_path / f"b={place}").mkdir()
            path = tmp_path / f"b={place}" / f"{name}.csv"
            # A column of the file itself comes first.
            path.write_text("A,c\n1,2\n3,4\n" if name == "1" else "c,A\n5,6\n7,8\n")
        check(tmp_path, header="loose", ignore=["c"])
        check(tmp_path)

    def test_packed(self, tmp_path: Path) -> None:
        """A compressed file, one of an archive, and a document are a part each."""
        with zipfile.ZipFile(tmp_path / "1.zip", "w") as archive:
            archive.writestr("x.csv", "a,b\n1,2\n3,4\n")
            archive.writestr("y.csv", "b,a\n1,2\n3,4\n")
        written(tmp_path / "2.csv.gz", gzip.compress(b'a,b\n1,"2\n2"\n3,4\n'))
        written(tmp_path / "3.csv", "a,b\n1,2\n3,4\n".encode("utf-16"))
        written(tmp_path / "4.csv", "a,b\n1,2\n3,4\n")
        written(tmp_path / "5.csv.gz", gzip.compress(b"a,b\n1,2\n"))
        source = str(tmp_path / "*")
        assert 7 == len(parts_of(source, 1))
        check(source)
        for n in "12":
            written(tmp_path / f"{n}.json", '[{"a": 1}, {"a": 2}]')
        assert 2 == len(parts_of(str(tmp_path / "*.json"), 1))
        check(str(tmp_path / "*.json"))

    def test_other_columns(self, tmp_path: Path) -> None:
        """A file with other columns is an error when its turn comes."""
        written(tmp_path / "1.csv", "a,b\n1,2\n")
        written(tmp_path / "2.csv", "a,c\n1,2\n")
        source = str(tmp_path / "*.csv")
        check(source)
        parts = cut(source, ReadOptions(), size=1)
        assert "1.csv" == Path(next(parts).file.name).name
        with pytest.raises(LoadError, match="has other columns than"):
            next(parts)

    def test_damaged(self, tmp_path: Path) -> None:
        """A file that cannot be counted is an error that names it."""
        written(tmp_path / "1.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 9_000)[:-9])
        written(tmp_path / "2.csv", "a,b\n1,2\n")
        with pytest.raises(LoadError, match=r"1\.csv\.gz.*cannot be read at line"):
            parts_of(str(tmp_path / "*"), 1)


class TestRefused:
    @pytest.mark.parametrize(
        ("name", "data", "options", "message"),
        [
            ("x.csv.gz", gzip.compress(b"a,b\n1,2\n", mtime=0), {}, "it is compressed"),
            (
                "x.json",
                b'[{"a": 1}]',
                {},
                "it is one JSON document; write it as JSON L",
            ),
            ("x.csv", "a,b\n1,2\n".encode("utf-16"), {}, "reader of UTF-16 can tell"),
            (
                "x.csv",
                b"a,b\n1,2\n",
                {"encoding": "shift-jis"},
                "of SHIFT_JIS can tell",
            ),
            ("x.csv", b"a,b\n1,2\n", {"encoding": "mac-arabic"}, "MAC-ARABIC can tell"),
            ("x.jsonl", b"{}\n{}\n", {"errors": "ignore"}, "say errors='replace'"),
        ],
    )
    def test_one_piece(
        self, tmp_path: Path, name: str, data: bytes, options: Any, message: str
    ) -> None:
        """A file to be read in one go is refused, unless it is shorter than a part."""
        path = written(tmp_path / name, data)
        with pytest.raises(LoadError, match=message) as caught:
            cut(path, ReadOptions(**options), size=len(data) - 1)
        assert f"{str(path)!r} cannot be cut into parts: " in str(caught.value)
        assert "\n" not in str(caught.value)
        assert whole(path, **options) == parted(path, len(data), **options)

    def test_member(self, tmp_path: Path) -> None:
        """A file in an archive is compressed, too."""
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr("x.csv", "a,b\n1,2\n3,4\n")
        with pytest.raises(LoadError, match="it is compressed"):
            cut(tmp_path / "x.zip", ReadOptions(), size=1)

    def test_row_group(self, tmp_path: Path) -> None:
        """So is a Parquet file with one row group."""
        parquet.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
        with pytest.raises(LoadError, match="it has a single row group; write it with"):
            cut(tmp_path / "x.parquet", ReadOptions(), size=1)

    def test_what_others_cannot_open(self, tmp_path: Path) -> None:
        """What others cannot open is refused, with what to do."""

        async def rows() -> AsyncIterator[Any]:
            yield {"a": 1}

        path = written(tmp_path / "x.csv", "a,b\n1,2\n")
        [part] = parts_of(path, 100)
        with path.open("rb") as file:
            for source, message in (
                (file, "an open file cannot be cut into parts, .*give its path"),
                (io.StringIO("a"), "an open file cannot be cut"),
                ([{"a": 1}], "rows of a list cannot be cut .* the path of a file"),
                (iter([]), "rows of a list_iterator cannot be cut"),
                (rows(), "rows of a async_generator cannot be cut"),
                (Pulled(rows()), "rows of a Pulled cannot be cut"),
                (part, "a part cannot be cut again"),
                (1, "a source is a path"),
                (str(tmp_path / "*.jsonl"), "no file matches"),
                ("/dev/null", "cannot tell the format"),
            ):
                with pytest.raises(LoadError, match=message):
                    cut(source, ReadOptions(), size=1)
        with pytest.raises(LoadError, match="no file that can be opened again"):
            cut("/dev/null", ReadOptions(format="jsonl"), size=1)

    def test_size(self, tmp_path: Path) -> None:
        """A part has some bytes."""
        with pytest.raises(LoadError, match="is 1 byte or more, not 0"):
            cut(written(tmp_path / "x.csv", "a"), ReadOptions(), size=0)

    def test_options(self, tmp_path: Path) -> None:
        """Options are checked as for the whole."""
        path = written(tmp_path / "x.jsonl", "{}\n{}\n")
        with pytest.raises(LoadError, match="trim has no meaning for JSON Lines"):
            cut(path, ReadOptions(trim=True), size=1)


class TestChanged:
    @pytest.mark.parametrize("data", ["a,b\n", "a,b\n1,2\n3,4\n5,6\n7,8\n"])
    def test_size(self, tmp_path: Path, data: str) -> None:
        """A file that has another size than when it was cut is refused."""
        path = written(tmp_path / "x.csv", "a,b\n1,2\n3,4\n5,6\n")
        parts = [*parts_of(path, 1), *parts_of(path, 100)]
        written(path, data)
        for part in parts:
            with pytest.raises(LoadError, match="bytes, and had 16 when it was cut"):
                with Records(part, ReadOptions()) as records:
                    records.take(9)

    def test_groups(self, tmp_path: Path) -> None:
        """A Parquet file whose row groups are others is refused."""
        path = tmp_path / "x.parquet"
        table = pa.table({"a": [1, 2, 3]})
        parquet.write_table(table, path, row_group_size=1)
        *_, last = parts_of(path, 1)
        parquet.write_table(table, path)
        data = path.read_bytes()
        assert len(data) != last.file.size
        with pytest.raises(LoadError, match="when it was cut into parts"):
            Records(last, ReadOptions())


class TestUrls:
    @pytest.fixture
    def memory(self) -> Iterator[Any]:
        fsspec = pytest.importorskip("fsspec")
        memory = fsspec.filesystem("memory")
        yield memory
        memory.rm("/parts", recursive=True)

    def test_cut(self, memory: Any) -> None:
        """Files elsewhere are cut as those here are."""
        memory.pipe("/parts/1.csv", b"a,b\n1,2\n3,4\n5,6\n")
        memory.pipe("/parts/2.csv", b'b,a\n1,2\n3,"4\n"\n5,6\n')
        assert 3 == len(parts_of("memory://parts/1.csv", 1))
        check("memory://parts/1.csv")
        check("memory://parts/*.csv")

    def test_shorter(self, memory: Any) -> None:
        """A part that is not there any more is an error, not no rows."""
        memory.pipe("/parts/1.csv", b"a,b\n1,2\n3,4\n5,6\n")
        *_, last = parts_of("memory://parts/1.csv", 1)
        memory.pipe("/parts/1.csv", b"a,b\n1,2\n")
        with pytest.raises(LoadError, match="line 4: the file has become shorter"):
            with Records(last, ReadOptions()) as records:
                records.take(9)

    def test_no_seeking(self, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """What a server sends in one go is one part; a single one is refused."""
        for n in "12":
            memory.pipe(f"/parts/{n}.csv", b"a,b\n1,2\n3,4\n5,6\n")

        monkeypatch.setattr(memory, "open", lambda path, mode: _Opened(memory, path))
        with pytest.raises(LoadError, match="its server sends it in one go"):
            cut("memory://parts/1.csv", ReadOptions(), size=1)
        assert 2 == len(parts_of("memory://parts/*.csv", 1))


class _Opened(io.BytesIO):
    """An open file that cannot be sought in."""

    def __init__(self, system: Any, path: str) -> None:
        super().__init__(system.cat(path))

    def seekable(self) -> bool:
        return False

    def seek(self, *_: Any) -> int:
        raise ValueError("cannot seek")
