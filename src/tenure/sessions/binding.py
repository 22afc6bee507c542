"""
Which engine a session uses, and what it has written.

The rules are asked in one order, by ``get_bind()`` for SQLAlchemy and by ``explain()``
for people: the first that has an answer wins.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any
from weakref import ref

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import InstanceState, Mapper
from sqlalchemy.orm import Session as _Session

from .._private import binds, is_flushing
from ..context import READING, USING
from ..errors import RoutingError
from ..routing import BY_DEFAULT, DEFAULT, Choice, Role, Rule, choose
from ..statements import effect, writes
from .exclusive import Place
from .shared import Shared

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession

    from ..engines import DatabaseManager

# The engine that was found, the rule that chose it, and why.
_Found = tuple[Any, Rule, str]


class Binding(Shared):
    """A session that asks a :class:`DatabaseManager` where its binds have no answer."""

    routing: DatabaseManager | None
    _proxy: ref[AsyncSession] | None = None
    # The role of the block that made the session.
    _role: Role | None = None

    # Of the outermost transaction: whether it has written, or may have, and the engine
    # it uses for each mapper.
    _written = False
    _pins: dict[Any, Any] | None = None

    # A connection that was handed in: others use it, too.
    _given: Connection | None = None
    # The statement that was executed last.
    _last: Any = None

    @property
    def proxy(self) -> AsyncSession | None:
        """The async session that this one serves."""
        return None if self._proxy is None else self._proxy()

    @property
    def async_mode(self) -> bool:
        """Whether this session serves an async one."""
        return self._proxy is not None

    def get_bind(
        self,
        mapper: Any = None,
        *args: Any,
        clause: Any = None,
        bind: Any = None,
        **kwargs: Any,
    ) -> Any:
        """
        Return the engine for a mapper or a statement.

        The first of these that answers: *bind*; the execution option ``engine`` of
        the statement or the session; a :func:`using` block; ``binds`` and ``bind``
        as in SQLAlchemy; what this transaction has used for the mapper before; the
        routers; the database ``default``. Once a transaction has written, all of it
        goes where writing goes.

        Raises:
            RoutingError: No engine, or an unknown one.
        """
        if bind is None:
            return self._find(mapper, clause)[0]
        self._note_given(bind)
        return bind

    def _note_given(self, bind: Any) -> None:
        if isinstance(bind, Connection):
            self._given = bind

    def _find(self, mapper: Any, clause: Any) -> _Found:
        """Return the engine, and which rule chose it."""
        # Of a mapper or a table there are none.
        options: Any = getattr(clause, "get_execution_options", dict)()
        if found := self._by_option(options, "the statement's options"):
            return found
        if found := self._by_option(_execution_options(self), "the session's options"):
            return found
        using = USING.get()
        if using is not None and (alias := using.alias_for(self.routing)) is not None:
            return self._named(alias, "using()", f"using({alias!r})")
        if self.bind is not None or self.routing is None or binds(self):
            return self._bound(mapper, clause)
        pins = self._pins
        if pins is not None and mapper in pins and self.in_transaction():
            return pins[mapper], "pinned", "used by this transaction before"
        return self._routed(mapper, clause)

    def _by_option(self, options: Any, why: str) -> _Found | None:
        """Return the engine that an execution option names."""
        if not options or options.get("engine") is None:
            return None
        return self._named(options["engine"], "execution option", why)

    def _with_engine(self, bind_arguments: Any, options: Any) -> dict[str, Any]:
        """Return *bind_arguments* with the engine that the call's options name."""
        arguments = dict(bind_arguments or {})
        if arguments.get("bind") is None:
            found = self._by_option(options, "the call's options")
            if found is not None:
                arguments["bind"] = found[0]
        return arguments

    def _named(self, alias: str, rule: Rule, why: str) -> _Found:
        if self.routing is None:
            raise RoutingError(
                f"database {alias!r} was asked for ({why}), but this session has no "
                f"DatabaseManager; give it routing="
            )
        engine = self.routing.engine(alias, async_mode=self.async_mode, by=why)
        return engine.sync_engine if self.async_mode else engine, rule, why

    def _bound(self, mapper: Any, clause: Any) -> _Found:
        bound = binds(self)
        if not bound and self.bind is not None:
            self._note_given(self.bind)
            return self.bind, "bind", "the session's bind"
        try:
            found = super().get_bind(mapper, clause=clause)
        except UnboundExecutionError:
            if self.routing is None:
                raise
            return self._routed(mapper, clause)
        self._note_given(found)
        if found is self.bind and found not in bound.values():
            return found, "bind", "the session's bind"
        return found, "binds", "the session's binds"

    def _routed(self, mapper: Any, clause: Any) -> _Found:
        routing = self.routing
        assert routing is not None
        role: Role = "write" if self._goes_to_writer(clause) else "read"
        async_mode = self._proxy is not None
        in_transaction = self.in_transaction()
        # A class, if somebody asks who is not a statement.
        resource = getattr(mapper, "class_", mapper)
        alias, by = DEFAULT, BY_DEFAULT
        if routing.routers:
            session = self.proxy if async_mode else self
            alias, by = choose(
                routing.routers, resource, role, session, clause, in_transaction
            )
        engine = routing.engine(alias, async_mode, by)
        if async_mode:
            engine = engine.sync_engine
        if mapper is not None:
            if in_transaction and self._pins is not None:
                self._pins[mapper] = engine
            else:
                # What is chosen right before a transaction begins belongs to it.
                self._pins = {mapper: engine}
        return engine, "default" if by is BY_DEFAULT else "router", by

    def explain(
        self,
        statement_or_entity: Any = None,
        *,
        execution_options: Any = None,
        bind_arguments: Any = None,
    ) -> Choice:
        """
        Return which engine a statement or a mapped class would go to, and why.

        Nothing is executed, and nothing is remembered.
        """
        clause, mapper = _target(statement_or_entity)
        arguments = dict(bind_arguments or {})
        mapper = arguments.get("mapper", mapper)
        clause = arguments.get("clause", clause)
        last, pins = self._last, self._pins
        self._last = None
        goes_to_writer = self._goes_to_writer(clause)
        forgets = goes_to_writer and not self._written
        self._pins = None if forgets else dict(pins or {})
        try:
            found: _Found | None = None
            if arguments.get("bind") is not None:
                found = arguments["bind"], "bind_arguments", "named by the call"
            found = found or self._by_option(execution_options, "the call's options")
            found = found or self._find(mapper, clause)
        finally:
            self._last, self._pins = last, pins
        engine, rule, why = found
        role: Role = "write" if goes_to_writer else "read"
        alias = None if self.routing is None else self.routing.alias_of(engine)
        return Choice(engine, alias, role, rule, why)

    def connection(
        self, bind_arguments: Any = None, execution_options: Any = None
    ) -> Connection:
        """
        Return the connection of this transaction; as in SQLAlchemy.

        It may be used to write, so it is one to where writing goes, but in a block
        with ``role="read"``.
        """
        if not self._only_reads():
            self._note_write(is_sure=False)
        arguments = self._with_engine(bind_arguments, execution_options)
        self._note_given(arguments.get("bind"))
        return super().connection(arguments, execution_options)

    # What was written

    def _goes_to_writer(self, clause: Any) -> bool:
        """Whether *clause*, or what it is part of, goes where writing goes."""
        return (
            self._written
            or is_flushing(self)
            or self._role == "write"
            # What is being executed was looked at.
            or (clause is not None and clause is not self._last and writes(clause))
        )

    def _note_statement(self, statement: Any) -> None:
        """
        Take note of *statement*, which is about to be executed.

        Raises:
            RoutingError: It writes, in a block with ``role="read"``.
        """
        self._last = statement
        if (does := effect(statement)) == "reads":
            return
        if does == "writes" and self._only_reads():
            raise RoutingError(
                f"a block with role='read' refuses {type(statement).__name__}: "
                f"{_excerpt(statement)}; open the block with role='write'"
            )
        self._note_write(is_sure=does == "writes")

    def _begin_writing(self, name: str) -> None:
        """Allow the method *name* to write, or refuse; its statements are not checked."""
        if self._only_reads():
            raise RoutingError(
                f"a block with role='read' refuses {name}(); open the block "
                f"with role='write'"
            )
        self._note_write(is_sure=True)

    def _note_write(self, *, is_sure: bool) -> None:
        """What is done now (surely) writes."""
        self._go_to_writer()
        if self._watches or self._ended:
            self._note_for_blocks(is_sure=is_sure)
        self._note_place(self._innermost, is_sure=is_sure)

    @property
    def _innermost(self) -> Place:
        return self.get_nested_transaction() or self.get_transaction()

    def _go_to_writer(self) -> None:
        """The rest of the transaction goes where writing goes."""
        if not self._written:
            self._written = True
            self._pins = None

    def _only_reads(self) -> bool:
        """Whether the code that runs is in a block with ``role="read"`` of this."""
        return self._role == "read" or any(
            reader.watched is self for reader in READING.get()
        )

    def _written_by_readers(self) -> str:
        """Describe what a block with role="read" would flush of its own."""
        if self._role != "read" and not any(
            watch.reads and watch.look() for watch in self._watches
        ):
            return ""
        changed = [
            *self.new,
            *self.deleted,
            *(instance for instance in self.dirty if self.is_modified(instance)),
        ]
        return ", ".join(sorted({type(instance).__name__ for instance in changed}))


# New in SQLAlchemy 2.1.
_execution_options: Callable[[_Session], Any] = (
    attrgetter("execution_options")
    if hasattr(_Session(), "execution_options")
    else lambda session: None
)


def _target(statement_or_entity: Any) -> tuple[Any, Any]:
    """Return the statement and the mapper that execute() would use."""
    if statement_or_entity is None:
        return None, None
    found = inspect(statement_or_entity, raiseerr=False)
    if isinstance(found, Mapper):
        return None, found
    if isinstance(found, InstanceState):
        return None, found.mapper
    described: Any = getattr(statement_or_entity, "entity_description", None)
    if described is None:
        described = next(iter(getattr(found, "column_descriptions", ())), {})
    entity = inspect(described.get("entity"), raiseerr=False)
    return statement_or_entity, getattr(entity, "mapper", None)


def _excerpt(clause: Any) -> str:
    text = " ".join(str(clause).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
