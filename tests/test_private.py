"""What we use of SQLAlchemy beyond its public names; each test says what changed."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest
from sqlalchemy import ForeignKey, insert_sentinel, inspect
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    orm_insert_sentinel,
    relationship,
)
from sqlalchemy.orm.attributes import instance_state

from tenure._private import RefusingState, UnmanagedList, is_sentinel


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
