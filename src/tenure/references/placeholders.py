"""
References as instances of the mapped class itself, for ``proxy_reference=False``.

A placeholder is an instance that has the attributes of its key and a state of its
own class. Whatever SQLAlchemy does with an instance asks its state for a key first
(add, cascade, flush, lazy load), and this one has none to give until the reference is
resolved. Then the placeholder is the row's instance, or shares everything with it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic import BaseModel
from sqlalchemy.orm import Session, SynonymProperty, make_transient_to_detached
from sqlalchemy.orm.state import InstanceState

from ..errors import UnresolvedReferenceError
from ..mapping import identifiers
from .proxy import Proxy, is_resolved, key_of, settle_instance, shape_of, target_of


class UnresolvedState(InstanceState[Any]):
    """The state of a placeholder that is not resolved yet."""

    __slots__ = ()

    def _refuse(self, wanted: str) -> NoReturn:
        proxy: Proxy = self.__dict__["_tenure_proxy"]
        raise UnresolvedReferenceError(shape_of(proxy).entity, key_of(proxy), wanted)

    @property
    def key(self) -> Any:  # type: ignore[override]  # read only until it is resolved
        """Asked for by all that would write the instance, or load from it."""
        self._refuse("row")

    def _load_expired(self, state: Any, passive: Any) -> Any:
        self._refuse("attributes")

    def __getstate__(self) -> dict[str, Any]:
        # A copy could not be told when the row is known.
        self._refuse("copy")

    def _modified_event(self, dict_: Any, attr: Any, *args: Any, **kwargs: Any) -> None:
        self._refuse(f"{attr.key!r}" if attr is not None else "row")


class Placeholders:
    """The placeholders of one bulk: one for each reference."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Proxy, Any]] = {}

    def of(self, proxy: Any) -> Any:
        """Give the placeholder of a reference, its row once that is known."""
        if type(proxy) is not Proxy:
            return proxy
        if is_resolved(proxy):
            return target_of(proxy)
        found = self._made.get(id(proxy))
        if found is None:
            # Another thread may have come first.
            found = self._made.setdefault(id(proxy), (proxy, self._make(proxy)))
        return found[1]

    def _make(self, proxy: Proxy) -> Any:
        mapper = shape_of(proxy).mapper
        instance = mapper.class_manager.new_instance()
        state: Any = instance._sa_instance_state
        for name, value in key_of(proxy).items():
            prop = mapper.attrs[name]
            held = prop.name if isinstance(prop, SynonymProperty) else name
            state.dict[held] = self.of(value)
        names = (prop.key for prop in mapper.column_attrs)
        state.expired_attributes.update(n for n in names if n not in state.dict)
        state._tenure_proxy = proxy
        state.__class__ = UnresolvedState
        return instance

    def bind(self, session: Session) -> None:
        """Let those be the session's instances whose rows it does not know yet."""
        for proxy, placeholder in self._made.values():
            row = proxy._tenure_row
            if row is None or proxy._tenure_target is not None:
                continue
            shape = shape_of(proxy)
            mapper = identifiers(shape.mapper).mapper_for(row)
            identity = row[: len(shape.primary_key)]
            known = session.identity_map.get(
                mapper.identity_key_from_primary_key(identity)
            )
            if known is None and mapper is shape.mapper:
                _become(placeholder, identity, session)
                settle_instance(proxy, row, placeholder)

    def settle(self) -> None:
        """Let all those whose references are resolved share everything with the row."""
        for number, (proxy, placeholder) in list(self._made.items()):
            if is_resolved(proxy):
                target = target_of(proxy)
                if target is not placeholder:
                    _share(placeholder, target)
                del self._made[number]


def _become(placeholder: Any, identity: tuple[Any, ...], session: Session) -> None:
    state: Any = placeholder._sa_instance_state
    mapper = state.mapper
    state.__class__ = InstanceState
    del state._tenure_proxy
    for prop in mapper.attrs:
        state.dict.pop(prop.key, None)
    for column, value in zip(mapper.primary_key, identity, strict=True):
        state.dict[mapper.get_property_by_column(column).key] = value
    state.expired_attributes.clear()
    make_transient_to_detached(placeholder)
    session.add(placeholder)


def _share(placeholder: Any, target: Any) -> None:
    state: Any = target._sa_instance_state
    # A state does not keep its instance; who holds the placeholder wants both.
    state._tenure_shared = target
    object.__setattr__(placeholder, "__class__", type(target))
    object.__setattr__(placeholder, "__dict__", target.__dict__)


def reference_in(value: Any) -> Any:
    """
    Give what an instance in a payload means.

    The reference it is a placeholder of, the row if that is resolved, else itself.
    """
    state: Any = value._sa_instance_state
    if isinstance(state, UnresolvedState):
        return state.__dict__["_tenure_proxy"]
    row = state.obj()
    return value if row is None else row


def is_placeholder(value: Any) -> bool:
    """Whether *value* stands for a row that is not known yet."""
    if type(value) is Proxy:
        return False
    return isinstance(getattr(value, "_sa_instance_state", None), UnresolvedState)


def replace_in(value: Any) -> Any:
    """Give *value* with rows in the place of their placeholders; models in place."""
    if type(value) is Proxy:
        return value
    if "_sa_instance_state" in getattr(value, "__dict__", ()):
        found = reference_in(value)
        return value if type(found) is Proxy else found
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            if name in value.__dict__:
                value.__dict__[name] = replace_in(value.__dict__[name])
        return value
    if isinstance(value, dict):
        return {key: replace_in(item) for key, item in value.items()}
    if isinstance(value, (list, set, frozenset)):
        return type(value)([replace_in(item) for item in value])
    return value
