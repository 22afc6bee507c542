"""Sessions of a block that scoped registries have as well."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any


class Registered:
    """What a block knows of registries: which one has its session, and which it closes."""

    # That of the session, and the key that it has there.
    _registry: Any = None
    _key: Any = None
    # Those with sessions of other factories, to be closed with the block.
    _adopted: tuple[MutableMapping[Any, Any], ...] = ()

    @property
    def _has_keys(self) -> bool:
        """Whether the registry is a mapping, not a thread's own variable."""
        return hasattr(self._registry, "scopefunc")

    def _unregister(self, session: Any) -> None:
        registry = self._registry
        if not self._has_keys:
            # Of this thread; that of another cannot be reached.
            if registry.has() and registry() is session:
                registry.clear()
        elif registry.registry.get(self._key) is session:
            del registry.registry[self._key]

    def adopt(self, registry: MutableMapping[Any, Any]) -> None:
        """Close with this block the session that *registry* has for it."""
        if not any(registry is adopted for adopted in self._adopted):
            self._adopted = (*self._adopted, registry)

    def _released(self) -> Iterator[Any]:
        """Yield the sessions to close with this block; registries forget them."""
        for registry in self._adopted:
            session = registry.pop(self, None)
            if session is not None:
                yield session
