"""Mixtures of experts: the axis of experts, the number chosen for each token, and the layers that have them.

A router scores the experts of a layer; the outputs of those with the highest scores are added with weights. Copies of
an expert have its score. So with k copies of each expert and k times as many chosen, exactly the copies of the experts
chosen before are chosen; what a weight becomes depends on the router (docs/design.md, 2.2):

- a softmax over all experts, or over those chosen, and any weights that are normalised to sum to 1: a k-th of the old
  weight for each copy, so that nothing else changes, whether a bias corrects the scores for the choice or not;
- sigmoids that are not normalised: the old weight for each copy, so a copy's last weight is a k-th of the old one:
  it `reads` the axis of experts, in equal shares.
"""

from collections.abc import Sequence
from dataclasses import replace

from growth.architectures.base import Architecture, Axis, Weight, WeightPart, weight
from growth.architectures.config import Config, size
from growth.errors import ConfigError

EQUAL_COPIES = (
    "copies of an expert have its score, so the experts chosen and their weights stay only if each is copied equally "
    "often."
)


def experts_key(config: Config) -> str:
    """Return the key that the config has: older ones have num_experts, transformers 5 has num_local_experts."""
    return "num_experts" if "num_experts" in config else "num_local_experts"


def experts_axis(experts: int, refusal: str = "") -> Axis:
    """Return the axis of experts, which must be copied equally often.

    refusal: why a router's choice among copies would be another one, if it would.
    """
    return Axis("experts", experts, external=True, equal_copies=EQUAL_COPIES, refusal=refusal)


def mixture(
    table: Architecture, top_k: int | None = None, key: str = "num_experts_per_tok", *, refusal: str = ""
) -> Architecture:
    """Return a table as that of a mixture of experts.

    key: of the number of experts that each token goes to. top_k: that number if the config does not state it.
    refusal: why experts cannot be copied, if they cannot.

    Raises:
        ConfigError: more experts are chosen than there are.
    """
    experts, chosen = table.axes["experts"].size, size(table.config, key, top_k)
    if chosen > experts:
        raise ConfigError(f"config.json has {key} = {chosen} and only {experts} experts. Correct one of the two.")
    return replace(
        table.with_axes(experts_axis(experts, refusal)),
        config={**table.config, key: chosen},
        ratios={**table.ratios, key: "experts"},
        chosen_key=key,
    )


def in_layers(weights: Sequence[Weight], layers: tuple[int, ...]) -> tuple[Weight, ...]:
    """Return weights as those of some layers only."""
    return tuple(replace(one, layers=layers) for one in weights)


def stacked_mlp(inner: str, outer: str) -> tuple[Weight, ...]:
    """Return the gated MLPs of all experts in two tensors, with gate and up projection side by side in the first."""
    half = WeightPart("experts ffn normed", ("normed",))
    return Weight(inner, (half, half), fused=1), weight(outer, "experts residual ffn", ("ffn",), branch_end=True)


def added(experts: Sequence[Weight]) -> tuple[Weight, ...]:
    """Return the weights of experts whose weights by the router do not sum to 1: the last ones read their axis."""
    return tuple(
        replace(one, parts=tuple(replace(part, reads=(*part.reads, "experts")) for part in one.parts))
        if one.of_experts and one.writes_stream
        else one
        for one in experts
    )
