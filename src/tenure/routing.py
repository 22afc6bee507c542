"""
Routers, and which database a resource goes to.

A router answers with an alias or ``None``; the first answer wins. Django's
names for the same questions are accepted, so a Django router works as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any, Literal

from sqlalchemy import (
    Connection,
    Engine,
)

from .errors import RoutingError

Role = Literal["read", "write"]

DEFAULT = "default"
BY_DEFAULT = "the default"

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
    keywords, and answers with an alias or ``None``. A session's hints are
    ``role``, ``session``, ``statement`` and ``in_transaction``; a method gets
    those it has parameters for.
    """

    def get_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        """Return the alias for reading and writing *resource*."""
        return None

    def get_read_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        """Return the alias for reading *resource*."""
        return None

    def get_write_engine(self, resource: Any = None, **kwargs: Any) -> str | None:
        """Return the alias for writing *resource*."""
        return None

    def is_migration_allowed(
        self, engine: str, package: str, **kwargs: Any
    ) -> bool | None:
        """Return whether *package* may migrate on *engine*; ``None``: no opinion."""
        return None


# What "no opinion" looks like; asking it takes as long as asking anybody.
_SILENT = frozenset(
    {
        DatabaseRouter.get_engine,
        DatabaseRouter.get_read_engine,
        DatabaseRouter.get_write_engine,
    }
)

#: What can choose an engine, in the order they are asked.
Rule = Literal[
    "bind_arguments",
    "execution option",
    "using()",
    "binds",
    "bind",
    "pinned",
    "router",
    "default",
]


@dataclass(frozen=True, slots=True)
class Choice:
    """
    The engine of a statement, and why it is that one.

    Attributes:
        engine: What the statement would be sent to.
        alias: Its name in the :class:`DatabaseManager`; ``None`` if it has none.
        role: What the statement is taken to do.
        rule: The rule that chose, the first of its order that had an answer.
        why: The same for a reader, with the names involved.
    """

    engine: Engine | Connection
    alias: str | None
    role: Role
    rule: Rule
    why: str

    def __str__(self) -> str:
        name = self.alias or repr(self.engine)
        return f"{name} ({self.role}), by {self.rule}: {self.why}"


def choose(
    routers: Iterable[Any],
    resource: Any,
    role: Role | None,
    session: Any = None,
    statement: Any = None,
    in_transaction: bool = False,
) -> tuple[str, str]:
    """
    Return the alias for *resource* and what chose it.

    All but the resource are hints: a router gets those it has parameters for.

    Raises:
        RoutingError: A router raised, or answered with something else.
    """
    asked = routers if type(routers) is Routers else Routers(routers)
    if asked.looked_at != asked:
        asked.look()
    for router, name, known, by in asked.questions[role]:
        method = getattr(router, name)
        try:
            if known is None:
                # Written out: a mapping would be copied for each router.
                answer = method(
                    resource,
                    role=role,
                    session=session,
                    statement=statement,
                    in_transaction=in_transaction,
                )
            else:
                hints = {
                    "role": role,
                    "session": session,
                    "statement": statement,
                    "in_transaction": in_transaction,
                }
                answer = method(resource, **_only(known, hints))
        except Exception as error:
            raise _failed(router, method, error) from error
        if answer is not None:
            return _checked(answer, router), by
    return DEFAULT, BY_DEFAULT


class Routers(list[Any]):
    """
    Routers, and which of them has a method for which question.

    Looked up when they change, not for each statement.
    """

    def __init__(self, routers: Iterable[Any] = ()) -> None:
        super().__init__(routers)
        #: What :meth:`look` has seen.
        self.looked_at: list[Any] | None = None
        #: For each role the methods to ask, in order, with the hints that each takes.
        self.questions: dict[Role | None, list[_Question]] = {}

    def look(self) -> None:
        """Find out what to ask whom."""
        self.questions = {role: self._look(role) for role in _QUESTIONS}
        self.looked_at = [*self]

    def _look(self, role: Role | None) -> list[_Question]:
        return [
            (router, name, _parameters(function), f"router {_name(router)}")
            for names in _QUESTIONS[role]
            for router in self
            for name in names
            if (method := getattr(router, name, None)) is not None
            # The methods of DatabaseRouter have no answer.
            and (function := getattr(method, "__func__", method)) not in _SILENT
        ]


#: The router, its method, the hints that takes, and what to say if it answers.
_Question = tuple[Any, str, frozenset[str] | None, str]


def may_migrate(routers: Iterable[Any], engine: str, package: str) -> bool:
    """
    Return the first router's opinion; without one, migrating is allowed.

    Raises:
        RoutingError: A router raised.
    """
    for router in routers:
        for name in ("is_migration_allowed", "allow_migrate"):
            method = getattr(router, name, None)
            if method is None:
                continue
            answer = _call(router, method, engine, package)
            if answer is not None:
                return bool(answer)
    return True


def _call(router: Any, method: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return method(*arguments)
    except Exception as error:
        raise _failed(router, method, error) from error


def _failed(router: Any, method: Any, error: Exception) -> RoutingError:
    name = getattr(method, "__name__", repr(method))
    return RoutingError(f"router {_name(router)} failed in {name}(): {error}")


def _checked(answer: Any, router: Any) -> str:
    if isinstance(answer, str):
        return answer
    raise RoutingError(
        f"router {_name(router)} answered {answer!r}; a router gives an alias or None"
    )


def _only(names: frozenset[str], hints: Mapping[str, Any]) -> dict[str, Any]:
    return {name: hint for name, hint in hints.items() if name in names}


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> frozenset[str] | None:
    """Name the keywords *function* takes; ``None``: any."""
    parameters = signature(function).parameters.values()
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _name(router: Any) -> str:
    return type(router).__qualname__
