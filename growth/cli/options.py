"""What commands share: their options, their registration with examples, and the exit statuses."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from growth.runtime.logs import set_loudness

FAILED, INVALID, INCONCLUSIVE, INTERRUPTED = 1, 2, 3, 130  # exit statuses
STATUSES = """Exit status:

\b
  0    success; for verify, PASSED, or LOSSY as the given recipe says
  1    verify: FAILED; diagnose: identical copies; inspect: NaN or Inf;
       schedule: growth is not worth it
  2    bad input, or a limit of the system; one sentence says which
  3    undetermined; the help of each command says when
  130  interrupted
  141  the reader of the output closed it"""


class Format(StrEnum):
    """Formats of a grown checkpoint."""

    safetensors = "safetensors"
    dcp = "dcp"


def home_expanded(text: str) -> Path:
    """A path, with ~ as the home folder."""
    return Path(text).expanduser()


def path_option(*names: str, help: str) -> Any:
    """An option that takes a path."""
    return typer.Option(*names, help=help, parser=home_expanded, metavar="PATH")


def path_argument(name: str, help: str) -> Any:
    """An argument that takes a path."""
    return typer.Argument(help=help, parser=home_expanded, metavar=name)


RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")]
SourceName = Annotated[
    str | None,
    typer.Option(
        "--source", "-s", help="Checkpoint folder or hub id (org/name@revision); by default, the recipe's source."
    ),
]
Seed = Annotated[int | None, typer.Option(help="The random seed; by default the recipe's.")]
Dtype = Annotated[str | None, typer.Option(help="float16, bfloat16, float32 or float64; by default the source's.")]
Dequantize = Annotated[
    bool,
    typer.Option(
        "--dequantize",
        help="The source is quantised in FP8 (weight_scale_inv): dequantise it while it is read.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
COMMON = {  # of every command
    "quiet": typer.Option(
        "--quiet",
        "-q",
        help="Print only results and errors: no progress bars, no hints; of verify and schedule, only the verdict.",
    ),
    "verbose": typer.Option("--verbose", "-v", help="Print what is done on stderr, as log lines."),
}
Command = TypeVar("Command", bound=Callable[..., None])


def command_of(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Command], Command]:
    """Register a function as a command of an app, with the options of every command.

    examples: for the end of its help text.
    name: of the command; by default the function's.
    """
    lines = "".join(f"  growth {example}\n" for example in examples)

    def registered(function: Command) -> Command:
        stated = signature(function, eval_str=True)
        common = (
            Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
            for name, option in COMMON.items()
        )

        @wraps(function)
        def run(*, quiet: bool, verbose: bool, **given: Any) -> None:
            set_loudness(quiet=quiet, verbose=verbose)
            function(**given)

        run.__signature__ = stated.replace(parameters=[*stated.parameters.values(), *common])  # type: ignore[attr-defined]
        app.command(name, epilog=f"Examples:\n\n\b\n{lines}")(run)
        return function

    return registered
