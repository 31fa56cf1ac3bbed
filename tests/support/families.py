"""Small random stock models of every family, in the variants that change its table.

A case names a family's variant, the config that makes it, and the axes that it refuses to grow.
Every module of tests/cases/ adds its own cases.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from growth.architectures import Architecture, architecture
from growth.verification.float64 import proof_grade
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Case:
    """A variant of a family.

    family: model_type.
    variant: what is special about it.
    config: of the stock class, small.
    refused: axes that cannot grow, with a part of the reason; "axis, init" for one init only, "rescale" for
        norm_eps, "layers" for identity layers.
    steps: other growths that keep the config valid where the usual ones do not: by axis, the operators'
        arguments as (axis, to) pairs that are applied together.
    """

    family: str
    variant: str
    config: Mapping[str, Any]
    refused: Mapping[str, str] = field(default_factory=dict)
    steps: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For test ids and tables."""
        return f"{self.family}, {self.variant}"


def all_cases() -> list[Case]:
    """Every case of tests/cases/."""
    modules = sorted(path.stem for path in (ROOT / "tests" / "cases").glob("[a-z]*.py"))
    return [case for module in modules for case in import_module(f"tests.cases.{module}").CASES]


def random_model(case: Case, dtype: torch.dtype = torch.float64, seed: int = 0) -> PreTrainedModel:
    """A stock model with every parameter random, norm gains and biases too."""
    with proof_grade():
        config = AutoConfig.for_model(case.family, **case.config)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3 if parameter.ndim > 1 else 0.5, generator=generator)
    return model.to(dtype).eval()


def stated_config(case: Case) -> dict[str, Any]:
    """The config of a case, as the stock class states it."""
    return AutoConfig.for_model(case.family, **case.config).to_dict()


def table(case: Case) -> Architecture:
    """The table of a case."""
    return architecture(stated_config(case))


def kind_of_blocks(case: Case) -> tuple:
    """What a case has in common with others in each layer: the norms and their places, fused weights, experts."""
    built = table(case)
    weights = [weight for weight in built.weights if weight.per_layer]
    norms = [weight for weight in weights if weight.norm_inputs in (("residual",), ("branch",))]
    return (
        built.axes["residual"].norm,
        len(norms),
        any(norm.branch_end for norm in norms),
        max((len(weight.parts), weight.within) for weight in weights),
        "experts" in built.axes,
    )


SIZES = {"residual": 40, "ffn": 60, "heads": 6, "queries": 3, "head_dim": 10, "vocab": 70}


def steps_of(case, axis):
    """What grows an axis of a case: by default the axis alone."""
    built = table(case)
    if axis in case.steps:
        return case.steps[axis]
    size = {**SIZES, "heads": (built.axes["heads"].size + 1) * built.axes["queries"].size}
    size["queries"] = built.axes["queries"].size + 1
    size["head_dim"] = built.axes["head_dim"].size + 2
    return ((axis, size[axis]),)


def tied_and_untied():
    """The first variant of each family that is tied, and the first that is not."""
    found = {}
    for case in all_cases():
        tied = case.config.get("tie_word_embeddings", "untied" not in case.variant)
        found.setdefault((case.family, "tied" if tied else "untied"), case)
    return found
