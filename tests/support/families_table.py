"""docs/families.md, from the results of one run of the tests."""

import re
from collections import defaultdict
from collections.abc import Iterable

from growth.architectures.unsupported import REASONS
from tests.support.paths import ROOT

PATH = ROOT / "docs" / "families.md"
AXES = ("residual", "ffn", "heads", "queries", "head_dim", "vocab", "experts", "depth")
OWN = "other axes"  # the last column: what else a family has, each axis with its outcome
HEAD = """\
# Families

This page lists what each family can grow, on every axis, as measured by the tests. `make families` runs the tests and
writes this page; `make test-all` fails if the page differs from their results. **exact** is a relative error of the
logits of at most 1e-12 in float64 on stock transformers classes, at a non-integer ratio (integer ratios for experts,
and where the residual stream is a LayerNorm's output, as in BERT), for every variant that is tested: tied and
untied, with and without biases, grouped queries or not. **refused** means that the recipe is rejected; the numbered
note says why, and for which variants. Steps that are lossy in every family ([operators](operators.md)) are
not counted here; for `vocab`, *exact* refers to the logits of the old tokens. The column `heads` is the axis of that name, which
counts query heads (KV heads follow); `queries` counts query heads per KV head.

"""

OTHERS = """\
## Other model types

These are the other model types of transformers with a causal head, and why none of their axes grows. The error that
refuses such a model says the same.
"""

# the config keys that define a variant, by the words of its name
KEYS = {
    "ALiBi": "`alibi: true`",
    "one group": "`multi_query: true`",
    "no groups": "`multi_query: false`",
    "groups": "`new_decoder_architecture: true`",
    "in sequence": "`parallel_attn: false`",
    "six heads": "`num_attention_heads: 6`",
    "head_dim 6": "`head_dim: 6`",
    "every second layer": "`sliding_window_pattern: 2`",
    "no biases": "`enable_bias: false`",
    "no gains": "`layer_norm_elementwise_affine: false`",
    "no final norm": "`_remove_final_layer_norm: true`",
    "norms behind": "`do_layer_norm_before: false`",
    "projected": "`word_embed_proj_dim`",
    "narrow embedding": "`embedding_size`",
    "causal": "`is_decoder: true`",
    "masked": "`is_decoder: false`",
    "clipped": "`clip_qkv`",
    "longrope": "`rope_type: longrope`",
    "proportional frequencies": "`rope_type: proportional`",
    "an axis alone": "one axis grown alone",
    "tied": "`tie_word_embeddings: true`",
    "untied": "`tie_word_embeddings: false`",
    "biases": "with biases",
    "no bias of the convolution": "`use_conv_bias: false`",
}
Seen = tuple[str, str, str, str]  # family, variant, axis, "exact" or the reason
Cell = tuple[str, tuple[str, ...]]  # "exact", "refused" or "–", and its notes
Rows = dict[str, dict[str, Cell]]  # by family and axis


def rows(seen: Iterable[Seen]) -> Rows:
    """The rows of all families that were seen."""
    outcomes: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for family, variant, axis, outcome in seen:
        outcomes[family][axis][variant] = outcome
    return {
        family: {axis: _cell(of_axis[axis]) for axis in (*AXES, *sorted(of_axis.keys() - {*AXES}))}
        for family, of_axis in outcomes.items()
    }


def _cell(variants: dict[str, str]) -> Cell:
    refused = defaultdict(list)
    for variant, outcome in sorted(variants.items()):
        if outcome != "exact":
            refused[outcome].append(variant)
    everyone = [reason for reason, names in refused.items() if len(names) == len(variants)]
    notes = tuple(everyone or (f"{'; '.join(map(_defined, names))}: {reason}" for reason, names in refused.items()))
    all_refuse = sum(map(len, refused.values())) == len(variants)
    return ("–" if not variants else "refused" if all_refuse else "exact"), notes


def page(table: Rows) -> str:
    """The page of a table; equal notes are one note."""
    notes = list(dict.fromkeys(note for _, row in sorted(table.items()) for cell in row.values() for note in cell[1]))

    def text(cell: Cell) -> str:
        marks = ", ".join(str(notes.index(note) + 1) for note in cell[1])
        return f"{cell[0]} ({marks})" if marks else cell[0]

    lines = [f"| family | {' | '.join((*AXES, OWN))} |", f"|---{'|---' * len(AXES)}|---|"]
    for family, row in sorted(table.items()):
        others = "; ".join(f"`{axis}` {text(cell)}" for axis, cell in row.items() if axis not in AXES)
        lines.append(f"| {family} | {' | '.join(text(row[axis]) for axis in AXES)} | {others or '–'} |")
    numbered = [f"{n}. {note}" for n, note in enumerate(notes, 1)]
    return HEAD + "\n".join([*lines, "", *numbered, "", OTHERS, *_others()]) + "\n"


def _others() -> list[str]:
    """The rows of model types without a family."""
    rows = sorted((model_type, reason) for reason, types in REASONS.items() for model_type in types.split())
    return ["| model type | why it does not grow |", "|---|---|", *(f"| {name} | {why} |" for name, why in rows)]


def parse(text: str) -> Rows:
    """The table of a page, so that one family's row can be written again."""
    text = text.partition(OTHERS)[0]
    notes = dict(re.findall(r"^(\d+)\. (.*)$", text, re.MULTILINE))
    table = {}
    for line in re.findall(r"^\| (.*) \|$", text, re.MULTILINE)[1:]:
        family, *cells, others = line.split(" | ")
        named = [cell.removeprefix("`").split("` ") for cell in others.split("; ") if cell != "–"]
        table[family] = {
            axis: _parsed(cell, notes) for axis, cell in [*zip(AXES, cells, strict=True), *map(tuple, named)]
        }
    return table


def _parsed(cell: str, notes: dict[str, str]) -> Cell:
    word, marks = re.fullmatch(r"(\S+)(?: \((.*)\))?", cell).groups()
    return word, tuple(notes[mark] for mark in marks.split(", ")) if marks else ()


def _defined(variant: str) -> str:
    """A variant by the config keys that define it."""
    return ", ".join(KEYS.get(word, word) for word in variant.split(", "))
