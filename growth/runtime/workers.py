"""Hands: many jobs at a time, done by threads, or by processes forked from this one.

Threads take turns at the interpreter. Forked processes do not, and have all that was read and planned before; but
only a process without threads of its own can be forked safely, which a command knows of itself and a library does
not. Jobs and their results are the same either way.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import connection
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from growth.errors import CheckpointError, GrowthError, WorkerDied
from growth.runtime.interrupts import sigint_blocked
from growth.runtime.limits import shortage

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Job = Callable[[], Any]
Progress = Callable[[str, int, int], None]  # phase, bytes done, bytes in all
LOOKED = 0.1  # seconds after which it is looked at how much is done, and said what was found


class ProgressCounter:
    """Counts bytes from several hands and tells a progress callback, at each half per cent."""

    elsewhere: ClassVar[Callable[[int], None] | None] = None  # where a forked process tells what it counts

    def __init__(self, phase: str, total: int, progress: Progress | None = None):
        self.phase, self.total = phase, total
        self._done, self._next = 0, 0
        self._lock = threading.Lock()
        self.tell(progress)

    def tell(self, progress: Progress | None) -> None:
        """Tells this callback from now on."""
        self._progress, self._next = progress, 0
        self.add(0)

    def add(self, count: int) -> None:
        """Counts `count` more bytes."""
        if ProgressCounter.elsewhere is not None:
            ProgressCounter.elsewhere(count)
            return
        with self._lock:
            self._done += count
            if self._progress is not None and (self._done >= self._next or self._done == self.total):
                self._next = self._done + self.total // 200
                self._progress(self.phase, self._done, self.total)


class Work(Protocol):
    """Jobs that hands have."""

    def results(self, meter: ProgressCounter, jobs: Sequence[Job] | None = None) -> Iterator[tuple[int, Any]]:
        """The number of each job and its result, as they come; all hands are at it now.

        jobs: what is done instead, number for number, of what is not begun yet: more may be known by now.

        A failure is raised as soon as it is known.
        """


class WorkerPool(ABC):
    """Those that do jobs."""

    @abstractmethod
    def begin(self, jobs: Sequence[Job]) -> AbstractContextManager[Work]:
        """Gives them jobs, which are begun in order: one by one at once, if it is a process of its own.

        At the end of the context nothing is begun any more, and nothing is going on.
        """

    def run(self, jobs: Sequence[Job], meter: ProgressCounter) -> list[Any]:
        """The results of all jobs, in order."""
        results: list[Any] = [None] * len(jobs)
        if not jobs:
            return results
        with self.begin(jobs) as work:
            for number, value in work.results(meter):
                results[number] = value
        return results


@contextmanager
def hands(*, forks: bool) -> Iterator[WorkerPool]:
    """Processes where they are wished and the system is known to fork well, threads elsewhere."""
    if forks and sys.platform == "linux":
        yield Processes()
        return
    from concurrent.futures import ThreadPoolExecutor  # which imports logging: processes begin before that

    with ThreadPoolExecutor(cores()) as pool:
        yield Threads(pool)


def cores() -> int:
    """How many hands are worth having: eight keep memory within 400 MB, and one interpreter busy."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, 8)


# ------------------------------------------------- threads


class Threads(WorkerPool):
    """Threads of this process, which begin when results are asked for."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool = pool

    @contextmanager
    def begin(self, jobs: Sequence[Job]) -> Iterator[Work]:
        """Keeps the jobs for the threads."""
        from concurrent.futures import wait

        work = _Queued(self._pool, jobs)
        try:
            yield work
        finally:
            for future in work.futures:
                future.cancel()
            wait(work.futures)


class _Queued:
    def __init__(self, pool: ThreadPoolExecutor, jobs: Sequence[Job]):
        self._pool, self._jobs = pool, jobs
        self.futures: dict[Future[Any], int] = {}

    def results(self, meter: ProgressCounter, jobs: Sequence[Job] | None = None) -> Iterator[tuple[int, Any]]:
        from concurrent.futures import as_completed

        self.futures |= {self._pool.submit(job): number for number, job in enumerate(jobs or self._jobs)}
        for future in as_completed(self.futures):
            yield self.futures[future], future.result()


# ------------------------------------------------- processes


class Processes(WorkerPool):
    """Processes that are forked for the jobs, and take one after another.

    Raises:
        ProcessLost: a process was killed.
    """

    @contextmanager
    def begin(self, jobs: Sequence[Job]) -> Iterator[Work]:
        """One process begins; threads do the jobs where this process has another thread by now."""
        if threading.active_count() > 1 or multiprocessing.current_process().daemon:
            with hands(forks=False) as threads, threads.begin(jobs) as work:
                yield work
            return
        crew = _Crew(jobs)
        try:
            crew.grow(1)
            yield crew
        finally:
            crew.end()


class _Crew:
    """Forked processes, as the one that forked them sees them.

    They share the number of jobs that are left, in an eventfd, and memory: a place each where it counts what it has
    done, and at the end how often other jobs were given, which those that were forked before leave to others.
    """

    def __init__(self, jobs: Sequence[Job]):
        self._jobs, self._pid = jobs, os.getpid()
        self._left = os.eventfd(len(jobs) + 1)  # 1 where none is left: who reads it has it alone, until it writes
        self._counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")
        self._counted = 0
        self._processes: list[_Forked] = []
        self._at_work = 0

    def results(self, meter: ProgressCounter, jobs: Sequence[Job] | None = None) -> Iterator[tuple[int, Any]]:
        if jobs is not None:
            self._jobs, self._at_work = jobs, 0
            self._counts[-1] += 1
        self.grow(min(cores(), len(self._jobs)))
        busy: dict[Any, _Forked] = {one.pipe: one for one in self._processes}
        while busy:
            for pipe in connection.wait(list(busy), LOOKED):
                told = busy[pipe].hear()
                if told is None:
                    del busy[pipe]
                    continue
                for number, value, failed in told:
                    if failed:
                        raise value
                    yield number, value
            counted = sum(self._counts[:-1])
            meter.add(counted - self._counted)
            self._counted = counted

    def grow(self, size: int) -> None:
        """Forks until there are as many, or as the system lets."""
        try:
            while self._at_work < size:
                self._processes.append(_Forked(partial(self._work, len(self._processes))))
                self._at_work += 1
        except OSError as error:
            if not self._at_work:
                reason = shortage(error) or f"No process can be forked to do the work: {error.strerror}."
                raise CheckpointError(reason) from None

    def end(self) -> None:
        """Ends all, whatever they do."""
        for one in self._processes:
            one.end()
        os.close(self._left)

    def _work(self, place: int, send: Callable[[Any], None]) -> None:
        """What a forked process does: one job after another, until none is left or the one that forked it is gone."""
        given = self._counts[-1]

        def count(bytes_done: int) -> None:
            self._counts[place] += bytes_done
            if os.getppid() != self._pid:
                os._exit(1)

        ProgressCounter.elsewhere = count
        results, said = list[tuple[int, Any, bool]](), time.perf_counter()
        while self._counts[-1] == given and (number := self._claim()) is not None:
            value, failed = _result(self._jobs[number])
            results.append((number, value, failed))
            if failed or time.perf_counter() - said > LOOKED:  # who is told something has to wake up for it
                send(results)
                results, said = [], time.perf_counter()
        send(results)

    def _claim(self) -> int | None:
        """The number of a job that nobody else has, if there is one."""
        left = os.eventfd_read(self._left)
        os.eventfd_write(self._left, max(left - 1, 1))
        return len(self._jobs) + 1 - left if left > 1 else None


class _Forked:
    """One process; work: what it does, given how it says what it has found."""

    def __init__(self, work: Callable[[Callable[[Any], None]], None]):
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(work, theirs, self.pipe), daemon=True)
        try:
            with sigint_blocked():  # it is answered here, and never there: what is blocked when it is forked stays so
                self._process.start()
        except OSError:
            self.pipe.close()
            raise
        finally:
            theirs.close()

    def hear(self) -> Any:
        """The results that it says next; None where it has said all."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self._process.join()
        if self._process.exitcode == 0:
            return None
        raise WorkerDied(
            f"A process that was at work ended (status {self._process.exitcode}), perhaps for lack of memory."
        )

    def end(self) -> None:
        """Ends it, whatever it does."""
        self.pipe.close()
        self._process.kill()
        self._process.join()


def _serve(work: Callable[[Callable[[Any], None]], None], pipe: Any, theirs: Any) -> None:
    theirs.close()
    gc.freeze()  # who looks for garbage writes to each object: to all that is shared with the process forked from
    try:
        work(pipe.send)
    except (OSError, MemoryError):  # the other end is gone, or there is no memory to tell it of
        os._exit(1)
    os._exit(0)


def _result(job: Job) -> tuple[Any, bool]:
    """What a job returns, or raises, and whether it did: errors that nobody foresaw as their traceback.

    Not all errors can be sent.
    """
    try:
        return job(), False
    except (GrowthError, OSError) as error:
        return error, True
    except BaseException as error:
        if text := shortage(error):
            return CheckpointError(text), True
        return RuntimeError("".join(traceback.format_exception(error))), True
