"""
What libraries of this kind got wrong, where no other test would tell.

``tests/README.md`` says which test holds the others.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import selectinload

from tenure import (
    SESSION_BULK_CONTEXT,
    AsyncSession,
    Database,
    Key,
    Ref,
    ResolutionError,
    Spec,
    UnresolvedReferenceError,
    async_session_manager,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.models import (
    Author,
    Book,
    Car,
    Country,
    Label,
    Lorry,
    Node,
    Region,
    Sample,
    Seat,
    Vehicle,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None
    email: str | None = None


class BookIn(Spec[Book]):
    isbn: str
    title: str = "untitled"
    barcode: int | None = None
    author: Ref[Author]
    labels: list[Ref[Label]] = []  # noqa: RUF012  # Pydantic copies it


class RegionIn(Spec[Region]):
    country: Ref[Country]
    zone: int


async def stored(session: AsyncSession, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await session.execute(text(statement))]


async def keep(session: AsyncSession, *rows: Any) -> None:
    session.add_all(rows)
    await session.commit()
    session.expunge_all()


@pytest.mark.parametrize("strategy", ["bind", "hydrate"])
class TestValues:
    async def test_changes_of_a_row_are_written(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """What a resolved value says is a change of the session's own; no need to add."""
        await keep(session, Author(code="a", name="old", email="kept"))
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a", name="new"))
            await bulk.resolve(scope="values", strategy=strategy)
            [author] = bulk.get(Author)
        assert inspect(author).persistent
        assert author in session.dirty
        session.add(author)
        await session.commit()

        assert [("a", "new", "kept")] == await stored(
            session, "SELECT code, name, email FROM author"
        )

    async def test_found_by_any_identifier(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A value with two unique keys, either of them changed, is the row it was."""
        author = Author(code="a")
        await keep(
            session,
            Book(isbn="1", barcode=100, title="t", author=author),
            Book(isbn="2", barcode=200, title="t", author=author),
        )
        async with session.bulk() as bulk:
            for isbn, barcode in (("1", 101), ("22", 200), ("3", 300)):
                given = {"isbn": isbn, "barcode": barcode, "author": "a"}
                bulk.add(BookIn.model_validate(given))
            resolution = await bulk.resolve(strategy=strategy)
            report = await bulk.commit(on_conflict="update")

        assert 2 == resolution.values
        assert ["updated", "updated", "created"] == report.statuses
        assert [("1", 101), ("22", 200), ("3", 300)] == await stored(
            session, "SELECT isbn, barcode FROM book ORDER BY isbn"
        )

    async def test_identifiers_of_two_rows(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A value whose identifiers name two rows is an error that names both."""
        author = Author(code="a")
        await keep(
            session,
            Book(id=1, isbn="1", barcode=100, title="t", author=author),
            Book(id=2, isbn="2", barcode=200, title="t", author=author),
        )
        async with session.bulk() as bulk:
            given = {"isbn": "1", "barcode": 200, "author": "a"}
            bulk.add(BookIn.model_validate(given))
            with pytest.raises(ResolutionError, match="names 2 rows") as caught:
                await bulk.resolve(strategy=strategy)
            await bulk.resolve(scope="references", strategy=strategy)
            with pytest.raises(ResolutionError, match="names 2 rows") as again:
                await bulk.commit(on_conflict="update")
        for error in (caught.value, again.value):
            [failure] = error.failures

            assert "ambiguous" == failure.reason
            assert {"isbn": "1", "barcode": 200} == failure.key
            assert {(1,), (2,)} == set(failure.rows)

        assert [("1", 100), ("2", 200)] == await stored(
            session, "SELECT isbn, barcode FROM book ORDER BY isbn"
        )

    async def test_two_values_for_one_row(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """Two values for one key are never both taken: no winner by chance."""
        await keep(session, Author(code="a", name="old"))
        for code in ("a", "new"):
            async with session.bulk() as bulk:
                bulk.add(AuthorIn(code=code, name="one"))
                bulk.add(AuthorIn(code=code, name="two"))
                await bulk.resolve(strategy=strategy)
                with pytest.raises((IntegrityError, ResolutionError)):
                    await bulk.commit()

        assert [("a", "old")] == await stored(session, "SELECT code, name FROM author")


class TestResolve:
    async def test_errors_of_the_database(self, session: AsyncSession) -> None:
        """``raise_errors=False`` is about missing rows; the database's errors come."""
        await session.execute(text("DROP TABLE book_label"))
        await session.execute(text("DROP TABLE label"))
        async with session.bulk() as bulk:
            TypeAdapter(Ref[Label]).validate_python({"name": "x"})
            with pytest.raises(DBAPIError, match="label"):
                await bulk.resolve(raise_errors=False)

    async def test_only_the_missing_again(
        self, db: Database, session: AsyncSession
    ) -> None:
        """What was found is kept, and the rest can be asked for again."""
        await keep(session, Author(code="a"))
        async with session.bulk() as bulk:
            held = TypeAdapter(list[Ref[Author]]).validate_python(["a", "late"])
            await bulk.resolve(raise_errors=False)
            session.add(Author(code="late"))
            await session.flush()
            with count_statements(db.manager.async_engines["default"]) as statements:
                resolution = await bulk.resolve()

        assert (1, 1) == (statements.count, resolution.resolved)
        assert held == bulk.get(Author, resolved=True)

    async def test_null_in_a_unique_key(self, session: AsyncSession) -> None:
        """Two rows that a unique key allows, as one part is null, are ambiguous."""
        await keep(
            session, Seat(id=1, hall="h", name="x"), Seat(id=2, hall="h", name="y")
        )
        async with session.bulk() as bulk:
            TypeAdapter(Ref[Seat]).validate_python({"hall": "h", "row": None})
            resolution = await bulk.resolve(raise_errors=False, strategy="hydrate")

        assert ["ambiguous"] == [failure.reason for failure in resolution.failures]
        assert [] == bulk.get(Seat, resolved=True)


class TestKeys:
    async def test_alias_is_not_the_attribute(self, session: AsyncSession) -> None:
        """What an input calls a field is of no matter to identifiers."""

        class CountryIn(Spec[Country]):
            code: str = Field(alias="iso")
            name: str = Field(alias="label")

        class AliasedIn(Spec[Region]):
            country: Ref[Country] = Field(alias="in")
            zone: int = Field(alias="no")
            name: str

        class Row(BaseModel):
            iso: str = Field(alias="ISO code")
            number: int = Field(alias="zone no.")
            region: Annotated[Region | None, Key(country="iso", zone="number")]

        await keep(session, Region(country=Country(code="fr", name="old"), zone=1))
        async with session.bulk() as bulk:
            bulk.add(CountryIn.model_validate({"iso": "fr", "label": "France"}))
            given = {"in": "fr", "no": 1, "name": "north"}
            bulk.add(AliasedIn.model_validate(given))
            row = Row.model_validate({"ISO code": "fr", "zone no.": 1})
            resolution = await bulk.resolve()
            await bulk.commit(on_conflict="update")

        assert 2 == resolution.values
        assert row.region is not None
        assert (1,) == inspect(row.region).identity
        assert [("fr", "France", 1, "north")] == await stored(
            session,
            "SELECT c.code, c.name, zone, r.name FROM region r "
            "JOIN country c ON c.id = country_id",
        )

    @pytest.mark.parametrize(
        "given", [True, 1.5, b"1", "", None, [], {}, {"name": "France"}], ids=repr
    )
    async def test_strict(self, session: AsyncSession, given: Any) -> None:
        """Only what is of a key's type is a key, and a key has to identify."""

        class Numbered(BaseModel):
            sample: Annotated[Sample, Key("whole")]

        with pytest.raises(ValidationError):
            Numbered.model_validate({"sample": given})

    async def test_digits_in_a_text_key(self, session: AsyncSession) -> None:
        """A text of digits is the text key that it is, never a number."""
        await keep(session, Country(id=7, code="x"), Country(id=8, code="007"))
        async with session.bulk() as bulk:
            text_key, number = TypeAdapter(list[Ref[Country]]).validate_python(
                ["007", 7]
            )
            await bulk.resolve()

        assert (8, 7) == (text_key.id, number.id)

    @pytest.mark.parametrize(
        "given",
        [
            {"code": "fr", "name": "France"},
            {"code": "fr", "bogus": 1},
            {"id": 1, "code": "fr"},
        ],
        ids=["not of a key", "unknown", "two keys"],
    )
    @pytest.mark.parametrize("level", ["field", "several", "key", "spec"])
    async def test_one_rule(self, given: Any, level: str) -> None:
        """An object has exactly the attributes of one key, on every level."""

        class Payload(BaseModel):
            field: Ref[Country] | None = None
            several: list[Ref[Country]] = []
            key: Ref[Region] | None = None
            spec: RegionIn | None = None

        nested: dict[str, Any] = {
            "field": given,
            "several": [given],
            "key": {"country": given, "zone": 1},
            "spec": {"country": given, "zone": 1},
        }
        right: dict[str, Any] = {
            "field": {"code": "fr"},
            "several": [{"id": 1}],
            "key": {"country": {"code": "fr"}, "zone": 1},
            "spec": {"country": {"code": "fr"}, "zone": 1},
        }
        with pytest.raises(ValidationError, match="is no key of"):
            Payload.model_validate({level: nested[level]})
        Payload.model_validate({level: right[level]})


@pytest.mark.parametrize("strategy", ["bind", "hydrate"])
class TestGraph:
    async def test_back_references(self, session: AsyncSession, strategy: Any) -> None:
        """A new row is in the collection of the row it refers to, loaded before."""
        author = Author(code="a")
        await keep(session, Book(isbn="1", title="t", author=author))
        statement = select(Author).options(selectinload(Author.books))
        author = (await session.scalars(statement)).one()
        async with session.bulk() as bulk:
            bulk.add(BookIn.model_validate({"isbn": "2", "author": "a"}))
            await bulk.resolve(strategy=strategy)
            [book] = bulk.get(Book)

        assert author is book.author
        assert ["1", "2"] == [book.isbn for book in author.books]

    async def test_no_proxies(self, session: AsyncSession, strategy: Any) -> None:
        """After resolving, what values hold are rows, not proxies."""
        await keep(session, Author(code="a"), Label(name="x"), Label(name="y"))
        author = TypeAdapter(Ref[Author]).validate_python("a")
        async with session.bulk() as bulk:
            given = {"isbn": "1", "author": "a", "labels": [{"name": "x"}]}
            spec = BookIn.model_validate(given)
            bulk.add(spec)
            bulk.add(author)
            await bulk.resolve(strategy=strategy)
            bulk.add(Book(isbn="2", title="t", author=author))
            await bulk.flush()
            books = bulk.get(Book)
            [target] = bulk.get(Author)

        assert [Author, Author] == [type(book.__dict__["author"]) for book in books]
        assert [Label] == [type(label) for label in books[0].__dict__["labels"]]
        assert all(target is book.author for book in books)
        assert target == spec.author
        assert spec.author == target
        assert {target} == {spec.author}
        assert hash(target) == hash(spec.author) == hash(author)

    async def test_writing_before_it_is_resolved(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A change made to a reference is refused before, and written after."""
        await keep(session, Author(code="a"))
        async with session.bulk() as bulk:
            author = TypeAdapter(Ref[Author]).validate_python("a")
            with pytest.raises(UnresolvedReferenceError, match="'email'"):
                author.email = "lost"
            await bulk.resolve(strategy=strategy)
            author.email = "kept"
        await session.commit()

        assert [("a", "kept")] == await stored(
            session, "SELECT code, email FROM author"
        )

    async def test_order(self, session: AsyncSession, strategy: Any) -> None:
        """Rows are written and listed in the order of the payload."""
        codes = [f"{n * 7919 % 1000:03}" for n in range(200)]
        async with session.bulk() as bulk:
            for code in codes:
                bulk.add(Node(code=code))
                TypeAdapter(Ref[Author]).validate_python(code)
            await bulk.resolve(raise_errors=False, strategy=strategy)
            asked: list[Any] = bulk.get(Author)
            await bulk.commit()
            nodes = bulk.get(Node)

        assert codes == [author.code for author in asked]
        assert codes == [node.code for node in nodes]


class TestCurrent:
    async def test_other_session(self, db: Database, session: AsyncSession) -> None:
        """A bulk collects nothing that is meant for another session."""
        adapter = TypeAdapter(Ref[Author])
        async with db.async_session_manager() as outer, outer.bulk() as bulk:
            mine = adapter.validate_python("mine")
            async with db.async_session_manager(new=True) as inner:
                assert SESSION_BULK_CONTEXT.get() is None
                theirs: Any = adapter.validate_python("theirs")
                async with inner.bulk() as their_bulk:
                    adapter.validate_python("of the inner bulk")
                    their_bulk.add(theirs)
            async with db.async_session_manager() as joined:
                assert outer is joined
                also_mine = adapter.validate_python("also mine")

            assert bulk is SESSION_BULK_CONTEXT.get()
            assert [mine, also_mine] == bulk.get(Author)
            assert ["of the inner bulk", "theirs"] == [
                author.code for author in their_bulk.get(Author)
            ]

    async def test_of_another_factory(
        self, db: Database, session: AsyncSession
    ) -> None:
        """The same where the other session is of another factory."""
        adapter = TypeAdapter(Ref[Author])
        async with db.async_session_manager() as outer, outer.bulk() as bulk:
            async with async_session_manager(using=lambda: session):
                adapter.validate_python("theirs")
            adapter.validate_python("mine")

            assert ["mine"] == [author.code for author in bulk.get(Author)]


class TestPolymorphic:
    async def test_nested_values(self, session: AsyncSession) -> None:
        """Values of subclasses, told apart by what they say, for the base class."""

        class CarIn(Spec[Car]):
            plate: str
            doors: int

        class LorryIn(Spec[Lorry]):
            plate: str
            tons: int

        class Fleet(BaseModel):
            since: date
            vehicles: list[CarIn | LorryIn]
            first: Ref[Vehicle]

        await keep(session, Car(plate="c", doors=3))
        async with session.bulk() as bulk:
            fleet = Fleet.model_validate(
                {
                    "since": "2024-01-01",
                    "vehicles": [
                        {"plate": "c", "doors": 5},
                        {"plate": "l", "tons": 7},
                    ],
                    "first": {"plate": "l"},
                }
            )
            bulk.add(fleet)
            for vehicle in fleet.vehicles:
                bulk.add(vehicle)
            await bulk.resolve()
            await bulk.commit(on_conflict="update")
            vehicles = bulk.get(Vehicle, scope="values")
            lorries = bulk.get(Lorry, scope="values")

        assert [Car, Lorry] == [type(vehicle) for vehicle in vehicles]
        assert [vehicles[1]] == lorries
        assert fleet.first == vehicles[1]
        assert [("car", "c", 5, None), ("lorry", "l", None, 7)] == await stored(
            session, "SELECT kind, plate, doors, tons FROM vehicle ORDER BY plate"
        )
