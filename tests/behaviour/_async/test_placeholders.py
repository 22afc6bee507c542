"""References as instances of the class itself, updated in place."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import pytest
from pydantic import BaseModel, RootModel, TypeAdapter, create_model
from sqlalchemy import inspect, select, text

from tenure import (
    AsyncSession,
    Key,
    Proxy,
    Ref,
    ResolutionError,
    Spec,
    UnresolvedReferenceError,
)
from tests.fixtures.models import (
    Author,
    Book,
    Car,
    Country,
    Label,
    Node,
    Region,
    Seat,
    Site,
    Vehicle,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class BookIn(Spec[Book]):
    isbn: str
    title: str = "untitled"
    author: Ref[Author]
    editor: Ref[Author] | None = None
    labels: list[Annotated[Label, Key("name")]] = []  # noqa: RUF012


class AuthorIn(Spec[Author]):
    code: str


class RegionIn(Spec[Region]):
    country: Ref[Country]
    zone: int
    name: str | None = None


class Pair(NamedTuple):
    author: Ref[Author]
    n: int


@dataclass(frozen=True)
class Frozen:
    author: Ref[Author]


@dataclass(frozen=True, slots=True)
class Slotted:
    author: Ref[Author]


class FrozenModel(BaseModel, frozen=True):
    author: Ref[Author]


class Extra(BaseModel, extra="allow"):
    __pydantic_extra__: dict[str, Ref[Author]]


class Root(RootModel[tuple[Ref[Author], ...]]):
    pass


#: Types of what may hold a reference, each with an input that holds one to "a".
HOLDERS: dict[str, tuple[Any, Any]] = {
    "list": (list[Ref[Author]], ["a"]),
    "tuple": (tuple[Ref[Author], ...], ["a"]),
    "fixed tuple": (tuple[int, Ref[Author]], [1, "a"]),
    "set": (set[Ref[Author]], ["a"]),
    "frozenset": (frozenset[Ref[Author]], ["a"]),
    "deque": (deque[Ref[Author]], ["a"]),
    "dict": (dict[str, Ref[Author]], {"k": "a"}),
    "mapping": (Mapping[str, Ref[Author]], MappingProxyType({"k": "a"})),
    "named tuple": (Pair, ["a", 1]),
    "frozen dataclass": (Frozen, {"author": "a"}),
    "dataclass with slots": (Slotted, {"author": "a"}),
    "frozen model": (FrozenModel, {"author": "a"}),
    "root model": (Root, ["a"]),
    "extra of a model": (Extra, {"more": "a"}),
    "set of frozen models": (set[FrozenModel], [{"author": "a"}]),
    "frozenset of dataclasses": (frozenset[Frozen], [{"author": "a"}]),
    "tuple of lists": (tuple[list[Ref[Author]], ...], [["a"]]),
    "list of tuples": (list[tuple[Pair, Root]], [[["a", 1], ["a"]]]),
    "dict of dataclasses": (dict[str, tuple[Frozen]], {"k": [{"author": "a"}]}),
}


def leaves(value: Any) -> Iterator[Any]:
    """Yield what is in containers inside of each other."""
    if isinstance(value, BaseModel):
        for _, part in value:
            yield from leaves(part)
    elif isinstance(value, Frozen | Slotted):
        yield value.author
    elif isinstance(value, Mapping):
        yield from leaves(list(value.values()))
    elif isinstance(value, list | tuple | set | frozenset | deque):
        for part in value:
            yield from leaves(part)
    else:
        yield value


def references(reference: Any, *given: Any) -> list[Any]:
    return TypeAdapter(list[reference]).validate_python(list(given))


async def keep(session: AsyncSession, *rows: Any) -> None:
    session.add_all(rows)
    await session.commit()
    session.expunge_all()


async def stored(session: AsyncSession, statement: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in await session.execute(text(statement))]


@pytest.fixture(params=["bind", "hydrate"])
def strategy(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestUnresolved:
    async def test_is_of_its_class(self, session: AsyncSession) -> None:
        """A plain instance with the attributes of its key; equal keys share one."""
        async with session.bulk(proxy_reference=False) as bulk:
            first, second, other = references(Ref[Author], "a", {"code": "a"}, "b")
            [site] = references(
                Ref[Site], {"code": "s", "region": {"country": "fr", "zone": 1}}
            )
            [author, b] = bulk.get(Author)
            entries = bulk.unresolved[Author]

        assert Author is type(first)
        assert first is second is author
        assert other is b
        assert [first, other] == [entry.instance for entry in entries]
        assert "a" == first.code
        assert [Site, Region, Country] == [
            type(site),
            type(site.region),
            type(site.region.country),
        ]
        assert ("s", 1, "fr") == (
            site.code,
            site.region.zone,
            site.region.country.code,
        )

    async def test_nothing_but_its_key(self, session: AsyncSession) -> None:
        """Other attributes can be neither read nor written."""
        async with session.bulk(proxy_reference=False):
            [author] = references(Ref[Author], "a")

        for use in (
            lambda: author.id,
            lambda: author.name,
            lambda: author.books,
            lambda: setattr(author, "name", "lost"),
            lambda: setattr(author, "code", "lost"),
            lambda: author.books.append(Book(isbn="1")),
        ):
            with pytest.raises(UnresolvedReferenceError, match=r"Author\(code='a'\)"):
                use()
        assert "a" == author.code

    async def test_is_never_flushed(self, session: AsyncSession) -> None:
        """No phantom row and no NULL: added, cascaded, or assigned and flushed."""
        country = Country(code="de")
        region = Region(zone=1, country=country)
        node = Node(code="n")
        await keep(session, region)
        async with session.bulk(proxy_reference=False) as bulk:
            [author] = references(Ref[Author], "a")
            [other] = references(Ref[Country], "fr")
            [parent] = references(Ref[Node], "p")
            await bulk.resolve(raise_errors=False)
        [region] = [await session.merge(Region(id=1))]

        with pytest.raises(UnresolvedReferenceError):
            session.add(author)
        with pytest.raises(UnresolvedReferenceError):
            session.add(Region(zone=2, country=other))
        with pytest.raises(UnresolvedReferenceError):
            region.country = other
            await session.flush()
        session.expunge_all()
        with pytest.raises(UnresolvedReferenceError):
            node.parent = parent
        await session.rollback()
        session.add(node)
        await session.commit()

        assert [("de",)] == await stored(session, "SELECT code FROM country")
        assert [] == await stored(session, "SELECT code FROM author")
        assert [(1, True)] == [
            (zone, country is not None)
            for zone, country in await stored(
                session, "SELECT zone, country_id FROM region"
            )
        ]
        assert [("n", None)] == await stored(
            session, "SELECT code, parent_id FROM node"
        )

    async def test_written_out_and_copied(self, session: AsyncSession) -> None:
        """It is written as its key; a copy, which would stay one, is refused."""
        async with session.bulk(proxy_reference=False):
            book = BookIn.model_validate(
                {"isbn": "1", "author": "a", "labels": ["x", "y"]}
            )

        assert ("a", ["x", "y"]) == (
            book.model_dump()["author"],
            book.model_dump(mode="json")["labels"],
        )
        with pytest.raises(UnresolvedReferenceError):
            book.model_copy(deep=True)

    async def test_value_is_not_made(self, session: AsyncSession) -> None:
        """A value that holds one cannot be written."""
        async with session.bulk(proxy_reference=False) as bulk:
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "nobody"}))
            resolution = await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError, match="nobody"):
                await bulk.flush()

        assert [("author",)] == [f.locations[0] for f in resolution.failures]


class TestResolved:
    async def test_in_place(self, session: AsyncSession, strategy: Any) -> None:
        """The very object that was given is the row, to us and to SQLAlchemy."""
        await keep(session, Author(code="a", name="A"))
        async with session.bulk(proxy_reference=False) as bulk:
            [author] = references(Ref[Author], "a")
            await bulk.resolve(strategy=strategy)
            [row] = bulk.get(Author, resolved=True)

        assert inspect(author) is inspect(row)
        assert inspect(author).persistent
        assert (strategy == "hydrate") == ("name" in author.__dict__)
        author.email = "changed"
        session.add(author)
        await session.commit()

        assert [("a", "A", "changed")] == await stored(
            session, "SELECT code, name, email FROM author"
        )

    async def test_bound_then_hydrated(self, session: AsyncSession) -> None:
        """What was bound is the session's own instance, and is filled."""
        await keep(session, Author(code="a", name="A"))
        async with session.bulk(proxy_reference=False) as bulk:
            [author] = references(Ref[Author], "a")
            await bulk.resolve()
            [bound] = bulk.get(Author)
            await bulk.resolve(strategy="hydrate")

        assert author is bound
        assert ("a", "A") == (author.code, author.name)

    async def test_known_to_the_session(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """The session's instance takes its place in models and values."""
        mine = Author(code="a", name="A")
        label = Label(name="l")
        session.add_all([mine, label])
        await session.commit()
        async with session.bulk(proxy_reference=False) as bulk:
            book = BookIn.model_validate({"isbn": "1", "author": "a", "labels": ["l"]})
            before = book.author
            bulk.add(book)
            await bulk.resolve(strategy=strategy)
            await bulk.commit()
            [row] = bulk.get(Book)

        assert mine is not before
        assert mine is book.author
        assert mine is row.author
        assert [label] == book.labels == row.labels
        assert "A" == before.name
        assert [("1", "a", "l")] == await stored(
            session,
            "SELECT isbn, a.code, l.name FROM book b JOIN author a ON a.id = author_id "
            "JOIN book_label ON book_id = b.id JOIN label l ON l.id = label_id",
        )

    async def test_nested_composed_and_optional(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """Keys inside of keys, keys of several fields, and none at all."""

        class Row(BaseModel):
            hall: str
            row: int
            seat: Annotated[Seat, Key(hall="hall", row="row")]
            region: Ref[Region] | None = None
            nobody: Ref[Author] | None = None

        await keep(
            session,
            Region(country=Country(code="fr"), zone=1, name="north"),
            Seat(hall="h", row=1, name="s"),
        )
        async with session.bulk(proxy_reference=False) as bulk:
            row = Row.model_validate(
                {"hall": "h", "row": 1, "region": {"country": "fr", "zone": 1}}
            )
            bulk.add(row)
            await bulk.resolve(strategy=strategy)
            await bulk.resolve(strategy="hydrate")

        assert row.region is not None
        assert ("s", "north", None) == (row.seat.name, row.region.name, row.nobody)
        assert [Seat, Region] == [type(row.seat), type(row.region)]

    @pytest.mark.parametrize("holder", HOLDERS)
    async def test_in_any_container(
        self, session: AsyncSession, strategy: Any, holder: str
    ) -> None:
        """The session's instance is in the place of the placeholder, whatever it is."""
        kind, given = HOLDERS[holder]
        payload: Any = create_model("Payload", held=(kind, ...))
        await keep(session, Author(code="a"))
        author = await session.scalar(select(Author))
        async with session.bulk(proxy_reference=False) as bulk:
            found = bulk.validate(payload, {"held": given})
            before = type(found.held)
            assert author not in leaves(found)
            await bulk.resolve(strategy=strategy)

        authors = [leaf for leaf in leaves(found) if not isinstance(leaf, int)]
        assert authors
        assert all(leaf is author for leaf in authors)
        assert before is type(found.held)
        if isinstance(found.held, set | frozenset):
            assert all(item in found.held for item in found.held)

    @pytest.mark.parametrize("kind", [list, set, dict, deque])
    async def test_collections_in_place(
        self, session: AsyncSession, strategy: Any, kind: type[Any]
    ) -> None:
        """What can be changed is: whoever has the collection finds the instance."""
        holder: Any = dict[str, Ref[Author]] if kind is dict else kind[Ref[Author]]
        await keep(session, Author(code="a"))
        author = await session.scalar(select(Author))
        async with session.bulk(proxy_reference=False) as bulk:
            found = bulk.validate(holder, {"k": "a"} if kind is dict else ["a"])
            await bulk.resolve(strategy=strategy)

        assert [author] == list(leaves(found))

    async def test_of_a_subclass(self, session: AsyncSession, strategy: Any) -> None:
        """A placeholder of a base class becomes an instance of the row's class."""
        await keep(session, Car(plate="c"))
        async with session.bulk(proxy_reference=False) as bulk:
            [vehicle] = references(Ref[Vehicle], {"plate": "c"})
            before = type(vehicle)
            await bulk.resolve(strategy=strategy)
            await bulk.resolve(strategy="hydrate")
            [car] = bulk.get(Vehicle)

        assert (Vehicle, Car) == (before, type(vehicle))
        assert "c" == vehicle.plate
        assert inspect(car) is inspect(vehicle)

    async def test_value_of_the_bulk(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A reference to a value is that value, new or not, also inside of keys."""
        await keep(session, Author(code="old"))
        async with session.bulk(proxy_reference=False) as bulk:
            for code in ("old", "new"):
                bulk.add(Author(code=code, name=code))
                given = {"isbn": code, "author": code, "editor": "old"}
                bulk.add(BookIn.model_validate(given))
            given = {"country": "fr", "zone": 1, "name": "north"}
            bulk.add(RegionIn.model_validate(given))
            bulk.add(Country(code="fr"))
            [region] = references(Ref[Region], {"country": "fr", "zone": 1})
            await bulk.resolve(strategy=strategy)
            await bulk.commit(on_conflict="update")
            books = bulk.get(Book)

        assert ["old", "new"] == [book.author.name for book in books]
        assert inspect(region).persistent
        assert [("new", "new", "old"), ("old", "old", "old")] == await stored(
            session,
            "SELECT isbn, a.name, e.code FROM book JOIN author a ON a.id = author_id "
            "JOIN author e ON e.id = editor_id ORDER BY isbn",
        )
        assert [("fr", 1, "north")] == await stored(
            session,
            "SELECT c.code, zone, r.name FROM region r "
            "JOIN country c ON c.id = country_id",
        )

    async def test_written_again(self, session: AsyncSession, strategy: Any) -> None:
        """What it became is undone with the values of the bulk, and done again."""
        await keep(session, Author(code="old"))
        async with session.bulk(proxy_reference=False) as bulk:
            book = BookIn.model_validate(
                {"isbn": "1", "author": "new", "editor": "old", "labels": ["l"]}
            )
            for value in (book, AuthorIn(code="new"), Label(name="l")):
                bulk.add(value)
            given = [book.author, book.editor, *book.labels]
            for _ in range(2):
                await bulk.resolve(strategy=strategy)
                await bulk.flush()
                await bulk.rollback()
            await bulk.resolve(strategy=strategy)
            await bulk.commit()
            [row] = bulk.get(Book)

        rows = [row.author, row.editor, *row.labels]
        assert list(map(inspect, rows)) == list(map(inspect, given))
        assert rows == [book.author, book.editor, *book.labels]
        assert [("1", "new", "old", "l")] == await stored(
            session,
            "SELECT isbn, a.code, e.code, l.name FROM book "
            "JOIN author a ON a.id = author_id JOIN author e ON e.id = editor_id "
            "JOIN book_label ON book_id = book.id JOIN label l ON l.id = label_id",
        )

    async def test_made_outside(self, session: AsyncSession, strategy: Any) -> None:
        """What was validated without a bulk stays a proxy, and is resolved as one."""
        await keep(session, Author(code="a"))
        book = BookIn.model_validate({"isbn": "1", "author": "a"})
        async with session.bulk(proxy_reference=False) as bulk:
            bulk.add(book)
            await bulk.resolve(strategy=strategy)
            await bulk.commit()
            author: Any = book.author

        assert Proxy is type(author)
        assert [("1",)] == await stored(session, "SELECT isbn FROM book")
