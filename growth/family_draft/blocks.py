"""The text of the blocks of a layer: its attention, its MLP or mixture, and its norms."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from growth.architectures.base import RotaryPairs
from growth.family_draft.dataflow import Call, LayerRoles, is_layer_norm, is_transposed, offset_of
from growth.family_draft.stock import StockClass
from growth.family_draft.text import call_text, unless


@dataclass(frozen=True)
class Choice:
    """What shapes do not tell and only a proof can: which of them makes the axes of attention exact.

    pairs: which rotary channels form a pair.
    within: whether queries, keys and values of one weight stand side by side in each head.
    scaled: whether the softmax scale is head_dim ** -0.5.
    """

    pairs: RotaryPairs = "halves"
    within: bool = False
    scaled: bool = True


@dataclass(frozen=True, eq=False)
class Blocks:
    """What the calls in a layer show of its blocks, written as arguments of `decoder`.

    layers: the name of the list of layers.
    layer: the calls in one of them, by their roles.
    questions: what a reader should check in the modelling file; filled while the text is made.
    """

    stock: StockClass
    layers: str
    layer: LayerRoles
    questions: list[str]

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors of files, and their shapes."""
        return self.stock.shapes()

    @property
    def head_dim(self) -> int:
        """The channels of a head of the small model."""
        return self.stock.sizes["head_dim"] or self.stock.sizes["residual"] // self.stock.sizes["heads queries"]

    def presence(self, names: Collection[str]) -> str:
        """Whether the model has tensors, as an expression of the config's flags."""
        if not self.tensors.keys() & set(names):
            return "False"
        flags = [
            f'{"" if more else "not "}flag(config, "{key}", {default})'
            for key, (default, more, added) in self.stock.flags.items()
            if added & set(names)
        ]
        return " and ".join(flags) or "True"

    def _biases(self, calls: Sequence[Call]) -> str:
        return self.presence([f"{call.name}.bias" for call in calls])

    def attention(self, choice: Choice) -> str:
        """The arguments of its attention, as `Attention` takes them."""
        layer, names = self.layer, dict[str, str]()
        inside = [layer.inside(call).removeprefix(f"{layer.attention}.") for call in (*layer.inputs, layer.output)]
        fused = len(layer.inputs) == 1
        projections = (inside[0], inside[0], inside[0], inside[1]) if fused else tuple(inside)
        bias = (self._biases(layer.inputs), self._biases([layer.output]))
        names["name"] = unless("self_attn", layer.attention)
        names["projections"] = unless(("q_proj", "k_proj", "v_proj", "o_proj"), projections)
        names["bias"] = "" if bias == ("False", "False") else f"({', '.join(bias)})"
        names["within"] = '("heads",)' if fused and choice.within else ""
        names |= self._qk_norm()
        names["scaled"] = "" if choice.scaled else "False"
        if is_transposed(layer.output.module):
            self.questions.append("Matrices of layers are stored (in, out): reverse their patterns (families/gpt2.py).")
        return call_text("Attention", names)

    def _qk_norm(self) -> dict[str, str]:
        layer = self.layer
        if len(layer.qk_norms) != 2:
            return {}
        first = layer.qk_norms[0]
        gain = self.tensors.get(f"{first.name}.weight", ())
        width = first.read.shape[-1]
        kind = "across" if width > self.head_dim else "own" if len(gain) == 2 else "shared"
        present = self.presence([f"{first.name}.weight"])
        names = tuple(call.name.rpartition(".")[2] for call in layer.qk_norms)
        return {
            "qk_norm": f'"{kind}"' if present == "True" else f'"{kind}" if {present} else ""',
            "qk_norm_names": unless(("q_norm", "k_norm"), names),
            "qk_norm_bias": self.presence([f"{first.name}.bias"]).removesuffix("False"),
        }

    def mlp(self) -> str:
        """Its MLP, gated or not, or its router and experts."""
        layer = self.layer
        if self.experts():
            return self._mixture()
        if layer.outer is None:
            return "()"
        names = [layer.inside(call) for call in (*layer.inner, layer.outer)]
        bias = unless("False", self._biases(layer.inner), quoted=False)
        gated = len(layer.inner) == 2 or layer.inner[0].written.shape[-1] == 2 * layer.outer.read.shape[-1]
        if not gated:
            return f'mlp("{names[0]}", "{names[1]}", bias={bias or "False"})'
        if len(layer.inner) == 1:
            names = [names[0], *names]
        module = names[0].rpartition(".")[0]
        projections = tuple(name.removeprefix(f"{module}.") for name in names)
        known = unless(("gate_proj", "up_proj", "down_proj"), projections)
        return call_text("gated_mlp", {"name": unless("mlp", module), "projections": known, "bias": bias})

    def experts(self) -> list[str]:
        """The names of an expert's projections in files, inside the layer, if each has tensors of its own."""
        found = (re.fullmatch(rf"{self.layers}\.1\.(.*\.experts)\.0\.(\w+)\.weight", name) for name in self.tensors)
        return [f"{one[1]}.{{expert}}.{one[2]}" for one in found if one]

    def _mixture(self) -> str:
        """The router and the experts."""
        sizes, prefix = self.stock.sizes, f"{self.layers}.1."
        router = next(
            n for n, shape in self.tensors.items() if prefix in n and shape == (sizes["experts"], sizes["residual"])
        )
        shapes = {name: self.tensors[f"{prefix}{name.format(expert=0)}.weight"] for name in self.experts()}
        outer = [name for name, shape in shapes.items() if shape[0] == sizes["residual"]]
        module = outer[0].rpartition(".")[0]
        order = sorted((name for name in shapes if name not in outer), key=lambda name: "up" in name) + outer
        known = unless(("gate_proj", "up_proj", "down_proj"), tuple(name.removeprefix(f"{module}.") for name in order))
        name = router.removeprefix(prefix).removesuffix(".weight")
        self.questions.append(
            "How does the router choose and weigh experts? A mixture is drafted as a softmax over all."
        )
        experts = call_text("gated_mlp", {"name": f'"{module}"', "projections": known})
        return f'(*linear("{name}", "experts", "normed"), *{experts})'

    def norms(self) -> str:
        """Its norms, as `Norms` takes them."""
        layer = self.layer
        one = layer.norms[0]
        before, after = (tuple(layer.inside(call) for call in calls) for calls in (layer.before, layer.after))
        eps = next((key for key, value in self.stock.defaults.items() if "eps" in key and type(value) is float), None)
        kind = is_layer_norm(one)
        offset = offset_of(one)
        known: dict[str, str] = {
            "before": unless(("input_layernorm", "post_attention_layernorm"), before),
            "after": unless((), after),
            "kind": '"layer"' if kind else "",
            "gain": "" if f"{one.name}.weight" in self.tensors else "False",
            "bias": self.presence([f"{one.name}.bias"]).removesuffix("False"),
            "offset": str(offset) if offset else "",
            "eps": "None" if eps is None else unless("rms_norm_eps", eps),
            "eps_default": "" if eps is None or self.stock.defaults[eps] == 1e-6 else str(self.stock.defaults[eps]),
        }
        return call_text("Norms", known)
