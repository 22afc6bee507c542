"""What is wrong with a payload, as Pydantic reports it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError


def problem_at(error: PydanticCustomError, name: str, given: Any) -> InitErrorDetails:
    return InitErrorDetails(type=error, loc=(name,), input=given)


def filled_twice(relationship: str, column: str) -> PydanticCustomError:
    return PydanticCustomError(
        "link_twice",
        "{relationship} fills it already; give one of the two",
        {"relationship": relationship, "column": column},
    )


def filled_around(name: str) -> PydanticCustomError:
    return PydanticCustomError(
        "link_twice", "the value around this one fills {name}", {"name": name}
    )


def none_given(names: Iterable[str]) -> PydanticCustomError:
    listed = " or ".join(dict.fromkeys(names))
    return PydanticCustomError("missing", "{names} is required", {"names": listed})
