"""How rows are serialized: as their columns, without I/O."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from pydantic import ConfigDict, TypeAdapter
from pydantic_core import PydanticSerializationUnexpectedValue
from sqlalchemy.orm.attributes import instance_state
from typing_extensions import TypedDict

from ..errors import SessionError
from ..mapping import annotation, mapper_of, readable_columns
from ..references import Proxy, target_of

_writers: WeakKeyDictionary[type[Any], TypeAdapter[Any]] = WeakKeyDictionary()


def typed_dict_adapter(entity: type[Any], fields: dict[str, Any]) -> TypeAdapter[Any]:
    """Return the adapter of a mapping that has *fields* only."""
    make: Any = TypedDict
    kind = make(entity.__name__, fields)
    kind.__pydantic_config__ = ConfigDict(extra="forbid", title=entity.__name__)
    return TypeAdapter(kind)


def writer_of(entity: type[Any]) -> TypeAdapter[Any]:
    """Return the serializer of the columns of a mapped class."""
    found = _writers.get(entity)
    if found is None:
        mapper = mapper_of(entity)
        fields = {
            name: annotation(mapper, name, column)
            for name, column in readable_columns(mapper)
        }
        found = _writers[entity] = typed_dict_adapter(entity, fields)
    return found


def serialize(entity: type[Any], instance: Any, info: Any) -> Any:
    """
    Return the columns of a row by attribute; of a new instance, those that were set.

    Raises:
        SessionError: A column of a row is not loaded.
    """
    if not isinstance(instance, entity):
        raise PydanticSerializationUnexpectedValue(
            f"expected {entity.__name__}, not {type(instance).__name__}"
        )
    if type(instance) is Proxy:
        instance = target_of(instance)
    state = instance_state(instance)
    names = dict(readable_columns(state.mapper))
    unloaded = [name for name in names if name not in state.dict]
    if unloaded and state.key is not None:
        raise SessionError(
            f"{type(instance).__name__}.{unloaded[0]} is not loaded, and serializing "
            f"must not wait for the database; refresh() the instance, or "
            f"commit(expire=False)"
        )
    return writer_of(type(instance)).serializer.to_python(
        {name: state.dict[name] for name in names if name in state.dict},
        mode=info.mode,
        include=info.include,
        exclude=info.exclude,
        exclude_none=info.exclude_none,
        round_trip=info.round_trip,
    )
