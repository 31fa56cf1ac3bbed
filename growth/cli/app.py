"""The command line: growth plan | grow | verify | inspect | recipe | recipes | diagnose | advise | schedule.

Exit status: 0 success (of a verification: PASSED, or LOSSY as the given recipe states), 1 verification FAILED, 2
invalid input, 3 inconclusive (of a verification: LOSSY, and only the grown folder says so), 130 interrupted, 141 the
reader of stdout or stderr closed it. Commands import heavy libraries where they use them, so that --help and plan start
at once.
"""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from growth.cli.progress import progress_bars
from growth.errors import ConfigError, GrowthError, MissingExtra, RecipeError, printable
from growth.runtime.interrupts import sigint_blocked, unblock_sigint
from growth.runtime.launcher import launched_part, stated_part
from growth.runtime.limits import CLOSED_PIPE, one_sentence
from growth.runtime.printable import printable_streams, say, stream_below
from growth.version import __version__

if TYPE_CHECKING:
    from growth.planning.plan import Plan

FAILED, INVALID, INCONCLUSIVE, INTERRUPTED = 1, 2, 3, 130  # exit statuses
TOKENS = 128  # default of verify --tokens
PLOTS = (".png", ".svg")
VERIFY = ("verify", "transformers", "accelerate")  # an extra, and its packages


class Commands(TyperGroup):
    """The commands; prints expected errors as one message with exit status 2, and an interruption with 130."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            unblock_sigint()
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _interrupted("Interrupted.")
        except BrokenPipeError:
            raise
        except Exception as error:
            text = one_sentence(error)
            if text is None and not isinstance(error, GrowthError):
                raise
            say(*(error.args if text is None else [text]), mark="error: ", color="red", err=True)
            raise typer.Exit(INVALID) from None


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # with markup, typer imports a Markdown parser to print a help text
    help="Start a larger language model from a smaller one, exactly.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """Formats of a grown checkpoint."""

    safetensors = "safetensors"
    dcp = "dcp"


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"growth {__version__}")
        raise typer.Exit


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


@app.callback(invoke_without_command=True)
def no_command(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Print the help and exit with status 2 where no command is named."""
    if context.invoked_subcommand is None:
        print(context.get_help(), file=stream_below(err=True))
        raise typer.Exit(INVALID)


@app.command()
def plan(
    recipe: RecipeName,
    source: SourceName = None,
    dtype: Dtype = None,
    seed: Seed = None,
    dequantize: Dequantize = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a recipe does to a checkpoint, reading only its headers."""
    import growth.api
    from growth.cli.tables import show_plan

    result = growth.api.plan(recipe, source, dtype=dtype, seed=seed, dequantize=dequantize)
    _show(result, as_json, partial(show_plan, tensors=tensors))


@app.command()
def grow(
    recipe: RecipeName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to create.")],
    source: SourceName = None,
    dtype: Dtype = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="The output format: safetensors, as transformers saves it, or dcp, for torch.distributed.checkpoint "
            "(no --resume, --part or --max-shard-size).",
        ),
    ] = Format.safetensors,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            help="Maximum size of a file, such as 5GB; by default 1GB to 5GB, depending on the size of the model."
        ),
    ] = None,
    seed: Seed = None,
    dequantize: Dequantize = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Write part I of N of the files, with I from 1 to N; auto takes it from RANK and WORLD_SIZE. Under "
            "torchrun or srun, the default is the part of this process.",
        ),
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="The source is a Trainer's checkpoint: grow its optimizer state too.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the result in float64.")] = False,
) -> None:
    """Grow a checkpoint into a new folder."""
    start = time.perf_counter()
    finished = os.path.exists(output)  # only --resume and --part accept it, and then nothing is written
    share = launched_part() if part is None else _share(part)
    if part is None and share is None and (stated := stated_part()):
        say(
            f"{stated[1]} are set, and neither torchrun nor srun started this process: it writes the whole checkpoint. "
            "To write the part of that rank, give --part auto.",
            err=True,
        )
    resumable = form is Format.safetensors and not training
    _check_grow(share, part, form, dtype, resume=resume, training=training)
    if training and dequantize:
        raise ConfigError("--training grows a Trainer's checkpoint, which is not quantised: leave out --dequantize.")
    if verify or training:
        _need(*VERIFY)
    from growth.checkpoints.hub import resolve

    with _resume_hint(resumable), ExitStack() as stack:
        with sigint_blocked():  # an interrupted import may leave a module half made
            import growth.api
            import growth.output.checkpoint_writer
            from growth.planning.recipe import load_recipe

            loaded = load_recipe(recipe)
            progress = stack.enter_context(progress_bars("bytes"))
        common: dict[str, Any] = {"max_shard_size": max_shard_size, "seed": seed, "progress": progress}
        if training:
            from growth.training.trainer_checkpoint import grow_training

            result = grow_training(loaded, source, output, **common)
        else:
            result = growth.api.grow(
                loaded,
                source,
                output,
                dtype=dtype,
                format=form.value,
                dequantize=dequantize,
                part=share,
                resume=resume,
                forks=True,
                **common,
            )
    if share is not None and not output.exists():
        say(f"Wrote part {share[0]} of {share[1]}. {output} appears when all parts are written.")
        return
    if finished:
        say(f"{output} is finished already: nothing was written. Its files have the hashes that growth.json records.")
    else:
        _report_growth(result, output, time.perf_counter() - start)
    folder = source or loaded.source or ""
    if verify:
        _verify_function(resolve(folder), output, recipe=recipe, growth_seed=seed, dequantize=dequantize)
    else:
        command = ["growth", "verify", folder, str(output), "--recipe", recipe]
        command += ([] if seed is None else ["--seed", str(seed)]) + ["--dequantize"] * dequantize
        say(f"To verify it: {shlex.join(command)}")


def _check_grow(
    share: tuple[int, int] | None, part: str | None, form: Format, dtype: str | None, *, resume: bool, training: bool
) -> None:
    """Refuse options of grow that exclude one another."""
    if share is not None and part is None and (training or form is Format.dcp):
        raise ConfigError(
            f"The environment variables of torchrun or srun make this process {share[0]} of {share[1]}: it is one of "
            "several processes, and --training and --format dcp need a single one. Run outside of torchrun and srun, "
            "or unset the variables."
        )
    if training and (resume or part is not None or form is not Format.safetensors):
        raise ConfigError("--training writes safetensors in a single run: leave out --resume, --part and --format.")
    if training and dtype is not None:
        raise ConfigError("--training keeps the dtypes of the run: leave out --dtype.")


def _share(part: str) -> tuple[int, int]:
    if part == "auto":
        if stated := stated_part():
            return stated[0]
        raise RecipeError("--part auto needs RANK and WORLD_SIZE (or those of srun) of several processes: set them.")
    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise RecipeError(f"--part '{part}' is neither auto nor of the form I/N, such as 1/4 for the first of four.")
    return int(index), int(count)


@contextmanager
def _resume_hint(resumable: bool) -> Iterator[None]:
    """Say how to continue where the keyboard interrupts."""
    try:
        yield
    except KeyboardInterrupt:
        hint = "To continue, run the same command with --resume." if resumable else "Nothing is left behind."
        _interrupted(f"Interrupted. {hint}")


def _report_growth(result: Plan, output: Path, seconds: float) -> None:
    if result.notes or result.dropped:
        from growth.planning.plan_table import note_lines

        say(*note_lines(result.notes, result.dropped))
    if result.preserving:
        promise = "It computes the same function as its source"
    elif result.keeps_logits:
        promise = "It computes the logits of its source; the added tokens take some of the probability"
    else:
        promise = "It is lossy: it computes another function than its source"
    say(
        f"Wrote {output}: {result.parameters:,} parameters, {result.bytes / 1e9:.2f} GB, in {seconds:.1f} s. {promise}."
    )


@app.command()
def verify(
    source: Annotated[
        str, typer.Argument(help="The checkpoint that was grown: a folder or hub id (org/name@revision).")
    ],
    grown: Annotated[Path, typer.Argument(help="The folder that it was grown into.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The dtype in which both models compute: float64 (default; shows exactness to 1e-12), float32, or "
            '"stored" to use the dtype of each checkpoint. With --weights, the --dtype that was passed to grow.'
        ),
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="Text file to run both models on; by default a built-in text.")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=4, help="Total number of tokens to run, in two rows of equal length.")
    ] = TOKENS,
    as_json: Json = False,
    report: Annotated[Path | None, typer.Option(help="Write an HTML report.")] = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Recompute every tensor and file from the source and the recipe, and compare every bit."
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="The recipe that was passed to grow; by default, the one recorded in the grown folder's growth.json."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The --seed that was passed to grow; by default, the seed of --recipe.")
    ] = None,
    dequantize: Dequantize = False,
    generation: Annotated[
        bool,
        typer.Option(
            "--generation",
            help="Also compare generation: cache, padding, sdpa attention and long prompts; loads both models whole.",
        ),
    ] = False,
    stability: Annotated[
        bool,
        typer.Option("--stability", help="Also measure how a difference between copies of residual channels grows."),
    ] = False,
) -> None:
    """Compare what both models compute.

    Run both models on the same tokens; also compare embedding, head, norms, biases, config and list of files in full.
    With --weights, compare every bit.

    The status is PASSED (exit status 0); FAILED (1); or LOSSY: the recipe changes the function, and everything that was
    checked in full matches it (0 with --recipe; 3 if only the grown folder says that its recipe is lossy).
    """
    from growth.checkpoints.hub import resolve

    if weights and (text is not None or report is not None or tokens != TOKENS or generation or stability):
        raise ConfigError(
            "--weights compares bits: leave out --text, --tokens, --report, --generation and --stability."
        )
    if seed is not None and recipe is None and not weights:
        raise ConfigError("--seed needs a recipe: give --recipe too, or leave out --seed.")
    if weights:
        _verify_weights(resolve(source), grown, recipe, as_json, seed=seed, dtype=dtype, dequantize=dequantize)
        return
    if report is not None:
        _check_writable(report)
    options: dict[str, Any] = {"text": text, "tokens": tokens, "generation": generation, "growth_seed": seed}
    options |= {"recipe": recipe, "dtype": dtype or "float64", "stability": stability, "dequantize": dequantize}
    _verify_function(resolve(source), grown, as_json=as_json, report=report, **options)


def _verify_weights(source: Path, grown: Path, recipe: str | None, as_json: bool, **options: Any) -> None:
    from growth.cli.tables import show_weights
    from growth.verification.bitwise import verify_weights

    with progress_bars("bytes") as progress:
        result = verify_weights(source, grown, recipe, progress=progress, forks=True, **options)
    _show(result, as_json, show_weights)
    if not result.passed:
        raise typer.Exit(FAILED)


def _verify_function(
    source: Path, grown: Path, *, as_json: bool = False, report: Path | None = None, **options: Any
) -> None:
    _need(*VERIFY)
    if report is not None:
        _need("report", "matplotlib")
    from growth.verification.verify import verify

    with progress_bars("layers") as progress:
        result = verify(source, grown, progress=progress, **options)
    _show(result, as_json)
    if report is not None:
        from growth.checkpoints.open import open_checkpoint
        from growth.verification.html_report import write_html

        opened = open_checkpoint(source, dequantize=bool(options.get("dequantize")))
        write_html(result, opened, grown, report)
        say(f"Report: {report}", err=as_json)
    if result.status == "FAILED":
        raise typer.Exit(FAILED)
    if result.unconfirmed:
        raise typer.Exit(INCONCLUSIVE)


@app.command()
def inspect(
    folder: Annotated[str, typer.Argument(help="A checkpoint folder or hub id (org/name@revision).")],
    as_json: Json = False,
) -> None:
    """Show a checkpoint's geometry, size, dtypes, NaN and Inf."""
    from growth.cli.tables import show_inspection
    from growth.verification.inspect import inspect_checkpoint

    found = inspect_checkpoint(folder)
    _show(found, as_json, partial(show_inspection, folder))
    if found.not_finite:
        raise typer.Exit(FAILED)


@app.command()
def recipe(
    source: Annotated[Path, typer.Argument(help="A checkpoint folder, or its config.json.")],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET_CONFIG", help="The config.json that states the target geometry.")
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write; printed by default.")] = None,
    lossy: Annotated[
        bool,
        typer.Option(
            "--lossy",
            help="Take the config values that no exact recipe changes (another activation, window, rotary base, …) "
            "from the target, in a step `configure`; the grown model is then not the source's function.",
        ),
    ] = False,
    dequantize: Dequantize = False,
) -> None:
    """Derive the exact recipe from a checkpoint to a target config, or name everything that stands in the way.

    The recipe is planned before it is written, on the checkpoint itself if SOURCE holds its weights.
    """
    if output is not None:
        _check_new(output)
    from growth.checkpoints.hub import resolve
    from growth.checkpoints.untrusted import read_config
    from growth.planning.derive import derive_recipe, plan_text, recipe_text

    source = source if source.is_file() else resolve(source)
    if not target.exists():
        raise ConfigError(f"There is no {target}. Name the target's config.json, or a folder that holds it.")
    before, after = (read_config(path / "config.json" if path.is_dir() else path) for path in (source, target))
    text = recipe_text(*derive_recipe(before, after, name=printable(source.stem), lossy=lossy))
    plan_text(text, source, dequantize=dequantize)
    if output is None:
        print(text, end="")
        return
    with output.open("x") as file:
        file.write(text)
    say(f"Wrote {output}.")


@app.command()
def recipes() -> None:
    """List the shipped recipes."""
    from growth.cli.tables import show_recipes
    from growth.planning.recipe import load_recipe, shipped_recipes

    show_recipes({path.stem: load_recipe(path).description for path in shipped_recipes()})


@app.command()
def diagnose(
    init: Annotated[str, typer.Argument(help="The grown checkpoint as growth grow wrote it, with its growth.json.")],
    trained: Annotated[str, typer.Argument(help="A checkpoint that was trained from it: a folder or hub id.")],
    plot: Annotated[Path | None, typer.Option(help="Draw the findings to a PNG or SVG file.")] = None,
    as_json: Json = False,
) -> None:
    """Check whether copies diverged and new weights are used.

    Find copies that are still identical, new layers that contribute nothing, and new units whose weights are still near
    zero.

    Exit status: 0 if no copies are identical, 1 if some are, 3 if this cannot be determined.
    """
    if plot is not None:
        _need("report", "matplotlib")
        if plot.suffix not in PLOTS:
            raise ConfigError(f"--plot {plot} is neither .png nor .svg: choose one of these suffixes.")
        _check_writable(plot)
    from growth.training.diagnosis import diagnose

    found = diagnose(init, trained)
    _show(found, as_json)
    if plot is not None:
        from growth.training.diagnosis_figure import diagnosis_figure

        with plot.open("xb") as file:
            diagnosis_figure(found).savefig(file, dpi=110, format=plot.suffix[1:])
        say(f"Plot: {plot}", err=as_json)
    if found.verdict in ("identical", "cannot tell"):
        raise typer.Exit(FAILED if found.verdict == "identical" else INCONCLUSIVE)


@app.command()
def advise(
    params: Annotated[str, typer.Option(help="Parameter count of the model to grow, such as 1.3B.")],
    tokens: Annotated[str, typer.Option(help="Number of tokens that it was trained on, such as 150B.")],
    to: Annotated[str, typer.Option(help="Parameter count of the grown model, such as 2.7B.")],
    planned_tokens: Annotated[
        str | None, typer.Option(help="Number of tokens that the grown model will be trained on, such as 1.4T.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what published evidence says about a planned growth."""
    from growth.training.advice import advise

    _show(advise(params, tokens, to, planned_tokens), as_json)


@app.command()
def schedule(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET_CONFIG", help="The target's config.json, a folder that holds it, or a hub id."),
    ],
    flops: Annotated[
        str | None, typer.Option(help="FLOPs of the whole run, the smaller models included, such as 1e19.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="As many FLOPs as the target takes on so many tokens, such as 160B; by default 20 per parameter."
        ),
    ] = None,
    stages: Annotated[int, typer.Option(help="Number of growths, each by a factor of 2 in width or depth.")] = 1,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the schedule to this YAML file.")] = None,
    source_config: Annotated[
        Path | None, typer.Option(help="Write the config.json of the model to begin with to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Propose a schedule of exact growths for a target and a budget, with the evidence on what it saves.

    The models to begin with are half as wide or deep, and checked by the planner to grow exactly into the target.

    Exit status: 0 if growth is worth trying, 1 if it is not (few layers, long training, a factor too large), 3 if the
    plan lies outside of what was measured.
    """
    files = {path: kind for path, kind in ((output, "yaml"), (source_config, "source_config")) if path is not None}
    for path in files:
        _check_writable(path)
    from growth.training.proposal import propose_schedule

    found = propose_schedule(target, flops=flops, tokens=tokens, stages=stages)
    for path, kind in files.items():
        with path.open("x") as file:
            file.write({"yaml": found.yaml(), "source_config": found.source_config}[kind])
    _show(found, as_json)
    for path in files:
        say(f"Wrote {path}.", err=as_json)
    if not files and not as_json:
        say("To write the schedule and the first model's config: --output schedule.yaml --source-config config.json")
    if found.verdict != "worth trying":
        raise typer.Exit(FAILED if found.verdict == "not worth it" else INCONCLUSIVE)


# ------------------------------------------------- what commands share


def _show(found: Any, as_json: bool, show: Callable[[Any], None] | None = None) -> None:
    """Print findings as JSON, or for people; by default the table that they have."""
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    from growth.cli.tables import show_table

    (show or show_table)(found)


def _interrupted(text: str) -> NoReturn:
    say(text, err=True)
    raise typer.Exit(INTERRUPTED) from None


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before its content is computed."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ConfigError(f"{path} cannot be written: it is a folder, or its folder does not exist.")
    _check_new(path)


def _check_new(path: Path) -> None:
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists already. Choose another name, or remove it first.")


def _need(extra: str, *packages: str) -> None:
    from importlib.util import find_spec

    for package in packages:
        if find_spec(package) is None:
            raise MissingExtra(package, extra)


def run() -> None:
    """Run the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # an ASCII terminal is not an error
    try:
        with printable_streams():
            _run_app()
    except OSError as error:
        sys.stderr.write(f"error: the output cannot be written: {error.strerror}.\n")
        sys.exit(INVALID)


def _run_app() -> None:
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer exits with 1, the status of a failed verification
            sys.exit(CLOSED_PIPE)
        raise
    except Exception as error:
        if one_sentence(error) is not None:
            raise
        import traceback  # its output passes through printable_streams; the interpreter's own does not

        traceback.print_exc()
        sys.exit(FAILED)
