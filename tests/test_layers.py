"""The rooms of the house: who may name whom, and what is optional stays optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tenure"

# From the bottom up: modules of the landing, and rooms. One may import those before it.
ORDER = [
    "_lazy",
    "callers",
    "errors",
    "context",
    "_private",
    "statements",
    "routing",
    "engines",
    "mapping",
    "references",
    "models",
    "bulk",
    "sessions",
    "scopes",
    "database",
    "cli",
    "__main__",
]
# The same inside of a room that has rooms.
INSIDE = {"bulk": ["report", "dialects", "lookup", "write", "read"]}

# These do what any program could do, with the names any program has.
OUTSIDERS = {"cli", "__main__"}
PUBLIC = {"tenure", "tenure.cli", "tenure.errors"}

# (importer, imported): the only imports inside functions.
OPTIONAL = {
    # The async face, which needs greenlet.
    ("database", "tenure.sessions"),
    ("database", "sqlalchemy.ext.asyncio"),
    ("engines.pair", "sqlalchemy.ext.asyncio"),
    # An extra.
    ("bulk.read.files", "fsspec"),
    ("cli._workers", "dask.distributed"),
    ("bulk.read.streams", "zstandard"),
    ("bulk.read.json_files", "ijson"),
    ("bulk.read.parquet", "pyarrow"),
    ("bulk.write.copy", "psycopg.copy"),
    ("bulk.write.copy", "psycopg.waiting"),
}

# Functions whose body is longer than 60 lines, each with its reason.
LONG: set[str] = set()

FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(
        ".__init__"
    ): path
    for path in FILES
    if path != SOURCE / "__init__.py"
}
ROOMS = {name for name, path in MODULES.items() if path.name == "__init__.py"}


def room_of(module: str) -> str:
    """Name the room that a module is in; a room is in itself."""
    return module if module in ROOMS else module.rpartition(".")[0]


def names(node: ast.AST, module: str) -> Iterator[str]:
    """Give what an import statement reaches, as written from the top."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = node.module or ""
        if node.level:
            parents = ["tenure", *room_of(module).split(".")] if module else ["tenure"]
            parents = list(filter(None, parents))[: -node.level + 1 or None]
            start = ".".join([*parents, *filter(None, [node.module])])
        for alias in node.names:
            inner = f"{start}.{alias.name}"
            yield inner if inner.removeprefix("tenure.") in MODULES else start


def imports(module: str) -> list[str]:
    """Give the modules of ours that one imports, at run time or for types only."""
    tree = ast.parse(MODULES[module].read_text())
    found = {name for node in ast.walk(tree) for name in names(node, module)}
    return sorted(
        name.removeprefix("tenure.") for name in found if name.startswith("tenure.")
    )


@pytest.mark.parametrize("module", MODULES)
class TestImports:
    def test_through_doors(self, module: str) -> None:
        """A module names its neighbours, the landings around it, and doors there."""
        if module.split(".", maxsplit=1)[0] in OUTSIDERS:
            return
        landings = [""]
        for part in room_of(module).split("."):
            landings.append(f"{landings[-1]}.{part}".removeprefix("."))
        wrong = [
            there
            for there in imports(module)
            if there.rpartition(".")[0] not in landings
        ]

        assert [] == wrong

    def test_one_way(self, module: str) -> None:
        """A module imports what comes before it, also for types."""
        here = module.split(".", maxsplit=1)[0]
        if here in OUTSIDERS:
            return
        assert here in ORDER, "every module stands somewhere in the picture"
        wrong = [
            there
            for there in imports(module)
            if (other := there.split(".")[0]) != here
            and ORDER.index(other) >= ORDER.index(here)
        ]

        assert [] == wrong

    def test_public_names_only(self, module: str) -> None:
        """Integrations, plugin and command line need nothing private."""
        if module.split(".", maxsplit=1)[0] not in OUTSIDERS:
            return
        tree = ast.parse(MODULES[module].read_text())
        wrong = [
            name
            for node in ast.walk(tree)
            for name in names(node, module)
            if name.split(".")[0] == "tenure"
            and name not in PUBLIC
            and not name.startswith("tenure.cli.")
        ]

        assert [] == wrong

    def test_at_the_top(self, module: str) -> None:
        """No import hides in a function, unless what it imports is optional."""
        functions = [
            node
            for node in ast.walk(ast.parse(MODULES[module].read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        hidden = {
            (module, name)
            for function in functions
            for node in ast.walk(function)
            for name in names(node, module)
        }

        assert set() == hidden - OPTIONAL


def test_without_greenlet() -> None:
    """Only the async face needs greenlet, which SQLAlchemy 2.1 does not bring."""
    code = "import sys; sys.modules['greenlet'] = None; import tenure"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "" == done.stderr


class TestSizes:
    def test_rooms(self) -> None:
        """A room can be seen at a glance: at most 14 files."""
        sizes = Counter(room_of(module) for module in MODULES if module not in ROOMS)
        # The door is a file, too.
        assert {} == {room: n + 1 for room, n in sizes.items() if n + 1 > 14}

    def test_files(self) -> None:
        """A file holds one idea: at most 450 lines, half of them at most 200."""
        lines = {path: len(path.read_text().splitlines()) for path in FILES}

        assert {} == {path.name: n for path, n in lines.items() if n > 450}
        assert median(lines.values()) <= 200

    def test_functions(self) -> None:
        """A function fits on a screen: 60 lines, its docstring and signature apart."""
        long = {
            f"{module}.{node.name}"
            for module, path in MODULES.items()
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and code_lines(node) > 60
        }

        assert set() == long - LONG


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Count the lines of a function's body without its docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]  # the parser gives lines


def test_no_circles() -> None:
    """No module imports itself by way of others, neither at run time nor for types."""
    graph = {
        module: [there for there in imports(module) if there in MODULES]
        for module in MODULES
        if module.split(".")[0] not in OUTSIDERS
    }
    # A door is what its modules are behind: importing it is importing them.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))
