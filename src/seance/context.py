"""
What is current: the session, the bulk, the application.

The only file that sets these variables. A scope may be left in another context
than the one it was entered in (frameworks finish generators that way), where a
token could not be reset, so state is restored by comparing what is current.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from .bulk import AsyncSessionBulk, SessionBulk


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
SESSION_BULK_CONTEXT: ContextVar[SessionBulk | AsyncSessionBulk | None] = ContextVar(
    "SESSION_BULK_CONTEXT", default=None
)
#: The current application: where a scope finds a factory when none is given.
APP_CONTEXT: ContextVar[Application | None] = ContextVar("APP_CONTEXT", default=None)

# What is current in this context, innermost last, over what was before. Kept
# apart: a block may be left before one inside of it, or where it never was.
_applications: ContextVar[tuple[Application | None, ...]] = ContextVar(
    "_applications", default=()
)
_installed: list[Application] = []


def enter(application: Application) -> None:
    """Make *application* the current one."""
    entered = _applications.get() or (APP_CONTEXT.get(),)
    _applications.set((*entered, application))
    APP_CONTEXT.set(application)


def leave(application: Application) -> None:
    """Undo one :func:`enter`, in whatever order and context."""
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
    """Give the current application, else the installed one."""
    application = APP_CONTEXT.get()
    if application is None and _installed:
        return _installed[0]
    return application


def restore(variable: ContextVar[Any], mine: object, previous: object) -> None:
    """Put *previous* back, but only if *mine* is what is current here."""
    if variable.get() is mine:
        variable.set(previous)
