"""``tenure load`` and files as they come: options, exit codes, what is printed."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from typer.main import get_command

import tenure as library
from tenure import Database, SessionBulk
from tenure.bulk.read import ReadKeywords
from tenure.cli import main
from tenure.cli._app import app
from tests.fixtures.shop import Base

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    with Database(url) as db:
        db.create_all(Base.metadata)
    return url


@pytest.fixture
def run(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Run:
    """Run ``tenure load`` where the files are, with the URL in the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENURE_URL", url)

    def run(*arguments: str, into: str = "CityIn") -> tuple[int, str, str]:
        code = main(["load", *arguments, "--into", f"tests.fixtures.shop:{into}"])
        out, err = capsys.readouterr()
        return code, out, err

    return run


def codes(url: str) -> list[str]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        return sorted(connection.scalars(text("SELECT code FROM city")).all())


class TestOptions:
    def test_all(self) -> None:
        """Each option of ``bulk.load()`` is one of the command as well."""
        command: Any = get_command(app)
        there = {param.name for param in command.commands["load"].params}
        names = {*ReadKeywords.__annotations__}
        names |= {*inspect.signature(SessionBulk.load).parameters}
        called = {
            "self": None,
            "reading": None,
            "source": "sources",
            "executor": "workers",
            "progress": None,
            "update_fields": "update_field",
            "storage_options": "storage_option",
        }
        assert set() == {called.get(name, name) for name in names} - there - {None}

    @pytest.mark.parametrize(
        ("content", "options"),
        [
            ("code;x\nROM;\n", ["--delimiter", ";", "--ignore", "x"]),
            ("code\tx\nROM\t\n", ["--delimiter", "\\t", "--ignore", "x"]),
            ("code\n'ROM'\n", ["--quotechar", "'"]),
            ('made "today"\nCODE\n# no\n ROM \n',
             ["--skip-rows", "1", "--header", "loose", "--comment", "#", "--trim"]),
            ("ROM,\n", ["--header", "code,id"]),
            ("ROM\n", ["--header", "code,"]),
            ("code\nR\\OM\n", ["--escapechar", "\\"]),
            ("code,id\nROM,-\n", ["--null", "-"]),
            ('code,id\nROM,\n"",""\n', ["--empty-quoted", "text", "--max-errors", "1"]),
        ],
    )  # fmt: skip
    def test_csv(
        self, run: Run, url: str, tmp_path: Path, content: str, options: list[str]
    ) -> None:
        (tmp_path / "a.csv").write_text(content)
        code, _, err = run("a.csv", *options, into="City")
        assert (0 if "text" not in options else 3, "") == (code, err)
        assert ["ROM"] == codes(url)

    def test_bytes(self, run: Run, url: str, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes("code\nKöln\n".encode("latin-1"))
        code, _, err = run("a.csv")
        assert 1 == code
        assert "K\\\\xf6ln'; say --encoding" in err
        assert 0 == run("a.csv", "--errors", "replace")[0]
        assert 0 == run("a.csv", "--encoding", "latin-1")[0]
        assert ["Köln", "K\ufffdln"] == codes(url)

    def test_document(self, run: Run, url: str, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text('{"d": {"cities": [{"code": "ROM"}]}}')
        code, _, err = run("a.json")
        assert 2 == code
        assert "say --path: it has arrays at 'd.cities'" in err
        assert 0 == run("a.json", "--path", "d.cities")[0]
        assert ["ROM"] == codes(url)

    def test_url_of_files(self, run: Run, url: str) -> None:
        import fsspec

        fsspec.filesystem("memory").pipe("/cli/a.csv", b"code\nROM\n")
        code, _, err = run("memory://cli/a.csv", "--storage-option", "x")
        assert (2, True) == (code, "NAME=VALUE, not 'x'" in err)
        assert 0 == run("memory://cli/*.csv", "--storage-option", "x=y")[0]
        assert ["ROM"] == codes(url)

    def test_update_field(self, run: Run, url: str, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("name,age,city\nAnn,1,\n")
        (tmp_path / "b.csv").write_text("name,age,city\nAnn,2,\n")
        update = ["--on-conflict", "update", "--update-field"]
        assert 0 == run("a.csv", into="PersonIn")[0]
        _, out, _ = run("b.csv", *update, "city", into="PersonIn")
        assert "unchanged  1" in out
        _, out, _ = run("b.csv", *update, "age", into="PersonIn")
        assert "updated    1" in out


class TestSeveral:
    def test_places(self, run: Run, url: str, tmp_path: Path) -> None:
        for name, content in {"a": "code\nROM\n", "b": "code\nROM\nPAR\n"}.items():
            (tmp_path / f"{name}.csv").write_text(content)
        for sources in (["a.csv", "b.csv"], ["*.csv"]):
            code, out, err = run(*sources, "--max-errors", "1", "--dry-run")
            assert (3, "") == (code, err)
            assert "  b.csv line 2  code: " in out
        assert 0 == run("a.csv")[0]
        assert 3 == run("b.csv", "--max-errors", "1")[0]
        assert ["PAR", "ROM"] == codes(url)

    def test_not_with_a_pipe(self, run: Run) -> None:
        code, _, err = run("a.csv", "-")
        assert (2, True) == (code, "standard input is loaded by itself" in err)


class TestExitCodes:
    def test_nothing_kept(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("name,age,city\nAnn,x,\n")
        (tmp_path / "b.csv").write_text("code\n")
        for limit in ("0", "all"):
            assert 1 == run("a.csv", "--max-errors", limit, into="PersonIn")[0]
        assert 0 == run("b.csv")[0]

    def test_json(self, run: Run, tmp_path: Path) -> None:
        """The object says why rows were rejected, and what was guessed."""
        (tmp_path / "a.csv").write_text("name;age;city\nAnn;x;\nBob;1;\n")
        code, out, _ = run("a.csv", "--max-errors", "all", "--json", into="PersonIn")
        told = json.loads(out)
        assert 3 == code == told["exit"]
        assert {"int_parsing": 1} == told["reasons"]
        [reject] = told["first_rejects"]
        assert (2, "age") == (reject["line"], reject["field"])
        assert {"name": "Ann", "age": "x", "city": None} == reject["row"]
        assert "';' is between" in told["guesses"][0]

    def test_guess(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_text("name;age;city\nAnn;1;\n")
        code, out, _ = run("a.csv", into="PersonIn")
        assert 0 == code
        assert out.splitlines()[-1] == (
            "guessed: ';' is between the fields, as the header has no comma; if that "
            "is wrong, say --delimiter"
        )


class TestHelp:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert 0 == main(["--version"])
        assert f"tenure {library.__version__}\n" == capsys.readouterr().out

    @pytest.mark.parametrize("arguments", [["-h"], ["--help"], ["load", "-h"]])
    def test_help(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        assert 0 == main(arguments)
        assert capsys.readouterr().out.lstrip().startswith("Usage: tenure")

    @pytest.mark.parametrize("shell", ["bash", "zsh"])
    def test_completion(
        self,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        shell: str,
    ) -> None:
        """A shell asks the command what may come next."""
        monkeypatch.setenv("_TENURE_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", "tenure load --on-c")
        monkeypatch.setenv("COMP_CWORD", "2")
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "tenure load --on-c")
        with pytest.raises(SystemExit):
            main([])
        assert "--on-conflict" in capsys.readouterr().out

    def test_no_url(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TENURE_URL", raising=False)
        assert "TENURE_URL" not in os.environ
        assert 2 == main(["load", "a.csv", "--into", "tests.fixtures.shop:CityIn"])
        assert "--url" in capsys.readouterr().err
