"""Model types with a causal head in transformers that have no family here, by the reason.

`tests/architectures/test_registry.py` checks that every such type is either a family or in this list, and not both.
"""

from collections.abc import Mapping

NO_TABLE = "It has no table yet: `growth family` drafts one, and docs/add-a-family.md shows how to complete it."
REASONS: Mapping[str, str] = {
    "It is the decoder of an encoder-decoder model, and only models without an encoder grow.": """
        bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody mvp pegasus plbart
        prophetnet trocr whisper
    """,
    "Its config class is that of GPT-2: set model_type to gpt2.": "gpt-sw3",
    (
        "On more tokens than one chunk, LSH attention draws new random rotations at each call (hash_seed is null in "
        "the published models), so the model is not a function that a larger one could preserve."
    ): "reformer",
    (
        "It is four transformers (patcher, local encoder, global transformer, local decoder), each with a config, "
        "a width and a depth of its own; a table here describes one stack of layers with one residual stream."
    ): "blt",
    (
        "It drafts tokens for a Gemma 4 model whose hidden states, keys and values it reads: it cannot run, grow "
        "or be compared without that model."
    ): "gemma4_assistant gemma4_unified_assistant",
    (
        "A layer mixes several residual streams (hyper-connections) by weights that a softmax makes positive, so "
        "none can be the identity; and a table here has no keys and values that are compressed over windows of "
        "tokens, nor experts that a list chooses for each token."
    ): "deepseek_v4",
    (
        "A LayerNorm follows every branch, so no layer can be the identity; and the relative positions are sines "
        "of as many frequencies as the stream is wide, so that most frequencies change in a wider stream."
    ): "xlnet",
    (
        "Its config states the widths of queries, values and MLP as fractions of hidden_size, which the class "
        "rounds, and a table here states sizes as whole numbers."
    ): "xlstm",
    (
        "Layers with a window have another head_dim than the others, and later layers use the keys and values of "
        "earlier ones; a table here has one size for each axis, and layers with weights of their own."
    ): "gemma4_unified gemma4_unified_text",
    (
        "Its files hold the gate, query, key and value projections of a layer in one tensor, and the class has one "
        "for each: stored tensors can be merged here, but not split."
    ): "hrm_text",
    (
        "Its audio projector ends in a LayerNorm over the width of the stream, which only equally many copies of "
        "each unit preserve; and here, what is around a text model puts no constraint on the text model's axes."
    ): "moss_transcribe_diarize",
    (
        "Several layers share one attention block, whose norm runs over the stream and the embedding side by "
        "side; a weight here is that of one layer or of the model, and a norm runs over one stream."
    ): "zamba zamba2",
    (
        "Each layer attends over the summed outputs of all earlier blocks, so a new block takes softmax weight even "
        "if it adds nothing; and a table here has one residual stream."
    ): "inkling2_text",
    (
        "Its layers mix several residual streams by gates, and read rows of embeddings that a hash of the last "
        "tokens chooses, with a seed for each layer; a table here has one stream."
    ): "qwen4_exp qwen4_exp_text",
    (
        "Attention has other sizes in layers with a window than in the others (per_layer_config), and a table "
        "here has one size for each axis."
    ): "dots3_note dots3_note_text",
    (
        "Its queries read the low-rank latent both before and after its norm, and an indexer with heads of its own "
        "chooses the tokens that they attend to; the latent attention here has neither."
    ): "axk2",
    (
        "Prompts of its own stand in front of every input, whose rows follow those of the vocabulary in the "
        "embedding, and its position biases belong to pairs of segments; a table here has neither."
    ): "cpmant",
    (
        "A LayerNorm follows every branch, so no layer can be the identity; and heads, head_dim and MLP are in "
        "proportion to the stream, so that only multiples of the whole width would compute the same."
    ): "xlm",
    (
        "Its embedding has one row more than its head, but both share one vocabulary axis here; and its files hold the "
        "depth decoder and the audio encoder that run with it, beside the text model."
    ): "moshi",
    (
        "Its config states the sizes of heads and experts inside attn_config and ffn_config, and a table here states "
        "sizes that are at the top level of config.json or of text_config."
    ): "dbrx",
    (
        "A layer multiplies the whole stream by a number of its own behind its branches, so that a layer of zeros is "
        "not the identity; and its layers with and without a window have heads of two sizes, where a table here has "
        "one."
    ): "gemma4 gemma4_text",
    (
        "Every few layers, one attends to the image instead of the tokens: its keys and values read what the vision "
        "tower writes, and a table here has no such second stream."
    ): "mllama",
    (
        "Its last layer alone has a bias after attention, so it must stay the last one, and deepening here can hold "
        "the first layers in their places, but not the last."
    ): "gpt_neox_japanese",
    (
        "Each layer passes on the norm of the stream in place of the stream, so none can be the identity; and one norm "
        "whose eps the class fixes runs over all heads of its lightning attention."
    ): "minimax",
    (
        "It multiplies its latents by sqrt(hidden_size / rank), and a table here scales a weight by the size of one "
        "axis alone; and its router also chooses experts that have no weights."
    ): "longcat_flash",
    (
        "It keeps several residual streams for each token and mixes them in each layer (hyper-connections), and a "
        "table here describes one residual stream."
    ): "hy_v4",
    (
        "Its layers with a sliding window have twice as many KV heads as the others, and a table here has one number "
        "of KV heads for all layers."
    ): "mimo_v2_flash",
    (
        "Layers with and without a window may have different numbers of query heads, and have different numbers of "
        "rotary channels by default, and a table here has one of each for all layers."
    ): "laguna",
    (
        "A layer adds a norm of the stream to it and divides by a constant (LAuReL), so even with zero branches none "
        "is the identity; and several streams take part in what one of them gains (AltUp), where a table here has one."
    ): "gemma3n gemma3n_text",
    (
        "A layer's router adds the state of the router of the layer before to its own: a second stream through the "
        "layers, and a table here has one."
    ): "zaya",
    (
        "Layers with a window have a number of KV heads and a head_dim of their own (swa_num_key_value_heads, "
        "swa_head_dim), and a table here has one size for each axis."
    ): "inkling_text",
    (
        "The batch norms of its VQ-VAE count batches in whole numbers (num_batches_tracked), and every tensor of a "
        "checkpoint is of floats here, even if it passes through unchanged."
    ): "emu3",
    (
        "Its convolution over queries, keys and values is three tensors in files, which transformers cuts into equal "
        "thirds when it saves, although there are more channels of values; a table here states one shape for each "
        "tensor."
    ): "olmo_hybrid",
    NO_TABLE: "bailing_hybrid",
}


def why_not(model_type: object) -> str:
    """Return why a model type has no family, or an empty string if this is unknown.

    >>> why_not("bart")
    'It is the decoder of an encoder-decoder model, and only models without an encoder grow.'
    """
    return next((reason for reason, types in REASONS.items() if model_type in types.split()), "")
