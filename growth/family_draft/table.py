"""The text of a family file: what `decoder` needs to reproduce the tensors, and every other weight one by one."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from transformers import PreTrainedModel

from growth.architectures.base import RotaryPairs
from growth.architectures.config import DROPOUT, NEUTRAL
from growth.architectures.decoder import BASE, SIZES
from growth.errors import ConfigError
from growth.family_draft.dataflow import (
    Call,
    LayerRoles,
    calls_of,
    is_layer_norm,
    is_transposed,
    layer_of,
    layers_of,
    offset_of,
)
from growth.family_draft.stock import TIED, StockClass

LLAMA_NAMES = ("model.embed_tokens", "model.layers.{layer}", "model.norm")
FILE = '''\
"""Draft of the table of {model_type}, made by `growth family {model_type}` from {kind}.

Open questions, for a reader of its modelling file:
{questions}
"""

{imports}


@{decorator}
def {function}(config: Config) -> Architecture:
    """Return the table of {model_type}."""
{body}
'''


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
class Draft:
    """What a small model of a stock class shows of its table.

    module: the module that registers the classes with transformers, if transformers does not have them itself.
    questions: what a reader should check in the modelling file; filled while the text is made.
    """

    stock: StockClass
    model: PreTrainedModel
    calls: Sequence[Call]
    module: str = ""
    questions: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, stock: StockClass, module: str = "") -> Draft:
        """Run a small model of the class.

        Raises:
            ConfigError: it does not run.
        """
        model = stock.model("cpu").double()
        try:
            calls = calls_of(model, torch.arange(1, 13)[None])
        except Exception as error:  # classes raise many kinds of error
            raise ConfigError(
                f"transformers cannot run a small {stock.model_type}: {error}. State what it needs: --set KEY=VALUE."
            ) from error
        return cls(stock, model, calls, module)

    @cached_property
    def layer(self) -> LayerRoles:
        """The roles of the calls in a layer."""
        return layer_of(self.model, self.calls)

    @cached_property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """The tensors of files, and their shapes."""
        return self.stock.shapes()

    @cached_property
    def outside(self) -> list[Call]:
        """The calls outside of layers."""
        return [call for call in self.calls if not call.name.startswith(f"{layers_of(self.model)}.")]

    def add(self, name: str) -> None:
        """Add the weight of a tensor that the table lacks, by how its shape answers to the keys of sizes."""
        if any(f'"{self._general(name)}"' in line for line in self.others):
            return
        pattern, reads = _pattern(self.stock.answers[name])
        if "?" in pattern:
            self.questions.append(f"{name} has a size that none of the known keys changes.")
            return
        given = [f'"{self._general(name)}"', f'"{pattern}"', *([f"{reads}"] if reads else [])]
        self.others.append(f"weight({', '.join(given)}),  # open: what writes and reads it?")

    def _general(self, name: str) -> str:
        """The name of a tensor for any layer and expert."""
        found = re.sub(rf"^({re.escape(layers_of(self.model))})\.\d+\.", r"\1.{layer}.", name)
        return re.sub(r"\.experts\.\d+\.", ".experts.{expert}.", found)

    def text(self, choice: Choice) -> str:
        """The file of the family."""
        questions = [*self.questions]
        arguments = {name: text for name, text in self._arguments(choice).items() if text}
        body, model_type = self._body(arguments), self.stock.model_type
        asked = list(dict.fromkeys([*self.questions, *self._silent_keys()]))
        self.questions[:] = questions  # those of the text come again with each text
        function = re.sub(r"\W", "_", model_type)
        decorator = "family" if function == model_type else f'named_family("{model_type}")'
        registering = [f"import {self.module}  # noqa: F401 (registers the classes)"] if self.module else []
        return FILE.format(
            model_type=model_type,
            function=function,
            decorator=decorator,
            kind=type(self.model).__name__,
            questions="\n".join(f"- {question}" for question in asked),
            imports="\n".join([*registering, *_imports(f"{decorator}({body}")]),
            body=body,
        )

    def _silent_keys(self) -> list[str]:
        """The question about the config keys that change no tensor, and may change what a wider model computes."""
        known = {
            *self.stock.keys.values(),
            *self.stock.flags,
            *NEUTRAL,
            *self.stock.settings,
            "head_dim",
            "layer_types",
        }
        known |= {"rope_parameters", TIED, "is_decoder", "add_cross_attention"}
        silent = [
            key
            for key, value in self.stock.defaults.items()
            if key not in known
            and isinstance(value, int | float | str)
            and not key.endswith(DROPOUT)
            and "eps" not in key
        ]
        return [f"Does a wider model compute the same whatever these keys are? {', '.join(silent)}."] if silent else []

    # ------------------------------------------------- decoder's arguments

    def _arguments(self, choice: Choice) -> dict[str, str]:
        """The arguments of `decoder`, empty where its default is right."""
        sizes = self._sizes()
        return {
            "attention": self._attention(choice),
            "mlp": self._mlp(),
            "norms": self._norms(),
            "names": self._names(),
            "embed_scaled": "True" if self._embed_scaled() else "",
            "default_tied": "True" if self.stock.defaults.get(TIED) else "",
            "head": _unless("lm_head", self._head()),
            "head_bias": self._presence([f"{self._head()}.bias"]).removesuffix("False"),
            "depth": _unless("num_hidden_layers", self.stock.keys["depth"]),
            "sizes": "" if sizes == SIZES else str(sizes).replace("'", '"'),
            "defaults": self._defaults(),
            **self._rotary(),
            "pairs": _unless("halves", choice.pairs),
            "layer_types": self._layer_types(),
        }

    def _head(self) -> str:
        """The name of the head, which may have another one in files."""
        embedding = f"{self.outside[0].name}.weight"
        alike = [name for name, shape in self.tensors.items() if shape == self.tensors[embedding] and name != embedding]
        return alike[-1].removesuffix(".weight") if alike else "lm_head"

    def _names(self) -> str:
        embedding = self.outside[0].name
        final = [call.name for call in self.outside if call.kind == "norm"][-1]
        names = (embedding, f"{layers_of(self.model)}.{{layer}}", final)
        return "" if names == LLAMA_NAMES else str(names).replace("'", '"')

    def _sizes(self) -> dict[str, str]:
        keys = {axes: key for axes, key in self.stock.keys.items() if axes not in ("depth", "positions")}
        if "heads" not in keys:
            keys["heads"] = keys.pop("heads queries")
        if "experts" in keys and not any(".experts." in name for name in self.tensors):
            del keys["experts"]
        order = [*SIZES.values(), "experts"]
        keys.setdefault("head_dim", "head_dim")
        return {keys[axes]: axes for axes in order if axes in keys}

    def _defaults(self) -> str:
        """Sizes that a config may leave out."""
        found, stock, keys = {}, self.stock.defaults, self.stock.keys
        if isinstance(stock.get(keys.get("heads", "")), int) and stock[keys["heads"]] != stock[keys["heads queries"]]:
            found["heads"] = str(stock[keys["heads"]])
        if not self.stock.states_head_dim:
            usual = (keys["residual"], keys["heads queries"]) == ("hidden_size", "num_attention_heads")
            named = "" if usual else f', "{keys["residual"]}", "{keys["heads queries"]}"'
            found["head_dim"] = f"square_head_dim(config{named})"
        elif isinstance(stock.get("head_dim"), int):
            found["head_dim"] = f"optional_head_dim(config, {stock['head_dim']})"
        if isinstance(stock.get(keys.get("experts", "")), int) and self._experts():
            found["experts"] = str(stock[keys["experts"]])
        if stock.get(keys["ffn"], 0) is None:
            found["ffn"] = f'4 * size(config, "{keys["residual"]}")'
        return "{" + ", ".join(f'"{axis}": {text}' for axis, text in found.items()) + "}" if found else ""

    def _rotary(self) -> dict[str, str]:
        rope = self.stock.defaults.get("rope_parameters") or {}
        lengths = {2 * len(b) for name, b in self.model.named_buffers() if name.endswith("inv_freq")}
        head_dim = self.head_dim
        if "rotary_dim" in self.stock.defaults:
            return {"rotary": f'size(config, "rotary_dim", {self.stock.defaults["rotary_dim"]})'}
        if not lengths:
            return {"rotary": "0"}
        if lengths != {head_dim} or "partial_rotary_factor" in rope:
            share = rope.get("partial_rotary_factor", min(lengths) / head_dim)
            return {"rotary": f"rotary_channels(config, {self._head_dim_text()}, {share})"}
        forms = {kind: form for kind, form in rope.items() if isinstance(form, Mapping)} or {"": rope}
        bases = tuple((kind, "rope_theta", float(form.get("rope_theta", 1e4))) for kind, form in forms.items())
        return {"bases": _unless(BASE, bases)}

    @property
    def head_dim(self) -> int:
        """The channels of a head of the small model."""
        return self.stock.sizes["head_dim"] or self.stock.sizes["residual"] // self.stock.sizes["heads queries"]

    def _head_dim_text(self) -> str:
        found = re.search(r'"head_dim": (\w+\([^()]*\))', self._defaults())
        return found[1] if found else "implied_head_dim(config)"

    def _layer_types(self) -> str:
        kinds = self.stock.defaults.get("layer_types")
        if not kinds:
            return ""
        if set(kinds) - {"sliding_attention", "full_attention"}:
            self.questions.append(f"Its layers are of the kinds {sorted(set(kinds))}, which may have other tensors.")
        full = [layer for layer, kind in enumerate(kinds) if kind != "sliding_attention"]
        if len(full) in (0, len(kinds)):
            return f"layer_types(config, lambda layer: {not full})"
        pattern = full[0] + 1
        if full != list(range(pattern - 1, len(kinds), pattern)):
            self.questions.append(f"Which layers have a window if the config does not list them? Here: not {full}.")
        return f"alternating_layers(config, {pattern})"

    def _embed_scaled(self) -> bool:
        first = next(call for call in self.calls if call not in self.outside)
        tokens, matrix = self.outside[0].read, self.outside[0].module.get_parameter("weight").detach()
        embedded = matrix[tokens]
        if embedded.shape != first.read.shape:
            return False
        factor = float((embedded * first.read).sum() / (embedded * embedded).sum())
        return bool(abs(factor - self.stock.sizes["residual"] ** 0.5) < 1e-3)

    # ------------------------------------------------- blocks

    def _presence(self, names: Collection[str]) -> str:
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
        return self._presence([f"{call.name}.bias" for call in calls])

    def _attention(self, choice: Choice) -> str:
        layer, names = self.layer, {}
        inside = [layer.inside(call).removeprefix(f"{layer.attention}.") for call in (*layer.inputs, layer.output)]
        fused = len(layer.inputs) == 1
        projections = (inside[0], inside[0], inside[0], inside[1]) if fused else tuple(inside)
        bias = (self._biases(layer.inputs), self._biases([layer.output]))
        names["name"] = _unless("self_attn", layer.attention)
        names["projections"] = _unless(("q_proj", "k_proj", "v_proj", "o_proj"), projections)
        names["bias"] = "" if bias == ("False", "False") else f"({', '.join(bias)})"
        names["within"] = '("heads",)' if fused and choice.within else ""
        names |= self._qk_norm()
        names["scaled"] = "" if choice.scaled else "False"
        if is_transposed(layer.output.module):
            self.questions.append("Matrices of layers are stored (in, out): reverse their patterns (families/gpt2.py).")
        return _call("Attention", names)

    def _qk_norm(self) -> dict[str, str]:
        layer = self.layer
        if len(layer.qk_norms) != 2:
            return {}
        first = layer.qk_norms[0]
        gain = self.tensors.get(f"{first.name}.weight", ())
        width = first.read.shape[-1]
        kind = "across" if width > self.head_dim else "own" if len(gain) == 2 else "shared"
        present = self._presence([f"{first.name}.weight"])
        names = tuple(call.name.rpartition(".")[2] for call in layer.qk_norms)
        return {
            "qk_norm": f'"{kind}"' if present == "True" else f'"{kind}" if {present} else ""',
            "qk_norm_names": _unless(("q_norm", "k_norm"), names),
            "qk_norm_bias": self._presence([f"{first.name}.bias"]).removesuffix("False"),
        }

    def _mlp(self) -> str:
        layer = self.layer
        if self._experts():
            return self._mixture()
        if layer.outer is None:
            return "()"
        names = [layer.inside(call) for call in (*layer.inner, layer.outer)]
        bias = _unless("False", self._biases(layer.inner), quoted=False)
        gated = len(layer.inner) == 2 or layer.inner[0].written.shape[-1] == 2 * layer.outer.read.shape[-1]
        if not gated:
            return f'mlp("{names[0]}", "{names[1]}", bias={bias or "False"})'
        if len(layer.inner) == 1:
            names = [names[0], *names]
        module = names[0].rpartition(".")[0]
        projections = tuple(name.removeprefix(f"{module}.") for name in names)
        known = _unless(("gate_proj", "up_proj", "down_proj"), projections)
        return _call("gated_mlp", {"name": _unless("mlp", module), "projections": known, "bias": bias})

    def _experts(self) -> list[str]:
        """The names of an expert's projections in files, inside the layer, if each has tensors of its own."""
        found = (
            re.fullmatch(rf"{layers_of(self.model)}\.1\.(.*\.experts)\.0\.(\w+)\.weight", name) for name in self.tensors
        )
        return [f"{one[1]}.{{expert}}.{one[2]}" for one in found if one]

    def _mixture(self) -> str:
        """The router and the experts."""
        sizes, prefix = self.stock.sizes, f"{layers_of(self.model)}.1."
        router = next(
            n for n, shape in self.tensors.items() if prefix in n and shape == (sizes["experts"], sizes["residual"])
        )
        shapes = {name: self.tensors[f"{prefix}{name.format(expert=0)}.weight"] for name in self._experts()}
        outer = [name for name, shape in shapes.items() if shape[0] == sizes["residual"]]
        module = outer[0].rpartition(".")[0]
        order = sorted((name for name in shapes if name not in outer), key=lambda name: "up" in name) + outer
        known = _unless(("gate_proj", "up_proj", "down_proj"), tuple(name.removeprefix(f"{module}.") for name in order))
        name = router.removeprefix(prefix).removesuffix(".weight")
        self.questions.append(
            "How does the router choose and weigh experts? A mixture is drafted as a softmax over all."
        )
        experts = _call("gated_mlp", {"name": f'"{module}"', "projections": known})
        return f'(*linear("{name}", "experts", "normed"), *{experts})'

    def _norms(self) -> str:
        layer = self.layer
        one = layer.norms[0]
        before, after = (tuple(layer.inside(call) for call in calls) for calls in (layer.before, layer.after))
        eps = next((key for key, value in self.stock.defaults.items() if "eps" in key and type(value) is float), None)
        kind = is_layer_norm(one)
        offset = offset_of(one)
        known: dict[str, str] = {
            "before": _unless(("input_layernorm", "post_attention_layernorm"), before),
            "after": _unless((), after),
            "kind": '"layer"' if kind else "",
            "gain": "" if f"{one.name}.weight" in self.tensors else "False",
            "bias": self._presence([f"{one.name}.bias"]).removesuffix("False"),
            "offset": str(offset) if offset else "",
            "eps": "None" if eps is None else _unless("rms_norm_eps", eps),
            "eps_default": "" if eps is None or self.stock.defaults[eps] == 1e-6 else str(self.stock.defaults[eps]),
        }
        return _call("Norms", known)

    # ------------------------------------------------- the text

    def _body(self, arguments: Mapping[str, str]) -> str:
        given = [text if name == "attention" else f"{name}={text}" for name, text in arguments.items()]
        lines = ",\n        ".join(["config", *given])
        made = f"decoder(\n        {lines},\n    )"
        around = [*self._positions(), *self._rotary_key(), *self._ratio(), *self._others()]
        if not around:
            return f"    return {made}"
        return "\n".join([f"    table = {made}", *around, "    return table"])

    def _positions(self) -> list[str]:
        """The step that adds learned positions."""
        embeddings = [call for call in self.outside if call.kind == "embedding"][1:]
        if not embeddings or "positions" not in self.stock.keys:
            return []
        key = self.stock.keys["positions"]
        reserved = self.tensors[f"{embeddings[0].name}.weight"][0] - self.stock.sizes["positions"]
        more = f", reserved={reserved}" if reserved else ""
        given = f'"{embeddings[0].name}.weight", "{key}", {self.stock.defaults[key]}{more}'
        return [f"    table = with_learned_positions(table, {given})"]

    def _ratio(self) -> list[str]:
        """The step that makes a mixture of a table with experts."""
        keys = [key for key in self.stock.defaults if re.search(r"top_?k$|experts_per_tok|moe_k$", key)]
        if not self._experts() or not keys:
            return []
        return [f'    table = mixture(table, {self.stock.defaults[keys[0]]}, "{keys[0]}")']

    def _rotary_key(self) -> list[str]:
        """The step that says that a config states the number of rotary channels, and no fraction of head_dim."""
        stated = "rotary_dim" in self.stock.defaults
        return ['    table = replace(table, rotary=None, rotary_key="rotary_dim")'] if stated else []

    def _others(self) -> list[str]:
        """The step that adds weights that `decoder` does not make, one by one."""
        if not self.others:
            return []
        lines = [f"            {line}" for line in self.others]
        return [
            "    table = replace(",
            "        table,",
            "        weights=(",
            "            *table.weights,",
            *lines,
            "        ),",
            "    )",
        ]


def _imports(body: str) -> list[str]:
    """The imports that a body needs."""
    modules: dict[str, tuple[str, ...]] = {
        "base": ("Architecture", "family", "linear", "named_family", "weight"),
        "blocks": (
            "Attention", "Norms", "alternating_layers", "gated_mlp", "implied_head_dim", "layer_types", "mlp",
            "optional_head_dim", "square_head_dim",
        ),
        "config": ("Config", "flag", "size"),
        "decoder": ("decoder", "with_learned_positions"),
        "mixtures": ("mixture",),
        "rotary": ("rotary_channels",),
    }  # fmt: skip
    always = ("Architecture", "Config", "decoder")
    used = {
        module: [name for name in names if name in always or re.search(rf"\b{name}\(", body)]
        for module, names in modules.items()
    }
    first = ["from dataclasses import replace", ""] if "= replace(" in body else []
    lines = (f"from growth.architectures.{module} import {', '.join(names)}" for module, names in used.items() if names)
    return [*first, *lines]


def _pattern(answers: Sequence[Collection[str]]) -> tuple[str, tuple[str, ...]]:
    """The pattern of a tensor and what it reads, from the axes that each of its dimensions answers to.

    A matrix is stored (out, in): it reads the last dimension.
    """
    order = ["experts", "heads queries", "heads", "head_dim", "ffn", "vocab", "positions", "residual"]
    spaces = [" ".join(axis for axis in order if axis in found) or "?" for found in answers]
    if len(spaces) < 2:
        return "".join(f"({one})" if " " in one else one for one in spaces), ()
    spaces[-1] = "normed" if spaces[-1] == "residual" else spaces[-1]
    return " ".join(f"({one})" if " " in one else one for one in spaces), tuple(spaces[-1].split())


def _unless(default: Any, value: Any, *, quoted: bool = True) -> str:
    """The text of a value, empty if it is the default."""
    return "" if value == default else repr(value).replace("'", '"') if quoted else str(value)


def _call(name: str, arguments: Mapping[str, str]) -> str:
    """The text of a call with the arguments that are not empty, on lines of their own where it is long."""
    given = [f"{key}={text}" for key, text in arguments.items() if text]
    if sum(map(len, given)) < 90:
        return f"{name}({', '.join(given)})" if given else ""
    return "".join([f"{name}(", *(f"\n            {text}," for text in given), "\n        )"])
