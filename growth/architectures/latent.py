"""Multi-head latent attention: queries, keys and values of all heads are read from short vectors, the latents.

(DeepSeek-V2, arXiv 2405.04434, section 2.1.) A head's queries and keys have channels with and without RoPE; the keys'
rotary channels are the same for all heads, and its values have a size of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from growth.architectures.base import Architecture, Axis, RotaryPairs, Weight, linear, norm
from growth.architectures.blocks import Mixer, Norms, gated_mlp, in_layers, side_by_side
from growth.architectures.config import Config, size
from growth.architectures.decoder import decoder, rope_refusal
from growth.errors import ConfigError

ROTARY = "qk_rope_head_dim"
SCORED = ("qk_nope_head_dim", ROTARY)  # the channels that a score is a sum over
# config keys and the axes whose product they are; classes compute the last two where the config does not state them
LATENT_SIZES = {
    "hidden_size": "residual",
    "num_attention_heads": "heads",
    "num_key_value_heads": "heads",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    ROTARY: ROTARY,
    "v_head_dim": "v_head_dim",
    "vocab_size": "vocab",
    "head_dim": ROTARY,
    "qk_head_dim": " + ".join(SCORED),
}
MLP_SIZES = {"intermediate_size": "ffn"}
OWN_KEYS = "in latent attention, every query head has keys and values of its own. Widen heads instead."


@dataclass(frozen=True)
class LatentAttention:
    """The latent attention of a layer.

    query_latent: whether queries are read from a latent of their own instead of the stream.
    bias: whether what writes the latents has one; whether the output has one.
    layers: the layers that have it, if not all do.
    """

    query_latent: bool = True
    bias: tuple[bool, bool] = (False, False)
    name: str = "self_attn"
    layers: tuple[int, ...] | None = field(default=None, kw_only=True)
    qk_norm: ClassVar[Literal[""]] = ""

    @property
    def spaces(self) -> dict[str, tuple[str, ...]]:
        """The latents after their norms, and a head's channels as queries write them."""
        queries = {"query_latent": ("q_lora_rank", "normed")} if self.query_latent else {}
        scaled = {f"query_{axis}": (axis, "query_scaled") for axis in SCORED}
        return {**queries, "latent": ("kv_lora_rank", "normed"), **scaled}

    def weights(self, norm_offset: float = 0.0) -> tuple[Weight, ...]:
        """Return the projections into the latents and out of them, the latents' norms, and the output projection.

        norm_offset: what the model adds to the stored gains.
        """

        def own(projection: str) -> str:
            return f"{self.name}.{projection}"

        into, out = self.bias
        (nope, rope), source = (f"query_{axis}" for axis in SCORED), "query_latent" if self.query_latent else "normed"
        query = own("q_b_proj" if self.query_latent else "q_proj")
        low_rank = (
            *linear(own("q_a_proj"), "q_lora_rank", "normed", bias=into),
            *norm(own("q_a_layernorm"), "q_lora_rank", "query_latent", bias=False, offset=norm_offset),
        )
        key_nope, key_rope = SCORED
        joint, expanded = own("kv_a_proj_with_mqa"), own("kv_b_proj")
        return in_layers(
            self.layers,
            *(low_rank if self.query_latent else ()),
            *side_by_side(
                *linear(query, f"(heads {nope})", source), *linear(query, f"(heads {rope})", source), within=("heads",)
            ),
            *side_by_side(
                *linear(joint, "kv_lora_rank", "normed", bias=into),
                *linear(joint, key_rope, "normed", bias=into, also_reads=(key_rope,)),
            ),
            *norm(own("kv_a_layernorm"), "kv_lora_rank", "latent", bias=False, offset=norm_offset),
            *side_by_side(
                *linear(expanded, f"(heads {key_nope})", "latent", also_reads=(key_nope,)),
                *linear(expanded, "(heads v_head_dim)", "latent"),
                within=("heads",),
            ),
            *linear(own("o_proj"), "residual", "(heads v_head_dim)", bias=out, branch_end=True),
        )


def latent_decoder(
    config: Config,
    attention: LatentAttention,
    mlp: tuple[Weight, ...] = gated_mlp(),
    norms: Norms = Norms(),  # noqa: B008 (frozen)
    *,
    sizes: Mapping[str, str] = MLP_SIZES,
    defaults: Mapping[str, int],
    pairs: RotaryPairs | None = "neighbours",
    default_tied: bool = False,
    logits_scaled: bool = False,
    layer_types: Sequence[str] | None = None,
    mixer: Mixer = Mixer((), (), {}),  # noqa: B008
) -> Architecture:
    """Return the table of a decoder with latent attention. Other arguments are those of `decoder`.

    sizes: of the MLP.
    pairs: which rotary channels are a pair; None if no channel is rotary (NoPE).

    Raises:
        ConfigError: as for `decoder`, or the config states sizes of a head that contradict one another.
    """
    latents = {"q_lora_rank": "q_lora_rank"} if attention.query_latent else {}
    table = decoder(
        config,
        attention,
        mlp,
        norms,
        sizes={**LATENT_SIZES, **latents, **sizes},
        defaults=defaults,
        heads=_heads(config, defaults),
        channels=_channels(config, tuple(latents), defaults, pairs),
        rotary=None if pairs else 0,
        layer_types=layer_types,
        mixer=mixer,
        default_tied=default_tied,
        logits_scaled=logits_scaled,
    )
    return replace(table, rotary_axis=ROTARY, score_axes=SCORED)


def _heads(config: Config, defaults: Mapping[str, int]) -> tuple[Axis, Axis]:
    key, heads = "num_key_value_heads", size(config, "num_attention_heads")
    of_keys = size(config, key, heads if key in config else defaults.get("heads", heads))
    if of_keys != heads:
        raise ConfigError(
            f"config.json has num_attention_heads = {heads} and {key} = {of_keys}, which is the default if it is not "
            "stated; in latent attention, every query head has keys and values of its own. State the same number twice."
        )
    return Axis("heads", heads), Axis("queries", 1, refusal=OWN_KEYS)


def _channels(
    config: Config, latents: tuple[str, ...], defaults: Mapping[str, int], pairs: RotaryPairs | None
) -> tuple[Axis, ...]:
    """Return the axes of the latents, whose norms have an eps of the class, and of a head's channels."""

    def sized(name: str) -> Axis:
        return Axis(name, size(config, name, defaults.get(name)))

    nope, rope = (sized(name) for name in SCORED)
    for key, axes in {"head_dim": (rope,), "qk_head_dim": (nope, rope)}.items():
        needed = sum(axis.size for axis in axes)
        if config.get(key) not in (None, needed):
            names = " + ".join(axis.name for axis in axes)
            raise ConfigError(f"config.json has {key} = {config[key]!r} and {names} = {needed}: remove {key}.")
    if pairs:
        if rope.size % 2:
            raise ConfigError(
                f"config.json has {ROTARY} = {rope.size}: rotary channels come in pairs, so an even number is needed."
            )
        refusal = rope_refusal(config, f"all of {ROTARY}")
        rope = replace(rope, fixed=rope.size, rotary_pairs=pairs, refusal=refusal)
    return (
        *(replace(sized(name), norm="rms", own_eps=True) for name in (*latents, "kv_lora_rank")),
        nope,
        rope,
        sized("v_head_dim"),
    )
