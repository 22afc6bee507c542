"""References to every kind of mapped class, from every kind: what gets stored."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter
from sqlalchemy import inspect, text
from sqlalchemy.schema import CreateTable

from tenure import (
    AsyncSession,
    Database,
    Key,
    LoadError,
    Ref,
    ResolutionError,
    Spec,
)
from tests.fixtures.counting import count_statements
from tests.fixtures.kinds import (
    Album,
    Artist,
    Asset,
    Away,
    Base,
    Berth,
    Boat,
    Building,
    Card,
    Comet,
    Credit,
    Hand,
    House,
    Item,
    Land,
    Letter,
    Machine,
    Moon,
    Odd,
    Owner,
    Planet,
    Reading,
    RecordLabel,
    Renamed,
    Repair,
    Resident,
    Stamped,
    Station,
    Street,
    Suit,
    Town,
    Track,
)

pytestmark = [pytest.mark.anyio, pytest.mark.every_database]


@pytest.fixture
async def db(async_url: str) -> AsyncIterator[Database]:
    async with Database(async_url) as db:
        await db.acreate_all(Base.metadata)
        yield db


@pytest.fixture(params=["bind", "hydrate"])
def strategy(request: pytest.FixtureRequest) -> Any:
    return request.param


async def stored(session: AsyncSession, statement: str) -> list[tuple[Any, ...]]:
    """What the database itself says, past all that is mapped."""
    return [tuple(row) for row in await session.execute(text(statement))]


async def keep(session: AsyncSession, *rows: Any) -> None:
    """Write rows to refer to, and forget that they were written."""
    session.add_all(rows)
    await session.commit()
    session.expunge_all()


async def write(
    session: AsyncSession, strategy: Any, model: type[BaseModel], *given: Any
) -> None:
    """Validate payloads in a bulk, resolve, commit; rows that exist are updated."""
    async with session.bulk() as bulk:
        for each in given:
            bulk.add(model.model_validate(each))
        await bulk.resolve(strategy=strategy)
        await bulk.commit(on_conflict="update")
    session.expunge_all()


async def found(
    session: AsyncSession, strategy: Any, reference: Any, *given: Any
) -> list[Any]:
    """Resolve references that a plain model holds; give what they stand for."""
    async with session.bulk() as bulk:
        payload = TypeAdapter(list[reference]).validate_python(list(given))
        await bulk.resolve(strategy=strategy)
    return [inspect(each).object for each in payload]


class OwnerIn(Spec[Owner]):
    code: str
    name: str | None = None


class BoatIn(Spec[Boat]):
    name: str
    owner: Ref[Owner]
    note: str | None = None


class TestDataclasses:
    async def test_relationship_is_an_argument(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """Arguments go to the constructor, the rest is set, defaults are its own."""
        await keep(session, Owner(code="o"))
        await write(
            session,
            strategy,
            BoatIn,
            {"name": "b", "owner": "o", "note": "n"},
            {"name": "c", "owner": {"code": "o"}},
        )

        assert [("b", 3, "n", "o"), ("c", 3, None, "o")] == await stored(
            session,
            "SELECT b.name, length, note, code FROM boat b "
            "JOIN owner o ON b.owner_id = o.id ORDER BY b.name",
        )

    async def test_foreign_key_is_an_argument(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A required foreign key is what its reference says, also of a new row."""

        class BerthIn(Spec[Berth]):
            number: int
            owner: Ref[Owner]
            boat: Ref[Boat] | None = None

        await keep(session, Boat(name="b", owner=Owner(code="o")))
        async with session.bulk() as bulk:
            bulk.add(OwnerIn(code="new"))
            for given in (
                {"number": 1, "owner": "o", "boat": "b"},
                {"number": 2, "owner": "new"},
            ):
                bulk.add(BerthIn.model_validate(given))
            await bulk.resolve(strategy=strategy)
            await bulk.commit()

        assert [(1, "o", 7, "b"), (2, "new", 7, None)] == await stored(
            session,
            "SELECT number, o.code, rank, b.name FROM berth "
            "JOIN owner o ON berth.owner_id = o.id "
            "LEFT JOIN boat b ON berth.boat_id = b.id ORDER BY number",
        )

    async def test_missing_argument(self, session: AsyncSession) -> None:
        """What the constructor wants and nobody gave is the constructor's error."""

        class NamelessIn(Spec[Boat]):
            owner: Ref[Owner]

        await keep(session, Owner(code="o"))
        with pytest.raises(TypeError, match="'name'"):
            await write(session, "bind", NamelessIn, {"owner": "o"})

    async def test_row_that_exists(self, session: AsyncSession, strategy: Any) -> None:
        """What was not given is not changed, whatever the default of a field is."""
        await keep(session, Owner(code="o", name="kept", rank=1))
        await write(session, strategy, OwnerIn, {"code": "o"})
        await write(session, strategy, OwnerIn, {"code": "p", "name": "P"})

        assert [("o", "kept", 1), ("p", "P", 7)] == await stored(
            session, "SELECT code, name, rank FROM owner ORDER BY code"
        )


class TestImperative:
    async def test_own_constructor(self, session: AsyncSession, strategy: Any) -> None:
        """A constructor gets what it takes, by name; other attributes are set."""

        class MoonIn(Spec[Moon]):
            label: str
            size: int
            planet: Ref[Planet]

        await keep(session, Planet("p"), Planet("q", name="Q"))
        await write(
            session,
            strategy,
            MoonIn,
            {"label": "a", "size": 1, "planet": "p"},
            {"label": "b", "size": 2, "planet": {"code": "q"}},
        )

        assert [("A", 1, "p"), ("B", 2, "q")] == await stored(
            session,
            "SELECT label, size, planet_code FROM moon "
            "JOIN planet USING (planet_id) ORDER BY label",
        )

    async def test_mapped_values(self, session: AsyncSession, strategy: Any) -> None:
        """Instances that the program makes are values as those of any class."""
        await keep(session, Planet("p", name="old"))
        given = Planet("p", name="new")
        async with session.bulk() as bulk:
            bulk.add(given)
            bulk.add(Moon("m", given))
            await bulk.resolve(strategy=strategy)
            await bulk.commit(on_conflict="update")

        assert [("M", "p", "new")] == await stored(
            session,
            "SELECT label, planet_code, planet_name FROM moon "
            "JOIN planet USING (planet_id)",
        )

    @pytest.mark.parametrize("first", ["planet", "moon"])
    async def test_back_references_add(
        self, session: AsyncSession, strategy: Any, first: str
    ) -> None:
        """What a back reference has put into a value is added to its row's."""
        await keep(session, Moon("old", Planet("p")))
        planet = Planet("p", name="new")
        moon = Moon("m", planet)
        async with session.bulk() as bulk:
            for value in (planet, moon) if first == "planet" else (moon, planet):
                bulk.add(value)
            await bulk.resolve(strategy=strategy)
            await bulk.commit(on_conflict="update")

        assert [("M", "p"), ("OLD", "p")] == await stored(
            session,
            "SELECT label, planet_code FROM moon JOIN planet USING (planet_id) "
            "ORDER BY label",
        )

    async def test_column_under_two_names(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A column that two attributes have is written by either."""

        class CometIn(Spec[Comet]):
            code: str
            title: str

        await session.execute(text("INSERT INTO comet VALUES ('p', 'old')"))
        await write(
            session,
            strategy,
            CometIn,
            {"code": "p", "title": "new"},
            {"code": "q", "title": "Q"},
        )

        assert [("p", "new"), ("q", "Q")] == await stored(
            session, "SELECT code, name FROM comet ORDER BY code"
        )


class RepairIn(Spec[Repair]):
    asset: Ref[Asset]
    tool: Ref[Machine] | None = None


class TestInheritance:
    @pytest.fixture(autouse=True)
    async def assets(self, session: AsyncSession) -> None:
        await keep(
            session,
            Asset(plant="a", number=1, label="asset"),
            Machine(plant="a", number=2, label="machine", maker="m", serial=7),
            Building(plant="b", number=2, label="building", floors=3),
        )

    async def test_right_subclass(self, session: AsyncSession, strategy: Any) -> None:
        """A reference to the base class gives an instance of the row's class."""
        by_label = await found(
            session, strategy, Ref[Asset], "asset", "machine", "building"
        )
        by_key = await found(
            session,
            strategy,
            Ref[Asset],
            {"plant": "a", "number": 1},
            {"plant": "a", "number": 2},
            {"plant": "b", "number": 2},
        )

        assert [Asset, Machine, Building] == [type(each) for each in by_label]
        assert all(one is two for one, two in zip(by_label, by_key, strict=True))

    @pytest.mark.parametrize(
        "key", ["building", {"plant": "b", "number": 2}, {"label": "asset"}], ids=str
    )
    async def test_not_a_sibling(
        self, session: AsyncSession, strategy: Any, key: Any
    ) -> None:
        """A reference to a subclass finds no row of a sibling, nor of the base."""
        with pytest.raises(ResolutionError, match="Machine") as caught:
            await found(session, strategy, Ref[Machine], key)

        assert ["missing"] == [failure.reason for failure in caught.value.failures]

    async def test_keys_of_either_table(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A subclass is named by the keys of its table, and of its base's."""
        machines = await found(
            session,
            strategy,
            Ref[Machine],
            "machine",
            {"maker": "m", "serial": 7},
            {"number": 2, "plant": "a"},
        )

        assert 1 == len(set(machines))
        assert type(machines[0]) is Machine

    async def test_composite_foreign_keys(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """References to base and subclass write all columns of their foreign keys."""
        await write(
            session,
            strategy,
            RepairIn,
            {"asset": "building", "tool": "machine"},
            {"asset": {"plant": "a", "number": 2}},
        )

        assert [("a", 2, None, None), ("b", 2, "a", 2)] == await stored(
            session,
            "SELECT asset_plant, asset_number, tool_plant, tool_number FROM repair "
            "ORDER BY asset_plant",
        )

    async def test_new_values(self, session: AsyncSession, strategy: Any) -> None:
        """A new row of two tables is what references to its base name."""

        class MachineIn(Spec[Machine]):
            plant: str
            number: int
            label: str
            maker: str
            serial: int

        async with session.bulk() as bulk:
            bulk.add(RepairIn.model_validate({"asset": "new", "tool": "new"}))
            bulk.add(MachineIn(plant="c", number=1, label="new", maker="n", serial=1))
            await bulk.resolve(strategy=strategy)
            await bulk.commit()

        assert [("c", 1, "c", 1)] == await stored(
            session,
            "SELECT asset_plant, asset_number, tool_plant, tool_number FROM repair",
        )
        assert [("new", "machine", 1)] == await stored(
            session,
            "SELECT label, kind, serial FROM asset NATURAL JOIN machine "
            "WHERE plant = 'c'",
        )

    async def test_change_of_both_tables(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A value that is a row of two tables changes what was set in either."""

        class MachineIn(Spec[Machine]):
            label: str
            plant: str
            number: int
            serial: int

        await write(
            session,
            strategy,
            MachineIn,
            {"plant": "a", "number": 2, "label": "renamed", "serial": 8},
        )

        assert [("renamed", "m", 8)] == await stored(
            session,
            "SELECT label, maker, serial FROM asset NATURAL JOIN machine",
        )

    async def test_abstract(self, session: AsyncSession) -> None:
        """A base without a table has no rows: the error says which class has none."""
        await keep(session, Letter(code="l"))
        with pytest.raises(TypeError, match="Stamped is abstract"):
            await found(session, "bind", Ref[Stamped], "l")
        [letter] = await found(session, "bind", Ref[Letter], "l")

        assert type(letter) is Letter


class HandIn(Spec[Hand]):
    card: Ref[Card]
    by_suit: Ref[Card]


class TestTypes:
    async def test_keys_that_convert(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """UUIDs, enums and types that normalise, as objects and as JSON has them."""
        one, two = uuid.uuid4(), uuid.uuid4()
        await keep(
            session,
            Card(id=one, suit=Suit.HEARTS, mail="a@b"),
            Card(id=two, suit=Suit.SPADES, mail="C@D"),
        )
        await write(
            session,
            strategy,
            HandIn,
            {"card": one, "by_suit": Suit.SPADES},
            {"card": {"id": str(two)}, "by_suit": {"suit": "h"}},
            {"card": {"mail": "A@B"}, "by_suit": {"mail": "c@d"}},
        )

        assert [
            ("a@b", "HEARTS", "SPADES"),
            ("a@b", "HEARTS", "SPADES"),
            ("c@d", "SPADES", "HEARTS"),
        ] == await stored(
            session,
            "SELECT mail, card.suit, hand.suit FROM hand "
            "JOIN card ON card_id = card.id ORDER BY mail, hand.suit",
        )

    async def test_value_with_such_a_key(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """A value is found by what its type stores, and not written again."""

        class CardIn(Spec[Card]):
            mail: str
            suit: Suit

        await keep(session, Card(suit=Suit.HEARTS, mail="a@b"))
        async with session.bulk() as bulk:
            bulk.add(CardIn(mail="A@B", suit=Suit.HEARTS))
            resolution = await bulk.resolve(strategy=strategy)
            report = await bulk.commit()

        assert 1 == resolution.values
        assert ["unchanged"] == report.statuses
        assert [("a@b", "HEARTS")] == await stored(
            session, "SELECT mail, suit FROM card"
        )


class RenamedIn(Spec[Renamed]):
    code: str
    db_code: str | None = None
    parent: Ref[Renamed] | None = None


class TestNames:
    async def test_attributes_differ_from_columns(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """Attributes count, not columns, also where one has the other's name."""
        await keep(session, Renamed(code="a"))
        await write(
            session,
            strategy,
            RenamedIn,
            {"code": "b", "parent": "a", "db_code": "x"},
            {"code": "c", "parent": {"code": "b"}},
            {"code": "a", "db_code": "y"},
        )

        assert [("a", "y", None), ("b", "x", "a"), ("c", None, "b")] == await stored(
            session,
            "SELECT r.db_code, r.db_note, p.db_code FROM renamed r "
            "LEFT JOIN renamed p ON r.db_parent = p.db_id ORDER BY r.db_code",
        )

    async def test_synonym(self, session: AsyncSession, strategy: Any) -> None:
        """A synonym names what it is a synonym of, in keys and in values."""

        class TaggedIn(Spec[Renamed]):
            tag: str
            parent: Annotated[Renamed | None, Key("tag")] = None

        await keep(session, Renamed(code="a"))
        await write(session, strategy, TaggedIn, {"tag": "b", "parent": "a"})
        by_tag, by_code = await found(
            session, strategy, Annotated[Renamed, Key("tag")], "a", {"tag": "a"}
        )

        assert by_tag is by_code
        assert [("b", "a")] == await stored(
            session,
            "SELECT r.db_code, p.db_code FROM renamed r "
            "JOIN renamed p ON r.db_parent = p.db_id",
        )

    async def test_quoted(
        self, db: Database, session: AsyncSession, strategy: Any
    ) -> None:
        """Names with blanks and quotes, and words that SQL has reserved."""

        class OddIn(Spec[Odd]):
            order: str
            group: Ref[Odd] | None = None

        await keep(session, Odd(order="a"))
        await write(session, strategy, OddIn, {"order": "b", "group": "a"})

        if db.manager.engines["default"].dialect.name == "mysql":
            await session.execute(text("SET SESSION sql_mode = 'ANSI_QUOTES'"))
        assert [("b", "a")] == await stored(
            session,
            'SELECT o."order", g."order" FROM "Odd ""Table""" o JOIN "Odd ""Table""" g '
            'ON o."from ""here""" = g."Primary Key"',
        )

    async def test_schema(
        self, db: Database, session: AsyncSession, strategy: Any
    ) -> None:
        """Tables of another schema."""

        class AwayIn(Spec[Away]):
            code: str
            other: Ref[Away] | None = None

        dialect = db.manager.engines["default"].dialect.name
        if dialect == "mysql":
            pytest.skip("a schema is a database there")
        made = (
            "ATTACH ':memory:' AS side" if dialect == "sqlite" else "CREATE SCHEMA side"
        )
        await session.execute(text(made))
        await session.execute(CreateTable(Away.__table__))  # type: ignore[arg-type]  # a Table
        session.add(Away(code="a"))
        await session.flush()
        session.expunge_all()
        async with session.bulk() as bulk:
            bulk.add(AwayIn.model_validate({"code": "b", "other": "a"}))
            await bulk.resolve(strategy=strategy)
            await bulk.flush()

        assert [("b", "a")] == await stored(
            session,
            "SELECT x.code, y.code FROM side.away x "
            "JOIN side.away y ON x.other_id = y.id",
        )


class TestKeysOfReferences:
    @pytest.fixture(autouse=True)
    async def houses(self, session: AsyncSession) -> None:
        for land in ("de", "fr"):
            street = Street(town=Town(land=Land(code=land), name="t"), name="s")
            session.add_all([House(street=street, number=n) for n in (1, 2)])
        await session.commit()
        session.expunge_all()

    @pytest.mark.parametrize(
        "street",
        [
            {"town": {"land": "fr", "name": "t"}, "name": "s"},
            {"town": {"land_code": "fr", "name": "t"}, "name": "s"},
            {"land_code": "fr", "town_name": "t", "name": "s"},
        ],
        ids=["references", "one level less", "columns"],
    )
    async def test_three_levels(
        self, session: AsyncSession, strategy: Any, street: Any
    ) -> None:
        """A key in a key in a key: every way to spell it is the same row."""

        class ResidentIn(Spec[Resident]):
            home: Ref[House]
            owned: Ref[House] | None = None

        await write(
            session,
            strategy,
            ResidentIn,
            {
                "home": {"street": street, "number": 2},
                "owned": {
                    "land_code": "de",
                    "town_name": "t",
                    "street_name": "s",
                    "number": 1,
                },
            },
            {"home": {"street": street, "number": 1}},
        )

        assert [
            ("fr", "t", "s", 1, None, None, None, None),
            ("fr", "t", "s", 2, "de", "t", "s", 1),
        ] == await stored(
            session,
            "SELECT home_land, home_town, home_street, home_number, "
            "own_land, own_town, own_street, own_number FROM resident "
            "ORDER BY home_number",
        )

    async def test_of_new_rows(self, session: AsyncSession, strategy: Any) -> None:
        """Values whose own keys are references to values, on all levels."""

        class LandIn(Spec[Land]):
            code: str

        class TownIn(Spec[Town]):
            land: Ref[Land]
            name: str

        class StreetIn(Spec[Street]):
            town: Ref[Town]
            name: str

        class HouseIn(Spec[House]):
            street: Ref[Street]
            number: int

        async with session.bulk() as bulk:
            town = {"land": "es", "name": "t"}
            street = {"town": town, "name": "s"}
            bulk.add(HouseIn.model_validate({"street": street, "number": 1}))
            bulk.add(StreetIn.model_validate(street))
            bulk.add(TownIn.model_validate(town))
            bulk.add(LandIn(code="es"))
            await bulk.resolve(strategy=strategy)
            report = await bulk.commit()

        assert 4 == report.created
        assert [("es", "t", "s", 1)] == await stored(
            session,
            "SELECT land_code, town_name, street_name, number FROM house "
            "WHERE land_code = 'es'",
        )


class TrackIn(Spec[Track]):
    code: str


class AlbumIn(Spec[Album]):
    code: str
    tracks: dict[str, Ref[Track]] = {}  # noqa: RUF012
    guests: set[Ref[Artist]] = set()  # noqa: RUF012  # Pydantic copies it
    labels: list[Ref[RecordLabel]] = []  # noqa: RUF012


class CreditIn(Spec[Credit]):
    artist: Ref[Artist]
    role: str | None = None


LINKS = {
    "tracks": "SELECT a.code, t.code FROM album a JOIN album_track ON a.id = album_id "
    "JOIN track t ON t.id = track_id ORDER BY 1, 2",
    "guests": "SELECT a.code, g.code FROM album a JOIN album_guest ON a.id = album_id "
    "JOIN artist g ON g.id = artist_id ORDER BY 1, 2",
    "labels": "SELECT a.code, l.code FROM album a JOIN album_label ON a.id = album_id "
    "JOIN record_label l ON l.id = label_id ORDER BY 1, 2",
}


class TestCollections:
    @pytest.fixture(autouse=True)
    async def parts(self, session: AsyncSession) -> None:
        await keep(
            session,
            *(
                kind(code=code)
                for kind in (Track, Artist, RecordLabel)
                for code in "xy"
            ),
            Album(code="old"),
        )

    @pytest.mark.parametrize("outside", [False, True])
    @pytest.mark.parametrize("code", ["new", "old"])
    async def test_many_to_many(
        self, session: AsyncSession, strategy: Any, code: str, outside: bool
    ) -> None:
        """Lists, sets and dicts of references become rows of their link tables."""
        given = {
            "code": code,
            "tracks": {"x": "x", "y": {"code": "y"}},
            "guests": ["x", {"code": "y"}, "x"],
            "labels": ["y", "x"],
        }
        before = AlbumIn.model_validate(given)
        async with session.bulk() as bulk:
            payload = before if outside else AlbumIn.model_validate(given)
            bulk.add(payload)
            await bulk.resolve(strategy=strategy)
            await bulk.commit()
        session.expunge_all()

        assert 2 == len(payload.guests)
        for links in LINKS.values():
            assert [(code, "x"), (code, "y")] == await stored(session, links)

    @pytest.mark.parametrize(
        "part", [{"tracks": {"n": "n"}}, {"guests": ["n"]}, {"labels": ["n"]}], ids=str
    )
    async def test_unresolved(self, session: AsyncSession, part: Any) -> None:
        """One reference that is not resolved keeps the whole value from being made."""
        async with session.bulk() as bulk:
            bulk.add(AlbumIn.model_validate({"code": "new", **part}))
            await bulk.resolve(raise_errors=False)
            with pytest.raises(ResolutionError, match=r"code='n'"):
                await bulk.flush()

        assert [("old",)] == await stored(session, "SELECT code FROM album")

    async def test_new_parts(self, session: AsyncSession, strategy: Any) -> None:
        """What a collection refers to may be new itself."""
        async with session.bulk() as bulk:
            bulk.add(
                AlbumIn.model_validate({"code": "new", "tracks": {"n": "n", "x": "x"}})
            )
            bulk.add(TrackIn(code="n"))
            await bulk.resolve(strategy=strategy)
            await bulk.commit()

        assert [("new", "n"), ("new", "x")] == await stored(session, LINKS["tracks"])

    async def test_other_side(self, session: AsyncSession, strategy: Any) -> None:
        """References from the other side of a many-to-many."""

        class OnAlbumsIn(Spec[Track]):
            code: str
            albums: list[Ref[Album]]

        await write(
            session,
            strategy,
            OnAlbumsIn,
            {"code": "n", "albums": ["old"]},
            {"code": "x", "albums": ["old"]},
        )

        assert [("old", "n"), ("old", "x")] == await stored(session, LINKS["tracks"])

    async def test_association_object(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """What stands between two classes, named by two references."""

        class FullCreditIn(CreditIn):
            album: Ref[Album]

        given = [
            {"album": "old", "artist": "x", "role": "drums"},
            {"album": "old", "artist": "y", "role": None},
        ]
        await write(session, strategy, FullCreditIn, *given)
        await write(session, strategy, FullCreditIn, given[1] | {"role": "voice"})
        [credit] = await found(
            session, strategy, Ref[Credit], {"album": "old", "artist": "x"}
        )

        assert type(credit) is Credit
        assert [("old", "x", "drums"), ("old", "y", "voice")] == await stored(
            session,
            "SELECT a.code, b.code, role FROM credit "
            "JOIN album a ON a.id = album_id JOIN artist b ON b.id = artist_id "
            "ORDER BY 2",
        )

    async def test_nested_values(self, session: AsyncSession, strategy: Any) -> None:
        """One to many: the values inside of a value, with references of their own."""

        class CreditedIn(Spec[Album]):
            code: str
            credits: list[CreditIn]

        await write(
            session,
            strategy,
            CreditedIn,
            {"code": "n", "credits": [{"artist": "x", "role": "a"}, {"artist": "y"}]},
        )

        assert [("n", "x", "a"), ("n", "y", None)] == await stored(
            session,
            "SELECT a.code, b.code, role FROM credit "
            "JOIN album a ON a.id = album_id JOIN artist b ON b.id = artist_id "
            "ORDER BY 2",
        )

    async def test_view_only(self, session: AsyncSession) -> None:
        """What cannot be written that way is refused, not lost."""

        class ShownIn(Spec[Album]):
            code: str
            shown: list[Ref[Artist]]

        for code in ("new", "old"):
            with pytest.raises(LoadError, match="shown is read-only"):
                await write(session, "bind", ShownIn, {"code": code, "shown": ["x"]})


class TestJoins:
    @pytest.fixture(autouse=True)
    async def stations(self, session: AsyncSession) -> None:
        await keep(session, Station(code="a", zone=1), Station(code="b", zone=2))

    async def test_not_by_the_primary_key(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """Foreign keys to other columns, and relationships without a foreign key."""

        class ReadingIn(Spec[Reading]):
            station: Ref[Station]
            near: Ref[Station] | None = None

        async with session.bulk() as bulk:
            for given in (
                {"station": "a", "near": {"code": "b"}},
                {"station": {"id": 2}, "near": 1},
                {"station": "a"},
                {"station": "new", "near": "new"},
            ):
                bulk.add(ReadingIn.model_validate(given))
            bulk.add(Station(code="new"))
            await bulk.resolve(strategy=strategy)
            await bulk.commit()

        assert [("a", "b"), ("b", "a"), ("a", None), ("new", "new")] == await stored(
            session, "SELECT station_code, near_code FROM reading ORDER BY id"
        )


class ItemIn(Spec[Item]):
    code: str
    maker: Ref[Artist] | None = None
    price: float
    story: str | None = None


class TestAttributes:
    async def test_hybrid_and_deferred(
        self, session: AsyncSession, strategy: Any
    ) -> None:
        """Hybrid attributes are set through their setter, deferred ones as others."""
        await keep(session, Artist(code="m"), Item(code="old", cents=5, story="kept"))
        await write(
            session,
            strategy,
            ItemIn,
            {"code": "new", "maker": "m", "price": 1.5, "story": "s"},
            {"code": "old", "maker": "m", "price": 2},
        )

        assert [("new", 150, "s", "m"), ("old", 200, "kept", "m")] == await stored(
            session,
            "SELECT item.code, cents, story, a.code FROM item "
            "JOIN artist a ON a.id = maker_id ORDER BY 1",
        )

    async def test_hydrate_leaves_deferred(
        self, db: Database, session: AsyncSession
    ) -> None:
        """``hydrate`` loads what a query would: expressions too, deferred ones not."""
        artist = Artist(code="m")
        await keep(session, artist, Item(code="i", cents=4, story="s", maker=artist))
        [item] = await found(session, "hydrate", Ref[Item], "i")
        [maker] = await found(session, "hydrate", Ref[Artist], "m")

        assert (8, 0.04, 1) == (item.double, item.price, maker.items_made)
        assert "story" not in item.__dict__

    async def test_expression_is_read_only(self, session: AsyncSession) -> None:
        """A field for what the database computes is refused."""

        class DoubleIn(Spec[Item]):
            code: str
            double: int

        await keep(session, Item(code="old", cents=4))
        for code in ("new", "old"):
            with pytest.raises(LoadError, match="double is read-only"):
                await write(session, "bind", DoubleIn, {"code": code, "double": 2})


class TestPlainModels:
    async def test_all_kinds_at_once(
        self, db: Database, session: AsyncSession, strategy: Any
    ) -> None:
        """A plain model that refers to every kind: a statement for each."""

        class Payload(BaseModel):
            boat: Ref[Owner]
            planet: Ref[Planet] | None
            assets: list[Ref[Asset]]
            lands: dict[str, Ref[Land]]
            stations: set[Ref[Station]]

        await keep(
            session,
            Owner(code="o"),
            Planet("p"),
            Machine(plant="a", number=2, label="machine", maker="m", serial=7),
            Land(code="fr"),
            Station(code="a", zone=1),
            Station(code="b", zone=2),
        )
        async with session.bulk() as bulk:
            payload = Payload.model_validate(
                {
                    "boat": "o",
                    "planet": "p",
                    "assets": ["machine"],
                    "lands": {"x": "fr"},
                    "stations": ["a", "b", "a"],
                }
            )
            with count_statements(db.manager.async_engines["default"]) as statements:
                await bulk.resolve(strategy=strategy)

        # What only a machine has is loaded by a statement of its own.
        assert (6 if strategy == "hydrate" else 5) == statements.count
        assert payload.planet is not None
        assert [Owner, Planet, Machine, Land] == [
            type(inspect(each).object)
            for each in (
                payload.boat,
                payload.planet,
                *payload.assets,
                payload.lands["x"],
            )
        ]
        assert [1, 2] == sorted(station.id for station in payload.stations)
