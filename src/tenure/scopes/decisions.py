"""How a block gets its session, and how it ends: decided without a database."""

from __future__ import annotations

from typing import Literal

#: How a block gets its session.
Entry = Literal["create", "join", "savepoint"]


def decide(
    current: bool,
    same_factory: bool,
    new: bool,
    on_missing: str | None,
    savepoint: bool,
) -> Entry | None:
    """
    Return how a block gets its session; ``None``: it may not have one.

    Args:
        current: There is a session of the right kind.
        same_factory: The block does not ask for one of another factory.
    """
    if current and not new and same_factory:
        return "savepoint" if savepoint else "join"
    if not current and not new and on_missing == "raise":
        return None
    return "create"


#: How a block ends, once it is left. ``"discard"``: closing undoes what was not
#: committed. ``"owe"``: that, but a joined block counted on a commit. ``"leave"``: the
#: block that owns the session will end it. ``"lose"``: that block has ended before; what
#: was written since cannot be kept.
Ending = Literal["commit", "rollback", "discard", "owe", "leave", "lose"]


def ending(
    error: BaseException | None,
    *,
    owns: bool,
    auto_commit: bool,
    owner_ended: bool = False,
    has_written: bool = False,
    owes: bool = False,
) -> Ending:
    """Return how a block ends that left with *error*; *owes*: blocks count on a commit."""
    if not owns and not owner_ended:
        return "leave"
    # A generator that nobody asks for more has not failed.
    if error is not None and not (owes and isinstance(error, GeneratorExit)):
        return "rollback"
    if owns:
        if auto_commit and error is None:
            return "commit"
        return "owe" if owes else "discard"
    return "lose" if has_written else "discard"
