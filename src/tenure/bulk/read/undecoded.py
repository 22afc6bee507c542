"""Bytes that an encoding does not have."""

from __future__ import annotations

import codecs
import re

from .records import Bad

#: What stands for bytes that an encoding does not have.
_UNDECODED = re.compile("[\udc00-\udcff]")
#: How often there were some, in whatever source.
seen = [0]


def _leave_undecoded(error: UnicodeError) -> tuple[str, int]:
    """Let a text hold bytes that were not decoded, each as a lone surrogate."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    # codecs knows handlers by name, for everybody.
    seen[0] += 1
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
