"""The command line: growth plan | grow | verify | inspect | recipe | recipes | diagnose | advise.

Exit status: 0 fine (of a verification: PASSED, or LOSSY as the given recipe says), 1 verification FAILED, 2 bad input,
3 cannot tell (of a verification: LOSSY, and only the grown folder says so), 141 nobody reads what is printed any more.
Heavy libraries are imported by the commands that need them, so that --help and plan start at once.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from growth.errors import ConfigError, GrowthError, MissingExtra, RecipeError, printable
from growth.runtime.interrupts import keyboard_held, unblock_sigint
from growth.runtime.launcher import rank_and_world_size
from growth.runtime.limits import CLOSED_PIPE, one_sentence
from growth.runtime.printable import printable_streams, say, stream_below

if TYPE_CHECKING:
    from rich.table import Table

    from growth.output.prefetch import Ahead
    from growth.planning.plan import Plan
    from growth.planning.recipe import Recipe
    from growth.verification.report import Report

FAILED, BAD_INPUT, UNCLEAR, INTERRUPTED = 1, 2, 3, 130
SHOWN = 4  # names of a long list
TOKENS = 128  # that two models are compared on
REDRAWN = 0.1  # seconds after which progress is drawn again

app = typer.Typer(
    rich_markup_mode=None,  # with markup, typer reads a Markdown parser before it shows a help text
    help="Start a larger language model from a smaller one, exactly.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """What a grown checkpoint is written as."""

    safetensors = "safetensors"
    dcp = "dcp"


RecipeName = Annotated[str, typer.Argument(help="A recipe file, or the name of a shipped recipe.")]
SourceName = Annotated[
    str | None,
    typer.Option("--source", "-s", help="Checkpoint folder or hub id (org/name@revision); by default the recipe's."),
]
Seed = Annotated[int | None, typer.Option(help="Of everything random; by default the recipe's.")]
Dtype = Annotated[str | None, typer.Option(help="float16, bfloat16, float32 or float64; by default the source's.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Text = Annotated[Path | None, typer.Option(help="Text to compare on; by default a built-in one.")]


@contextmanager
def refusals(interrupted: str = "Interrupted.") -> Iterator[None]:
    """Turns errors of ours, and those of the system, into a message and exit status 2; an interruption into 130."""
    try:
        unblock_sigint()
        yield
    except KeyboardInterrupt:
        say(interrupted, err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:  # whoever reads what is printed has seen enough
        raise
    except Exception as error:
        text = one_sentence(error)
        if text is None and not isinstance(error, GrowthError):
            raise
        say(*error.args if text is None else [text], mark="error: ", color="red", err=True)
        raise typer.Exit(BAD_INPUT) from None


@app.callback(invoke_without_command=True)
def no_command(context: typer.Context) -> None:
    """Print the help and refuse where no command is named."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=stream_below(err=True))
        raise typer.Exit(BAD_INPUT)


@app.command()
def plan(
    recipe: RecipeName,
    source: SourceName = None,
    dtype: Dtype = None,
    seed: Seed = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="Show every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a recipe does to a checkpoint, reading headers only."""
    with refusals():
        import growth.api

        result = growth.api.plan(recipe, source, dtype=dtype, seed=seed)
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
        return
    print_plan(result)
    if tensors:
        _print(_tensor_table(result))


@app.command()
def grow(
    context: typer.Context,
    recipe: RecipeName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to make.")],
    source: SourceName = None,
    dtype: Dtype = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="As transformers saves it, or as torch.distributed.checkpoint does: dcp cannot be resumed or shared.",
        ),
    ] = Format.safetensors,
    max_shard_size: Annotated[
        str | None, typer.Option(help="Such as 5GB; by default 1GB to 5GB, by the model's size.")
    ] = None,
    seed: Seed = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an interrupted growth left off.")] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Write the I-th of N shares of the files, I from 1; by default this process's of torchrun or srun.",
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="The source is a Trainer's checkpoint: grow its optimizer too.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the result in float64.")] = False,
) -> None:
    """Grow a checkpoint into a new folder."""
    began = time.perf_counter()
    resumable = form is Format.safetensors and not training
    stays = f"What is written of {output} goes on with --resume." if resumable else "Nothing is left behind."
    with refusals(f"Interrupted. {stays}"):
        own = _part(part)
        if part is None and own is not None and not resumable:
            raise ConfigError(
                "RANK and WORLD_SIZE, or srun's variables, say that this is one of several processes; --training and "
                "--format dcp are written by one. Run it outside of torchrun and srun, or unset them."
            )
        if training and (resume or own is not None or form is not Format.safetensors):
            raise ConfigError("--training writes in one go: leave out --resume, --part and --format.")
        if verify:
            _need_verification()
        from growth.checkpoints.hub import resolve

        with ExitStack() as stack:
            known: str | Ahead | None = source
            if source is not None and resumable and own is None:
                from growth.output.prefetch import read_ahead

                # while all else is imported, if not before
                known = context.obj or stack.enter_context(read_ahead(resolve(source)))
            # what makes modules, classes and schemas may take an interruption for its own affair
            with keyboard_held():
                import growth.api
                import growth.output.checkpoint_writer
                from growth.planning.recipe import load_recipe

                made = load_recipe(recipe)
                progress = stack.enter_context(progress_bars(unit="bytes"))
            if training:
                result = _grown_training(made, source, output, dtype, max_shard_size, seed, progress)
            else:
                result = growth.api.grow(
                    made,
                    known,
                    output,
                    dtype=dtype,
                    format=form.value,
                    max_shard_size=max_shard_size,
                    seed=seed,
                    part=own,
                    resume=resume,
                    progress=progress,
                    forks=True,
                )
    if own is not None and not output.exists():
        say(f"Wrote part {own[0]} of {own[1]}. {output} appears when the others have finished.")
        return
    seconds = time.perf_counter() - began
    print_notes(result.notes, result.dropped)
    say(
        f"Wrote {output}: {result.parameters:,} parameters, {result.bytes / 1e9:.2f} GB, in {seconds:.1f} s. "
        f"{_promise(result)}."
    )
    if not verify:
        given = "" if result.preserving else f" --recipe {recipe}" + ("" if seed is None else f" --seed {seed}")
        say(f"Check it: growth verify {source or made.source} {output}{given}")
        return
    with refusals():
        folder = resolve(source or made.source or "")
        _verified(folder, output, "float64", None, None, recipe, as_json=False, seed=seed)


def _promise(plan: Plan) -> str:
    """What a growth that was written computes."""
    if plan.preserving:
        return "It computes what its source does"
    if plan.keeps_logits:
        return "It has its source's logits; the tokens that were added take some of the probability"
    return "It is lossy: it computes something else"


def _grown_training(
    recipe: Recipe,
    source: str | None,
    output: Path,
    dtype: str | None,
    max_shard_size: str | None,
    seed: int | None,
    progress: Callable[[str, int, int], None],
) -> Plan:
    if dtype is not None:
        raise ConfigError("--training keeps the types that the run has: leave out --dtype.")
    _need_verification()
    from growth.training.trainer_checkpoint import grow_training

    return grow_training(recipe, source, output, max_shard_size=max_shard_size, seed=seed, progress=progress)


def _part(text: str | None) -> tuple[int, int] | None:
    """The share that is asked for, or that the launcher of this process has in mind."""
    if text is None:
        return rank_and_world_size()
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise RecipeError(f"--part '{text}' is not of the form I/N, such as 1/4 for the first of four.")
    return int(index), int(count)


@app.command()
def verify(
    source: Annotated[
        str, typer.Argument(help="The checkpoint that was grown: a folder or hub id (org/name@revision).")
    ],
    grown: Annotated[Path, typer.Argument(help="What it grew into.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="What both models compute in: float64 (the default; proof-grade), float32, or stored: the type that "
            "each is stored in. With --weights: as it was given to grow."
        ),
    ] = None,
    text: Text = None,
    tokens: Annotated[int, typer.Option(min=4, help="How many tokens to run on, in two rows.")] = TOKENS,
    as_json: Json = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Compute every tensor and file again from the source and compare every bit."),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(help="The recipe of the growth; by default what the grown folder's growth.json states."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="As it was given to grow; by default --recipe's own.")] = None,
    generation: Annotated[
        bool,
        typer.Option(
            "--generation",
            help="Also compare generation, with cache, padding, sdpa and long prompts; loads both whole.",
        ),
    ] = False,
) -> None:
    """Compare both models on real tokens, and in full what these do not reach. With --weights: compare every bit.

    The status is PASSED, FAILED (exit status 1), or LOSSY: the recipe says that it changes the function, and all that
    was checked in full is as the recipe makes it (exit status 0 with --recipe; 3 where only the grown folder says so).
    """
    with refusals():
        from growth.checkpoints.hub import resolve

        if weights and (text is not None or report is not None or tokens != TOKENS):
            raise ConfigError("--weights compares bits: leave out --text, --tokens and --report.")
        if weights and generation:
            raise ConfigError("--weights compares bits: leave out --generation.")
        if seed is not None and recipe is None and not weights:
            raise ConfigError("--seed goes with a recipe: give --recipe too, or leave out --seed.")
        if report is not None:
            _check_place(report)
        if weights:
            _weights_verified(resolve(source), grown, recipe, seed, dtype, as_json=as_json)
        else:
            _verified(
                resolve(source),
                grown,
                dtype or "float64",
                text,
                report,
                recipe,
                as_json=as_json,
                tokens=tokens,
                seed=seed,
                generation=generation,
            )


def _weights_verified(
    source: Path, grown: Path, recipe: str | None, seed: int | None, dtype: str | None, *, as_json: bool
) -> None:
    from growth.verification.bitwise import verify_weights

    with progress_bars(unit="bytes") as progress:
        result = verify_weights(source, grown, recipe, seed=seed, dtype=dtype, progress=progress, forks=True)
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        mark: tuple[str, Literal["green", "red"]] = ("PASSED", "green") if result.passed else ("FAILED", "red")
        say(f"  {result.verdict()}", mark=mark[0], color=mark[1])
        for kind, found in (("", result.problems), ("warning: ", result.warnings)):
            for name, text in found.items():
                say(f"  {kind}{name}: {text}")
    if not result.passed:
        raise typer.Exit(FAILED)


def _verified(
    source: Path,
    grown: Path,
    dtype: str,
    text: Path | None,
    report: Path | None,
    recipe: str | None,
    *,
    as_json: bool,
    tokens: int = TOKENS,
    seed: int | None = None,
    generation: bool = False,
) -> None:
    _need_verification()
    from growth.verification.verify import verify

    if report is not None:
        _need("matplotlib", "report")
    with progress_bars(unit="layers") as progress:
        result: Report = verify(
            source,
            grown,
            recipe,
            growth_seed=seed,
            dtype=dtype,
            text=text,
            tokens=tokens,
            generation=generation,
            progress=progress,
        )
    if as_json:
        print(json.dumps(result.to_dict(), indent=1))
    else:
        _print(result.table())
    if report is not None:
        from growth.verification.html_report import write_html

        write_html(result, source, grown, report)
        say(f"Report: {report}", err=as_json)
    if result.status == "FAILED":
        raise typer.Exit(FAILED)
    if result.unconfirmed:
        raise typer.Exit(UNCLEAR)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="A checkpoint folder or hub id (org/name@revision).")],
    as_json: Json = False,
) -> None:
    """Show a checkpoint's geometry, parameters, types, NaN and Inf."""
    with refusals():
        from growth.verification.inspect import inspect_checkpoint

        found = inspect_checkpoint(folder)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        table = _table(f"{folder} ({found.model_type})", "", "")
        for name, size in found.sizes.items():
            table.add_row(name, f"{size:,}")
        table.add_section()
        table.add_row("parameters", f"{found.parameters:,}")
        table.add_row("bytes", f"{found.bytes / 1e9:.3f} GB in {found.files} file{'s' * (found.files > 1)}")
        for dtype, count in found.dtypes.items():
            table.add_row(dtype, f"{count:,} values")
        table.add_row("NaN or Inf", ", ".join(f"{n}: {c:,}" for n, c in found.not_finite.items()) or "none")
        table.add_row("can grow", found.problem or "yes")
        _print(table)
        print_notes(found.notes, found.dropped)
    if found.not_finite:
        raise typer.Exit(FAILED)


@app.command()
def recipe(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder, or its config.json.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET_CONFIG", help="config.json of the geometry to reach.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; else printed.")] = None,
) -> None:
    """Write the exact recipe from a checkpoint to a target config."""
    with refusals():
        if output is not None:
            _check_new(output)
        from growth.checkpoints.untrusted import read_config
        from growth.planning.derive import derive_recipe, recipe_text

        derived, remarks = derive_recipe(
            read_config(_config(source)), read_config(_config(target)), name=printable(source.stem)
        )
        text = recipe_text(derived, remarks)
        if output is not None:
            with output.open("x") as file:
                file.write(text)
    if output is None:
        print(text, end="")
    else:
        say(f"Wrote {output}.")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from growth.planning.recipe import load_recipe, shipped_recipes

    table = _table("Shipped recipes", "name", "description")
    for path in shipped_recipes():
        table.add_row(path.stem, load_recipe(path).description)
    _print(table)


@app.command()
def diagnose(
    init: Annotated[str, typer.Argument(help="The grown checkpoint as growth grow wrote it, with its growth.json.")],
    trained: Annotated[str, typer.Argument(help="A checkpoint that was trained from it: a folder or hub id.")],
    plot: Annotated[Path | None, typer.Option(help="Draw it to a PNG or SVG file.")] = None,
    as_json: Json = False,
) -> None:
    """Show whether copies diverged, new layers work and new units grew.

    Exit status: 0 where no copies are locked, 1 where some are, 3 where that cannot be told.
    """
    with refusals():
        if plot is not None:
            _need("matplotlib", "report")
            if plot.suffix not in (".png", ".svg"):
                raise ConfigError(f"{plot} is named neither .png nor .svg.")
            _check_place(plot)
        from growth.training.diagnosis import diagnose

        found = diagnose(init, trained)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        _print(found.table())
    if plot is not None:
        with refusals():
            from growth.training.diagnosis_plot import diagnosis_figure

            with plot.open("xb") as file:
                diagnosis_figure(found).savefig(file, dpi=110, format=plot.suffix[1:])
        say(f"Plot: {plot}", err=as_json)
    if found.verdict in ("locked", "cannot tell"):
        raise typer.Exit(FAILED if found.verdict == "locked" else UNCLEAR)


@app.command()
def advise(
    params: Annotated[str, typer.Option(help="Parameters of the model that is to grow, such as 1.3B.")],
    tokens: Annotated[str, typer.Option(help="Tokens that it was trained on, such as 150B.")],
    to: Annotated[str, typer.Option(help="Parameters of the grown model, such as 2.7B.")],
    planned_tokens: Annotated[str | None, typer.Option(help="Tokens that the grown model is to see.")] = None,
    as_json: Json = False,
) -> None:
    """Show what published evidence says of a planned growth."""
    with refusals():
        from growth.training.advice import advise

        found = advise(params, tokens, to, planned_tokens)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
    else:
        _print(found.table())


# ------------------------------------------------- what people see


def print_plan(plan: Plan) -> None:
    """Sizes before and after, and each operator's promise."""
    _print(_size_table(plan))
    _print(_step_table(plan))
    print_notes(plan.notes, plan.dropped)
    if plan.kept:
        say(f"Config keys that the {plan.source.model_type} table does not use, kept: {', '.join(plan.kept)}")


def print_notes(notes: Sequence[str], dropped: Sequence[str]) -> None:
    """How a source was read: what was chosen between, renamed or left out."""
    for note in notes:
        say(f"Note: {note}")
    if dropped:
        more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
        say(f"Left out, because the model class computes them: {', '.join(dropped[:SHOWN])}{more}")


def _size_table(plan: Plan) -> Table:
    from growth.planning.manifest import sizes

    verdict = "computes the same function" if plan.preserving else "lossy: another function"
    if plan.keeps_logits and not plan.preserving:
        verdict = "lossy: the same logits, and tokens that take some of the probability"
    table = _table(f"{plan.source.model_type} · {verdict}", "", "before", "after", "ratio")
    before, after = sizes(plan.source), sizes(plan.target)
    for name in after:
        _row(table, name, before[name], after[name])
    table.add_section()
    old_parameters = sum(_count(plan.source.shape(w)) * len(plan.source.names(w)) for w in plan.source.weights)
    _row(table, "parameters", old_parameters, plan.parameters)
    old_bytes = sum({row.source.name: row.source.bytes for row in plan.tensors}.values())
    _row(table, "bytes", old_bytes, plan.bytes)
    for key, value in plan.config.items():
        old = plan.source.config.get(key)
        if isinstance(old, float) and isinstance(value, float) and old != value:
            table.add_row(key, f"{old:g}", f"{value:g}", f"{value / old:.3g}×")
    return table


def _row(table: Table, name: str, old: int, new: int) -> None:
    style = "bold" if old != new else "dim"
    table.add_row(name, f"{old:,}", f"{new:,}", f"{new / old:.4g}×" if old != new else "", style=style)


def _count(shape: tuple[int, ...]) -> int:
    from math import prod

    return prod(shape)


def _step_table(plan: Plan) -> Table:
    from rich.text import Text

    table = _table("", "operator", "preserving", "why")
    for step in plan.growth.steps:
        promise = Text("yes", "green") if step.preserving else Text("no", "bold red")
        table.add_row(step.operator, promise, step.why)
    return table


def _tensor_table(plan: Plan) -> Table:
    table = _table("", "tensor", "shape", "dtype", "from layer", "how")
    table.columns[0].no_wrap = True
    for row in plan.tensors:
        layer = next((part for part in row.source.name.split(".") if part.isdigit()), "")
        table.add_row(row.target, " × ".join(map(str, row.shape)), row.dtype, layer, row.what)
    return table


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        numeric = column in ("before", "after", "ratio")
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table


def _print(renderable: Any) -> None:
    from growth.runtime.terminal import PrintableConsole

    PrintableConsole().print(renderable, soft_wrap=True)  # a line of a text begins where it says so


@contextmanager
def progress_bars(unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each phase on the terminal's error stream; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda phase, done, total: None
        return
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from growth.runtime.terminal import PrintableConsole

    count = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    columns = (TextColumn("{task.description:14}", markup=False), BarColumn(), count, TimeRemainingColumn())
    console = PrintableConsole(err=True)
    tasks: dict[str, Any] = {}
    drawn = 0.0
    # no thread that draws: a process that has one cannot be forked
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as bars, printable_streams():

        def progress(phase: str, done: int, total: int) -> None:
            nonlocal drawn
            if phase not in tasks:
                tasks[phase] = bars.add_task(phase, total=total)
            bars.update(tasks[phase], completed=done, total=total)
            if done == total or time.monotonic() - drawn > REDRAWN:
                bars.refresh()
                drawn = time.monotonic()

        yield progress


def _check_place(path: Path) -> None:
    """Refuses a file that cannot be written, before the work that it is to hold is done."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: it is a folder, or its folder does not exist.")
    _check_new(path)


def _check_new(path: Path) -> None:
    """Refuses a file that is there already, whoever's it is."""
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already. Choose another name, or remove it first.")


def _config(path: Path) -> Path:
    return path / "config.json" if path.is_dir() else path


def _need_verification() -> None:
    for package in ("transformers", "accelerate"):
        _need(package, "verify")


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise MissingExtra(package, extra)


def run(ahead: Ahead | None = None) -> None:
    """Does what the arguments of this process say; ahead: the source of a growth, where it is read already."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows ASCII alone is no reason to fail
    try:
        with printable_streams():
            _run_app(ahead)
    except OSError as error:  # outside of what a command does: its words cannot be printed
        sys.stderr.write(f"error: what there is to say cannot be written: {error.strerror}.\n")
        sys.exit(BAD_INPUT)


def _run_app(ahead: Ahead | None) -> None:
    try:
        app(obj=ahead)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer's own status for it is that of a failed verification
            sys.exit(CLOSED_PIPE)
        raise
    except Exception as error:
        if one_sentence(error) is not None:
            raise
        import traceback  # Python's own would print what is quoted as it is

        traceback.print_exc()
        sys.exit(FAILED)
