"""Small random stock models of every family, in the variants that change its table.

A case names a family's variant, the config that makes it, and the axes that it refuses to grow.
Every module of tests/cases/ adds its own cases.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import import_module
from itertools import cycle, islice
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from growth.architectures import Architecture, architecture
from growth.architectures.base import Weight
from growth.architectures.spelling import TEXT
from growth.checkpoints.stock_parameters import auto_class
from growth.operators import chain, widen
from growth.verification.float64 import proof_grade
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Case:
    """A variant of a family.

    family: model_type.
    variant: what is special about it.
    config: of the stock class, small.
    refused: axes that cannot grow, with a part of the reason; "axis, init" for one init only, "rescale" for
        norm_eps, "layers" for identity layers, "any layers" for lossy ones too, "layers, order" for one order only,
        "one layer" where the stock class makes no model of one or nothing makes it deeper.
    steps: other growths that keep the config valid where the usual ones do not: by axis, the operators'
        arguments as (axis, to) pairs that are applied together.
    along: the init of axes that can grow along with another one by this init alone.
    """

    family: str
    variant: str
    config: Mapping[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    along: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> Mapping[str, Any]:
        """The text model's config, which may be a part of the config."""
        text: Mapping[str, Any] = self.config.get(TEXT, self.config)
        return text

    @property
    def name(self) -> str:
        """For test ids and tables."""
        return f"{self.family}, {self.variant}"

    @cached_property
    def table(self) -> Architecture:
        """The table, made once: it is frozen."""
        return architecture(stated_config(self))


@cache
def all_cases() -> list[Case]:
    """Every case of tests/cases/."""
    modules = sorted(path.stem for path in (ROOT / "tests" / "cases").glob("[a-z]*.py"))
    return [case for module in modules for case in import_module(f"tests.cases.{module}").CASES]


def random_model(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A stock model with every parameter random, norm gains and biases too."""
    with proof_grade():
        config = AutoConfig.for_model(case.family, **deepcopy(dict(case.config)))  # which transformers changes
        model = auto_class(config).from_config(config, attn_implementation="eager", experts_implementation="eager")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3 if parameter.ndim > 1 else 0.5, generator=generator)
            stored = model.state_dict().keys()
            for name, buffer in model.named_buffers():  # such as biases that correct a router's scores
                if name in stored and buffer.ndim:
                    buffer.normal_(std=0.3, generator=generator)
    # `to` would make complex numbers real, too: the rotary factors of Llama 4's vision tower
    casts = {torch.float64: "double", torch.float32: "float", torch.bfloat16: "bfloat16", torch.float16: "half"}
    return getattr(model, casts[dtype])().eval()


def with_depth(case: Case, depth: int) -> Case:
    """The case with another number of layers, whose kinds the config implies."""
    listed = ("layer_types", "no_rope_layers", "mlp_layer_types", "mlp_only_layers", "moe_layers", "layer_rope_theta")
    listed += ("sliding_window_pattern",) if case.family == "cohere2" else ()  # which its class does not keep
    kept = {key: value for key, value in case.text.items() if key not in listed}
    key = next((name for name in ("n_layer", "n_layers", "num_layers") if name in kept), "num_hidden_layers")
    groups = {"attention_types": [[["global"], depth]]} if "attention_types" in kept else {}
    kinds = {
        name: list(islice(cycle(kept[name]), depth))
        for name in ("layers_block_type", "block_types", "indexer_types")
        if name in kept
    }
    text = {**kept, **groups, **kinds, key: depth}
    if TEXT in case.config:
        return replace(case, config={**case.config, TEXT: text})
    if "layer_types" in case.text and _needs_kinds(case, text):
        text["layer_types"] = list(islice(cycle(case.text["layer_types"]), depth))
    return replace(case, config=text)


def _needs_kinds(case: Case, config: Mapping[str, Any]) -> bool:
    """Whether the class implies no kinds of layers."""
    try:
        return AutoConfig.for_model(case.family, **deepcopy(dict(config))).layer_types is None
    except IndexError:  # Beam's, of no layers
        return True


def stated_config(case: Case) -> dict[str, Any]:
    """The config of a case, as the stock class states it."""
    return AutoConfig.for_model(case.family, **deepcopy(dict(case.config))).to_dict()


def table(case: Case) -> Architecture:
    """The table of a case."""
    return case.table


def kind_of_norms(case: Case) -> tuple:
    """Which norms the layers of a case have, how many, and whether one ends a branch."""
    norms = [weight for weight in _of_layers(case) if weight.norm_inputs in (("residual",), ("branch",))]
    return table(case).axes["residual"].norm, len(norms), any(norm.branch_end for norm in norms)


def kind_of_weights(case: Case) -> tuple:
    """What the weights of a case's layers hold: the most parts, what is in one of the others, and whether experts."""
    return max((len(weight.parts), weight.within) for weight in _of_layers(case)), "experts" in table(case).axes


def _of_layers(case: Case) -> list[Weight]:
    return [weight for weight in table(case).weights if weight.per_layer]


# ------------------------------------------------- which families the quick run has in each law


def special(case: Case) -> str:
    """The family of a case if it is special, else an empty string: all other families are one kind.

    Laws read tables. So the quick run tries each law on families until their tables have every kind of row that any
    table has; these are special. The others are in the quick run in tests that have every family.
    """
    return case.family if case.family in _families_with(_kinds_of_rows) else ""


def typical(case: Case) -> str:
    """The family of a case if it is typical, else an empty string.

    For laws that read a table as a whole, not its single rows, such as those of ties, of folders and of optimizers: the
    quick run tries them on families until every axis and every key of a table has occurred.
    """
    return case.family if case.family in _families_with(_outline) else ""


@cache
def _families_with(kinds: Callable[[Case], set]) -> frozenset[str]:
    """As few families as it takes for every kind of something, found greedily."""
    rows: dict[str, set] = {}
    for case in all_cases():
        rows.setdefault(case.family, set()).update(kinds(case))
    found, missing = set(), set.union(*rows.values())
    while missing:
        best = max(rows, key=lambda family: len(rows[family] & missing))
        found.add(best)
        missing -= rows[best]
    return frozenset(found)


def _views(built: Architecture, spaces: tuple[str, ...]) -> set[tuple]:
    """How a table groups axes into each of some spaces."""
    return {built.spaces.get(space, (space,)) for space in spaces}


def _outline(case: Case) -> set:
    """The axes of a table, and which of its keys are set."""
    built = table(case)
    keys = {
        "tied": built.tied, "ratios": len(built.ratios), "norms": bool(built.norms), "eps": bool(built.eps),
        "bases": len(built.bases), "rotary": bool(built.rotary_key), "lists": bool(built.layer_lists),
        "sets": bool(built.layer_sets), "depths": len(built.depth_keys), "no identity": bool(built.no_identity),
    }  # fmt: skip
    return {*built.axes} | {*keys.items()}


def _kinds_of_rows(case: Case) -> set:
    """What a table says, without names, sizes and reasons: its axes, and the axes, views and marks of its weights."""
    built = table(case)
    axes = {
        replace(
            axis, size=0, fixed=min(axis.fixed, 1), max_size=min(axis.max_size, 1),
            refusal=str(bool(axis.refusal)), equal_copies=str(bool(axis.equal_copies)),
        )
        for axis in built.axes.values()
    }  # fmt: skip
    written = {
        (view, bool(part.reads))
        for weight in built.weights
        for part in weight.parts
        for dimension in part.dimensions
        for view in _views(built, dimension)
    }
    marks = {
        (
            len(weight.parts), max(len(part.dimensions) for part in weight.parts), bool(weight.norm_inputs),
            any(part.layer_scaled for part in weight.parts), weight.fused, bool(weight.within), bool(weight.offset),
            weight.branch_end, weight.layers is None, bool(weight.units),
        )
        for weight in built.weights
    }  # fmt: skip
    read = {("reads", view) for weight in built.weights for part in weight.parts for view in _views(built, part.reads)}
    return axes | written | marks | read | _outline(case)


# ------------------------------------------------- how a case grows


SIZES = {"residual": 40, "ffn": 60, "vocab": 70}
# other axes, and by how many units they grow
MORE = {"heads": 1, "queries": 1, "head_dim": 2}
MORE |= {"dense_ffn": 12, "shared_ffn": 10, "shared_experts": 1}
MORE |= {"q_lora_rank": 3, "kv_lora_rank": 3, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 3}
MORE |= {"index_head_dim": 2, "embedding": 8, "head_embedding": 24, "adapter": 16, "glyph": 3, "sound": 3}
MORE |= {
    "latent": 5,
    "lru_block": 3,
    "inner": 24,
    "state": 2,
    "dt_rank": 2,
    "conv_kernel": 2,
    "ssm_groups": 1,
    "ssm_heads": 1,
    "ssm_head_dim": 2,
}


def axes_of(case):
    """The axes of a case that grow by any ratio."""
    return [axis for axis in (*SIZES, *MORE) if axis in table(case).axes]


def inner_axis(case):
    """The axis of the units inside each layer's MLP; of those of a state-space model where there is no MLP."""
    return next(axis for axis in ("ffn", "inner", "ssm_heads") if axis in table(case).axes)


def twice(case):
    """The inner units of each layer, doubled as identical copies, and the axes that must grow along with them.

    By the sizes of the case where one of these axes cannot double.
    """
    steps, axes = steps_of(case, inner_axis(case)), table(case).axes
    if inner_axis(case) not in case.steps or not any(axes[axis].refusal for axis, _ in steps):
        return chain(*(widen(axis, factor=2, init="tile", shares="equal") for axis, _ in steps))
    return chain(*(widen(axis, to=to, init=case.along.get(axis, "tile")) for axis, to in steps))


def half_more(case):
    """The same, some of them copied and some not; doubled where each must be copied equally often."""
    axis = inner_axis(case)
    if table(case).axes[axis].unscaled or axis in case.steps:
        return twice(case)
    return widen(axis, factor=1.5, init="tile", shares="equal")


def steps_of(case, axis):
    """What grows an axis of a case: by default the axis alone."""
    if axis in case.steps:
        return case.steps[axis]
    if axis in SIZES:
        return ((axis, SIZES[axis]),)
    axes = table(case).axes
    return ((axis, (axes[axis].size + MORE[axis]) * (axes["queries"].size if axis == "heads" else 1)),)


def widths(case, axis, init):
    """The same, as (axis, size, init): what grows an axis by an init."""
    return [(name, to, init if name == axis else case.along.get(name, init)) for name, to in steps_of(case, axis)]


def tied_and_untied():
    """The first variant of each family that is tied, and the first that is not."""
    found = {}
    for case in all_cases():
        tied = case.config.get("tie_word_embeddings", "untied" not in case.variant)
        found.setdefault((case.family, "tied" if tied else "untied"), case)
    return found
