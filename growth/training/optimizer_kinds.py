"""Optimizers whose state can grow: what each keeps of a parameter, and what it averages.

Adafactor keeps the means of its second moment V over rows and over columns, r and c, and stands for V by
r cᵀ / mean(r) (Shazeer and Stern 2018, arXiv 1804.04235, algorithm 2). Its state is decoded to that V, grows as Adam's
second moment does, and is encoded again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from growth.algebra.expansion import Floats

Entry = Mapping[str, Any]  # what an optimizer keeps of one parameter

# what a moment averages -> the coefficients by which it grows, from those of a gradient
MOMENTS: Mapping[str, Callable[[Floats], Floats]] = {
    "gradients": np.positive,
    "squares": np.square,
    "magnitudes": np.abs,
    "updates": np.sign,  # which do not depend on the size of gradients
}


@dataclass(frozen=True)
class Kind:
    """Optimizers with the same state.

    classes: their names, with the module.
    options: keys that their groups have, and those of no kind after this one do.
    moments: the entries of a parameter that average something, and what (a key of `MOMENTS`).
    scalars: the entries that are numbers, which do not change.
    optional: entries that an option of the group, of this name, calls for.
    factored: the second moment that a matrix has as two factors, its means over columns and over rows.
    factors: the entries of these two, and whether they keep the dimension of length 1.
    """

    classes: tuple[str, ...]
    options: frozenset[str]
    moments: Mapping[str, str]
    scalars: tuple[str, ...] = ("step",)
    optional: Mapping[str, str] = field(default_factory=dict)
    factored: str | None = None
    factors: tuple[str, str, bool] = ("", "", False)

    @property
    def entries(self) -> set[str]:
        """All entries that a parameter can have."""
        return {*self.scalars, *self.moments, *(self.factors[:2] if self.factored else ())}

    def shapes(self, shape: tuple[int, ...], group: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The entries that a parameter of a shape in a group has, with their shapes."""
        on = {key for key in self.moments if group.get(self.optional.get(key, "params")) not in (None, False)}
        found = dict.fromkeys(self.scalars, ()) | {key: shape for key in self.moments if key in on}
        if self.factored and len(shape) > 1:
            del found[self.factored]
            one = (1,) * self.factors[2]
            found |= {self.factors[0]: (*shape[:-1], *one), self.factors[1]: (*shape[:-2], *one, shape[-1])}
        return found

    def decoded(self, entry: Entry) -> dict[str, Any]:
        """An entry of a parameter with its second moment in place of the two factors."""
        row, column, kept = self.factors
        if self.factored is None or row not in entry:
            return dict(entry)
        rows, columns = (entry[row], entry[column]) if kept else (entry[row][..., None], entry[column][..., None, :])
        mean = rows.mean(dim=-2, keepdim=True)
        others = {key: value for key, value in entry.items() if key not in (row, column)}
        return {**others, self.factored: rows / torch.where(mean > 0, mean, 1) * columns}

    def encoded(self, entry: Entry) -> dict[str, Any]:
        """The entry of a parameter of which `decoded` makes this one, or nearly so."""
        if self.factored is None or entry[self.factored].ndim < 2:
            return dict(entry)
        row, column, kept = self.factors
        moment = entry[self.factored]
        others = {key: value for key, value in entry.items() if key != self.factored}
        return {**others, row: moment.mean(dim=-1, keepdim=kept), column: moment.mean(dim=-2, keepdim=kept)}


_ADAM = {"exp_avg": "gradients", "exp_avg_sq": "squares"}
KINDS = (
    Kind(
        ("torch.optim.Adam", "torch.optim.AdamW"),
        frozenset({"betas", "amsgrad"}),
        {**_ADAM, "max_exp_avg_sq": "squares"},
        optional={"max_exp_avg_sq": "amsgrad"},
    ),
    Kind(("torch.optim.NAdam",), frozenset({"betas", "momentum_decay"}), _ADAM, ("step", "mu_product")),
    Kind(("torch.optim.RAdam",), frozenset({"betas", "decoupled_weight_decay"}), _ADAM),
    Kind(("torch.optim.Adamax",), frozenset({"betas"}), {"exp_avg": "gradients", "exp_inf": "magnitudes"}),
    Kind(("torch.optim.SGD",), frozenset({"momentum", "dampening"}), {"momentum_buffer": "gradients"}, ()),
    Kind(("torch.optim.Muon",), frozenset({"momentum", "ns_steps"}), {"momentum_buffer": "gradients"}, ()),
    Kind(
        ("torch.optim.Adafactor",),
        frozenset({"beta2_decay"}),
        {"variance": "squares"},
        factored="variance",
        factors=("row_var", "col_var", True),
    ),
    Kind(
        ("transformers.optimization.Adafactor",),
        frozenset({"decay_rate", "clip_threshold"}),
        {"exp_avg": "updates", "exp_avg_sq": "squares"},
        ("step", "RMS"),
        optional={"exp_avg": "beta1"},
        factored="exp_avg_sq",
        factors=("exp_avg_sq_row", "exp_avg_sq_col", False),
    ),
)


def is_moment(value: Any) -> bool:
    """Whether an entry of a parameter has values for its elements, and is no single number."""
    return isinstance(value, torch.Tensor) and value.ndim > 0


def kind_of_class(optimizer: type) -> Kind | None:
    """The kind of an optimizer's class; a class derived from a known one may keep other state, and has none."""
    for kind in KINDS:
        for name in kind.classes:
            module, _, own = name.rpartition(".")
            if getattr(sys.modules.get(module), own, None) is optimizer:
                return kind
    return None


def kind_of_group(group: Mapping[str, Any]) -> Kind | None:
    """The kind of the optimizer that has a group with these options."""
    return next((kind for kind in KINDS if kind.options <= group.keys()), None)
