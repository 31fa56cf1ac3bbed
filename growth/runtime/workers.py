"""Many jobs at a time, in threads or in processes forked from this one.

Threads take turns at the interpreter; forked processes do not, and share all that was read and planned before. But only
a process without threads of its own can be forked safely, which a command knows of itself and a library does not. Jobs
and their results are the same either way.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from growth.errors import CheckpointError, GrowthError, WorkerDied
from growth.runtime.interrupts import sigint_blocked
from growth.runtime.limits import shortage

if TYPE_CHECKING:
    from concurrent.futures import Future
    from multiprocessing.process import BaseProcess

PR_SET_PDEATHSIG = 1  # of prctl(2)
Job = Callable[[], Any]
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
        """The results of all jobs, which start in order, in their order. Results of processes are small: see `_do`.

        At the end, nothing is running any more.

        Raises:
            CheckpointError: no process can be forked.
            WorkerDied: a process was killed.
            Exception: the first failure of a job, as soon as it is known.
        """
        from concurrent.futures import as_completed

        results: list[Any] = [None] * len(jobs)
        if not jobs:
            return results
        can_fork = threading.active_count() == 1 and not multiprocessing.current_process().daemon
        start = _in_processes if self._forks and can_fork else _in_threads
        with start(jobs, min(cores(), len(jobs))) as futures:
            for future in as_completed(futures):
                results[futures[future]], counted = future.result()
                meter.add(counted)
        return results


def cores() -> int:
    """How many workers are worth having: eight keep memory within 400 MB, and one interpreter busy."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


@contextmanager
def _in_threads(jobs: Sequence[Job], size: int) -> Iterator[dict[Future[Any], int]]:
    """The number of each job by its future; a result comes with bytes yet to be counted: none."""
    from concurrent.futures import ThreadPoolExecutor

    executor = ThreadPoolExecutor(size)
    try:
        yield {executor.submit(lambda job: (job(), 0), job): number for number, job in enumerate(jobs)}
    finally:
        executor.shutdown(cancel_futures=True)


# ------------------------------------------------- processes

_jobs: Sequence[Job] = ()  # where forked processes find them, since what is not a module's cannot be sent


@contextmanager
def _in_processes(jobs: Sequence[Job], size: int) -> Iterator[dict[Future[Any], int]]:
    """The same for forked processes; fewer than `size` where the system forks no more.

    They are killed where an exception leaves the context, and by the system where this process ends.
    """
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    global _jobs
    _jobs, others, context = jobs, multiprocessing.active_children(), multiprocessing.get_context("fork")
    executor, futures = None, None
    try:
        while futures is None:
            executor = ProcessPoolExecutor(size, context, _start, (os.getpid(),))
            try:
                with sigint_blocked():  # SIGINT stays blocked in what is forked meanwhile: this process answers it
                    futures = {executor.submit(_do, number): number for number in range(len(jobs))}
            except OSError as error:
                size = _kill_children(others)
                if not size:
                    raise CheckpointError(shortage(error) or f"No process can be forked: {error.strerror}.") from None
        yield futures
    except BrokenProcessPool:
        raise WorkerDied(
            "A worker process was killed, perhaps for lack of memory. Free some memory and run this again."
        ) from None
    except BaseException:
        _kill_children(others)
        raise
    finally:
        _jobs = ()
        if executor is not None:
            executor.shutdown(cancel_futures=True)


def _kill_children(others: Sequence[BaseProcess]) -> int:
    """Kills the child processes that are not among others; returns how many there were."""
    own = [child for child in multiprocessing.active_children() if child not in others]
    for child in own:
        child.kill()
        child.join()
    return len(own)


def _start(parent: int) -> None:
    """Prepares a forked process, which is to end when its parent does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    gc.freeze()  # a collection writes to each object, and so would copy all memory that is shared with the parent


def _do(number: int) -> tuple[Any, int]:
    """The result of a job and the bytes that it counted, in a forked process.

    Together they fit into a pipe's buffer, so that a process that is killed leaves no half of them to wait for.
    """
    counted: list[int] = []
    ProgressCounter.forward_to = counted.append
    try:
        return _jobs[number](), sum(counted)
    except (GrowthError, OSError):
        raise
    except BaseException as error:  # not every exception can be sent
        if text := shortage(error):
            raise CheckpointError(text) from None
        raise RuntimeError("".join(traceback.format_exception(error))) from None
