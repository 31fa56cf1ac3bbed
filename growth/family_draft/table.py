"""The text of a family file: what `decoder` needs to reproduce the tensors, and every other weight one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import PreTrainedModel

from growth.architectures.config import DROPOUT, NEUTRAL
from growth.architectures.decoder import BASE, SIZES
from growth.errors import ConfigError
from growth.family_draft.blocks import Blocks, Choice
from growth.family_draft.dataflow import (
    Call,
    calls_of,
    layer_of,
    layers_of,
)
from growth.family_draft.stock import TIED, WIDE, StockClass
from growth.family_draft.text import FILE, imports, pattern_of, unless

LLAMA_NAMES = ("model.embed_tokens", "model.layers.{layer}", "model.norm")


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
    def blocks(self) -> Blocks:
        """The text of what a layer consists of."""
        return Blocks(self.stock, layers_of(self.model), layer_of(self.model, self.calls), self.questions)

    @cached_property
    def outside(self) -> list[Call]:
        """The calls outside of layers."""
        return [call for call in self.calls if not call.name.startswith(f"{layers_of(self.model)}.")]

    def add(self, name: str) -> None:
        """Add the weight of a tensor that the table lacks, by how its shape answers to the keys of sizes."""
        if any(f'"{self._general(name)}"' in line for line in self.others):
            return
        pattern, reads = pattern_of(self.stock.answers[name])
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
            imports="\n".join([*registering, *imports(f"{decorator}({body}")]),
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
            "attention": self.blocks.attention(choice),
            "mlp": self.blocks.mlp(),
            "norms": self.blocks.norms(),
            "names": self._names(),
            "embed_scaled": "True" if self._embed_scaled() else "",
            "default_tied": "True" if self.stock.defaults.get(TIED) else "",
            "head": unless("lm_head", self._head()),
            "head_bias": self.blocks.presence([f"{self._head()}.bias"]).removesuffix("False"),
            "depth": unless("num_hidden_layers", self.stock.keys["depth"]),
            "sizes": "" if sizes == SIZES else str(sizes).replace("'", '"'),
            "defaults": self._defaults(),
            **self._rotary(),
            "pairs": unless("halves", choice.pairs),
            "layer_types": self._layer_types(),
        }

    def _head(self) -> str:
        """The name of the head, which may have another one in files."""
        embedding = f"{self.outside[0].name}.weight"
        shapes = self.blocks.tensors
        alike = [name for name, shape in shapes.items() if shape == shapes[embedding] and name != embedding]
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
        if "experts" in keys and not any(".experts." in name for name in self.blocks.tensors):
            del keys["experts"]
        order = [*SIZES.values(), "experts"]
        keys.setdefault("head_dim", "head_dim")
        return {keys[axes]: axes for axes in order if axes in keys}

    def _defaults(self) -> str:
        """Sizes that a config may leave out."""
        found, stock, keys = {}, self.stock.defaults, self.stock.keys
        heads = self.stock.taken_for(keys.get("heads", ""), WIDE)
        if isinstance(heads, int) and heads != WIDE["heads queries"]:
            found["heads"] = str(heads)
        head_dim = self.stock.taken_for("head_dim", WIDE)
        if not self.stock.states_head_dim:
            usual = (keys["residual"], keys["heads queries"]) == ("hidden_size", "num_attention_heads")
            named = "" if usual else f', "{keys["residual"]}", "{keys["heads queries"]}"'
            found["head_dim"] = f"square_head_dim(config{named})"
        elif isinstance(head_dim, int) and head_dim != WIDE["residual"] // WIDE["heads queries"]:
            found["head_dim"] = f"optional_head_dim(config, {head_dim})"
        if isinstance(stock.get(keys.get("experts", "")), int) and self.blocks.experts():
            found["experts"] = str(stock[keys["experts"]])
        if stock.get(keys["ffn"], 0) is None:
            found["ffn"] = f'4 * size(config, "{keys["residual"]}")'
        return "{" + ", ".join(f'"{axis}": {text}' for axis, text in found.items()) + "}" if found else ""

    def _rotary(self) -> dict[str, str]:
        rope = self.stock.defaults.get("rope_parameters") or {}
        lengths = {2 * len(b) for name, b in self.model.named_buffers() if name.endswith("inv_freq")}
        head_dim = self.blocks.head_dim
        if "rotary_dim" in self.stock.defaults:
            return {"rotary": f'size(config, "rotary_dim", {self.stock.defaults["rotary_dim"]})'}
        if not lengths:
            return {"rotary": "0"}
        if lengths != {head_dim} or "partial_rotary_factor" in rope:
            share = rope.get("partial_rotary_factor", min(lengths) / head_dim)
            return {"rotary": f"rotary_channels(config, {self._head_dim_text()}, {share})"}
        forms = {kind: form for kind, form in rope.items() if isinstance(form, Mapping)} or {"": rope}
        bases = tuple((kind, "rope_theta", float(form.get("rope_theta", 1e4))) for kind, form in forms.items())
        return {"bases": unless(BASE, bases)}

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
        reserved = self.blocks.tensors[f"{embeddings[0].name}.weight"][0] - self.stock.sizes["positions"]
        more = f", reserved={reserved}" if reserved else ""
        given = f'"{embeddings[0].name}.weight", "{key}", {self.stock.defaults[key]}{more}'
        return [f"    table = with_learned_positions(table, {given})"]

    def _ratio(self) -> list[str]:
        """The step that makes a mixture of a table with experts."""
        keys = [key for key in self.stock.defaults if re.search(r"top_?k$|experts_per_tok|moe_k$", key)]
        if not self.blocks.experts() or not keys:
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
