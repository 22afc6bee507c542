"""
Rows put aside: they name a row of the same source that was not there yet.

They wait in a temporary database of their own, which keeps little of itself in
memory, and which can tell in what order they have to come back.
"""

from __future__ import annotations

import hashlib
import pickle
import sqlite3
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...references import Proxy, key_of, shape_of
from ..read import Record

_TABLES = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    CREATE TABLE waiting (line INTEGER PRIMARY KEY, record BLOB);
    CREATE TABLE has (
        token BLOB, line INTEGER, is_key INTEGER, PRIMARY KEY (token, line)
    ) WITHOUT ROWID;
    CREATE INDEX has_line ON has (line);
    CREATE TABLE wants (
        line INTEGER, token BLOB, PRIMARY KEY (line, token)
    ) WITHOUT ROWID;
    CREATE INDEX wants_token ON wants (token);
"""

# Rows that wait for no other row: not for their parent, and not for an earlier row
# with the same key. Then the rows that wait for those.
_FREE = """
    WITH RECURSIVE
    free (line) AS (
        SELECT line FROM waiting AS w
        WHERE NOT EXISTS (
            SELECT 1 FROM wants JOIN has USING (token) WHERE wants.line = w.line
        ) AND NOT EXISTS (
            SELECT 1 FROM has AS mine JOIN has AS other USING (token)
            WHERE mine.line = w.line AND mine.is_key AND other.is_key
            AND other.line < mine.line
        )
        ORDER BY line LIMIT :size
    ),
    near (line) AS (
        SELECT line FROM free
        UNION
        SELECT wants.line FROM near
        JOIN has ON has.line = near.line JOIN wants ON wants.token = has.token
    )
    SELECT line FROM near LIMIT :size
"""

# The row that each other row waits for.
_NEXT = """
    SELECT min(has.line) FROM wants JOIN has USING (token) WHERE wants.line = :line
    UNION ALL
    SELECT min(other.line) FROM has AS mine JOIN has AS other USING (token)
    WHERE mine.line = :line AND mine.is_key AND other.is_key AND other.line < mine.line
"""


class Aside:
    """Rows that wait for others, by their line; made when there is the first."""

    def __init__(self) -> None:
        self._count = 0
        self._database: Any = None
        #: What cannot be written down, such as references to instances.
        self._kept: dict[int, Record] = {}

    def __len__(self) -> int:
        return self._count

    def _all(self, sql: str, **parameters: Any) -> list[Any]:
        with _told():
            return list(self._database.execute(sql, parameters))

    def put(
        self,
        record: Record,
        *,
        key: bytes | None,
        has: Collection[bytes],
        wants: Collection[bytes],
    ) -> None:
        """
        Put a row aside.

        Args:
            key: What stands for its own key.
            has: What stands for each way to name it.
            wants: What stands for what it waits for.

        Raises:
            OSError: There is no room for it.
        """
        with _told():
            self._put(record, key, has, wants)
        self._count += 1

    def _put(
        self,
        record: Record,
        key: bytes | None,
        has: Collection[bytes],
        wants: Collection[bytes],
    ) -> None:
        if self._database is None:
            # An empty name makes a temporary file. Any thread may close it.
            self._database = sqlite3.connect(
                "", isolation_level=None, check_same_thread=False
            )
            self._database.executescript(_TABLES)
            # One transaction for all: nothing has to be durable.
            self._database.execute("BEGIN")
        line = record[0]
        written = None
        try:
            written = pickle.dumps(record)
        except Exception:  # noqa: BLE001  # each type has its own way to refuse
            self._kept[line] = record
        run, runs = self._database.execute, self._database.executemany
        run("INSERT INTO waiting VALUES (?, ?)", (line, written))
        tokens = {*has, key} - {None}
        runs(
            "INSERT INTO has VALUES (?, ?, ?)",
            [(token, line, token == key) for token in tokens],
        )
        runs("INSERT INTO wants VALUES (?, ?)", [(line, token) for token in set(wants)])

    def remove(self, lines: Iterable[int]) -> None:
        """Forget rows that are settled; unknown ones are no error."""
        if not self._count:
            return
        settled = [(line,) for line in lines]
        for table in ("waiting", "has", "wants"):
            with _told():
                cursor = self._database.executemany(
                    f"DELETE FROM {table} WHERE line = ?",  # of the tuple
                    settled,
                )
            if table == "waiting":
                self._count -= cursor.rowcount

    def is_expected(self, token: bytes) -> bool:
        """Whether a row that waits is what *token* stands for."""
        return self._count > 0 and bool(
            self._all("SELECT 1 FROM has WHERE token = :token LIMIT 1", token=token)
        )

    def earlier(self, key: bytes | None, line: int) -> list[int]:
        """Return the lines before *line* that wait and have the same key."""
        if not self._count or key is None:
            return []
        sql = "SELECT line FROM has WHERE token = :key AND is_key AND line < :line"
        return [found for (found,) in self._all(sql, key=key, line=line)]

    def free(self, size: int) -> list[Record]:
        """
        Yield rows that wait for nothing, then those that wait for them.

        At most *size*, in the order of the source; none if all wait for each other.
        """
        return self._records(line for (line,) in self._all(_FREE, size=size))

    def everything(self, size: int) -> Iterator[list[Record]]:
        """Yield all rows in the order of the source, in batches."""
        sql = "SELECT line FROM waiting WHERE line > :last ORDER BY line LIMIT :size"
        last = 0
        while lines := [line for (line,) in self._all(sql, last=last, size=size)]:
            last = lines[-1]
            yield self._records(lines)

    def circles(self, size: int) -> list[list[Record]]:
        """Yield rows that wait for each other in circles."""
        found = []
        seen: dict[int, int] = {}
        starts = self._all("SELECT line FROM waiting ORDER BY line LIMIT :n", n=size)
        for (start,) in starts:
            walk: list[int] = []
            line = start
            while line not in seen:
                seen[line] = start
                walk.append(line)
                after = self._all(_NEXT, line=line)
                # A generator may return other objects the second time.
                line = next((n for (n,) in after if n is not None), line)
            if seen[line] == start and line in walk:
                found.append(self._records(walk[walk.index(line) :]))
        return found

    def _records(self, lines: Iterable[int]) -> list[Record]:
        sql = "SELECT record FROM waiting WHERE line = :line"
        records = []
        for line in sorted(lines):
            record = self._kept.get(line)
            if record is None:
                [(written,)] = self._all(sql, line=line)
                record = pickle.loads(written)  # noqa: S301  # we wrote it
            records.append(record)
        return records

    def close(self) -> None:
        """Drop everything."""
        if self._database is not None:
            self._database.close()


@contextmanager
def _told() -> Iterator[None]:
    """Say in an error that the load's temporary database failed."""
    try:
        yield
    except sqlite3.Error as error:
        raise OSError(
            f"rows that wait for others cannot be kept in a temporary file: {error}"
        ) from error


def hint_of_key(names: Sequence[str], values: Sequence[Any]) -> bytes:
    """
    Return a hint of a key: equal keys have one hint; the database knows what is equal.

    Texts are taken for equal that some collation may take for equal: those that
    differ in case, in accents or in blanks at the end. It costs another try where
    they are not.
    """
    text = repr(sorted(zip(names, map(_spelled, values), strict=True)))
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def hint_of_reference(reference: Proxy) -> bytes:
    """Return the hint for the key of *reference*."""
    return hint_of_key(shape_of(reference).names, reference._tenure_values)


def _spelled(value: Any) -> str:
    if type(value) is Proxy:
        parts = sorted((name, _spelled(part)) for name, part in key_of(value).items())
        return repr((shape_of(value).mapper.base_mapper.class_.__name__, parts))
    return folded(value)


def folded(value: Any) -> str:
    """Return one text for all values that some collation takes for equal."""
    text = str(value).rstrip()
    if not text.isascii():
        letters = unicodedata.normalize("NFKD", text)
        text = "".join(c for c in letters if not unicodedata.combining(c))
    return text.casefold()
