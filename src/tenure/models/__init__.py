"""Mapped classes as Pydantic types, and Pydantic models of mapped classes."""

from .resource import (
    Resource,
    Spec,
    as_attribute,
    check_fields,
    computed_attributes,
    defaulted_fields,
    entity_of,
    given_fields,
    instances_in,
    is_composed,
    is_spec_schema,
)
from .unconnected import (
    Unconnected,
    assign,
    connect,
    connect_all,
    is_given,
    is_waiting,
    items_of,
    lift,
    unconnected_in,
)

__all__ = [
    "Resource",
    "Spec",
    "Unconnected",
    "as_attribute",
    "assign",
    "check_fields",
    "computed_attributes",
    "connect",
    "connect_all",
    "defaulted_fields",
    "entity_of",
    "given_fields",
    "instances_in",
    "is_composed",
    "is_given",
    "is_spec_schema",
    "is_waiting",
    "items_of",
    "lift",
    "unconnected_in",
]
