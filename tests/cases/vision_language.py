"""Vision-language models: the text models of other families, each inside a small model that takes images of 8 x 8."""

from tests.cases.bert import BY_TILE, POST_NORM
from tests.cases.gemma import SMALL as GEMMA
from tests.cases.gemma import WINDOWS
from tests.cases.gpt2 import OWN_KEYS
from tests.cases.gpt2 import SQUARE as OWN_SQUARE
from tests.cases.llama import LLAMA_STEPS, SMALL, UNCOPIED
from tests.cases.mixtures import LLAMA4, NO_QK
from tests.cases.neox import SMALL as NEOX
from tests.cases.opt import MIRROR, POST_NORM_STEPS
from tests.cases.phi3 import FACTOR, LONGROPE_STEPS, longrope
from tests.cases.qwen3_next import DELTA_NET, KINDS, NEXT
from tests.cases.qwen3_next import REFUSED as QWEN3_5
from tests.support.families import Case

SMALL = SMALL | {"head_dim": 8}
IMAGE, SOUND = 50, 51  # the tokens that a feature of an image or of audio replaces
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 8, "patch_size": 4}
SIGLIP = VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
CLIP = VISION | {"model_type": "clip_vision_model"}
QWEN_VISION = {"depth": 3, "num_heads": 2, "patch_size": 4, "intermediate_size": 24}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}}
GRID = {"image_grid_pinpoints": [[8, 16], [16, 8]]}
# the class computes head_dim as hidden_size / num_attention_heads, so two of the three grow together
SQUARE = {
    "residual": (("residual", 48), ("heads", 6)),
    "heads": (("residual", 48), ("heads", 6)),
    "queries": (("residual", 48), ("queries", 3)),
    "head_dim": (("residual", 40), ("head_dim", 10)),
}


def case(family, variant, text, vision, steps=None, **others):
    """A model whose text model and vision tower have these configs."""
    config = {"text_config": text, "vision_config": vision, "image_token_id": IMAGE, **others}
    return Case(family, variant, config, UNCOPIED, steps or {})


def gemma3(variant, **others):
    text = GEMMA | WINDOWS | {"model_type": "gemma3_text", "query_pre_attn_scalar": 12}
    return case("gemma3", variant, text, SIGLIP, LLAMA_STEPS, mm_tokens_per_image=1, **others)


def llava(family, variant, vision=CLIP, **others):
    return case(family, variant, SMALL | {"model_type": "llama"}, vision, LLAMA_STEPS, **others)


def around(family, variant, text_type, vision=SIGLIP, text=None, **others):
    return case(family, variant, SMALL | {"model_type": text_type, **(text or {})}, vision, **others)


def qwen3_5(family, variant, text, **others):
    config = {"text_config": text | KINDS, "vision_config": DEEPSTACK, "image_token_id": IMAGE, **others}
    return Case(family, variant, config, QWEN3_5)


def fuyu(variant, **others):
    text = NEOX | {"model_type": "persimmon", "partial_rotary_factor": 0.5}
    return Case(
        "fuyu", variant, {"text_config": text, "patch_size": 4, "image_token_id": IMAGE, **others}, OWN_KEYS, OWN_SQUARE
    )


def git(variant, refused=POST_NORM, **others):
    """Keys of the text model are at top level."""
    parts = {"vision_config": VISION | {"model_type": "git_vision_model"}}
    return Case("git", variant, NEOX | parts | others, refused, POST_NORM_STEPS, BY_TILE)


def phi4(variant, steps=None, **others):
    """Keys of the text model are at top level."""
    parts = {"vision_config": VISION | {"crop_size": 8, "image_token_id": IMAGE}, "audio_config": AUDIO}
    return Case("phi4_multimodal", variant, NO_HEAD_DIM | parts | others, {}, steps or {})


def llama4(variant, tied=False):
    text = LLAMA4 | {"tie_word_embeddings": tied}
    return Case(
        "llama4", variant, {"text_config": text, "vision_config": LLAMA4_VISION, "image_token_index": IMAGE}, NO_QK
    )


NO_HEAD_DIM = {key: value for key, value in SMALL.items() if key != "head_dim"}
AUDIO = {"hidden_size": 16, "intermediate_size": 24, "num_blocks": 2, "num_attention_heads": 2, "audio_token_id": SOUND}
AUDIO |= {"input_size": 8, "nemo_conv_channels": 8, "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16}
ALIGNED = {"alignment_intermediate_size": 24}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
GOT_VISION = {"hidden_size": 16, "output_channels": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
GOT_VISION |= {"image_size": 16, "patch_size": 4, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 24}
INTERN_VISION = VISION | {"model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [4, 4]}
PIXTRAL = VISION | {"model_type": "pixtral", "head_dim": 8}
DEEPSTACK = QWEN_VISION | {"hidden_size": 16, "out_hidden_size": 32, "num_position_embeddings": 16}
QWEN25_VISION = QWEN_VISION | {
    "hidden_size": 16,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
    "window_size": 16,
}
SECTIONS = {"rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 0.5}}
LLAMA4_VISION = VISION | {
    "pixel_shuffle_ratio": 0.5,
    "intermediate_size": 64,
    "projector_input_dim": 12,
    "projector_output_dim": 12,
    "vision_output_dim": 12,
}
PALIGEMMA = {"projection_dim": 32, "hidden_size": 32}

CASES = [
    gemma3("tied"),
    gemma3("untied", **UNTIED),
    llava("llava", "untied"),
    llava("llava", "tied, no biases", multimodal_projector_bias=False, **TIED),
    around("llava", "a Qwen3", "qwen3", CLIP),
    around("mistral3", "tied", "mistral", PIXTRAL),
    around("mistral3", "untied", "mistral", PIXTRAL, **UNTIED),
    case(
        "qwen2_vl", "untied", SMALL | MROPE, QWEN_VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}, SQUARE
    ),
    case("qwen2_5_vl", "tied", SMALL | MROPE, QWEN25_VISION, SQUARE, **TIED),
    case("qwen3_vl", "untied", SMALL | MROPE, DEEPSTACK | {"deepstack_visual_indexes": [0, 1]}),
    qwen3_5("qwen3_5", "untied", SMALL | DELTA_NET),
    qwen3_5("qwen3_5", "tied, sections", SMALL | DELTA_NET | SECTIONS, **TIED),
    qwen3_5("qwen3_5_moe", "untied, sections", NEXT | SECTIONS),
    fuyu("untied"),
    fuyu("tied", **TIED),
    llama4("untied"),
    llama4("tied", True),
    llava("idefics3", "untied", VISION),
    llava("smolvlm", "tied", VISION, **TIED),
    llava("llava_next", "untied", **GRID),
    llava("llava_next_video", "untied", **GRID),
    around("llava_onevision", "untied", "qwen2", **GRID),
    llava("vipllava", "untied", vision_feature_layers=[-1, -2]),
    around("internvl", "tied", "qwen2", INTERN_VISION),
    around("aya_vision", "tied", "cohere2", text=WINDOWS, **ALIGNED),
    around("cohere2_vision", "tied", "cohere2", text=WINDOWS, **ALIGNED),
    around("paligemma", "tied", "gemma", **PALIGEMMA),
    case("paligemma", "tied, a Gemma 2", GEMMA | WINDOWS | {"model_type": "gemma2"}, SIGLIP, LLAMA_STEPS, **PALIGEMMA),
    git("untied"),
    git("tied, temporal embeddings", POST_NORM | MIRROR, num_image_with_embedding=2, **TIED),
    phi4("untied", rope_parameters=FACTOR, sliding_window=4),
    phi4("tied, longrope in part", LONGROPE_STEPS, **longrope(6), partial_rotary_factor=0.75, **TIED),
    around("got_ocr2", "tied", "qwen2", GOT_VISION),
]
