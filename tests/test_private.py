"""What we use of SQLAlchemy beyond its public names; each test says what changed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from time import time
from typing import Any, ClassVar, NoReturn

import asyncpg
import pytest
from sqlalchemy import (
    ForeignKey,
    Select,
    String,
    create_engine,
    event,
    insert_sentinel,
    inspect,
    lambda_stmt,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    orm_insert_sentinel,
    relationship,
)
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.pool import ConnectionPoolEntry

from tenure import _private
from tenure._private import HookedPool, RefusingState, UnmanagedList, is_sentinel
from tenure.mapping import new_instance


class TestHookedPool:
    def test_hooks(self) -> None:
        """Each hook is called when a pool does what the hook is named after."""
        heard: list[str] = []

        class Pool(HookedPool):
            def get_entry(self) -> ConnectionPoolEntry:
                heard.append("get")
                return super().get_entry()

            def create_entry(self) -> ConnectionPoolEntry:
                heard.append("create")
                return super().create_entry()

            def return_entry(self, entry: ConnectionPoolEntry) -> None:
                heard.append("return")
                super().return_entry(entry)

        async def work() -> None:
            engine = create_async_engine("sqlite+aiosqlite://", poolclass=Pool)
            async with engine.connect():
                pass
            await engine.dispose()

        asyncio.run(work())

        assert ["get", "create", "return"] == heard, (
            "SQLAlchemy's pools take connections elsewhere than in _do_get(), "
            "_create_connection() and _do_return_conn(): see _private.HookedPool"
        )

    def test_invalid_before(self) -> None:
        """A lost connection sets the time, and connections from before are replaced."""

        async def work() -> None:
            engine = create_async_engine("sqlite+aiosqlite://", poolclass=HookedPool)
            pool: Any = engine.sync_engine.pool
            opened: list[Any] = []
            event.listen(engine.sync_engine, "connect", lambda *x: opened.append(x))

            @event.listens_for(engine.sync_engine, "handle_error")
            def lost(context: Any) -> None:
                context.is_disconnect = True

            async with engine.connect() as connection:
                with pytest.raises(DBAPIError):
                    await connection.execute(text("nonsense"))
            message = (
                "SQLAlchemy keeps when connections were lost elsewhere than in "
                "Pool._invalidate_time: see _private.HookedPool"
            )
            assert 0 < pool.invalid_before <= time(), message
            async with engine.connect():
                assert 2 == len(opened)
            pool.invalid_before = time() + 1
            async with engine.connect():
                assert 3 == len(opened), message
            await engine.dispose()

        asyncio.run(work())


def test_variant() -> None:
    kind = String().with_variant(CITEXT(), "postgresql")
    dialects = [
        create_engine(f"{name}://").dialect for name in ("postgresql+psycopg", "sqlite")
    ]

    assert [CITEXT, String] == [type(_private.variant_of(kind, d)) for d in dialects], (
        "SQLAlchemy keeps the variants of a type elsewhere than in "
        "TypeEngine._variant_mapping: see _private.variant_of()"
    )


def test_autocommit() -> None:
    changed = (
        "SQLAlchemy says elsewhere than in Connection._is_autocommit_isolation() that a "
        "connection commits each statement: see _private.is_autocommit()"
    )
    with create_engine("sqlite://").connect() as connection:
        assert not _private.is_autocommit(connection), changed
        connection.execution_options(isolation_level="AUTOCOMMIT")
        assert _private.is_autocommit(connection), changed
    engine = create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        assert _private.is_autocommit(connection), changed


def test_errors_of_asyncpg() -> None:
    module = create_engine("postgresql+asyncpg://").dialect.dbapi
    errors = _private.dbapi_errors_of_asyncpg(module)

    assert module is not None
    assert errors[asyncpg.IntegrityConstraintViolationError] is module.IntegrityError, (
        "SQLAlchemy translates the errors of asyncpg elsewhere than in its module's "
        "_asyncpg_error_translate: see _private.dbapi_errors_of_asyncpg()"
    )


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]
    marker: Mapped[int] = orm_insert_sentinel()
    children: Mapped[list[Child]] = relationship(back_populates="parent")
    owned: Mapped[list[Owned]] = relationship(cascade="all, delete-orphan")


class Child(Base):
    __tablename__ = "child"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))
    parent: Mapped[Parent] = relationship(back_populates="children")


class Owned(Base):
    __tablename__ = "owned"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("parent.id"))


class Refused(Exception):  # not of the package
    pass


class Refusing(RefusingState):
    __slots__ = ()

    def refuse(self, wanted: str) -> NoReturn:
        raise Refused(wanted)


class RefusedList(UnmanagedList):
    def refuse(self) -> NoReturn:
        raise Refused


def refusing() -> Any:
    instance = Parent()
    state: Any = instance_state(instance)
    state.expired_attributes.add("name")
    state.__class__ = Refusing
    return instance


@pytest.mark.parametrize(
    ("use", "wanted"),
    [
        (lambda instance: Session().add(instance), "row"),
        (lambda instance: Session().add(Child(parent=instance)), "row"),
        (lambda instance: instance.name, "attributes"),
        (lambda instance: setattr(instance, "id", 1), "'id'"),
        (lambda instance: instance.children.append(Child()), "row"),
    ],
)
def test_refusing_state(use: Any, wanted: str) -> None:
    """Nothing can be done with the instance."""
    found = ""
    try:
        use(refusing())
    except Refused as error:
        found = str(error)
    assert wanted == found, (
        "SQLAlchemy no longer asks InstanceState.key, _load_expired() or "
        "_modified_event() before it uses an instance: see _private.RefusingState"
    )


def test_unmanaged_list() -> None:
    """A collection that SQLAlchemy does not know of cannot be cascaded."""
    parent = Parent()
    instance_state(parent).dict["children"] = RefusedList([Child()])
    try:
        Session().add(parent)
    except Refused:
        return
    pytest.fail(
        "SQLAlchemy no longer asks collections for _sa_adapter: see "
        "_private.UnmanagedList"
    )


def test_is_sentinel() -> None:
    """Only a column made by insert_sentinel() is one."""
    columns = inspect(Parent).local_table.c
    found = [is_sentinel(columns[name]) for name in ("marker", "name")]
    assert [True, False] == found, (
        "SQLAlchemy no longer marks sentinels by Column._insert_sentinel: see "
        "_private.is_sentinel()"
    )
    assert is_sentinel(insert_sentinel("marker"))


def with_child() -> tuple[Session, Any, Any]:
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    session = Session(engine)
    parent = Parent(name="p")
    session.add(parent)
    return session, parent, instance_state(parent)


def test_pending() -> None:
    """Objects to write are where a session keeps them."""
    changed = (
        "SQLAlchemy keeps what a flush writes elsewhere than in Session._new, _deleted "
        "and identity_map._modified: see _private.pending"
    )
    session, parent, state = with_child()
    assert ([state], [], []) == tuple(map(list, _private.pending(session))), changed
    session.commit()
    parent.name = "other"
    assert [[], [], [state]] == [*map(list, _private.pending(session))], changed
    session.delete(parent)
    assert state in _private.pending(session)[1], changed


def test_flushing() -> None:
    """A session says that it is flushing."""
    session, _, _ = with_child()
    seen = []
    event.listen(
        session, "before_flush", lambda s, *_: seen.append(_private.is_flushing(s))
    )
    session.flush()
    assert [True, False] == [*seen, _private.is_flushing(session)], (
        "SQLAlchemy says elsewhere than in Session._flushing that it flushes: see "
        "_private.is_flushing"
    )
    setattr(session, _private.FLUSHING, True)
    session.add(Parent())
    session.begin_nested()
    setattr(session, _private.FLUSHING, False)
    assert session.new, "a savepoint flushes what is pending: see _private.FLUSHING"


def test_binds() -> None:
    """The binds of a session are found."""
    engine = create_engine("sqlite://")
    session = Session(binds={Parent: engine})
    assert engine in dict(_private.binds(session)).values(), (
        "SQLAlchemy keeps binds elsewhere than in Session.binds or _Session__binds: see "
        "_private.binds"
    )


def test_parts_of_select() -> None:
    """A SELECT is taken apart."""
    changed = "SQLAlchemy keeps the parts of a SELECT elsewhere: see _private.{}"
    query = select(Parent).join(Child).where(Parent.id == 1).with_for_update()
    froms, ctes, columns, joins, conditions = _private.parts_of_select(query)
    found = len(froms), len(ctes), len(columns), len(joins), len(conditions)
    assert (0, 0, 1, 1, 1) == found, changed.format("parts_of_select")
    assert _private.lock_of_select(query) is not None, changed.format("lock_of_select")
    assert _private.lock_of_select(select(Parent)) is None
    query = select(Parent).select_from(Child).add_cte(select(Child).cte())
    froms, ctes, *_ = _private.parts_of_select(query)
    assert (1, 1) == (len(froms), len(ctes)), changed.format("parts_of_select")


def test_statement_of_lambda() -> None:
    """A lambda statement stands for a SELECT."""
    statement = lambda_stmt(lambda: select(Parent))
    assert isinstance(_private.statement_of_lambda(statement), Select), (
        "SQLAlchemy resolves lambda statements elsewhere than in _resolved: see "
        "_private.statement_of_lambda"
    )


class Data(MappedAsDataclass, DeclarativeBase):
    pass


class Shape(Data):
    __tablename__ = "shape"
    __mapper_args__: ClassVar[dict[str, str]] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "shape",
    }

    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    kind: Mapped[str] = mapped_column(init=False)


class Square(Shape):
    __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "square"}

    size: Mapped[int | None] = mapped_column(default=1, use_existing_column=True)


class Circle(Shape):
    __mapper_args__: ClassVar[dict[str, str]] = {"polymorphic_identity": "circle"}

    size: Mapped[int | None] = mapped_column(default=2, use_existing_column=True)


def test_insert_defaults() -> None:
    """Defaults apart from columns are found, where a flush uses such."""
    engine = create_engine("sqlite://")
    Data.metadata.create_all(engine)
    circle = new_instance(inspect(Circle))
    with Session(engine) as session:
        session.add(circle)
        session.flush()
        written = session.scalar(text("SELECT size FROM shape"))
    is_apart = written != inspect(Circle).columns["size"].default.arg
    assert is_apart is any(_private.insert_defaults(inspect(Circle)).values()), (
        "SQLAlchemy keeps defaults of attributes elsewhere than in "
        "Mapper._insert_orm_defaults: see _private.insert_defaults"
    )
    assert not any(_private.insert_defaults(inspect(Parent)).values())


def test_made_persistent() -> None:
    """What is done by hand to a new object is what a flush does."""
    changed = (
        "SQLAlchemy makes objects persistent in other steps than _save_impl(), "
        "_register_persistent(), _before_attach() and _commit_all_states(): see "
        "_private.save_impl and those after it"
    )
    session, parent, state = with_child()
    session.expunge(parent)
    parent.id = 1
    _private.before_attach(session, state, parent)
    _private.save_impl(session, state)
    _private.register_persistent(session, {state})
    _private.commit_all_states([(state, state.dict)], session.identity_map)
    assert state.persistent, changed
    assert not session.dirty, changed
    assert state in _private.made_in(session.get_transaction()), changed
    session.rollback()
    assert state.transient, changed


def test_part_of_a_transaction() -> None:
    """A part that is rolled back ends the whole, as a failed flush does."""
    session, _, _ = with_child()
    part = _private.begin_part(_private.autobegin(session))
    part.rollback(_capture_exception=True)
    assert not session.is_active, (
        "SQLAlchemy begins parts of a transaction otherwise than by _autobegin_t() and "
        "_begin(): see _private.begin_part"
    )


def test_orphans() -> None:
    """An object that has left its collection outside of any session is told."""
    parent, child = Parent(), Owned()
    parent.owned.append(child)
    state = instance_state(child)
    assert not _private.is_orphan(state.mapper, state)
    assert not _private.was_orphaned(state)
    parent.owned.remove(child)
    assert _private.is_orphan(state.mapper, state), (
        "SQLAlchemy finds orphans otherwise than by Mapper._is_orphan(): see "
        "_private.is_orphan"
    )
    assert _private.was_orphaned(state), (
        "SQLAlchemy marks orphans elsewhere than in _orphaned_outside_of_session: see "
        "_private.was_orphaned"
    )


def test_pending_mutations() -> None:
    """What is added to a collection that is not loaded waits."""
    session, parent, state = with_child()
    session.commit()
    Child(parent=parent)
    assert "children" in getattr(state, _private.PENDING_MUTATIONS), (
        "SQLAlchemy keeps what waits for a collection elsewhere than in "
        "_pending_mutations: see _private.PENDING_MUTATIONS"
    )


def test_all_sessions() -> None:
    """Sessions in memory are listed."""
    session = Session()
    assert session in set(_private.all_sessions.values()), (
        "SQLAlchemy lists sessions elsewhere than in orm.session._sessions: see "
        "_private.all_sessions"
    )


def test_state() -> None:
    """A mapped instance has a state, and nothing else has."""
    assert hasattr(Parent(), _private.STATE), (
        "SQLAlchemy keeps states elsewhere than in _sa_instance_state: see "
        "_private.STATE"
    )
    assert not hasattr(object(), _private.STATE)


def test_is_committed() -> None:
    """A transaction knows that it was committed, whatever came after."""
    session, _, _ = with_child()

    @event.listens_for(session, "after_commit")
    def fail(session: Session) -> None:
        raise KeyError

    session.flush()
    transaction = session.get_transaction()
    assert transaction is not None
    with pytest.raises(KeyError):
        session.commit()
    assert _private.is_committed(transaction), (
        "SQLAlchemy keeps the state of a transaction elsewhere than in _state: see "
        "_private.is_committed()"
    )
    session.close()


def test_is_read() -> None:
    """A result knows that all of its rows were read."""
    with (
        create_engine("sqlite://").connect() as connection,
        Session(connection) as session,
    ):
        result = session.execute(text("SELECT 1 UNION SELECT 2"))
        result.fetchone()
        assert not _private.is_read(result)
        result.fetchall()
        assert _private.is_read(result), (
            "SQLAlchemy says elsewhere than in _soft_closed that a result was read: see "
            "_private.is_read"
        )


def test_all_are_here() -> None:
    """Few private names are used, in one module, and each is tested here."""
    done = subprocess.run(
        [sys.executable, "tools/private_names.py"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert 0 == done.returncode, done.stdout
    here = Path(__file__).read_text()
    offered = [
        name
        for name, value in vars(_private).items()
        if not name.startswith("_")
        and name != "attrgetter"
        and (
            name.isupper()
            or getattr(value, "__module__", "").startswith("operator")
            or getattr(value, "__module__", "") == _private.__name__
        )
    ]
    assert [] == [name for name in offered if name not in here]
