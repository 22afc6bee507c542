"""What is validated field by field is what validating row by row gives."""

from __future__ import annotations

import csv
import enum
import io
import json
import uuid
from collections.abc import Callable, Iterable
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from sqlalchemy import JSON, inspect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import LoadReport, Spec
from tenure.bulk.load.by_column import Columns
from tenure.bulk.load.layout import Layouts
from tenure.bulk.load.report import Rejects, RejectsFile
from tenure.bulk.load.validate import Checker, RowValidator
from tenure.bulk.read import ReadOptions, Records


class Base(DeclarativeBase):
    pass


class Colour(enum.Enum):
    RED = "r"
    GREEN = "g"


class Thing(Base):
    __tablename__ = "thing"

    code: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int]
    price: Mapped[Decimal | None]
    day: Mapped[date | None]
    moment: Mapped[datetime | None]
    colour: Mapped[Colour | None]
    token: Mapped[uuid.UUID | None]
    tags: Mapped[Any] = mapped_column(JSON)


class Plain(Spec[Thing]):
    code: str
    number: int
    price: Decimal | None = None
    colour: Colour | None = Colour.RED


class Typed(Spec[Thing]):
    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    code: Annotated[str, Field(min_length=2, validation_alias="name")]
    number: Annotated[int, Field(gt=0)] = 1
    day: date | None = None
    moment: datetime | None
    token: uuid.UUID | int | None = None
    tags: list[int] | dict[str, int] = Field(default_factory=list)


class Strict(Spec[Thing]):
    model_config = ConfigDict(strict=True, extra="forbid", loc_by_alias=False)

    code: str = Field(validation_alias="name")
    number: int = Field(1, validation_alias="n")
    colour: Colour | None = None
    price: Decimal | None = Field(Decimal(-1), ge=0, validate_default=True)


class Called(Spec[Thing]):
    """With functions of its own, each called once for each value."""

    model_config = ConfigDict(extra="allow")

    calls: ClassVar[list[Any]] = []

    code: Annotated[str, AfterValidator(str.lower)]
    number: Annotated[int, BeforeValidator(lambda it: 0 if it == "NA" else it)]
    tags: Any = None

    @field_validator("number")
    @classmethod
    def count(cls, number: int) -> int:
        cls.calls.append(number)
        if number == -1:
            raise ValueError("too small")
        return number


class Changed(Spec[Thing]):
    """Does something with whole rows before."""

    calls: ClassVar[list[Any]] = []

    code: str
    number: int | None = 7
    price: Decimal | None = None
    tags: Any = None

    @model_validator(mode="before")
    @classmethod
    def known(cls, row: Any) -> Any:
        cls.calls.append(row)
        if not isinstance(row, dict):
            return row
        code = row.get("code")
        if code == "gone":
            raise ValueError("it is gone")
        if code == "1":
            return row | {"tags": [1]}
        if code == "-1" and "price" in row:
            return [row]
        return {name: None if each == "NA" else each for name, each in row.items()}


class Before(Spec[Thing]):
    code: str

    @model_validator(mode="before")
    @classmethod
    def look(cls, row: Any) -> Any:
        return row


class After(Spec[Thing]):
    code: str

    @model_validator(mode="after")
    def look(self) -> After:
        return self


class Aliased(Spec[Thing]):
    model_config = ConfigDict(populate_by_name=True)

    code: str = Field(validation_alias="name")


MODELS: list[type[Spec[Any]]] = [Plain, Typed, Strict, Called, Changed]

#: Fields whose default is made, or validated, for each row.
UNSHARED: dict[type, str] = {Typed: "tags", Strict: "price"}

NAMES = [
    "code",
    "name",
    "n",
    "number",
    "price",
    "colour",
    "day",
    "moment",
    "token",
    "tags",
    "other",
]
TEXTS = st.sampled_from(
    [
        "NA",
        "x",
        "gone",
        "1",
        "-1",
        "r",
        "g",
        "2020-01-01",
        "2020-01-01T10:00:00+02:00",
        "1.50",
        "12345678-1234-5678-1234-567812345678",
    ]
)
VALUES = TEXTS | st.sampled_from(
    [None, 0, 1, True, 1.0, 1.5, "", " a ", Colour.RED, Decimal("1.10"), [1], ["x"]]
)


def source_of(model: type[Spec[Any]], name: str) -> str:
    return str(model.model_fields[name].validation_alias or name)


def known_by(model: type[Spec[Any]]) -> list[str]:
    return [source_of(model, name) for name in model.model_fields]


def lets_others_be(model: type[Spec[Any]]) -> bool:
    return model.model_config.get("extra") in ("ignore", "allow")


def tables(
    model: type[Spec[Any]],
    values: st.SearchStrategy[Any],
    names: Iterable[str] = NAMES,
) -> st.SearchStrategy[tuple[list[str], list[list[Any]]]]:
    """Make headers that have what the model needs, most of them, and rows."""
    required = [
        source_of(model, name)
        for name, info in model.model_fields.items()
        if info.is_required()
    ]
    headers = st.lists(st.sampled_from(list(names)), unique=True).map(
        lambda names: list(dict.fromkeys([*required, *names]))
    )
    return headers.flatmap(
        lambda header: st.tuples(
            st.just(header),
            st.lists(
                st.lists(values, min_size=len(header), max_size=len(header)),
                min_size=1,
                max_size=6,
            ),
        )
    )


def checker(model: type[Spec[Any]], records: Records) -> Checker:
    layouts = Layouts(model, inspect(Thing), "raise", "sqlite")
    rejects = Rejects(LoadReport(into="Thing"), RejectsFile(None), records)
    validator = RowValidator(model, json=records.json)
    return Checker(records, layouts, rejects, validator)


def found(checker: Checker, records: list[Any]) -> tuple[Any, Any]:
    """Give the values of each line, and what is wrong with others."""
    values = {}
    for batch in checker.rows(records):
        for n, (line, _) in enumerate(batch.records):
            row = [column[n] for column in batch.fields]
            names = batch.layout.fields
            values[line] = {k: (type(v), v) for k, v in zip(names, row, strict=True)}
    return values, sorted(map(repr, checker.rejects.report.rejects))


def compared(
    model: type[Spec[Any]], opened: Callable[[], Records], *, is_fast: bool
) -> None:
    """
    Validate by column and by row: the same values, refusals and calls.

    Args:
        is_fast: Whether the first has to be possible.
    """
    calls = getattr(model, "calls", [])
    outcomes = []
    for by_column in (True, False):
        calls.clear()
        with opened() as records:
            each = checker(model, records)
            if not by_column:
                each.columns = None
            elif is_fast:
                each.validator.validate = _refuse
            outcomes.append((*found(each, records.take(100)), list(map(repr, calls))))
    assert outcomes[0] == outcomes[1]


def _refuse(row: Any) -> Any:
    raise AssertionError(f"{row} was validated by itself")


@pytest.mark.parametrize("model", MODELS)
class TestAlike:
    @given(data=st.data())
    def test_rows_of_one_header(
        self, model: type[Spec[Any]], data: st.DataObject
    ) -> None:
        """Rows that all have the same names, which the model knows or lets be."""
        header, rows = data.draw(tables(model, VALUES))
        mappings = [dict(zip(header, row, strict=True)) for row in rows]
        compared(
            model,
            lambda: Records(mappings, ReadOptions()),
            is_fast=model is not Changed
            and UNSHARED.get(model) in (None, *header)
            and (lets_others_be(model) or set(known_by(model)).issuperset(header)),
        )

    @given(data=st.data())
    def test_texts(self, model: type[Spec[Any]], data: st.DataObject) -> None:
        """Rows of a table, whose header says what their values are called."""
        names = NAMES if lets_others_be(model) else known_by(model)
        header, rows = data.draw(tables(model, TEXTS, names))
        file = io.StringIO(newline="")
        csv.writer(file).writerows([header, *rows])
        compared(
            model,
            lambda: Records(io.StringIO(file.getvalue()), ReadOptions(format="csv")),
            is_fast=UNSHARED.get(model) in (None, *header),
        )

    @given(data=st.data())
    def test_json(self, model: type[Spec[Any]], data: st.DataObject) -> None:
        """Lines of JSON, some of which are no objects."""
        values = VALUES.filter(lambda each: not isinstance(each, Decimal | Colour))
        # A list that is no row is called so in words of Python, or of JSON.
        names = [name for name in NAMES if name != "price" or model is not Changed]
        header, rows = data.draw(tables(model, values, names))
        lines = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        wrong = st.sampled_from(["[1]", "{", "null", '{"code": "x", "q": 1}'])
        lines += data.draw(st.lists(wrong, max_size=1))
        text = "\n".join(lines)
        compared(
            model,
            lambda: Records(io.StringIO(text), ReadOptions(format="jsonl")),
            is_fast=False,
        )

    @given(data=st.data())
    def test_any_rows(self, model: type[Spec[Any]], data: st.DataObject) -> None:
        """Rows some of which lack what others have."""
        header, rows = data.draw(tables(model, VALUES))
        mappings = [
            {
                name: value
                for name, value in zip(header, row, strict=True)
                if data.draw(st.sampled_from([True, True, True, False]))
            }
            for row in rows
        ]
        compared(model, lambda: Records(mappings, ReadOptions()), is_fast=False)


def test_all_are_rejected() -> None:
    """A batch of objects with names that nobody knows leaves no rows."""
    text = '{"code": "a", "q": 1}\n{"code": "b", "q": 2}\n'
    with Records(io.StringIO(text), ReadOptions(format="jsonl")) as records:
        each = checker(Changed, records)
        assert [] == each.rows(records.take(2))

    assert [1, 2] == [reject.line for reject in each.rejects.report.rejects]


def test_defaults_are_not_shared() -> None:
    """What can be changed afterwards each row has for itself."""

    class Shared(Spec[Thing]):
        code: str
        tags: list[int] = []  # noqa: RUF012  # Pydantic copies it

    with Records([{"code": "a"}, {"code": "b"}], ReadOptions()) as records:
        [batch] = checker(Shared, records).rows(records.take(2))

    one, other = batch.fields[batch.layout.fields.index("tags")]
    assert [] == one == other
    assert one is not other


@pytest.mark.parametrize("model", [Before, After, Aliased])
def test_is_done_by_row(model: type[Spec[Any]]) -> None:
    """What looks at whole rows is given them, and so are names in two places."""
    assert Columns.of(model, json=False, is_table=False) is None
