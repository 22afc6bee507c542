"""Bytes that are compressed, or come over a network. Zstandard needs an extra, ``zstd``."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from contextlib import ExitStack
from typing import Any

from ...errors import LoadError, said


def decompressed(raw: Any, name: str, stack: ExitStack) -> Any:
    """Return what a file holds, by the end of its name; an archive is left as it is."""
    opened: Any
    match os.path.splitext(name)[1].lower():
        case ".gz":
            opened = gzip.open(raw)  # noqa: SIM115  # the stack closes it
        case ".bz2":
            opened = bz2.open(raw)  # noqa: SIM115  # as above
        case ".xz":
            opened = lzma.open(raw)  # noqa: SIM115  # as above
        case ".zst":
            opened = io.BufferedReader(Zstandard(raw))
        case _:
            return raw
    return stack.enter_context(opened)


def remote(raw: Any) -> Any:
    """Return a file of some file system, whose errors are those of any file."""
    return io.BufferedReader(_Remote(raw))


class _Remote(io.RawIOBase):
    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def _do(self, name: str, *given: Any) -> Any:
        try:
            return getattr(self._raw, name)(*given)
        except (OSError, ValueError):
            raise
        except Exception as error:
            raise OSError(said(error)) from error

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def seekable(self) -> bool:
        """Whether it can be sought in."""
        return bool(self._do("seekable"))

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, and return it."""
        return int(self._do("seek", place, whence))

    def tell(self) -> int:
        """Return the place of the next byte."""
        return int(self._do("tell"))

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into *buffer*; give how many, none at the end."""
        some = self._do("read", len(buffer))
        buffer[: len(some)] = some
        return len(some)

    def close(self) -> None:
        """Close it."""
        if not self.closed:
            self._do("close")
        super().close()


class Zstandard(io.RawIOBase):
    """
    What a file holds that Zstandard has compressed.

    The reader of the library takes a file that was cut off for a whole one.
    """

    def __init__(self, raw: Any) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise LoadError(
                "reading .zst needs zstandard; install tenure[zstd]"
            ) from error
        self._raw = raw
        self._library: Any = zstandard
        self._frame: Any = None
        self._left = b""

    def readable(self) -> bool:
        """Whether it can be read: it can."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read some bytes into *buffer*; give how many, none at the end."""
        while not self._left:
            stored = self._frame.unused_data if self._is_over else b""
            stored = stored or self._raw.read(io.DEFAULT_BUFFER_SIZE)
            if not stored:
                if self._frame is None or self._is_over:
                    return 0
                raise EOFError("the compressed file was cut off")
            if self._frame is None or self._is_over:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._left = self._frame.decompress(stored)
            except self._library.ZstdError as error:
                raise OSError(said(error)) from error
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count

    @property
    def _is_over(self) -> bool:
        return self._frame is not None and self._frame.eof
