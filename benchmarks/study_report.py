# ruff: noqa: E501 (the lines of a page)
"""Write the page of the study: text and tables from the results, and the observations, which are written by hand."""

import json
import re
from pathlib import Path

from study_arms import LAYERS, SOURCE, TARGET
from study_numbers import MOST, Results, Spread
from study_plots import draw

BEGIN, END = "<!-- observations: written by hand, kept by the generator -->", "<!-- end of observations -->"
EMPTY = "(Observations follow.)"
PUBLISHED = """\
| | published | as a factor |
|---|---|---|
| HyperCloning, [Samragh et al. 2024](https://arxiv.org/abs/2409.12903) | OPT, Pythia and OLMo reach the final accuracy of random initialisation 2.2 to 4 times faster | 2.2 – 4 |
| bert2BERT, [Chen et al. 2022](https://aclanthology.org/2022.acl-long.151) | saves about 45 % (BERT base) and 47 % (GPT base) of the computation | 1.82, 1.89 |
| LiGO, [Wang et al. 2023](https://arxiv.org/abs/2303.00980) | saves up to 50 % of the computation | up to 2 |
| G_stack, [Du et al. 2024](https://arxiv.org/abs/2405.15319) | a 7B model reaches with 194B tokens the loss of 300B from scratch ("54.6 % speed-up") | 1.55 |
| LEMON, [Wang et al. 2023](https://arxiv.org/abs/2310.07999) | saves 56.7 % (vision transformers) and 33.2 % (BERT) of the computation | 2.31, 1.50 |"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(spread: Spread) -> str:
    """Of shares."""
    return Spread(tuple(100 * value for value in spread.values)).text(1)


def main_table(results: Results) -> str:
    """One row an arm, the source first."""
    source = results.spread("source", "loss").text(), results.difference("source").text(sign="+")
    rows = [["source", "the small model, before growth", str(len(results.seeds("source"))), *source, "", "", ""]]
    for arm in results.arms:
        name = f"**{arm.name}**" if arm.name == "default" else arm.name
        rows.append([
            name, arm.label, str(len(results.seeds(arm.name))),
            results.spread(arm.name, "loss").text(),
            results.difference(arm.name).text(sign="+") if arm.name != "default" else "",
            results.speedup_text(arm.name) if arm.grows and arm.needs_source else "",
            results.speedup_text(arm.name, counted=True) if arm.grows and arm.needs_source else "",
            results.share_text(arm.name) if arm.needs_source else "",
        ])  # fmt: skip
    head = ["arm", "what", "seeds", "final held-out loss", "against the default", "speed-up by tokens",
            "speed-up by FLOPs, source counted", "tokens to scratch's final loss"]  # fmt: skip
    return table(head, rows)


def beginning_table(results: Results) -> str:
    """Where grown models start, and how far they rise."""
    rows = [
        [arm.name, "yes" if arm.exact else "no", results.beginning(arm.name).text(4, "+"), results.hump(arm.name).text(3, "+")]
        for arm in results.arms if arm.steps
    ]  # fmt: skip
    head = ["arm", "exact", "first loss − the source's last", "worst of the first tenth − first"]
    return table(head, rows)


def downstream_table(results: Results) -> str:
    """The two small scores."""
    names = [*(["source"] if results.seeds("source") else []), *(arm.name for arm in results.arms)]
    rows = [[name, percent(results.spread(name, "accuracy")), percent(results.spread(name, "parse"))] for name in names]
    return table(["arm", "next-token accuracy, %", "completions that parse, %"], rows)


def verdicts(results: Results) -> str:
    """What helped and what did not, seed by seed against the default; lossy arms that beat it."""
    helped, hurt, mixed = [], [], []
    for arm in results.arms:
        values = results.difference(arm.name).values
        if arm.name == "default" or not arm.grows or not arm.needs_source or arm.length != 1 or not values:
            continue
        say = f"{arm.name} ({Spread(values).mean:+.3f}{'' if arm.exact else ', lossy'})"
        (helped if max(values) < 0 else hurt if min(values) > 0 else mixed).append((Spread(values).mean, say))
    spell = lambda group: ", ".join(say for _, say in sorted(group)) or "none"  # noqa: E731
    lossy = [arm for arm in results.arms if arm.steps and not arm.exact]
    better = [
        arm.name for arm in lossy if results.difference(arm.name).values and results.difference(arm.name).mean < 0
    ]
    worse = [arm.name for arm in lossy if arm.name not in better]
    return "\n".join([
        "Final held-out loss against the default, in nats, the same source and batches seed by seed:",
        "",
        f"- lower in every seed (helped): {spell(helped)}",
        f"- higher in every seed (did not help): {spell(hurt)}",
        f"- sometimes lower, sometimes higher: {spell(mixed)}",
        "",
        f"Lossy starts that end below the exact default on average: {', '.join(better) or 'none'}; "
        f"above it: {', '.join(worse) or 'none'}.",
    ])  # fmt: skip


def goals(results: Results) -> str:
    """The goals set beforehand, reached or not."""
    words = {True: "**reached**", False: "**not reached**", None: "not measured yet"}
    return table(["goal", "", "measured"], [[goal, words[done], figures] for goal, done, figures in results.goals()])


def geometry(results: Results) -> str:
    """Source and target in one line."""
    size = lambda name: next((r["parameters"] for (arm, _), r in results.runs.items() if arm == name), 0)  # noqa: E731
    return (
        f"Phi, {SOURCE['num_hidden_layers']} layers × {SOURCE['hidden_size']} ({size('source'):,} parameters) to "
        f"{LAYERS} × {TARGET['residual']} ({size('scratch') or size('default'):,}): the ratios of Phi-1.5 to Phi-2, "
        f"5/4 in width, ffn and head_dim, 4/3 in depth"
    )


def page(results: Results, observations: str) -> str:
    """Return the whole page."""
    settings, text = results.study["settings"], results.study["text"]
    versions = results.study["versions"]
    tokens = settings["steps"] * settings["rows"] * settings["length"]
    seconds = sum(run["seconds"] for run in results.runs.values())
    seeds = sorted({seed for _, seed in results.runs})
    flops = [(run["flops_per_token"], run["tokens"]) for (arm, _), run in results.runs.items() if arm == "source"]
    source_cost = f"{flops[0][0] * flops[0][1] / 1e12:.1f} TFLOPs" if flops else "not trained yet"
    own = [run["flops_per_token"] * run["tokens"] for (arm, _), run in results.runs.items() if arm == "default"]
    own_cost = f"{own[0] / 1e12:.1f}" if own else "–"
    humps = {
        name: results.hump(name) for name in ("default", "grown-state", "half-peak", "long-warmup", "grown-half-peak")
    }
    hump = "; ".join(f"{name} {spread.text(3, '+')}" for name, spread in humps.items() if spread.values)
    return f"""# Does the knowledge transfer?

A small study on real text, on two cores. It compares models grown by `growth` from a trained small model with the same
model trained from random weights, on the same tokens, batches and schedule, with {len(seeds)} seeds.
`benchmarks/study_report.py` writes this page from [results.json](results.json), except for the observations. Figures are
the mean over the seeds and (least … greatest). Losses are in nats per token.

## Goals

{goals(results)}

![speed-ups](speedups.png)

## Observations

{BEGIN}
{observations}
{END}

## Results

{main_table(results)}

- *Speed-up by tokens*: the tokens that training from scratch needs to end at the arm's final loss, divided by the tokens
  of the arm. Scratch was trained with 1, 2 and {MOST} times the tokens, each with a full cosine of its own; between
  these, the loss is interpolated linearly in the logarithm of the tokens. "> {MOST}" is a lower bound: in some seed, even
  the longest run from scratch ends above. 1.00 also stands for "not faster".
- *By FLOPs, source counted*: the same with compute 6 N D, where the arm is charged with the whole training of the source
  ({source_cost} per seed, beside {own_cost} for one run of the target). If one source serves many growths, or exists
  already, the first figure counts.
- *Tokens to scratch's final loss*: the tokens after which the arm's curve stays at or below the last point of scratch's,
  as a share of scratch's tokens, in the middle of the arm's own schedule. 0 %: it starts there and never rises above.

{verdicts(results)}

![held-out loss by tokens](curves.png)

![held-out loss by FLOPs](flops.png)

## Right after growth

An exact growth starts at the loss of the source, up to rounding in float32. When the learning rate warms up again, the
loss first rises, because the source's training had ended at a lower rate. Worst loss of the first tenth of training over the first: {hump or "–"}.

{beginning_table(results)}

![the beginning](beginning.png)

## Two small downstream scores

Next-token accuracy on held-out code, and the share of {settings["prompts"]} sampled function completions that
`ast.parse` accepts. Prompts are one-line `def` headers of held-out files; temperature 0.8, a fixed seed,
{settings["new_tokens"]} new tokens. The function is the header and the indented lines that follow, without an unfinished
last line, and it must have a body. With {settings["prompts"]} prompts, the standard error of a share near a half is
{50 / settings["prompts"] ** 0.5:.0f} points per seed.

{downstream_table(results)}

## Published speed-ups

{PUBLISHED}

These were measured on other models, sizes and ratios of growth, over hundreds of billions of tokens, and counted in other
ways. A factor measured on a model of a million parameters shows that the mechanism works, not what it saves at scale.

## How it was done

- **Models**: {geometry(results)}. Vocabulary: phi-mini's tokenizer. Trained in float32.
- **Text**: the standard library of Python {text["python"]}, tests included, each distinct file once:
  {text["training_files"]:,} files and {text["training_tokens"]:,} tokens to train on, {text["held_out_files"]} files and
  {text["held_out_tokens"]:,} tokens held out by a hash of each file's text (`int(sha256[:8], 16) % 20 == 0`). Neither
  a model nor the tokenizer has seen the latter.
- **One run**: {settings["steps"]} steps of {settings["rows"]} × {settings["length"]} tokens = {tokens:,} tokens ("1x").
  AdamW (0.9, 0.95), weight decay 0.1 on matrices, gradients clipped at 1, linear warm-up over 5 % of the steps to
  {settings["peak"]:g}, cosine to a twentieth of it; a fresh optimizer unless the arm says otherwise.
- **Source**: one per seed, trained for {settings["source_length"]:g} times those tokens by the same rules, on other
  batches of the same files. The peak learning rate of the target is that of the source.
- **Arms**: each differs from the default in one thing. The recipes are in
  [benchmarks/study_arms.py](../../benchmarks/study_arms.py). A seed sets the source, the batches, the random weights
  and the recipe's random choices; all arms of a seed see the same batches in the same order.
- **Held-out loss**: curves on 32 windows spread over the held-out text, final figures on 320.
- **Time**: {len(results.runs)} runs, {seconds / 60:.0f} minutes of one core in all; torch {versions["torch"]},
  transformers {versions["transformers"]}.

What the study cannot say: the runs are short (under one token per parameter), every model is far from the end of its
training, and three seeds show a spread, not a distribution.

## Repeat it

    make study                                                            # all runs; resumes where it stopped
    python benchmarks/study.py --output out/study --steps {settings["steps"]} --seeds {len(seeds)}  # the same
    python benchmarks/study.py --output out/study --report docs/study     # page and plots from the finished runs
    python benchmarks/study.py --output docs/study --report docs/study    # the same from the committed results
"""


def kept(path: Path) -> str:
    """Return the observations that a page already holds."""
    found = re.search(f"{re.escape(BEGIN)}\n(.*?)\n{re.escape(END)}", path.read_text(), re.S) if path.exists() else None
    return found[1] if found else EMPTY


def report(source: Path, folder: Path) -> None:
    """Write README.md, results.json and the plots from the runs that are done."""
    results = Results.read(source)
    if not results.seeds("default") or not results.seeds("scratch"):
        raise SystemExit(f"{source} has no finished default or scratch run yet.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "README.md"
    path.write_text(page(results, kept(path)))
    content = {**results.study, "runs": list(results.runs.values())}
    (folder / "results.json").write_text(json.dumps(content, separators=(",", ":")) + "\n")
    draw(results, folder)
    print(f"{path}: {len(results.runs)} runs")
    for goal, reached, figures in results.goals():
        print(f"{'reached' if reached else 'not measured' if reached is None else 'NOT reached'}: {goal}: {figures}")
