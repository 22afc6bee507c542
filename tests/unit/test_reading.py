"""Files as they come: what can be said about them, and what is guessed."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import os
import re
import threading
import zipfile
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from http.server import (
    BaseHTTPRequestHandler,
    SimpleHTTPRequestHandler,
    ThreadingHTTPServer,
)
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tenure import LoadError
from tenure.bulk.read import Accepted, ReadOptions, Records, plain
from tenure.bulk.read.json_files import written as as_json


class Named(io.BytesIO):
    """An open Parquet file."""

    def __init__(self) -> None:
        super().__init__()
        parquet.write_table(pa.table({"a": ["NA"]}), self)
        self.seek(0)
        self.name = "x.parquet"


AB = Accepted(frozenset("ab"), is_open=False)


def read(source: Any, *, accepted: Accepted = AB, **options: Any) -> Any:
    """Give the header, the records, and what was guessed."""
    with Records(source, ReadOptions(**options), accepted=accepted) as records:
        return records.header, records.take(100_000), records.guesses


def rows(source: Any, **options: Any) -> list[Any]:
    return [row for _, row in read(source, **options)[1]]


def csv(text: str, **options: Any) -> list[Any]:
    return rows(io.StringIO(text, newline=""), format="csv", **options)


class TestDialect:
    @pytest.mark.parametrize(
        ("text", "options"),
        [
            ("a;b\n1;x,y\n", {"delimiter": ";"}),
            ("a\tb\n1\tx,y\n", {"delimiter": "\t"}),
            ("a,b\n'1','x,y'\n", {"quotechar": "'"}),
            ("a,b\n1,x\\,y\n", {"escapechar": "\\"}),
            ("made today\n\na,b\n1,'x,y'\n", {"skip_rows": 1, "quotechar": "'"}),
            ('# "no, header\na,b\n# "x\n1,"x,y"\n', {"comment": "#"}),
            (' a , b \n 1 , "x,y" \n', {"trim": True}),
            ('\n"a" ,"b" \n1,"x,y"\n', {"trim": True}),
        ],
    )
    def test_said(self, text: str, options: dict[str, Any]) -> None:
        assert [["1", "x,y"]] == csv(text, **options)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ('" x ", y \n', ["x", "y"]),
            ('"x" ,y\u2028z\n', ["x", "y\u2028z"]),
            ('"x\u2028" ,"y\u2028z" \n', ["x", "y\u2028z"]),
            ('"NA" , \n', [None, None]),
        ],
    )
    def test_trim(self, text: str, expected: list[Any]) -> None:
        """Blanks do not count, also inside of quotes; nothing else is left out."""
        assert [expected] == csv(f"a,b\n{text}", trim=True, null=["NA", ""])

    def test_trim_and_comment(self) -> None:
        """A comment is one, whatever had to be done for the record before it."""
        text = 'a,b\n"1" ,2\n# x\n3,4\n'
        assert [["1", "2"], ["3", "4"]] == csv(text, trim=True, comment="#")

    def test_no_quotes(self) -> None:
        """A quote is a character like any other, where nothing is around fields."""
        assert [['"x', "y"]] == csv('a,b\n"x,y\n', quotechar=None)

    def test_comment_inside(self) -> None:
        """A line of a quoted field is no comment, and comments count as lines."""
        source = io.StringIO('a\n#\n"x\n#y"\nz\n')
        found = read(source, format="csv", comment="#")
        assert [(3, ["x\n#y"]), (5, ["z"])] == found[1]

    @pytest.mark.parametrize(
        ("empty_quoted", "expected"),
        [("null", [None, None, None, "x"]), ("text", ["", None, "", "x"])],
    )
    def test_empty_quoted(self, empty_quoted: str, expected: list[Any]) -> None:
        text = 'a,b,c,d\n"",,"",x\n'
        assert [expected] == csv(text, empty_quoted=empty_quoted)

    @given(
        st.lists(
            st.lists(st.sampled_from(["", '""', "x", '"x"', '"a,b"', '"q""q"', '"\n"']),
            min_size=2, max_size=2), max_size=6),
        st.sampled_from(["text", "null"]),
    )  # fmt: skip
    def test_empty_quoted_anywhere(
        self, fields: list[list[str]], empty_quoted: str
    ) -> None:
        """What each field is does not depend on those around it."""
        meant = {
            "": None, '""': "" if empty_quoted == "text" else None, "x": "x",
            '"x"': "x", '"a,b"': "a,b", '"q""q"': 'q"q', '"\n"': "\n",
        }  # fmt: skip
        text = "a,b\n" + "".join(",".join(row) + "\n" for row in fields)
        expected = [[meant[field] for field in row] for row in fields]
        assert expected == csv(text, empty_quoted=empty_quoted)

    def test_null_of_mappings(self) -> None:
        """Such texts mean NULL in rows of a DictReader, if that is said."""
        given = [{"a": "", "b": "NA"}, {"a": 1, "b": "x"}]
        assert given == rows(given)
        assert [{"a": None, "b": None}, given[1]] == rows(given, null=["", "NA"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"delimiter": "||"}, r"delimiter is one character, not '\|\|'"),
            ({"quotechar": ""}, "quotechar is one character"),
            ({"null": "NA"}, "null is a list of texts, not 'NA'"),
            ({"header": "first"}, "header is 'exact', 'loose' or a list of names"),
            ({"empty_quoted": "no"}, "empty_quoted is one of 'null', 'text'"),
            ({"skip_rows": -1}, "skip_rows is 0 or more"),
            ({"path": "x"}, "path has no meaning for CSV"),
            ({"ignore": ["c"]}, "ignore: the source has no column 'c'"),
            ({"skip_rows": 9}, "no header after 9 lines"),
            ({"comment": ""}, "comment is what lines begin with"),
        ],
    )
    def test_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(LoadError, match=message):
            csv("a,b\n1,2\n", **options)

    @pytest.mark.parametrize(
        ("source", "options", "message"),
        [
            ([{"a": 1}], {"delimiter": ";"}, "delimiter has no meaning for mappings"),
            (io.StringIO("{}"), {"format": "jsonl", "null": ["x"]}, "for JSON Lines"),
            (io.StringIO("a"), {"format": "csv", "encoding": "utf-8"}, "open as text"),
            (io.StringIO("[]"), {"format": "json"}, "read from bytes"),
            (io.BytesIO(b"[]"), {"format": "json", "encoding": "no"}, "encoding: .*no"),
            (Named(), {"null": ["NA"]}, "null has no meaning for Parquet; leave"),
            (Named(), {"header": ["x"]}, "Parquet has names of its own"),
            (io.BytesIO(b"a"), {"format": "csv", "encoding": "no"}, "encoding: no"),
            (io.BytesIO(b"a"), {"format": "csv", "errors": "no"}, "name 'no'"),
        ],
    )
    def test_no_meaning(
        self, source: Any, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(LoadError, match=message):
            read(source, **options)


class TestHeader:
    def test_names(self) -> None:
        """Given names: there is no such line."""
        assert [["1", "2"]] == csv("1,2\n", header=["a", "b"])

    def test_loose(self) -> None:
        header, found, _ = read(
            io.StringIO(" A ,B\n1,2\n"), format="csv", header="loose"
        )
        assert (["a", "b"], [(2, ["1", "2"])]) == (header, found)

    @pytest.mark.parametrize(
        ("header", "known", "message"),
        [
            ("A,a", "ab", "names the column 'a' twice"),
            ("X,b", ["x", "x ", "b"], "may be 'x' or 'x '; use header='exact'"),
        ],
    )
    def test_loose_in_doubt(self, header: str, known: Any, message: str) -> None:
        accepted = Accepted(frozenset(known), is_open=False)
        with pytest.raises(LoadError, match=message):
            read(
                io.StringIO(f"{header}\n"),
                format="csv",
                header="loose",
                accepted=accepted,
            )

    def test_ignored_twice(self) -> None:
        """A column that is not read may be there twice, as those without a name."""
        header, found, _ = read(
            io.StringIO("a,,b,\n1,x,2,y\n"), format="csv", ignore=[""]
        )
        assert ["a", "", "b", ""] == header
        assert [(2, ["1", None if header is None else "x", "2", "y"])] == found


class TestGuesses:
    @pytest.mark.parametrize("character", [";", "\t", "|"])
    def test_delimiter(self, character: str) -> None:
        text = f"a{character}b\n1{character}2,5\n"
        _, found, guesses = read(io.StringIO(text), format="csv")
        assert [(2, ["1", "2,5"])] == found
        assert "if that is wrong, say delimiter=" in guesses[0]
        assert [["1;2", "3"]] == csv("a;b,c\n1;2,3\n", ignore=[])

    def test_no_guess(self) -> None:
        """A header that is none with another delimiter is left as it is."""
        header, _, guesses = read(io.StringIO('x "a";"b"z\n'), format="csv")
        assert (['x "a";"b"z'], []) == (header, guesses)

    def test_of_further_files(self, tmp_path: Path) -> None:
        (tmp_path / "1.csv").write_text("a,b\n1,2\n")
        (tmp_path / "2.csv").write_text("a;b\n3;4\n")
        with Records(tmp_path, ReadOptions(), accepted=AB) as records:
            guesses = records.guesses
            assert [["1", "2"], ["3", "4"]] == [row for _, row in records.take(9)]
        assert 1 == len(guesses)

    def test_not_in_doubt(self) -> None:
        """A model that takes any column would not notice a wrong guess."""
        anything = Accepted(frozenset("ab"), is_open=True)
        header, _, guesses = read(io.StringIO("a;b\n"), format="csv", accepted=anything)
        assert (["a;b"], []) == (header, guesses)
        assert ["a;b"] == read(io.StringIO('"a;b"\n'), format="csv")[0]

    @pytest.mark.parametrize("name", ["x.tsv", "x.TSV.gz", "x.tab"])
    def test_tabs(self, tmp_path: Path, name: str) -> None:
        data = b"a\tb\n1\t2,5\n"
        (tmp_path / name).write_bytes(
            gzip.compress(data) if name.endswith("gz") else data
        )
        assert [["1", "2,5"]] == rows(tmp_path / name)

    @pytest.mark.parametrize("compressed", [False, True])
    @pytest.mark.parametrize(
        ("mark", "encoding"),
        [
            (codecs.BOM_UTF8, "utf-8"),
            (codecs.BOM_UTF16_LE, "utf-16-le"),
            (codecs.BOM_UTF16_BE, "utf-16-be"),
            (codecs.BOM_UTF32_LE, "utf-32-le"),
            (codecs.BOM_UTF32_BE, "utf-32-be"),
        ],
    )
    def test_mark(
        self, tmp_path: Path, mark: bytes, encoding: str, compressed: bool
    ) -> None:
        data = mark + "a,b\nKöln,2\n".encode(encoding)
        path = tmp_path / ("x.csv.gz" if compressed else "x.csv")
        path.write_bytes(gzip.compress(data) if compressed else data)
        header, found, guesses = read(path)
        assert (["a", "b"], [(2, ["Köln", "2"])]) == (header, found)
        assert bool(guesses) == (encoding != "utf-8")
        assert [["Köln", "2"]] == rows(io.BytesIO(data), format="csv")
        if encoding == "utf-8":
            for name in ("UTF_8", "utf8", "utf-8-sig"):
                assert [["Köln", "2"]] == rows(path, encoding=name)


COMPRESS: dict[str, Any] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


class TestFiles:
    @pytest.mark.parametrize("suffix", COMPRESS)
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("x.csv", "a,b\n1,2\n"),
            ("x.jsonl", '{"a": 1}'),
            ("x.json", '[{"a": 1}]'),
        ],
    )
    def test_compressed(
        self, tmp_path: Path, suffix: str, name: str, text: str
    ) -> None:
        (tmp_path / name).write_text(text)
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(COMPRESS[suffix](text.encode()))
        assert read(tmp_path / name) == read(path)
        with pytest.raises(LoadError, match="cannot be read"):
            path.write_bytes(b"no such thing")
            read(path)
        with pytest.raises(LoadError, match="cannot be read"):
            long = "".join(f"{os.urandom(9).hex()}\n" for _ in range(9_000))
            path.write_bytes(COMPRESS[suffix]((text + long).encode())[:-9])
            read(path)

    def test_zip(self, tmp_path: Path) -> None:
        """Its members are files of their own, or the only one is the source."""
        one, two = tmp_path / "one.zip", tmp_path / "two.csv.zip"
        with zipfile.ZipFile(one, "w") as archive:
            archive.writestr("x.csv", "a,b\n1,2\n")
        with zipfile.ZipFile(two, "w") as archive:
            archive.writestr("data/y", "a,b\n3,4\n")
            archive.writestr("__MACOSX/data/y", "no")
            archive.writestr("data/z.csv", "b,a\n6,5\n")
        assert [["1", "2"]] == rows(one)
        assert [["3", "4"], ("5", "6")] == rows(two)
        with Records([one, two], ReadOptions()) as records:
            places = [records.place(line) for line, _ in records.take(9)]
        assert [
            (str(one), 2), (f"{two}/data/y", 2), (f"{two}/data/z.csv", 2),
        ] == places  # fmt: skip
        for data, message in ((b"x", "not a zip"), (b"PK\5\6" + bytes(18), "no file")):
            one.write_bytes(data)
            with pytest.raises(LoadError, match=message):
                read(one)

    def test_several(self, tmp_path: Path) -> None:
        """Lines are counted through; each is found in its file again."""
        for name, text in {
            "1.csv": 'a,b\n1,"x\ny"\n', "2.csv": "b,a\n2,2\n3\n", "3.csv": "a,b\n",
            "4.csv": "a,b\n\n4,4\n",
        }.items():  # fmt: skip
            (tmp_path / name).write_text(text)
        every = [tmp_path / f"{n}.csv" for n in range(1, 5)]
        expected = [(2, ["1", "x\ny"]), (5, ("2", "2")), (6, ["3"]), (10, ["4", "4"])]
        for source in (every, str(tmp_path / "*.csv"), tmp_path):
            with Records(source, ReadOptions(), accepted=AB) as records:
                assert sum(each.stat().st_size for each in every) == records.total
                found = [*records.take(1), *records.take(9)]
                assert expected == found
                assert records.total == records.position
                assert [
                    ("1.csv", 2), ("2.csv", 2), ("2.csv", 3), ("4.csv", 3),
                ] == [
                    (Path(str(name)).name, line)
                    for name, line in (records.place(line) for line, _ in found)
                ]  # fmt: skip
            with Records(source, ReadOptions(), start=6) as records:
                assert expected[2:] == records.take(9)

    def test_other_columns(self, tmp_path: Path) -> None:
        (tmp_path / "1.csv").write_text("a,b\n")
        (tmp_path / "2.csv").write_text("a,c\n")
        (tmp_path / "3.jsonl").write_text("{}\n")
        for other in ("2.csv", "3.jsonl"):
            with pytest.raises(LoadError, match=f"{other}' has other columns"):
                read([tmp_path / "1.csv", tmp_path / other])

    @pytest.mark.parametrize("source", ["no*.csv", "none.csv", "folder"])
    def test_nothing(self, tmp_path: Path, source: str) -> None:
        (tmp_path / "folder").mkdir()
        with pytest.raises(LoadError, match=r"no file (matches|in)|cannot read"):
            read(str(tmp_path / source))

    def test_open(self, tmp_path: Path) -> None:
        """A file that is open already is decompressed as its name says."""
        (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n"))
        with (tmp_path / "x.csv.gz").open("rb") as file:
            assert [["1", "2"]] == rows(file)
            assert not file.closed

    def test_folders(self, tmp_path: Path) -> None:
        """They name columns, but for those that the file has itself."""
        for year in (2024, 2025):
            folder = tmp_path / f"b={year}"
            folder.mkdir()
            (folder / "x.csv").write_text(f"a\n{year - 2000}\n1,2\n")
        header, found, _ = read(tmp_path)
        assert ["a", "b"] == header
        assert [("24", "2024"), ("1", "2", "2024")] == [row for _, row in found][:2]
        assert ("25", "2025") == found[2][1]
        (folder / "x.csv").write_text("b,a\nx,y\n")
        assert ("y", "x") == read(tmp_path)[1][-1][1]

    def test_folders_of_objects(self, tmp_path: Path) -> None:
        """Rows of JSON have no columns: what folders name would be lost."""
        (tmp_path / "b=1").mkdir()
        (tmp_path / "b=1" / "x.jsonl").write_text("{}\n")
        with pytest.raises(
            LoadError, match=r"name the columns 'b', and .* say ignore="
        ):
            read(tmp_path)
        assert ["{}\n"] == rows(tmp_path, ignore=["b"])

    def test_pattern_of_folders(self, tmp_path: Path) -> None:
        """What a pattern matches is loaded, or refused."""
        (tmp_path / "y").mkdir()
        for name in ("x.csv", "y/z.csv"):
            (tmp_path / name).write_text("a,b\n1,2\n")
        with pytest.raises(LoadError, match=r"matches the folder '.*y', whose files"):
            read(str(tmp_path / "*"))
        assert 2 == len(rows(str(tmp_path / "**")))

    def test_error_names_its_file(self, tmp_path: Path) -> None:
        (tmp_path / "1.csv").write_text("a,b\n")
        for name, data in (("2.csv", b"a,a\n"), ("2.csv.gz", b"no gzip")):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(LoadError, match=rf"^'.*{name}': the source"):
                read([tmp_path / "1.csv", tmp_path / name])

    def test_name_like_a_pattern(self, tmp_path: Path) -> None:
        """A file that is there is meant, whatever its name looks like."""
        (tmp_path / "x[1].csv").write_text("a,b\n1,2\n")
        assert [["1", "2"]] == rows(tmp_path / "x[1].csv")


class TestParquet:
    def test_partitioned(self, tmp_path: Path) -> None:
        """Folders name columns and their values, as pyarrow and Spark write them."""
        table = pa.table({"a": [1, 2, 3, 4], "b": ["x/y", "x/y", "007", None]})
        parquet.write_to_dataset(table, tmp_path / "d", partition_cols=["b"])
        header, found, _ = read(tmp_path / "d")
        assert ["a", "b"] == header
        assert {(1, "x/y"), (2, "x/y"), (3, "007"), (4, None)} == {
            row for _, row in found
        }
        assert [1, 2, 3, 4] == [number for number, _ in found]

    def test_values_of_no_object(self, tmp_path: Path) -> None:
        """A value that Python cannot hold is a bad row, which names its column."""
        late = 253402300800000
        at = pa.array([0, late, None, 0], pa.timestamp("ms"))
        days = pa.array([0, 0, 2932897, 0], pa.date32())
        path = tmp_path / "x.parquet"
        parquet.write_table(pa.table({"a": at, "b": days}), path)
        found = rows(path)
        assert [tuple, tuple] == [type(found[n]) for n in (0, 3)]
        for n, field, text in (
            (1, "a", "10000-01-01 00:00:00"),
            (2, "b", "10000-01-01"),
        ):
            assert ("value", field) == (found[n].reason, found[n].field)
            assert f"Python cannot hold {text}" in found[n].message
            assert text in str(plain(found[n], ["a", "b"]))

    @pytest.mark.parametrize(
        "around",
        [
            lambda kind: (pa.struct([("t", kind)]), {"t": 1_500}),
            lambda kind: (pa.list_(pa.struct([("t", kind)])), [{"t": 1_500}]),
            lambda kind: (pa.large_list(kind), [1_500]),
            lambda kind: (pa.list_(kind, 1), [1_500]),
            lambda kind: (pa.map_(pa.string(), kind), [("k", 1_500)]),
            lambda kind: (pa.struct([("s", pa.struct([("t", kind)]))]),
                          {"s": {"t": 1_500}}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("kind", [pa.timestamp("ns"), pa.duration("ns")])
    def test_nanoseconds(self, tmp_path: Path, around: Any, kind: Any) -> None:
        """They are cut to microseconds, wherever they are."""
        outer, value = around(kind)
        path = tmp_path / "x.parquet"
        parquet.write_table(pa.table({"a": pa.array([value], outer)}), path)
        [[found]] = rows(path)
        assert re.search(r"0, 1\)|microseconds=1\)", repr(found))


class TestDocument:
    @pytest.mark.parametrize(
        ("text", "path", "expected"),
        [
            ('[{"a": 1}, {"a": [2]}]', None, ['{"a": 1}', '{"a": [2]}']),
            ('{"x": [0], "d": {"i": [{"a": 1}]}}', "d.i", ['{"a": 1}']),
            ("[]", None, []),
            ('{"d": []}', "d", []),
            ("[1, null]", None, ["1", "null"]),
        ],
    )
    def test_array(
        self, tmp_path: Path, text: str, path: str | None, expected: list[str]
    ) -> None:
        (tmp_path / "x.json").write_text(text)
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            (tmp_path / "x.json").write_text(text, encoding=encoding)
            found = read(tmp_path / "x.json", path=path)[1]
            assert [*enumerate(expected, 1)] == found

    @pytest.mark.parametrize(
        ("text", "path", "message"),
        [
            ('{"d": {"i": [1]}}', None, "it consists of; say path=: .* at 'd.i'"),
            ('{"d": {"i": [1]}}', "d.j", "no array at path 'd.j'; .* at 'd.i'"),
            ('{"a": 1}', "b", "it has none"),
            ('[{"a": 1}, {"a"', None, "after 1 elements"),
            ("[1] [2]", None, "cannot be read"),
            ("", None, "cannot be read"),
        ],
    )
    def test_broken(
        self, tmp_path: Path, text: str, path: str | None, message: str
    ) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(LoadError, match=message):
            read(tmp_path / "x.json", path=path)

    def test_open(self, tmp_path: Path) -> None:
        """An array that is not there is never taken for an empty one."""
        data = b'{"d": [], "e": 1}'
        (tmp_path / "x.json").write_bytes(data)
        with (tmp_path / "x.json").open("rb") as file:
            assert [] == rows(file, path="d")
            for path in (None, "e", "f"):
                file.seek(0)
                with pytest.raises(LoadError, match="say path=: it has arrays at 'd'"):
                    read(file, path=path)

        class Pipe(io.BytesIO):
            def seekable(self) -> bool:
                return False

        with pytest.raises(LoadError, match="nobody knows whether it has the array"):
            read(Pipe(data), format="json", path="f")
        assert ["1"] == rows(Pipe(b"[1]"), format="json")

    def test_streamed(self, tmp_path: Path) -> None:
        """What is in memory does not grow with the document."""
        text = json.dumps([{"a": n} for n in range(200_000)])
        (tmp_path / "x.json").write_text(text)
        with Records(tmp_path / "x.json", ReadOptions()) as records:
            assert [(1, '{"a": 0}')] == records.take(1)
            assert 0 < records.position < len(text) / 2

    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.text()
        | st.decimals(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9,
    ))  # fmt: skip
    def test_numbers(self, item: Any) -> None:
        """No number loses a digit on its way."""
        assert item == json.loads(as_json(item), parse_float=Decimal)


class TestUrls:
    @pytest.fixture
    def url(self, tmp_path: Path) -> Iterator[str]:
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()

    @pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
    def test_http(self, tmp_path: Path, url: str, name: str) -> None:
        data = b"a,b\n1,2\n"
        data = gzip.compress(data) if name.endswith("gz") else data
        (tmp_path / name).write_bytes(data)
        with Records(f"{url}/{name}", ReadOptions()) as records:
            assert len(data) == records.total
            assert [(2, ["1", "2"])] == records.take(9)

    def test_parquet(self, tmp_path: Path, url: str) -> None:
        parquet.write_table(pa.table({"a": [1]}), tmp_path / "x.parquet")
        assert [(1,)] == rows(f"{url}/x.parquet")

    def test_refused(self) -> None:
        """Whatever a server answers is an error that names the URL."""

        class Broken(SimpleHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.send_error(500)

            do_GET = do_HEAD  # noqa: N815  # its name

        with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/x.csv"
            with pytest.raises(LoadError, match=f"cannot read '{url}': .*"):
                read(url)
            server.shutdown()

    def test_breaks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A network that breaks in the middle is an error that names the line."""
        data = b"a,b\n" + b"1,2\n" * 2_000_000

        class Breaking(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                first, _, last = self.headers.get("Range", "bytes=0-")[6:].partition(
                    "-"
                )
                part = data[int(first) : int(last) + 1 if last else None]
                self.send_response(206 if last else 200)
                self.send_header("Accept-Ranges", "bytes")
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(part if first == "0" else part[:9])

            do_GET = do_HEAD  # noqa: N815  # its name

        with ThreadingHTTPServer(("127.0.0.1", 0), Breaking) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://me:secret@127.0.0.1:{server.server_port}/x.csv"
            with Records(url, ReadOptions()) as records:
                assert 1_000_000 == len(records.take(1_000_000))
                with pytest.raises(LoadError, match=r"at line 1\d{6}: Resp") as raised:
                    records.take(1_000_000)
            server.shutdown()
        assert "secret" not in str(raised.value)

    def test_passwords(self) -> None:
        """Who may read it is nobody's business."""
        for url in ("http://me:secret@127.0.0.1:1/x.csv", "no://me:secret@x/*.csv"):
            with pytest.raises(LoadError, match=r"cannot read '\w+://[1x]") as raised:
                read(url)
            assert "secret" not in str(raised.value)

    @pytest.mark.parametrize("name", ["none.csv", ""])
    def test_missing(self, url: str, name: str) -> None:
        with pytest.raises(LoadError, match=r"cannot read .http|cannot tell"):
            read(f"{url}/{name}")

    @pytest.mark.parametrize("place", ["nothing://x/y.csv", "http://127.0.0.1:1/x.csv"])
    def test_nowhere(self, place: str) -> None:
        with pytest.raises(LoadError, match="cannot read"):
            read(place)

    def test_pattern(self) -> None:
        import fsspec

        memory = fsspec.filesystem("memory")
        for n in (2, 1):
            memory.pipe(f"/t/{n}.csv", f"a,b\n{n},x\n".encode())
        assert [["1", "x"], ["2", "x"]] == rows("memory://t/*.csv")
