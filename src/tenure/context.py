"""
What is current: the session, the bulk, the application.

A scope may be left in another context than the one it was entered in (frameworks finish
generators that way), where a token cannot be reset. So whoever sets a variable restores
it only if its own value is current.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session


class CurrentBulk(Protocol):
    """A bulk, sync or async, that registers what Pydantic validates."""

    session: Any

    def add(self, instance: Any, *, is_reference: bool = False) -> Any:
        """Take in a value or references; no I/O."""

    def validate(self, type_: Any, data: Any) -> Any:
        """Validate *data* as Pydantic would, and add what comes out; no I/O."""


class Using(Protocol):
    """A block in which sessions use one database."""

    def alias_for(self, manager: object) -> str | None:
        """Return the alias for sessions of *manager*; ``None``: it says nothing."""


class Application(Protocol):
    """What can be the current application: anything with these two factories."""

    @property
    def session(self) -> Any: ...

    @property
    def async_session(self) -> Any: ...


#: The current session, sync or async, or ``None``.
SESSION_CONTEXT: ContextVar[Session | AsyncSession | None] = ContextVar(
    "SESSION_CONTEXT", default=None
)
#: The bulk that references and values register with while Pydantic validates.
SESSION_BULK_CONTEXT: ContextVar[CurrentBulk | None] = ContextVar(
    "SESSION_BULK_CONTEXT", default=None
)
#: What the payload that is being validated has registered so far.
DRAFT: ContextVar[Any] = ContextVar("DRAFT", default=None)
#: The current application: where a scope finds a factory when none is given.
APP_CONTEXT: ContextVar[Application | None] = ContextVar("APP_CONTEXT", default=None)
#: The joined blocks with ``role="read"`` around the code that runs.
READING: ContextVar[tuple[Any, ...]] = ContextVar("READING", default=())
#: The innermost block of :func:`using`.
USING: ContextVar[Using | None] = ContextVar("USING", default=None)

# What is current in this context, innermost last, over what was before. Kept
# apart: a block may be left before one inside of it, or where it never was.
_applications: ContextVar[tuple[Application | None, ...]] = ContextVar(
    "_applications", default=()
)
_installed: list[Application] = []
# Those that are entered, in whatever context.
_entered: list[Application] = []


def enter(application: Application) -> None:
    """Make *application* the current one."""
    entered = _applications.get() or (APP_CONTEXT.get(),)
    _applications.set((*entered, application))
    APP_CONTEXT.set(application)
    _entered.append(application)


def leave(application: Application) -> None:
    """Undo one :func:`enter`, in whatever order and context."""
    if application in _entered:
        _entered.remove(application)
    entered = list(_applications.get())
    if application not in entered[1:]:
        return
    place = len(entered) - 1 - entered[::-1].index(application)
    del entered[place]
    restore(APP_CONTEXT, application, entered[-1])
    _applications.set(tuple(entered) if len(entered) > 1 else ())


def install(application: Application) -> None:
    """Make *application* the one used where no application is current."""
    _installed[:] = [application]


def uninstall(application: Application) -> None:
    """Undo :func:`install`, if *application* is the one installed."""
    if application in _installed:
        _installed.clear()


def current_application() -> Application | None:
    """Return the current application, else the installed one."""
    application = APP_CONTEXT.get()
    if application is None and _installed:
        return _installed[0]
    return application


def is_entered_elsewhere() -> bool:
    """Whether an application is entered, in a context that is not this one."""
    return bool(_entered) and APP_CONTEXT.get() is None


def restore(variable: ContextVar[Any], mine: object, previous: object) -> None:
    """Restore *previous*, but only if *mine* is current here."""
    if variable.get() is mine:
        variable.set(previous)


def is_async(session: Any) -> bool:
    """Whether *session*, or a class of sessions, is async."""
    return hasattr(session, "sync_session") or hasattr(session, "sync_session_class")


def has_ended(session: Any) -> bool:
    """Whether *session* was made by a block that has ended."""
    scope = getattr(session, "_tenure_scope", None)
    return scope is not None and scope.has_ended


def living(session: Any) -> Any:
    """
    Return *session*, or what was current around it if it has ended.

    Blocks of generators end in any order, and a task may outlive the block that
    it was started in.
    """
    while session is not None:
        scope = getattr(session, "_tenure_scope", None)
        if scope is None or not scope.has_ended:
            break
        session = scope.previous
    return session


class _Context:
    """What a context is known by outside of all blocks."""

    __slots__ = ("__weakref__",)


_context: ContextVar[_Context | None] = ContextVar("_context", default=None)


def context_scope() -> Any:
    """
    Name the current scope; a ``scopefunc`` for scoped registries.

    Inside of a block: the block that made the current session, so the registry gives
    one session to all of it, in whatever thread or task. Outside: the context, and
    those copied from it since.
    """
    session: Any = living(SESSION_CONTEXT.get())
    if session is not None:
        return getattr(session, "_tenure_scope", None) or session
    context = _context.get()
    if context is None:
        context = _Context()
        _context.set(context)
    return context
