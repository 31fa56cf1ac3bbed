"""Store the study's results in the repository, and fill the pages that show them: tables and pictures."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from study_arms import ARMS, BASE, BY_NAME, KINDS, LARGE, SCALES, Scale, sweep, wanted
from study_numbers import COUNTS, TARGETS, Figure, Results, reported

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "docs" / "study" / "README.md", ROOT / "docs" / "when-growth-pays.md", ROOT / "README.md"]
KEPT = ("scale", "arm", "seed", "peak", "start", "stop", "parent", "step", "flops", "source_flops", "loss", "before",
        "after", "seconds")  # fmt: skip


def collect(output: Path, report: Path) -> None:
    """Store the results of runs, without checkpoints: one file for the runs of an arm."""
    shutil.rmtree(report / "results", ignore_errors=True)
    (report / "results").mkdir(parents=True)
    by_arm: dict[str, list[dict[str, object]]] = {}
    for path in sorted(output.glob("*-s[0-9]*.json")):
        run = json.loads(path.read_text())
        kept = {key: run[key] for key in KEPT if key in run} | {"seconds": round(run["seconds"])}
        by_arm.setdefault(f"{run['scale']}-{run['arm']}", []).append({"name": path.stem, **kept})
    for arm, runs in by_arm.items():
        lines = ",\n".join(map(json.dumps, runs))
        (report / "results" / f"{arm}.json").write_text(f"[\n{lines}\n]\n")
    shutil.copy(output / "facts.json", report / "facts.json")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def loss_text(figure: Figure | None) -> str:
    """A loss with its standard error.

    >>> loss_text(Figure((1.5, 1.6))), loss_text(Figure((1.5,))), loss_text(None)
    ('1.550 ± 0.050', '1.500', '–')
    """
    if not figure:
        return "–"
    return f"{figure.mean:.3f}" + (f" ± {figure.error:.3f}" if figure.error is not None else "")


def saving_text(figure: Figure | None) -> str:
    """A saving with its interval.

    >>> saving_text(Figure((1.25,))), saving_text(Figure((1.25,), ">")), saving_text(Figure((1.2, 1.25, 1.3)))
    ('1.25', '> 1.25', '1.25 (1.13 … 1.38)')
    """
    if not figure:
        return "–"
    interval = figure.interval
    bound = f"{figure.bound} " if figure.bound else ""
    return f"{bound}{figure.mean:.2f}" + (f" ({interval[0]:.2f} … {interval[1]:.2f})" if interval else "")


def head(results: Results, scale: Scale) -> list[str]:
    """Budgets as a table's head; those that do not count are in parentheses."""
    return [f"{budget:g}" if results.counts(scale, budget) else f"({budget:g})" for budget in reported(scale)]


def rates(results: Results, scale: Scale) -> str:
    """The sweeps of peak rates; the best rate is bold."""
    tried = {*scale.rates, *sum(scale.also.values(), ())}
    rows, peaks = [], sorted({rate * share for rate in tried for share in ((1, 0.5) if scale.halved else (1,))})
    for kind in KINDS:
        for budget in (scale.sweep, *scale.halved):
            found = {run.peak: results.loss(run) for run in sweep(scale, kind, budget, results.rates)}
            best = results.rates.get((scale.name, kind, budget))
            losses = [(peak == best, found.get(peak)) for peak in peaks]
            texts = ["" if not loss else f"**{loss:.3f}**" if bold else f"{loss:.3f}" for bold, loss in losses]
            rows.append([kind, f"{budget:g}", *texts])
    return table(["peak rate", "budget", *(f"{peak:g}" for peak in peaks)], rows)


def losses(results: Results, scale: Scale) -> str:
    """Final losses of all arms."""
    rows = [
        [arm.name, arm.label, *(loss_text(results.losses(scale, arm, budget)) for budget in reported(scale))]
        for arm in results.arms(scale)
    ]
    return table(["arm", "what", *head(results, scale)], rows)


def savings(results: Results, scale: Scale) -> str:
    """Savings of all grown arms."""
    rows = [
        [arm.name, arm.label, *(saving_text(results.saving(scale, arm, budget)) for budget in reported(scale))]
        for arm in results.arms(scale)
        if arm.kind == "grown"
    ]
    return table(["arm", "what", *head(results, scale)], rows)


def short_savings(results: Results) -> str:
    """The savings of the main arms, for the README."""
    both = ("scratch", "small")
    lines = {
        "`double-width`, grown at 25 % of the budget": ("default", both[:1]),
        "the same, grown at 10 %": ("default-tenth", both[:1]),
        "`double-width-exact`, grown at 25 %": ("exact", both[:1]),
        "`double-width` at 25 %, over the better of scratch and the small model alone": ("default", both),
        "`double-width`, if the small model already exists and so costs nothing": ("free", both[:1]),
    }
    rows = [
        [label, *(saving_text(results.saving(BASE, BY_NAME[name], budget, rivals)) for budget in reported(BASE))]
        for label, (name, rivals) in lines.items()
    ]
    return table(["FLOPs saved, as a factor", *head(results, BASE)], rows)


def gates(results: Results, scale: Scale) -> str:
    """By how much scratch beats the small model alone."""
    rows = []
    for budget in reported(scale):
        scratch, small = (results.losses(scale, BY_NAME[name], budget) for name in ("scratch", "small"))
        if scratch and small:
            counts = "yes" if results.counts(scale, budget) else "no"
            rows.append([f"{budget:g}", f"{small.mean - scratch.mean:+.3f}", counts])
    return table(["budget", "small alone less scratch, nats", f"counts (at least {COUNTS})"], rows)


def rivals(results: Results, scale: Scale) -> str:
    """The default against the best other way to grow, at each budget."""
    rows, noise = [], results.noise(scale) or results.noise(BASE)
    for budget in reported(scale):
        if best := results.best_rival(scale, budget):
            arm, values = best
            difference, count = sum(values) / len(values), len(values)
            error, verdict = "", "–"
            if noise:
                error = f" ± {noise / count**0.5:.3f}"
                verdict = "yes" if difference > -noise / count**0.5 else "**no**"
            name = arm.name + (" (lossy)" if arm.lossy else "")
            rows.append([f"{budget:g}", name, f"{difference:+.3f}{error}", str(count), verdict])
    return table(["budget", "best other arm", "its loss less the default's", "seeds", "default no worse"], rows)


def targets(results: Results) -> str:
    """What was to be reached, and what was."""
    rows = []
    for target in TARGETS:
        scale, arm = SCALES[target.scale], BY_NAME[target.arm]
        found = results.saving(scale, arm, target.budget)
        reached = "not run yet"
        if found:
            enough = found.mean >= target.saving
            reached = "yes" if enough and found.bound != "<" else "not shown" if found.bound == ">" else "**no**"
        counts = {True: "", False: " (does not count)", None: ""}[results.counts(scale, target.budget)]
        what = f"{target.arm}, {scale.name} scale, {target.budget:g} tokens per parameter{counts}"
        rows.append([what, f"{target.saving:g}", saving_text(found), reached])
    return table(["saving", "target", "measured", "reached"], rows)


def progress(results: Results) -> str:
    """Which runs are done, and which are not."""
    rows = []
    for scale in (BASE, LARGE):
        known = {(scale.name, kind, budget): scale.rates[0] for kind in KINDS for budget in scale.budgets}
        known |= results.rates
        names = [run.name for run in wanted({scale.name: scale}, known)]
        done = [name for name in names if name in results.runs]
        rows.append([scale.name, f"{len(done)} of {len(names)}"])
        for arm in ARMS:
            mine = [name for name in names if f"-{arm.name}-0." in name]
            left = [name.split("-", 1)[1] for name in mine if name not in results.runs]
            if left and len(left) < len(mine):
                rows.append([f"{scale.name}, {arm.name}", f"not yet: {len(left)} of {len(mine)}"])
            elif left:
                rows.append([f"{scale.name}, {arm.name}", "not yet"])
    hours = sum(run["seconds"] for run in results.runs.values()) / 3600
    return table(["", "runs done"], [*rows, ["core hours so far", f"{hours:.1f}"]])


def facts(results: Results) -> str:
    """Corpus and versions."""
    return table(["", ""], [[key, f"{value:,}" if isinstance(value, int) else str(value)] for key, value in
                            results.facts.items()])  # fmt: skip


TABLES: dict[str, Callable[[Results], str]] = {
    "facts": facts,
    "rates": lambda results: rates(results, BASE),
    "losses": lambda results: losses(results, BASE),
    "savings": lambda results: savings(results, BASE),
    "main savings": short_savings,
    "gates": lambda results: gates(results, BASE),
    "rivals": lambda results: rivals(results, BASE),
    "targets": targets,
    "rates of the large scale": lambda results: rates(results, LARGE),
    "losses of the large scale": lambda results: losses(results, LARGE),
    "savings of the large scale": lambda results: savings(results, LARGE),
    "progress": progress,
}


def filled(text: str, results: Results) -> str:
    """A page with the study's tables as the results make them."""

    def body(match: re.Match[str]) -> str:
        return f"{match[1]}{TABLES[match[2]](results)}\n{match[3]}"

    marker = r"(<!-- study: ([\w ]+), made by `make study-report` -->\n)(?:.*?\n)??(<!-- end of table -->)"
    return re.sub(marker, body, text, flags=re.S)


def report(folder: Path) -> None:
    """Fill the pages and draw the pictures."""
    from study_plots import draw

    results = Results.read(folder)
    for page in PAGES:
        page.write_text(filled(page.read_text(), results))
    draw(results, folder)
