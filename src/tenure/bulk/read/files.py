"""What a source names: files, here or elsewhere, compressed or not."""

from __future__ import annotations

import codecs
import csv
import glob
import io
import lzma
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from typing import Any, cast
from urllib.parse import unquote
from zipfile import BadZipFile, ZipFile

from ...errors import LoadError, said
from .options import FORMATS, Format
from .streams import decompressed, remote
from .undecoded import seen

#: What may be wrong with the bytes of a file.
DAMAGED = (
    *(OSError, EOFError, UnicodeDecodeError, csv.Error),
    *(zlib.error, lzma.LZMAError, BadZipFile),
)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zip")
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
#: The user and the password in a URL.
_USER = re.compile(r"(?<=://)[^/?#\s]*@")
#: What Hive calls the folder of rows that have NULL in the column it is named after.
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True)
class File:
    """
    A file of a source.

    Attributes:
        name: What messages and rejects call it.
        open: Opens its bytes, as stored; the stack closes them.
        inner: The name that tells its format: of a member of an archive its own.
        size: In bytes, as stored; 0 if unknown.
        constants: Columns that its folders name, and their value in all of its rows.
        is_open: Whether somebody else has opened it, and will close it.
        is_remote: Whether a URL names it.
        is_member: Whether it is in an archive.
    """

    name: str
    open: Callable[[ExitStack], Any] = field(compare=False)
    inner: str
    size: int = 0
    constants: Mapping[str, str | None] = field(default_factory=dict)
    is_open: bool = False
    is_remote: bool = False
    is_member: bool = False

    @property
    def path(self) -> str:
        """Where it is, or the archive that it is in."""
        archive, suffix, _ = self.name.partition(".zip/")
        return archive + suffix.removesuffix("/")

    @property
    def format(self) -> Format | None:
        """The format that its name tells, if it tells one."""
        return FORMATS.get(os.path.splitext(_plain(self.inner))[1].lower())

    @property
    def has_tabs(self) -> bool:
        """Whether its name says that tabs are between its fields."""
        return _plain(self.inner).lower().endswith((".tsv", ".tab"))

    @property
    def is_compressed(self) -> bool:
        """Whether what it holds can only be read from its beginning on."""
        return self.is_member or _plain(self.inner) != self.inner

    @property
    def is_lasting(self) -> bool:
        """Whether it can be opened more than once, unlike a pipe."""
        paths = (self.name, self.path)
        return self.is_remote or any(map(os.path.isfile, paths))

    def opened(self, stack: ExitStack) -> tuple[Any, Any]:
        """
        Open it.

        Returns:
            Its bytes, and what tells how many of those as stored were read.

        Raises:
            LoadError: It cannot be read.
        """
        try:
            raw = self.open(stack)
        except (OSError, BadZipFile) as error:
            raise _cannot_read(self.name, error) from error
        if _plain(self.inner) == self.inner:
            return raw, raw
        return decompressed(raw, self.inner, stack), raw


def _cannot_read(name: str, error: Exception) -> LoadError:
    why = (isinstance(error, OSError) and error.strerror) or said(error)
    return LoadError(_USER.sub("", f"cannot read {name!r}: {why}"))


def _plain(name: str) -> str:
    """Return the name of what a compressed file holds."""
    for suffix in _COMPRESSED:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


# Which files there are


def paths_in(source: Any) -> list[str] | None:
    """Return the paths that a source is or lists, if it is or lists paths."""
    listed = source if isinstance(source, (list, tuple)) else [source]
    if not listed or not all(isinstance(each, (str, os.PathLike)) for each in listed):
        return None
    return [os.fspath(each) for each in listed]


def found(path: str, storage_options: Mapping[str, Any] | None) -> list[File]:
    """
    Return the files that a path, a URL or a pattern names, in the order of their names.

    Raises:
        LoadError: There is none.
    """
    if _URL.match(path):
        return _remote(path, storage_options or {})
    if os.path.isdir(path):
        return _in_folder(path)
    if glob.has_magic(path) and not os.path.lexists(path):
        matched = sorted(glob.glob(path, recursive=True))
        paths = [each for each in matched if not os.path.isdir(each)]
        folders = [each for each in matched if os.path.isdir(each)]
        if folders and "**" not in path:
            raise LoadError(
                f"{path!r} matches the folder {folders[0]!r}, whose files it does not "
                f"name; load the folder, or write a pattern of files, such as '*.csv'"
            )
        if not paths:
            raise LoadError(f"no file matches {path!r}")
        return [file for each in paths for file in _local(each)]
    return _local(path)


# Functions of this module, so that a file can be sent to another process.


def _open_local(path: str, stack: ExitStack) -> Any:
    return stack.enter_context(open(path, "rb"))  # the stack closes it


def _open_remote(system: Any, path: str, stack: ExitStack) -> Any:
    try:
        return stack.enter_context(remote(system.open(path, "rb")))
    except Exception as error:
        raise OSError(said(error)) from error


def _open_member(file: File, name: str, stack: ExitStack) -> Any:
    archive = stack.enter_context(ZipFile(file.open(stack)))
    try:
        return stack.enter_context(archive.open(name))
    except RuntimeError as error:
        # It has a password, or is compressed in a way that Python does not know.
        raise _cannot_read(file.name, error) from error


def _local(path: str) -> list[File]:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise _cannot_read(path, error) from error
    return _members(File(path, partial(_open_local, path), path, size))


def _in_folder(path: str) -> list[File]:
    """Return the files in a folder and those below, with the columns they name."""
    files: list[File] = []
    for folder, below, names in os.walk(path):
        below[:] = [name for name in below if not name.startswith((".", "_"))]
        inside = os.path.relpath(folder, path).split(os.sep)
        pairs = [each.partition("=") for each in inside]
        constants = {
            unquote(name): None if value == _NULL_FOLDER else unquote(value)
            for name, equals, value in pairs
            if equals
        }
        for name in names:
            if not name.startswith((".", "_")):
                found = _local(os.path.join(folder, name))
                files += [replace(each, constants=constants) for each in found]
    if not files:
        raise LoadError(f"there is no file in {path!r}")
    return sorted(files, key=lambda file: file.name)


def _remote(url: str, options: Mapping[str, Any]) -> list[File]:
    try:
        import fsspec
    except ImportError as error:
        raise LoadError(
            f"reading {_USER.sub('', url)!r} needs fsspec; install tenure[remote]"
        ) from error
    try:
        system, path = fsspec.core.url_to_fs(url, **options)
        if glob.has_magic(url.partition("?")[0]):
            paths = sorted(system.glob(path))
        elif system.isdir(path) and not system.isfile(path):
            paths = sorted(system.find(path))
        else:
            paths = [path]
        files = [_of_system(system, each, url) for each in paths]
    except Exception as error:
        # Each file system has errors of its own.
        raise _cannot_read(url, error) from error
    if not files:
        raise LoadError(_USER.sub("", f"no file matches {url!r}"))
    return [member for file in files for member in _members(file)]


def _of_system(system: Any, path: str, url: str) -> File:
    name = _USER.sub("", url if path in url else system.unstrip_protocol(path))
    opening = partial(_open_remote, system, path)
    size = int(system.size(path) or 0)
    return File(name, opening, path.partition("?")[0], size, is_remote=True)


def _members(file: File) -> list[File]:
    """Return the files in an archive; *file* itself, if it is none."""
    if not file.inner.lower().endswith(".zip"):
        return [file]
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(ZipFile(file.open(stack)))
        except (BadZipFile, OSError) as error:
            raise _cannot_read(file.name, error) from error
        infos = [
            info
            for info in archive.infolist()
            if not info.is_dir()
            and not info.filename.startswith("__MACOSX/")
            and not os.path.basename(info.filename).startswith(".")
        ]
    if not infos:
        raise LoadError(f"there is no file in {file.name!r}")
    only = len(infos) == 1
    return [
        File(
            file.name if only else f"{file.name}/{info.filename}",
            partial(_open_member, file, info.filename),
            # A name that tells no format leaves that to the archive's.
            info.filename
            if os.path.splitext(_plain(info.filename))[1].lower() in FORMATS
            else _plain(file.inner),
            info.compress_size,
            is_remote=file.is_remote,
            is_member=True,
        )
        for info in infos
    ]


# Their text

_MARKS = (
    # The longer ones first: UTF-32 begins as UTF-16 does.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
        self._before = seen[0]
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
        self.has_undecoded = self._leaves_undecoded and self._before != seen[0]
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
