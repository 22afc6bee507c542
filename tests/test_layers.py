"""Imports go one way, and what is optional stays optional."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "tenure"

# From the bottom up; a layer may import those beneath it, and nothing beside it.
LAYERS = [
    {"errors"},
    {"callers", "callbacks", "context", "drivers", "keys", "pools", "routing"},
    {"columns", "current", "guard", "making", "reading", "references", "sqlite"},
    {"entries", "turns", "watching"},
    {"engines", "placeholders"},
    {"graphs"},
    {"registration"},
    {"schemas"},
    {"resources"},
    {"bulk"},
    {"endings", "sessions"},
    {"scoping"},
    {"async_sessions", "scopes"},
    {"gathering", "reports"},
    {"database"},
    {"ext", "testing"},
    {"pytest_plugin", "cli"},
    {"__main__"},
]
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# These do what any program could do, with the names any program has.
OUTSIDERS = {"ext", "pytest_plugin", "cli"}
PUBLIC = {"tenure", "tenure.testing"}

# (importer, imported): the only imports inside functions.
OPTIONAL = {
    # The async face, which needs greenlet.
    ("database", "tenure.async_sessions"),
    ("database", "sqlalchemy.ext.asyncio"),
    ("entries", "sqlalchemy.ext.asyncio"),
    # An extra.
    ("bulk", "pyarrow"),
}

FILES = sorted(SOURCE.rglob("*.py"))


def unit(path: Path) -> str:
    """Name the module or package right under tenure that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(node: ast.AST, path: Path) -> Iterator[tuple[str, str]]:
    """Give (module, name) for each thing a statement imports; no name: the module."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, "") for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = node.module or ""
        if node.level:
            folder = ("tenure", *path.relative_to(SOURCE).parent.parts)
            parents = folder[: len(folder) - node.level + 1]
            module = ".".join((*parents, *filter(None, [module])))
        yield from ((module, alias.name) for alias in node.names)


def target(module: str, name: str) -> str | None:
    """Name the part of tenure that an import reaches; none if it is not ours."""
    head, *rest = module.split(".")
    if head != "tenure":
        return None
    return rest[0] if rest else name if name in RANKS else "__init__"


def at_run_time(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree past what only type checkers read: types may point upwards."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield from at_run_time(child)


def imports(path: Path) -> Iterator[tuple[int, str, str]]:
    for node in at_run_time(ast.parse(path.read_text())):
        for module, name in imported(node, path):
            yield getattr(node, "lineno", 0), module, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
class TestImports:
    def test_has_layer(self, path: Path) -> None:
        """Every module stands somewhere in the picture."""
        assert unit(path) == "__init__" or unit(path) in RANKS

    def test_one_way(self, path: Path) -> None:
        """A module imports the layers beneath its own, and its own package."""
        here = unit(path)
        if here == "__init__" or here in OUTSIDERS or here not in RANKS:
            return
        wrong = [
            f"line {line}: {here} imports {there}"
            for line, module, name in imports(path)
            if (there := target(module, name)) not in {None, here}
            and RANKS.get(str(there), len(LAYERS)) >= RANKS[here]
        ]

        assert [] == wrong

    def test_public_names_only(self, path: Path) -> None:
        """Integrations, plugin and command line need nothing private."""
        here = unit(path)
        if here not in OUTSIDERS:
            return
        wrong = [
            f"line {line}: {module} {name}"
            for line, module, name in imports(path)
            if target(module, name) not in {None, here}
            and (module not in PUBLIC or name.startswith("_"))
        ]

        assert [] == wrong

    def test_at_the_top(self, path: Path) -> None:
        """No import hides in a function, unless what it imports is optional."""
        functions = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        hidden = {
            (unit(path), module)
            for function in functions
            for node in ast.walk(function)
            for module, _ in imported(node, path)
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
