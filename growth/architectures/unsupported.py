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
        "of as many frequencies as the stream is wide, so that most frequencies are others in a wider stream."
    ): "xlnet",
    (
        "Its config states the widths of queries, values and MLP as fractions of hidden_size, which the class "
        "rounds, and a table here states sizes as whole numbers."
    ): "xlstm",
    NO_TABLE: """
        aria_text
        axk1
        axk2
        bailing_hybrid
        beam
        bert-generation
        big_bird
        bitnet
        cohere_compass_text
        cpmant
        dbrx
        deepseek_v32
        dots3_note
        dots3_note_text
        emu3
        fuyu
        gemma3n
        gemma3n_text
        gemma4
        gemma4_text
        gemma4_unified
        gemma4_unified_text
        git
        glm_moe_dsa
        gpt_neox_japanese
        hrm_text
        hy_v4
        inkling2_text
        inkling_text
        jamba
        kimi_linear
        kolibri1
        laguna
        lfm3
        longcat_flash
        mimo_v2_flash
        minimax
        minimax_m3_vl_text
        mllama
        modernbert-decoder
        moshi
        moss_transcribe_diarize
        nemotron_h
        olmo_hybrid
        openai-gpt
        phi4_multimodal
        qwen4_exp
        qwen4_exp_text
        recurrent_gemma
        rembert
        roc_bert
        roformer
        rwkv
        xlm
        xmod
        zamba
        zamba2
        zaya
    """,
}


def why_not(model_type: object) -> str:
    """Return why a model type has no family, or an empty string if this is unknown.

    >>> why_not("bart")
    'It is the decoder of an encoder-decoder model, and only models without an encoder grow.'
    """
    return next((reason for reason, types in REASONS.items() if model_type in types.split()), "")
