"""Errors: ours are theirs as well, and travel."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import create_engine, exc, make_url, select, text, update
from sqlalchemy import inspect as look
from sqlalchemy.orm import exc as orm_exc

import tenure
from tenure import DatabaseError, TenureError, UnresolvedReferenceError
from tenure.callers import Line
from tenure.errors import UnknownAliasError, describe_key, wrap
from tests.fixtures.things import Base, Thing

ORIGINAL = ValueError("from the driver")

# The arguments that a class and its subclasses want, where it is not a message.
ARGUMENTS: dict[type[exc.SQLAlchemyError], tuple[Any, ...]] = {
    exc.StatementError: ("message", "SELECT 1", {"a": 1}, ORIGINAL),
    exc.DBAPIError: ("SELECT 1", {"a": 1}, ORIGINAL),
    exc.CircularDependencyError: ("message", {"a"}, {("a", "a")}),
    exc.NoReferencedTableError: ("message", "table"),
    exc.NoReferencedColumnError: ("message", "table", "column"),
    exc.ObjectNotExecutableError: (3,),
    exc.UnsupportedCompilationError: (ORIGINAL, int),
    orm_exc.LoaderStrategyException: (int, "property", None, None, ()),
    orm_exc.ObjectDeletedError: (look(Thing(id=1)),),
    orm_exc.UnmappedClassError: (int,),
    orm_exc.UnmappedInstanceError: (3,),
}


def made(cls: type[exc.SQLAlchemyError]) -> exc.SQLAlchemyError:
    """Make an error of *cls*, as SQLAlchemy would."""
    for parent in cls.__mro__:
        if parent in ARGUMENTS:
            return cls(*ARGUMENTS[parent])
    return cls("message")


def originals() -> Iterator[Any]:
    for module in (exc, orm_exc):
        for name, cls in sorted(vars(module).items()):
            if (
                inspect.isclass(cls)
                and issubclass(cls, exc.SQLAlchemyError)
                and cls.__module__ == module.__name__
            ):
                yield pytest.param(cls, id=f"{module.__name__.split('.')[-2]}.{name}")


@pytest.mark.parametrize("cls", [*originals()])
class TestWrap:
    def test_both(self, cls: type[exc.SQLAlchemyError]) -> None:
        """It is caught as the original's class, and as a DatabaseError."""
        error = made(cls)
        wrapped = wrap(error)

        for caught_as in (cls, DatabaseError, TenureError, exc.SQLAlchemyError):
            with pytest.raises(caught_as):
                raise wrapped from error

    def test_same(self, cls: type[exc.SQLAlchemyError]) -> None:
        """It says the same, has the same attributes, and names the original."""
        error = made(cls)
        wrapped = wrap(error)

        assert str(error) == str(wrapped)
        assert error.args == wrapped.args
        assert error is wrapped.original
        assert vars(error).items() <= vars(wrapped).items()
        assert (cls.__name__, cls.__module__) == (
            type(wrapped).__name__,
            type(wrapped).__module__,
        )

    def test_once(self, cls: type[exc.SQLAlchemyError]) -> None:
        """What is one of ours already stays what it is."""
        wrapped = wrap(made(cls))

        assert wrapped is wrap(wrapped)
        assert type(wrapped) is type(wrap(made(cls)))

    def test_pickles(self, cls: type[exc.SQLAlchemyError]) -> None:
        """It can be sent to another process, if the original can."""
        error = made(cls)
        try:
            pickle.loads(pickle.dumps(error))
        except TypeError:
            return
        again = pickle.loads(pickle.dumps(wrap(error)))

        assert isinstance(again, cls)
        assert isinstance(again, DatabaseError)
        assert str(error) == str(again)
        assert error.args == again.args


def test_of_a_driver(url: str) -> None:
    """A driver's own error comes along, also to another process."""
    engine = create_engine(url)
    Base.metadata.create_all(engine)
    with pytest.raises(exc.IntegrityError) as caught, engine.begin() as connection:
        connection.execute(text("INSERT INTO thing (name) VALUES ('a'), ('a')"))
    engine.dispose()
    wrapped: Any = wrap(caught.value)

    assert caught.value.orig is wrapped.orig
    assert "INSERT INTO thing" in wrapped.statement
    again = pickle.loads(pickle.dumps(wrapped))
    assert str(wrapped) == str(again)
    assert type(wrapped.orig) is type(again.orig)


OURS = [
    tenure.SessionError("wrong"),
    tenure.ConcurrentUseError(
        "execute",
        first="task 'a'",
        second="task 'b'",
        first_line=None,
        second_line=Line("app.py", 3, "work"),
    ),
    tenure.RoutingError("wrong"),
    tenure.LoadError("wrong"),
    tenure.DatabaseError("wrong"),
    UnresolvedReferenceError(Thing, {"name": "a"}, "note"),
    UnknownAliasError("a", ["b", "c"], by="a router"),
    tenure.ResolutionError([]),
    tenure.ConflictError(["Book(isbn=1) is taken"]),
    tenure.PartialCommitError(["a"], ["b"], ValueError("lost")),
]


@pytest.mark.parametrize("error", OURS, ids=lambda error: type(error).__name__)
def test_ours_pickle(error: TenureError) -> None:
    """Errors of our own keep their facts in another process, and their notes."""
    error.add_note("a note")
    again = pickle.loads(pickle.dumps(error))

    assert type(error) is type(again)
    assert str(error) == str(again)
    # Exceptions inside of it are equal to none but themselves.
    assert {n: repr(v) for n, v in vars(error).items()} == {
        n: repr(v) for n, v in vars(again).items()
    }
    assert error.retryable is again.retryable


def test_tree() -> None:
    """Each is also of the class that people catch already."""
    for cls, other in {
        tenure.SessionError: RuntimeError,
        tenure.ConcurrentUseError: tenure.SessionError,
        tenure.UnresolvedReferenceError: LookupError,
        tenure.RoutingError: exc.UnboundExecutionError,
        UnknownAliasError: KeyError,
        tenure.StaleReplicaError: tenure.RoutingError,
        tenure.PrimaryUnavailableError: tenure.RoutingError,
        tenure.DeadlineExceededError: TimeoutError,
        tenure.LostWriteError: tenure.RoutingError,
        tenure.CommitOutcomeUnknownError: tenure.DatabaseError,
        tenure.PartialCommitError: tenure.DatabaseError,
        tenure.LoadError: ValueError,
        tenure.DatabaseError: exc.SQLAlchemyError,
        tenure.ResolutionError: tenure.DatabaseError,
        tenure.ConflictError: exc.IntegrityError,
    }.items():
        assert issubclass(cls, other)
        assert issubclass(cls, TenureError)


def test_describe_key() -> None:
    """A key is written as one would write it in a call."""
    assert "origin='JFK', hour=3" == describe_key({"origin": "JFK", "hour": 3})


@pytest.mark.parametrize("said", [[1], {}, {1}, True, None])
def test_odd_words(said: Any) -> None:
    """What the first argument of a type's error is does not matter."""
    error = exc.StatementError("refused", "INSERT", None, ValueError(said))
    wrapped = wrap(error)
    assert isinstance(wrapped, exc.StatementError)
    assert not wrapped.retryable


def test_statement_is_left_alone() -> None:
    """Wrapping changes nothing of the original."""
    error = exc.StatementError("message", "SELECT 1", {}, ORIGINAL)
    before = dict(vars(error))
    wrap(error).add_note("only here")

    assert before == vars(error)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tenure.StaleReplicaError("x"), True),
        (tenure.PrimaryUnavailableError("x"), True),
        (tenure.DeadlineExceededError("x"), True),
        (tenure.LostWriteError("x"), False),
        (tenure.CommitOutcomeUnknownError("x"), False),
        (tenure.SessionError("x"), False),
        (tenure.DatabaseError("x"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_retryable(error: TenureError, expected: bool) -> None:
    """Each says whether running the same again may succeed."""
    assert expected is error.retryable


def test_serialization_failure(url: str) -> None:
    """One who was overtaken by another may try again; one who is wrong may not."""
    postgresql = make_url(url).get_backend_name() == "postgresql"
    options: Any = {"isolation_level": "SERIALIZABLE"} if postgresql else {}
    arguments: Any = {} if postgresql else {"connect_args": {"timeout": 0}}
    with tenure.Database(url, **options, **arguments) as db:
        db.create_all(Base.metadata)
        with db.session_manager(auto_commit=True) as session:
            session.add(Thing(name="a"))
        with pytest.raises(DatabaseError) as overtaken:
            with db.session_manager(auto_commit=True) as first:
                first.scalars(select(Thing)).all()
                with db.session_manager(new=True, auto_commit=postgresql) as second:
                    second.execute(update(Thing).values(name="b"))
                    if not postgresql:
                        # While the other holds the lock.
                        first.execute(update(Thing).values(name="c"))
                first.execute(update(Thing).values(name="c"))
        with pytest.raises(DatabaseError) as wrong:
            with db.session_manager(auto_commit=True) as session:
                session.add_all([Thing(name="x"), Thing(name="x")])

    assert overtaken.value.retryable
    assert not wrong.value.retryable
