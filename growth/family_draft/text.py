"""How the text of a family file is written: its frame, its imports, calls and patterns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

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


def imports(body: str) -> list[str]:
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


def pattern_of(answers: Sequence[Collection[str]]) -> tuple[str, tuple[str, ...]]:
    """The pattern of a tensor and what it reads, from the axes that each of its dimensions answers to.

    A matrix is stored (out, in): it reads the last dimension.
    """
    order = ["experts", "heads queries", "heads", "head_dim", "ffn", "vocab", "positions", "residual"]
    spaces = [" ".join(axis for axis in order if axis in found) or "?" for found in answers]
    if len(spaces) < 2:
        return "".join(f"({one})" if " " in one else one for one in spaces), ()
    spaces[-1] = "normed" if spaces[-1] == "residual" else spaces[-1]
    return " ".join(f"({one})" if " " in one else one for one in spaces), tuple(spaces[-1].split())


def unless(default: Any, value: Any, *, quoted: bool = True) -> str:
    """The text of a value, empty if it is the default."""
    return "" if value == default else repr(value).replace("'", '"') if quoted else str(value)


def call_text(name: str, arguments: Mapping[str, str]) -> str:
    """The text of a call with the arguments that are not empty, on lines of their own where it is long."""
    given = [f"{key}={text}" for key, text in arguments.items() if text]
    if sum(map(len, given)) < 90:
        return f"{name}({', '.join(given)})" if given else ""
    return "".join([f"{name}(", *(f"\n            {text}," for text in given), "\n        )"])
