"""
What a payload registers with a bulk while it is validated: all of it, or nothing.

Pydantic tries branches of unions and drops them, and refuses a payload after it has
validated most of it. So what the outermost validation registers is kept apart until
it has succeeded, and then only what its result holds is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, TypeVar

from ..context import ATTEMPT, SESSION_BULK_CONTEXT
from ..mapping import Shape
from .graphs import contents, mark_made
from .proxy import Proxy, ReferenceValidator, Registry

T = TypeVar("T")


class Attempt(Registry):
    """
    What one payload has registered so far.

    References that the bulk has are shared with it; new ones are known only here.

    Attributes:
        base: Where it all goes in the end; ``None`` outside of a bulk.
        values: The instances that were made from data.
        inside: The mappings (their ids) that are being validated, outermost first.
    """

    def __init__(self, bulk: Any) -> None:
        self._bulk = bulk
        self.base: Registry | None = None if bulk is None else bulk._registry
        super().__init__(None if self.base is None else self.base.hand)
        self.values: list[Any] = []
        self.inside: list[int] = []

    def recall(self, validator: ReferenceValidator, given: Any) -> Proxy | None:
        """Give what *validator* made of an input, of this payload or before."""
        found = None if self.base is None else self.base.recall(validator, given)
        return super().recall(validator, given) if found is None else found

    def _at(self, shape: Shape, token: tuple[Any, ...]) -> Proxy | None:
        found = None if self.base is None else self.base._at(shape, token)
        return super()._at(shape, token) if found is None else found

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to pass on."""
        return not (self._proxies or self.values or self._adopted)

    def run(self, validate: Callable[..., T], *given: Any) -> T:
        """Validate; what that registers goes here."""
        token = ATTEMPT.set(self)
        try:
            return validate(*given)
        finally:
            ATTEMPT.reset(token)

    def keep(self, payload: Any, held: Collection[int] | None = None) -> None:
        """
        Pass on to the bulk what was registered.

        Args:
            payload: What validation gave.
            held: The ids of what the payload holds; ``None``: all that there is.
        """
        base = self.base
        if base is None:
            for value in self.values:
                mark_made(value)
            return
        for shape, proxies in self._proxies.items():
            for token, proxy in proxies.items():
                if held is None or id(proxy) in held:
                    found = base.put(shape, token, proxy)
                    if found is not proxy:
                        # Another thread came first.
                        base.adopt(proxy)
        for validator, known in self.raw.items():
            for given, proxy in known.items():
                if held is None or id(proxy) in held:
                    base.remember(validator, given, proxy)
        base._adopted.update(self._adopted)
        values = [v for v in self.values if held is None or id(v) in held]
        if values:
            self._bulk._add_values(values, payload)


def current_attempt(bulk: Any) -> Attempt | None:
    """Give the attempt to register with *bulk* that is under way, if there is one."""
    attempt = ATTEMPT.get()
    base = None if bulk is None else bulk._registry
    return attempt if attempt is not None and attempt.base is base else None


def attempted(value: Any, validate: Callable[[Any], T]) -> T:
    """Validate, and register all that this does, unless it fails."""
    bulk = SESSION_BULK_CONTEXT.get()
    attempt = Attempt(bulk)
    result = attempt.run(validate, value)
    attempt.keep(result)
    return result


def exactly(value: Any, handler: Callable[[Any], Any]) -> Any:
    """
    Validate, and register what the result holds; nothing, if it is refused.

    A wrap validator. Within another attempt it leaves all this to that one.
    """
    bulk = SESSION_BULK_CONTEXT.get()
    if bulk is None or current_attempt(bulk) is not None:
        return handler(value)
    attempt = Attempt(bulk)
    result = attempt.run(handler, value)
    if not attempt.is_empty:
        attempt.keep(result, held_by(result))
    return result


def held_by(result: Any) -> Collection[int] | None:
    """
    Give the ids of the references and instances that a result holds.

    ``None`` where it holds what cannot be looked into: it may hold any of them.
    """
    held = set()
    for _, found in contents(result):
        if type(found) is not Proxy and not hasattr(found, "_sa_instance_state"):
            return None
        held.add(id(found))
    return held
