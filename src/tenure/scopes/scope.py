"""
Scopes: blocks in which one session is current.

:func:`decide` says how a block gets its session, :func:`ending` how it ends; both are
pure. The two kinds of blocks are in :mod:`tenure.scopes.managers`.
"""

from __future__ import annotations

import sys
import time
from asyncio import _get_running_loop, current_task
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from threading import get_ident
from traceback import StackSummary, extract_stack
from types import CodeType, FrameType
from typing import Any, Literal, Self, get_args

from sqlalchemy.orm import Session as _Session
from sqlalchemy.util import ScopedRegistry

from ..callers import UNKNOWN, Line, caller
from ..context import (
    READING,
    SESSION_BULK_CONTEXT,
    SESSION_CONTEXT,
    context_scope,
    current_application,
    has_ended,
    is_async,
    is_entered_elsewhere,
    living,
    restore,
)
from ..errors import SessionError
from ..routing import Role
from ..sessions import Session, checked
from .carrying import missing
from .joining import Joining
from .options import Consistency, OnMissing
from .outside import Outside
from .registered import Registered
from .retries import Retrying

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


class Block(Registered, Joining):
    """What both drivers share: arguments, the decision, the context."""

    # Class-level defaults, as a block is made for every request.
    #: How the block got its session; None until it is entered.
    how: Entry | None = None
    has_ended = False
    #: Set while the block ends.
    is_leaving = False
    #: What was current before, if the block made a session.
    previous: Any = None
    #: The stack that has opened the block, if somebody wants to know.
    stack: StackSummary | None = None
    #: For the decorator: how its calls are tried again.
    retry: Retrying | int | None = None
    opened: float = 0.0  # by the monotonic clock
    _line: Line | tuple[CodeType, int] = UNKNOWN
    _bulk: Any = None

    def __init__(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        using: Any = None,
        auto_commit: bool = False,
        new: bool = False,
        on_missing: OnMissing | None = None,
        savepoint: bool = False,
        role: Role | None = None,
        consistency: Consistency | None = None,
        expire: bool | None = None,
        retry: Retrying | int | None = None,
    ) -> None:
        if on_missing is not None:
            checked("on_missing", on_missing, OnMissing)
        if using is not None:
            self._check_factory(using)
        if role is not None and role not in ("read", "write"):
            raise SessionError(f"role is 'read' or 'write', not {role!r}")
        if consistency is not None and consistency not in _CONSISTENCIES:
            raise SessionError(
                f"consistency is {', '.join(map(repr, _CONSISTENCIES))}, "
                f"not {consistency!r}"
            )
        self.using = using
        self.auto_commit = auto_commit
        self.new = new
        self.on_missing = on_missing
        self.savepoint = savepoint
        self.role = role
        self.consistency = consistency
        self.expire = expire
        if retry is not None:
            self.retry = retry
        if function is not None:
            self._become(function)

    def _become(self, function: Callable[..., Any]) -> None:
        """Be *function* in a block: the decorator has no parentheses."""
        if not callable(function):
            raise SessionError(
                f"{self.kind}() takes options by their names, not {function!r}"
            )
        wrapped: Any = self._again()(function)  # type: ignore[operator]  # of the two kinds
        decorated: Any = self
        decorated.__class__ = self.decorated
        vars(decorated).clear()
        update_wrapper(decorated, function)
        decorated._function = wrapped

    def _check_factory(self, using: Any) -> None:
        if not callable(using):
            raise SessionError(
                f"using is a session factory, not {using!r}; make one with "
                f"session_factory() or async_session_factory()"
            )
        made = getattr(using, "class_", None)
        if made is None:
            made = getattr(getattr(using, "session_factory", None), "class_", None)
        is_wrong = hasattr(made, "sync_session_class") is (self.factory == "session")
        if made is not None and is_wrong:
            raise SessionError(
                f"{self.kind}() got a factory of {made.__name__}; "
                f"use {self.other}() for it"
            )

    def _again(self) -> Self:
        """Return another block with the same options."""
        return type(self)(**{name: getattr(self, name) for name in _OPTIONS})

    @property
    def line(self) -> Line:
        """The line of code that has entered the block."""
        if isinstance(self._line, Line):
            return self._line
        code, number = self._line
        return Line(code.co_filename, number, code.co_qualname)

    def _open(self) -> Entry:
        """Join or create; what is current is set."""
        if self.how is not None:
            raise SessionError(
                f"this block was entered before; each needs a {self.kind}() of its own"
            )
        if self.retry is not None:
            raise SessionError(
                f"retry= is for the decorator @{self.kind}(retry=…): a block cannot run "
                f"what is inside of it again; use 'for attempt in retrying()' around it"
            )
        joins = False
        current: Any = SESSION_CONTEXT.get()
        if current is not None:
            scope = getattr(current, "_tenure_scope", None)
            if scope is not None and scope.has_ended:
                current = living(current)
        if current is not None and not self.new:
            if isinstance(current, _Session) is not (self.factory == "session"):
                self._refuse_kind(current)
            using = self.using
            joins = using is None or _factory_of(current) == using
        how = (
            # In line: most blocks that join.
            "join"
            if joins and not self.savepoint
            else decide(
                current is not None, joins, self.new, self.on_missing, self.savepoint
            )
        )
        if how is None:
            raise missing(_MISSING)
        self.how = how
        if how == "create":
            self._create(current, sys._getframe(2))
        else:
            self._join(current, sys._getframe(2))
        return how

    def _create(self, outer: Any, frame: FrameType) -> None:
        self.previous = outer
        using = self.using
        if using is None:
            self.using = using = self._default()
        self.session = session = self._make(using)
        self._core = core = getattr(session, "sync_session", session)
        manager = getattr(core, "routing", None)
        if getattr(manager, "on_missing", "create") == "raise" and not (
            outer is not None or self.new or self.on_missing is not None
        ):
            self.how = None
            raise missing(_MISSING)
        before = getattr(session, "_tenure_scope", None)
        if before is not None and before.has_ended and isinstance(core, Session):
            # The factory gives the same one each time, as those of tests do.
            core._revive()
        session._tenure_scope = self
        if core is not session:
            core._tenure_scope = self
        if self.role is not None:
            self._take_role(core, owns=True)
        if self.expire is not None:
            self._check_ours(core, "expire=")
        self.opened = time.monotonic()
        # In line: current_user().
        loop = _get_running_loop()
        self.user = get_ident() if loop is None else current_task(loop) or loop
        self._note_line(frame)
        if getattr(manager, "debug", False):
            self.stack = extract_stack(frame)
        SESSION_CONTEXT.set(session)
        bulk = SESSION_BULK_CONTEXT.get()
        if bulk is not None:
            # It collects for the outer session.
            self._bulk = bulk
            SESSION_BULK_CONTEXT.set(None)
        if self._registry is not None:
            self._key = self._registry.scopefunc() if self._has_keys else None
            self._registry.set(session)

    def _note_line(self, frame: FrameType) -> None:
        """Remember who has opened the block, without keeping the frame."""
        if frame.f_globals.get("__package__") in _BETWEEN:
            self._line = caller(frame)
        else:
            # Numbers and names are put together when they are asked for.
            self._line = frame.f_code, frame.f_lineno

    def _default(self) -> Any:
        if (application := current_application()) is None:
            raise SessionError(
                f"no session factory: give using=, enter a Database (with db:), or "
                f"install one with Database.install() before {self.kind}()"
                f"{_ELSEWHERE if is_entered_elsewhere() else ''}"
            )
        return getattr(application, self.factory)

    def _make(self, factory: Any) -> Any:
        registry = getattr(factory, "registry", None)
        if registry is None or not isinstance(registry, ScopedRegistry):
            session = factory()
        else:
            follows = getattr(registry, "scopefunc", None) is context_scope
            if not follows and registry.has() and has_ended(registry()):
                # Its block was left in another thread, which could not reach it.
                registry.clear()
            session = factory.session_factory()
            # What a block owns has to be its own, so a session in use stays there.
            if follows or not (self.new or registry.has()):
                self._registry = registry
        if (
            isinstance(session, _Session)
            if self.factory == "session"
            else is_async(session)
        ):
            return session
        raise SessionError(
            f"{self.kind}() got {type(session).__name__} from {factory!r}; "
            f"use {self.other}() for it"
        )

    @property
    def _may_wait(self) -> bool:
        """Whether the block waits for others that have joined its session."""
        return self.how == "create" and self._core._joined_timeout is not None

    def _refusal(self) -> SessionError | None:
        """Return why a block that succeeded, and does not only join, cannot end so."""
        refusal: SessionError | None = None
        if self.how != "create":
            refusal = self._undone()
        elif self._core._watches:
            refusal = self._core._unfinished(self)
        return refusal

    def _leave(self, error: BaseException | None) -> Ending:
        """Decide how to end; a block that only reads may not leave changes behind."""
        session = self.session
        if self.how == "create":
            self.is_leaving = True
            core = self._core
            # Whoever uses it still is waited for: it would keep its connection.
            core._is_patient = True
            return ending(
                error,
                owns=True,
                auto_commit=self.auto_commit,
                owes=bool(getattr(core, "_ended", ())),
            )
        has_written = False
        if self.watched is not None:
            if self.reads and error is None:
                self._check_unchanged()
            has_written = self.end_watch(error, self.auto_commit)
        scope = getattr(session, "_tenure_scope", None)
        if scope is None or not scope.has_ended:
            return "leave"
        return ending(
            error,
            owns=False,
            auto_commit=False,
            owner_ended=True,
            has_written=has_written or self._transaction is not None,
        )

    @contextmanager
    def _patient(self) -> Iterator[None]:
        """Wait for whoever uses the session still, instead of being refused."""
        core = self._core
        before, core._is_patient = getattr(core, "_is_patient", False), True
        try:
            yield
        finally:
            core._is_patient = before

    def _close(self) -> None:
        """Make current again what was before, unless that has ended as well."""
        self.has_ended = True
        session, self.session = self.session, None
        if self.how != "create":
            if self.watched is not None:
                # The block could not be left as it should.
                self.end_watch(sys.exc_info()[1])
            if self.reads:
                reading = tuple(each for each in READING.get() if each is not self)
                READING.set(reading)
            return
        if self._registry is not None:
            self._unregister(session)
        if SESSION_CONTEXT.get() is session:
            SESSION_CONTEXT.set(
                None if self.previous is None else living(self.previous)
            )
            bulk = self._bulk
            # It may have been left meanwhile.
            if bulk is not None and getattr(bulk, "is_entered", True):
                restore(SESSION_BULK_CONTEXT, None, bulk)

    def outside(self) -> Outside:
        """Return a block in which callbacks run: around this one, if it is ending."""
        return Outside(self)


_MISSING = (
    "no session is current and on_missing='raise'; open one around this block, by a block "
    "with new=True"
)
_ELSEWHERE = (
    "; one is entered, but not in this context: a request or a task that was not started "
    "inside of its block needs install(), a thread that was started there carry()"
)
# Packages between us and who opens the block, as a decorator does.
_BETWEEN = (__package__, "")
# Without retry, which is for all attempts together.
_OPTIONS = tuple(n for n in Block.__init__.__kwdefaults__ or () if n != "retry")
_CONSISTENCIES = get_args(Consistency)


def retire(session: Any) -> None:
    """Refuse from now on whatever would begin something on *session*."""
    # The user's factory may make sessions of SQLAlchemy's.
    own = getattr(session, "_retire", None)
    if own is not None:
        own()


def _factory_of(session: Any) -> Any:
    scope = getattr(session, "_tenure_scope", None)
    return None if scope is None else scope.using
