"""ModernBERT as a decoder: LayerNorms in front of gated branches, and a rotary base for each kind of layer.

A norm follows the embedding, and the first layer's attention reads what it returns, without a norm of its own. The head
is that of BERT: a linear map, an activation, a LayerNorm and the embedding matrix with a bias. As in BERT, every unit
of the stream must be copied equally often.
"""

from dataclasses import replace

from growth.architectures.base import Architecture, linear, named_family, norm
from growth.architectures.blocks import Attention, attention_bias, gated_mlp, layer_norms, layer_types, square_head_dim
from growth.architectures.config import Config, flag, size
from growth.architectures.decoder import UNGROUPED, decoder
from growth.architectures.families.bert import HEAD_NORM, NO_RESCALE
from growth.architectures.rotary import nested_rope
from growth.errors import ConfigError

BASES = (("full_attention", "global_rope_theta", 1.6e5), ("sliding_attention", "local_rope_theta", 1e4))
FIRST = "the attention of the first one reads the embedding without a norm in front of it"


@named_family("modernbert-decoder")
def modernbert_decoder(config: Config) -> Architecture:
    """Return the table of a ModernBERT that predicts the next token.

    Raises:
        ConfigError: rotary parameters that are not stated by kind of layer.
    """
    kinds = {kind for kind, _, _ in BASES}
    if config.get("rope_scaling") or not nested_rope(config).keys() <= kinds:
        raise ConfigError(
            f"config.json states rotary parameters that are not those of a kind of layer. State rope_parameters of "
            f"{' and '.join(sorted(kinds))}, and no rope_scaling."
        )
    bias = flag(config, "norm_bias", False)
    every = size(config, "global_attn_every_n_layers", 3)
    table = decoder(
        config,
        Attention("attn", ("q_proj", "k_proj", "v_proj", "Wo"), bias=attention_bias(config)),
        gated_mlp("mlp", ("Wi", "Wi", "Wo"), bias=flag(config, "mlp_bias", False)),
        layer_norms("attn_norm", "mlp_norm", eps="norm_eps", bias=bias),
        names=("model.embeddings.tok_embeddings", "model.layers.{layer}", "model.final_norm"),
        default_tied=True,
        head="decoder",
        head_bias=flag(config, "decoder_bias", True),
        sizes=UNGROUPED,
        defaults={"head_dim": square_head_dim(config)},
        bases=BASES,
        layer_types=layer_types(config, lambda layer: layer % every != 0),
    )
    embedding, *inside = (one for one in table.weights if not one.name.startswith(("model.final_norm", "decoder.")))
    last = (one for one in table.weights if one.name.startswith("decoder."))
    behind_first = tuple(range(1, table.depth))
    return replace(
        table.with_axes(replace(table.axes["residual"], equal_copies=HEAD_NORM)),
        weights=(
            embedding,
            *norm("model.embeddings.norm", "residual", "residual", bias=bias),
            *(replace(one, layers=behind_first) if ".attn_norm." in one.name else one for one in inside),
            *norm("model.final_norm", "residual", "normed", bias=bias),
            *linear("lm_head.dense", "residual", "normed", bias=flag(config, "classifier_bias", False)),
            *norm("lm_head.norm", "residual", "head_input", bias=bias),
            *last,
        ),
        spaces={**table.spaces, "normed": ("residual",)},
        eps=None,
        no_rescale=NO_RESCALE,
        leading=min(1, table.depth),
        leading_reason=FIRST,
        scaled_ends=True,
    )
