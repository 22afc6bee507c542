"""
Routers, and which database a resource goes to.

A router answers with an alias or ``None``; the first answer wins. Django's
names for the same questions are accepted, so a Django router works as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any, Literal

from sqlalchemy import CTE, Select, TextClause
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql import CompoundSelect, StatementLambdaElement
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.selectable import TextualSelect

from .errors import RoutingError

Role = Literal["read", "write"]

DEFAULT = "default"

#: For each role, what a router is asked, in order: ours, then Django's.
_QUESTIONS: dict[Role | None, tuple[tuple[str, ...], ...]] = {
    "read": (("get_read_engine", "db_for_read"), ("get_engine",)),
    "write": (("get_write_engine", "db_for_write"), ("get_engine",)),
    None: (("get_engine",),),
}

_READ = re.compile(r"\s*\(?\s*(?:SELECT|VALUES|SHOW|TABLE|DESCRIBE)\b", re.IGNORECASE)
_LOCK = re.compile(
    r"\b(?:INTO|FOR\s+(?:NO\s+KEY\s+)?(?:UPDATE|SHARE))\b", re.IGNORECASE
)


class DatabaseRouter:
    """
    A router that has no opinion; derive from it, or bring any object like it.

    Each method gets the mapped class in question (or ``None``) and hints as
    keywords, and answers with an alias or ``None``. A session's hints are
    ``role``, ``session``, ``statement`` and ``in_transaction``; a method gets
    those it has parameters for.
    """

    def get_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        """Give the alias for reading and writing *resource*."""
        return None

    def get_read_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        """Give the alias for reading *resource*."""
        return None

    def get_write_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        """Give the alias for writing *resource*."""
        return None

    def is_migration_allowed(
        self, engine: str, package: str, **kwargs: Any
    ) -> bool | None:
        """Say whether *package* may be migrated on *engine*; ``None``: no opinion."""
        return None


def writes(statement: Any) -> bool:
    """
    Whether *statement* may write, or lock what it reads.

    What is not known to read may write: DDL, calls and most text.
    """
    if isinstance(statement, Select):
        return statement._for_update_arg is not None or any(
            isinstance(table, CTE) and isinstance(table.element, UpdateBase)
            for part in (
                *statement._raw_columns,
                *statement._from_obj,
                *statement._independent_ctes,
            )
            for table in (getattr(part, "table", part),)
        )
    if isinstance(statement, CompoundSelect):
        return any(map(writes, statement.selects))
    if isinstance(statement, (TextualSelect, FromStatement)):
        return writes(statement.element)
    if isinstance(statement, StatementLambdaElement):
        return writes(statement._resolved)
    if isinstance(statement, TextClause):
        return not _READ.match(statement.text) or bool(_LOCK.search(statement.text))
    return True


def choose(
    routers: Sequence[Any],
    resource: Any,
    role: Role | None,
    hints: Mapping[str, Any],
) -> tuple[str, str]:
    """
    Give the alias for *resource* and what chose it.

    Raises:
        RoutingError: A router raised, or answered with something else.
    """
    for names in _QUESTIONS[role]:
        for router in routers:
            answer = _ask(router, names, resource, hints)
            if answer is None:
                continue
            if not isinstance(answer, str):
                raise RoutingError(
                    f"router {_name(router)} answered {answer!r}; "
                    f"a router gives an alias or None"
                )
            return answer, f"router {_name(router)}"
    return DEFAULT, "the default"


def may_migrate(routers: Iterable[Any], engine: str, package: str) -> bool:
    """
    Give the first router's opinion; without one, migrating is allowed.

    Raises:
        RoutingError: A router raised.
    """
    for router in routers:
        for name in ("is_migration_allowed", "allow_migrate"):
            answer = _call(router, name, (engine, package), {})
            if answer is not None:
                return bool(answer)
    return True


def _ask(
    router: Any, names: tuple[str, ...], resource: Any, hints: Mapping[str, Any]
) -> Any:
    for name in names:
        answer = _call(router, name, (resource,), hints)
        if answer is not None:
            return answer
    return None


def _call(
    router: Any, name: str, arguments: tuple[Any, ...], hints: Mapping[str, Any]
) -> Any:
    method = getattr(router, name, None)
    if method is None:
        return None
    try:
        return method(*arguments, **_accepted(method, hints))
    except Exception as error:
        raise RoutingError(
            f"router {_name(router)} failed in {name}(): {error}"
        ) from error


def _accepted(method: Callable[..., Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Give the hints that *method* has parameters for."""
    names = _parameters(getattr(method, "__func__", method))
    return {
        name: hint for name, hint in hints.items() if names is None or name in names
    }


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> frozenset[str] | None:
    """Name the keywords *function* takes; ``None``: any."""
    parameters = signature(function).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _name(router: Any) -> str:
    return getattr(router, "__qualname__", type(router).__qualname__)
