"""Blocks as decorators, and what is said where one is used in a wrong way."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any, NoReturn

from ..errors import SessionError


def refuse(function: Any, kind: str, why: str) -> NoReturn:
    name = getattr(function, "__qualname__", repr(function))
    raise SessionError(f"{kind}() cannot decorate {name}, {why}")


def wrong_with(block: Any, given: str, wanted: str) -> SessionError:
    return SessionError(
        f"'{given} {block.kind}()' cannot work: write '{wanted} {block.kind}()', or "
        f"'{given} {block.other}()'"
    )


class Function:
    """What a decorator without parentheses becomes: the function in a block."""

    _function: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else MethodType(self, instance)


class CoroutineFunction(Function):
    """The same for a coroutine function."""

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self._function(*args, **kwargs)
