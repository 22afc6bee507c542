"""Resolving: which rows references name, and in how many statements."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import selectinload

from tenure import (
    AsyncSession,
    Database,
    Key,
    Proxy,
    Ref,
    ResolutionError,
    Spec,
    UnresolvedReferenceError,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.models import (
    Author,
    Book,
    Car,
    Colour,
    Country,
    Label,
    Lorry,
    Nickname,
    Node,
    Party,
    Person,
    Region,
    Sample,
    Seat,
    Site,
    Tag,
    Vehicle,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


class BookIn(Spec[Book]):
    isbn: str
    title: str = "untitled"
    author: Ref[Author]
    editor: Ref[Author] | None = None


class NodeIn(Spec[Node]):
    code: str
    parent: Ref[Node] | None = None


class AuthorIn(Spec[Author]):
    code: str
    name: str | None = None
    email: str | None = None


def references(reference: Any, given: list[Any]) -> list[Any]:
    return TypeAdapter(list[reference]).validate_python(given)


async def geography(session: AsyncSession) -> None:
    """Two countries with two zones each, and a site in every zone."""
    for code in ("fr", "de"):
        country = Country(code=code)
        for zone in (-1, -2):
            region = Region(country=country, zone=zone, name=f"{code}{zone}")
            session.add(Site(region=region, code="s", name=f"{code}{zone}s"))
    await session.commit()


class TestStatements:
    async def test_one_per_batch(self, db: Database, session: AsyncSession) -> None:
        """25 000 composite keys, 10 000 at once, are asked for in 3 statements."""
        many = range(25_000)
        await session.execute(insert(Country), [{"id": 1, "code": "fr"}])
        await session.execute(
            insert(Region), [{"country_id": 1, "zone": n} for n in many]
        )
        await session.commit()
        async with session.bulk() as bulk:
            found = references(
                Ref[Region], [{"country_id": 1, "zone": n} for n in many]
            )
            with count_statements(db.manager.async_engines["default"]) as statements:
                resolution = await bulk.resolve(batch_size=10_000)

        assert 3 == statements.count
        assert 25_000 == resolution.resolved
        assert 1 == len(set(statements.texts))
        assert list(many) == [region._tenure_values[1] for region in found]
        assert 25_000 == len({region.id for region in found})

    async def test_one_per_entity_and_shape(
        self, db: Database, session: AsyncSession
    ) -> None:
        """Keys of another shape, and of another entity, take one statement each."""
        await geography(session)
        async with session.bulk() as bulk:
            references(Ref[Country], ["fr", "de", 1, 2, {"code": "fr"}])
            references(Ref[Region], [{"country_id": 1, "zone": -1}])
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve()

        assert 3 == statements.count

    async def test_nested_in_order(self, db: Database, session: AsyncSession) -> None:
        """A key inside a key inside a key is found first: one statement a level."""
        await geography(session)
        async with session.bulk() as bulk:
            sites = references(
                Ref[Site],
                [
                    {"code": "s", "region": {"country": country, "zone": zone}}
                    for country in ("fr", "de")
                    for zone in (-1, -2)
                ],
            )
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve(strategy="hydrate")

        assert ["fr-1s", "fr-2s", "de-1s", "de-2s"] == [site.name for site in sites]
        assert 3 == statements.count

    async def test_text_is_constant(self, db: Database, session: AsyncSession) -> None:
        """However many keys are asked for, the statement is the same text."""
        with count_statements(db.manager.async_engines["default"]) as statements:
            for count in (1, 2, 700):
                async with session.bulk() as bulk:
                    references(Ref[Country], [f"{n:03}" for n in range(count)])
                    await bulk.resolve(raise_errors=False)

        assert 3 == statements.count
        assert 1 == len(set(statements.texts))

    async def test_found_before(self, db: Database, session: AsyncSession) -> None:
        """What was resolved is not asked for again."""
        await geography(session)
        async with session.bulk() as bulk:
            references(Ref[Country], ["fr"])
            await bulk.resolve()
            references(Ref[Country], ["fr"])
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve()

        assert 0 == statements.count

    async def test_no_autoflush(self, db: Database, session: AsyncSession) -> None:
        """Resolving writes nothing that waits in the session."""
        await geography(session)
        incomplete = Book(isbn="1")
        session.add(incomplete)
        async with session.bulk() as bulk:
            references(Ref[Country], ["fr"])
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve()

        assert incomplete in session.new
        assert ["SELECT"] == [text.split()[0] for text in statements.texts]


class TestMatching:
    async def test_minus_one_and_minus_two(self, session: AsyncSession) -> None:
        """Keys that Python gives one hash are two keys."""
        await geography(session)
        async with session.bulk() as bulk:
            first, second = references(
                Ref[Region],
                [{"country": "fr", "zone": -1}, {"country": "fr", "zone": -2}],
            )
            await bulk.resolve(strategy="hydrate")

        assert hash(-1) == hash(-2)
        assert ["fr-1", "fr-2"] == [first.name, second.name]

    async def test_far_apart_with_one_hash(self, session: AsyncSession) -> None:
        """The same for numbers that differ by 2**61 - 1."""
        session.add(Country(id=1, code="fr"))
        await session.commit()
        async with session.bulk() as bulk:
            references(Ref[Country], [{"id": 1}, {"id": 2**61}])
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()

        assert hash(1) == hash(2**61)
        assert [{"id": 2**61}] == [failure.key for failure in caught.value.failures]

    async def test_equal_instants_in_two_zones(self, session: AsyncSession) -> None:
        """Whether equal instants are equal is for the database to say."""
        utc = datetime(2024, 1, 1, 12, tzinfo=UTC)
        paris = utc.astimezone(timezone(timedelta(hours=1)))
        session.add(Sample(moment=utc))
        await session.commit()
        by_hand = [
            len((await session.scalars(select(Sample.id).filter_by(moment=m))).all())
            for m in (utc, paris)
        ]
        async with session.bulk() as bulk:
            found = references(Ref[Sample], [{"moment": utc}, {"moment": paris}])
            await bulk.resolve(raise_errors=False)
            resolved = bulk.get(Sample, resolved=True)

        # SQLite keeps the time without its zone, so there they are two.
        assert sum(by_hand) == len(resolved)
        assert utc == found[0]._tenure_values[0]

    async def test_repeated_hour(self, session: AsyncSession) -> None:
        """The two hours of one name, when clocks go back, are two keys."""
        berlin = ZoneInfo("Europe/Berlin")
        summer = datetime(2024, 10, 27, 2, 30, tzinfo=berlin)
        winter = summer.replace(fold=1)
        async with session.bulk():
            first, second = references(
                Ref[Sample], [{"moment": summer}, {"moment": winter}]
            )

        assert summer == winter
        assert first is not second
        assert [0, 1] == [first.moment.fold, second.moment.fold]

    async def test_text_longer_than_its_column(self, session: AsyncSession) -> None:
        """A key is never cut to the length of its column."""
        session.add(Country(code="abc"))
        session.add(Sample(mark="abc", label="xyz"))
        await session.commit()
        async with session.bulk() as bulk:
            references(Ref[Country], ["abcd"])
            references(Ref[Sample], [{"mark": "abcd"}, {"label": "xyzz"}])
            resolution = await bulk.resolve(raise_errors=False)

        assert (0, 3) == (resolution.resolved, resolution.unresolved)

    async def test_padded_text(self, session: AsyncSession) -> None:
        """A short text in a CHAR column is found as a WHERE finds it."""
        session.add(Sample(mark="a"))
        await session.commit()
        async with session.bulk() as bulk:
            references(Ref[Sample], [{"mark": "a"}])
            await bulk.resolve()

    async def test_number_with_more_digits(self, session: AsyncSession) -> None:
        """A number is never rounded to the scale of its column."""
        session.add(Sample(price=Decimal("1.10")))
        await session.commit()
        async with session.bulk() as bulk:
            same, other = references(
                Ref[Sample], [{"price": "1.100"}, {"price": "1.104"}]
            )
            resolution = await bulk.resolve(raise_errors=False)

        assert (1, 1) == (resolution.resolved, resolution.unresolved)
        assert isinstance(same.id, int)
        with pytest.raises(UnresolvedReferenceError):
            other.id  # noqa: B018 - reading is the test

    async def test_collation(self, session: AsyncSession) -> None:
        """What a collation calls equal is one row."""
        session.add(Tag(name="Paris"))
        await session.commit()
        async with session.bulk() as bulk:
            upper, lower = references(Ref[Tag], [{"name": "PARIS"}, {"name": "paris"}])
            await bulk.resolve()

        assert upper is not lower
        assert upper == lower
        assert upper._tenure_target is lower._tenure_target

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("backwards", "a text"),
            ("colour", Colour.GREEN),
            ("token", uuid.UUID(int=7)),
            ("moment", datetime(2024, 5, 1, 12, 30, tzinfo=UTC)),
            ("mark", "abc"),
            ("label", "é'\"\\\n☃"),
            ("price", Decimal("-12.50")),
            ("ratio", 0.1 + 0.2),
            ("whole", -(2**31)),
            ("raw", b"\x00\xff"),
        ],
    )
    async def test_types(self, session: AsyncSession, name: str, value: Any) -> None:
        """A key goes through the type of its column."""
        session.add(Sample(**{name: value if name != "label" else value[:3]}))
        await session.commit()
        value = value if name != "label" else value[:3]
        async with session.bulk() as bulk:
            [found] = references(Ref[Sample], [{name: value}])
            await bulk.resolve(strategy="hydrate")

        assert (
            value == getattr(found, name).replace(tzinfo=UTC)
            if (name == "moment")
            else getattr(found, name)
        )

    @pytest.mark.parametrize(
        "key",
        [
            {"whole": 2**31},
            {"whole": 2**70},
            {"label": "a\0b"},
            {"mark": "\0"},
        ],
        ids=str,
    )
    async def test_what_no_row_can_have(
        self, session: AsyncSession, key: dict[str, Any]
    ) -> None:
        """A key that its column could not hold is missing, not an error."""
        session.add(Sample(whole=1, label="a"))
        await session.commit()
        async with session.bulk() as bulk:
            found = references(Ref[Sample], [key, {"label": "a"}, {"whole": 1}])
            resolution = await bulk.resolve(raise_errors=False)

        assert (2, 1) == (resolution.resolved, resolution.unresolved)
        assert isinstance(found[1].id, int)

    async def test_null_matches_null(self, session: AsyncSession) -> None:
        """An explicit null inside a key names the row that is null there."""
        session.add_all(
            [
                Seat(hall="a", row=None, name="bench"),
                Seat(hall="a", row=1, name="first"),
                Seat(hall=None, row=1, name="nowhere"),
            ]
        )
        await session.commit()
        async with session.bulk() as bulk:
            seats = references(
                Ref[Seat],
                [
                    {"hall": "a", "row": 1},
                    {"hall": "a", "row": None},
                    {"hall": None, "row": 1},
                ],
            )
            await bulk.resolve(strategy="hydrate")

        assert ["first", "bench", "nowhere"] == [seat.name for seat in seats]

    async def test_only_null(self, session: AsyncSession) -> None:
        """A key that is only null names nothing."""
        async with session.bulk():
            with pytest.raises(ValidationError, match="is null"):
                references(Ref[Seat], [{"hall": None, "row": None}])

    async def test_polymorphic(self, session: AsyncSession) -> None:
        """A reference to a base class gives an instance of the right subclass."""
        session.add_all([Car(plate="c"), Lorry(plate="l"), Vehicle(plate="v")])
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            found = references(
                Ref[Vehicle], [{"plate": plate} for plate in ("c", "l", "v")]
            )
            await bulk.resolve()
            bound = bulk.get(Vehicle)

        assert [Car, Lorry, Vehicle] == [type(vehicle) for vehicle in bound]
        assert [Car, Lorry, Vehicle] == [vehicle.__class__ for vehicle in found]

    async def test_class_is_known_when_bound(self, session: AsyncSession) -> None:
        """``isinstance`` says of which class the row is before it is looked at."""
        session.add_all([Car(plate="c"), Lorry(plate="l")])
        await session.commit()
        async with session.bulk() as bulk:
            [car] = references(Ref[Vehicle], [{"plate": "c"}])
            before = isinstance(car, Car)
            await bulk.resolve()
            after = isinstance(car, Car), isinstance(car, Lorry)

        assert not before
        assert (True, False) == after

    async def test_hydrates_subclasses(
        self, db: Database, session: AsyncSession
    ) -> None:
        """All of a row is loaded, one statement more for each class, by any table."""
        session.add_all(
            [Car(plate="c", doors=4), Lorry(plate="l", tons=7), Car(plate="d", doors=2)]
        )
        session.add_all([Person(code="p", born=1900), Party(code="q")])
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            vehicles = references(Ref[Vehicle], [{"plate": p} for p in "cld"])
            parties = references(Ref[Party], [{"code": code} for code in "pq"])
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve(strategy="hydrate")

        assert [4, 2] == [vehicles[0].doors, vehicles[2].doors]
        assert (7, 1900) == (vehicles[1].tons, parties[0].born)
        assert 2 + 3 == statements.count

    async def test_subclass_of_a_table(self, session: AsyncSession) -> None:
        """A reference to a subclass does not find a row of another one."""
        session.add_all([Car(plate="c"), Lorry(plate="l"), Person(code="p", name="P")])
        await session.commit()
        async with session.bulk() as bulk:
            references(Ref[Car], [{"plate": "c"}, {"plate": "l"}])
            [person] = references(Ref[Person], [{"code": "p"}])
            resolution = await bulk.resolve(raise_errors=False, strategy="hydrate")

        assert [{"plate": "l"}] == [failure.key for failure in resolution.failures]
        assert "P" == person.name


class TestTargets:
    async def test_one_target(self, session: AsyncSession) -> None:
        """All references with equal keys share one target."""
        await geography(session)
        async with session.bulk() as bulk:
            first = references(Ref[Country], ["fr", "fr", {"code": "fr"}])
            second = references(Ref[Country], ["fr"])
            await bulk.resolve()

        assert 1 == len({id(reference) for reference in first + second})

    async def test_instance_of_the_session(self, session: AsyncSession) -> None:
        """The target is the session's instance; what changed there stays."""
        session.add(Country(code="fr", name="France"))
        await session.commit()
        [mine] = (await session.scalars(select(Country))).all()
        mine.name = "changed"
        for strategy in ("bind", "hydrate"):
            async with session.bulk() as bulk:
                [reference] = references(Ref[Country], ["fr"])
                await bulk.resolve(strategy=strategy)
                [found] = bulk.get(Country)

            assert mine is found
            assert "changed" == reference.name
        assert mine in session.dirty

    async def test_bind_then_hydrate(self, db: Database, session: AsyncSession) -> None:
        """``hydrate`` loads what ``bind`` only identified, into the same instance."""
        session.add(Country(code="fr", name="France"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            [reference] = references(Ref[Country], ["fr"])
            await bulk.resolve()
            [bound] = bulk.get(Country)
            unloaded = "name" not in bound.__dict__
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve(strategy="hydrate")
                await bulk.resolve(strategy="hydrate")

        assert unloaded
        assert 1 == statements.count
        assert "France" == reference.name
        assert bulk.get(Country) == [bound]

    async def test_attributes_of_values(self, session: AsyncSession) -> None:
        """Values hold the instances themselves, and back references agree."""
        session.add(Author(code="a1"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "a1"}))
            await bulk.resolve()
            [book] = bulk.get(Book)
            await bulk.flush()
        author = (
            await session.scalars(select(Author).options(selectinload(Author.books)))
        ).one()

        assert author is book.__dict__["author"]
        assert type(book.__dict__["author"]) is Author
        assert [book] == author.books

    async def test_key_spelled_otherwise(self, session: AsyncSession) -> None:
        """Keys of two shapes that name one row give one instance."""
        await geography(session)
        async with session.bulk() as bulk:
            by_id, by_code = references(Ref[Country], [{"id": 1}, {"code": "fr"}])
            await bulk.resolve()

        assert by_id == by_code
        assert hash(by_id) == hash(by_code)


class TestFailures:
    async def test_all_are_listed(self, session: AsyncSession) -> None:
        """Each failure says entity, key, reason and where in the input."""
        session.add(Author(code="a1"))
        session.add_all([Nickname(name="Bob"), Nickname(name="Bob")])
        await session.commit()

        class Payload(BaseModel):
            authors: list[Ref[Author]]
            who: Annotated[Nickname, Key("name")]

        async with session.bulk() as bulk:
            payload = Payload.model_validate(
                {"authors": ["a1", "x", "y", "x"], "who": "Bob"}
            )
            bulk.add(payload)
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()
        failures = {
            (f.entity, tuple(f.key.items()), f.reason, f.locations)
            for f in caught.value.failures
        }

        assert {
            (Author, (("code", "x"),), "missing", (("authors", 1), ("authors", 3))),
            (Author, (("code", "y"),), "missing", (("authors", 2),)),
            (Nickname, (("name", "Bob"),), "ambiguous", (("who",),)),
        } == failures
        assert [
            ("reference_missing", ("authors", 1), {"code": "x"}),
            ("reference_missing", ("authors", 3), {"code": "x"}),
            ("reference_missing", ("authors", 2), {"code": "y"}),
            ("reference_ambiguous", ("who",), {"name": "Bob"}),
        ] == [(e["type"], e["loc"], e["input"]) for e in caught.value.errors()]

    async def test_ambiguous_names_both(self, session: AsyncSession) -> None:
        """Two rows for one key is an error that names both."""
        session.add_all([Nickname(id=7, name="Bob"), Nickname(id=9, name="Bob")])
        session.add_all([Seat(id=1, hall="a"), Seat(id=2, hall="a")])
        await session.commit()
        async with session.bulk() as bulk:
            held = references(Annotated[Nickname, Key("name")], ["Bob"])
            held += references(Ref[Seat], [{"hall": "a", "row": None}])
            with pytest.raises(ResolutionError, match="names 2 rows") as caught:
                await bulk.resolve()

        assert [{(7,), (9,)}, {(1,), (2,)}] == [
            set(failure.rows) for failure in caught.value.failures
        ]
        assert len(held) == len(caught.value.failures)

    async def test_missing_inside(self, session: AsyncSession) -> None:
        """A key whose inner reference is missing is missing as well."""
        await geography(session)
        async with session.bulk() as bulk:
            held = references(Ref[Region], [{"country": "xx", "zone": -1}])
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()

        assert 1 == len(held)
        assert [(Country, "missing"), (Region, "missing")] == [
            (failure.entity, failure.reason) for failure in caught.value.failures
        ]

    async def test_changes_nothing(self, session: AsyncSession) -> None:
        """After a failed resolve all is as before; it can be repeated."""
        session.add(Author(code="a1"))
        await session.commit()
        async with session.bulk() as bulk:
            value = BookIn.model_validate({"isbn": "1", "author": "a1"})
            other = BookIn.model_validate({"isbn": "2", "author": "late"})
            bulk.add(value)
            bulk.add(other)
            with pytest.raises(ResolutionError):
                await bulk.resolve()
            after_failure = bulk.get(Author, resolved=True)
            session.add(Author(code="late"))
            await session.flush()
            await bulk.resolve()
            await bulk.commit()
        books = (
            await session.execute(select(Book.isbn, Author.code).join(Book.author))
        ).all()

        assert [] == after_failure
        assert {("1", "a1"), ("2", "late")} == {tuple(book) for book in books}

    async def test_ambiguous_value_changes_nothing(self, session: AsyncSession) -> None:
        """A value that two rows answer to leaves the references unresolved."""
        session.add_all([Nickname(id=1, name="Bob"), Nickname(id=2, name="Bob")])
        session.add(Author(code="a1"))
        await session.commit()
        async with session.bulk() as bulk:
            held = references(Ref[Author], ["a1"])
            bulk.add(Nickname(name="Bob"))
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()

        assert ["ambiguous"] == [failure.reason for failure in caught.value.failures]
        assert held == bulk.get(Author, resolved=False, scope="references")

    async def test_without_raising(self, session: AsyncSession) -> None:
        """Without ``raise_errors`` the found are resolved, the others stay."""
        await geography(session)
        async with session.bulk() as bulk:
            references(Ref[Country], ["fr", "xx"])
            resolution = await bulk.resolve(raise_errors=False, strategy="hydrate")
            found = bulk.get(Country, resolved=True)

        assert (1, 1) == (resolution.resolved, resolution.unresolved)
        assert ["fr"] == [country.code for country in found]
        assert {Country: 1} == {e: len(v) for e, v in bulk.unresolved.items()}

    @pytest.mark.parametrize("begun", [False, True], ids=["first", "begun"])
    async def test_refused_keys(self, session: AsyncSession, begun: bool) -> None:
        """A key that cannot be asked for fails alone, in the words of who refused."""
        session.add_all([Sample(label="a"), Sample(backwards="b")])
        await session.commit()
        if begun:
            await session.scalar(select(func.count(Sample.id)))
        async with session.bulk() as bulk:
            found = references(Ref[Sample], [{"label": "a"}, {"backwards": "b"}])
            held = references(Ref[Sample], [{"backwards": "refused"}])
            # Pydantic would not take it.
            bulk.add(Sample(label="\ud800"), is_reference=True)
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve()
            resolution = await bulk.resolve(raise_errors=False)

        failures = caught.value.failures
        assert [
            ("invalid", {"backwards": "refused"}),
            ("invalid", {"label": "\ud800"}),
        ] == (sorted(((f.reason, f.key) for f in failures), key=str))
        assert any("this type refuses" in str(failure) for failure in failures)
        assert any("surrogate" in str(failure) for failure in failures)
        assert (2, 2) == (resolution.resolved, resolution.unresolved)
        assert 2 == len({sample.id for sample in found})
        assert 1 == len(held)
        assert 2 == await session.scalar(select(func.count(Sample.id)))

    @pytest.mark.parametrize("begun", [False, True], ids=["first", "begun"])
    async def test_refused_by_the_database(
        self, db: Database, session: AsyncSession, begun: bool
    ) -> None:
        """One of many keys that the database refuses is found; the session goes on."""
        name = db.manager.async_engines["default"].dialect.name
        if name == "postgresql":
            await session.execute(text("ALTER TYPE colour RENAME VALUE 'GREEN' TO 'G'"))
        session.add(Sample(colour=Colour.RED))
        await session.commit()
        if begun:
            session.add(Author(code="mine"))
            await session.flush()
        async with session.bulk() as bulk:
            red, _ = references(Ref[Sample], [{"colour": "r"}, {"colour": "g"}])
            resolution = await bulk.resolve(raise_errors=False)

        reason = "invalid" if name == "postgresql" else "missing"
        assert [(reason, {"colour": Colour.GREEN})] == [
            (failure.reason, failure.key) for failure in resolution.failures
        ]
        assert isinstance(red.id, int)
        authors = (await session.scalars(select(Author.code))).all()
        assert (["mine"] if begun else []) == authors

    async def test_not_about_keys(self, session: AsyncSession) -> None:
        """An error that is about no key comes out as it is."""
        await session.execute(text("DROP TABLE nickname"))
        await session.commit()
        async with session.bulk() as bulk:
            held = references(Annotated[Nickname, Key("name")], ["a", "b"])
            with pytest.raises(DBAPIError, match="nickname"):
                await bulk.resolve(raise_errors=False)

        assert 2 == len(held)

    async def test_many(self, db: Database, session: AsyncSession) -> None:
        """Ten thousand failures are one error, which names a few."""
        async with session.bulk() as bulk:
            held = references(
                Ref[Country], [{"code": f"{n:05}"} for n in range(10_000)]
            )
            with count_statements(db.manager.async_engines["default"]) as statements:
                with pytest.raises(ResolutionError, match="9995 more") as caught:
                    await bulk.resolve()

        assert 1 == statements.count
        assert len(held) == len(caught.value.failures)
        assert 1_000 > len(str(caught.value))


class TestUnresolved:
    async def test_is_never_flushed(self, session: AsyncSession) -> None:
        """No phantom row, no silent null: the value cannot even be made."""
        async with session.bulk() as bulk:
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "nobody"}))
            await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError, match=r"Author\(code='nobody'\)"):
                await bulk.flush()
        rows = [
            await session.scalar(select(func.count()).select_from(entity))
            for entity in (Author, Book)
        ]

        assert [0, 0] == rows

    async def test_optional_is_never_null(self, session: AsyncSession) -> None:
        """An optional reference that is not resolved is not stored as null."""
        async with session.bulk() as bulk:
            bulk.add(NodeIn.model_validate({"code": "q", "parent": "root"}))
            await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError):
                await bulk.flush()

    async def test_in_an_attribute(self, session: AsyncSession) -> None:
        """Assigned to a mapped instance it is refused there and then."""
        author = TypeAdapter(Ref[Author]).validate_python("nobody")
        label = TypeAdapter(Ref[Label]).validate_python({"name": "nope"})
        book = Book(isbn="1", title="t")
        with pytest.raises(UnresolvedReferenceError):
            book.author = author
        with pytest.raises(UnresolvedReferenceError):
            book.labels.append(label)
        with pytest.raises(UnresolvedReferenceError):
            session.add(author)

        assert "author" not in book.__dict__
        assert [] == list(session.new)

    async def test_collections(self, session: AsyncSession) -> None:
        """The same where a value holds a collection of them."""

        class LabelledIn(Spec[Book]):
            isbn: str
            title: str = "untitled"
            author: Ref[Author]
            labels: list[Annotated[Label, Key("name")]]

        session.add(Author(code="a1"))
        session.add(Label(name="l1"))
        await session.commit()
        given = {"isbn": "1", "author": "a1", "labels": ["l1", "nope"]}
        async with session.bulk() as bulk:
            bulk.add(LabelledIn.model_validate(given))
            await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError, match="nope"):
                await bulk.flush()
        async with session.bulk() as bulk:
            bulk.add(LabelledIn.model_validate(given | {"labels": ["l1"]}))
            await bulk.resolve()
            await bulk.commit()
        rows = (await session.execute(text("SELECT name FROM label"))).scalars().all()
        linked = (await session.execute(text("SELECT * FROM book_label"))).all()

        assert ["l1"] == rows
        assert 1 == len(linked)

    async def test_resolved_in_an_attribute(self, session: AsyncSession) -> None:
        """A resolved reference in a mapped value is replaced by its target."""
        session.add(Author(code="a1"))
        await session.commit()
        async with session.bulk() as bulk:
            [author] = references(Ref[Author], ["a1"])
            await bulk.resolve()
            book = Book(isbn="1", title="t", author=author)
            bulk.add(book)
            await bulk.flush()

        assert type(book.__dict__["author"]) is Author


class TestOutside:
    async def test_added_later(self, session: AsyncSession) -> None:
        """References validated outside of a bulk are found in what is added."""
        await geography(session)

        class Payload(BaseModel):
            one: Ref[Country]
            many: dict[str, list[Ref[Region]]]

        payload = Payload.model_validate(
            {"one": "fr", "many": {"x": [{"country": "fr", "zone": -1}]}}
        )
        async with session.bulk() as bulk:
            bulk.add(payload)
            resolution = await bulk.resolve(strategy="hydrate")
            # The country inside the key of the region is the one beside it.
            [country] = bulk.get(Country)

        assert 2 == resolution.resolved
        assert "fr-1" == payload.many["x"][0].name
        assert payload.one == country

    async def test_two_payloads(self, session: AsyncSession) -> None:
        """Each of several payloads made outside gets its references resolved."""
        session.add(Author(code="a1"))
        await session.commit()
        payloads = [
            BookIn.model_validate({"isbn": isbn, "author": "a1"}) for isbn in "123"
        ]
        async with session.bulk() as bulk:
            for payload in payloads:
                bulk.add(payload)
            resolution = await bulk.resolve()

        assert 1 == resolution.resolved
        assert 1 == len({payload.author.id for payload in payloads})
        assert payloads[0].author == payloads[1].author == payloads[2].author

    async def test_added_after_resolving(self, session: AsyncSession) -> None:
        """A reference added when its row is known is resolved at once."""
        session.add(Author(code="a1"))
        await session.commit()
        outside = BookIn.model_validate({"isbn": "1", "author": "a1"})
        async with session.bulk() as bulk:
            inside = BookIn.model_validate({"isbn": "2", "author": "a1"})
            await bulk.resolve()
            bulk.add(outside)

        assert inside.author == outside.author

    async def test_instance_as_reference(self, session: AsyncSession) -> None:
        """A transient instance may stand for the row its key names."""
        session.add(Author(code="a1", name="A"))
        await session.commit()
        async with session.bulk() as bulk:
            bulk.add(Author(code="a1"), is_reference=True)
            await bulk.resolve(strategy="hydrate")
            [found] = bulk.get(Author)

        assert "A" == found.name


class TestSameBulk:
    async def test_new_value(self, session: AsyncSession) -> None:
        """A reference to a value resolves to it, though neither is in the database."""
        async with session.bulk() as bulk:
            for given in ({"code": "n2", "parent": "n1"}, {"code": "n1"}):
                bulk.add(NodeIn.model_validate(given))
            await bulk.resolve()
            second, first = bulk.get(Node, scope="values")
            await bulk.commit()

        assert second.parent is first
        assert second.parent_id == first.id

    async def test_mapped_value(self, session: AsyncSession) -> None:
        """The same where the value is a mapped instance."""
        author = Author(code="new")
        async with session.bulk() as bulk:
            bulk.add(author)
            bulk.add(BookIn.model_validate({"isbn": "1", "author": "new"}))
            await bulk.resolve()
            await bulk.commit()
            [book] = bulk.get(Book)

        assert book.author is author

    async def test_cycle(self, session: AsyncSession) -> None:
        """Two values that refer to each other resolve to each other."""
        async with session.bulk() as bulk:
            bulk.add(NodeIn.model_validate({"code": "a", "parent": "b"}))
            bulk.add(NodeIn.model_validate({"code": "b", "parent": "a"}))
            await bulk.resolve()
            a, b = bulk.get(Node, scope="values")

        assert a.parent is b
        assert b.parent is a

    async def test_value_that_is_a_row(self, session: AsyncSession) -> None:
        """A value that exists already is the row, also inside other keys."""
        await geography(session)

        class CountryIn(Spec[Country]):
            code: str
            name: str

        async with session.bulk() as bulk:
            [region] = references(Ref[Region], [{"country": "fr", "zone": -2}])
            bulk.add(CountryIn(code="fr", name="France"))
            await bulk.resolve(strategy="hydrate")
            [country] = bulk.get(Country, scope="values")

        assert "fr-2" == region.name
        assert country.id == region.country_id
        assert "France" == country.name

    async def test_key_inside_a_value(self, session: AsyncSession) -> None:
        """A value whose own key holds a reference is bound to its row."""
        await geography(session)

        class RegionIn(Spec[Region]):
            country: Ref[Country]
            zone: int
            name: str

        async with session.bulk() as bulk:
            bulk.add(
                RegionIn.model_validate({"country": "de", "zone": -1, "name": "x"})
            )
            resolution = await bulk.resolve()
            await bulk.commit(on_conflict="update")
        names = (await session.scalars(select(Region.name).order_by(Region.id))).all()

        assert 1 == resolution.values
        assert ["fr-1", "fr-2", "x", "de-2"] == names


class TestValues:
    async def test_only_set_attributes_change(self, session: AsyncSession) -> None:
        """A value bound to its row changes what was set, and nothing else."""
        session.add(Author(code="a1", name="old", email="kept"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a1", name="new"))
            await bulk.resolve(scope="values")
            [author] = bulk.get(Author)
            changed = author in session.dirty
            await bulk.commit(on_conflict="update")
        row = (await session.execute(text("SELECT name, email FROM author"))).one()

        assert changed
        assert ("new", "kept") == tuple(row)

    async def test_hydrate_fills_the_others(self, session: AsyncSession) -> None:
        """``hydrate`` loads the attributes that were not set."""
        session.add(Author(code="a1", name="old", email="kept"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a1", name="new"))
            await bulk.resolve(strategy="hydrate")
            [author] = bulk.get(Author)

        assert ("new", "kept") == (author.name, author.email)

    async def test_known_to_the_session(self, session: AsyncSession) -> None:
        """The session's own instance of the row takes the changes."""
        session.add(Author(code="a1", name="old"))
        await session.commit()
        mine = (await session.scalars(select(Author))).one()
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a1", name="new"))
            await bulk.resolve()
            [found] = bulk.get(Author)

        assert mine is found
        assert "new" == mine.name

    async def test_missing_stays_new(self, session: AsyncSession) -> None:
        """A value that is no row stays new; asked for alone, it is a failure."""
        async with session.bulk() as bulk:
            bulk.add(AuthorIn(code="a1"))
            resolution = await bulk.resolve()
            with pytest.raises(ResolutionError) as caught:
                await bulk.resolve(scope="values")

        assert (0, 0) == (resolution.resolved, resolution.values)
        assert [(Author, {"code": "a1"}, "missing")] == [
            (failure.entity, failure.key, failure.reason)
            for failure in caught.value.failures
        ]

    async def test_statements(self, db: Database, session: AsyncSession) -> None:
        """Values take one look-up, however many there are."""
        session.add_all([Author(code=f"a{n}") for n in range(200)])
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            for n in range(400):
                bulk.add(AuthorIn(code=f"a{n}", name="x"))
            with count_statements(db.manager.async_engines["default"]) as statements:
                resolution = await bulk.resolve()

        assert 200 == resolution.values
        assert 1 == statements.count

    async def test_asked_for_once(self, db: Database, session: AsyncSession) -> None:
        """A value and the references to it share one look-up."""
        session.add(Author(code="a"))
        await session.commit()
        session.expunge_all()
        async with session.bulk() as bulk:
            [reference] = references(Ref[Author], ["a"])
            bulk.add(AuthorIn(code="a", name="x"))
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve()
            [author] = bulk.get(Author, scope="values")

        assert 1 == statements.count
        assert author == reference


class TestList:
    async def test_order(self, session: AsyncSession) -> None:
        """``get`` lists in the order of adding, subclasses included."""
        async with session.bulk() as bulk:
            added = [Car(plate="3"), Vehicle(plate="1"), Lorry(plate="2")]
            for vehicle in added:
                bulk.add(vehicle)
            held = references(Ref[Vehicle], [{"plate": p} for p in "987"])

            assert held + added == bulk.get(Vehicle)
            assert added == bulk.get(Vehicle, scope="values")
            assert held == bulk.get(Vehicle, scope="references")
            assert [added[0]] == bulk.get(Car)

    async def test_wrong_arguments(self, session: AsyncSession) -> None:
        """An option that does not exist is an error, and so is a stray object."""
        async with session.bulk() as bulk:
            for options in ({"scope": "refs"}, {"strategy": "xx"}):
                with pytest.raises(RuntimeError, match="is one of"):
                    await bulk.resolve(**options)  # type: ignore[arg-type]  # the test
            with pytest.raises(RuntimeError, match="a bulk takes"):
                bulk.add(object())

    async def test_proxies_are_references(self, session: AsyncSession) -> None:
        """What a bulk holds before resolving are proxies of the entity."""
        async with session.bulk() as bulk:
            references(Ref[Country], ["fr"])
            found: list[Any] = bulk.get(Country)

        assert [Proxy] == [type(reference) for reference in found]
        assert isinstance(found[0], Country)
