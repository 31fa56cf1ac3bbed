"""The command line of growth, one function for each command.

Exit status: 0 success (of a verification: PASSED, or LOSSY as the given recipe states), 1 verification FAILED, 2
invalid input, 3 inconclusive (of a verification: LOSSY, and only the grown folder says so), 130 interrupted, 141 the
reader of stdout or stderr closed it. Commands import heavy libraries where they use them, so that --help and plan start
at once.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from growth.cli.options import (
    FAILED,
    GIVEN,
    INCONCLUSIVE,
    INTERRUPTED,
    INVALID,
    STATUSES,
    Dequantize,
    Dtype,
    Format,
    Json,
    RecipeName,
    Seed,
    SourceName,
    command_of,
    path_argument,
    path_option,
    recipe_names,
    whole_number,
)
from growth.errors import ConfigError, GrowthError, MissingExtra, RecipeError, SwappedFolders, printable
from growth.runtime.interrupts import sigint_blocked, unblock_sigint
from growth.runtime.launcher import launched_part, stated_part
from growth.runtime.limits import CLOSED_PIPE, one_sentence
from growth.runtime.logs import hint
from growth.runtime.printable import printable_streams, say, stream_below
from growth.version import __version__

if TYPE_CHECKING:
    from growth.planning.plan import Plan
    from growth.training.proposal import ScheduleProposal

TARGET = "The target's config.json, a folder that holds it, or a hub id."
TOKENS = 128  # default of verify --tokens
PLOTS = (".png", ".svg")
TRAINED = "training_args.bin"
VERIFY = ("verify", "transformers", "accelerate")  # an extra, and its packages
VERSIONS = ("torch", "transformers", "safetensors")  # of packages that decide what a grown model computes


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
            lines = error.args if text is None else [text]
            if isinstance(error, SwappedFolders):
                lines = [f"{error.found} {error.remedy(ctx.meta[GIVEN])}"]
            say(*lines, mark="Error: ", color="red", err=True)
            raise typer.Exit(INVALID) from None


app = typer.Typer(
    cls=Commands,
    rich_markup_mode=None,  # with markup, typer imports a Markdown parser to print a help text
    help="Start a larger language model from a smaller one, exactly.",
    epilog=STATUSES,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version
        from importlib.util import find_spec

        others = (f"{package} {version(package) if find_spec(package) else '–'}" for package in VERSIONS)
        print(f"growth {__version__} · {' · '.join(others)} · Python {platform.python_version()}")
        raise typer.Exit


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


@command_of(
    app,
    "plan phi-mini",
    "plan double-width --source phi-1_5/ --tensors",
    "plan double-depth --source Qwen/Qwen3-0.6B --json",
)
def plan(
    recipe: RecipeName,
    source: SourceName = None,
    dtype: Dtype = None,
    seed: Seed = None,
    dequantize: Dequantize = False,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a recipe would do to a checkpoint.

    Reads only the headers of its tensors.
    """
    import growth.api
    from growth.cli.tables import show_plan

    result = growth.api.plan(recipe, source, dtype=dtype, seed=seed, dequantize=dequantize)
    _show(result, as_json, partial(show_plan, tensors=tensors))
    if not as_json:
        then = ["growth", "grow", recipe, *(["--source", source] if source else []), "--output", "NEW_FOLDER"]
        hint(f"To run it: {shlex.join(then)}")


@command_of(
    app,
    "grow phi-mini --output grown/",
    "grow double-width --source phi-1_5/ --output phi-large/ --dtype bfloat16 --verify",
    "grow double-depth --source run/checkpoint-500 --output grown/ --training",
)
def grow(
    recipe: RecipeName,
    output: Annotated[Path, path_option("--output", "-o", help="Folder to create.")],
    source: SourceName = None,
    dtype: Dtype = None,
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="safetensors|dcp",
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
        bool,
        typer.Option(
            "--training",
            help="The source is a Trainer's checkpoint (of one process, DDP or FSDP): grow its optimizer state too.",
        ),
    ] = False,
    config: Annotated[
        Path | None,
        path_option(
            "--config",
            help="With --training: the config.json of the model, or its folder, where the source has none (FSDP).",
        ),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Verify the result in float64.")] = False,
    as_json: Json = False,
) -> None:
    """Grow a checkpoint into a new folder."""
    start = time.perf_counter()
    finished = os.path.exists(output)  # only --resume and --part accept it, and then nothing is written
    share = _share(part)
    resumable = form is Format.safetensors and not training
    _check_grow(share, part, form, dtype, resume=resume, training=training)
    _check_reported(verify=verify, as_json=as_json, training=training, dequantize=dequantize)
    if config is not None and not training:
        raise ConfigError("--config is for --training: leave it out, or put config.json into the source.")
    if verify or training:
        _need(*VERIFY)
    from growth.checkpoints.hub import resolve

    with _resume_hint(resumable):
        with sigint_blocked():  # an interrupted import may leave a module half made
            import growth.api
            import growth.output.checkpoint_writer
            from growth.planning.recipe import load_recipe

            loaded = load_recipe(recipe)
        common: dict[str, Any] = {"max_shard_size": max_shard_size, "seed": seed}
        if training:
            result = growth.api.grow_training(loaded, source, output, config=config, **common)
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
    folder = source or loaded.source or ""
    then = ["growth", "verify", folder, str(output), "--recipe", recipe]
    then += ([] if seed is None else ["--seed", str(seed)]) + ["--dequantize"] * dequantize
    seconds = time.perf_counter() - start
    if as_json:
        done = {"output": str(output), "complete": output.exists(), "written": not finished, "seconds": seconds}
        print(json.dumps({**done, "verify": shlex.join(then), "plan": result.to_dict()}, indent=1))
    elif share is not None and not output.exists():
        say(f"Wrote part {share[0]} of {share[1]}. {output} appears when all parts are written.")
        return
    else:
        _report_growth(result, output, seconds, written=not finished)
    if verify:
        _verify_function(resolve(folder), output, recipe=recipe, growth_seed=seed, dequantize=dequantize)
    elif not as_json:
        from growth.output.model_card import loader

        hint(
            f"To verify it: {shlex.join(then)}",
            f'To load it: {loader(result)}.from_pretrained({str(output)!r}, dtype="auto"); to train on, '
            f"read {output / 'README.md'}",
        )


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


def _check_reported(*, verify: bool, as_json: bool, training: bool, dequantize: bool) -> None:
    """Refuse further options of grow that exclude one another."""
    if verify and as_json:
        raise ConfigError("--json prints one result: leave out --verify, and run growth verify --json.")
    if training and dequantize:
        raise ConfigError("--training grows a Trainer's checkpoint, which is not quantised: leave out --dequantize.")


def _share(part: str | None) -> tuple[int, int] | None:
    """The part that this process writes, and the number of parts; None for the whole."""
    if part is None:
        share, stated = launched_part(), stated_part()
        if share is None and stated is not None:
            say(
                f"{stated[1]} are set, and neither torchrun nor srun started this process: it writes the whole "
                "checkpoint. To write the part of that rank, give --part auto.",
                err=True,
            )
        return share
    if part == "auto":
        if stated := stated_part():
            return stated[0]
        raise RecipeError(
            "--part auto takes the part from RANK and WORLD_SIZE, or from the variables of srun, and none are set for "
            "several processes. Run under torchrun or srun, or give --part I/N."
        )
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
        remedy = "To continue, run the same command with --resume." if resumable else "Nothing is left behind."
        _interrupted(f"Interrupted. {remedy}")


def _report_growth(result: Plan, output: Path, seconds: float, *, written: bool) -> None:
    if not written:
        say(f"{output} is finished already: nothing was written. Its files have the hashes that growth.json records.")
        return
    from rich.filesize import decimal

    from growth.planning.plan_table import note_lines, stored_types
    from growth.planning.stored_error import expected_error, warnings

    if lines := [*(f"Warning: {text}" for text in warnings(result)), *note_lines(result.notes, result.dropped)]:
        say(*lines)
    if result.preserving:
        promise = "It computes the same function as its source"
    elif result.keeps_logits:
        promise = "It computes the logits of its source; the added tokens take some of the probability"
    else:
        promise = "It is lossy: it computes another function than its source"
    if result.keeps_logits and (error := expected_error(result)):
        stored = f"storing it in {stored_types(result)}"
        promise += f", up to rounding: {stored} changes the logits by about {error:.1e} of their size"
    say(f"Wrote {output}: {result.parameters:,} parameters, {decimal(result.bytes)}, in {seconds:.1f} s. {promise}.")


@command_of(
    app,
    "verify phi-1_5/ phi-large/ --recipe double-width",
    "verify phi-1_5/ phi-large/ --recipe double-width --report report.html",
    "verify phi-1_5/ phi-large/ --recipe double-width --weights",
)
def verify(
    source: Annotated[
        str, typer.Argument(help="The checkpoint that was grown: a folder or hub id (org/name@revision).")
    ],
    grown: Annotated[Path, path_argument("GROWN", "The folder that it was grown into.")],
    dtype: Annotated[
        str | None,
        typer.Option(
            help="The dtype in which both models compute: float64 (default; shows exactness to 1e-12), float32, or "
            '"stored" to use the dtype of each checkpoint. With --weights, the --dtype that was passed to grow.'
        ),
    ] = None,
    text: Annotated[
        Path | None,
        path_option(help="Text file to run both models on; by default a built-in text."),
    ] = None,
    tokens: Annotated[
        int,
        typer.Option(parser=whole_number, help="Number of tokens to run: two rows of half as many each, at least 4."),
    ] = TOKENS,
    as_json: Json = False,
    report: Annotated[Path | None, path_option(help="Write an HTML report.")] = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights", help="Recompute every tensor and file from the source and the recipe, and compare every bit."
        ),
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            autocompletion=recipe_names,
            help="The recipe that was passed to grow; by default, the one recorded in the grown folder's growth.json.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(parser=whole_number, help="The --seed that was passed to grow; by default, the seed of --recipe."),
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
        typer.Option(
            "--stability",
            help="Also measure whether a difference between copies of residual channels grows through the network "
            "(FAILED if it does).",
        ),
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
        _verify_weights(resolve(source), resolve(grown), recipe, as_json, seed=seed, dtype=dtype, dequantize=dequantize)
        return
    if report is not None:
        _check_writable(report)
    options: dict[str, Any] = {"text": text, "tokens": tokens, "generation": generation, "growth_seed": seed}
    options |= {"recipe": recipe, "dtype": dtype or "float64", "stability": stability, "dequantize": dequantize}
    _verify_function(resolve(source), resolve(grown), as_json=as_json, report=report, **options)


def _verify_weights(source: Path, grown: Path, recipe: str | None, as_json: bool, **options: Any) -> None:
    from growth.cli.tables import show_weights
    from growth.verification.bitwise import verify_weights

    result = verify_weights(source, grown, recipe, forks=True, **options)
    _show(result, as_json, show_weights)
    if not result.passed:
        raise typer.Exit(FAILED)


def _is_trained(folder: Path) -> bool:
    """Whether transformers' Trainer saved a folder."""
    return (folder / TRAINED).exists()


def _verify_function(
    source: Path, grown: Path, *, as_json: bool = False, report: Path | None = None, **options: Any
) -> None:
    _need(*VERIFY)
    if report is not None:
        _need("report", "matplotlib")
    from growth.cli.tables import show_verdict
    from growth.verification.verify import verify

    result = verify(source, grown, **options)
    _show(result, as_json, show_verdict)
    if report is not None:
        from growth.checkpoints.open import open_checkpoint
        from growth.verification.html_report import write_html

        opened = open_checkpoint(source, dequantize=bool(options.get("dequantize")))
        write_html(result, opened, grown, report)
        say(f"Report: {report}", err=as_json)
    if result.status == "FAILED":
        if _is_trained(grown) and not _is_trained(source) and not as_json:
            hint(
                f"{grown} holds the {TRAINED} of a training run. A model that was trained after the growth computes "
                "something else than its source: verify it as growth grow wrote it. If training began from a folder "
                "that growth grow wrote, this shows what became of the new weights: "
                f"{shlex.join(['growth', 'diagnose', 'THAT_FOLDER', str(grown)])}"
            )
        raise typer.Exit(FAILED)
    if result.unconfirmed:
        raise typer.Exit(INCONCLUSIVE)


@command_of(app, "push phi-large/ my-name/phi-large --private")
def push(
    folder: Annotated[Path, path_argument("FOLDER", "A folder that growth grow made.")],
    repository: Annotated[str, typer.Argument(help="The repository, org/name, which is created if it does not exist.")],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    message: Annotated[str | None, typer.Option(help="The message of the commit.")] = None,
    as_json: Json = False,
) -> None:
    """Upload a grown folder to the hub.

    Uploads the files that growth.json lists, in one commit; a folder that was changed since is refused. The token is
    that of hf auth login, or HF_TOKEN.
    """
    _need("hub", "huggingface_hub")
    from growth.output.push import push

    done = push(folder, repository, private=private, message=message)
    if as_json:
        print(json.dumps(done.to_dict(), indent=1))
    else:
        say(f"Uploaded {len(done.files)} files to {done.url}.")


@command_of(app, "inspect phi-1_5/", "inspect Qwen/Qwen3-0.6B@main --json")
def inspect(
    folder: Annotated[str, typer.Argument(help="A checkpoint folder or hub id (org/name@revision).")],
    as_json: Json = False,
) -> None:
    """Show geometry, size, dtypes, NaN and Inf."""
    from growth.cli.tables import show_inspection
    from growth.verification.inspect import inspect_checkpoint

    found = inspect_checkpoint(folder)
    _show(found, as_json, partial(show_inspection, folder))
    if found.not_finite:
        raise typer.Exit(FAILED)


@command_of(app, "recipe phi-1_5/ phi-2/config.json --output to-phi-2.yaml")
def recipe(
    source: Annotated[Path, path_argument("SOURCE", "A checkpoint folder or hub id, or a config.json.")],
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET_CONFIG", help=TARGET),
    ],
    output: Annotated[
        Path | None,
        path_option("--output", "-o", help="File to write; printed by default."),
    ] = None,
    as_json: Json = False,
    lossy: Annotated[
        bool,
        typer.Option(
            "--lossy",
            help="Take the config values that no exact recipe changes (another activation, window, rotary base, …) "
            "from the target, in a step `configure`; the grown model then computes another function than its source.",
        ),
    ] = False,
    dequantize: Dequantize = False,
) -> None:
    """Derive the exact recipe to a target config.

    If none exists, list what prevents it.

    The recipe is planned before it is written, on the checkpoint itself if SOURCE holds its weights.
    """
    if output is not None:
        _check_writable(output)
    from growth.architectures import architecture
    from growth.checkpoints.hub import config_file, resolve
    from growth.checkpoints.open import config_at
    from growth.checkpoints.untrusted import read_config
    from growth.planning.derive import derive_recipe, plan_text, recipe_text
    from growth.planning.recipe import parse_recipe

    source = source if source.is_file() else resolve(source)
    files = [config_file(source), config_file(target)]
    before, after = map(read_config, files)
    for file, config in zip(files, (before, after), strict=True):
        with config_at(file):
            architecture(config)
    text = recipe_text(*derive_recipe(before, after, name=printable(source.stem), lossy=lossy))
    plan_text(text, source, dequantize=dequantize)
    _write_recipe(text, parse_recipe(text, "derived recipe").to_dict(), output, as_json)
    if output is not None and not as_json:
        checkpoint = "SOURCE" if source.is_file() else str(source)
        grow_it = ["growth", "grow", str(output), "--source", checkpoint, "--output", "OUTPUT"]
        hint(f"To grow by it: {shlex.join(grow_it)}")


@command_of(app, "import merge.yaml --source llama-2/ --output recipe.yaml", name="import")
def import_mergekit(
    config: Annotated[Path, path_argument("CONFIG", "A passthrough config of mergekit, with layers of one model.")],
    source: Annotated[
        str | None,
        typer.Option(
            "--source", "-s", help="The model whose layers are copied; by default, the one that CONFIG names."
        ),
    ] = None,
    output: Annotated[Path | None, path_option("--output", "-o", help="File to write; printed by default.")] = None,
    as_json: Json = False,
) -> None:
    """Make a recipe from a mergekit config.

    The config copies layers of one model; the recipe makes the same tensors. Layers whose output is scaled by 0 become
    identity layers (LLaMA-Pro).
    """
    if output is not None:
        _check_writable(output)
    from growth.checkpoints.hub import resolve
    from growth.checkpoints.open import open_checkpoint
    from growth.planning.mergekit import load_mergekit, recipe_from
    from growth.planning.recipe import dump_recipe

    found = load_mergekit(config)
    made = recipe_from(found, open_checkpoint(resolve(source or found.model)))
    _write_recipe(dump_recipe(made), made.to_dict(), output, as_json)
    if found.stored is not None and not as_json:
        hint(f"mergekit would store the result as {found.stored}. To do so too: growth grow … --dtype {found.stored}")


@command_of(app, "export double-depth --source llama-2/ --output merge.yaml", name="export")
def export_mergekit(
    recipe: RecipeName,
    source: SourceName = None,
    output: Annotated[Path | None, path_option("--output", "-o", help="File to write; printed by default.")] = None,
    as_json: Json = False,
) -> None:
    """Make a mergekit config from a recipe.

    The recipe may only copy layers; mergekit then makes the same tensors.
    """
    if output is not None:
        _check_writable(output)
    import growth.api
    from growth.planning.mergekit import mergekit_text
    from growth.planning.recipe import load_recipe

    plan = growth.api.plan(recipe, source)
    text = mergekit_text(plan, str(source or load_recipe(recipe).source))
    _write_recipe(text, {"config": text}, output, as_json)


def _write_recipe(text: str, content: Any, output: Path | None, as_json: bool) -> None:
    """Print a text or its content as JSON, or write it to a file."""
    if as_json:
        print(json.dumps(content, indent=1))
    elif output is None:
        print(text, end="")
    if output is not None:
        with output.open("x") as file:
            file.write(text)
        say(f"Wrote {output}.", err=as_json)


@command_of(app, "recipes", "recipes double-width", "recipes --for phi-1_5/")
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(help="A shipped recipe or schedule, which is printed as it is.", autocompletion=recipe_names),
    ] = None,
    source: Annotated[
        str | None, typer.Option("--for", metavar="SOURCE", help="List only the recipes that apply to this checkpoint.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List recipes and schedules, or print one."""
    from growth.cli.tables import show_shipped
    from growth.planning.recipe import load_recipe, shipped_recipes, shipped_text
    from growth.training.schedule import load_schedule, shipped_schedules

    schedules = {path.stem: path for path in shipped_schedules()}
    if name in schedules and not os.path.exists(name):
        shown = load_schedule(name).model_dump(mode="json", exclude_defaults=True)
        print(json.dumps(shown, indent=1) if as_json else schedules[name].read_text().rstrip())
        return
    if name is not None:
        print(json.dumps(load_recipe(name).to_dict(), indent=1) if as_json else shipped_text(name).rstrip())
        return
    found = {path.stem: load_recipe(path) for path in shipped_recipes() if source is None or _applies(path, source)}
    if as_json:
        print(json.dumps({stem: recipe.to_dict() for stem, recipe in found.items()}, indent=1))
        return
    show_shipped("recipes", {stem: recipe.description for stem, recipe in found.items()})
    if source is None:
        show_shipped("schedules", {stem: load_schedule(path).description for stem, path in schedules.items()})
    hint("To read one: growth recipes NAME", "To train by a schedule: growth.load_schedule(NAME), docs/schedules.md")


def _applies(path: Path, source: str) -> bool:
    """Whether a recipe can be planned on a checkpoint, which can be read."""
    import growth.api

    try:
        growth.api.plan(path, source)
    except RecipeError:
        return False
    return True


@command_of(app, "diagnose grown/ run/checkpoint-500 --plot diagnosis.png")
def diagnose(
    init: Annotated[str, typer.Argument(help="The grown checkpoint as growth grow wrote it, with its growth.json.")],
    trained: Annotated[str, typer.Argument(help="A checkpoint that was trained from it: a folder or hub id.")],
    plot: Annotated[Path | None, path_option(help="Draw the findings to a PNG or SVG file.")] = None,
    as_json: Json = False,
) -> None:
    """Check whether training used what was added.

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


@command_of(app, "advise --params 1.3B --tokens 150B --to 2.7B --planned-tokens 1.4T")
def advise(
    params: Annotated[str, typer.Option(help="Parameter count of the model to grow, such as 1.3B.")],
    tokens: Annotated[str, typer.Option(help="Number of tokens that it was trained on, such as 150B.")],
    to: Annotated[str, typer.Option(metavar="PARAMS", help="Parameter count of the grown model, such as 2.7B.")],
    planned_tokens: Annotated[
        str | None, typer.Option(help="Number of tokens that the grown model will be trained on, such as 1.4T.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show published evidence on a planned growth."""
    from growth.training.advice import advise

    _show(advise(params, tokens, to, planned_tokens), as_json)


@command_of(
    app,
    "schedule phi-2/config.json --flops 1e19",
    "schedule phi-2/config.json --tokens 54B --output schedule.yaml --source-config config.json",
)
def schedule(
    target: Annotated[
        str,
        typer.Argument(metavar="TARGET_CONFIG", help=TARGET),
    ],
    flops: Annotated[
        str | None, typer.Option(help="FLOPs of the whole run, the smaller models included, such as 1e19.")
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            help="The budget as the number of tokens on which it would train the target from scratch, such as 160B; by "
            "default 20 per parameter."
        ),
    ] = None,
    stages: Annotated[
        int,
        typer.Option(
            parser=whole_number, metavar="N", help="Number of growths, each by a factor of 2 in width or depth."
        ),
    ] = 1,
    output: Annotated[
        Path | None,
        path_option("--output", "-o", help="Write the schedule to this YAML file."),
    ] = None,
    source_config: Annotated[
        Path | None,
        path_option(help="Write the config.json of the starting model to this file."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Propose a schedule of growths for a budget.

    All growths are exact. The evidence on what the schedule saves is stated with it.

    Each model is half as wide or deep as the next; the planner checks that they grow exactly into the target.

    Exit status: 0 if growth is worth trying, 1 if it is not (few layers, long training, a factor too large), 3 if the
    plan lies outside of what was measured.
    """
    files = {path: kind for path, kind in ((output, "yaml"), (source_config, "source_config")) if path is not None}
    for path in files:
        _check_writable(path)
    from growth.cli.tables import show_verdict
    from growth.training.proposal import propose_schedule

    found = propose_schedule(target, flops=flops, tokens=tokens, stages=stages)
    for path, kind in files.items():
        with path.open("x") as file:
            file.write({"yaml": found.yaml(), "source_config": found.source_config}[kind])
    _show(found, as_json, show_verdict)
    for path in files:
        say(f"Wrote {path}.", err=as_json)
    if not as_json:
        hint(*_schedule_hints(found, output, source_config))
    if found.verdict != "worth trying":
        raise typer.Exit(FAILED if found.verdict == "not worth it" else INCONCLUSIVE)


def _schedule_hints(found: ScheduleProposal, schedule: Path | None, config: Path | None) -> Iterator[str]:
    """What to do with a proposal: write what is not written yet, then train by it."""
    if schedule is None or config is None:
        yield "To write the schedule and the first model's config: --output schedule.yaml --source-config config.json"
    tokens = sum(model.tokens for model in found.models)
    yield f"To begin: AutoModelForCausalLM.from_config(AutoConfig.from_pretrained({str(config or 'config.json')!r}))"
    yield (
        f"To train by it: callbacks=[growth.GrowthCallback.from_schedule({str(schedule or 'schedule.yaml')!r})] in "
        f'transformers\' Trainer, with include_num_input_tokens_seen="all" and max_steps for {tokens:,} tokens. '
        "In a loop of your own: growth.load_schedule. Both: docs/schedules.md"
    )


@command_of(
    app,
    "family mellum --output mellum.py",
    "family mellum --check mellum.py --set tie_word_embeddings=true",
)
def family(
    model_type: Annotated[str, typer.Argument(help="A model_type of transformers with a causal head, such as phi3.")],
    output: Annotated[
        Path | None, path_option("--output", "-o", help="File to write; by default MODEL_TYPE.py in this folder.")
    ] = None,
    module: Annotated[
        str | None,
        typer.Option("--import", metavar="MODULE", help="A module that registers the classes of a private model type."),
    ] = None,
    check: Annotated[
        Path | None, path_option(help="Prove the table of this file instead of drafting one: after you edited it.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="A config key of the small models, its value as JSON; repeatable."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Draft and prove the table of a new family.

    The draft is read from the stock class. The proof grows small random models along every axis, and names the first
    tensor that computes something else. It sets each boolean of the config to its other value, leaves out each key, and
    compares what the table makes of that with what the class does.

    Exit status: 0 if the table has every tensor of the class and all of these are exact or refused, 1 if not.
    """
    _need(*VERIFY)
    path = output or Path(f"{model_type}.py")
    if check is None:
        _check_writable(path)
    elif not check.is_file():
        raise ConfigError(f"There is no file {check}. Name the family file to prove.")
    from transformers import logging

    from growth.family_draft.draft import check_file, draft
    from growth.verification.float64 import proof_grade

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    stated = dict(map(_setting, settings or ()))
    if module is not None:
        _import(module)
    with proof_grade():
        found = (
            draft(model_type, stated, module or "")
            if check is None
            else check_file(model_type, stated, check.read_text())
        )
    if check is None:
        with path.open("x") as file:
            file.write(found.text)
        say(f"Wrote {path}.", err=as_json)
    _show(found, as_json)
    if not found.exact:
        raise typer.Exit(FAILED)


def _import(module: str) -> None:
    """Import a module of the reader's, which may be in this folder."""
    from importlib import import_module

    sys.path.append(os.getcwd())
    try:
        import_module(module)
    except ImportError as error:
        raise ConfigError(f"--import {module} fails: {error}. Run the command in the folder that holds it.") from error


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        return key, json.loads(value) if equals else json.loads("")
    except ValueError:
        raise ConfigError(
            f"--set '{text}' is not KEY=VALUE with a value in JSON, such as use_bias=true or hidden_act='\"relu\"'."
        ) from None


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
    folder = path.absolute().parent
    if path.is_dir():
        raise ConfigError(
            f"{path} cannot be written: it is a folder. Name a file in it, such as {path / 'report.html'}."
        )
    if not folder.exists():
        raise ConfigError(f"{path} cannot be written: there is no folder {folder}. Make it first: mkdir -p {folder}")
    if not folder.is_dir():
        raise ConfigError(f"{path} cannot be written: {folder} is not a folder. Choose another place.")
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
        sys.stderr.write(f"Error: the output cannot be written: {error.strerror}.\n")
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
