"""Values that resolve() has bound to rows: on_conflict is for them, too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, String, select
from sqlalchemy.exc import IntegrityError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import (
    ConflictError,
    Database,
    DatabaseError,
    Ref,
    ResolutionError,
    Resource,
    Spec,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.pools import Pools

pytestmark = pytest.mark.anyio


class Base(DeclarativeBase):
    pass


class Publisher(Resource, Base):
    __tablename__ = "bound_publisher"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str] = mapped_column(String(10), unique=True)
    name: Mapped[str | None] = mapped_column(String(30))
    books: Mapped[list[Book]] = relationship(back_populates="publisher")


class Book(Resource, Base):
    __tablename__ = "bound_book"

    id: Mapped[int] = mapped_column(primary_key=True)
    isbn: Mapped[str] = mapped_column(String(20), unique=True)
    title: Mapped[str | None] = mapped_column(String(30))
    note: Mapped[str | None] = mapped_column(String(30))
    publisher_id: Mapped[int | None] = mapped_column(ForeignKey("bound_publisher.id"))
    publisher: Mapped[Publisher | None] = relationship(back_populates="books")


class BookIn(Spec[Book]):
    isbn: str
    title: str | None = None
    note: str | None = None
    publisher: Ref[Publisher] | None = None


FIRST = {"isbn": "1", "title": "First", "note": "old"}


@pytest.fixture
async def db(async_url: str, pools: Pools) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        async with db.async_session_manager(auto_commit=True) as session:
            publishers = [Publisher(code=code, name=code) for code in ("ORL", "PEN")]
            session.add_all([Book(**FIRST, publisher=publishers[0]), publishers[1]])
        yield db


async def books(db: Database) -> list[tuple[Any, ...]]:
    async with db.async_session() as session:
        rows = await session.execute(
            select(Book.isbn, Book.title, Book.note, Publisher.code)
            .outerjoin(Book.publisher)
            .order_by(Book.isbn)
        )
        return [tuple(row) for row in rows]


BEFORE = [("1", "First", "old", "ORL")]
strategies = pytest.mark.parametrize("strategy", ["bind", "hydrate"])
models = pytest.mark.parametrize("model", [BookIn, Book])


class TestRaise:
    @strategies
    @models
    @pytest.mark.parametrize("method", ["flush", "commit"])
    async def test_refused(
        self, db: Database, model: Any, strategy: Any, method: str
    ) -> None:
        """What would change a row is a conflict, named with its key; nothing changes."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(model, {"isbn": "1", "title": "Other"})
            bulk.validate(model, {"isbn": "2", "title": "New"})
            await bulk.resolve(strategy=strategy, raise_errors=False)
            with pytest.raises(ConflictError) as caught:
                await getattr(bulk, method)()

        assert "Book(isbn='1') is taken: title" in str(caught.value)
        assert ["taken"] == [failure.reason for failure in caught.value.failures]
        assert {"isbn": "1"} == caught.value.failures[0].key
        assert 2 == caught.value.report.failed  # type: ignore[attr-defined]  # as of all bulks
        assert isinstance(caught.value, IntegrityError | DatabaseError)
        assert BEFORE == await books(db)

    async def test_swallowed(self, db: Database) -> None:
        """The session cannot be committed instead, as after a flush that failed."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(BookIn, {"isbn": "1", "title": "Other"})
            await bulk.resolve()
            with pytest.raises(ConflictError):
                await bulk.flush()
            with pytest.raises(PendingRollbackError):
                await session.commit()

        assert BEFORE == await books(db)

    async def test_written_after_it(self, db: Database) -> None:
        """After a rollback the same bulk can write, with another on_conflict."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(BookIn, {"isbn": "1", "title": "Other"})
            await bulk.resolve()
            with pytest.raises(ConflictError):
                await bulk.commit()
            report = await bulk.commit(on_conflict="update")

        assert ["updated"] == report.statuses
        assert [("1", "Other", "old", "ORL")] == await books(db)

    @strategies
    async def test_says_the_same(self, db: Database, strategy: Any) -> None:
        """A value that says what its row says is no conflict."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(BookIn, {"isbn": "1", "title": "First", "publisher": "ORL"})
            await bulk.resolve(strategy=strategy)
            report = await bulk.commit()

        assert ["unchanged"] == report.statuses

    @strategies
    async def test_reference_changes(self, db: Database, strategy: Any) -> None:
        """Another reference changes the row as well."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(BookIn, {"isbn": "1", "publisher": "PEN"})
            await bulk.resolve(strategy=strategy)
            with pytest.raises(ConflictError, match="publisher"):
                await bulk.commit()

        assert BEFORE == await books(db)

    async def test_nested(self, db: Database) -> None:
        """A body does not rename what it refers to."""
        async with db.async_session() as session, session.bulk() as bulk:
            publisher = {"code": "ORL", "name": "HACKED"}
            Book.resource_validate({"isbn": "2", "publisher": publisher})
            await bulk.resolve(raise_errors=False)
            with pytest.raises(ConflictError, match=r"Publisher\(code='ORL'\)"):
                await bulk.commit()

        assert BEFORE == await books(db)

    async def test_users_own_change(self, db: Database) -> None:
        """An instance that was a row's before it was added is the user's to change."""
        async with db.async_session() as session, session.bulk() as bulk:
            book = (await session.scalars(select(Book))).one()
            book.title = "Other"
            bulk.add(book)
            await bulk.resolve()
            report = await bulk.commit()

        assert ["updated"] == report.statuses
        assert [("1", "Other", "old", "ORL")] == await books(db)

    async def test_users_other_change(self, db: Database) -> None:
        """Nor is it a conflict if the user has changed what a value does not set."""
        async with db.async_session() as session, session.bulk() as bulk:
            book = (await session.scalars(select(Book))).one()
            book.note = "new"
            bulk.validate(BookIn, {"isbn": "1", "title": "First"})
            await bulk.resolve()
            await bulk.commit()

        assert [("1", "First", "new", "ORL")] == await books(db)

    async def test_written_by_the_bulk(self, db: Database) -> None:
        """What the bulk has written itself may be changed and flushed again."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.add(Book(isbn="2", title="New"))
            await bulk.flush()
            await bulk.resolve()
            (new,) = bulk.get(Book, scope="values")
            new.title = "Newer"
            await bulk.commit()

        assert [*BEFORE, ("2", "Newer", None, None)] == await books(db)

    async def test_added_to_a_collection(self, db: Database) -> None:
        """A new child does not change the row of its parent."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.add(Publisher(code="ORL", books=[Book(isbn="2")]))
            await bulk.resolve(raise_errors=False)
            await bulk.commit()

        assert [*BEFORE, ("2", None, None, "ORL")] == await books(db)


class TestSkip:
    @strategies
    @models
    async def test_left_alone(self, db: Database, model: Any, strategy: Any) -> None:
        """The row stays as it is, and its instance says so."""
        async with db.async_session() as session, session.bulk() as bulk:
            payload = {"isbn": "1", "title": "Other", "publisher": "PEN"}
            bulk.validate(model, payload)
            bulk.validate(model, {"isbn": "2", "title": "New"})
            await bulk.resolve(strategy=strategy, raise_errors=False)
            report = await bulk.commit(on_conflict="skip")
            (first, _) = bulk.get(Book)[-2:]
            await session.refresh(first)
            assert "First" == first.title

        assert ["skipped", "created"] == report.statuses
        assert [*BEFORE, ("2", "New", None, None)] == await books(db)


class TestUpdate:
    @strategies
    @models
    async def test_some_fields(self, db: Database, model: Any, strategy: Any) -> None:
        """update_fields names what an update may change, also of a bound value."""
        async with db.async_session() as session, session.bulk() as bulk:
            payload = {"isbn": "1", "title": "Other", "note": "new", "publisher": "PEN"}
            bulk.validate(model, payload)
            await bulk.resolve(strategy=strategy)
            report = await bulk.commit(on_conflict="update", update_fields=["note"])

        assert ["updated"] == report.statuses
        assert [("1", "First", "new", "ORL")] == await books(db)

    @pytest.mark.parametrize("resolved", [True, False])
    async def test_twice(self, db: Database, *, resolved: bool) -> None:
        """Two values for one row are refused, bound or not."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(BookIn, {"isbn": "1", "title": "A"})
            bulk.validate(BookIn, {"isbn": "1", "title": "B"})
            with pytest.raises(ResolutionError, match="more than one value"):
                if resolved:
                    await bulk.resolve()
                await bulk.commit(on_conflict="update")

        assert BEFORE == await books(db)

    @pytest.mark.parametrize("resolved", [True, False])
    @pytest.mark.parametrize(("which", "title"), [("first", "A"), ("last", "B")])
    async def test_one_of_two(
        self, db: Database, which: Any, title: str, *, resolved: bool
    ) -> None:
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(BookIn, {"isbn": "1", "title": "A"})
            bulk.validate(BookIn, {"isbn": "1", "title": "B"})
            if resolved:
                await bulk.resolve()
            await bulk.commit(on_conflict="update", on_duplicate=which)

        assert [("1", title, "old", "ORL")] == await books(db)


class TestDiscard:
    @strategies
    @models
    async def test_takes_back(self, db: Database, model: Any, strategy: Any) -> None:
        """What it would have changed is as before, references too; nothing is asked."""
        async with db.async_session() as session, session.bulk() as bulk:
            bulk.validate(model, {"isbn": "1", "title": "Other", "publisher": "PEN"})
            await bulk.resolve(strategy=strategy)
            with count_statements(db.manager.async_engines["default"]) as statements:
                bulk.discard()
            assert 0 == statements.count
            await bulk.commit(on_conflict="update")
            await session.commit()

        assert BEFORE == await books(db)
