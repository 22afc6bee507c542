"""
Run SQLAlchemy's own tests with our classes, and without, and compare.

    python -m tools.compat            2.0 and 2.1, on SQLite and PostgreSQL
    python -m tools.compat --quick    the core, on the installed one and SQLite

The tests are fetched with pip and stay out of the repository. Ends with 0 only if
each test comes out the same, or is in DIFFERENCES with the reason.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.servers import ServerFailed, ServerUnavailable

from .environments import (
    DATABASES,
    ROOT,
    SERIES,
    Environment,
    Place,
    PreparationFailed,
    installed,
    newest,
    places,
    snapshot,
)
from .runs import Regression, Run, RunBroken, compare, not_ours, run
from .selection import (
    ALL_SESSIONS,
    ASYNC_SESSIONS,
    DIFFERENCES,
    QUICK_SESSIONS,
    SESSIONS,
    Difference,
)

# Of the project's own tests, those about what SQLAlchemy of that version has.
OWN_TESTS = ("tests/test_surface.py", "tests/test_parity.py")

COLUMNS = "{:<11} {:<11} {:>6} {:>6} {:>6} {:>12} {:>6} {:>9} {:>6} {:>8}"


@dataclass(frozen=True)
class Setting:
    """One version of SQLAlchemy on one database."""

    environment: Environment
    database: str
    place: Place
    path: str
    processes: int

    def run(self, modules: Sequence[str], *, swap: bool) -> Run:
        """Run *modules*, those for asyncio on a driver that waits."""
        done = Run()
        for waits in (False, True):
            chosen = [name for name in modules if (name in ASYNC_SESSIONS) is waits]
            if not chosen:
                continue
            say(
                f"SQLAlchemy {self.environment.version}, {self.database}, "
                f"{'asyncio' if waits else 'sync'}, {'ours' if swap else 'plain'}"
            )
            done += run(
                self.environment,
                self.place,
                chosen,
                path=self.path,
                waits=waits,
                swap=swap,
                processes=self.processes,
            )
        return done


@dataclass
class Result:
    """What came out."""

    setting: Setting
    ours: Run = field(default_factory=Run)
    plain: Run | None = None
    regressions: list[Regression] = field(default_factory=list)
    seen: set[Difference] = field(default_factory=set)
    broken: str = ""

    @property
    def wrong(self) -> list[str]:
        """What makes us fail, a line or more for each."""
        if self.broken:
            return [self.broken]
        return [
            f"{found.test}\n    {found.was} with SQLAlchemy's, {found.now} with ours"
            + (f": {last_words(found.text)}" if found.text else "")
            for found in self.regressions
        ] + not_ours(self.ours.made)


def attempt(setting: Setting, options: argparse.Namespace) -> Result:
    """Run what the options say; one that breaks does not keep us from the next."""
    try:
        if options.quick:
            return measure_quickly(setting)
        return measure(setting, ALL_SESSIONS if options.all else SESSIONS)
    except RunBroken as error:
        return Result(setting, broken=str(error))


def measure(setting: Setting, modules: Sequence[str]) -> Result:
    """Run all of it without ours and with."""
    modules = [*modules, *ASYNC_SESSIONS]
    plain, ours = (setting.run(modules, swap=swap) for swap in (False, True))
    found, seen = compare(plain.outcomes, ours.outcomes, DIFFERENCES)
    return Result(setting, ours, plain, found, seen)


def measure_quickly(setting: Setting) -> Result:
    """Run the core with ours; without, only the modules where something failed."""
    modules = [*QUICK_SESSIONS, *ASYNC_SESSIONS]
    ours = setting.run(modules, swap=True)
    found, seen = compare({}, ours.failed, DIFFERENCES)
    if not found:
        return Result(setting, ours, None, found, seen)
    suspects = {regression.test.partition("::")[0] for regression in found}
    plain = setting.run([name for name in modules if name in suspects], swap=False)
    again = {
        test: outcome
        for test, outcome in ours.outcomes.items()
        if test.partition("::")[0] in suspects
    }
    found, _ = compare(plain.outcomes, again, DIFFERENCES)
    return Result(setting, ours, plain, found, seen)


def check_own(environment: Environment) -> bool:
    """Run our own tests of the surface beside that version of SQLAlchemy."""
    say(f"SQLAlchemy {environment.version}, {' '.join(OWN_TESTS)}")
    # Their conftest brings databases, for which more would have to be installed.
    command = [
        *(str(environment.python), "-m", "pytest", "--noconftest", "--quiet"),
        *("-p", "no:cacheprovider", "--tb=line", *OWN_TESTS),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"SQLAlchemy {environment.version}:\n{done.stdout[-6000:]}{done.stderr}")
    return not done.returncode


def check_differences(results: Sequence[Result]) -> bool:
    """Say whether each known difference still is one somewhere."""
    seen = {known for result in results for known in result.seen}
    gone = [known for known in DIFFERENCES if known not in seen]
    for known in gone:
        print(f"\nout of date in DIFFERENCES: {known.test}")
    return not gone


def show(results: Sequence[Result]) -> None:
    """Print a line for each result, then what is wrong."""
    print(
        COLUMNS.format(
            *("SQLAlchemy", "database", "tests", "plain", "ours"),
            *("regressions", "known", "sessions", "async", "seconds"),
        )
    )
    for result in results:
        plain, ours = result.plain, result.ours
        print(
            COLUMNS.format(
                *(result.setting.environment.version, result.setting.database),
                len(ours.outcomes),
                *("-" if plain is None else plain.passed, ours.passed),
                *(len(result.regressions), len(result.seen)),
                *(ours.made["Session"], ours.made["AsyncSession"]),
                round(ours.seconds + (plain.seconds if plain else 0)),
            )
        )
    for known in sorted(
        {known for result in results for known in result.seen}, key=str
    ):
        print(f"\nknown: {known.test}\n    {known.reason}")
    for result in results:
        for wrong in result.wrong:
            setting = result.setting
            print(f"\n{setting.environment.version}, {setting.database}: {wrong}")


def last_words(text: str) -> str:
    """Give the error's own line of a traceback."""
    lines = text.rpartition("\n  File ")[2].splitlines()
    return next((line for line in lines[1:] if line[:1].strip()), text[-200:])


def say(what: str) -> None:
    """Tell those who wait."""
    print(f"compat: {what}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Parse, then run: 0 if nothing is worse, 1 if so, 2 if it could not begin."""
    parser = argparse.ArgumentParser(
        prog="compat", description="Run SQLAlchemy's tests with our classes."
    )
    parser.add_argument("--quick", action="store_true", help="the core, for each push")
    parser.add_argument(
        "--all", action="store_true", help="all of SQLAlchemy's test/orm and test/ext"
    )
    parser.add_argument("--sqlalchemy", action="append", choices=SERIES)
    parser.add_argument("--db", action="append", choices=DATABASES)
    parser.add_argument(
        *("-n", "--numprocesses"), type=int, default=min(os.cpu_count() or 1, 8)
    )
    options = parser.parse_args(arguments)
    if options.quick and (options.all or options.sqlalchemy):
        parser.error("--quick takes the installed SQLAlchemy, and a part of it")
    # The server and pytest have to end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return work(options)
    except (PreparationFailed, ServerFailed, ServerUnavailable) as error:
        say(str(error))
        return 2


def work(options: argparse.Namespace) -> int:
    """Prepare, run, show."""
    names = options.db or (DATABASES[:1] if options.quick else DATABASES)
    if options.quick:
        environments = [installed()]
    else:
        environments = [newest(series) for series in options.sqlalchemy or SERIES]
    with places(names) as found, snapshot() as path:
        settings = [
            Setting(environment, name, place, path, options.numprocesses)
            for environment in environments
            for name, place in found.items()
        ]
        results = [attempt(setting, options) for setting in settings]
    show(results)
    fine = not any(result.wrong for result in results)
    if options.quick:
        return int(not fine)
    # Beside the installed SQLAlchemy "make test" runs them.
    own = [check_own(environment) for environment in environments]
    everywhere = not options.sqlalchemy and not options.db
    current = not (fine and everywhere) or check_differences(results)
    return int(not (fine and all(own) and current))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
