"""The options of blocks, as type checkers see them."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from ..routing import Role
from .retries import Retrying

OnMissing = Literal["create", "raise"]
#: How old what a block reads may be. Without replicas, all of it is current.
Consistency = Literal["strong", "session", "bounded", "eventual"]


class DatabaseOptions(TypedDict, total=False):
    """The options of a block on a database, which has the factory."""

    auto_commit: bool
    new: bool
    on_missing: OnMissing
    savepoint: bool
    role: Role | None
    consistency: Consistency | None
    expire: bool | None
    retry: Retrying | int | None


class Options(DatabaseOptions, total=False):
    """The options of a block; see :class:`session_manager`."""

    using: Any
