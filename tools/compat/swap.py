"""
A pytest plugin for SQLAlchemy's test suite: our classes in the place of its own.

Loaded with ``-p``, before SQLAlchemy's conftest and tests take the names. Writes a
line of JSON for each test to the file named by ``TENURE_COMPAT_REPORT``; swaps when
``TENURE_COMPAT_SWAP`` is "yes".
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import orm as sqlalchemy_orm
from sqlalchemy.ext import asyncio as sqlalchemy_asyncio

import tenure

REPORT = Path(os.environ["TENURE_COMPAT_REPORT"])
SWAP = os.environ["TENURE_COMPAT_SWAP"] == "yes"

PLAIN_SESSION = sqlalchemy_orm.Session

# SQLAlchemy's class: ours.
CLASSES: dict[type[Any], type[Any]] = {
    PLAIN_SESSION: tenure.Session,
    sqlalchemy_orm.scoped_session: tenure.scoped_session,
    sqlalchemy_asyncio.AsyncSession: tenure.AsyncSession,
    sqlalchemy_asyncio.async_scoped_session: tenure.async_scoped_session,
}

# What the tests have made since we last asked: by name, "plain " before SQLAlchemy's.
made: Counter[str] = Counter()


def swap() -> None:
    """Put our classes wherever SQLAlchemy's modules name its own."""
    for plain, ours in CLASSES.items():
        # Ours may be made in steps.
        strangers = [c for c in plain.__subclasses__() if not issubclass(ours, c)]
        # ShardedSession, say: its base has to be ours, so it has to come later.
        if strangers:
            raise RuntimeError(f"too late to swap {plain}: there is {strangers}")
    # Ours hold on to SQLAlchemy's under other names, in modules of their own.
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] != "sqlalchemy":
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, type) and value in CLASSES:
                setattr(module, attribute, CLASSES[value])
    # Their classes get ours as a base, or look for ours.
    for name in ("baked", "horizontal_shard", "serializer"):
        importlib.import_module(f"sqlalchemy.ext.{name}")
    # A test reads in its namespace which methods SQLAlchemy's class has, to try each
    # of them on the sessions it makes; nobody makes one of the name here.
    sqlalchemy_orm.session.Session = PLAIN_SESSION  # type: ignore[misc]  # a class
    for factory in (
        sqlalchemy_orm.sessionmaker,
        sqlalchemy_asyncio.async_sessionmaker,
    ):
        init: Any = factory.__init__
        defaults: dict[str, Any] = init.__kwdefaults__
        defaults["class_"] = CLASSES[defaults["class_"]]


def count(plain: type[Any], ours: type[Any]) -> None:
    """Count the objects made of both classes."""
    init = plain.__init__

    @functools.wraps(init)
    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        made[ours.__name__ if isinstance(self, ours) else f"plain {ours.__name__}"] += 1
        init(self, *args, **kwargs)

    plain.__init__ = counting


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Attach to each test what it has made; xdist brings it to the first process."""
    item.user_properties.append(("made", dict(made)))
    made.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down how each phase of a test went."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    passed_a_phase = report.passed and report.when != "call"
    line = {
        "test": report.nodeid,
        "outcome": None if passed_a_phase else outcome(report),
        "text": report.longreprtext[-2000:] if report.failed else "",
        "made": dict(report.user_properties).get("made", {}),
    }
    if line["outcome"] or line["made"]:
        with REPORT.open("a") as file:
            print(json.dumps(line), file=file)


def outcome(report: pytest.TestReport) -> str:
    """Say "passed", "skipped", "failed", "xfailed" or "xpassed"."""
    if hasattr(report, "wasxfail"):
        return "xpassed" if report.passed else "xfailed"
    return report.outcome


for pair in CLASSES.items():
    count(*pair)
if SWAP:
    swap()
