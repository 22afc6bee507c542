"""Validating in columns gives what validating row by row gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    field_validator,
    model_validator,
)
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from tenure import SESSION_BULK_CONTEXT, Key, Proxy, Ref, Spec
from tenure.bulk.load.link import make_references
from tenure.bulk.load.validate import RowValidator
from tenure.references.proxy import Registry
from tests.fixtures.models import Country, Region, Seat


class Plain(BaseModel):
    number: int = 0
    home: Ref[Country]
    away: Ref[Country] | None = None
    region: Annotated[Region | None, Key(country="home", zone="number")]


class Composed(BaseModel):
    """The key of a region that has to be there, of what need not be."""

    home: Ref[Country] | None
    number: int | None = None
    region: Annotated[Region, Key(country="home", zone="number")]


class Named(BaseModel):
    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    home: Annotated[Country, Key("code")] = Field(validation_alias="h")
    away: Annotated[Country | None, Key("id")] = Field(None, alias="a")
    seat: Ref[Seat] | None = None

    @model_validator(mode="before")
    @classmethod
    def na_is_null(cls, row: Any) -> Any:
        return {key: None if v == "NA" else v for key, v in row.items()}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    number: int
    home: Ref[Country] = None  # type: ignore[assignment]  # a default is not validated
    away: Annotated[Country | None, Key()]


class Own(DeclarativeBase):
    pass


class Match(Own):
    __tablename__ = "match"

    number: Mapped[int] = mapped_column(primary_key=True)
    home_id: Mapped[int] = mapped_column(ForeignKey(Country.id))
    away_id: Mapped[int | None] = mapped_column(ForeignKey(Country.id))
    home: Mapped[Country] = relationship(Country, foreign_keys=home_id)
    away: Mapped[Country | None] = relationship(Country, foreign_keys=away_id)


class Bound(Spec[Match]):
    number: int = 0
    home: Ref[Country]
    away: Ref[Country] | None = None


MODELS: list[type[BaseModel]] = [Plain, Composed, Named, Strict, Bound]

scalars = st.sampled_from(["fr", "de", "1", "x", "NA", None])
others = st.sampled_from(
    [
        1,
        1.0,
        True,
        [1],
        {},
        {"code": "fr"},
        {"id": 1},
        {"id": "x"},
        {"nope": 1},
        {"hall": "a", "row": None},
        {"hall": None, "row": None},
        {"country": {"code": "fr"}, "zone": 1},
    ]
)
names = ("number", "home", "away", "region", "seat", "h", "a")


def rows(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[dict[str, Any]]]:
    numbers = st.sampled_from([0, 1, "1", "x", None])
    row = st.fixed_dictionaries(
        {}, optional={n: numbers if n == "number" else values for n in names}
    )
    return st.lists(row, max_size=6)


class Bulk:
    """All that validation asks of the current bulk."""

    def __init__(self) -> None:
        self._registry = Registry()


@contextmanager
def bulk() -> Iterator[None]:
    token = SESSION_BULK_CONTEXT.set(Bulk())  # type: ignore[arg-type]  # see there
    try:
        yield
    finally:
        SESSION_BULK_CONTEXT.reset(token)


#: For each row its values, or what is wrong with it: field and kind.
Results = list[dict[str, Any] | set[tuple[str, str]]]


def by_row(model: type[BaseModel], given: list[Any], *, as_json: bool) -> Results:
    found: Results = []
    for row in given:
        try:
            valid = (
                model.model_validate_json(row) if as_json else model.model_validate(row)
            )
        except ValidationError as error:
            found.append(_problems(model, error))
        else:
            found.append({name: valid.__dict__[name] for name in model.model_fields})
    return found


def by_column(model: type[BaseModel], given: list[Any], *, as_json: bool) -> Results:
    validator = RowValidator(model, json=as_json)
    found: Results = []
    good: dict[int, dict[str, Any]] = {}
    for place, row in enumerate(given):
        try:
            held = validator.values(validator.validate(row))
        except ValidationError as error:
            found.append(_problems(model, error))
        else:
            good[place] = {name: held[name] for name in model.model_fields}
            found.append(good[place])
    fields = list(model.model_fields)
    columns: list[Any] = [[good[n][name] for n in good] for name in fields]
    refused = make_references(validator, fields, columns) if good else []
    for place, values in zip(good, zip(*columns, strict=True), strict=True):
        found[place] = dict(zip(fields, values, strict=True))
    wrong: dict[int, set[tuple[str, str]]] = {}
    for place, name, problem in refused:
        # A row is rejected for the first thing that is wrong with it.
        wrong.setdefault(list(good)[place], {(name, problem.type)})
    for place, problems in wrong.items():
        found[place] = problems
    return found


def _problems(model: type[BaseModel], error: ValidationError) -> set[tuple[str, str]]:
    # An error may name the field or its alias.
    fields = {
        str(info.validation_alias): name for name, info in model.model_fields.items()
    }
    places = [(problem["loc"], problem["type"]) for problem in error.errors()]
    return {
        (fields.get(str(loc[0]), str(loc[0])) if loc else "", kind)
        for loc, kind in places
    }


def compared(model: type[BaseModel], given: list[Any], *, as_json: bool) -> None:
    with bulk():
        expected = by_row(model, given, as_json=as_json)
        found = by_column(model, given, as_json=as_json)
    for one, other in zip(expected, found, strict=True):
        if isinstance(one, dict):
            assert one == other
        else:
            # A row is refused for its fields before its references are looked at.
            assert isinstance(other, set)
            assert other
            assert other <= one


@pytest.mark.parametrize("model", MODELS)
class TestAlike:
    def test_is_deferred(self, model: type[BaseModel]) -> None:
        """These models leave their references for later."""
        assert RowValidator(model, json=False).later

    @given(given=rows(scalars | others))
    def test_mappings(self, model: type[BaseModel], given: list[Any]) -> None:
        """Of mappings the same rows are good, with the same values."""
        compared(model, given, as_json=False)

    @given(given=rows(scalars))
    def test_texts(self, model: type[BaseModel], given: list[Any]) -> None:
        """So they are where every reference is a text, as in a CSV file."""
        compared(model, given, as_json=False)

    @given(given=rows(scalars | others))
    def test_json(self, model: type[BaseModel], given: list[Any]) -> None:
        """And of JSON."""
        compared(model, [json.dumps(row) for row in given], as_json=True)


def test_no_json() -> None:
    """What is no JSON, or no object, is refused the same way."""
    compared(Plain, ["", "{", "[]", "1", "null", '{"home": "fr"}'], as_json=True)


class WithAfter(BaseModel):
    home: Ref[Country]

    @model_validator(mode="after")
    def look(self) -> WithAfter:
        seen.append(self.home)
        return self


class WithWrap(BaseModel):
    home: Ref[Country]

    @model_validator(mode="wrap")
    @classmethod
    def look(cls, value: Any, handler: Any) -> Any:
        found = handler(value)
        seen.append(found.home)
        return found


class WithPostInit(BaseModel):
    home: Ref[Country]

    def model_post_init(self, context: Any, /) -> None:
        seen.append(self.home)


class WithInit(BaseModel):
    home: Ref[Country]

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        seen.append(self.home)


class WithFieldValidator(BaseModel):
    home: Ref[Country]

    @field_validator("home")
    @classmethod
    def look(cls, value: Any) -> Any:
        seen.append(value)
        return value


class WithOtherField(BaseModel):
    home: Ref[Country]
    number: int

    @field_validator("number")
    @classmethod
    def look(cls, value: Any, info: Any) -> Any:
        seen.append(info.data["home"])
        return value


class WithFactory(BaseModel):
    home: Ref[Country]
    number: Any = Field(default_factory=lambda data: seen.append(data["home"]))


def _look(value: Any) -> Any:
    seen.append(value)
    return value


class WithAnnotated(BaseModel):
    home: Annotated[Ref[Country], AfterValidator(_look)]


class WithWrapped(BaseModel):
    home: Annotated[Ref[Country], WrapValidator(lambda v, handler: _look(handler(v)))]


seen: list[Any] = []


class TestLooking:
    @pytest.mark.parametrize(
        "model",
        [
            WithAfter,
            WithWrap,
            WithPostInit,
            WithInit,
            WithFieldValidator,
            WithOtherField,
            WithFactory,
            WithAnnotated,
            WithWrapped,
        ],
    )
    def test_sees_proxies(self, model: type[BaseModel]) -> None:
        """Whatever a model does with its references, it does with proxies."""
        seen.clear()
        row = {"home": "fr"} | ({"number": 1} if model is WithOtherField else {})
        with bulk():
            [found] = by_column(model, [row], as_json=False)

        assert [Proxy] == [type(value) for value in seen]
        assert isinstance(found, dict)
        assert seen[0] is found["home"]

    def test_before(self) -> None:
        """What runs before a reference gets what came in."""

        class Model(BaseModel):
            home: Annotated[Ref[Country], BeforeValidator(str.lower)]
            away: Ref[Country]

        compared(Model, [{"home": "FR", "away": "de"}], as_json=False)

    def test_subclass(self) -> None:
        """A model that inherits its fields is as good as one that has them."""

        class Model(Plain):
            extra: int = 1

        compared(Model, [{"home": "fr"}, {"home": None}], as_json=False)

    def test_collections(self) -> None:
        """References inside of collections are made with the row."""

        class Model(BaseModel):
            many: list[Ref[Country]]
            one: Ref[Country]

        compared(Model, [{"many": ["fr", 1], "one": "fr"}], as_json=False)
