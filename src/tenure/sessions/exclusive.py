"""
One user of a session at a time, and errors that are ours.

A session is in use while one of its methods that may talk to the database runs. Its
user may enter again; another thread or task is refused, or waits. Only overlap counts:
a session may be used from many threads, one after the other.

:func:`one_at_a_time` makes a method take turns. Its object has a :class:`Guard`, and
says what happens when the turn is not free and after it ends: see :class:`Session`.
Errors of SQLAlchemy leave the method, and the results that it gives, as a
:class:`DatabaseError`.
"""

from __future__ import annotations

import threading
from asyncio import Future, Task, _get_running_loop, current_task
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from threading import get_ident
from typing import Any, TypeVar, cast

from sqlalchemy import Result, Select
from sqlalchemy.engine import FilterResult
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import SessionTransaction
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from ..engines import begin_commit, end_commit, end_reading
from ..errors import ConcurrentUseError, TenureError, translate
from ..statements import reads_plainly
from .naming import User, concurrent_use

M = TypeVar("M", bound=Callable[..., Any])
R = TypeVar("R")

#: Methods that are always allowed: they end what others may be using.
ENDING = frozenset({"rollback", "close", "reset", "invalidate"})


def current_user() -> User:
    """Return who is running: a task if there is one."""
    loop = _get_running_loop()
    return get_ident() if loop is None else current_task(loop) or loop


class Guard:
    """
    Whose turn it is on one session.

    The turn is one item of a dict: taken by ``setdefault()``, given back by ``del``.
    Either is one step, so an interrupt finds it done, with its user, or not done.
    Every call of every method does this in line.
    """

    __slots__ = ("has_ended", "turn", "waiting")

    def __init__(self) -> None:
        self.turn: dict[str, User] = {}
        #: The block that made the session has ended.
        self.has_ended = False
        #: Who is to be told when the turn is given back. Made for the first that
        #: waits; most sessions never see one.
        self.waiting: deque[Future[None] | threading.Event] | None = None

    def wait(self, me: User) -> None:
        """Take the turn as soon as it is free."""
        loop = me.get_loop() if isinstance(me, Task) and in_greenlet() else None
        waiting = self.waiting
        if waiting is None:
            # Two threads may be first.
            with _making:
                waiting = self.waiting = self.waiting or deque()
        while self.turn.get("user") != me:
            waiter = threading.Event() if loop is None else loop.create_future()
            waiting.append(waiter)
            try:
                # It may have been given back before we were seen to wait.
                if self.turn.setdefault("user", me) == me:
                    return
                if isinstance(waiter, Future):
                    await_only(waiter)
                else:
                    waiter.wait()
                self.turn.setdefault("user", me)
            except BaseException:
                # Whoever was not told because we were must be told.
                self.wake()
                raise
            finally:
                with suppress(ValueError):
                    waiting.remove(waiter)

    def wake(self) -> None:
        """Wake one of the users that wait."""
        while self.waiting:
            with suppress(IndexError):
                waiter = self.waiting.popleft()
                if isinstance(waiter, threading.Event):
                    waiter.set()
                    return
                with suppress(RuntimeError):
                    waiter.get_loop().call_soon_threadsafe(_done, waiter)
                    return
            # Its loop was closed, or another thread has told it.

    def refusal(self, me: User, doing: str) -> ConcurrentUseError:
        """Return the error for *me*, who is not the user that is inside."""
        return concurrent_use(doing, self.turn.get("user"), me)


_making = threading.Lock()


def _done(waiter: Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def one_at_a_time(
    method: M, doing: str = "", *, executes: bool = False, has_option: bool = False
) -> M:
    """
    Wrap *method* for one user at a time; run the callbacks that are due after it.

    Errors of SQLAlchemy leave it as a :class:`DatabaseError`.

    Args:
        doing: Its name in messages.
        executes: It takes a statement, which is looked at before.
        has_option: It has an execution option ``engine`` to see to.
    """
    doing = doing or method.__name__
    gives_result = executes and doing != "scalar"

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if has_option and kwargs and (options := kwargs.get("execution_options")):
            given = kwargs.get("bind_arguments")
            kwargs["bind_arguments"] = self._with_engine(given, options)
        # In line: current_user().
        loop = _get_running_loop()
        me = get_ident() if loop is None else current_task(loop) or loop
        guard = self._guard
        turn = guard.turn
        if turn.get("user") == me:
            if executes:
                self._note_statement(args[0] if args else kwargs.get("statement"))
            return method(self, *args, **kwargs)
        try:
            if guard.has_ended:
                self._refuse_after_the_end(doing)
            if turn.setdefault("user", me) != me:
                self._take_turn(guard, me, doing)
            if self._streams is not None:
                self._refuse_while_streaming(me, doing)
            if executes:
                statement = args[0] if args else kwargs.get("statement")
                if type(statement) is Select and reads_plainly(statement):
                    # As _note_statement(), for most statements.
                    self._last = statement
                else:
                    self._note_statement(statement)
            result = method(self, *args, **kwargs)
            if gives_result:
                if kwargs and kwargs.get("execution_options"):
                    self._note_stream(result, me, kwargs["execution_options"])
                ours(result)
        except BaseException as error:
            if turn.get("user") == me:
                self._give_turn(guard, doing, error)
            if isinstance(error, SQLAlchemyError) and not isinstance(
                error, TenureError
            ):
                raise self._as_ours(error) from error
            raise
        if self._callbacks is None and not guard.waiting:
            del turn["user"]
        else:
            self._give_turn(guard, doing, None)
        return result

    return cast(M, call)


def flushes_by_itself(method: M) -> M:
    """Wrap *method*, which writes without a flush event, in the checks of a flush."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._begin_writing(method.__name__)
        return method(self, *args, **kwargs)

    return cast(M, call)


def ends(method: M) -> M:
    """Wrap *method*, which drops what was not committed: not what others wrote."""

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self._watches:
            self._refuse_to_end(method.__name__)
        return method(self, *args, **kwargs)

    return cast(M, call)


# Results: rows are read after the method has returned. A result becomes an instance of a
# class derived from its own, made once, which differs in the methods that read rows.

_READING = (
    *("all", "fetchall", "fetchmany", "fetchone", "first", "one", "one_or_none"),
    *("scalar", "scalar_one", "scalar_one_or_none", "__next__", "__anext__"),
    *("columns", "freeze", "unique"),
)
_ITERATING = ("__iter__", "partitions")
# They give another result of the same rows, or of more.
_DERIVING = ("mappings", "merge", "scalars", "tuples")

_classes: dict[type[Any], type[Any]] = {}


def ours(result: R) -> R:
    """Let errors of SQLAlchemy leave the methods of *result* as a ``DatabaseError``."""
    cls = _classes.get(type(result))
    if cls is not None:
        result.__class__ = cls
    elif isinstance(result, (Result, FilterResult)):
        result.__class__ = _derived(type(result))
    # Otherwise a value: executing a sequence gives its next number.
    return result


def _derived(cls: type[Any]) -> type[Any]:
    methods: dict[str, Any] = {}
    for names, change in (
        (_READING, _translated),
        (_ITERATING, _iterated),
        (_DERIVING, lambda method: _translated(method, ours)),
    ):
        methods |= {
            name: change(getattr(cls, name)) for name in names if hasattr(cls, name)
        }
    about = {"__slots__": (), "__module__": cls.__module__, "__doc__": cls.__doc__}
    derived = type(cls.__name__, (cls,), methods | about)
    # tuples() of a result is the result itself.
    _classes[cls] = _classes[derived] = derived
    return derived


def _same(result: Any) -> Any:
    return result


def _translated(method: Any, then: Callable[[Any], Any] = _same) -> Any:
    if iscoroutinefunction(method):

        @wraps(method)
        async def call_async(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return await method(self, *args, **kwargs)
            except SQLAlchemyError as error:
                translate(error)
                raise

        return call_async

    @wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return then(method(self, *args, **kwargs))
        except SQLAlchemyError as error:
            translate(error)
            raise

    return call


def _iterated(method: Any) -> Any:
    if isasyncgenfunction(method):

        @wraps(method)
        async def iterate_async(
            self: Any, *args: Any, **kwargs: Any
        ) -> AsyncIterator[Any]:
            try:
                async for each in method(self, *args, **kwargs):
                    yield each
            except SQLAlchemyError as error:
                translate(error)
                raise

        return iterate_async

    @wraps(method)
    def iterate(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from method(self, *args, **kwargs)
        except SQLAlchemyError as error:
            translate(error)
            raise

    return iterate


class Loader:
    """
    A loader of attributes, whose errors get a note.

    Args:
        load: SQLAlchemy's.
        explain: Adds the note.
    """

    __slots__ = ("_explain", "_load")

    def __init__(self, load: Callable[..., Any], explain: Callable[..., None]) -> None:
        self._load = load
        self._explain = explain

    def __call__(self, state: Any, *args: Any, **options: Any) -> Any:
        try:
            return self._load(state, *args, **options)
        except SQLAlchemyError as error:
            self._explain(error, state, *args)
            raise


class Transaction(SessionTransaction):
    """
    The transaction of our sessions: whatever ends it, one user does, and once.

    A block of ``session.begin()`` ends it without asking the session.
    """

    # Whether a savepoint was released.
    is_released = False

    def commit(self, _to_root: bool = False) -> None:
        """Commit; what becomes of it on each connection is found out."""
        session: Any = self.session
        if session is None or self.parent is not None:
            super().commit(_to_root)
            return
        token = begin_commit(session)
        try:
            super().commit(_to_root)
        except BaseException as error:
            refused = session._note_outcome(error)
            if refused is not None:
                # Not rolled back: that is over in some of the databases.
                self.close()
                raise refused from error
            raise
        finally:
            end_commit(token)

    def close(self, invalidate: bool = False) -> None:
        """Return the connections, then tell the session that the transaction ended."""
        session: Any = self.session
        if session is None or self.parent is not None:
            super().close(invalidate)
            # However it came to that: there is no event for a flush that failed.
            if session is not None and self.nested:
                session._savepoint_ended(self, is_undone=not self.is_released)
            return
        try:
            for connection in session._read_only:
                end_reading(connection)
        finally:
            try:
                super().close(invalidate)
            finally:
                # Not in an event: there is none if a connection cannot be given back.
                session._transaction_ended()


def _as_its_session(method: M) -> M:
    def of_session(session: Any, *args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    guarded = one_at_a_time(of_session, method.__name__)

    @wraps(method)
    def call(self: Transaction, *args: Any, **kwargs: Any) -> Any:
        # None once it is closed, which SQLAlchemy has a word for.
        session: Any = self.session
        if session is None:
            return method(self, *args, **kwargs)
        return guarded(session, self, *args, **kwargs)

    return cast(M, call)


for _name in ("commit", "rollback", "close", "prepare"):
    setattr(Transaction, _name, _as_its_session(getattr(Transaction, _name)))


#: A transaction or a savepoint; ``None``: the outermost one, before it has begun.
Place = SessionTransaction | None


def is_inside(place: Place, savepoint: SessionTransaction) -> bool:
    """Whether *place* is *savepoint*, or one inside of it."""
    while place is not None and place is not savepoint:
        place = place.parent
    return place is not None


class Writer:
    """
    Who writes in a session: all of its users, or a block that has joined.

    It knows where it has written: in the outermost transaction, in savepoints. What a
    savepoint has undone is forgotten with it.
    """

    _wrote: tuple[Place, ...] = ()
    # By a text or a function of which nobody knows what it does.
    _may_have_written: tuple[Place, ...] = ()

    def _note_place(self, place: Place, *, is_sure: bool) -> None:
        """Something was written at *place*, or may have been."""
        if not is_sure:
            if place not in self._may_have_written:
                self._may_have_written = (*self._may_have_written, place)
        elif place not in self._wrote:
            self._wrote = (*self._wrote, place)

    def _end_place(self, savepoint: SessionTransaction, *, is_undone: bool) -> None:
        """Forget what *savepoint* has undone, or move it to what is around it."""
        if self._wrote:
            self._wrote = _moved(self._wrote, savepoint, is_undone=is_undone)
        if self._may_have_written:
            places = self._may_have_written
            self._may_have_written = _moved(places, savepoint, is_undone=is_undone)


def _moved(
    places: tuple[Place, ...], savepoint: SessionTransaction, *, is_undone: bool
) -> tuple[Place, ...]:
    if is_undone:
        return tuple(each for each in places if not is_inside(each, savepoint))
    found = (savepoint.parent if each is savepoint else each for each in places)
    return tuple(dict.fromkeys(found))
