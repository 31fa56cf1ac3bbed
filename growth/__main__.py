"""The command from its first moment: what a growth reads is read while its arguments are."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from growth.errors import GrowthError
from growth.runtime.interrupts import block_sigint
from growth.runtime.launcher import rank_and_world_size
from growth.runtime.limits import CLOSED_PIPE, one_sentence, too_little_memory

if TYPE_CHECKING:
    from growth.output.prefetch import Ahead

BAD_INPUT = 2
SOURCE = ("--source", "-s")
PARTIAL = ("--part", "--training", "--format")  # such growths do not read all of it, or in another way


def main() -> None:
    """The console script: a process of its own, whose interpreter can be set for what it does.

    What it imports stays to the end, so it seldom looks for garbage.
    """
    block_sigint()  # until a command is there to answer
    open_standard_streams()
    gc.set_threshold(100_000, 50, 50)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it would look for some in all that is installed
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's: its threads would wait for work there is not
    if refusal := too_little_memory():
        sys.exit(_refused(refusal))
    with ExitStack() as stack:
        status: int | str | None = 0
        try:
            ahead = begun_early(sys.argv[1:], stack)
            from growth.cli.app import run

            run(ahead)
        except SystemExit as end:
            status = end.code
        except Exception as error:  # outside of what a command does: while it imports, or prints
            text = one_sentence(error)
            if text is None:
                raise
            status = _refused(text)
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said and done
    leave(status)


def open_standard_streams() -> None:
    """Opens /dev/null for each standard stream that is closed.

    Otherwise the next file that is opened would have the stream's descriptor, and hold what libraries print there.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _refused(text: str) -> int:
    sys.stderr.write(f"error: {text}\n")
    return BAD_INPUT


def leave(status: int | str | None) -> NoReturn:
    """Ends the process at once: taking apart what it has in memory would take longer than planning does."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        if status is None or isinstance(status, int):
            os._exit(status or 0)
    except BrokenPipeError:
        os._exit(CLOSED_PIPE)
    except OSError:  # what is printed cannot be written: Python has its own words for that
        pass
    sys.exit(status)


def begun_early(arguments: Sequence[str], stack: ExitStack) -> Ahead | None:
    """Has the folder that a growth names read from now on; whether it can be is said by the command, not here."""
    folder = named_source(arguments)
    if folder is None or rank_and_world_size() is not None:
        return None
    with suppress(GrowthError, OSError):
        from growth.output.prefetch import read_ahead

        return stack.enter_context(read_ahead(folder))
    return None


def named_source(arguments: Sequence[str]) -> Path | None:
    """The folder that all of is read if these are the arguments, as far as one sees without parsing them."""
    if arguments[:1] != ["grow"] or any(argument.startswith(PARTIAL) for argument in arguments):
        return None
    named = [value for name, value in pairwise(arguments) if name in SOURCE]
    named += [argument.removeprefix("--source=") for argument in arguments if argument.startswith("--source=")]
    return Path(named[0]) if len(named) == 1 and os.path.isdir(named[0]) else None


if __name__ == "__main__":
    main()
