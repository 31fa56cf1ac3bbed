"""BERT and the encoders (or decoders, by is_decoder) that differ from it in names and in the places of their norms.

A LayerNorm follows the sum of a branch and its input (BERT, RoBERTa, ELECTRA, …), or it precedes the branch
(Megatron-BERT, RoBERTa-PreLayerNorm, XLM-RoBERTa-XL). The head of all of them is a linear map, an activation, a
LayerNorm and the embedding matrix with a bias.

**Width.** A LayerNorm of activations has a mean that differs from token to token, and no weight can write it into
copies with unequal coefficients or into fresh units. So every unit of the stream must be copied equally often.

**Depth, with norms behind the branches.** No layer can be the identity. A LayerNorm maps its centred input d, with mean
square v, to g d / sqrt(v + eps) + b. A new layer with branches of zero normalises its output again. If g is one number
c for all units and b is 0, which the new layer's own gains and biases could make up for, the result is
d / sqrt(v + eps (v + eps) / c^2): the same for inputs of one mean square alone, v = c^2 - eps. Otherwise not even that.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from growth.architectures.base import (
    Architecture,
    Axis,
    Weight,
    WeightPart,
    axes_by_name,
    external_axis,
    family,
    linear,
    named_family,
    norm,
    weight,
)
from growth.architectures.blocks import Attention, mlp, square_head_dim
from growth.architectures.config import Config, divide, flag, size
from growth.architectures.decoder import OWN_KEYS, UNGROUPED, named_inside, never_tied
from growth.architectures.families.gpt2 import check_decoder_only
from growth.architectures.families.opt import EMBEDDED_ONCE, POST_NORM
from growth.errors import ConfigError

SIZES = {**UNGROUPED, "max_position_embeddings": "positions", "type_vocab_size": "types"}
BEHIND = ("attention.output.LayerNorm", "output.LayerNorm")  # the norms of a layer, where they follow its branches
ROC_BERT = {
    "shape_vocab_size": 24858,
    "shape_embed_dim": 512,
    "pronunciation_vocab_size": 910,
    "pronunciation_embed_dim": 768,
}
ROC_BERT_SIZES = dict(zip(ROC_BERT, ("glyphs", "glyph", "sounds", "sound"), strict=True))
INPUTS = {"positions": "position_embeddings", "types": "token_type_embeddings"}
NO_IDENTITY = (
    "every layer normalises the sum of its branch and its input, even if the branch is zero, and a LayerNorm of a "
    "LayerNorm's output differs from it. Use init: copy, which changes the function, or widen."
)
HEAD_NORM = (
    "the head normalises activations, whose mean differs from token to token: only equally many copies of every unit "
    "preserve it."
)
STORED_SINES = (
    "RoPE covers the whole head, and the code fixes its base: more channels would change every frequency. Widen heads "
    "instead."
)
NO_RESCALE = "its head normalises activations, which have the same size at any width"
ATTENTION = Attention("attention", ("self.query", "self.key", "self.value", "output.dense"), bias=(True, True))
MLP = mlp("intermediate.dense", "output.dense", bias=True)


@dataclass(frozen=True)
class Encoder:
    """Where a family has its norms, and what it calls its modules.

    base: the base model.
    dense, behind: the head's linear map, and the LayerNorm behind its activation.
    decoder, bias: the head's matrix, which has a bias; and the name of that bias where the matrix is the embedding's.
    before: the norms of a layer in front of its attention and its MLP, and the norm behind all layers; without them,
        the norms of a layer follow its branches.
    embedding_norm: whether a norm follows the embedding.
    transform: whether the head has a linear map and a norm in front of its matrix.
    adapters: weights behind a layer's MLP.
    project: the linear map from the embedding to the stream, if they are not the same.
    """

    base: str
    dense: str = "lm_head.dense"
    behind: str = "lm_head.layer_norm"
    decoder: str = "lm_head.decoder"
    bias: str = "lm_head.bias"
    before: tuple[str, str, str] | None = None
    embedding_norm: bool = True
    transform: bool = True
    adapters: tuple[Weight, ...] = ()
    project: str = "embeddings_project"

    def layer(self) -> tuple[Weight, ...]:
        """Return the weights of a layer."""
        names = BEHIND if self.before is None else self.before[:2]
        first, second = (norm(name, "residual", "normed", bias=True) for name in names)
        if names == BEHIND:
            return (*ATTENTION.weights(), *first, *MLP, *second, *self.adapters)
        return (*first, *ATTENTION.weights(), *second, *MLP)

    def head(self, tied: bool, written: str) -> tuple[Weight, ...]:
        """Return the weights of the head, whose activations are written into a space."""
        matrix, bias = linear(self.decoder, "vocab", "head_input", bias=True)
        own = weight(self.bias, "vocab", bias.parts[0].reads)  # of no effect beside a matrix with a bias of its own
        behind = (
            *linear(self.dense, written, "normed", bias=True),
            *norm(self.behind, written, "head_input", bias=True),
        )
        return (
            *(behind if self.transform else ()),
            *(() if tied else (matrix, bias)),
            *((own,) if tied or self.bias != bias.name else ()),
        )


def _of_bert(base: str, **others: object) -> Encoder:
    predictions = "cls.predictions"
    names = ("transform.dense", "transform.LayerNorm", "decoder", "bias")
    return Encoder(base, *(f"{predictions}.{name}" for name in names), **others)  # type: ignore[arg-type]


def _layer_norm(module: str, space: str) -> tuple[Weight, ...]:
    return norm(f"{module}.LayerNorm", space, space, bias=True)


def encoder(
    config: Config, names: Encoder, *, sizes: Mapping[str, str] = SIZES, embedded: str = "residual", head: str = ""
) -> Architecture:
    """Return the table of an encoder.

    embedded: the axis of the embedding, which is projected to the stream if it is another.
    head: the axis that the head normalises, if it is not that of the embedding.
    """
    check_decoder_only(config)
    tied = flag(config, "tie_word_embeddings", True)
    keys = {axes: key for key, axes in sizes.items()}
    written = head or embedded
    inside = f"{names.base}.embeddings"
    final = () if names.before is None else norm(f"{names.base}.{names.before[2]}", "residual", "normed", bias=True)
    equal = POST_NORM if names.embedding_norm or names.before is None else HEAD_NORM
    refusal = EMBEDDED_ONCE if tied and not names.transform else ""
    counted = (("max_position_embeddings", "positions", 512), ("type_vocab_size", "types", 2))
    inputs = [one for one in counted if one[0] in sizes]
    stream = ("residual",) if names.before is None else ("residual", "normed")
    widths = {axis: HEAD_NORM if axis == head else equal for axis in (embedded, written) if axis != "residual"}
    return Architecture(
        config=config,
        axes={
            **axes_by_name(
                *(
                    Axis(axis, size(config, keys[axis], 128), norm="layer", equal_copies=why)
                    for axis, why in widths.items()
                ),
                Axis("residual", size(config, "hidden_size"), norm="layer", equal_copies=equal, refusal=refusal),
                Axis("ffn", size(config, "intermediate_size")),
                Axis("heads", size(config, "num_attention_heads")),
                Axis("queries", 1, refusal=OWN_KEYS),
                Axis("head_dim", square_head_dim(config)),
                external_axis("vocab", size(config, "vocab_size")),
                *(external_axis(axis, size(config, key, default)) for key, axis, default in inputs),
            ),
        },
        depth=size(config, "num_hidden_layers"),
        weights=(
            weight(f"{inside}.word_embeddings.weight", f"vocab {embedded}"),
            *(weight(f"{inside}.{INPUTS[axis]}.weight", f"{axis} {embedded}") for _, axis, _ in inputs),
            *(_layer_norm(inside, embedded) if names.embedding_norm else ()),
            *(linear(f"{names.base}.{names.project}", "residual", embedded, bias=True) * (embedded != "residual")),
            *named_inside(f"{names.base}.encoder.layer.{{layer}}", names.layer()),
            *final,
            *names.head(tied, written),
        ),
        spaces={"normed": stream, "head_input": (written, "tied_head" if tied else "normed"), **ATTENTION.spaces},
        sizes=sizes,
        no_rescale=NO_RESCALE,
        no_identity=NO_IDENTITY if names.before is None else "",
    )


@family
def bert(config: Config) -> Architecture:
    """Return the table of a BERT."""
    return encoder(config, _of_bert("bert"))


@family
def electra(config: Config) -> Architecture:
    """Return the table of an ELECTRA generator, whose embedding may be projected to the stream."""
    projected = size(config, "embedding_size", 128) != size(config, "hidden_size")
    names = Encoder(
        "electra",
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head",
        "generator_lm_head.bias",
    )
    embedded = "embedding" if projected else "residual"
    return encoder(config, names, sizes={**SIZES, "embedding_size": embedded}, embedded=embedded)


@family
def ernie(config: Config) -> Architecture:
    """Return the table of an ERNIE: a BERT that may have embeddings of the type of the task."""
    table = encoder(config, _of_bert("ernie"))
    if not flag(config, "use_task_id", False):
        return table
    words, positions, types, *others = table.weights
    tasks = weight("ernie.embeddings.task_type_embeddings.weight", "tasks residual")
    return replace(
        table.with_axes(external_axis("tasks", size(config, "task_type_vocab_size", 3))),
        weights=(words, positions, types, tasks, *others),
        sizes={**SIZES, "task_type_vocab_size": "tasks"},
    )


@family
def roberta(config: Config) -> Architecture:
    """Return the table of a RoBERTa."""
    return encoder(config, Encoder("roberta"))


@family
def camembert(config: Config) -> Architecture:
    """Return the table of a CamemBERT."""
    return encoder(config, Encoder("roberta"))


@named_family("xlm-roberta")
def xlm_roberta(config: Config) -> Architecture:
    """Return the table of an XLM-RoBERTa."""
    return encoder(config, Encoder("roberta"))


@named_family("data2vec-text")
def data2vec_text(config: Config) -> Architecture:
    """Return the table of a data2vec model of text."""
    return encoder(config, Encoder("data2vec_text"))


@named_family("bert-generation")
def bert_generation(config: Config) -> Architecture:
    """Return the table of a BERT that generates: no types of tokens, and a head that is the embedding matrix alone."""
    names = Encoder("bert", decoder="lm_head.decoder", bias="lm_head.bias", transform=False)
    return encoder(config, names, sizes={key: axis for key, axis in SIZES.items() if axis != "types"})


@family
def roformer(config: Config) -> Architecture:
    """Return the table of a RoFormer: BERT with RoPE, whose sines and cosines are stored for every position."""
    width = size(config, "embedding_size", size(config, "hidden_size"))
    embedded = "residual" if width == size(config, "hidden_size") else "embedding"
    sizes = {key: axis for key, axis in SIZES.items() if axis != "positions"}
    table = encoder(
        {**config, "embedding_size": width},
        _of_bert("roformer"),
        sizes={**sizes, "embedding_size": embedded},
        embedded=embedded,
    )
    head_dim = table.axes["head_dim"]
    rows = f"{size(config, 'max_position_embeddings', 1536)} {head_dim.size}"
    first, *others = table.weights
    return replace(
        table.with_axes(replace(head_dim, refusal=STORED_SINES)),
        weights=(first, *others, weight("roformer.encoder.embed_positions.weight", rows)),
    )


@family
def big_bird(config: Config) -> Architecture:
    """Return the table of a BigBird with full attention: a BERT with a layer above the first token, without effect.

    Raises:
        ConfigError: blocks of tokens that the class draws for each head and layer, or another embedding.
    """
    known = {"attention_type": "original_full", "use_bias": True, "rescale_embeddings": False}
    stated = {**known, "attention_type": "block_sparse", **config}
    unknown = [key for key in known if stated[key] != known[key]]
    if unknown:
        raise ConfigError(
            f"config.json has {unknown[0]} = {stated[unknown[0]]!r}, and a big_bird grows only with "
            f"{known[unknown[0]]!r}: the places of a head and of a layer decide which blocks of tokens are drawn for "
            "it. Set attention_type to original_full."
            if unknown[0] == "attention_type"
            else f"config.json has {unknown[0]} = {stated[unknown[0]]!r}; of a big_bird, only {known[unknown[0]]!r} is "
            "known here."
        )
    table = encoder({"max_position_embeddings": 4096, **config}, _of_bert("bert"))
    return replace(table, weights=(*table.weights, *linear("bert.pooler", "residual", "normed", bias=True)))


@named_family("megatron-bert")
def megatron_bert(config: Config) -> Architecture:
    """Return the table of a Megatron-BERT."""
    return encoder(config, _of_bert("bert", before=("attention.ln", "ln", "encoder.ln"), embedding_norm=False))


@named_family("roberta-prelayernorm")
def roberta_prelayernorm(config: Config) -> Architecture:
    """Return the table of a RoBERTa with norms in front of its branches."""
    before = ("attention.LayerNorm", "intermediate.LayerNorm", "LayerNorm")
    return encoder(config, Encoder("roberta_prelayernorm", before=before))


@named_family("xlm-roberta-xl")
def xlm_roberta_xl(config: Config) -> Architecture:
    """Return the table of an XLM-RoBERTa-XL."""
    before = ("attention.self_attn_layer_norm", "LayerNorm", "encoder.LayerNorm")
    names = Encoder("roberta", before=before, embedding_norm=False)
    return encoder({"type_vocab_size": 1, "max_position_embeddings": 514, **config}, names)


@family
def rembert(config: Config) -> Architecture:
    """Return the table of a RemBERT, whose embedding and head are two matrices and have widths of their own."""
    dense, behind, decoder = (f"cls.predictions.{name}" for name in ("dense", "LayerNorm", "decoder"))
    project = "encoder.embedding_hidden_mapping_in"
    return encoder(
        never_tied({"input_embedding_size": 256, "output_embedding_size": 1664, **config}),
        Encoder("rembert", dense, behind, decoder, f"{decoder}.bias", project=project),
        sizes={**SIZES, "input_embedding_size": "embedding", "output_embedding_size": "head_embedding"},
        embedded="embedding",
        head="head_embedding",
    )


@family
def roc_bert(config: Config) -> Architecture:
    """Return the table of a RoCBert: a linear map joins the embeddings of a token, its glyph and its pronunciation.

    The embedding of tokens, of which the head may be the transpose, is as wide as the stream but not a part of it.

    Raises:
        ConfigError: the embeddings are not joined, or one has no part in it.
    """
    off = [key for key in ("concat_input", "enable_shape", "enable_pronunciation") if not flag(config, key, True)]
    if off:
        raise ConfigError(
            f"config.json has {off[0]} = false: only RoCBert models that join the embeddings of tokens, glyphs and "
            "pronunciations are supported, so concat_input, enable_shape and enable_pronunciation must be true."
        )
    config = {**ROC_BERT, **config}
    own = {axis: size(config, key) for key, axis in ROC_BERT_SIZES.items()}
    names = _of_bert("roc_bert", project="embeddings.map_inputs_layer")
    words = {**config, "embedding_size": size(config, "hidden_size")}
    table = encoder(words, names, sizes={**SIZES, "embedding_size": "inner"}, embedded="inner")
    inside = "roc_bert.embeddings"
    tokens, _, _, _, _, matrix, bias, *others = table.weights
    joined = tuple(WeightPart(f"residual {axis}", (axis,)) for axis in ("inner", "glyph", "sound"))
    return replace(
        table.with_axes(
            *(external_axis(axis, own[axis]) for axis in ("glyphs", "sounds")),
            *(Axis(axis, own[axis]) for axis in ("glyph", "sound")),
        ),
        config=config,
        sizes={**SIZES, **ROC_BERT_SIZES},
        weights=(
            tokens,
            weight(f"{inside}.pronunciation_embed.weight", "sounds sound"),
            weight(f"{inside}.shape_embed.weight", "glyphs glyph"),
            *(weight(f"{inside}.{name}.weight", f"{axis} residual") for axis, name in INPUTS.items()),
            replace(matrix, parts=joined, fused=1),
            bias,
            *_layer_norm(inside, "residual"),
            *others,
        ),
    )


@family
def xmod(config: Config) -> Architecture:
    """Return the table of an X-MOD: a RoBERTa with an adapter for each language behind every MLP.

    What an adapter reads may be normalised, by the layer's last norm or one of its own; so may what it is added to.
    """
    reduction, hidden = size(config, "adapter_reduction_factor", 2), size(config, "hidden_size")
    pre_norm, own = flag(config, "pre_norm", False), flag(config, "adapter_layer_norm", False)
    normed = own or flag(config, "adapter_reuse_layer_norm", True)
    languages = config.get("languages", ["en_XX"])
    if not isinstance(languages, list | tuple) or not all(str(name).isidentifier() for name in languages):
        raise ConfigError(f"config.json has languages = {languages!r}; a list of codes such as en_XX is needed.")
    adapters = (
        (
            *linear(f"output.adapter_modules.{language}.dense1", "adapter", "normed", bias=True),
            *linear(f"output.adapter_modules.{language}.dense2", "residual", "adapter", bias=True, branch_end=True),
        )
        for language in languages
    )
    norms = norm("output.adapter_layer_norm", "residual", "normed", bias=True) if own else ()
    names = Encoder(
        "roberta", adapters=(*norms, *sum(adapters, ())), before=(*BEHIND, "encoder.LayerNorm") if pre_norm else None
    )
    table = encoder(config, names)
    table = replace(
        table.with_axes(Axis("adapter", divide("hidden_size", hidden, "adapter_reduction_factor", reduction))),
        sizes={**SIZES, "adapter_reduction_factor": "residual / adapter"},
    )
    if not (normed and flag(config, "ln_before_adapter", True)):
        return table
    return replace(table, no_identity=NO_IDENTITY, spaces={**table.spaces, "normed": ("residual",)})
