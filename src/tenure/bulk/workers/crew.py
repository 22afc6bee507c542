"""Giving work to an executor: what becomes of it, whoever of the workers dies."""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sized
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import suppress
from traceback import walk_tb
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.util import await_only

from ...errors import IN_WORKER, LoadError, TenureError, said


class Job(Protocol):
    """
    What a worker does: it is sent there, called, and its result sent back.

    Attributes:
        number: Its place among all of them.
        name: What messages call it.
        needs: The modules that a worker has to have.
    """

    number: int
    name: str
    needs: str

    def __call__(self) -> Any:
        """Do it."""


Waits = Callable[[Collection["Future[bytes]"]], None]


def wait_for(futures: Collection[Future[bytes]]) -> None:
    """Wait until one of *futures* is done."""
    wait(futures, return_when=FIRST_COMPLETED)


class InLoop:
    """Waits until one of some futures is done, in a greenlet: the event loop runs."""

    def __init__(self) -> None:
        self._is_done: asyncio.Event | None = None
        self._heard: WeakSet[Future[bytes]] = WeakSet()

    def __call__(self, futures: Collection[Future[bytes]]) -> None:
        """Wait."""
        await_only(self._one_of(futures))

    async def _one_of(self, futures: Collection[Future[bytes]]) -> None:
        loop = asyncio.get_running_loop()
        is_done = self._is_done = self._is_done or asyncio.Event()

        def tell(_: Future[bytes]) -> None:
            # It may be the last one, in a thread that knows no loop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(is_done.set)

        for future in futures:
            if future not in self._heard:
                self._heard.add(future)
                future.add_done_callback(tell)
        is_done.clear()
        if not any(future.done() for future in futures):
            await is_done.wait()


class _Given(NamedTuple):
    job: Job
    sent: bytes
    #: How many times it was lost.
    times: int = 0


def run(sent: bytes) -> bytes:
    """Do a job in a worker; its result and its error are sent alike."""
    outcome: tuple[Any, Exception | None]
    try:
        job = pickle.loads(sent)  # noqa: S301  # the caller wrote it
    except Exception as error:  # noqa: BLE001  # the caller raises it
        why = LoadError(
            f"a worker cannot import what it needs: {said(error)}; define models, and "
            f"the functions they use, at the top of a module that workers can import"
        )
        return pickle.dumps((None, why), pickle.HIGHEST_PROTOCOL)
    try:
        outcome = job(), None
    except Exception as error:  # noqa: BLE001  # as above
        outcome = None, _sendable(error)
    try:
        return pickle.dumps(outcome, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001  # as above
        why = LoadError(
            f"what a worker has read cannot be sent: {said(error)}; let the model give "
            f"values that pickle knows"
        )
        return pickle.dumps((None, why), pickle.HIGHEST_PROTOCOL)


def _sendable(error: Exception) -> Exception:
    """Return *error*, or what can be sent of it, with the place where it came up."""
    places = [frame for frame, _ in walk_tb(error.__traceback__)]
    if not isinstance(error, (TenureError, SQLAlchemyError, OSError)) and places:
        code = places[-1].f_code
        error.add_note(f"{IN_WORKER}{code.co_filename}:{places[-1].f_lineno}")
    error = error.with_traceback(None)
    error.__cause__ = error.__context__ = None
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))  # noqa: S301  # we wrote it
        return error
    other = LoadError(f"{type(error).__name__}: {said(error)}")
    for note in getattr(error, "__notes__", ()):
        other.add_note(note)
    return other


class Crew:
    """
    The workers of an executor.

    What a worker that dies was at is done once more, with all that an executor gives up
    with it. What is lost then as well is tried alone: only one of these is to blame. An
    executor that does nothing any more is replaced by processes of this machine.

    Args:
        executor: Anything with the ``submit()`` of ``concurrent.futures``.
        waits: Waits until one of some futures is done.
    """

    def __init__(self, executor: Executor, waits: Waits) -> None:
        self._executor = executor
        self._own: ProcessPoolExecutor | None = None
        self._waits = waits
        self._waiting: dict[Future[bytes], _Given] = {}
        self._lost: deque[tuple[_Given, BaseException]] = deque()
        self._has_given = False

    def results(
        self, jobs: Iterator[Any], *, at_once: int
    ) -> Iterator[tuple[Any, Any]]:
        """
        Yield jobs (:class:`Job`) as they are done, each with its result.

        Args:
            at_once: How many of them may be under way.

        Raises:
            LoadError: One cannot be done by any worker.
            Exception: What a job, or *jobs*, has raised.
        """
        for job, result, error in self._outcomes(jobs, at_once):
            if error is not None:
                raise error
            yield job, result

    def in_order(
        self, jobs: Iterator[Any], *, at_once: int
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the same in the order of their numbers, which begin with 0."""
        done: dict[int, tuple[Any, Any, Exception | None]] = {}
        wanted = 0
        for outcome in self._outcomes(jobs, at_once, done):
            done[outcome[0].number] = outcome
            while wanted in done:
                job, result, error = done.pop(wanted)
                # Not before its turn: what comes before may end the load as well.
                if error is not None:
                    raise error
                yield job, result
                wanted += 1

    def _outcomes(
        self, jobs: Iterator[Any], at_once: int, held: Sized = ()
    ) -> Iterator[tuple[Any, Any, Exception | None]]:
        left: Iterator[Any] | None = jobs
        failed: Exception | None = None
        while True:
            while (
                left is not None
                and not self._lost
                and len(self._waiting) + len(held) < at_once
            ):
                try:
                    job = next(left, None)
                except Exception as error:  # noqa: BLE001  # raised after those before it
                    job, failed = None, error
                if job is None:
                    left = None
                else:
                    self._give(_Given(job, pickled(job, job.name)))
            if not self._waiting and not self._lost:
                break
            if self._waiting:
                self._waits(self._waiting.keys())
            for future in [future for future in self._waiting if future.done()]:
                given = self._waiting.pop(future)
                lost = _lost(future)
                if lost is None:
                    yield given.job, *_outcome(future)
                else:
                    self._lost.append((given, lost))
            if not self._waiting and self._lost:
                yield from self._again(max(1, at_once - len(held)))
        if failed is not None:
            raise failed

    def _give(self, given: _Given) -> None:
        try:
            future = self._executor.submit(run, given.sent)
        except Exception as error:
            if not self._has_given:
                raise LoadError(
                    f"the executor takes no work: {said(error)}; pass another one"
                ) from error
            # It broke: those under way say so as well, and are done first.
            self._lost.append((given, error))
        else:
            self._has_given = True
            self._waiting[future] = given

    def _again(self, most: int) -> Iterator[tuple[Any, Any, Exception | None]]:
        """Give *most* of what was lost once more; try it alone if it was."""
        lost = sorted(self._lost, key=lambda each: each[0].job.number)
        self._lost = deque(lost[most:])
        for given, why in lost[:most]:
            if not given.times:
                continue
            future = self._submitted(given)
            self._waiting[future] = given
            self._waits([future])
            del self._waiting[future]
            if (error := _lost(future)) is not None:
                raise LoadError(
                    f"{given.job.name} was given to a worker once more, and it did not "
                    f"come back: {type(error).__name__}: {said(error)}; a worker needs "
                    f"tenure, the driver of the database, {given.job.needs}, and memory "
                    f"for a part"
                ) from why
            yield given.job, *_outcome(future)
        for given, _ in lost[:most]:
            if not given.times:
                self._waiting[self._submitted(given)] = given._replace(times=1)

    def _submitted(self, given: _Given) -> Future[bytes]:
        try:
            return self._executor.submit(run, given.sent)
        except Exception:  # noqa: BLE001  # each executor has an error of its own
            self._replace()
            return self._executor.submit(run, given.sent)

    def _replace(self) -> None:
        if self._own is not None:
            self._own.shutdown(wait=False, cancel_futures=True)
        self._own = self._executor = _processes()

    def close(self) -> None:
        """Give up what is not begun, and wait for what is."""
        under_way = [f for f in self._waiting if not f.cancel()]
        self._waiting.clear()
        try:
            while under_way := [f for f in under_way if not f.done()]:
                self._waits(under_way)
        finally:
            if self._own is not None:
                self._own.shutdown(wait=False, cancel_futures=True)


def _processes() -> ProcessPoolExecutor:
    """Return processes of this machine, as many as it has cores."""
    # A fork would take locks and connections along.
    return ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))


def pickled(value: Any, name: str) -> bytes:
    """
    Return what is sent to a worker.

    Raises:
        LoadError: It cannot be.
    """
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise LoadError(
            f"{name} cannot be sent to a worker: {said(error)}; define models, and the "
            f"functions they use, at the top of a module that workers can import"
        ) from error


def _lost(future: Future[bytes]) -> BaseException | None:
    """Return why there is no outcome, if there is none."""
    try:
        return future.exception()
    except CancelledError as error:
        return error


def _outcome(future: Future[bytes]) -> tuple[Any, Exception | None]:
    """Return the result of a job, or what it has raised."""
    result, error = pickle.loads(future.result())  # noqa: S301  # a worker of ours wrote it
    return result, error
