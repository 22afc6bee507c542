"""The model that ``--into`` names."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from pathlib import Path
from traceback import walk_tb
from typing import Any

import sqlalchemy
from sqlalchemy import Table
from sqlalchemy.orm import Mapper, configure_mappers

from tenure import LoadError, entity_of, spec_of
from tenure.errors import said

from ._mistake import Mistake

# Folders with code that the user did not write.
_LIBRARIES = [
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib")),
    *(sysconfig.get_path(name) for name in ("purelib", "platlib")),
    str(Path(__file__).parents[1]),
]


def imported(path: str) -> type[Any]:
    """
    Import the model that *path*, ``package.module:Name``, names.

    Of a mapped class a ``Spec`` is made. Modules are looked for in the current directory first, as Python does.

    Raises:
        Mistake: It does not import, or is neither a mapped class nor a ``Spec`` of one.
    """
    module_name, _, name = path.partition(":")
    if not (module_name and name):
        raise Mistake(f"--into is written package.module:Name, not {path!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        model: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise Mistake(_failure(module_name, error)) from error
        raise Mistake(
            f"--into: there is no module {error.name!r} in {here} or on Python's path"
        ) from error
    except (Exception, SystemExit) as error:
        raise Mistake(_failure(module_name, error)) from error
    for part in name.split("."):
        if not hasattr(model, part):
            raise Mistake(f"--into: {module_name} has no {name!r}")
        model = getattr(model, part)
    try:
        configure_mappers()
        if isinstance(sqlalchemy.inspect(model, raiseerr=False), Mapper):
            model = spec_of(model)
        entity_of(model)
    except LoadError as error:
        raise Mistake(f"--into: {error}") from error
    except Exception as error:
        raise Mistake(_failure(module_name, error)) from error
    found: type[Any] = model
    return found


def _failure(module: str, error: BaseException) -> str:
    message = f"--into: importing {module} failed: {type(error).__name__}"
    text = error.msg if isinstance(error, SyntaxError) else said(error)
    place = place_of(error)
    return f"{message}: {text}" + (f" ({place})" if place else "")


def place_of(error: BaseException) -> str | None:
    """
    Return file and line of the user's code that *error* came out of, if any did.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename)}:{error.lineno}"
    places = [
        f"{_short(file)}:{line}"
        for frame, line in walk_tb(error.__traceback__)
        if not (file := frame.f_code.co_filename).startswith("<")
        and not any(file.startswith(folder + os.sep) for folder in _LIBRARIES)
    ]
    return places[-1] if places else None


def _short(file: str) -> str:
    path = Path(file)
    return str(
        path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    )


def tables_of(model: type[Any]) -> list[Table]:
    """Return the tables of *model*'s class, and all they refer to."""
    mapper: Mapper[Any] = sqlalchemy.inspect(entity_of(model))
    found: dict[Table, None] = {}
    left = [table for table in mapper.tables if isinstance(table, Table)]
    while left:
        table = left.pop()
        if table not in found:
            found[table] = None
            left.extend(key.column.table for key in table.foreign_keys)
    return list(found)
