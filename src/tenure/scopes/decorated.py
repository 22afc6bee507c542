"""Blocks as decorators, and what is said where one is used in a wrong way."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import MethodType
from typing import Any, NoReturn, ParamSpec, TypeVar

from ..context import SESSION_CONTEXT, living
from ..errors import SessionError
from .retries import Retrying, retrying

P = ParamSpec("P")
T = TypeVar("T")


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


def tried(call: Callable[P, T], block: Any) -> Callable[P, T]:
    """Return *call*, which is tried again as *block* says, where it does not join."""
    again = block.retry
    if not isinstance(again, Retrying):
        again = retrying(attempts=again)
    whole = again(call)

    @wraps(call)
    def choose(*args: P.args, **kwargs: P.kwargs) -> T:
        # Only the owner of a session can do the work again.
        joins = not block.new and living(SESSION_CONTEXT.get()) is not None
        return (call if joins else whole)(*args, **kwargs)

    return choose
