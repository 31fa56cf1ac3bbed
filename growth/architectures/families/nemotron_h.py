"""Nemotron-H: one branch in each layer, which is a Mamba-2, attention without positions, an MLP or experts.

Experts have no gates. They may read and write a latent of their own instead of the stream: `moe_latent_size`.
`rescale_prenorm_residual` acts on weights that are initialised alone; those that a file holds stay.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, Weight, family, linear, weight
from growth.architectures.blocks import Attention, Norms, in_layers, layers_of, mlp
from growth.architectures.config import Config, flag, of_layers
from growth.architectures.decoder import decoder, never_tied
from growth.architectures.grouped_experts import chosen_in_groups
from growth.architectures.mixtures import added
from growth.architectures.state_space import HEADS, mamba2
from growth.errors import ConfigError

KINDS = "layers_block_type"
LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}
OLDER = {"mamba": "linear_attention", "attention": "full_attention"}
USUAL = {
    "hidden_size": "residual",
    "num_attention_heads": "heads queries",
    "num_key_value_heads": "heads",
    "head_dim": "head_dim",
    "vocab_size": "vocab",
}
MAMBA2 = {
    "mamba_num_heads": HEADS,
    "n_groups": "ssm_groups",
    "mamba_head_dim": "ssm_head_dim",
    "ssm_state_size": "state",
    "conv_kernel": "conv_kernel",
}
DEFAULTS = {"mamba_num_heads": 128, "n_groups": 8, "mamba_head_dim": 64, "ssm_state_size": 128, "conv_kernel": 4}
EXPERTS = {
    "moe_intermediate_size": "ffn",
    "n_routed_experts": "experts",
    "moe_shared_expert_intermediate_size": "shared_ffn",
}


@family
def nemotron_h(config: Config) -> Architecture:
    """Return the table of a Nemotron-H."""
    kinds = _kinds(config)
    config = {key: value for key, value in never_tied(config).items() if key != "hybrid_override_pattern"}
    config |= {KINDS: kinds, "num_hidden_layers": len(kinds)}
    at = {kind: layers_of(kinds, kind) for kind in LETTERS.values()}
    latent, bias = config.get("moe_latent_size") is not None, flag(config, "use_bias", False)
    sizes = {**USUAL, **(EXPERTS if at["moe"] else {})}
    sizes |= {"intermediate_size": "dense_ffn" if at["moe"] else "ffn"} if at["mlp"] else {}
    sizes |= {"moe_latent_size": "latent"} if at["moe"] and latent else {}
    mixer = mamba2(
        config,
        "mixer",
        keys=MAMBA2,
        defaults=DEFAULTS,
        bias=(bias, bias),
        conv_bias=flag(config, "use_conv_bias", True),
        act="mamba_hidden_act",
    )
    mixer = replace(mixer, weights=in_layers(at["linear_attention"], *mixer.weights))
    table = decoder(
        config,
        Attention("mixer", layers=at["full_attention"]),
        (
            *(in_layers(at["mlp"], *_mlp(config, "mixer", sizes["intermediate_size"])) if at["mlp"] else ()),
            *(in_layers(at["moe"], *_experts(config, latent)) if at["moe"] else ()),
        ),
        Norms(("norm",), eps="layer_norm_epsilon", eps_default=1e-5),
        names=("model.embeddings", "model.layers.{layer}", "model.norm_f"),
        sizes=sizes,
        defaults={"heads": 8, "head_dim": 128, "experts": 8, "shared_ffn": 7688, "ffn": 7688 if at["moe"] else 21504},
        rotary=0,
        mixer=mixer,
    )
    table = replace(table, layer_lists={KINDS: kinds}, other_names={"model.": "backbone."}, prediction={"mtp.": ""})
    return chosen_in_groups(table, top_k=2)


def _kinds(config: Config) -> list[str]:
    """Return the kinds of the layers, as the config lists them or as it has a letter for each, or the class's four.

    Raises:
        ConfigError: another kind, or another number of them than num_hidden_layers.
    """
    letters, listed = config.get("hybrid_override_pattern", "ME*-"), config.get(KINDS)
    stated = list(letters) if listed is None and isinstance(letters, str) else listed
    if not isinstance(stated, list):
        raise ConfigError(f"config.json has {KINDS} = {listed!r}; a list with one entry per layer is needed.")
    if stated == [] and config.get("num_hidden_layers"):
        raise ConfigError(f"config.json lists no {KINDS}, which the class of nemotron_h needs. State them.")
    of_layers({"num_hidden_layers": len(stated), **config, KINDS: stated}, KINDS)
    known = {kind: kind for kind in LETTERS.values()} | LETTERS | OLDER
    if not {*stated} <= known.keys():
        raise ConfigError(f"config.json has {KINDS} = {stated}: only {', '.join(LETTERS.values())} are known.")
    return [known[kind] for kind in stated]


def _mlp(config: Config, name: str, axis: str) -> tuple[Weight, ...]:
    return mlp(f"{name}.up_proj", f"{name}.down_proj", bias=flag(config, "mlp_bias", False), axis=axis)


def _experts(config: Config, latent: bool) -> tuple[Weight, ...]:
    """Return a router with its correction, and experts without gates, between the stream or a latent."""
    bias, whole = flag(config, "mlp_bias", False), flag(config, "norm_topk_prob", True)
    into, out = ("latent", "latent") if latent else ("normed", "residual")
    experts = (
        *linear("mixer.experts.{expert}.up_proj", "ffn", into),
        *linear("mixer.experts.{expert}.down_proj", out, "ffn", branch_end=not latent),
    )
    around = (
        *linear("mixer.fc1_latent_proj", "latent", "normed", bias=bias),
        *linear("mixer.fc2_latent_proj", "residual", "latent", bias=bias, branch_end=True),
    )
    return (
        *linear("mixer.gate", "experts", "normed"),
        weight("mixer.gate.e_score_correction_bias", "experts"),
        *(experts if whole else added(experts)),
        *_mlp(config, "mixer.shared_experts", "shared_ffn"),
        *(around if latent else ()),
    )
