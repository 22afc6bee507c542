"""Where callbacks run: outside of the block that is ending."""

from __future__ import annotations

from typing import Any

from ..context import SESSION_CONTEXT, living


class Outside:
    """A block in which the session of a scope that is ending is not current."""

    __slots__ = ("_is_moved", "_scope")

    def __init__(self, scope: Any) -> None:
        self._scope = scope
        self._is_moved = False

    def __enter__(self) -> None:
        scope = self._scope
        # A callback that joined it would write what nobody commits.
        if scope.is_leaving and SESSION_CONTEXT.get() is scope.session:
            SESSION_CONTEXT.set(scope.previous and living(scope.previous))
            self._is_moved = True

    def __exit__(self, *exc_info: object) -> None:
        if self._is_moved:
            SESSION_CONTEXT.set(self._scope.session)
