"""What a mapped class accepts, read off its mapper, and how that is described."""

from __future__ import annotations

import enum
import json
import sys
import uuid
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)
from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Enum,
    FetchedValue,
    ForeignKey,
    Identity,
    Integer,
    LargeBinary,
    Numeric,
    String,
    Table,
    Text,
    func,
    types,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    deferred,
    mapped_column,
    registry,
    relationship,
    synonym,
)

from tenure import Key, LoadError, Proxy, Resource, Spec
from tenure.models.values import MOST_LEVELS
from tests.fixtures.flights import (
    Airline,
    Airport,
    Flight,
    Leg,
    Member,
    Pilot,
    Steward,
    Tag,
    Trip,
)

OK: dict[str, Any] = {"number": 1, "airline": {"code": "AA", "name": "n"}}


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Point:
    """Pydantic does not know it."""


class PointType(types.UserDefinedType[Point]):
    cache_ok = True

    @property
    def python_type(self) -> type[Point]:
        return Point


class Secret(types.TypeDecorator[Any]):
    """Does not say what its values are."""

    impl = String(10)
    cache_ok = True


def lower(value: str, info: ValidationInfo) -> str:
    return value.lower() + str((info.context or {}).get("suffix", ""))


Money = Annotated[Decimal, mapped_column(Numeric(5, 1))]


class Everything(Resource, Base):
    """A column of every kind."""

    __tablename__ = "everything"

    key: Mapped[int] = mapped_column("db_key", Identity(), primary_key=True)
    text: Mapped[str] = mapped_column(String(3))
    long: Mapped[str | None] = mapped_column(Text)
    low: Mapped[Annotated[str, AfterValidator(lower)] | None]
    many: Mapped[list[int] | None] = mapped_column(JSON)
    anything: Mapped[Any] = mapped_column(JSON, nullable=True)
    money: Mapped[Money | None]
    rough: Mapped[float | None] = mapped_column(Numeric(5, 1, asdecimal=False))
    colour: Mapped[Colour | None]
    letter: Mapped[str | None] = mapped_column(Enum("a", "b", name="letter"))
    token: Mapped[uuid.UUID | None]
    day: Mapped[date | None]
    moment: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    raw: Mapped[bytes | None] = mapped_column(LargeBinary)
    flag: Mapped[bool | None]
    point = mapped_column(PointType, nullable=True)
    secret = mapped_column(Secret, nullable=True)
    lenient: Mapped[str] = mapped_column(nullable=True)
    strict: Mapped[str | None] = mapped_column(nullable=False, default="x")
    by_server: Mapped[str] = mapped_column(server_default="x")
    by_trigger: Mapped[str] = mapped_column(server_default=FetchedValue())
    large: Mapped[str | None] = deferred(mapped_column())
    length: Mapped[int] = column_property(func.length("x"))
    _private: Mapped[str | None] = mapped_column("private")
    other = synonym("text")

    @hybrid_property
    def upper(self) -> str:
        return self.text.upper()


def problems(entity: type[Resource], data: Any) -> list[tuple[str, tuple[Any, ...]]]:
    """Give kind and place of what is wrong with *data*."""
    with pytest.raises(ValidationError) as caught:
        entity.resource_validate(data)
    assert entity.__name__ == caught.value.title
    return [(error["type"], error["loc"]) for error in caught.value.errors()]


def held(instance: Any) -> dict[str, Any]:
    return {k: v for k, v in instance.__dict__.items() if k != "_sa_instance_state"}


class TestColumns:
    @pytest.mark.parametrize(
        ("name", "given", "expected"),
        [
            ("low", "ABC", "abc"),
            ("many", ["1", 2], [1, 2]),
            ("anything", [{"x": 1}], [{"x": 1}]),
            ("money", "12.5", Decimal("12.5")),
            ("rough", "1234567.5", 1234567.5),
            ("colour", "r", Colour.RED),
            ("letter", "a", "a"),
            ("token", "8" * 32, uuid.UUID("8" * 32)),
            ("day", "2024-05-01", date(2024, 5, 1)),
            ("moment", "2024-05-01T12:00Z", datetime(2024, 5, 1, 12, tzinfo=UTC)),
            ("raw", "abc", b"abc"),
            ("flag", "yes", True),
            ("secret", object, object),
            ("long", None, None),
            ("lenient", None, None),
        ],
    )
    def test_accepted(self, name: str, given: Any, expected: Any) -> None:
        """A value is brought to the type of its attribute."""
        found = Everything.resource_validate({"text": "abc", name: given})

        assert {"text": "abc", name: expected} == held(found)

    @pytest.mark.parametrize(
        ("name", "given", "kind"),
        [
            ("text", "abcd", "string_too_long"),
            ("text", None, "string_type"),
            ("many", ["x"], "int_parsing"),
            ("money", "12345", "decimal_whole_digits"),
            ("money", "1.25", "decimal_max_places"),
            ("colour", "x", "enum"),
            ("letter", "x", "literal_error"),
            ("point", 1, "is_instance_of"),
            ("strict", None, "string_type"),
            ("upper", "x", "extra_forbidden"),
            ("other", "x", "extra_forbidden"),
            ("length", 1, "extra_forbidden"),
            ("_private", "x", "extra_forbidden"),
            ("db_key", 1, "extra_forbidden"),
            ("key", 7, "extra_forbidden"),
        ],
    )
    def test_refused(self, name: str, given: Any, kind: str) -> None:
        """What the column could not hold is refused where it is."""
        [(found, loc)] = problems(Everything, {"text": "abc", name: given})

        assert (kind, name) == (found, loc[0])

    def test_instance_of_a_type_unknown_to_pydantic(self) -> None:
        """A type that Pydantic has no schema for is taken as it is."""
        point = Point()

        assert (
            point is Everything.resource_validate({"text": "x", "point": point}).point
        )

    def test_required(self) -> None:
        """Required is what neither database nor class nor mapper gives a value."""
        assert [("missing", ("text",))] == problems(Everything, {})

    def test_json(self) -> None:
        """Text of JSON gives the same."""
        found = Everything.resource_validate_json('{"text": "x", "colour": "g"}')

        assert {"text": "x", "colour": Colour.GREEN} == held(found)
        with pytest.raises(ValidationError, match="Invalid JSON"):
            Everything.resource_validate_json("{")

    def test_context(self) -> None:
        """Pydantic's context arrives at the validators of attributes."""
        adapter = TypeAdapter(Everything)
        found = adapter.validate_python(
            {"text": "x", "low": "A"}, context={"suffix": "!"}
        )

        assert "a!" == found.low

    def test_validates(self) -> None:
        """What a method with ``@validates`` refuses is refused at its attribute."""
        assert [("value_error", ("airline", "flights", 0, "number"))] == problems(
            Flight,
            {
                "number": 1,
                "airline": {
                    "code": "AA",
                    "name": "n",
                    "flights": [{"number": -1, "notes": []}],
                },
            },
        )

    def test_computed(self) -> None:
        """What the database computes is no input."""
        assert [("extra_forbidden", ("twice",))] == problems(Flight, OK | {"twice": 2})

    @pytest.mark.parametrize("data", [None, 1, "x", [], [("text", "x")], object()])
    def test_no_mapping(self, data: Any) -> None:
        """A payload is a mapping or an instance."""
        assert [("dict_type", ())] == problems(Everything, data)

    def test_not_mapped(self) -> None:
        """A class that is not mapped says so."""

        class Nothing(Resource):
            pass

        with pytest.raises(LoadError, match="not a mapped class"):
            Nothing.resource_validate({})


class TestRelationships:
    @pytest.mark.parametrize("given", ["AA", {"code": "AA"}, {"id": 1}, 1])
    def test_reference(self, given: Any) -> None:
        """A scalar, or exactly the attributes of one identifier, is a reference."""
        found = Flight.resource_validate({"number": 1, "airline": given})

        assert type(found.airline) is Proxy
        assert "airline_id" not in held(found)

    def test_value(self) -> None:
        """Anything more is a value, with what refers to it on the other side."""
        found = Flight.resource_validate(OK)

        assert type(found.airline) is Airline
        assert [found] == found.airline.flights

    def test_proxy(self) -> None:
        """A proxy is a reference, too."""
        proxy = Flight.resource_validate({"number": 1, "airline": "AA"}).airline
        found = Flight.resource_validate({"number": 2, "airline": proxy})

        assert proxy is found.airline

    def test_foreign_key(self) -> None:
        """The foreign key may be given instead."""
        found = Flight.resource_validate({"number": 1, "airline_id": 7})

        assert {"number": 1, "airline_id": 7} == held(found)

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"number": 1}, [("missing", ("airline",))]),
            (OK | {"airline_id": 7}, [("link_twice", ("airline_id",))]),
            (OK | {"airline_id": None}, [("int_type", ("airline_id",))]),
            (OK | {"origin": None, "origin_id": 1}, [("link_twice", ("origin_id",))]),
            (OK | {"airline": None}, [("reference_type", ("airline",))]),
            (OK | {"airline": Airport()}, [("reference_key", ("airline",))]),
            (OK | {"airline": []}, [("reference_key", ("airline",))]),
            (OK | {"airline": {}}, [("missing", ("airline", "code")), ("missing", ("airline", "name"))]),
            (OK | {"airline": {"code": "AA", "x": 1}}, [("missing", ("airline", "name")), ("extra_forbidden", ("airline", "x"))]),
            (OK | {"legs": None}, [("list_type", ("legs",))]),
            (OK | {"legs": [None]}, [("reference_type", ("legs", 0))]),
            (OK | {"legs": [{"position": "x"}]}, [("int_parsing", ("legs", 0, "position"))]),
            (OK | {"legs": [{"position": 1, "flight_id": 1, "note": "x"}]}, [("link_twice", ("legs", 0, "flight_id"))]),
            (OK | {"legs": [{"position": 1, "flight": OK, "note": "x"}]}, [("link_twice", ("legs", 0, "flight"))]),
        ],
    )  # fmt: skip
    def test_refused(self, given: Any, expected: Any) -> None:
        """What is wrong is named where it is, however deep."""
        assert expected == problems(Flight, given)

    def test_both_are_named(self) -> None:
        """The error says what may be given."""
        with pytest.raises(ValidationError, match="airline or airline_id is required"):
            Flight.resource_validate({"number": 1})

    def test_filled_by_the_value_around(self) -> None:
        """A value inside of a collection needs no foreign key."""
        found = Flight.resource_validate(OK | {"legs": [{"position": 1}]})

        assert [found] == [leg.flight for leg in found.legs]

    def test_circle(self) -> None:
        """A payload that contains itself is refused."""
        circle: dict[str, Any] = {"code": "x", "note": "n"}
        circle["parent"] = {"code": "y", "note": "n", "parent": circle}

        assert [("recursion_loop", ("parent", "parent"))] == problems(Trip, circle)

    def test_the_same_twice(self) -> None:
        """The same mapping at two places is two values."""
        part = {"code": "x", "note": "n"}
        found = Trip.resource_validate(
            {"code": "y", "note": "n", "parts": [part, part]}
        )

        assert 2 == len(set(found.parts))

    def test_deep(self) -> None:
        """Deep nesting is fine up to a limit, and an error of the payload beyond."""
        payload: dict[str, Any] = {"code": "x", "note": "n"}
        for _ in range(MOST_LEVELS - 1):
            payload = {"code": "x", "note": "n", "parent": payload}

        assert Trip.resource_validate(payload).parent is not None
        [(kind, loc)] = problems(Trip, {"code": "x", "note": "n", "parent": payload})
        assert ("too_many_levels", MOST_LEVELS) == (kind, len(loc))
        for _ in range(sys.getrecursionlimit()):
            payload = {"code": "x", "note": "n", "parent": payload}
        assert [kind] == [kind for kind, _ in problems(Trip, payload)]

    def test_back_references(self) -> None:
        """Values that know each other from both sides are no circle."""
        airline = {
            "code": "AA",
            "name": "n",
            "flights": [{"number": 2, "tags": [{"name": "x", "colour": "red"}]}],
        }
        found = Flight.resource_validate({"number": 1, "airline": airline})

        assert [2, 1] == [flight.number for flight in found.airline.flights]
        [tag] = found.airline.flights[0].tags
        assert [2] == [flight.number for flight in tag.flights]

    def test_any_mapped_class(self) -> None:
        """A class that a resource leads to need not be one itself."""
        assert not issubclass(Tag, Resource)
        found = Flight.resource_validate(
            OK | {"tags": [{"name": "x", "colour": "red"}]}
        )

        assert {"red"} == {tag.colour for tag in found.tags}


class Wrapped(BaseModel):
    flight: Flight


class TestTypes:
    def test_field(self) -> None:
        """The class is a type of fields; places in it are places in the payload."""
        assert 1 == Wrapped.model_validate({"flight": OK}).flight.number
        with pytest.raises(ValidationError) as caught:
            Wrapped.model_validate({"flight": OK | {"airline": {"code": 1}}})

        assert {("flight", "airline")} == {e["loc"][:2] for e in caught.value.errors()}

    def test_field_of_json(self) -> None:
        """And of JSON."""
        text = json.dumps({"flight": OK})

        assert "AA" == Wrapped.model_validate_json(text).flight.airline.code

    def test_many(self) -> None:
        """A list of payloads is validated in one call."""
        with pytest.raises(ValidationError) as caught:
            Flight.resource_validate_many([OK, {"number": "x", "airline": "AA"}])

        assert [(1, "number")] == [error["loc"] for error in caught.value.errors()]
        assert 2 == len(Flight.resource_validate_many([OK, OK]))

    def test_instance(self) -> None:
        """An instance is given as it is; a subclass is one."""
        pilot = Pilot(name="Ann")

        assert pilot is Member.resource_validate(pilot)
        assert [("dict_type", ())] == problems(Steward, pilot)

    def test_before_the_mappers(self) -> None:
        """A class may refer to one that does not exist yet."""

        class Other(DeclarativeBase):
            pass

        class One(Resource, Other):
            __tablename__ = "one"
            id: Mapped[int] = mapped_column(primary_key=True)
            two_id: Mapped[int] = mapped_column(ForeignKey("two.id"))
            two: Mapped[Any] = relationship("Two")

        class Model(BaseModel):
            one: One

        class Two(Other):
            __tablename__ = "two"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None]

        found = Model.model_validate({"one": {"two": {"name": "x"}}})

        assert type(found.one.two) is Two

    def test_built_once(self) -> None:
        """All validation of a class is done by one validator."""
        first = Flight.__get_pydantic_core_schema__(Flight, None)  # type: ignore[arg-type]  # not asked
        again = Flight.__get_pydantic_core_schema__(Flight, None)  # type: ignore[arg-type]  # not asked

        assert first["function"]["function"] is again["function"]["function"]  # type: ignore[typeddict-item]  # of this kind


class TestHierarchies:
    def test_discriminator(self) -> None:
        """The discriminator says of which class a value is, nested as well."""
        found = Flight.resource_validate(
            OK | {"crew": [{"kind": "steward", "name": "Bo", "language": "fr"}]}
        )

        assert type(found.crew["Bo"]) is Steward
        assert "steward" == found.crew["Bo"].kind

    def test_class_itself(self) -> None:
        """Without one, a value is of the class itself."""
        assert "pilot" == Pilot.resource_validate({"name": "Ann"}).kind

    @pytest.mark.parametrize(
        ("entity", "given", "expected"),
        [
            (Member, {"name": "x"}, ("abstract_entity", ("kind",))),
            (Member, {"kind": "x", "name": "x"}, ("unknown_entity", ("kind",))),
            (Member, {"kind": [], "name": "x"}, ("unknown_entity", ("kind",))),
            (Pilot, {"kind": "steward", "name": "x"}, ("unknown_entity", ("kind",))),
            (Pilot, {"name": "x", "language": "x"}, ("extra_forbidden", ("language",))),
        ],
    )
    def test_refused(self, entity: type[Resource], given: Any, expected: Any) -> None:
        """What is no class of the hierarchy is refused, and so is none."""
        assert [expected] == problems(entity, given)

    def test_identity_is_that_of_the_class(self) -> None:
        """Whatever way it is written, the attribute is what SQLAlchemy says."""

        class Local(DeclarativeBase):
            pass

        class Numbered(Resource, Local):
            __tablename__ = "numbered"
            __mapper_args__: ClassVar = {
                "polymorphic_on": "kind",
                "polymorphic_identity": 1,
            }
            id: Mapped[int] = mapped_column(primary_key=True)
            kind: Mapped[int]

        class Second(Numbered):
            __mapper_args__: ClassVar = {"polymorphic_identity": 2}

        found = Numbered.resource_validate({"kind": "2"})

        assert {"kind": 2} == held(found)
        assert type(found) is Second

    def test_abstract_names_the_others(self) -> None:
        """The error lists what the discriminator may say."""
        with pytest.raises(ValidationError, match=r"abstract.*'pilot', 'steward'"):
            Member.resource_validate({"name": "x"})


class Data(MappedAsDataclass, DeclarativeBase):
    pass


class Owner(Data):
    __tablename__ = "owner"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    code: Mapped[str] = mapped_column(unique=True)


class Item(Resource, Data, kw_only=True):
    """Its ``__init__`` needs what a payload gives as a reference."""

    __tablename__ = "item"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int] = mapped_column(ForeignKey("owner.id"), init=False)
    owner: Mapped[Owner] = relationship()
    state: Mapped[str] = mapped_column(default="new")
    made: Mapped[list[int]] = mapped_column(JSON, default_factory=lambda: [1])


metadata = Base.metadata
mappers = registry()
ship_table = Table(
    "ship",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("ship_name", String(4), nullable=False),
    Column("harbour_id", ForeignKey("harbour.id")),
)
harbour_table = Table(
    "harbour",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(10), nullable=False, unique=True),
)


class Harbour:
    pass


class Ship(Resource):
    """Mapped by hand."""

    name: Any
    harbour: Any

    def __init__(self) -> None:
        raise AssertionError("SQLAlchemy makes instances without this")


mappers.map_imperatively(Harbour, harbour_table)
mappers.map_imperatively(
    Ship,
    ship_table,
    properties={
        "name": ship_table.c.ship_name,
        "harbour": relationship(Harbour, backref="ships"),
    },
)


class TestMappings:
    def test_dataclass(self) -> None:
        """Required arguments, ``init=False`` and ``kw_only`` are no hindrance."""
        found = Item.resource_validate({"name": "x", "owner": "abc"})

        assert {"name": "x", "made": [1]} == {
            name: value for name, value in held(found).items() if name != "owner"
        }
        assert type(found.owner) is Proxy

    def test_dataclass_requires(self) -> None:
        """What its columns require is required."""
        assert [("missing", ("name",))] == problems(Item, {"owner": "abc"})
        assert [("missing", ("owner",))] == problems(Item, {"name": "x"})

    def test_imperative(self) -> None:
        """A class mapped by hand has the types of its columns."""
        found = Ship.resource_validate({"name": "abc", "harbour": "x"})

        assert {"name": "abc"} == {
            name: value for name, value in held(found).items() if name != "harbour"
        }
        assert [("string_too_long", ("name",))] == problems(Ship, {"name": "abcde"})
        assert [("missing", ("harbour", "name"))] == problems(
            Ship, {"name": "abc", "harbour": {"ships": []}}
        )


class TestJsonSchema:
    def test_attributes(self) -> None:
        """Types and constraints are there, and what is required."""
        schema = TypeAdapter(Everything).json_schema()
        properties = schema["properties"]

        assert "Everything" == schema["title"]
        assert ["text"] == schema["required"]
        assert schema["additionalProperties"] is False
        assert 3 == properties["text"]["maxLength"]
        assert [{"enum": ["a", "b"], "type": "string"}, {"type": "null"}] == (
            properties["letter"]["anyOf"]
        )
        assert properties.keys().isdisjoint({"length", "upper", "other", "_private"})

    def test_relationships(self) -> None:
        """A relationship is a reference or a value, and links are given once."""
        schema = TypeAdapter(Flight).json_schema()
        definitions = schema["$defs"]
        schema = definitions["Flight"]
        reference, value = schema["properties"]["airline"]["anyOf"]

        assert "Reference to a Airline, by key" == reference["description"]
        assert {"$ref": "#/$defs/Airline"} == value
        assert [{"required": ["airline"]}, {"required": ["airline_id"]}] == schema[
            "oneOf"
        ]
        assert ["code", "name"] == definitions["Airline"]["required"]
        inside = definitions["FlightInAirlineFlights"]
        assert inside["properties"].keys().isdisjoint({"airline", "airline_id"})
        assert "oneOf" not in inside

    def test_recursive(self) -> None:
        """Classes that lead to themselves are described once."""
        schema = Model.model_json_schema()

        assert {"Trip", "TripInTripParts"} == schema["$defs"].keys()
        assert {"$ref": "#/$defs/Trip"} == schema["properties"]["one"]

    def test_hierarchy(self) -> None:
        """A class with subclasses is any of them."""
        schema = TypeAdapter(Member).json_schema()

        assert [
            {"$ref": "#/$defs/PilotOnly"},
            {"$ref": "#/$defs/StewardOnly"},
        ] == schema["anyOf"]

    def test_written(self) -> None:
        """What is written is described as it is written."""
        schema = TypeAdapter(Flight).json_schema(mode="serialization")

        assert "$defs" not in schema
        assert schema["properties"].keys() == set(schema["required"])
        assert {"twice", "airline_id"} < schema["properties"].keys()
        assert "airline" not in schema["properties"]

    def test_both(self) -> None:
        """A model describes what it takes and what it writes apart."""
        taken = Wrapped.model_json_schema()["$defs"]["Flight"]
        written = Wrapped.model_json_schema(mode="serialization")["$defs"]["Flight"]

        assert "airline" in taken["properties"]
        assert "airline" not in written["properties"]


class Model(BaseModel):
    one: Trip
    two: list[Trip]


class TestSerialization:
    def test_new(self) -> None:
        """Of an instance that is no row yet, what was set is written."""
        found = Flight.resource_validate(OK | {"price": "1.50"})

        assert {"number": 1, "price": Decimal("1.50")} == TypeAdapter(
            Flight
        ).dump_python(found)
        assert (
            '{"flight":{"number":1,"price":"1.50"}}'
            == Wrapped(flight=found).model_dump_json()
        )

    def test_chosen(self) -> None:
        """``include`` and ``exclude`` reach inside."""
        wrapped = Wrapped(flight=Flight.resource_validate(OK | {"tail": "N1"}))

        assert {"flight": {"tail": "N1"}} == wrapped.model_dump(
            exclude={"flight": {"number"}}
        )
        assert {"flight": {"number": 1}} == wrapped.model_dump(
            include={"flight": {"number"}}
        )

    def test_subclass(self) -> None:
        """An instance is written as what it is."""
        pilot = Pilot.resource_validate({"name": "Ann", "hours": 1})

        assert {"kind": "pilot", "name": "Ann", "hours": 1} == TypeAdapter(
            Member
        ).dump_python(pilot)

    def test_deferred(self) -> None:
        """What is not loaded with its row is not written with it, either."""
        written = TypeAdapter(Everything).json_schema(mode="serialization")

        assert written["properties"].keys().isdisjoint({"large", "_private", "other"})
        assert "length" in written["properties"]

    def test_union(self) -> None:
        """In a union it is written by the class that it is of."""
        found = Trip.resource_validate({"code": "x"})

        assert {"code": "x"} == TypeAdapter(Flight | Trip).dump_python(found)


class TestSpecs:
    def test_recursive(self) -> None:
        """A spec may lead to itself."""
        found = TripIn.model_validate({"code": "1", "parts": [{"code": "2"}]})

        assert ["2"] == [part.code for part in found.to_resource().parts]
        assert {"TripIn"} == TripIn.model_json_schema()["$defs"].keys()

    def test_errors_are_where_they_were(self) -> None:
        """Places are those of the payload."""
        with pytest.raises(ValidationError) as caught:
            TripIn.model_validate({"code": "1", "parts": [{"code": 2}]})

        assert [("parts", 0, "code")] == [e["loc"] for e in caught.value.errors()]
        assert "TripIn" == caught.value.title

    def test_resource_inside(self) -> None:
        """A spec may hold a resource, or one of its kind by key."""

        class LegIn(Spec[Leg]):
            position: int
            flight: Flight | Annotated[Flight, Key("number")]

        assert 1 == LegIn.model_validate({"position": 1, "flight": OK}).flight.number
        by_key = LegIn.model_validate({"position": 1, "flight": 7})
        assert type(by_key.flight) is Proxy


class TripIn(Spec[Trip]):
    code: str
    parts: list[TripIn] | None = None
