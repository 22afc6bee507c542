"""
Throw-away PostgreSQL and MariaDB servers for tests and benchmarks.

Run a command with one, found in ``TENURE_TEST_POSTGRESQL``::

    python tools/servers.py postgresql -- pytest --db postgresql
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

START_SECONDS = 60
STOP_SECONDS = 30

MEMORY = Path("/dev/shm")  # noqa: S108 - mkdtemp picks a name of its own in it
# A container may have as little as 64 MB there, and a server wants 40 when empty.
MEMORY_BYTES = 2 * 1024**3

# What a unix socket's path may be long on Linux, less the longest name we use.
LONGEST_DIRECTORY = 107 - len("/.s.PGSQL.65535")


class ServerUnavailable(Exception):
    """The server is not installed here; the message says what to install."""


class ServerFailed(RuntimeError):
    """The server is installed, but did not do as it was told."""


@dataclass
class Server(ABC):
    """
    A server in a directory of its own, reachable from this machine only.

    The fields tell another process all it needs to use or to end the server.
    """

    directory: Path
    port: int
    durable: bool = False
    pid: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    name: ClassVar[str]
    scheme: ClassVar[str]
    superuser: ClassVar[str]
    # Whom to run as when we are root: both servers refuse, or should.
    account: ClassVar[str]
    polite: ClassVar[signal.Signals]

    @classmethod
    @abstractmethod
    def find(cls) -> Path:
        """
        Name the program to run.

        Raises:
            ServerUnavailable: It is not installed.
        """

    @abstractmethod
    def create_database(self, name: str) -> None:
        """Make an empty database."""

    @abstractmethod
    def _initialise(self) -> None: ...

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _ready(self) -> bool: ...

    @classmethod
    def create(cls, *, durable: bool = False, keep: bool = False) -> Self:
        """
        Make and start a server.

        Args:
            durable: Write to disk as a real server does, for benchmarks.
            keep: Leave it running when this process ends; somebody else closes it.

        Raises:
            ServerUnavailable: It is not installed.
            ServerFailed: It does not start.
        """
        cls.find()
        server = cls(_directory(cls.name, durable=durable), _free_port(), durable)
        try:
            user = server._user()
            if user is not None:
                os.chown(server.directory, user.pw_uid, user.pw_gid)
            server._initialise()
            server.start()
        except BaseException:
            server.close()
            raise
        if not keep:
            atexit.register(server.close)
        return server

    def url(self, driver: str | None = None, database: str | None = None) -> str:
        """Give the URL for SQLAlchemy's *driver*, or for libpq and the like."""
        scheme = f"{self.scheme}+{driver}" if driver else self.scheme
        return f"{scheme}://{self.superuser}@127.0.0.1:{self.port}/{database or ''}"

    def start(self) -> None:
        """
        Start the server, also after :meth:`stop` or :meth:`kill`.

        Raises:
            ServerFailed: It ended, or took longer than ``START_SECONDS``.
        """
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the tests; we end the server after them.
                start_new_session=True,
                **self._surroundings(),
            )
        self.pid = self._process.pid
        _wait(lambda: self._ready() or not self.alive(), START_SECONDS)
        if not (self.alive() and self._ready()):
            raise ServerFailed(f"{self.name} did not start:\n{self._last_words()}")

    def stop(self) -> None:
        """End the server politely and keep its data; does nothing if it has ended."""
        if self.alive():
            os.kill(self.pid, self.polite)
            if not _wait(lambda: not self.alive(), STOP_SECONDS):
                self.kill()

    def kill(self) -> None:
        """End the server and its children at once, as a power cut would."""
        if not self.alive():
            return
        # A stopped parent neither replaces nor mourns its children.
        os.kill(self.pid, signal.SIGSTOP)
        family = [*_children(self.pid), self.pid]
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _wait(lambda: not (self.alive() or any(map(_command_line, family))), 10)

    def close(self) -> None:
        """End the server and remove its directory."""
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def alive(self) -> bool:
        """Say whether our process runs, and not one that has got its id since."""
        if self._process is not None:
            return self._process.poll() is None
        return bool(self.pid) and str(self.directory) in _command_line(self.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _user(self) -> pwd.struct_passwd | None:
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(self.account)
        except KeyError:
            return pwd.getpwnam("nobody")

    def _surroundings(self) -> dict[str, Any]:
        user = self._user()
        # Nothing of ours: PGDATA and the like would reach the server.
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
        here: dict[str, Any] = {"cwd": self.directory, "env": environment}
        if user is not None:
            here |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        return here

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            **self._surroundings(),
        )
        if done.returncode:
            raise ServerFailed(
                f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}"
            )

    def _last_words(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-2000:]


class PostgreSQL(Server):
    name = "postgresql"
    scheme = "postgresql"
    superuser = "postgres"
    account = "postgres"
    polite = signal.SIGINT

    @classmethod
    def find(cls) -> Path:
        # Debian keeps server programs out of PATH, one folder per version.
        versions = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
        folders = sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
        if config := shutil.which("pg_config"):
            told = subprocess.check_output([config, "--bindir"], text=True)
            folders.append(Path(told.strip()))
        # initdb, because a client's package has a folder there, too.
        initdb = _which("initdb", folders, "postgresql")
        return initdb.with_name("postgres")

    def url(self, driver: str | None = None, database: str | None = None) -> str:
        return super().url(driver, database or "postgres")

    def create_database(self, name: str) -> None:
        quoted = name.replace('"', '""')
        self._run(
            self.find().with_name("psql"),
            *("-X", "-q", "-d", self.url(), "-c", f'CREATE DATABASE "{quoted}"'),
        )

    def close(self) -> None:
        # A killed server leaves shared memory behind; its successor frees it.
        if not self.alive() and self._pid_file.exists():
            with contextlib.suppress(ServerFailed):
                self.start()
        super().close()

    def _initialise(self) -> None:
        command: list[str | Path] = [
            *(self.find().with_name("initdb"), "-N", "-A", "trust"),
            *("-U", self.superuser, "-E", "UTF8", "-D", self._data),
        ]
        try:
            self._run(*command, "--locale=C.UTF-8")
        except ServerFailed:
            # Not every system has that locale; every one has this.
            self._run(*command, "--locale=C")

    def _command(self) -> list[str]:
        options = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": self.directory,
            "max_connections": 200,
        }
        if not self.durable:
            options |= dict.fromkeys(
                ("fsync", "synchronous_commit", "full_page_writes"), "off"
            )
            # It may lie in memory, and every new database is written to the log.
            options["max_wal_size"] = "128MB"
        settings = [f"--{name}={value}" for name, value in options.items()]
        return [str(self.find()), "-D", str(self._data), *settings]

    def _ready(self) -> bool:
        # As pg_ctl does: the last line of that file is the server's state.
        try:
            lines = self._pid_file.read_text().split()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self.pid)] and lines[-1] == "ready"

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    @property
    def _pid_file(self) -> Path:
        return self._data / "postmaster.pid"


class MariaDB(Server):
    name = "mariadb"
    scheme = "mysql"
    superuser = "root"
    account = "mysql"
    polite = signal.SIGTERM

    @classmethod
    def find(cls) -> Path:
        return _which("mariadbd", [], "mariadb-server")

    def create_database(self, name: str) -> None:
        quoted = name.replace("`", "``")
        self._run(
            _which("mariadb", [], "mariadb-client"),
            *("--no-defaults", "--protocol=tcp", "--host=127.0.0.1"),
            *(f"--port={self.port}", f"--user={self.superuser}"),
            f"--execute=CREATE DATABASE `{quoted}`",
        )

    def _initialise(self) -> None:
        self._run(
            _which("mariadb-install-db", [], "mariadb-server"),
            *("--no-defaults", f"--datadir={self.directory / 'data'}"),
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
        )

    def _command(self) -> list[str]:
        options = [
            *(f"--datadir={self.directory / 'data'}", f"--tmpdir={self.directory}"),
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self.directory / 'pid'}",
            *("--bind-address=127.0.0.1", f"--port={self.port}"),
            *("--skip-name-resolve", "--character-set-server=utf8mb4"),
        ]
        if not self.durable:
            options += ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0"]
        return [str(self.find()), "--no-defaults", *options]

    def _ready(self) -> bool:
        # The port opens early; the greeting comes when the server is ready.
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                return bool(connection.recv(1))
        except OSError:
            return False


SERVERS: dict[str, type[Server]] = {kind.name: kind for kind in (PostgreSQL, MariaDB)}


def _which(program: str, folders: Sequence[Path], package: str) -> Path:
    # An ordinary user has no sbin in PATH, and mariadbd lives there.
    places = [*folders, os.environ.get("PATH", os.defpath), "/usr/sbin"]
    found = shutil.which(program, path=os.pathsep.join(map(str, places)))
    if found is None:
        raise ServerUnavailable(f"no {program!r} here; install the package {package}")
    return Path(found)


def _directory(name: str, *, durable: bool) -> Path:
    """Make a folder the server's user can reach; in memory unless *durable*."""
    prefix = f"tenure-{name}-"
    parent = Path(tempfile.gettempdir()).resolve()
    # On a slow disk a CREATE DATABASE takes 200 ms, in memory 10.
    if not durable and _room(MEMORY) >= MEMORY_BYTES:
        parent = MEMORY
    # Root's own temporary folder may be closed to others.
    closed = any(not path.stat().st_mode & 0o001 for path in (parent, *parent.parents))
    too_long = len(str(parent / prefix)) + len("12345678") > LONGEST_DIRECTORY
    if too_long or (closed and os.geteuid() == 0):
        parent = Path("/tmp")  # noqa: S108 - mkdtemp picks a name of its own in it
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    directory.chmod(0o755)
    return directory


def _room(folder: Path) -> int:
    return shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return met


def _command_line(pid: int) -> str:
    """Give the words a process was started with; none if it has ended."""
    if Path("/proc/self/cmdline").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    told = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(told, capture_output=True, text=True, check=False).stdout


def _children(pid: int) -> list[int]:
    try:
        told = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except FileNotFoundError:
        command = ["pgrep", "-P", str(pid)]
        told = subprocess.run(
            command, capture_output=True, text=True, check=False
        ).stdout
    return [int(child) for child in told.split()]


def _leave(signum: int, _: object) -> None:
    # Once is enough: a second signal must not interrupt the clearing away.
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + signum)


def _run_with(
    kinds: Sequence[type[Server]], command: list[str], *, durable: bool
) -> int:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _leave)
    environment = dict(os.environ)
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            server = stack.enter_context(kind.create(durable=durable))
            server.create_database("tenure")
            variable = f"TENURE_TEST_{kind.name.upper()}"
            environment[variable] = server.url(database="tenure")
        process = subprocess.Popen(command, env=environment)
        try:
            code = process.wait()
        except SystemExit:
            process.terminate()
            process.wait()
            raise
    return code if code >= 0 else 128 - code


def main(arguments: Sequence[str]) -> int:
    """Parse, then run; the command's own exit code is ours."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="servers.py",
        usage="%(prog)s [--durable] SERVER [SERVER] -- COMMAND ...\n"
        "       %(prog)s --find SERVER",
        description="Run a command with throw-away database servers.",
    )
    parser.add_argument("server", nargs="+", choices=sorted(SERVERS))
    parser.add_argument("--durable", action="store_true", help="write to disk in full")
    parser.add_argument("--find", action="store_true", help="only look for programs")
    options = parser.parse_args(arguments[:split])
    command = list(arguments[split + 1 :])
    kinds = [SERVERS[name] for name in options.server]
    if not command and not options.find:
        parser.error("no command after --")
    try:
        if options.find:
            for kind in kinds:
                print(kind.find())
            return 0
        return _run_with(kinds, command, durable=options.durable)
    except (ServerUnavailable, ServerFailed) as error:
        print(f"servers.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
