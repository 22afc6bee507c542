"""
Routers, and which database a resource goes to.

A router answers with an alias or ``None``; the first answer wins. Django's
names for the same questions are accepted, so a Django router works as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from .errors import RoutingError

Role = Literal["read", "write"]

DEFAULT = "default"

#: For each role, what a router is asked, in order: ours, then Django's.
_QUESTIONS: dict[Role | None, tuple[tuple[str, ...], ...]] = {
    "read": (("get_read_engine", "db_for_read"), ("get_engine",)),
    "write": (("get_write_engine", "db_for_write"), ("get_engine",)),
    None: (("get_engine",),),
}


class DatabaseRouter:
    """
    A router that has no opinion; derive from it, or bring any object like it.

    Each method gets the mapped class in question (or ``None``) and hints as
    keywords, and answers with an alias or ``None``.
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


def choose(
    routers: Sequence[Any], resource: Any, role: Role | None, hints: dict[str, Any]
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
    """Give the first router's opinion; without one, migrating is allowed."""
    for router in routers:
        for name in ("is_migration_allowed", "allow_migrate"):
            method = getattr(router, name, None)
            answer = None if method is None else method(engine, package)
            if answer is not None:
                return bool(answer)
    return True


def _ask(router: Any, names: tuple[str, ...], resource: Any, hints: Any) -> Any:
    for name in names:
        method = getattr(router, name, None)
        if method is None:
            continue
        try:
            answer = method(resource, **hints)
        except Exception as error:
            raise RoutingError(
                f"router {_name(router)} failed in {name}(): {error}"
            ) from error
        if answer is not None:
            return answer
    return None


def _name(router: Any) -> str:
    return getattr(router, "__qualname__", type(router).__qualname__)
