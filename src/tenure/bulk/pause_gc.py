"""
A pause of Python's cyclic garbage collector.

Building tens of thousands of small containers makes the collector run again and
again over everything the process holds, to find nothing: a third of the time of a
load, two thirds of a large ``resolve``, measured. It is paused for one batch of a
load or one ``resolve``, so other code's garbage waits for no longer than that.
Source: Mercurial, ``util.nogc``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_lock = Lock()
_pauses: list[object] = []


@contextmanager
def paused() -> Iterator[None]:
    """Keep the collector from running inside the block, in any thread."""
    with _lock:
        # Whoever switched it off for good is left alone.
        mine = bool(_pauses) or gc.isenabled()
        if mine:
            _pauses.append(None)
            gc.disable()
    try:
        yield
    finally:
        if mine:
            with _lock:
                _pauses.pop()
                if not _pauses:
                    gc.enable()
