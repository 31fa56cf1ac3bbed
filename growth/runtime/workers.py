"""Many jobs at a time, in threads or in processes forked from this one.

Threads take turns at the interpreter; forked processes do not, and share all that was read and planned before. But only
a process without threads of its own can be forked safely, which a command knows of itself and a library does not. Jobs
and their results are the same either way.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from growth.errors import CheckpointError, GrowthError, WorkerDied
from growth.runtime.interrupts import sigint_blocked
from growth.runtime.limits import shortage

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor
    from multiprocessing.process import BaseProcess

PR_SET_PDEATHSIG = 1  # of prctl(2)
PERIOD = 0.2  # seconds after which a process returns its results: this one has to wake up for them
LARGEST_BATCH = 2 << 10  # characters of results, about as many bytes when they are sent, after which it does so earlier
Job = Callable[[], Any]
Batch = tuple[dict[int, Any], int]  # results by the numbers of their jobs, and bytes that are still to be counted
Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all


class ProgressCounter:
    """Counts the bytes that workers have done and reports them to a callback, at each half per cent."""

    forward_to: ClassVar[Callable[[int], None] | None] = None  # what counts in a forked process

    def __init__(self, phase: str, total: int, progress: Progress | None = None):
        self.phase, self.total, self._progress = phase, total, progress
        self._done, self._next = 0, 0
        self._lock = threading.Lock()
        self.add(0)

    def add(self, count: int) -> None:
        """Counts `count` more bytes."""
        if ProgressCounter.forward_to is not None:
            ProgressCounter.forward_to(count)
            return
        with self._lock:
            self._done += count
            if self._progress is not None and (self._done >= self._next or self._done == self.total):
                self._next = self._done + self.total // 200
                self._progress(self.phase, self._done, self.total)


class WorkerPool:
    """Runs jobs in processes forked for them, where that is asked for and safe, and in threads otherwise."""

    def __init__(self, *, forks: bool = False):
        self._forks = forks and sys.platform == "linux"

    def run(self, jobs: Sequence[Job], meter: ProgressCounter) -> list[Any]:
        """The results of all jobs, which start in order, in their order. Results of processes are small: see `_work`.

        At the end, nothing is running any more.

        Raises:
            CheckpointError: no process can be forked.
            WorkerDied: a process was killed.
            Exception: the first failure of a job, as soon as it is known.
        """
        results: list[Any] = [None] * len(jobs)
        if not jobs:
            return results
        can_fork = threading.active_count() == 1 and not multiprocessing.current_process().daemon
        start = _in_processes if self._forks and can_fork else _in_threads
        with start(jobs, min(cores(), len(jobs))) as batches:
            for found, counted in batches:
                for number, result in found.items():
                    results[number] = result
                meter.add(counted)
        return results


def cores() -> int:
    """How many workers are worth having: eight keep memory within 400 MB, and one interpreter busy."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


@contextmanager
def _in_threads(jobs: Sequence[Job], size: int) -> Iterator[Iterator[Batch]]:
    """Batches of one result, as they come; the bytes have been counted by then."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    executor = ThreadPoolExecutor(size)
    try:
        numbers = {executor.submit(job): number for number, job in enumerate(jobs)}
        yield (({numbers[future]: future.result()}, 0) for future in as_completed(numbers))
    finally:
        executor.shutdown(cancel_futures=True)


# ------------------------------------------------- processes


class _JobQueue:
    """Jobs that forked processes take in turn; they share the number of the next one."""

    own: ClassVar[_JobQueue]  # that of a forked process

    def __init__(self, jobs: Sequence[Job], lock: AbstractContextManager[bool]):
        self._jobs, self._lock, self._next = jobs, lock, memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def take(self) -> tuple[int, Job] | None:
        """The next job and its number; None where no job is left."""
        with self._lock:
            number = self._next[0]
            self._next[0] = number + 1
        return (number, self._jobs[number]) if number < len(self._jobs) else None


@contextmanager
def _in_processes(jobs: Sequence[Job], size: int) -> Iterator[Iterator[Batch]]:
    """Batches of results of forked processes; these are fewer than `size` where the system forks no more.

    They are killed where an exception leaves the context, and by the system where this process ends.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    others, context = multiprocessing.active_children(), multiprocessing.get_context("fork")
    queue = _JobQueue(jobs, context.Lock())
    executor, futures = None, None
    try:
        while futures is None:
            executor = ProcessPoolExecutor(size, context, _start, (os.getpid(), queue))
            try:
                with sigint_blocked():  # SIGINT stays blocked in what is forked meanwhile: this process answers it
                    futures = {executor.submit(_work) for _ in range(size + 1)}  # one waits: nobody waits for it
            except OSError as error:
                size = _kill_children(others)
                if not size:
                    raise CheckpointError(shortage(error) or f"No process can be forked: {error.strerror}.") from None
        assert executor is not None
        yield _batches(executor, futures)
    except BrokenProcessPool:
        raise WorkerDied(
            "A worker process was killed, perhaps for lack of memory. Free some memory and run this again."
        ) from None
    except BaseException:
        _kill_children(others)
        raise
    finally:
        if executor is not None:
            executor.shutdown(cancel_futures=True)


def _batches(executor: ProcessPoolExecutor, futures: set[Future[Batch]]) -> Iterator[Batch]:
    """The batches that processes return, each of which is asked for another one until no job is left."""
    from concurrent.futures import FIRST_COMPLETED, wait

    while futures:
        done, futures = wait(futures, return_when=FIRST_COMPLETED)
        for future in done:
            batch = future.result()
            if batch[0]:
                futures.add(executor.submit(_work))
            yield batch


def _kill_children(others: Sequence[BaseProcess]) -> int:
    """Kills the child processes that are not among others; returns how many there were."""
    own = [child for child in multiprocessing.active_children() if child not in others]
    for child in own:
        child.kill()
        child.join()
    return len(own)


def _start(parent: int, queue: _JobQueue) -> None:
    """Prepares a forked process, which is to end when its parent does."""
    _JobQueue.own = queue
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    gc.freeze()  # a collection writes to each object, and so would copy all memory that is shared with the parent


def _work() -> Batch:
    """Do one job after another in a forked process, for `PERIOD` seconds or until none is left.

    A batch fits into a pipe at once, so that a process that is killed leaves no half of it to wait for.
    """
    counted: list[int] = []
    ProgressCounter.forward_to = counted.append
    results, size, end = dict[int, Any](), 0, time.monotonic() + PERIOD
    try:
        while size < LARGEST_BATCH and time.monotonic() < end and (taken := _JobQueue.own.take()):
            number, job = taken
            results[number] = job()
            size += len(repr(results[number]))
    except (GrowthError, OSError):
        raise
    except BaseException as error:  # not every exception can be sent
        if text := shortage(error):
            raise CheckpointError(text) from None
        raise RuntimeError("".join(traceback.format_exception(error))) from None
    return results, sum(counted)
