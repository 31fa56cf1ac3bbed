"""Growths in a child process that is killed before a given call to the operating system."""

import multiprocessing
import os
import resource
import signal

import growth

CALLS = (
    "pwrite", "write", "ftruncate", "posix_fallocate", "fsync", "preadv", "copy_file_range", "open", "mkdir", "rename",
    "unlink", "rmdir",
)  # fmt: skip


def in_child(work):
    """Runs `work` in a forked process; returns its exit code (negative: the signal that ended it)."""
    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join()
    return child.exitcode


def die_before(number, count=None):
    """From here on, kills this process before its number-th call; with `count`, only writes down how many there were."""
    made = 0

    def watched(call):
        def replacement(*arguments, **keywords):
            nonlocal made
            made += 1
            if count is not None:
                count.value = made
            if made == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **keywords)

        return replacement

    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))


def grow_and_die(number, *arguments, count=None, **keywords):
    """Grows in a child that is killed before its number-th call."""

    def work():
        os.sched_getaffinity = lambda pid: {0}  # one thread: how many of them open a file is a matter of chance
        die_before(number, count)
        growth.grow(*arguments, **keywords)

    return in_child(work)


def grow_limited(largest, *arguments, **keywords):
    """Grows in a child that may write no file above `largest` bytes; returns the error's text."""
    said = multiprocessing.get_context("fork").Queue()

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        try:
            growth.grow(*arguments, **keywords)
        except growth.CheckpointError as error:
            said.put(str(error))

    in_child(work)
    return said.get(timeout=10)


def calls_of(*arguments, **keywords):
    """How many calls a growth makes that is not disturbed."""
    count = multiprocessing.get_context("fork").Value("i", 0)
    assert grow_and_die(0, *arguments, count=count, **keywords) == 0
    return count.value
