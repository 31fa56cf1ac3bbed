"""The start of the command: its process is set up before anything heavy is imported."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

from growth.runtime.interrupts import block_sigint
from growth.runtime.limits import CLOSED_PIPE, one_sentence, too_little_memory

BAD_INPUT = 2


def main() -> None:
    """Run the console script in a process of its own.

    Modules stay imported to the end, so garbage is seldom collected.
    """
    block_sigint()  # until a command can handle it
    open_standard_streams()
    gc.set_threshold(100_000, 50, 50)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # finding them scans every package
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's own threads would have no work
    if refusal := too_little_memory():
        sys.exit(_refused(refusal))
    status: int | str | None = 0
    try:
        from growth.cli.app import run

        run()
    except SystemExit as end:
        status = end.code
    except Exception as error:  # while modules are imported, or while something is printed
        text = one_sentence(error)
        if text is None:
            raise
        status = _refused(text)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command has finished
    leave(status)


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed.

    Otherwise the next opened file would get the stream's descriptor, and libraries would print into it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _refused(text: str) -> int:
    sys.stderr.write(f"Error: {text}\n")
    return BAD_INPUT


def leave(status: int | str | None) -> NoReturn:
    """End the process at once, since tearing down the interpreter takes longer than planning."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if status is None or isinstance(status, int):
            os._exit(status or 0)
    except BrokenPipeError:
        os._exit(CLOSED_PIPE)
    except OSError:  # output cannot be written: Python says so itself
        pass
    sys.exit(status)


if __name__ == "__main__":
    main()
