"""Hands: many jobs at a time, done by threads, or by processes forked from this one.

Threads take turns at the interpreter. Forked processes do not, and have all that was read and planned before; but
only a process without threads of its own can be forked safely, which a command knows of itself and a library does
not. Jobs and their results are the same either way.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any, ClassVar, Protocol

from growth.errors import CheckpointError, GrowthError, ProcessLost

Job = Callable[[], Any]
Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all
TOLD = 16 << 20  # bytes that a process counts before it tells


class Meter:
    """Counts bytes from several hands and tells a progress callback, at each half per cent."""

    elsewhere: ClassVar[Callable[[int], None] | None] = None  # where a forked process tells what it counts

    def __init__(self, phase: str, total: int, progress: Progress | None):
        self.phase, self.total, self._progress = phase, total, progress
        self._done, self._next = 0, 0
        self._lock = threading.Lock()
        self.add(0)

    def add(self, count: int) -> None:
        """Counts `count` more bytes."""
        if Meter.elsewhere is not None:
            Meter.elsewhere(count)
            return
        with self._lock:
            self._done += count
            if self._progress is not None and (self._done >= self._next or self._done == self.total):
                self._next = self._done + self.total // 200
                self._progress(self.phase, self._done, self.total)


class Hands(Protocol):
    """Those that do jobs."""

    def run(self, jobs: Sequence[Job], meter: Meter) -> list[Any]:
        """The results of all jobs, in order; they are begun in order.

        A failure is raised as soon as it is known; then nothing is begun any more, and nothing is going on.
        """


def cores() -> int:
    """How many hands are worth having: eight keep memory within 400 MB, and one interpreter busy."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


class Threads:
    """Threads of this process."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool

    def run(self, jobs: Sequence[Job], meter: Meter) -> list[Any]:
        """The results of all jobs, in order."""
        futures = [self._pool.submit(job) for job in jobs]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                if future.done() and (error := future.exception()) is not None:
                    raise error
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            wait(futures)
            raise


class Processes:
    """Processes that are forked for the jobs, and take one after another."""

    def run(self, jobs: Sequence[Job], meter: Meter) -> list[Any]:
        """The results of all jobs, in order; by threads where this process has another thread by now.

        Raises:
            ProcessLost: a process was killed.
        """
        if threading.active_count() > 1 or multiprocessing.current_process().daemon:
            with hands(forks=False) as threads:
                return threads.run(jobs, meter)
        results: list[Any] = [None] * len(jobs)
        left = iter(range(len(jobs)))
        crew: list[_Forked] = []
        try:
            _gather(crew, jobs)
            busy: dict[Any, _Forked] = {one.pipe: one for one in crew if one.take(next(left, None))}
            while busy:
                for pipe in connection.wait(list(busy)):
                    one = busy[pipe]
                    number, value = one.hear()
                    if number is None:
                        meter.add(value)
                    elif isinstance(value, BaseException):
                        raise value
                    else:
                        results[number] = value
                        if not one.take(next(left, None)):
                            del busy[pipe]
        finally:
            for one in crew:
                one.end()
        return results


def _gather(crew: list[_Forked], jobs: Sequence[Job]) -> None:
    """Forks as many as are worth having, or as the system lets."""
    try:
        while len(crew) < min(cores(), len(jobs)):
            crew.append(_Forked(jobs))
    except OSError as error:
        if not crew:
            raise CheckpointError(f"No process can be forked to do the work: {error.strerror}.") from None


class _Forked:
    """One process, as the one that forked it sees it."""

    def __init__(self, jobs: Sequence[Job]):
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(jobs, theirs, self.pipe), daemon=True)
        # the keyboard is answered here, and never there: what is blocked when it is forked stays so
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        except OSError:
            self.pipe.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def take(self, number: int | None) -> bool:
        """Gives it a job, if there is one."""
        if number is not None:
            with self._there():
                self.pipe.send(number)
        return number is not None

    def hear(self) -> tuple[int | None, Any]:
        """The number of a job and its result, or None and how many bytes were done."""
        with self._there():
            heard: tuple[int | None, Any] = self.pipe.recv()
        return heard

    @contextmanager
    def _there(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError):
            self._process.join()
            raise ProcessLost(
                f"A process that was at work ended (status {self._process.exitcode}), perhaps for lack of memory."
            ) from None

    def end(self) -> None:
        """Ends it, whatever it does."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _work(jobs: Sequence[Job], pipe: Any, theirs: Any) -> None:
    """What a forked process does: the jobs that it is given, until nobody gives any."""
    theirs.close()
    counted = 0

    def count(bytes_done: int) -> None:
        nonlocal counted
        counted += bytes_done
        if counted >= TOLD:
            pipe.send((None, counted))
            counted = 0

    Meter.elsewhere = count
    try:
        while True:
            number = pipe.recv()
            value = _result(jobs[number])
            if counted:
                pipe.send((None, counted))
                counted = 0
            pipe.send((number, value))
    except (EOFError, OSError):  # the other end is gone
        os._exit(0)


def _result(job: Job) -> Any:
    """What a job returns, or raises: errors that nobody foresaw as their traceback, since not all can be sent."""
    try:
        return job()
    except (GrowthError, OSError) as error:
        return error
    except BaseException as error:
        return RuntimeError("".join(traceback.format_exception(error)))


@contextmanager
def hands(*, forks: bool) -> Iterator[Hands]:
    """Processes where they are wished and the system is known to fork well, threads elsewhere."""
    if forks and sys.platform == "linux":
        yield Processes()
        return
    with ThreadPoolExecutor(cores()) as pool:
        yield Threads(pool)
