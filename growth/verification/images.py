"""Random images for models that take them, as their processors would pass them on, without a processor.

Shape letters: rows B, one image each; height and width S of the vision tower's images; patches of P x P.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

Inputs = dict[str, Tensor]
Random = Callable[..., Tensor]


def image_inputs(model: PreTrainedModel, tokens: Tensor, seed: int = 0) -> Inputs:
    """Return the inputs of a model for tokens (B, T) with one random image in the middle of each row.

    A model without images gets the tokens alone.
    """
    made = IMAGES.get(model.config.model_type)
    if made is None:
        return {"input_ids": tokens}
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    pixels = made(
        model.config,
        len(tokens),
        lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype),
    )
    count = _places(model, pixels, len(tokens))
    if not count:
        return {"input_ids": tokens, **pixels}
    image = torch.full((len(tokens), count), _image_token(model.config))
    tokens = torch.where(tokens == image[0, 0], (tokens - 1).abs(), tokens)  # which would be taken for the image's
    middle = tokens.shape[1] // 2
    ids = torch.cat([tokens[:, :middle], image, tokens[:, middle:]], dim=1)
    kinds = {name: (ids == image[0, 0]).long() for name in TOKEN_KINDS.get(model.config.model_type, ())}
    return {"input_ids": ids, **pixels, **kinds}


def repeated(inputs: Mapping[str, Tensor], times: int) -> Inputs:
    """Return inputs for as many copies of the rows."""
    return {name: value.repeat(times, *[1] * (value.dim() - 1)) for name, value in inputs.items()}


def _places(model: PreTrainedModel, pixels: Inputs, rows: int) -> int:
    """The number of tokens in each row that stand for the image."""
    count = PLACES.get(model.config.model_type)
    if count is not None:
        return count(model.config)
    with torch.no_grad():
        found = model.base_model.get_image_features(**pixels, return_dict=True)
    features: Any = found.last_hidden_state if found.pooler_output is None else found.pooler_output
    features = torch.cat(tuple(features)) if isinstance(features, tuple | list) else features
    return int(features.numel() // features.shape[-1] // rows)


def _image_token(config: PreTrainedConfig) -> int:
    token: int = (config if hasattr(config, "image_token_id") else config.vision_config).image_token_id
    return token


def _side(config: PreTrainedConfig) -> int:
    """S."""
    side = config.vision_config.image_size
    return int(side[0] if isinstance(side, list | tuple) else side)


def _one(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    return {"pixel_values": random(rows, 3, _side(config), _side(config))}


def _frames(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """One image, or as many as the class has embeddings of their time for."""
    count = config.num_image_with_embedding
    return {"pixel_values": random(rows, *([] if count is None else [count]), 3, _side(config), _side(config))}


def _of_any_size(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """An image of two by two merged patches, whose size is stated beside it."""
    side = 2 * config.vision_config.patch_size * config.spatial_merge_size
    return {"pixel_values": random(rows, 3, side, side), "image_sizes": torch.full((rows, 2), side)}


def _listed(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """A list of images for each row."""
    return {"pixel_values": random(rows, 1, 3, _side(config), _side(config))}


def _flat_patches(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """Two by two patches of each image, one after the other."""
    return {"pixel_values": random(rows, 4, config.num_channels * config.patch_size**2)}


def _tiled(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """The image as a whole and in tiles, of the smallest size that the config lists."""
    height, width = min(config.image_grid_pinpoints, key=lambda size: size[0] * size[1])
    tiles = 1 + height * width // _side(config) ** 2
    sizes = torch.tensor([[height, width]] * rows)
    return {"pixel_values": random(rows, tiles, 3, _side(config), _side(config)), "image_sizes": sizes}


def _patches(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """Patches of all images, one after the other, and the grid of each image: two by two merged patches."""
    vision = config.vision_config
    side = 2 * vision.spatial_merge_size
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    grids = torch.tensor([[1, side, side]] * rows)
    return {"pixel_values": random(rows * side**2, values), "image_grid_thw": grids}


def _cropped(config: PreTrainedConfig, rows: int, random: Random) -> Inputs:
    """The image as a whole and in one crop, and which of their patches are the image's: all."""
    crop, side = config.vision_config.crop_size, config.vision_config.crop_size // config.vision_config.patch_size
    sizes, mask = torch.full((rows, 2), crop), torch.ones(rows, 2, side, side)
    return {
        "image_pixel_values": random(rows, 2, 3, crop, crop),
        "image_sizes": sizes,
        "image_attention_mask": mask,
    }


def _crop_places(config: PreTrainedConfig) -> int:
    """Both parts in two by two merged patches, the end of each of their rows, and what stands between the parts."""
    side = math.ceil(config.vision_config.crop_size // config.vision_config.patch_size / 2)
    return int(2 * side * (side + 1) + 1)


IMAGES: Mapping[str, Callable[[PreTrainedConfig, int, Random], Inputs]] = {
    **dict.fromkeys(
        ("aya_vision", "cohere2_vision", "gemma3", "got_ocr2", "internvl", "llama4", "llava", "paligemma", "vipllava"),
        _one,
    ),
    **dict.fromkeys(("idefics3", "smolvlm"), _listed),
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), _tiled),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"), _patches),
    "fuyu": _flat_patches,
    "git": _frames,
    "mistral3": _of_any_size,
    "phi4_multimodal": _cropped,
}
# the number of tokens that stand for an image, where the class has no function that returns its features
PLACES: Mapping[str, Callable[[PreTrainedConfig], int]] = {
    "git": lambda config: 0,  # it stands in front of all tokens
    "phi4_multimodal": _crop_places,
}
# inputs that say which tokens are an image's
TOKEN_KINDS = {
    **dict.fromkeys(("gemma3", "paligemma"), ("token_type_ids",)),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"), ("mm_token_type_ids",)),
}
