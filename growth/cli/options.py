"""What commands share: their options, their registration with examples, and the exit statuses."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from growth.runtime.logs import set_loudness

FAILED, INVALID, INCONCLUSIVE, INTERRUPTED = 1, 2, 3, 130  # exit statuses
STATUSES = """Exit status:

\b
  0    success; verify: PASSED, or LOSSY as --recipe says
  1    verify: FAILED; diagnose: identical copies;
       inspect: NaN or Inf; schedule: not worth it;
       family: not exact
  2    bad input, or a limit of the system: the error
       says which
  3    undetermined: each command's help says when
  130  interrupted
  141  the reader of the output closed it"""
GIVEN = "growth.given"  # where the context of a command keeps the words that were typed
WIDTH = 54  # columns of an example, so that a help text fits a terminal of 60


class Format(StrEnum):
    """Formats of a grown checkpoint."""

    safetensors = "safetensors"
    dcp = "dcp"


class Command(TyperCommand):
    """A command whose help names its arguments as its examples write them: SOURCE, without braces or types."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse arguments; where one too many may be the source, say how a source is named."""
        ctx.meta[GIVEN] = ["growth", str(ctx.info_name), *args]
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # typer may carry its own copy of click, and so of this error
            said = getattr(error, "message", "")
            options = {option for each in self.get_params(ctx) for option in each.opts}
            if said.startswith("Got unexpected extra argument") and "--source" in options:
                error.message = f"{said}. The source is named by an option: --source SOURCE"  # type: ignore[attr-defined]
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The arguments of the line of usage."""
        arguments = [each for each in self.get_params(ctx) if _is_argument(each)]
        return ["[OPTIONS]", *(f"{each.metavar}" if each.required else f"[{each.metavar}]" for each in arguments)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options."""
        for title, wanted in (("Arguments", True), ("Options", False)):
            shown = [each for each in self.get_params(ctx) if _is_argument(each) == wanted]
            rows = [row for each in shown if (row := each.get_help_record(ctx)) is not None]
            if rows:
                with formatter.section(title):
                    formatter.write_dl([(name.split()[0] if wanted else name, text) for name, text in rows])


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def home_expanded(text: str) -> Path:
    """A path, with ~ as the home folder."""
    return Path(text).expanduser()


def path_option(*names: str, help: str) -> Any:
    """An option that takes a path."""
    return typer.Option(*names, help=help, parser=home_expanded, metavar="PATH")


def path_argument(name: str, help: str) -> Any:
    """An argument that takes a path."""
    return typer.Argument(help=help, parser=home_expanded, metavar=name)


def whole_number(text: str | int) -> int:
    """An integer, which may be negative."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is not a whole number.") from None


def recipe_names(incomplete: str) -> list[str]:
    """The names of shipped recipes that begin so."""
    from growth.planning.recipe import shipped_recipes

    return [path.stem for path in shipped_recipes() if path.stem.startswith(incomplete)]


RecipeName = Annotated[
    str, typer.Argument(help="A recipe file, or the name of a shipped recipe.", autocompletion=recipe_names)
]
SourceName = Annotated[
    str | None,
    typer.Option(
        "--source", "-s", help="Checkpoint folder or hub id (org/name@revision); by default, the recipe's source."
    ),
]
Seed = Annotated[int | None, typer.Option(parser=whole_number, help="The random seed; by default the recipe's.")]
Dtype = Annotated[str | None, typer.Option(help="float16, bfloat16, float32 or float64; by default the source's.")]
Dequantize = Annotated[
    bool,
    typer.Option(
        "--dequantize",
        help="Dequantise the source, which is stored in FP8 (weight_scale_inv), while it is read.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
COMMON = {  # of every command
    "quiet": typer.Option(
        "--quiet",
        "-q",
        help="Print only results and errors, without progress bars and hints; verify and schedule print the verdict.",
    ),
    "verbose": typer.Option("--verbose", "-v", help="Print what is done on stderr, as log lines."),
}
Function = TypeVar("Function", bound=Callable[..., None])


def command_of(app: typer.Typer, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
    """Register a function as a command of an app, with the options of every command.

    examples: for the end of its help text.
    name: of the command; by default the function's.
    """
    lines = "".join(map(_wrapped, examples))

    def registered(function: Function) -> Function:
        stated = signature(function, eval_str=True)
        for parameter in stated.parameters.values():
            _name_value(parameter)
        common = (
            Parameter(name, Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option])
            for name, option in COMMON.items()
        )

        @wraps(function)
        def run(*, quiet: bool, verbose: bool, **given: Any) -> None:
            set_loudness(quiet=quiet, verbose=verbose)
            function(**given)

        run.__signature__ = stated.replace(parameters=[*stated.parameters.values(), *common])  # type: ignore[attr-defined]
        app.command(name, cls=Command, epilog=f"Examples:\n\n\b\n{lines}")(run)
        return function

    return registered


def _name_value(parameter: Parameter) -> None:
    """Name an argument, and the value of an option by the option's last word, unless a name is stated."""
    stated = get_args(parameter.annotation)[1]
    if stated.metavar is None:
        words = parameter.name.upper()
        stated.metavar = words.rpartition("_")[2] if isinstance(stated, OptionInfo) else words


def _wrapped(example: str) -> str:
    """An example as lines that a shell takes as one command."""
    lines = [""]
    for word in f"growth {example}".replace(" -", "\0-").split("\0"):
        if lines[-1] and len(lines[-1]) + len(word) >= WIDTH:
            lines[-1] += " \\"
            lines.append(" ")
        lines[-1] += f" {word}" if lines[-1] else word
    return "".join(f"  {line}\n" for line in lines)
