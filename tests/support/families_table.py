"""docs/families.md, from what the tests of one run saw."""

from collections import defaultdict
from collections.abc import Iterable

from tests.support.paths import ROOT

PATH = ROOT / "docs" / "families.md"
AXES = ("residual", "ffn", "heads", "queries", "head_dim", "vocab", "experts", "depth")
HEAD = """\
# Families

What each family can grow, on every axis, as the tests saw it: `make families` runs them and writes this page;
`make test-all` fails where the page says something else. **exact** is a relative error of the logits of at most 1e-12
in float64 on stock transformers classes, at a fractional ratio (experts: whole ratios), for every variant that is
tested: tied and untied, with and without biases, grouped queries or not. **refused** names why, and for which
variants. Only `deepen` with `init: copy` and `reuse` are lossy, on every family. The column `heads` is the axis of that
name, which counts query heads (KV heads follow); `queries` counts query heads per KV head.

"""

Seen = tuple[str, str, str, str]  # family, variant, axis, "exact" or the reason


def page(seen: Iterable[Seen]) -> str:
    """The page for all that was seen."""
    cells: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for family, variant, axis, outcome in seen:
        cells[family][axis][variant] = outcome
    notes: list[str] = []
    rows = [
        f"| {family} | " + " | ".join(_cell(cells[family][axis], notes) for axis in AXES) + " |"
        for family in sorted(cells)
    ]
    table = f"| family | {' | '.join(AXES)} |\n|---{'|---' * len(AXES)}|\n" + "\n".join(rows)
    return HEAD + table + "\n\n" + "\n".join(f"{number}. {note}" for number, note in enumerate(notes, 1)) + "\n"


def _cell(variants: dict[str, str], notes: list[str]) -> str:
    if not variants:
        return "–"
    refused = defaultdict(list)
    for variant, outcome in sorted(variants.items()):
        if outcome != "exact":
            refused[outcome].append(variant)
    marks = []
    for reason, names in refused.items():
        everyone = len(names) == len(variants)
        note = reason if everyone else f"{'; '.join(names)}: {reason}"
        if note not in notes:
            notes.append(note)
        marks.append(str(notes.index(note) + 1))
    if sum(map(len, refused.values())) == len(variants):
        return f"refused ({', '.join(marks)})"
    return f"exact ({', '.join(marks)})" if marks else "exact"
