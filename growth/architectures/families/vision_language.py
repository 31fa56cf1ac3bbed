"""Vision-language models around text models of other families: what of them writes into the text model's stream.

A projector turns features of images or audio into embeddings, which take the places of tokens or stand in front of
them. Its last weights write into the residual stream and grow with it. Where a class makes a projector's hidden layer
as wide as the stream, that layer (`activated`) grows along. The towers, and what is in front of the projector, pass
through.
"""

from dataclasses import replace
from typing import Any

from growth.architectures.base import Architecture, Weight, linear, norm, text_model, weight
from growth.architectures.blocks import Attention, Norms, attention_bias, square_head_dim
from growth.architectures.config import Config
from growth.architectures.decoder import decoder
from growth.architectures.families.bert import SIZES, Encoder, encoder
from growth.architectures.families.llama import windowed_layers
from growth.architectures.families.phi3 import phi3
from growth.architectures.families.qwen3_next import qwen3_5_moe_text, qwen3_5_text
from growth.architectures.registry import Family, register
from growth.architectures.rotary import SECTIONS, nested_rope
from growth.architectures.wrapper import Wrapper


def _two_layers(first: str, second: str) -> tuple[Weight, ...]:
    """Return a projector of two matrices, with an activation between them as wide as the stream."""
    return (
        *linear(first, "activated", "image", bias=True),
        *linear(second, "residual", "activated", bias=True),
    )


PROJECTOR = "model.multi_modal_projector"
TWO_LAYERS = _two_layers(f"{PROJECTOR}.linear_1", f"{PROJECTOR}.linear_2")
SECOND_LAYER = linear(f"{PROJECTOR}.linear_2", "residual", "image", bias=True)  # the first has a size of its own
NEWLINE = (weight("model.image_newline", "residual"),)  # stands at the end of each row of an image
# Phi-4-multimodal has a projector for images, one for audio, and one for audio beside an image
EXTENDED = "model.embed_tokens_extend"
EXTENSIONS = {
    "image_embed.img_projection_up": "image_embed.img_projection_down",
    "audio_embed.up_proj_for_speech": "audio_embed.down_proj_for_speech",
    "audio_embed.up_proj_for_vision_speech": "audio_embed.down_proj_for_vision_speech",
}
# files of transformers 4.51 and before: a causal language model and the other parts, side by side
OLDER = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.",
    f"{PROJECTOR}.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
}
NO_SECTIONS = (
    "config.json leaves it to the class how many rotary pairs of a head belong to time, rows and columns. State "
    "mrope_section in rope_parameters."
)


def qwen2_vl_text(config: Config) -> Architecture:
    """Return the table of the text model of a Qwen2-VL or Qwen2.5-VL: a Qwen2 with positions in time and space."""
    table = decoder(
        config,
        Attention(bias=(True, False)),
        norms=Norms(eps_default=1e-5),
        defaults={"heads": 8, "head_dim": square_head_dim(config)},
        bases=(("", "rope_theta", 1e6),),
        layer_types=windowed_layers(config),
    )
    stated = nested_rope(config).get(SECTIONS)
    return table if stated else table.with_axes(replace(table.axes["head_dim"], refusal=NO_SECTIONS))


def qwen3_vl_text(config: Config) -> Architecture:
    """Return the table of the text model of a Qwen3-VL: a Qwen3 with positions in time and space, interleaved."""
    rope = nested_rope(config)
    interleaved = {"rope_parameters": {**rope, "mrope_interleaved": True}} if SECTIONS in rope else {}
    return decoder(
        {**config, **interleaved},
        Attention(bias=attention_bias(config), qk_norm="shared"),
        defaults={"heads": 32, "head_dim": 128},
        bases=(("", "rope_theta", 5e5),),
    )


def git_text(config: Config) -> Architecture:
    """Return the table of the text model of a GIT: a BERT without types of tokens, whose head is one matrix."""
    return encoder(
        {"max_position_embeddings": 1024, **config},
        Encoder("git", decoder="output", bias="output.bias", transform=False),
        sizes={key: axis for key, axis in SIZES.items() if axis != "types"},
    )


def phi4_multimodal_text(config: Config) -> Architecture:
    """Return the table of the text model of a Phi-4-multimodal: a Phi-3 with 8 KV heads by default."""
    return phi3({"num_key_value_heads": 8, **config})


def _with_sections(table: Family) -> Family:
    """Return the function that makes a table of a Qwen3.5, whose class has sections where the config states none."""

    def sectioned(config: Config) -> Architecture:
        rope = nested_rope(config)
        unsaid = {"rope_parameters": {SECTIONS: [11, 11, 10], **rope}} if rope else {}
        return table({**config, **unsaid})

    return sectioned


def _llava(model_type: str, text_type: str, inputs: tuple[Weight, ...], **others: Any) -> Wrapper:
    """Return a wrapper with the names of LLaVA's parts."""
    passes = ("model.vision_tower.", f"{PROJECTOR}.", *(one.name for one in inputs if one in NEWLINE))
    return Wrapper(
        model_type, text_type, "model.language_model.", inputs, **{"passes": passes, "older": OLDER, **others}
    )


def _idefics(model_type: str) -> Wrapper:
    """Return a wrapper with the names of Idefics 3's parts; its connector is one matrix."""
    matrix = linear("model.connector.modality_projection.proj", "residual", "image")
    return Wrapper(model_type, "llama", "model.text_model.", matrix, ("model.vision_model.", "model.connector."))


def _qwen(model_type: str, width: str, mergers: tuple[str, ...], table: Family, **others: Any) -> Wrapper:
    """Return a wrapper with the names of Qwen's parts, whose vision config states the width of the stream, too.

    width: the key of that width.
    mergers: the matrices that end the vision tower.
    """
    inputs = (linear(f"model.visual.{name}", "residual", "image", bias=True) for name in mergers)
    return Wrapper(
        model_type,
        f"{model_type}_text",
        "model.language_model.",
        sum(inputs, ()),
        ("model.visual.",),
        sizes={f"vision_config.{width}": "hidden_size"},
        tables={f"{model_type}_text": text_model(table)},
        **others,
    )


FLAT = {"flat": True, "tied_by_text": True, "older": {"model.language_model.": "model.", "model.visual.": "visual."}}
WRAPPERS = (
    _llava("gemma3", "gemma3_text", (weight(f"{PROJECTOR}.mm_input_projection_weight", "image residual"),), tied=True),
    _llava("llava", "llama", TWO_LAYERS, tied_by_text=True),
    _llava("llava_next", "llama", TWO_LAYERS + NEWLINE),
    _llava("llava_next_video", "llama", TWO_LAYERS + NEWLINE, tied_by_text=True),
    _llava("llava_onevision", "qwen2", TWO_LAYERS + NEWLINE, tied_by_text=True),
    _llava("vipllava", "llama", TWO_LAYERS),
    _llava("mistral3", "mistral", TWO_LAYERS, tied=True),
    _llava("internvl", "qwen2", TWO_LAYERS, tied=True),
    _llava("aya_vision", "cohere2", SECOND_LAYER, tied=True),
    _llava("cohere2_vision", "cohere2", SECOND_LAYER, tied=True, older={}),
    _llava(
        "paligemma",
        "gemma",
        linear(f"{PROJECTOR}.linear", "residual", "image", bias=True),
        tied=True,
        sizes=dict.fromkeys(("hidden_size", "projection_dim", "vision_config.projection_dim"), "hidden_size"),
    ),
    _llava(
        "got_ocr2",
        "qwen2",
        (
            weight(f"{PROJECTOR}.conv_upsampler2.weight", "activated image 3 3"),
            *linear(f"{PROJECTOR}.multimodal_projector", "residual", "activated", bias=True),
        ),
        tied=True,
    ),
    Wrapper(
        "llama4",
        "llama4_text",
        "language_model.model.",
        linear("multi_modal_projector.linear_1", "residual", "image"),
        ("vision_model.", "multi_modal_projector."),
        head="language_model.lm_head.",
        tied_by_text=True,
    ),
    Wrapper(
        "fuyu",
        "persimmon",
        "model.language_model.",
        linear("model.vision_embed_tokens", "residual", "patch", bias=True),
        ("model.vision_embed_tokens.",),
        older={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.vision_embed_tokens.": "vision_embed_tokens.",
        },
    ),
    _idefics("idefics3"),
    _idefics("smolvlm"),
    _qwen("qwen2_vl", "hidden_size", ("merger.mlp.2",), qwen2_vl_text, **FLAT),
    _qwen("qwen2_5_vl", "out_hidden_size", ("merger.mlp.2",), qwen2_vl_text, **FLAT),
    _qwen(
        "qwen3_vl",
        "out_hidden_size",
        ("merger.linear_fc2", "deepstack_merger_list.{index}.linear_fc2"),
        qwen3_vl_text,
        leading=("vision_config.deepstack_visual_indexes", 3),
    ),
    Wrapper(
        "git",
        "git",
        "git.",
        (
            *linear("git.visual_projection.visual_projection.0", "residual", "image", bias=True),
            *norm("git.visual_projection.visual_projection.1", "residual", "residual", bias=True),
        ),
        ("git.image_encoder.", "git.visual_projection.", "git.img_temporal_embedding."),
        flat=True,
        tables={"git": text_model(git_text)},
    ),
    Wrapper(
        "phi4_multimodal",
        "phi4_multimodal",
        "model.",
        sum((_two_layers(f"{EXTENDED}.{up}", f"{EXTENDED}.{down}") for up, down in EXTENSIONS.items()), ()),
        (f"{EXTENDED}.",),
        flat=True,
        tables={"phi4_multimodal": text_model(phi4_multimodal_text)},
    ),
    _qwen("qwen3_5", "out_hidden_size", ("merger.linear_fc2",), _with_sections(qwen3_5_text)),
    _qwen("qwen3_5_moe", "out_hidden_size", ("merger.linear_fc2",), _with_sections(qwen3_5_moe_text)),
)
for wrapper in WRAPPERS:
    register(wrapper.model_type, wrapper)
