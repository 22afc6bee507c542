"""The lines of a text, its encoding, and bytes that are none of it."""

from __future__ import annotations

import codecs
import io
import re
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from typing import Any, cast

from ...errors import LoadError, said
from .files import DAMAGED
from .records import Bad

_MARKS = (
    # The longer ones first: UTF-32 begins as UTF-16 does.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: What stands for bytes that an encoding does not have.
_UNDECODED = re.compile("[\udc00-\udcff]")
_undecoded = 0


def _leave_undecoded(error: UnicodeError) -> tuple[str, int]:
    """Let a text hold bytes that were not decoded, each as a lone surrogate."""
    global _undecoded  # noqa: PLW0603  # codecs knows handlers by name, for everybody
    if not isinstance(error, UnicodeDecodeError):
        raise error
    _undecoded += 1
    left = error.object[error.start : error.end]
    return "".join(chr(0xDC00 + byte) for byte in left), error.end


codecs.register_error("tenure.undecoded", _leave_undecoded)


def is_undecoded(text: str) -> bool:
    """Whether a text holds bytes that were not decoded."""
    return not text.isascii() and _UNDECODED.search(text) is not None


def undecoded(raw: str, text: str, field: str = "") -> Bad:
    r"""
    Return what stands for a record with bytes that were not decoded, as ``\xff``.

    Args:
        text: The part of it that has them.
    """
    row, part = (
        _UNDECODED.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", each)
        for each in (raw, text)
    )
    message = f"bytes that the encoding does not have: {part.strip()[:80]!r}"
    return Bad(row, "encoding", f"{message}; say encoding=", field)


def marked_encoding(binary: Any) -> str | None:
    """Return the encoding that a byte order mark tells; the mark stays unread."""
    if hasattr(binary, "peek"):
        start = binary.peek(4)[:4]
    elif hasattr(binary, "seekable") and binary.seekable():
        before = binary.tell()
        start = binary.read(4)
        binary.seek(before)
    else:
        return None
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            return encoding
    return None


class Lines:
    """
    The lines of a text, read in blocks; those since :attr:`keep` can be had again.

    Attributes:
        size: Lines that are read at once.
        keep: The first line that may be asked for again.
        has_undecoded: Whether a line may hold bytes that were not decoded.
        count: The last line that was read.

    Args:
        leaves_undecoded: Whether there can be such bytes in the text.
        before: The lines of the file that come before the text.
    """

    def __init__(
        self, text: Any, *, leaves_undecoded: bool = False, before: int = 0
    ) -> None:
        self._text = iter(text)
        self._blocks: deque[tuple[int, list[str]]] = deque()
        self._failed: Exception | None = None
        self._leaves_undecoded = leaves_undecoded
        self._before = _undecoded
        self.has_undecoded = False
        self.size = 1
        self.keep = before + 1
        self.count = before

    def since(self, line: int) -> Iterator[str]:
        """
        Yield the lines from *line* on: those read before, and what follows.

        Raises:
            LoadError: What follows cannot be read.
        """
        read = [
            block[line - first :] if first < line else block
            for first, block in self._blocks
            if first + len(block) > line
        ]
        lines = chain.from_iterable(chain(read, self._more()))
        # Those between are left out.
        between = line - self.count - 1
        return islice(lines, between, None) if between > 0 else lines

    def between(self, line: int, end: int) -> list[str]:
        """Return the lines from *line* to before *end*, which have been read."""
        self._drop()
        found: list[str] = []
        for first, block in self._blocks:
            if first >= end:
                break
            found += block[max(line - first, 0) : end - first]
        return found

    def skip(self) -> None:
        """
        Read what is left, and forget it.

        Raises:
            LoadError: It cannot be read.
        """
        self.size = 1_000
        while self._next():
            self.keep = self.count + 1

    def _drop(self) -> None:
        """Forget the blocks that nobody may ask for again."""
        blocks = self._blocks
        while blocks and blocks[0][0] + len(blocks[0][1]) <= self.keep:
            blocks.popleft()

    def _more(self) -> Iterator[Sequence[str]]:
        while block := self._next():
            yield block

    def _next(self) -> list[str]:
        if self._failed is not None:
            raise self._unreadable(self._failed)
        self._drop()
        block: list[str] = []
        try:
            block.extend(islice(self._text, self.size))
        except DAMAGED as error:
            # The lines before are good ones.
            self._failed = error
            if not block:
                raise self._unreadable(error) from error
        if not block:
            return block
        # It may have been in another source.
        self.has_undecoded = self._leaves_undecoded and self._before != _undecoded
        self._blocks.append((self.count + 1, block))
        self.count += len(block)
        return block

    def _unreadable(self, error: Exception) -> LoadError:
        line = self.count + 1
        if isinstance(error, UnicodeDecodeError):
            return LoadError(
                f"the source is not {error.encoding.upper()}, at or after line {line}: "
                f"{error.reason}; say encoding= if it is another one, or errors='reject'"
            )
        return LoadError(f"the source cannot be read at line {line}: {said(error)}")


def lines_of(
    binary: Any,
    encoding: str,
    errors: str,
    stack: ExitStack,
    *,
    is_ours: bool,
    before: int = 0,
) -> Lines:
    """
    Return the lines of bytes.

    Args:
        is_ours: Whether the file is closed with the stack; else its owner closes it.
        before: The lines of the file that come before these bytes.

    Raises:
        LoadError: There is no such encoding.
    """
    handler = "tenure.undecoded" if errors == "reject" else errors
    try:
        codecs.lookup_error(handler)
        text = io.TextIOWrapper(binary, encoding=encoding, errors=handler, newline="")
    except LookupError as error:
        raise LoadError(f"encoding and errors: {error}") from error
    if is_ours:
        stack.enter_context(text)
    else:
        stack.callback(text.detach)
    leaves = errors == "reject"
    return Lines(cast(Any, text), leaves_undecoded=leaves, before=before)
