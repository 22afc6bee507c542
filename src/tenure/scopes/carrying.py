"""Work for threads that would not see what is current here, and what is said without it."""

from __future__ import annotations

import threading
from asyncio import Task, get_running_loop
from collections.abc import Callable
from contextvars import copy_context
from functools import wraps
from inspect import (
    isasyncgenfunction,
    iscoroutine,
    iscoroutinefunction,
    isgeneratorfunction,
)
from typing import Any, ParamSpec, TypeVar

from .._private import all_sessions
from ..errors import SessionError
from ..sessions import current_user

P = ParamSpec("P")
T = TypeVar("T")


def carry(function: Callable[P, T]) -> Callable[P, T]:
    """
    Return *function* for another thread, where what is current here is current as well.

    ``ThreadPoolExecutor`` and ``run_in_executor`` start work without the context of who
    asks for it, so it would see no session and make one of its own. With it, it joins the
    current session. Whoever carries it has to wait for it inside of the block: a session
    has one user at a time.

    Args:
        function: A function or a coroutine function. What is current is looked at when
            ``carry()`` is called; each call gets a copy, so threads may call it at once.

    Raises:
        SessionError: It is a generator function, a coroutine, or cannot be called.
    """
    if isgeneratorfunction(function) or isasyncgenfunction(function):
        raise SessionError(
            f"carry() cannot carry {_name(function)}, a generator: its body runs where it "
            f"is asked for its items; carry the function that reads them"
        )
    if not callable(function):
        if iscoroutine(function):
            # Nobody will.
            function.close()
        raise SessionError(
            f"carry() takes a function, and gives one: not {function!r}; give the "
            f"function itself, or functools.partial() of it"
        )
    context = copy_context()
    if iscoroutinefunction(function):

        @wraps(function)
        async def call_async(*args: P.args, **kwargs: P.kwargs) -> Any:
            work = function(*args, **kwargs)
            return await get_running_loop().create_task(work, context=context.copy())

        return call_async  # type: ignore[return-value]  # a coroutine function again

    # A context can be entered by one thread at a time.
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return context.copy().run(function, *args, **kwargs)

    return call


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)


def missing(what: str) -> SessionError:
    """Return the error for a session that is not current, and maybe in another thread."""
    me = current_user()
    thread = threading.current_thread()
    # Tasks are started with the context of who starts them.
    for session in () if isinstance(me, Task) else list(all_sessions.values()):
        scope = getattr(session, "_tenure_scope", None)
        if scope is not None and not scope.has_ended and scope.user != me:
            what += (
                f"; thread {thread.name!r} has no context of the block that is open at "
                f"{scope.line}: if this is work of that block, start it with carry()"
            )
            break
    return SessionError(what)
