"""Which attributes name a row, and the order they are tried in."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Computed,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    func,
    insert_sentinel,
    inspect,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import LoadError
from tenure.mapping import is_filled, new_instance, property_of, reverse_sides
from tenure.mapping.keys import (
    column_adapter,
    columns_of,
    identifiers,
    mapper_of,
)
from tenure.mapping.unique import unique_column_sets
from tests.fixtures import kinds, models
from tests.fixtures.models import (
    Author,
    Book,
    Car,
    Country,
    Nickname,
    Person,
    Region,
    Sample,
    Seat,
    Site,
    Vehicle,
)


class Base(DeclarativeBase):
    pass


class Team(Base):
    """Several relationships with one reverse side, and some with none."""

    __tablename__ = "team"

    id: Mapped[int] = mapped_column(primary_key=True)
    players: Mapped[list[Player]] = relationship(back_populates="team")
    keepers: Mapped[list[Keeper]] = relationship(
        back_populates="team", overlaps="players"
    )
    everyone: Mapped[list[Player]] = relationship(viewonly=True)
    matches: Mapped[list[Match]] = relationship(backref="team")


class Player(Base):
    __tablename__ = "player"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column()
    team_id: Mapped[int] = mapped_column(ForeignKey("team.id"))
    team: Mapped[Team] = relationship(back_populates="players", overlaps="keepers")
    friend_id: Mapped[int | None] = mapped_column(ForeignKey("player.id"))
    friend: Mapped[Player | None] = relationship(
        back_populates="friends", remote_side=[id]
    )
    friends: Mapped[list[Player]] = relationship(back_populates="friend")
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "p"}  # noqa: RUF012  # as SQLAlchemy has it


class Keeper(Player):
    __mapper_args__ = {"polymorphic_identity": "k"}  # noqa: RUF012  # as SQLAlchemy has it


class Match(Base):
    __tablename__ = "match"

    id: Mapped[int] = mapped_column(primary_key=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("team.id"))


def spellings(entity: type[Any]) -> list[tuple[str, ...]]:
    return [shape.names for shape in identifiers(entity).spellings.values()]


class TestIdentifiers:
    def test_primary_key_first(self) -> None:
        """The primary key comes first, then each unique constraint."""
        assert (("id",), ("code",)) == identifiers(Country).names

    def test_declared_before_found(self) -> None:
        """``__identifiers__`` comes before what the table says."""
        assert (("id",), ("name",)) == identifiers(Nickname).names

    def test_never_null_is_better(self) -> None:
        """A key that is never null comes before one that may be."""
        assert (("id",), ("isbn",), ("barcode",)) == identifiers(Book).names

    def test_foreign_keys_either_way(self) -> None:
        """A foreign key may be spelled by its column or by its relationship."""
        assert [("id",), ("country_id", "zone"), ("country", "zone")] == spellings(
            Region
        )
        assert ("region", "code") in spellings(Site)

    def test_order_of_names_is_no_matter(self) -> None:
        """There is one shape for one set of attributes."""
        known = identifiers(Region)

        assert known.shape(("zone", "country")) is known.shape(("country", "zone"))

    def test_unknown_name(self) -> None:
        """A name that is no column and no many-to-one relationship is refused."""
        for name in ("nope", "books"):
            with pytest.raises(KeyError):
                identifiers(Author).part(name)

    def test_inherited(self) -> None:
        """Subclasses have the identifiers of their base, in either kind of table."""
        assert identifiers(Vehicle).names == identifiers(Car).names
        assert ("code",) in identifiers(Person).names

    def test_one_for_each_class(self) -> None:
        """They are worked out once."""
        assert identifiers(Country) is identifiers(mapper_of(Country))

    def test_arranged(self) -> None:
        """There is one shape for a set of attributes; values follow its order."""
        known = identifiers(Region)
        shape = known.shape(("zone", "country_id"))

        assert shape is known.shape(("country_id", "zone"))
        for names, values in (
            (("country_id", "zone"), (1, 2)),
            (
                ("zone", "country_id"),
                (2, 1),
            ),
        ):
            given = dict(zip(shape.names, shape.arranged(names, values), strict=True))
            assert {"country_id": 1, "zone": 2} == given

    def test_columns_of_a_nested_key(self) -> None:
        """A relationship stands for the columns of its foreign key."""
        shape = identifiers(Region).shape(("country", "zone"))

        assert ("country_id", "zone") == tuple(column.name for column in shape.columns)
        assert shape.is_nested
        assert not identifiers(Region).shape(("country_id", "zone")).is_nested

    def test_kept_by_the_database(self) -> None:
        """What is only declared is not kept unique by the database."""
        for entity, names, expected in (
            (Nickname, ["name"], False),
            (Nickname, ["id"], True),
            (Seat, ["row", "hall"], True),
            (Seat, ["row"], False),
        ):
            known = identifiers(entity)
            columns = columns_of(known.mapper.columns[name] for name in names)
            assert expected is known.is_unique_in_database(columns)

    def test_two_keys_in_one(self) -> None:
        """A composite foreign key is spelled by its relationship as a whole."""

        class Base(DeclarativeBase):
            pass

        class Room(Base):
            __tablename__ = "room"
            house: Mapped[int] = mapped_column(primary_key=True)
            number: Mapped[int] = mapped_column(primary_key=True)

        class Bed(Base):
            __tablename__ = "bed"
            __table_args__ = (UniqueConstraint("house", "number", "place"),)
            id: Mapped[int] = mapped_column(primary_key=True)
            house: Mapped[int] = mapped_column()
            number: Mapped[int] = mapped_column()
            place: Mapped[int]
            room: Mapped[Room] = relationship(
                primaryjoin=lambda: (
                    (Room.house == Bed.house) & (Room.number == Bed.number)
                ),
                foreign_keys=lambda: [Bed.house, Bed.number],
            )

        assert [
            ("id",),
            ("house", "number", "place"),
            ("room", "place"),
        ] == spellings(Bed)

    @pytest.mark.parametrize("given", [int, "Country", None, Country.__table__])
    def test_not_mapped(self, given: Any) -> None:
        """What is no mapped class is refused by name."""
        with pytest.raises(LoadError, match="is not a mapped class"):
            identifiers(given)


class TestUniqueColumns:
    def test_kinds_of_index(self) -> None:
        """Constraints and unique indexes count, but not over a part or a function."""
        table = Table(
            "t",
            MetaData(),
            Column("a", Integer, nullable=False),
            Column("b", Integer, nullable=False),
            Column("c", String),
            Column("d", Integer, ForeignKey("t.a")),
            UniqueConstraint("b", "a"),
        )
        Index("plain", table.c.d)
        Index("whole", table.c.c, unique=True)
        Index("part", table.c.a, unique=True, sqlite_where=table.c.b > 0)
        Index("function", func.lower(table.c.c), unique=True)

        assert [("b", "a"), ("c",)] == [
            tuple(column.name for column in columns)
            for columns in unique_column_sets(table)
        ]


class TestAdapters:
    def test_type_of_the_column(self) -> None:
        """A key is brought to the type of its column."""
        [column] = identifiers(Sample).part("token").columns
        adapter = column_adapter(column)
        text = "00000000-0000-0000-0000-000000000007"

        assert 7 == adapter.validate_python(text).int


class TestReverseSides:
    @pytest.mark.parametrize("base", [Base, models.Base, kinds.Base])
    def test_as_sqlalchemy(self, base: Any) -> None:
        """They are those that SQLAlchemy itself keeps in step."""
        mapper_of(next(iter(base.registry.mappers)).class_)
        relationships = {
            relationship
            for mapper in base.registry.mappers
            for relationship in mapper.relationships
        }

        assert relationships
        for each in relationships:
            assert each._reverse_property == set(reverse_sides(each)), each

    def test_several(self) -> None:
        """All that have one reverse side count."""
        team = mapper_of(Player).relationships["team"]

        assert {"players", "keepers"} == {each.key for each in reverse_sides(team)}

    def test_class_that_comes_later(self) -> None:
        """A class that is mapped later may have a relationship back to an old one."""
        others = mapper_of(Match).relationships["team"]
        before = reverse_sides(others)

        class Final(Match):
            host: Mapped[Team] = relationship(
                back_populates="matches", overlaps="team,matches"
            )

        matches = mapper_of(Team).relationships["matches"]
        host = mapper_of(Final).relationships["host"]
        assert before == reverse_sides(others)
        assert {others, host} == set(reverse_sides(matches))
        assert matches._reverse_property == {others, host}


class TestColumns:
    def test_property_of(self) -> None:
        """The attribute of a column, if the class has one."""
        mapper = mapper_of(Country)

        assert mapper.attrs["code"] is property_of(mapper, mapper.columns["code"])
        assert property_of(mapper, Column("other", Integer)) is None

    @pytest.mark.parametrize(
        ("column", "expected"),
        [
            (Column("c", Integer, nullable=False), False),
            (Column("c", Integer, nullable=True), True),
            (Column("c", Integer, nullable=False, default=1), True),
            (Column("c", Integer, nullable=False, server_default="1"), True),
            (Column("c", Integer, Computed("1"), nullable=False), True),
            (Column("c", Integer, Identity(), nullable=False), True),
            (insert_sentinel("c"), True),
        ],
    )
    def test_is_filled(self, column: Any, expected: bool) -> None:
        """What has a default of any kind, or may be null, need not be given."""
        Table("filled", MetaData(), column)

        assert expected is is_filled(mapper_of(Country), column)

    def test_is_filled_by_the_mapping(self) -> None:
        """Neither do numbers, versions, discriminators and keys of joined tables."""
        for entity, name in (
            (Country, "id"),
            (models.Account, "version"),
            (Vehicle, "kind"),
            (Person, "id"),
        ):
            mapper = mapper_of(entity)
            assert is_filled(mapper, mapper.columns[name]), name
        assert not is_filled(mapper_of(Country), Country.__table__.c.code)


def test_new_instance() -> None:
    """It is made without __init__, and knows of which class of a hierarchy it is."""
    instance = new_instance(mapper_of(Car))

    assert (Car, "car") == (type(instance), inspect(instance).dict["kind"])
    assert {"kind"} == set(inspect(instance).committed_state)
