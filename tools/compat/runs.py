"""One run of SQLAlchemy's tests, and what two runs differ in."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .environments import Environment, Place
from .selection import Difference

# Far more than any run takes: for one that waits for itself.
LONGEST_RUN = 30 * 60
# pytest then shows where each thread is.
LONGEST_TEST = 300

OURS = ("Session", "AsyncSession", "scoped_session", "async_scoped_session")

# A test may have more than one, as when its teardown fails; the worse counts.
SEVERITY = ("passed", "xfailed", "skipped", "xpassed", "failed")


class RunBroken(RuntimeError):
    """pytest did not get as far as a result for each test."""


@dataclass(frozen=True)
class Outcome:
    """How a test went, and what it said if it failed."""

    how: str
    text: str = ""


@dataclass
class Run:
    """What a run has brought; runs add up."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    made: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __add__(self, other: Run) -> Run:
        return Run(
            self.outcomes | other.outcomes,
            self.made + other.made,
            self.seconds + other.seconds,
        )

    @property
    def passed(self) -> int:
        """How many tests passed."""
        return sum(outcome.how == "passed" for outcome in self.outcomes.values())

    @property
    def failed(self) -> dict[str, Outcome]:
        """What failed."""
        return {
            test: outcome
            for test, outcome in self.outcomes.items()
            if outcome.how == "failed"
        }


@dataclass(frozen=True)
class Regression:
    """A test that went well, or was not run, with SQLAlchemy's classes only."""

    test: str
    was: str
    now: str
    text: str = ""


def run(
    environment: Environment,
    place: Place,
    modules: Sequence[str],
    *,
    path: str,
    waits: bool,
    swap: bool,
    processes: int,
) -> Run:
    """
    Run SQLAlchemy's *modules*.

    Args:
        path: Where to import ours from.
        waits: On an asyncio driver.
        swap: With our classes.

    Raises:
        RunBroken: pytest ended early, or not at all.
    """
    missing = [name for name in modules if not (environment.source / name).exists()]
    if missing:
        raise RunBroken(f"SQLAlchemy {environment.version} has no {missing}")
    # SQLAlchemy's own addopts are for people, and stop after 250 failures.
    command = [
        *(str(environment.python), "-m", "pytest", "-o", "addopts="),
        *("-p", "tools.compat.swap", "-p", "no:cacheprovider", "--quiet"),
        *("-o", f"faulthandler_timeout={LONGEST_TEST}", "--tb=native"),
        *(f"--numprocesses={processes}", *place(waits), *modules),
    ]
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        report, log = Path(temporary) / "report", Path(temporary) / "log"
        surroundings = _surroundings(report, path, swap=swap)
        with log.open("wb") as file:
            code = _wait_for(command, environment.source, surroundings, file.fileno())
        # 1: some tests failed.
        if code not in (0, 1):
            said = log.read_text(errors="replace")[-3000:]
            raise RunBroken(f"pytest ended with {code}:\n{said}")
        return read(report.read_text().splitlines(), time.monotonic() - started)


def _surroundings(report: Path, path: str, *, swap: bool) -> dict[str, str]:
    return {
        **{name: os.environ[name] for name in os.environ if name != "PYTEST_ADDOPTS"},
        "PYTHONPATH": path,
        # Or their conftest puts the unpacked library before the installed one.
        "PYTHONNOUSERSITE": "1",
        # Their conftest sets it as well; ours imports SQLAlchemy before.
        "SQLALCHEMY_WARN_20": "true",
        "TENURE_COMPAT_REPORT": str(report),
        "TENURE_COMPAT_SWAP": "yes" if swap else "no",
    }


def _wait_for(
    command: list[str], folder: Path, environment: dict[str, str], output: int
) -> int:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A group of its own: pytest's workers have to end with it.
        start_new_session=True,
    )
    try:
        return process.wait(LONGEST_RUN)
    except subprocess.TimeoutExpired:
        raise RunBroken(f"no end after {LONGEST_RUN} s: {' '.join(command)}") from None
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read(lines: Iterable[str], seconds: float = 0.0) -> Run:
    """Read what the plugin has written."""
    done = Run(seconds=seconds)
    for line in lines:
        entry = json.loads(line)
        done.made.update(entry["made"])
        test, how = entry["test"], entry["outcome"]
        if how is None:
            continue
        before = done.outcomes.get(test)
        if before is None or SEVERITY.index(before.how) < SEVERITY.index(how):
            done.outcomes[test] = Outcome(how, entry["text"])
    return done


def compare(
    plain: Mapping[str, Outcome],
    ours: Mapping[str, Outcome],
    differences: Sequence[Difference],
) -> tuple[list[Regression], set[Difference]]:
    """Give the regressions, and which of the known *differences* there were."""
    regressions: list[Regression] = []
    seen: set[Difference] = set()
    nothing = Outcome("not run")
    for test in sorted({*plain, *ours}):
        was, now = plain.get(test, nothing), ours.get(test, nothing)
        # What passes now is no regression, whatever it was.
        if now.how in ("passed", was.how):
            continue
        known = [known for known in differences if known.covers(test, now.text)]
        seen.update(known)
        if not known:
            regressions.append(Regression(test, was.how, now.how, now.text))
    return regressions, seen


def not_ours(made: Mapping[str, int]) -> list[str]:
    """Say what is wrong with the objects the tests have made, if they were swapped."""
    wrong = [f"no {name} of ours was made" for name in OURS if not made.get(name)]
    return wrong + [
        f"{number} of SQLAlchemy's were made: {name.removeprefix('plain ')}"
        for name, number in made.items()
        if name.startswith("plain ")
    ]
