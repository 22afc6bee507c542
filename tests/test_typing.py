"""What type checkers infer for references is what the contract says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tenure

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "typing_tests").glob("*.py"))

REVEALED = """
from typing import Annotated

from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tenure import AsyncSession, Database, Key, Ref, Session, Spec
from tenure import async_session_manager, session_manager


class Base(DeclarativeBase): ...


class City(Base):
    __tablename__ = "city"

    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[str]


class Payload(BaseModel):
    city: Ref[City]
    maybe: Ref[City] | None
    keyed: Annotated[City, Key("code")]
    several: dict[str, list[Ref[City]]]
    together: set[Ref[City]]


class CityIn(Spec[City]):
    code: str


def sync_code(payload: Payload, session: Session) -> None:
    reveal_type(payload.city)  # City
    reveal_type(payload.city.code)  # str
    reveal_type(payload.maybe)  # City | None
    reveal_type(payload.keyed)  # City
    reveal_type(payload.several)  # dict[str, list[City]]
    reveal_type(payload.together)  # set[City]
    reveal_type(CityIn(code="x").to_resource())  # City
    with session.bulk() as bulk:
        reveal_type(bulk.get(City))  # list[City]
        reveal_type(bulk.get(City, resolved=True, scope="values"))  # list[City]
        reveal_type(bulk.resolve())  # Resolution
        reveal_type(bulk.commit())  # BulkReport


async def async_code(session: AsyncSession) -> None:
    async with session.bulk() as bulk:
        reveal_type(bulk.get(City))  # list[City]
        reveal_type(await bulk.resolve())  # Resolution
"""
WRONG = """

def wrong_code(payload: Payload, session: Session) -> None:
    payload.city = "PAR"  # assignment
    payload.city.nope  # attr-defined
    session.bulk().resolve(strategy="bound")  # arg-type
    AsyncSession().bulk().flush(on_conflict="overwrite")  # unused-coroutine arg-type
    CityIn(code=1)  # arg-type
    session_manager(auto_comit=True)  # call-overload
    async_session_manager(using=3)  # call-overload
    Database("sqlite://").session_manager(new="yes")  # arg-type
    Database("sqlite://", on_missing="never")  # arg-type
"""


def revealed(text: str) -> list[str]:
    """Give what was revealed, with names of classes as they are written."""
    found = re.findall(r'(?:Revealed type is|Type of .* is) "(.*)"', text)
    return [re.sub(r"[\w.]+\.(?=\w)", "", each) for each in found]


def check(checker: str, text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Let *checker* read *text*."""
    program = Path(sys.executable).with_name(checker)
    if not program.exists() or (checker == "pyright" and not shutil.which("node")):
        pytest.skip(f"no {checker}")
    page = folder / "page.py"
    page.write_text(text, "utf-8")
    options = (
        ["--strict", "--no-error-summary", f"--cache-dir={folder / 'cache'}"]
        if checker == "mypy"
        else ["--pythonpath", sys.executable]
    )
    return subprocess.run(
        [program, *options, page],
        cwd=folder,
        env=os.environ | {"MYPYPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_references(checker: str, tmp_path: Path) -> None:
    """To a checker a reference is what it refers to."""
    done = check(checker, REVEALED, tmp_path)

    assert re.findall(r"# (.*)", REVEALED) == revealed(done.stdout)
    assert 0 == done.returncode, done.stdout


def test_all_names() -> None:
    """Each public name is in the programs that both checkers read."""
    pages = "".join(page.read_text() for page in PAGES)

    assert [] == [
        name for name in tenure.__all__ if not re.search(rf"\b{name}\b", pages)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pyright(page: Path, tmp_path: Path) -> None:
    """Pyright finds what ``make types`` lets mypy find in them."""
    done = check("pyright", page.read_text(), tmp_path)

    assert 0 == done.returncode, done.stdout


def test_wrong_use(tmp_path: Path) -> None:
    """What a reference is not, a checker says as well."""
    done = check("mypy", REVEALED + WRONG, tmp_path)
    lines = re.findall(r"page\.py:(\d+): error: .*\[(.*)\]", done.stdout)
    found: dict[str, list[str]] = {}
    for line, code in lines:
        found.setdefault(line, []).append(code)

    assert [each.split() for each in re.findall(r"  # (.*)", WRONG)] == list(
        found.values()
    )
