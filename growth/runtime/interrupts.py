"""Block interruptions from the keyboard (SIGINT) while nobody can answer them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


def block_sigint() -> None:
    """Hold back interruptions from now on."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})


def unblock_sigint() -> None:
    """Let interruptions through again; one that was held back arrives at once."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Hold back interruptions until the context ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
