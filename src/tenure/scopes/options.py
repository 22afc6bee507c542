"""The options of blocks, as type checkers see them."""

from __future__ import annotations

from typing import Literal, TypedDict

from ..routing import Role
from .retries import Retrying

OnMissing = Literal["create", "raise"]
#: How old what a block reads may be. Without replicas, all of it is current.
Consistency = Literal["strong", "session", "bounded", "eventual"]


class Options(TypedDict, total=False):
    """The options of a block, without its factory; see :class:`session_manager`."""

    auto_commit: bool
    new: bool
    on_missing: OnMissing | None
    savepoint: bool
    role: Role | None
    consistency: Consistency | None
    expire: bool | None
    retry: Retrying | int | None
