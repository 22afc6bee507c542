"""Writing the values of a bulk: what becomes of each, and how it is undone."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any

import pytest
from sqlalchemy import event, func, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from tenure import (
    SESSION_BULK_CONTEXT,
    AsyncSession,
    Database,
    Key,
    Ref,
    ResolutionError,
    SessionError,
    Spec,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.models import (
    Account,
    Author,
    Base,
    Book,
    Country,
    Label,
    Node,
    Person,
    Region,
    Sample,
    Site,
    Tag,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None
    email: str | None = None


class BookIn(Spec[Book]):
    isbn: str
    title: str = "untitled"
    author: Ref[Author]
    editor: Ref[Author] | None = None


class RegionIn(Spec[Region]):
    country: Ref[Country]
    zone: int
    name: str | None = None


class SiteIn(Spec[Site]):
    id: int
    region: Ref[Region]
    code: str | None = None


class SampleIn(Spec[Sample]):
    label: str
    moment: datetime
    price: Decimal


class CountryIn(Spec[Country]):
    code: str
    name: str | None = None


class LabelledIn(Spec[Book]):
    isbn: str
    title: str = "untitled"
    author: Ref[Author]
    labels: list[Annotated[Label, Key("name")]]


class NodeIn(Spec[Node]):
    code: str
    parent: Ref[Node] | None = None


async def count(session: AsyncSession, entity: type[Base]) -> int | None:
    return await session.scalar(select(func.count()).select_from(entity))


async def authors(session: AsyncSession) -> list[tuple[str, str | None, str | None]]:
    rows = await session.execute(
        text("SELECT code, name, email FROM author ORDER BY code")
    )
    return [(code, name, email) for code, name, email in rows]


class TestFlush:
    async def test_created(self, session: AsyncSession) -> None:
        """New values become rows, get their keys, and are listed in order."""
        async with session.bulk() as bulk:
            for code in "cab":
                bulk.add(AuthorIn(code=code))
            report = await bulk.flush()
            found = bulk.get(Author)

        assert ["created"] * 3 == report.statuses
        assert ["c", "a", "b"] == [author.code for author in found]
        assert all(author in session for author in found)
        assert 3 == len({author.id for author in found})

    async def test_what_refers_comes_later(self, session: AsyncSession) -> None:
        """Values are written in the order their foreign keys need."""
        async with session.bulk() as bulk:
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "new"}))
            for given in ({"code": "c", "parent": "b"}, {"code": "b", "parent": "a"}):
                bulk.add(NodeIn.model_validate(given))
            bulk.add(NodeIn(code="a"))
            bulk.add(AuthorIn(code="new"))
            await bulk.resolve()
            report = await bulk.commit()
        parents = await session.execute(
            text(
                "SELECT n.code, p.code FROM node n LEFT JOIN node p "
                "ON n.parent_id = p.id ORDER BY n.code"
            )
        )

        assert 5 == report.created
        assert [("a", None), ("b", "a"), ("c", "b")] == [tuple(p) for p in parents]

    async def test_long_chain(self, session: AsyncSession) -> None:
        """Values that refer to each other in a long chain need no deep recursion."""
        length = 3_000
        async with session.bulk() as bulk:
            bulk.add(NodeIn(code="0"))
            for n in range(1, length):
                given = {"code": str(n), "parent": str(n - 1)}
                bulk.add(NodeIn.model_validate(given))
            resolution = await bulk.resolve()
            last = bulk.get(Node, scope="values")[-1]

        assert length - 1 == resolution.resolved
        assert last.parent is not None
        assert str(length - 2) == last.parent.code

    async def test_conflict_raises(self, session: AsyncSession) -> None:
        """Without a policy, a row that exists is the database's error."""
        session.add(Author(code="a"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a"))
            with pytest.raises(IntegrityError):
                await bulk.commit()

        assert 1 == await count(session, Author)

    @pytest.mark.parametrize("loaded", [False, True])
    async def test_update(self, session: AsyncSession, loaded: bool) -> None:
        """``update`` changes what was set, and nothing where that is the same."""
        session.add(Author(code="a", name="old", email="kept"))
        session.add(Author(code="b", name="same", email="kept"))
        await session.commit()
        if not loaded:
            session.expunge_all()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a", name="new"))
            bulk.add(AuthorIn(code="b", name="same"))
            bulk.add(AuthorIn(code="c", name="new"))
            report = await bulk.commit(on_conflict="update")

        assert ["updated", "unchanged", "created"] == report.statuses
        assert [
            ("a", "new", "kept"),
            ("b", "same", "kept"),
            ("c", "new", None),
        ] == await authors(session)

    @pytest.mark.parametrize("loaded", [False, True])
    async def test_update_of_a_reference(
        self, session: AsyncSession, loaded: bool
    ) -> None:
        """A changed reference is a change; the same one is none."""
        one, two = Author(code="1"), Author(code="2")
        session.add_all([one, two])
        session.add(Book(isbn="x", title="t", author=one, editor=two))
        session.add(Book(isbn="y", title="t", author=one))
        await session.commit()
        if not loaded:
            session.expunge_all()
        async with session.bulk() as bulk:
            for isbn in "xy":
                given = {"isbn": isbn, "title": "t", "author": "1", "editor": "1"}
                bulk.add(BookIn.model_validate(given))
            bulk.add(BookIn.model_validate({"isbn": "z", "author": "2"}))
            await bulk.resolve(scope="references")
            first = await bulk.flush(on_conflict="update")
            await bulk.commit()
        async with session.bulk() as bulk:
            for isbn in "xy":
                given = {"isbn": isbn, "title": "t", "author": "1", "editor": "1"}
                bulk.add(BookIn.model_validate(given))
            await bulk.resolve(scope="references")
            second = await bulk.commit(on_conflict="update")
        rows = await session.execute(
            select(Book.isbn, Author.code).join(Book.editor).order_by(Book.isbn)
        )

        assert ["updated", "updated", "created"] == first.statuses
        assert ["unchanged", "unchanged"] == second.statuses
        assert [("x", "1"), ("y", "1")] == [tuple(row) for row in rows]

    async def test_update_by_collation(self, session: AsyncSession) -> None:
        """A key that a collation calls equal finds the row, and does not change it."""
        session.add(Tag(name="Paris", note="old"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            bulk.add(Tag(name="PARIS", note="new"))
            report = await bulk.commit(on_conflict="update")
        rows = await session.execute(text("SELECT name, note FROM tag"))

        assert ["updated"] == report.statuses
        assert [("Paris", "new")] == [tuple(row) for row in rows]

    async def test_update_fields(self, session: AsyncSession) -> None:
        """``update_fields`` limits what an update may change."""
        session.add(Author(code="a", name="old", email="old"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a", name="new", email="new"))
            await bulk.commit(on_conflict="update", update_fields=["email"])

        assert [("a", "old", "new")] == await authors(session)

    async def test_skip(self, session: AsyncSession) -> None:
        """``skip`` leaves the row alone, and what referred to the value, too."""
        author = Author(code="a")
        session.add(author)
        session.add(Book(isbn="x", title="old", author=author))
        await session.commit()
        async with session.bulk() as bulk:
            for isbn in "xy":
                given = {"isbn": isbn, "title": "new", "author": "a"}
                bulk.add(BookIn.model_validate(given))
            await bulk.resolve(scope="references")
            report = await bulk.commit(on_conflict="skip")
        titles = await session.scalars(select(Book.title).order_by(Book.isbn))

        assert ["skipped", "created"] == report.statuses
        assert ["old", "new"] == titles.all()

    async def test_duplicates(self, session: AsyncSession) -> None:
        """Two values for one key: an error, or the first or the last of them."""
        for policy, expected in (("first", "one"), ("last", "two")):
            async with session.bulk() as bulk:
                bulk.add(AuthorIn(code=policy, name="one"))
                bulk.add(AuthorIn(code=policy, name="two"))
                with pytest.raises(ResolutionError, match=policy):
                    await bulk.flush(on_conflict="update")
                report = await bulk.commit(
                    on_conflict="update",
                    on_duplicate=policy,  # type: ignore[arg-type]  # one of them
                )
            [name] = await session.scalars(select(Author.name).filter_by(code=policy))

            assert expected == name
            assert (1, 1) == (report.created, report.skipped)

    async def test_statements(self, db: Database, session: AsyncSession) -> None:
        """A thousand values take as many statements as ten."""
        session.add_all([Author(code=str(n), name="old") for n in range(1_000)])
        await session.commit()
        session.expunge_all()
        counts = []
        for names in (range(10), range(10, 1_000)):
            async with session.bulk() as bulk:
                for n in names:
                    bulk.add(AuthorIn(code=str(n), name="new"))
                engine = db.manager.async_engines["default"]
                with count_statements(engine) as statements:
                    await bulk.flush(on_conflict="update")
                counts.append(statements.count)
            await session.commit()

        assert counts[0] == counts[1]

    async def test_stored_alike(self, session: AsyncSession) -> None:
        """What is stored as it was is unchanged, though Python calls it different."""
        moment = datetime(2024, 5, 1, 12, tzinfo=UTC)
        for expected in ("created", "unchanged"):
            session.expunge_all()
            async with session.bulk() as bulk:
                bulk.add(SampleIn(label="x", moment=moment, price=Decimal("1.10")))
                report = await bulk.commit(on_conflict="update")

            assert [expected] == report.statuses

    async def test_inheritance_and_defaults(self, session: AsyncSession) -> None:
        """Rows over two tables, versions and defaults made in Python are complete."""
        async with session.bulk() as bulk:
            bulk.add(Person(code="p", name="P", born=1900))
            bulk.add(Account(code="a", balance=1))
            report = await bulk.commit()
        rows = await session.execute(text("SELECT note, version FROM account"))

        assert 2 == report.created
        assert [("made in python", 1)] == [tuple(row) for row in rows]


class TestAgain:
    @pytest.mark.parametrize("on_conflict", ["raise", "update"])
    async def test_keys_of_the_database(
        self, session: AsyncSession, on_conflict: Any
    ) -> None:
        """A key that was undone belongs to whoever gets it next."""
        country = Country(code="aa", name="ours")
        async with session.bulk() as bulk:
            bulk.add(Region(country=country, zone=1))
            bulk.add(country)
            await bulk.flush()
            await bulk.rollback()
            await session.execute(
                insert(Country.__table__).values(code="zz", name="theirs")
            )
            await session.commit()
            await bulk.commit(on_conflict=on_conflict)

        found = await session.execute(
            select(Country.code, Country.name, Region.zone)
            .outerjoin(Region)
            .order_by(Country.code)
        )
        assert [("aa", "ours", 1), ("zz", "theirs", None)] == list(map(tuple, found))

    async def test_collections(self, session: AsyncSession) -> None:
        """Collections are written again as well, from either side."""
        async with session.bulk() as bulk:
            one, two = Label(name="one"), Label(name="two")
            book = Book(isbn="1", title="t", author=Author(code="a"), labels=[one, two])
            other = Book(isbn="2", title="t", author=book.author, labels=[two])
            for value in (one, book, other, two):
                bulk.add(value)
            for _ in range(2):
                await bulk.flush()
                await bulk.rollback()
            await bulk.commit()

        found = await session.execute(
            select(Book.isbn, Label.name)
            .join(Book.labels)
            .order_by(Book.isbn, Label.name)
        )
        assert [("1", "one"), ("1", "two"), ("2", "two")] == list(map(tuple, found))


class TestKeysInsideOfKeys:
    async def test_of_a_value_that_was_found(self, session: AsyncSession) -> None:
        """A value is looked up by a key that holds one found by an earlier resolve."""
        session.add(Region(country=Country(code="fr"), zone=1))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(Country(code="fr", name="France"))
            await bulk.resolve()
            given = {"country": "fr", "zone": 1, "name": "north"}
            bulk.add(RegionIn.model_validate(given))
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        assert ["updated"] * 2 == report.statuses

    async def test_made_outside(self, session: AsyncSession) -> None:
        """Values made without a bulk, and equal keys in them, are looked up."""
        session.add(Region(country=Country(code="fr"), zone=1))
        await session.commit()
        values = [
            RegionIn.model_validate({"country": "fr", "zone": zone, "name": "given"})
            for zone in (1, 2)
        ]
        async with session.bulk() as bulk:
            for value in reversed(values):
                bulk.add(value)
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        assert ["created", "updated"] == report.statuses

    @pytest.mark.parametrize("strategy", ["bind", "hydrate"])
    async def test_names_a_value_made_outside(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A reference made without a bulk is a new value of it, also to a row."""
        country = Country(code="fr")
        session.add(Site(id=1, region=Region(country=country, zone=1), code="s"))
        await session.commit()
        values = [
            RegionIn.model_validate({"country": "fr", "zone": 2}),
            SiteIn.model_validate({"id": 1, "region": {"country": "fr", "zone": 2}}),
        ]
        async with session.bulk() as bulk:
            for value in values:
                bulk.add(value)
            await bulk.resolve(strategy=strategy)
            report = await bulk.commit(on_conflict="update")

        assert ["created", "updated"] == report.statuses


class TestCircles:
    async def test_of_references(self, session: AsyncSession) -> None:
        """Values that need each other's keys are named, and where; all is undone."""
        async with session.bulk() as bulk:
            bulk.add(NodeIn(code="a", parent="b"))
            bulk.add(NodeIn(code="b", parent="c"))
            bulk.add(NodeIn(code="c", parent="b"))
            bulk.add(NodeIn(code="d"))
            await bulk.resolve()
            with pytest.raises(ResolutionError, match=r"'b'.*'c'.*'b'") as caught:
                await bulk.commit()

        errors = caught.value.errors()
        assert {"reference_circular"} == {error["type"] for error in errors}
        assert [(0, "parent"), (1, "parent"), (2, "parent")] == sorted(
            error["loc"] for error in errors
        )
        assert 0 == await session.scalar(select(func.count()).select_from(Node))


class TestUndo:
    async def test_rollback(self, session: AsyncSession) -> None:
        """``rollback`` undoes the bulk; its values are new and can be written."""
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a"))
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "a"}))
            await bulk.resolve()
            await bulk.flush()
            await bulk.rollback()
            rolled_back = await count(session, Author)
            await bulk.resolve()
            report = await bulk.commit()

        assert 0 == rolled_back
        assert 2 == report.created
        assert 1 == await count(session, Book)

    async def test_failed_commit(self, session: AsyncSession) -> None:
        """A commit that fails leaves nothing of the bulk behind."""
        session.add(Author(code="b"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a"))
            bulk.add(AuthorIn(code="b"))
            with pytest.raises(IntegrityError):
                await bulk.commit()

        assert [("b", None, None)] == await authors(session)

    @pytest.mark.parametrize("fails", [False, True])
    async def test_earlier_work_survives(
        self, session: AsyncSession, fails: bool
    ) -> None:
        """What the session did before the bulk is not undone with it."""
        session.add(Country(code="fr"))
        await session.flush()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a"))
            await bulk.flush()
            if fails:
                bulk.add(Author(code="a"))
                with pytest.raises(IntegrityError):
                    await bulk.commit()
            else:
                await bulk.rollback()
            await session.commit()

        assert 1 == await count(session, Country)
        assert 0 == await count(session, Author)

    async def test_found_values_inside_of_a_transaction(
        self, session: AsyncSession
    ) -> None:
        """What ``resolve`` found is updated by the bulk, and undone with it alone."""
        session.add_all([Author(code="a", name="old"), Author(code="b", name="old")])
        await session.commit()
        [mine] = await session.scalars(select(Author).where(Author.code == "b"))
        mine.name = "mine"
        async with session.bulk() as bulk:
            bulk.add(Author(code="a", name="new"))
            bulk.add(Author(code="c"))
            await bulk.resolve(raise_errors=False)
            report = await bulk.flush(on_conflict="update")
            assert ["updated", "created"] == report.statuses
            await bulk.rollback()
        assert [("a", "old", None), ("b", "mine", None)] == await authors(session)

    async def test_values_given_away_by_values(self, session: AsyncSession) -> None:
        """A key that one value gives away is another's in the same bulk."""
        session.add(Author(code="a", email="x"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(Author(code="a", email="y"))
            await bulk.resolve()
            bulk.add(Author(code="b", email="x"))
            await bulk.commit(on_conflict="update")
        assert [("a", None, "y"), ("b", None, "x")] == await authors(session)

    async def test_refers_to_what_was_made(self, session: AsyncSession) -> None:
        """What a ``Spec`` became is the same instance when it is written again."""
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a", name="given"))
            await bulk.flush()
            [author] = bulk.get(Author)
            bulk.add(Book(isbn="1", title="t", author=author))
            await bulk.flush()
            await bulk.rollback()
            report = await bulk.commit()

            assert [author] == bulk.get(Author)
        assert ["created"] * 2 == report.statuses
        assert [("a", "given", None)] == await authors(session)

    async def test_refers_to_what_was_found(self, session: AsyncSession) -> None:
        """The instance of a row that a ``Spec`` was bound to stands for that value."""
        session.add(Country(code="fr"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(CountryIn(code="fr", name="France"))
            await bulk.resolve()
            [country] = bulk.get(Country)
            bulk.add(Region(country=country, zone=1))
            given = {"id": 1, "region": {"country": "fr", "zone": 1}, "code": "s"}
            bulk.add(SiteIn.model_validate(given))
            await bulk.rollback()
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        assert ["updated", "created", "created"] == report.statuses

    async def test_collections_that_were_not_loaded(
        self, session: AsyncSession
    ) -> None:
        """What was to be added to one before is forgotten with the rest."""
        async with session.bulk() as bulk:
            bulk.add(Label(name="l"))
            await bulk.flush()
            bulk.add(Author(code="a"))
            given = {"isbn": "1", "author": "a", "labels": ["l"]}
            bulk.validate(LabelledIn, given)
            await bulk.resolve()
            await bulk.rollback()
            await bulk.resolve()
            await bulk.commit()

        found = await session.execute(select(Book.isbn, Label.name).join(Book.labels))
        assert [("1", "l")] == list(map(tuple, found))

    async def test_nothing_was_sent(self, session: AsyncSession) -> None:
        """What was made by then is in no collection of what the session knows."""
        session.add(Author(code="a"))
        await session.commit()
        [author] = await session.scalars(select(Author))
        author.name = "changed"
        async with session.bulk() as bulk:
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "a"}))
            await bulk.resolve()
            await bulk.rollback()
            await session.flush()
            await bulk.resolve()
            await bulk.commit()

        assert [("a", "changed", None)] == await authors(session)
        assert 1 == await count(session, Book)

    async def test_what_is_referred_to_has_forgotten(
        self, session: AsyncSession
    ) -> None:
        """A value given before a rollback that is a row still refers to its parent."""
        author = Author(code="a")
        session.add(Book(isbn="1", title="before", author=author))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(Book(isbn="1", title="given", author=author))
            await session.rollback()
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        found = await session.execute(select(Book.title, Author.code).join(Book.author))
        assert ["updated"] == report.statuses
        assert [("given", "a")] == list(map(tuple, found))

    async def test_what_cannot_be_flushed_before(self, session: AsyncSession) -> None:
        """What refuses to be flushed takes nothing from the values of a bulk."""
        author = Author(code="a")
        session.add(author)
        await session.commit()
        book = Book(isbn="1", title="t", author=author)
        async with session.bulk() as bulk:
            bulk.add(book)
            session.add(Author(code="a"))
            await session.connection()
            with pytest.raises(IntegrityError):
                await bulk.flush()
            await session.rollback()
            assert book.author is author
            report = await bulk.commit()
        assert ["created"] == report.statuses

    @pytest.mark.parametrize("order", [1, -1])
    async def test_row_refers_to_what_is_new(
        self, session: AsyncSession, order: int
    ) -> None:
        """A row that referred to nothing refers to a new value of the same bulk."""
        session.add(Node(code="old"))
        await session.commit()
        values = [NodeIn.model_validate({"code": "old", "parent": "new"})]
        values.append(NodeIn(code="new"))
        async with session.bulk() as bulk:
            for value in values[::order]:
                bulk.add(value)
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")
        parents = await session.execute(
            text(
                "SELECT n.code, p.code FROM node n LEFT JOIN node p "
                "ON n.parent_id = p.id ORDER BY n.code"
            )
        )

        assert ["updated", "created"][::order] == report.statuses
        assert [("new", None), ("old", "new")] == [tuple(each) for each in parents]

    async def test_without_resolving(self, session: AsyncSession) -> None:
        """The instance in a payload is used as it is: nothing is left to resolve."""
        author = Author(code="a")
        async with session.bulk() as bulk:
            bulk.add(BookIn(isbn="1", author=author))
            await bulk.commit()
            [book] = bulk.get(Book)

        assert author is book.author


class TestUndoOfUpdates:
    """What a bulk changed in rows that exist is undone like what it created."""

    @pytest.mark.parametrize("made_by", [AuthorIn, Author])
    @pytest.mark.parametrize("flushes", [False, True])
    @pytest.mark.parametrize("is_known", [False, True])
    async def test_inside_of_a_transaction(
        self, session: AsyncSession, made_by: type, flushes: bool, is_known: bool
    ) -> None:
        """Back to where the bulk began, also what was pending then."""
        session.add(Author(code="a", name="before"))
        await session.commit()
        known = (await session.scalars(select(Author))).one()
        known.email = "pending"
        if not is_known:
            await session.flush()
            session.expunge_all()
        session.add(Tag(name="pending"))
        async with session.bulk() as bulk:
            bulk.add(made_by(code="a", name="given"))
            await bulk.resolve()
            if flushes:
                await bulk.flush(on_conflict="update")
            await bulk.rollback()
            await session.flush()
            after = await authors(session)
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        assert [("a", "before", "pending")] == after
        assert ["updated"] == report.statuses
        assert [("a", "given", "pending")] == await authors(session)
        assert 1 == await count(session, Tag)

    async def test_a_row_stays_a_row(self, session: AsyncSession) -> None:
        """A value that was the session's instance of a row is so after a rollback."""
        session.add(Tag(name="before"))
        await session.commit()
        [tag] = await session.scalars(select(Tag))
        async with session.bulk() as bulk:
            tag.name = "given"
            bulk.add(tag)
            await bulk.flush()
            await bulk.rollback()

            assert inspect(tag).persistent
            await session.refresh(tag)
            assert "before" == tag.name

    @pytest.mark.parametrize("made_by", [AuthorIn, Author])
    async def test_what_was_committed_stays(
        self, session: AsyncSession, made_by: type
    ) -> None:
        """A rollback makes new again what was written since the last commit only."""
        async with session.bulk() as bulk:
            bulk.add(made_by(code="a"))
            await bulk.resolve()
            await bulk.commit()
            bulk.add(made_by(code="b"))
            await bulk.flush()
            await bulk.rollback()
            report = await bulk.commit()

        assert ["unchanged", "created"] == report.statuses
        assert ["a", "b"] == [code for code, _, _ in await authors(session)]

    @pytest.mark.parametrize("by", ["bulk", "session"])
    async def test_what_was_given_since(self, session: AsyncSession, by: str) -> None:
        """What is undone stays with those that have come to refer to it since."""
        session.add(Book(isbn="1", title="t", author=Author(code="a")))
        await session.commit()
        async with session.bulk() as bulk:
            label = Label(name="one")
            bulk.add(label)
            bulk.add(LabelledIn(isbn="1", author="a", labels=["one"]))
            await bulk.resolve()
            if by == "session":
                await session.rollback()
            book = Book(isbn="2", title="t", author=Author(code="b"), labels=[label])
            bulk.add(book)
            if by == "bulk":
                await bulk.rollback()
            await bulk.resolve()
            await bulk.commit(on_conflict="update")

        found = await session.execute(
            select(Book.isbn, Label.name).join(Book.labels).order_by(Book.isbn)
        )
        assert [("1", "one"), ("2", "one")] == list(map(tuple, found))

    @pytest.mark.parametrize("made_by", [AuthorIn, Author])
    @pytest.mark.parametrize("in_savepoint", [False, True])
    async def test_by_the_session(
        self, session: AsyncSession, made_by: type, in_savepoint: bool
    ) -> None:
        """A bulk whose session was rolled back resolves and writes all of it again."""
        session.add(Author(code="old"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(made_by(code="old", name="given"))
            bulk.add(made_by(code="new", name="given"))
            if in_savepoint:
                savepoint = await session.begin_nested()
                await bulk.resolve()
                await bulk.flush(on_conflict="update")
                await savepoint.rollback()
            else:
                await bulk.resolve()
                await bulk.flush(on_conflict="update")
                await session.rollback()
            await bulk.resolve()
            report = await bulk.commit(on_conflict="update")

        assert ["updated", "created"] == report.statuses
        assert [("new", "given", None), ("old", "given", None)] == await authors(
            session
        )


class TestChangedMeanwhile:
    """What a program does to the instances of values is the program's."""

    async def test_resolving_again(self, session: AsyncSession) -> None:
        """An instance that was made of a ``Spec`` is not set again to what it says."""
        session.add(Author(code="old"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="old", name="given"))
            bulk.add(AuthorIn(code="new", name="given"))
            await bulk.resolve()
            for author in bulk.get(Author):
                author.name = "changed"
            await bulk.resolve()
            await bulk.resolve(strategy="hydrate")
            await bulk.commit(on_conflict="update")

        assert [("new", "changed", None), ("old", "changed", None)] == await authors(
            session
        )

    async def test_committing_again(self, session: AsyncSession) -> None:
        """What was written is not written again over what others wrote since."""
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a", name="given"))
            await bulk.resolve()
            await bulk.commit()
            await session.execute(text("UPDATE author SET name = 'other'"))
            await session.commit()
            await bulk.resolve()
            report = await bulk.commit()

        assert ["unchanged"] == report.statuses
        assert [("a", "other", None)] == await authors(session)


class TestWatching:
    async def test_added_while_writing(self, session: AsyncSession) -> None:
        """What is added while a bulk writes waits for the next time."""
        async with session.bulk() as bulk:
            bulk.add(Author(code="a"))

            def add_more(*_: object) -> None:
                if len(bulk.get(Author)) == 1:
                    bulk.add(Author(code="b"))

            event.listen(Author, "before_insert", add_more)
            try:
                first = await bulk.flush()
                second = await bulk.flush()
            finally:
                event.remove(Author, "before_insert", add_more)

        assert ["created"] == first.statuses
        assert ["unchanged", "created"] == second.statuses

    async def test_merged_value_is_seen_by_others(self, session: AsyncSession) -> None:
        """A value that the session knows is that one, also to other values."""
        session.add(Country(code="fr"))
        await session.commit()
        [known] = await session.scalars(select(Country))
        given = Country(code="fr", name="France")
        async with session.bulk() as bulk:
            bulk.add(given)
            bulk.add(Region(country=given, zone=1))
            await bulk.resolve()
            await bulk.commit(on_conflict="update")
            [region] = bulk.get(Region)

        assert known is region.country
        assert "France" == known.name
        assert 1 == await count(session, Country)


class TestOwnersWork:
    """What was in the transaction before a bulk is not for the bulk to undo."""

    async def test_rollback_of_nothing(self, session: AsyncSession) -> None:
        """Without a flush there is nothing to undo."""
        session.add(Tag(name="a"))
        await session.flush()
        async with session.bulk() as bulk:
            bulk.add(Tag(name="b"))
            await bulk.rollback()

        assert 1 == len((await session.scalars(select(Tag))).all())

    async def test_wrong_option(self, session: AsyncSession) -> None:
        """A wrong word is refused before anything is touched."""
        session.add(Tag(name="a"))
        await session.flush()
        async with session.bulk() as bulk:
            bulk.add(Tag(name="b"))
            with pytest.raises(SessionError, match="on_conflict"):
                await bulk.commit(on_conflict="typo")  # type: ignore[arg-type]  # on purpose
            with pytest.raises(SessionError, match="batch_size is at least 1, not 0"):
                await bulk.commit(batch_size=0)

        assert 1 == len((await session.scalars(select(Tag))).all())

    async def test_left_out_of_order(self, session: AsyncSession) -> None:
        """Bulks that are left in another order leave none behind."""
        first, second = session.bulk(), session.bulk()
        await first.__aenter__()
        await second.__aenter__()
        await first.__aexit__(None, None, None)
        assert second is SESSION_BULK_CONTEXT.get()
        await second.__aexit__(None, None, None)

        assert SESSION_BULK_CONTEXT.get() is None
