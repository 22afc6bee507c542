"""What the pages about the work itself name is there."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tenure

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"

# | promise | `file` | `test` |
ROW = re.compile(r"\|[^|]*\|\s*`([^`]+\.py)`\s*\|\s*`([^`]+)`\s*\|")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    TESTS / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PROMISES = sorted(set(ROW.findall((TESTS / "README.md").read_text())))


def names_in(path: Path) -> set[str]:
    """Name the tests of a file, as pytest does, and classes of them."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        found |= {
            prefix + each.name
            for each in inner
            if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
        }
    return found


def test_promises() -> None:
    """Each test that the table of promises names exists."""
    missing = []
    for file, test in PROMISES:
        path = next(
            (p for p in (TESTS / file, TESTS / "behaviour" / file) if p.exists()), None
        )
        if path is None or test not in names_in(path):
            missing.append(f"{file}: {test}")

    assert len(PROMISES) > 100
    assert [] == missing


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_names(page: str) -> None:
    """Each path and each make target that a page names exists."""
    text = (ROOT / page).read_text()
    named = {
        name
        for name in re.findall(r"`([\w./-]+/[\w./-]*)`", text)
        if name.split("/")[0] in {".ci", "bench", "docs", "src", "tests", "tools"}
    }
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )

    assert {name for name in named if not (ROOT / name).exists()} == set()
    assert set(re.findall(r"make ([a-z]+)", text)) - {"is"} <= targets


def test_files_of_the_design() -> None:
    """Each file that docs/design.md names exists, and each room is in its table."""
    text = (ROOT / "docs" / "design.md").read_text()
    source = ROOT / "src" / "tenure"
    rooms = {
        str(door.parent.relative_to(source))
        for door in source.glob("*/**/__init__.py")
        if door.parent.name != "cli"
    }
    named = set(re.findall(r"^\| `([\w/]+)` \|", text, re.MULTILINE))
    files = set(re.findall(r"`([\w/]+\.py)`", text))
    known = {str(path.relative_to(source)) for path in source.rglob("*.py")}
    known |= {str(path.relative_to(ROOT)) for path in TESTS.rglob("*.py")}

    assert rooms == named
    # In the table of rooms a file is named by itself.
    assert set() == {
        file
        for file in files
        if not any(f"/{each}".endswith(f"/{file}") for each in known)
    }


def test_version_stands_once() -> None:
    """The version is written in the package, and read from there."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())

    assert "version" not in project["project"]
    path = ROOT / project["tool"]["hatch"]["version"]["path"]
    assert f'__version__ = "{tenure.__version__}"' in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "servers"),
    [
        ("", ""),
        ("--db sqlite", "sqlite"),
        ("-k scope --db=postgresql", "postgresql"),
        ("--db postgresql --db mariadb", "postgresql mariadb"),
        ("-k sqlite", ""),
        ("--db sqlite -k postgresql", "sqlite"),
    ],
)
def test_servers_to_install(arguments: str, servers: str) -> None:
    """Only the servers that ``--db`` names are installed; without it, all."""
    done = subprocess.run(
        [
            *("make", "-n", "--no-print-directory", "-o", ".venv/.ready"),
            *("servers", f"ARGS={arguments}"),
        ],
        cwd=ROOT,
        # Not those of the make that may run the tests.
        env={k: v for k, v in os.environ.items() if "MAKE" not in k and k != "MFLAGS"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert f"sh tools/setup.sh servers {servers}".strip() == done.stdout.strip()


def sentences_of(page: Path) -> Iterator[str]:
    """Yield the sentences of a page, without its programs and tables."""
    text = re.sub(r"```.*?```", "\n\n", page.read_text(), flags=re.DOTALL)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#>]|\d+\.)\s)|\n?\|.*", text):
        yield from re.split(
            r"(?<=[.!?])[\"”)]*\s+(?=[A-Z`*\[])", " ".join(block.split())
        )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_short_sentences(page: Path) -> None:
    """No sentence of a page is longer than 30 words."""
    assert [] == [each for each in sentences_of(page) if len(each.split()) > 30]


def test_a_long_sentence_is_seen(tmp_path: Path) -> None:
    """What the test above looks for is found, and not across a list or a program."""
    page = tmp_path / "page.md"
    words = "word " * 20
    page.write_text(f"Short.\nA {words}\n{words}\n\n- {words}\n- {words}\n")

    found = [len(each.split()) for each in sentences_of(page) if each]

    assert [1, 41, 21, 21] == found
