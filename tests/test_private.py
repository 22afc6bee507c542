"""What we use of SQLAlchemy beyond its public names; each test says what changed."""

from __future__ import annotations

import asyncio
from time import time
from typing import Any, NoReturn

import asyncpg
import pytest
from sqlalchemy import (
    ForeignKey,
    String,
    create_engine,
    event,
    insert_sentinel,
    inspect,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    orm_insert_sentinel,
    relationship,
)
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.pool import ConnectionPoolEntry

from tenure import _private
from tenure._private import HookedPool, RefusingState, UnmanagedList, is_sentinel


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


class Child(Base):
    __tablename__ = "child"

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))
    parent: Mapped[Parent] = relationship(back_populates="children")


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
