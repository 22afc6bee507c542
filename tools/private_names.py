"""
Count the private names of SQLAlchemy and Pydantic that the package uses.

    python tools/private_names.py

Each is to stand once, in ``_private.py``; at most ``MOST`` of them. Ends with 1 if not.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "tenure"
MOST = 38

# Python's own, and the end of a driver's name.
NOT_THEIRS = {"_getframe", "_current_frames", "_get_running_loop", "_async"}
THEIR_PACKAGES = {"sqlalchemy", "pydantic", "pydantic_core"}


def is_private(name: str) -> bool:
    """Whether a name begins with one underscore, and is more than that."""
    return name.startswith("_") and not name.endswith("__") and name.strip("_") != ""


def named(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node uses of an object, or imports."""
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from (part for part in node.value.split(".") if part.isidentifier())
    elif (
        isinstance(node, ast.ImportFrom)
        and not node.level
        and (node.module or "").split(".")[0] in THEIR_PACKAGES
    ):
        yield from (alias.name for alias in node.names)


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module gives to something itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id in {"self", "cls"}
        ):
            yield node.attr


def places() -> dict[str, list[str]]:
    """Give the files and lines where each private name of theirs stands."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
    ours = {
        name
        for path, tree in trees.items()
        if path.name != "_private.py"
        for name in defined(tree)
    }
    found: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for name in named(node):
                is_ours = name in ours | NOT_THEIRS or name.startswith("_tenure")
                if is_private(name) and not is_ours:
                    line = getattr(node, "lineno", 0)
                    found[name].append(f"{path.relative_to(SOURCE)}:{line}")
    hidden = trees[SOURCE / "_private.py"]
    for node in ast.walk(hidden):
        # What our classes override there.
        if isinstance(node, ast.ClassDef):
            for each in node.body:
                if isinstance(each, ast.FunctionDef) and is_private(each.name):
                    found.setdefault(each.name, []).append(f"_private.py:{each.lineno}")
    return found


def main() -> int:
    found = places()
    wrong = len(found) > MOST
    for name, lines in sorted(found.items()):
        files = {line.partition(":")[0] for line in lines}
        wrong |= files != {"_private.py"}
        print(f"{name:<32} {', '.join(lines)}")
    print(f"{len(found)} names, of at most {MOST}")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
