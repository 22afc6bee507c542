"""The workers that share a load: processes of this machine, or a cluster of Dask."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from tenure.errors import said

from ._mistake import Mistake

#: Seconds to wait for a scheduler of Dask.
CONNECT_SECONDS = 10


@contextmanager
def executor(
    workers: int | None, dask: str | None, *, is_needed: bool
) -> Iterator[Any]:
    """
    Return what runs the workers that are asked for, for the block; none if none are.

    Args:
        is_needed: Whether there have to be some.

    Raises:
        Mistake: Both are asked for, or none where they are needed, or the cluster
            cannot be reached.
    """
    if is_needed and workers is None and dask is None:
        raise Mistake("parts are loaded by workers; name them with --workers or --dask")
    if workers is not None and dask is not None:
        raise Mistake("--workers and --dask are two ways to share a load; name one")
    if dask is not None:
        with _client(dask) as client:
            yield client.get_executor(pure=False)
    elif workers is not None:
        with ProcessPoolExecutor(
            workers,
            multiprocessing.get_context("spawn"),
            initializer=_begin_worker,
        ) as pool:
            yield pool
    else:
        yield None


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, which says what to do; end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _client(address: str) -> Any:
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise Mistake("--dask needs dask.distributed; install tenure[dask]") from error
    connect: Any = Client
    try:
        return connect(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise Mistake(f"--dask: cannot reach {address}: {said(error)}") from error
