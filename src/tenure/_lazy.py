"""Doors of packages that import what is behind them when it is first used."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import Any


def lazy(package: str, names: Mapping[str, Iterable[str]]) -> Callable[[str], Any]:
    """
    Return the ``__getattr__`` of *package*.

    Args:
        names: For each module of the package, the names that are imported from it.
    """
    modules = {name: module for module, some in names.items() for name in some}

    def get(name: str) -> Any:
        module = modules.get(name)
        if module is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(module, package), name)
        # Asked for once only.
        setattr(sys.modules[package], name, value)
        return value

    return get
