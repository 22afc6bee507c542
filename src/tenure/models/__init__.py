"""Mapped classes as Pydantic types, and Pydantic models of mapped classes."""

from .resource import (
    Resource,
    Spec,
    as_attribute,
    check_fields,
    entity_of,
    given_fields,
    instances_in,
    is_exact,
)

__all__ = [
    "Resource",
    "Spec",
    "as_attribute",
    "check_fields",
    "entity_of",
    "given_fields",
    "instances_in",
    "is_exact",
]
