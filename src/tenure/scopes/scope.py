"""
Scopes: blocks in which one session is current.

:func:`decide` says how a block gets its session, :func:`ending` how it ends; both are
pure. The two kinds of blocks are in :mod:`tenure.scopes.managers`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from traceback import StackSummary, extract_stack
from types import CodeType, FrameType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
)

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
    living,
    restore,
)
from ..errors import RoutingError, SessionError
from ..routing import Role
from ..sessions import Session, Watch, is_inside
from .outside import Outside

if TYPE_CHECKING:
    pass

P = ParamSpec("P")
T = TypeVar("T")

OnMissing = Literal["create", "raise"]
#: How old what a block reads may be. Without replicas, all of it is current.
Consistency = Literal["strong", "session", "bounded", "eventual"]

#: How a block gets its session.
Entry = Literal["create", "join", "savepoint"]


def decide(
    current: bool, same_factory: bool, new: bool, on_missing: str, savepoint: bool
) -> Entry:
    """
    Return how a block gets its session.

    Args:
        current: There is a session of the right kind.
        same_factory: The block does not ask for one of another factory.

    Raises:
        SessionError: There is no session, and *on_missing* is ``"raise"``.
    """
    if current and not new and same_factory:
        return "savepoint" if savepoint else "join"
    if not current and not new and on_missing == "raise":
        raise SessionError(
            "no session is current and on_missing='raise'; open one around this "
            "block with session_manager() or async_session_manager()"
        )
    return "create"


#: How a block ends, once it is left. ``"discard"``: closing undoes what was not
#: committed. ``"leave"``: the block that owns the session will end it. ``"lose"``:
#: that block has ended before; what was written since cannot be kept.
Ending = Literal["commit", "rollback", "discard", "leave", "lose"]


def ending(
    error: BaseException | None,
    *,
    owns: bool,
    auto_commit: bool,
    owner_ended: bool = False,
    has_written: bool = False,
) -> Ending:
    """Return how a block ends that left with *error*."""
    if not owns and not owner_ended:
        return "leave"
    if error is not None:
        return "rollback"
    if owns:
        return "commit" if auto_commit else "discard"
    return "lose" if has_written else "discard"


class Block(Watch):
    """What both drivers share: arguments, the decision, the context."""

    kind: ClassVar[str]
    other: ClassVar[str]
    factory: ClassVar[str]

    # Class-level defaults, as a block is made for every request.
    #: How the block got its session; None until it is entered.
    how: Entry | None = None
    has_ended = False
    #: Set while the block ends.
    is_leaving = False
    session: Any = None
    #: What was current before, if the block made a session.
    previous: Any = None
    #: The stack that has opened the block, if somebody wants to know.
    stack: StackSummary | None = None
    #: When the block was opened, by the monotonic clock.
    opened: float = 0.0
    _line: Line | tuple[CodeType, int] = UNKNOWN
    _registry: Any = None
    _key: Any = None
    _bulk: Any = None
    _transaction: Any = None
    _adopted: tuple[MutableMapping[Any, Any], ...] = ()

    def __init__(
        self,
        *,
        using: Any = None,
        auto_commit: bool = False,
        new: bool = False,
        on_missing: OnMissing = "create",
        savepoint: bool = False,
        role: Role | None = None,
        consistency: Consistency | None = None,
        expire: bool | None = None,
    ) -> None:
        if on_missing not in ("create", "raise"):
            raise SessionError(f"on_missing is 'create' or 'raise', not {on_missing!r}")
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
        joins = False
        current: Any = SESSION_CONTEXT.get()
        if current is not None:
            scope = getattr(current, "_tenure_scope", None)
            if scope is not None and scope.has_ended:
                current = living(current)
        if current is not None and not self.new:
            self._check_kind(current)
            using = self.using
            joins = using is None or _factory_of(current) == using
        how = self.how = decide(
            current is not None, joins, self.new, self.on_missing, self.savepoint
        )
        if how == "create":
            self._create(current, sys._getframe(2))
        else:
            self._join(current, how)
        return how

    def _create(self, outer: Any, frame: FrameType) -> None:
        self.previous = outer
        using = self.using
        if using is None:
            self.using = using = self._default()
        self.session = session = self._make(using)
        core = getattr(session, "sync_session", session)
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
        self._note_line(frame, core)
        SESSION_CONTEXT.set(session)
        bulk = SESSION_BULK_CONTEXT.get()
        if bulk is not None:
            # It collects for the outer session.
            self._bulk = bulk
            SESSION_BULK_CONTEXT.set(None)
        if self._registry is not None:
            self._key = self._registry.scopefunc() if self._has_keys else None
            self._registry.set(session)

    def _join(self, session: Any, how: Entry) -> None:
        self.session = session
        core = session if isinstance(session, _Session) else session.sync_session
        if self.role is not None:
            self._take_role(core, owns=False)
        if isinstance(core, Session) and (how == "join" or self.role == "read"):
            self.watch(core)

    def _note_line(self, frame: FrameType, core: Any) -> None:
        """Remember who has opened the block, without keeping the frame."""
        if frame.f_globals.get("__package__") in _BETWEEN:
            self._line = caller(frame)
        else:
            # Numbers and names are put together when they are asked for.
            self._line = frame.f_code, frame.f_lineno
        if getattr(getattr(core, "routing", None), "debug", False):
            self.stack = extract_stack(frame)

    def _default(self) -> Any:
        if (application := current_application()) is None:
            raise SessionError(
                f"no session factory: give using=, enter a Database (with db:), or "
                f"install one with Database.install() before {self.kind}()"
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
    def _has_keys(self) -> bool:
        """Whether the registry is a mapping, not a thread's own variable."""
        return hasattr(self._registry, "scopefunc")

    def _check_kind(self, current: Any) -> None:
        if isinstance(current, _Session) is (self.factory == "session"):
            return
        raise SessionError(
            f"{self.kind}() cannot join the current {type(current).__name__}; "
            f"use {self.other}(), or new=True for a session beside it, or run_sync() "
            f"to call sync code on an async session"
        )

    def _check_ours(self, core: Any, option: str) -> None:
        if not isinstance(core, Session):
            raise SessionError(
                f"{self.kind}({option}) needs a session of tenure, not "
                f"{type(core).__name__}; make the factory with "
                f"{self.factory}_factory()"
            )

    def _take_role(self, core: Any, *, owns: bool) -> None:
        self._check_ours(core, "role=")
        if owns:
            core._role = self.role
        elif self.role == "read":
            # Not on the session: another task may use it meanwhile.
            self.reads = True
            # Those that were left in another context have nothing to say here.
            reading = (each for each in READING.get() if not each.has_ended)
            READING.set((*reading, self))
        elif core._only_reads():
            raise SessionError(
                f"{self.kind}(role='write') inside of a block with role='read'; open "
                f"the outer one for writing, or use new=True"
            )
        else:
            core._go_to_writer()

    def _leave(self, error: BaseException | None) -> Ending:
        """Decide how to end; a block that only reads may not leave changes behind."""
        session = self.session
        if self.how == "create":
            self.is_leaving = True
            core = getattr(session, "sync_session", session)
            # Whoever uses it still is waited for: it would keep its connection.
            core._is_patient = True
            return ending(error, owns=True, auto_commit=self.auto_commit)
        has_written = False
        if self.watched is not None:
            refused = None
            if error is None and self.reads and self.look():
                changed = self.watched._written_by_readers() or "the database"
                refused = RoutingError(
                    f"a block with role='read' has changed {changed}; open the block "
                    f"with role='write'"
                )
            has_written = self.end_watch(error or refused)
            if refused is not None:
                raise refused
        if not has_ended(session):
            return "leave"
        return ending(
            error,
            owns=False,
            auto_commit=False,
            owner_ended=True,
            has_written=has_written or self._transaction is not None,
        )

    def _check_savepoint(self, error: BaseException | None) -> None:
        """If the savepoint was ended by hand, nothing will undo what came after."""
        core = getattr(self.session, "sync_session", self.session)
        if error is None or not isinstance(core, Session):
            return
        savepoint = getattr(self._transaction, "sync_transaction", self._transaction)
        is_open = is_inside(core.get_nested_transaction(), savepoint)
        if not is_open and core.in_transaction() and core._has_work():
            core._leave_half_done(error)

    @contextmanager
    def _patient(self) -> Iterator[None]:
        """Wait for whoever uses the session still, instead of being refused."""
        core = getattr(self.session, "sync_session", self.session)
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
                self.drop()
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

    def _unregister(self, session: Any) -> None:
        registry = self._registry
        if not self._has_keys:
            # Of this thread; that of another cannot be reached.
            if registry.has() and registry() is session:
                registry.clear()
        elif registry.registry.get(self._key) is session:
            del registry.registry[self._key]

    def adopt(self, registry: MutableMapping[Any, Any]) -> None:
        """Close with this block the session that *registry* has for it."""
        if not any(registry is adopted for adopted in self._adopted):
            self._adopted = (*self._adopted, registry)

    def _released(self) -> Iterator[Any]:
        """Yield the sessions to close with this block; registries forget them."""
        for registry in self._adopted:
            session = registry.pop(self, None)
            if session is not None:
                yield session

    def outside(self) -> Outside:
        """Return a block in which callbacks run: around this one, if it is ending."""
        return Outside(self)


# Packages between us and who opens the block, as a decorator does.
_BETWEEN = (__package__, "")
_OPTIONS = (
    *("using", "auto_commit", "new", "on_missing"),
    *("savepoint", "role", "consistency", "expire"),
)
_CONSISTENCIES = ("strong", "session", "bounded", "eventual")


def _factory_of(session: Any) -> Any:
    scope = getattr(session, "_tenure_scope", None)
    return None if scope is None else scope.using
