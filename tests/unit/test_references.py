"""References: what they accept, what they are, before a database is asked."""

from __future__ import annotations

import copy
import pickle
import uuid
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, cast
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given as generated
from hypothesis import strategies as st
from pydantic import BaseModel, RootModel, TypeAdapter, ValidationError, create_model
from sqlalchemy import JSON, ForeignKey, UniqueConstraint, inspect, types
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import Key, Proxy, Ref, Session, Spec, UnresolvedReferenceError
from tenure.mapping.keys import identifiers
from tenure.references import Placeholders, rebuilt, replace_in
from tenure.references.proxy import instance_found, key_of
from tests.fixtures.models import (
    Author,
    Book,
    Car,
    Colour,
    Country,
    Region,
    Sample,
    Seat,
    Site,
    Vehicle,
)


class Base(DeclarativeBase):
    pass


class Abstract(Base):
    __abstract__ = True


class Anything(types.TypeDecorator[Any]):
    """A type that does not say what its values are in Python."""

    impl = JSON
    cache_ok = True

    @property
    def python_type(self) -> type[Any]:
        raise NotImplementedError  # as a type of a user that does not say


class Loose(Base):
    __tablename__ = "loose"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[Any] = mapped_column(Anything, unique=True)
    flag: Mapped[bool | None] = mapped_column(unique=True)
    hour: Mapped[time | None] = mapped_column(unique=True)


class Folder(Base):
    """Its key holds one of its own kind."""

    __tablename__ = "folder"
    __table_args__ = (UniqueConstraint("parent_id", "name"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("folder.id"))
    name: Mapped[str]

    parent: Mapped[Folder | None] = relationship(remote_side=[id])


def reference(given: Any, to: Any = Ref[Country]) -> Any:
    return TypeAdapter(to).validate_python(given)


def refusal(given: Any, to: Any = Ref[Country]) -> tuple[str, str]:
    """Give type and message of what is wrong with *given*."""
    with pytest.raises(ValidationError) as caught:
        reference(given, to)
    [error] = caught.value.errors()
    return error["type"], error["msg"]


def resolved(instance: Any, **key: Any) -> Proxy:
    shape = identifiers(type(instance)).shape(tuple(key))
    proxy = Proxy(shape, tuple(key.values()))
    instance_found(proxy, None, instance)
    return proxy


class TestAccepted:
    @pytest.mark.parametrize(
        ("given", "to", "expected"),
        [
            ({"code": "fr"}, Ref[Country], {"code": "fr"}),
            ({"id": 1}, Ref[Country], {"id": 1}),
            ({"id": "1"}, Ref[Country], {"id": 1}),
            ("fr", Ref[Country], {"code": "fr"}),
            ("007", Ref[Country], {"code": "007"}),
            (7, Ref[Country], {"id": 7}),
            ("7", Annotated[Country, Key("id")], {"id": 7}),
            ("7", Annotated[Country, Key("code")], {"code": "7"}),
            ({"country_id": 1, "zone": -1}, Ref[Region], {"country_id": 1, "zone": -1}),
            ({"zone": 2, "country_id": 1}, Ref[Region], {"country_id": 1, "zone": 2}),
            (5, Ref[Region], {"id": 5}),
            ("5", Ref[Region], {"id": 5}),
            ({"hall": "a", "row": None}, Ref[Seat], {"hall": "a", "row": None}),
            ({"colour": "g"}, Ref[Sample], {"colour": Colour.GREEN}),
            (
                {"token": str(uuid.UUID(int=1))},
                Ref[Sample],
                {"token": uuid.UUID(int=1)},
            ),
            ({"price": "1.50"}, Ref[Sample], {"price": Decimal("1.50")}),
            ({"ratio": 1}, Ref[Sample], {"ratio": 1.0}),
            (
                {"moment": "2024-01-01T00:00:00Z"},
                Ref[Sample],
                {"moment": datetime(2024, 1, 1, tzinfo=UTC)},
            ),
        ],
        ids=str,
    )
    def test_keys(self, given: Any, to: Any, expected: dict[str, Any]) -> None:
        """Every form of a key gives a proxy with the key's values."""
        found = reference(given, to)

        assert type(found) is Proxy
        assert expected == key_of(found)
        assert [type(value) for value in expected.values()] == [
            type(value) for value in key_of(found).values()
        ]

    def test_nested(self) -> None:
        """A key may hold a reference in any of its forms, and so on."""
        for country in ("fr", {"code": "fr"}, reference("fr")):
            given = {"code": "s", "region": {"country": country, "zone": 1}}
            site = reference(given, Ref[Site])

            assert "fr" == site.region.country.code
            assert (1, "s") == (site.region.zone, site.code)

    def test_instance(self) -> None:
        """A mapped instance is used as it is, also one of a subclass."""
        country, car = Country(code="fr"), Car(plate="x")

        assert country is reference(country)
        assert car is reference(car, Ref[Vehicle])
        region = reference({"country": country, "zone": 1}, Ref[Region])
        assert country is region.country

    def test_proxy(self) -> None:
        """A proxy of the entity is used as it is."""
        proxy = reference("fr")

        assert proxy is reference(proxy)

    def test_optional(self) -> None:
        """Null is accepted where the field says so."""
        for to in (Ref[Country] | None, Annotated[Country | None, Key()]):
            assert reference(None, to) is None
            assert "fr" == reference("fr", to).code

    def test_from_json(self) -> None:
        """What JSON writes as text is read as the type of the column."""
        adapter: TypeAdapter[Any] = TypeAdapter(list[Ref[Sample]])
        text = '[{"token": "00000000-0000-0000-0000-000000000003"}, {"id": 1}]'
        found = adapter.validate_json(text)

        assert [{"token": uuid.UUID(int=3)}, {"id": 1}] == [key_of(p) for p in found]

    def test_composed(self) -> None:
        """A key may be made of the model's own fields."""

        class Row(BaseModel):
            origin: Ref[Country]
            zone: int
            region: Annotated[Region, Key(country="origin", zone="zone")]

        row = Row.model_validate({"origin": "fr", "zone": 3})

        assert {"country": row.origin, "zone": 3} == key_of(cast(Proxy, row.region))
        other = {"country": {"code": "de"}, "zone": 9}
        given = Row.model_validate({"origin": "fr", "zone": 3, "region": other})
        assert 9 == given.region.zone

    def test_composed_in_place_of_a_default(self) -> None:
        """In a ``Spec`` it is composed though the field has a default."""

        class SiteIn(Spec[Site]):
            country: Ref[Country] | None = None
            zone: int | None = None
            region: Annotated[Region | None, Key(country="country", zone="zone")] = None

        class Named(SiteIn):
            code: str = "a"

        for model in (SiteIn, Named):
            site = model.model_validate({"country": "fr", "zone": 3})
            assert {"country": site.country, "zone": 3} == key_of(
                cast(Proxy, site.region)
            )
            assert model().region is None

    def test_composed_in_another_order(self) -> None:
        """Two models may compose one key in different orders."""

        class Own(DeclarativeBase):
            pass

        class Place(Own):
            __tablename__ = "place"
            __table_args__ = (UniqueConstraint("row", "seat"),)
            id: Mapped[int] = mapped_column(primary_key=True)
            row: Mapped[int]
            seat: Mapped[int]

        class First(BaseModel):
            r: int
            s: int
            place: Annotated[Place, Key(seat="s", row="r")]

        class Second(BaseModel):
            r: int
            s: int
            place: Annotated[Place, Key(row="r", seat="s")]

        for model in (First, Second):
            found: Any = model.model_validate({"r": 1, "s": 2}).place  # type: ignore[attr-defined]  # both have it
            assert {"row": 1, "seat": 2} == key_of(found)

    def test_composed_of_null(self) -> None:
        """A part that is null means no reference, where one is optional."""

        class Row(BaseModel):
            origin: Ref[Country] | None = None
            zone: int
            region: Annotated[Region | None, Key(country="origin", zone="zone")]

        assert Row.model_validate({"zone": 3}).region is None


class TestRefused:
    @pytest.mark.parametrize(
        ("given", "to", "expected"),
        [
            (
                None,
                Ref[Country],
                ("reference_type", "a reference to Country is required"),
            ),
            (
                {"nope": 1},
                Ref[Country],
                (
                    "reference_key",
                    (
                        "an object with nope is no key of Country; its keys are "
                        "(id) or (code)"
                    ),
                ),
            ),
            (
                {"code": "fr", "name": "France"},
                Ref[Country],
                (
                    "reference_key",
                    (
                        "an object with code, name is no key of Country; its "
                        "keys are (id) or (code)"
                    ),
                ),
            ),
            (
                {"code": "fr"},
                Annotated[Country, Key("id")],
                (
                    "reference_key",
                    ("an object with code is no key of Country; its keys are (id)"),
                ),
            ),
            (
                [1],
                Ref[Country],
                (
                    "reference_key",
                    (
                        "a value of type list is no key of Country; its keys are "
                        "(id) or (code)"
                    ),
                ),
            ),
            (
                {"hall": None, "row": None},
                Ref[Seat],
                ("reference_null", "every attribute of the key of Seat is null"),
            ),
            (
                {"id": "x"},
                Ref[Country],
                (
                    "reference_key",
                    (
                        "Country.id: Input should be a valid integer, unable to parse "
                        "string as an integer"
                    ),
                ),
            ),
            (
                {"country": {"zone": 1}, "zone": 1},
                Ref[Region],
                (
                    "reference_key",
                    (
                        "Region.country: an object with zone is no key of "
                        "Country; its keys are (id) or (code)"
                    ),
                ),
            ),
        ],
        ids=str,
    )
    def test_messages(self, given: Any, to: Any, expected: tuple[str, str]) -> None:
        """What is refused says why, and what would be accepted."""
        assert expected == refusal(given, to)

    def test_other_entity(self) -> None:
        """An instance or a proxy of another entity is no reference to this one."""
        for other in (Author(code="a"), reference("a", Ref[Author])):
            assert "reference_key" == refusal(other)[0]
        assert "reference_key" == refusal(Vehicle(plate="x"), Ref[Car])[0]

    def test_ambiguous(self) -> None:
        """A bare value that two keys fit is refused, with the way to be explicit."""
        kind, message = refusal(1, Ref[Book])

        assert "reference_ambiguous" == kind
        assert "could be id or barcode of Book" in message
        assert "{'id': …}" in message
        assert "Key('id')" in message

    @pytest.mark.parametrize(
        ("given", "accepted"),
        [
            *[(True, False), (b"1", False), (1.5, False), (float("nan"), False)],
            *[(Decimal(1), True), (1.0, True), (2.0**53, True), (2.0**53 + 2, False)],
        ],
        ids=repr,
    )
    def test_loose(self, given: Any, accepted: bool) -> None:
        """A float without a fraction is an integer, as long as it is exact."""
        for form in (given, {"id": given}):
            try:
                found = reference(form)
            except ValidationError:
                found = None

            assert accepted is (found is not None)

    def test_composed_of_an_invalid_part(self) -> None:
        """A part that is not valid is named."""

        class Row(BaseModel):
            zone: int
            origin: Ref[Country]
            region: Annotated[Region, Key(country="origin", zone="zone")]

        with pytest.raises(ValidationError) as caught:
            Row.model_validate({"zone": "x", "origin": "fr"})

        assert [(("zone",), "int_parsing"), (("region",), "reference_part")] == [
            (error["loc"], error["type"]) for error in caught.value.errors()
        ]

    def test_wrong_key(self) -> None:
        """A key that names no attribute is an error of the program."""
        with pytest.raises(TypeError, match="Country has no column"):
            reference("fr", Annotated[Country, Key("nope")])
        with pytest.raises(TypeError, match="not both"):
            Key("a", b="c")
        for wrong in (1, "", None):
            with pytest.raises(TypeError, match="names of attributes"):
                Key(wrong)  # type: ignore[arg-type]  # on purpose

    @pytest.mark.parametrize(
        "to", [int, str, object, list[int], int | str, Country | Author, Any], ids=str
    )
    def test_no_class(self, to: Any) -> None:
        """What can never be mapped is refused where it is declared."""
        with pytest.raises(TypeError, match="marks a mapped class"):
            TypeAdapter(Annotated[to, Key()])

    def test_not_mapped(self) -> None:
        """A class that nobody has mapped is an error of the program, not of the input."""
        with pytest.raises(TypeError, match="is abstract, so it has no rows"):
            TypeAdapter(Ref[Abstract])
        adapter = TypeAdapter(Ref[BaseModel])
        for given in ("x", None, {}):
            with pytest.raises(TypeError, match="is not a mapped class"):
                adapter.validate_python(given)

    def test_where(self) -> None:
        """The place in the payload is told, and inside of a key as well."""

        class Payload(BaseModel):
            regions: dict[str, list[Ref[Region]]]

        country = {"codee": "fr"}
        with pytest.raises(ValidationError) as caught:
            Payload.model_validate(
                {"regions": {"x": [{"id": 1}, {"country": country, "zone": 1}]}}
            )
        [error] = caught.value.errors()

        assert ("regions", "x", 1) == error["loc"]
        assert error["msg"].startswith("Region.country: an object with codee")

    def test_forward(self) -> None:
        """A class may be named before it is there."""

        name = "Later"
        fields: Any = {"country": (Ref[name], ...), "other": (Ref[name] | None, None)}
        model = create_model("Payload", **fields)
        model.model_rebuild(_types_namespace={"Later": Country})

        payload: Any = model.model_validate({"country": "fr"})

        assert "fr" == payload.country.code


class TestKeptApart:
    def test_one_true_and_one_point_zero(self) -> None:
        """Values that are equal to Python are keys of their own."""
        with Session() as session, session.bulk() as bulk:
            found = [reference({"key": k}, Ref[Loose]) for k in (1, True, 1.0, "1")]

            assert 4 == len({id(proxy) for proxy in found})
            assert 4 == len(bulk.get(Loose))
        assert [1, True, 1.0, "1"] == [proxy.key for proxy in found]
        outside = [reference({"key": k}, Ref[Loose]) for k in (1, True)]
        assert outside[0] != outside[1]

    def test_fold(self) -> None:
        """So are the two hours of one name, when clocks go back."""
        zone = ZoneInfo("Europe/Berlin")
        hours = [time(2, 30), time(2, 30, fold=1)]
        moments = [datetime(2024, 10, 27, 2, 30, tzinfo=zone, fold=n) for n in (0, 1)]
        with Session() as session, session.bulk() as bulk:
            for hour, moment in zip(hours, moments, strict=True):
                reference({"hour": hour}, Ref[Loose])
                reference({"moment": moment}, Ref[Sample])

            assert 2 == len(bulk.get(Loose))
            assert 2 == len(bulk.get(Sample))

    def test_zeros(self) -> None:
        """And decimals with more zeros: a column of text keeps them apart."""
        with Session() as session, session.bulk() as bulk:
            for price in ("1.0", "1.00"):
                reference({"price": price}, Ref[Sample])

            assert 2 == len(bulk.get(Sample))

    def test_one_hash(self) -> None:
        """And numbers of one hash."""
        with Session() as session, session.bulk() as bulk:
            for number in (-1, -2, 1, 2**61):
                reference(number)

            assert 4 == len(bulk.get(Country))

    def test_one_key(self) -> None:
        """Equal keys are one proxy, in whatever form they came."""
        with Session() as session, session.bulk():
            forms = ["fr", {"code": "fr"}, "fr"]
            assert 1 == len({id(reference(form)) for form in forms})
            nested = [{"country": form, "zone": 1} for form in forms]
            assert 1 == len({id(reference(each, Ref[Region])) for each in nested})


class TestProxy:
    def test_only_its_key(self) -> None:
        """Before it is resolved, nothing but its key can be read or written."""
        proxy = reference("fr")

        assert "fr" == proxy.code
        for use in (
            lambda: proxy.name,
            lambda: proxy.id,
            lambda: setattr(proxy, "code", "de"),
            lambda: delattr(proxy, "code"),
            lambda: inspect(proxy),
            lambda: pickle.dumps(proxy),
        ):
            with pytest.raises(UnresolvedReferenceError, match="is not resolved"):
                use()

    def test_error(self) -> None:
        """The error carries entity and key, and says what to do."""
        with pytest.raises(UnresolvedReferenceError) as caught:
            reference("fr").name  # noqa: B018 - reading is the test

        assert (Country, {"code": "fr"}) == (caught.value.entity, caught.value.key)
        assert (
            "Country(code='fr') is not resolved, so its 'name' cannot be read; "
            "call bulk.resolve() first"
        ) == str(caught.value)

    def test_what_python_asks(self) -> None:
        """Python and its tools may ask any object for what it does not have."""
        proxy = reference("fr")

        assert not hasattr(proxy, "__wrapped__")
        assert not hasattr(proxy, "__html__")
        assert "name" in dir(proxy)

    def test_is_instance(self) -> None:
        """It is an instance of its entity, and of the class of its target."""
        car = Car(plate="x")

        assert isinstance(reference("fr"), Country)
        assert not isinstance(reference("fr"), Author)
        assert isinstance(resolved(car, plate="x"), Car)

    def test_delegates(self) -> None:
        """Resolved, it is its target in every way."""
        country = Country(code="fr", name="France")
        proxy = resolved(country, code="FR")
        proxy.name = "changed"
        del proxy.code

        assert "changed" == country.name
        assert "code" not in country.__dict__
        assert inspect(proxy) is inspect(country)
        assert repr(country) == repr(proxy)
        assert str(country) == str(proxy)
        assert hash(country) == hash(proxy)
        with pytest.raises(AttributeError):
            proxy.nope  # noqa: B018 - reading is the test

    def test_equality(self) -> None:
        """Resolved proxies equal their target and each other, unresolved by key."""
        country = Country(code="fr")
        one, other = resolved(country, code="fr"), resolved(country, id=1)

        assert one == other
        assert one == country
        assert country == one
        assert {country} == {one, other}
        assert one != resolved(Country(code="fr"), code="fr")
        assert one != reference("fr")
        assert reference("fr") == reference({"code": "fr"})
        assert reference("fr") != reference("de")
        assert reference("fr") != reference("fr", Ref[Author])
        nested = [{"country": form, "zone": 1} for form in ("fr", {"code": "fr"})]
        assert reference(nested[0], Ref[Region]) == reference(nested[1], Ref[Region])

    def test_in_sets(self) -> None:
        """Its hash is that of its key, then that of its target."""
        first, second = reference("fr"), reference({"code": "fr"})
        held = {first, second, reference("de")}
        country = Country(code="fr")
        instance_found(first, None, country)

        assert 2 == len(held)
        assert country in set(list(held))  # noqa: C414  # a set hands on its hashes
        assert hash(country) == hash(first)

    def test_repr(self) -> None:
        """It shows its key."""
        assert "<Country(code='fr'), not resolved>" == repr(reference("fr"))
        assert repr(reference("fr")) == str(reference("fr"))

    def test_copies(self) -> None:
        """A copy of what holds it holds the same one; pickled, it is its target."""

        class Payload(BaseModel):
            country: Ref[Country]

        payload = Payload.model_validate({"country": "fr"})
        country = Country(code="fr")

        assert payload.country is copy.deepcopy(payload).country
        assert payload.country is payload.model_copy(deep=True).country
        assert payload.country is copy.copy(payload.country)
        loaded = pickle.loads(pickle.dumps(resolved(country, code="fr")))
        assert Country is type(loaded)
        assert "fr" == loaded.code


class TestJson:
    def test_schema(self) -> None:
        """The schema lists every form that is accepted."""
        schema = TypeAdapter(Ref[Country]).json_schema()

        assert {
            "title": "Country",
            "description": "Reference to a Country, by key",
            "anyOf": [
                {"type": "integer"},
                _object(id={"type": "integer"}),
                {"type": "string"},
                _object(code={"type": "string"}),
            ],
        } == schema

    def test_schema_of_a_nested_key(self) -> None:
        """A key inside of it is described in turn."""
        schema = TypeAdapter(Annotated[Region, Key("country", "zone")]).json_schema()

        assert [
            _object(
                country=TypeAdapter(Ref[Country]).json_schema(),
                zone={"type": "integer"},
            )
        ] == schema["anyOf"]

    def test_schema_of_its_own_kind(self) -> None:
        """An entity whose key holds one of its own kind has a schema that ends."""

        schema = TypeAdapter(Annotated[Folder, Key("parent", "name")]).json_schema()
        [form] = schema["anyOf"]

        assert "Folder" == form["properties"]["parent"]["title"]

    def test_optional(self) -> None:
        """Null is a form where it is accepted, and the field is not required."""

        class Payload(BaseModel):
            one: Ref[Country] | None = None
            two: Annotated[Country | None, Key("code")]

        schema = Payload.model_json_schema()

        assert ["two"] == schema["required"]
        assert {"type": "null"} in schema["properties"]["two"]["anyOf"]

    def test_composed(self) -> None:
        """What is made of other fields is not required."""

        class Payload(BaseModel):
            origin: Ref[Country]
            zone: int
            region: Annotated[Region, Key(country="origin", zone="zone")]

        schema = Payload.model_json_schema()

        assert ["origin", "zone"] == schema["required"]

    @pytest.mark.parametrize(
        ("given", "to", "expected"),
        [
            ("fr", Ref[Country], "fr"),
            ({"id": 1}, Ref[Country], 1),
            (
                {"country": "fr", "zone": 1},
                Ref[Region],
                {"country": "fr", "zone": 1},
            ),
            ({"colour": "g"}, Ref[Sample], "g"),
            ({"token": str(uuid.UUID(int=1))}, Ref[Sample], str(uuid.UUID(int=1))),
            ({"price": "1.50"}, Ref[Sample], "1.50"),
        ],
        ids=str,
    )
    def test_written(self, given: Any, to: Any, expected: Any) -> None:
        """A reference is written as its key, whose form can be read again."""
        adapter = TypeAdapter(to)
        proxy = adapter.validate_python(given)

        assert expected == adapter.dump_python(proxy, mode="json")
        assert adapter.dump_json(proxy)

    def test_instance_written(self) -> None:
        """An instance is written as its identity."""
        adapter = TypeAdapter(Ref[Country] | None)

        assert 7 == adapter.dump_python(Country(id=7))
        assert adapter.dump_python(None) is None


class TestSpec:
    def test_to_resource(self) -> None:
        """A spec makes an instance of what was given, references as instances."""

        class BookIn(Spec[Book]):
            isbn: str
            title: str = "untitled"
            pages: int | None = None
            author: Ref[Author]

        author = Author(code="a")
        book = BookIn(isbn="1", author=author).to_resource()

        assert ("1", "untitled") == (book.isbn, book.title)
        assert author is book.author
        assert "pages" not in book.__dict__
        with pytest.raises(UnresolvedReferenceError, match=r"Author\(code='x'\)"):
            BookIn.model_validate({"isbn": "1", "author": "x"}).to_resource()


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class Point(NamedTuple):
    x: Any
    y: Any = 1


@dataclass(frozen=True)
class Box:
    held: Any


class Shelf(BaseModel, extra="allow", frozen=True):
    held: Any

    def __hash__(self) -> int:
        return hash(self.held)


#: Ways to put one value, or several, into a container; those that can be hashed.
HASHABLE = [
    tuple,
    frozenset,
    lambda parts: Point(parts[0]),
    lambda parts: Box(parts[0]),
    lambda parts: Shelf(held=parts[0]),
]
CONTAINERS = [
    *HASHABLE,
    list,
    deque,
    lambda parts: dict(enumerate(parts)),
    lambda parts: MappingProxyType(dict(enumerate(parts))),
    RootModel[Any],
    lambda parts: Shelf(held=1, more=parts),
    Box,
]


def trees(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    hashable = st.recursive(
        leaf,
        lambda inner: st.builds(
            lambda make, parts: make(parts),
            st.sampled_from(HASHABLE),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=4,
    )
    return st.recursive(
        hashable | st.builds(set, st.lists(hashable, min_size=1, max_size=3)),
        lambda inner: st.builds(
            lambda make, parts: make(parts),
            st.sampled_from([each for each in CONTAINERS if each is not frozenset]),
            st.lists(inner, min_size=1, max_size=3),
        ),
        max_leaves=6,
    )


def leaves(value: Any) -> list[Any]:
    """Give what is in containers inside of each other, apart from our own walk."""
    if isinstance(value, BaseModel):
        parts: Any = [part for _, part in value]
    elif isinstance(value, Box):
        parts = [value.held]
    elif isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        parts = value
    else:
        return [value]
    return [leaf for part in parts for leaf in leaves(part)]


class TestReplaced:
    @generated(st.data())
    def test_everywhere(self, data: Any) -> None:
        """Every placeholder is replaced, in whatever it is, and nothing else is."""
        country, placeholders = Country(code="fr"), Placeholders()
        proxy = cast(Proxy, reference("fr"))
        placeholder = placeholders.of(proxy)
        leaf = st.sampled_from([placeholder, "text", 1, None])
        value = data.draw(trees(leaf))
        before = [country if each is placeholder else each for each in leaves(value)]
        instance_found(proxy, None, country)
        placeholders.share_rows()

        found = replace_in(value)

        after = leaves(found)
        assert not any(each is placeholder for each in after)
        assert sorted(map(repr, before)) == sorted(map(repr, after))
        assert type(found) is type(value) or value is placeholder
        if isinstance(value, list | dict | set | deque | BaseModel | Box):
            assert found is value

    def test_in_a_circle(self) -> None:
        """A payload that holds itself is walked through once."""
        held: list[Any] = [1]
        held.append(held)

        assert held is replace_in(held)

    @pytest.mark.parametrize("make", CONTAINERS[:9])
    def test_rebuilt(self, make: Any) -> None:
        """A collection is left alone; the result is another one, if it has to be."""
        given = make([1, 2])
        doubled = rebuilt(given, lambda item: item * 2)

        assert given is rebuilt(given, lambda item: item)
        if isinstance(given, Box | Shelf):
            assert given is doubled
        else:
            assert type(given) is type(doubled)
            assert [item * 2 for item in leaves(given)] == leaves(doubled)
            assert leaves(make([1, 2])) == leaves(given)
