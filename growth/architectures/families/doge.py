"""Doge: gains on the residual stream of each branch, and scores to which each token adds a number of its own.

A KV head's values of a token, times a matrix of all heads' channels (`dt_proj`), give a number that is added to all
scores of the token (dynamic mask attention). The stream passes gains: 1 + d, of which a new layer has d = 0.
"""

from dataclasses import dataclass, replace

from growth.architectures.base import Architecture, Weight, WeightPart, family, linear, weight
from growth.architectures.blocks import Attention, attention_bias, gated_mlp
from growth.architectures.config import Config, flag
from growth.architectures.decoder import decoder, named_inside
from growth.errors import ConfigError


@dataclass(frozen=True)
class MaskedAttention(Attention):
    """Attention whose scores each token adds a number to, for each KV head."""

    qk_norm: str = "shared"  # type: ignore[assignment]

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return the usual weights, and those of the mask."""
        mask = linear(f"{self.name}.dt_proj", "masked", "(heads channels)", bias=self.bias[0])
        return (weight(f"{self.name}.A", "masked"), *mask, *super().weights(norm_offset))


@family
def doge(config: Config) -> Architecture:
    """Return the table of a Doge.

    Raises:
        ConfigError: its layers have experts.
    """
    if flag(config, "is_moe", False):
        raise ConfigError(
            "config.json has is_moe = true: a Doge's experts are chosen from scores of all tokens of a batch together, "
            "so its function depends on the batch. Only Doge models without experts are supported."
        )
    table = decoder(
        config,
        MaskedAttention(bias=attention_bias(config)),
        gated_mlp(bias=flag(config, "mlp_bias", False)),
    )
    gains = named_inside("model.layers.{layer}", tuple(_gain(name) for name in ("input", "post_attention")))
    embedding, *others = table.weights
    return replace(
        table,
        weights=(embedding, *gains, *others),
        spaces={**table.spaces, "masked": ("heads",), "passed": ("residual", "activated")},
    )


def _gain(branch: str) -> Weight:
    """Return the gains that the stream passes beside a branch: equal for all copies of a unit, and 1 in a new layer."""
    return Weight(f"{branch}_residual", (WeightPart("passed"),), offset=-1.0, branch_end=True)
