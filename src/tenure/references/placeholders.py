"""
References as instances of the mapped class itself, for ``proxy_reference=False``.

A placeholder is an instance with the attributes of its key and a state of its own
class, which raises an error whenever SQLAlchemy needs the row: add, cascade, flush,
lazy load. Once the reference is resolved, the placeholder is the row's instance, or
shares its state with it.
"""

from __future__ import annotations

from typing import Any, NoReturn

from sqlalchemy.orm import Session, SynonymProperty, make_transient_to_detached
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.state import InstanceState

from .._private import RefusingState
from ..errors import UnresolvedReferenceError
from ..mapping import identifiers
from .proxy import Proxy, instance_found, is_resolved, key_of, shape_of, target_of


class UnresolvedState(RefusingState):
    """The state of a placeholder whose row is not known yet."""

    __slots__ = ()

    def refuse(self, wanted: str) -> NoReturn:
        """Raise: the reference is not resolved."""
        proxy: Proxy = self.__dict__["_tenure_proxy"]
        raise UnresolvedReferenceError(shape_of(proxy).entity, key_of(proxy), wanted)


class Placeholders:
    """The placeholders of one bulk: one for each reference."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Proxy, Any]] = {}

    def of(self, proxy: Any) -> Any:
        """Return the placeholder of a reference, or its row's instance if known."""
        if type(proxy) is not Proxy:
            return proxy
        if is_resolved(proxy):
            return target_of(proxy)
        found = self._made.get(id(proxy))
        if found is None:
            # Another thread may have been first.
            found = self._made.setdefault(id(proxy), (proxy, self._make(proxy)))
        return found[1]

    def _make(self, proxy: Proxy) -> Any:
        mapper = shape_of(proxy).mapper
        instance = mapper.class_manager.new_instance()
        state: Any = instance_state(instance)
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
        """Make placeholders the instances of rows that *session* has none of."""
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
                instance_found(proxy, row, placeholder)

    def share_rows(self) -> None:
        """Make placeholders share the state of the rows' instances that are known."""
        for number, (proxy, placeholder) in list(self._made.items()):
            if is_resolved(proxy):
                target = target_of(proxy)
                if target is not placeholder:
                    _share(placeholder, target)
                del self._made[number]


def _become(placeholder: Any, identity: tuple[Any, ...], session: Session) -> None:
    state: Any = instance_state(placeholder)
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
    state: Any = instance_state(target)
    # A state holds its instance weakly; a user of the placeholder needs both.
    state._tenure_shared = target
    object.__setattr__(placeholder, "__class__", type(target))
    object.__setattr__(placeholder, "__dict__", target.__dict__)
