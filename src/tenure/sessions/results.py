"""
Results whose errors are ours: rows are read after the session's method has returned.

A result becomes an instance of a class derived from its own, made once, which differs in
the methods that read rows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from ..errors import translate

R = TypeVar("R")

_READING = (
    *("all", "fetchall", "fetchmany", "fetchone", "first", "one", "one_or_none"),
    *("scalar", "scalar_one", "scalar_one_or_none", "__next__", "__anext__"),
    *("columns", "freeze", "unique"),
)
_ITERATING = ("__iter__", "partitions")
# They give another result of the same rows, or of more.
_DERIVING = ("mappings", "merge", "scalars", "tuples")

_classes: dict[type[Any], type[Any]] = {}


def ours(result: R) -> R:
    """Let errors of SQLAlchemy leave the methods of *result* as a ``DatabaseError``."""
    cls = type(result)
    result.__class__ = _classes.get(cls) or _derived(cls)
    return result


def _derived(cls: type[Any]) -> type[Any]:
    methods: dict[str, Any] = {}
    for names, change in (
        (_READING, _translated),
        (_ITERATING, _iterated),
        (_DERIVING, lambda method: _translated(method, ours)),
    ):
        methods |= {
            name: change(getattr(cls, name)) for name in names if hasattr(cls, name)
        }
    about = {"__slots__": (), "__module__": cls.__module__, "__doc__": cls.__doc__}
    derived = type(cls.__name__, (cls,), methods | about)
    # tuples() of a result is the result itself.
    _classes[cls] = _classes[derived] = derived
    return derived


def _same(result: Any) -> Any:
    return result


def _translated(method: Any, then: Callable[[Any], Any] = _same) -> Any:
    if iscoroutinefunction(method):

        @wraps(method)
        async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await method(self, *args, **kwargs)
            except SQLAlchemyError as error:
                translate(error)
                raise

        return call_async

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return then(method(self, *args, **kwargs))
        except SQLAlchemyError as error:
            translate(error)
            raise

    return call


def _iterated(method: Any) -> Any:
    if isasyncgenfunction(method):

        @wraps(method)
        async def iterate_async(
            self: Any, *args: Any, **kwargs: Any
        ) -> AsyncIterator[Any]:
            try:
                async for each in method(self, *args, **kwargs):
                    yield each
            except SQLAlchemyError as error:
                translate(error)
                raise

        return iterate_async

    @wraps(method)
    def iterate(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from method(self, *args, **kwargs)
        except SQLAlchemyError as error:
            translate(error)
            raise

    return iterate
