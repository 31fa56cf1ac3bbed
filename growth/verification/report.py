"""What `verify` finds: the numbers, the verdict in words, and both as a table for a terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from growth.errors import printable
from growth.operators.base import Step
from growth.runtime.shown import Shown
from growth.verification.generation import GenerationCheck
from growth.verification.metrics import LogitsError
from growth.verification.residual import LayerError
from growth.verification.stability import Stability
from growth.verification.totals import Totals

Status = Literal["PASSED", "LOSSY", "FAILED"]

NAMED = 3  # problems that the verdict names
LISTED = 12  # and those that are listed below it
HARMLESS = 1e-9  # nats per token that added tokens may cost the others in a growth that keeps the function
ROUTED = (
    "Rounding alone explains it: every stored bit is what the recipe makes of the source, and the same growth stored "
    "in float64 agrees with the source. Where a router scores two experts almost equally, rounding selects either."
)
STYLES: Mapping[Status, str] = {"PASSED": "bold green", "LOSSY": "bold yellow", "FAILED": "bold red"}


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """What `verify` found.

    Attributes:
        source, grown: the folders.
        dtype: what the models computed in: "float64" (shows exactness to 1e-12), or another torch dtype.
        storage: the dtypes that source and grown model are stored in.
        shape: rows and positions of the token batch.
        tokens_from: where the tokens come from: a text, or random ids.
        distinct_tokens: how many different tokens there are.
        sizes: {"before": {...}, "after": {...}}, axis sizes by the recipe, else from the two configs.
        parameters: numbers of stored parameters of source and grown model.
        depth: numbers of layers of source and grown model.
        logits: the value of each metric (growth/verification/metrics.py).
        floor: the `logits.relative_error` that rounding alone usually causes.
        limit: the largest `logits.relative_error` that rounding alone can cause.
        layers: the residual stream layer by layer; empty where nothing says which layers correspond.
        recipe_from: "given", "growth.json" of the grown folder, or "" where no recipe is known.
        steps: the operators of the recipe and what each promises; empty where no recipe is known.
        preserving, keeps_logits: whether source and recipe promise the source's function, or the logits of its
            tokens; None where no recipe is known.
        totals: what was checked in full, and what differed.
        generation: the checks of generation; empty where they were not asked for.
        stability: how differences between copies grow; None where that was not asked for.
        routed: True if the error of a mixture exceeds a limit but is proved to come from rounding alone, which makes
            its routers select other experts (growth/verification/routing.py).
        seconds: wall-clock time of the whole verification.

    >>> import growth, tempfile, pathlib
    >>> folder = pathlib.Path(tempfile.mkdtemp()) / "grown"
    >>> plan = growth.grow("double-depth", "examples/phi-mini", folder)
    >>> report = growth.verify("examples/phi-mini", folder, tokens=16)
    >>> report.status, report.depth, report.logits.relative_error < report.limit
    ('PASSED', (6, 12), True)
    """

    source: str
    grown: str
    dtype: str
    storage: tuple[str, str]
    shape: tuple[int, int]
    tokens_from: str
    distinct_tokens: int
    sizes: Mapping[str, Mapping[str, int]]
    parameters: tuple[int, int]
    depth: tuple[int, int]
    logits: LogitsError
    floor: float
    limit: float
    layers: tuple[LayerError, ...]
    recipe_from: Literal["given", "growth.json", ""]
    steps: tuple[Step, ...]
    preserving: bool | None
    keeps_logits: bool | None
    totals: Totals
    generation: tuple[GenerationCheck, ...]
    stability: Stability | None = None
    routed: bool = False
    seconds: float = 0.0

    @property
    def status(self) -> Status:
        """PASSED, FAILED, or LOSSY: the recipe says that the function changes, and nothing else is wrong."""
        broken = self.totals.problems or self.failed_generation or self.unstable
        if broken or not math.isfinite(self.logits.relative_error):
            return "FAILED"
        if not (self.agrees or self.routed):
            return "LOSSY" if self.keeps_logits is False else "FAILED"
        if self.preserving is False:
            return "LOSSY"
        return "PASSED" if self.logits.lost_to_added <= HARMLESS else "FAILED"

    @property
    def passed(self) -> bool:
        """Whether the status is PASSED."""
        return self.status == "PASSED"

    @property
    def unconfirmed(self) -> bool:
        """Whether the status is LOSSY, and only the grown folder's own growth.json says that the function changes.

        Such a difference may be damage: whoever changes the weights can change growth.json too.
        """
        return self.status == "LOSSY" and self.recipe_from != "given"

    @property
    def failed_generation(self) -> list[str]:
        """The names of the checks of generation that failed."""
        return [check.name for check in self.generation if not check.passed]

    @property
    def unstable(self) -> str:
        """How differences between copies grow, in a sentence; empty where they do not, or were not measured."""
        return self.stability.problem() if self.stability else ""

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the errors of the logits of the source's tokens and of every layer.

        Every layer is compared even if the logits pass, because damage to a few rows shows most in the layer where it
        occurs.
        """
        return self.logits.relative_error <= self.limit and self.first_bad_layer is None

    @property
    def first_bad_layer(self) -> int | None:
        """The first grown layer whose output differs by more than rounding; -1 is the embedding."""
        first = self._first_error
        return None if first is None else first.layer

    @property
    def _first_error(self) -> LayerError | None:
        return next((error for error in self.layers if not error.passed), None)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; a number that is not finite becomes null."""
        verdict = {name: getattr(self, name) for name in ("status", "passed", "unconfirmed", "first_bad_layer")}
        text = json.dumps({**verdict, **asdict(self)})
        return cast("dict[str, Any]", json.loads(text, parse_constant=lambda not_finite: None))

    def verdict(self) -> str:
        """What was found, on which tokens, by how much, and where it goes wrong."""
        said, problems, lost = [self._on_runs()], list(self.totals.problems), self.logits.lost_to_added
        if problems:
            names = ", ".join(problems[:NAMED]) + (", …" if len(problems) > NAMED else "")
            said.insert(0, f"The grown folder is not what the recipe makes of the source: {names}.")
        if self.failed_generation:
            said.append(f"Generation differs: {'; '.join(self.failed_generation)}.")
        if self.unstable:
            said.append(self.unstable)
        if self.stability is not None and self.stability.stable is None:
            said.append(f"Stability was not measured: {self.stability.reason}.")
        if lost > HARMLESS:
            count = self.logits.added_tokens
            said.append(f"The {count:,} added tokens take probability from the others: {lost:.2g} nats per token.")
        if self.recipe_from != "given":
            said.append(self._on_recipe())
        return " ".join(said)

    def _on_runs(self) -> str:
        on = f"on the {self.shape[0]} x {self.shape[1]} tokens that were run"
        measured = f"relative error of the logits {self.logits.relative_error:.1e}, limit {self.limit:.1e}"
        if self.agrees:
            return f"The grown model agrees with its source {on}: {measured}."
        if self.status == "LOSSY":
            return f"The recipe changes the function, so a difference is expected; {on}: {measured}."
        whole, but = "The grown model does not agree with its source", ""
        if not math.isfinite(self.logits.relative_error):
            whole = "The grown model computes values that are not finite (NaN or infinite)"
        if self.logits.relative_error <= self.limit:
            whole, but = "The logits of the grown model agree with those of its source", ", but not every layer does"
        named = " To have the tensors that differ named, add --weights." if self.recipe_from else ""
        failed = f"{whole} {on}{but}: {measured}. {self._where()}{named}"
        return f"{failed} {ROUTED}" if self.routed else failed

    def _where(self) -> str:
        first = self._first_error
        if not self.layers:
            return "It is not known which layers correspond, so they were not compared."
        if first is None:
            return "Every layer agrees: look at the final norm and the head."
        return f"The first difference is after {first.name}: {first.relative_error:.1e}, limit {first.limit:.1e}."

    def _on_recipe(self) -> str:
        if not self.recipe_from:
            lossy = ", and whether the recipe changes the function" if self.status == "FAILED" else ""
            return (
                "No recipe is known, so the config, the other files, the embedding and the head were not checked. To "
                f"check them{lossy}, give the recipe: --recipe, or verify(..., recipe) for operators."
            )
        if self.unconfirmed:
            return (
                "Only the grown folder's own growth.json says that the function changes, so this may be damage. Give "
                "the recipe by --recipe; if the model was grown several times, verify each growth against its own "
                "source."
            )
        return (
            "The recipe is from the grown folder's own growth.json; to check that file too, name the recipe with "
            "--recipe."
        )

    def coverage(self) -> dict[str, Sequence[str]]:
        """What was run, what was checked in full, and what was not checked, a line for each part."""
        rows, positions = self.shape
        layers = f"{len(self.layers) - 1} of {self.depth[1]}" if self.layers else "no"
        compared = f"logits and {layers} layers" + ("" if self.layers else " (it is not known which correspond)")
        tokens = f"{rows} x {positions} tokens, {self.distinct_tokens:,} of them distinct: {self.tokens_from}"
        said: dict[str, Sequence[str]] = {"run": [tokens, compared]}
        if self.totals.covered:
            said["in full"] = self.totals.covered
        left = [
            *self.totals.not_covered,
            "weights that those tokens never use, and changes of a matrix that move the logits by less than "
            f"{self.limit:.1e}: --weights compares every bit",
        ]
        if not self.generation:
            left.append("cache, padding, sdpa attention and long prompts (--generation)")
        if self.stability:
            said["stability"] = [self.stability.covered()]
        else:
            left.append("whether differences between copies grow (--stability)")
        said["not checked"] = left
        return said

    def coverage_rows(self) -> list[tuple[str, str]]:
        """The same as rows of a table; only the first line of several is labelled."""
        return [
            (name if number == 0 else "", line)
            for name, lines in self.coverage().items()
            for number, line in enumerate(lines)
        ]

    def rows(self) -> list[tuple[str, str, str]]:
        """The numbers as rows of a table: label, value and meaning."""
        error, *others = self.logits.rows()
        return [
            error,
            ("expected error", f"{self.floor:.2e}", "what rounding alone usually causes"),
            ("limit", f"{self.limit:.2e}", "the most that rounding alone can cause"),
            *others,
            *(self.stability.rows() if self.stability else ()),
            ("parameters", f"{self.parameters[1]:,}", f"the source has {self.parameters[0]:,}"),
            ("layers", str(self.depth[1]), f"the source has {self.depth[0]}"),
            ("arithmetic", self.dtype, f"source in {self.storage[0]}, grown in {self.storage[1]}"),
            ("time", f"{self.seconds:.1f} s", ""),
        ]

    def headline(self) -> Group:
        """The verdict, and each problem, for a terminal."""
        verdict = Text.assemble((self.status, STYLES[self.status]), "  ", printable(self.verdict()))
        lines = [f"  {name}: {text}" for name, text in self.totals.problems.items()]
        if len(lines) > LISTED:
            lines[LISTED:] = [f"  … and {len(lines) - LISTED} more, which --json lists"]
        return Group(verdict, *(Text(printable(line), "red") for line in lines))

    def table(self) -> Group:
        """The report for a terminal."""
        numbers = _table((Text(name, "dim"), Text(value, "bold"), Text(why, "dim")) for name, value, why in self.rows())
        covered = _table((Text(name, "dim"), Text(printable(line))) for name, line in self.coverage_rows())
        return Group(self.headline(), numbers, *_layer_lines(self.layers), *_generation_table(self), covered)


# ------------------------------------------------- parts of the table


def _table(rows: Iterable[Iterable[RenderableType]], head: Iterable[str] = ()) -> Table:
    table = Table(*head, box=None, show_header=bool(head), pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for row in rows:
        table.add_row(*row)
    return table


def _generation_table(report: Report) -> list[Table]:
    rows = []
    for check in report.generation:
        name, error, limit, note = check.row()
        rows.append((name, Text(error, "" if check.passed else "bold red"), limit, Text(printable(note), "dim")))
    return [_table(rows, ("generation", "error", "limit", ""))] if rows else []


def _layer_lines(layers: tuple[LayerError, ...]) -> list[Text]:
    if not layers:
        return []
    worst = max(layers, key=lambda error: math.inf if math.isnan(error.relative_error) else error.relative_error)
    marks = Text.assemble(("residual stream  ", "dim"))
    for error in layers:
        mark, style = ("·" if error.silent else "•", "green") if error.passed else ("×", "bold red")
        marks.append(mark, style)
    marks.append(f"  worst {worst.relative_error:.1e} after {worst.name}, limit {worst.limit:.1e}")
    legend = "embedding, then each layer: • equal to the source's, · equal, in an identity layer, × different"
    return [marks, Text(legend, "dim")]
