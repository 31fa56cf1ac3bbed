"""Quantised checkpoints: which there are, how each becomes one of plain floats, and FP8 read as such."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from growth.arrays.tensor_info import DTYPES, FLOATS, TensorInfo
from growth.checkpoints.block_scaled import CODES, SCALES, BlockScaledInfo, blocks
from growth.checkpoints.checkpoint import Checkpoint
from growth.errors import CheckpointError

KEYS = ("quantization_config", "compression_config")  # of config.json
FP8 = "fp8"
SCALE = "_scale_inv"  # ending of the tensor of scales of the tensor of the same name
ACTIVATIONS = (".activation_scale", ".input_scale")  # endings of scales of inputs, which only FP8 arithmetic uses
SMALLEST_BLOCK, LARGEST_BLOCK = 1, 2**31


def _loaded(*options: str) -> str:
    return f"AutoModelForCausalLM.from_pretrained({', '.join(['folder', *options])})"


# without this option, some models are quantised again while they are saved, or cannot be saved
_SAVED = ".save_pretrained(new_folder, save_original_format=False)"
NO_CALL = "transformers cannot dequantise it. Grow the model that it was quantised from"


@dataclass(frozen=True)
class Quantisation:
    """A kind of quantised checkpoint.

    Attributes:
        method: its quant_method in config.json.
        title: what messages call it.
        remedy: what to do instead.
        marks: endings of tensor names that no other checkpoint has.
    """

    method: str
    title: str
    remedy: str
    marks: tuple[str, ...] = ()


QUANTISATIONS = (
    Quantisation(
        FP8,
        "FP8",
        "Give plan, grow, verify or recipe the option --dequantize (in Python, dequantize=True), which dequantises it "
        "while it is read",
        (SCALE,),
    ),
    Quantisation("gptq", "GPTQ", NO_CALL, (".g_idx",)),
    Quantisation("awq", "AWQ", NO_CALL, (".qweight",)),
    Quantisation(
        "bitsandbytes",
        "bitsandbytes",
        f"Save it dequantised: {_loaded()}.dequantize(){_SAVED}",
        (".absmax", ".quant_map", ".SCB"),
    ),
    Quantisation(
        "compressed-tensors",
        "compressed-tensors",
        f"Save it dequantised: {_loaded('quantization_config=CompressedTensorsConfig(dequantize=True)')}{_SAVED}",
        (".weight_packed",),
    ),
    Quantisation(
        "mxfp4",
        "MXFP4",
        f"Save it dequantised: {_loaded('quantization_config=Mxfp4Config(dequantize=True)')}{_SAVED}",
        ("_proj_blocks",),
    ),
)


def refuse_gguf(folder: Path) -> None:
    """Raise CheckpointError for a folder of GGUF files."""
    files = sorted(path.name for path in folder.iterdir() if path.suffix == ".gguf")
    if files:
        options = f"gguf_file={files[0]!r}", "quantization_config=GgufConfig(dequantize=True)"
        raise CheckpointError(
            f"{folder} holds its weights in GGUF ({files[0]}), and only plain floats in safetensors can grow. Save it "
            f"dequantised: {_loaded(*options)}.save_pretrained(new_folder)."
        )


def as_floats(stored: Checkpoint, *, dequantize: bool = False) -> Checkpoint:
    """An opened checkpoint of plain floats.

    dequantize: whether one that is quantised in FP8 may be dequantised while it is read.

    Raises:
        CheckpointError: it is quantised, and not to be dequantised or not in a way that can be; or it is not quantised
            and was to be.
    """
    settings = next((stored.config[key] for key in KEYS if stored.config.get(key)), None)
    found = _quantisation(settings, stored)
    if found is None and dequantize:
        raise CheckpointError(f"{stored.folder} is not quantised: leave out --dequantize (dequantize).")
    if found is None:
        return stored
    if dequantize and found.method == FP8:
        return _dequantised(stored, settings)
    raise CheckpointError(
        f"{stored.folder} is quantised ({found.title}), and only plain floats can grow. {found.remedy}."
    )


def _quantisation(settings: Any, stored: Checkpoint) -> Quantisation | None:
    """How a checkpoint is quantised, by its config and else by the names of its tensors; None if it is not."""
    names = tuple(stored.tensors)
    if settings is None:
        return next((kind for kind in QUANTISATIONS if any(name.endswith(kind.marks) for name in names)), None)
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    method = "bitsandbytes" if method is None and _of_bitsandbytes(settings) else method
    known = {kind.method: kind for kind in QUANTISATIONS}
    plain = all(info.dtype in FLOATS for info in stored.tensors.values())
    key = next((key for key in KEYS if stored.config.get(key)), "")
    remedy = (
        f"But all of its tensors are plain floats: if the model is not quantised, remove {key} from config.json"
        if plain
        else NO_CALL
    )
    return known.get(str(method)) if not plain and str(method) in known else Quantisation("", f"{method}", remedy)


def _of_bitsandbytes(settings: Any) -> bool:
    """Whether settings are those of older versions of transformers, which named no method."""
    return isinstance(settings, Mapping) and any(settings.get(key) for key in ("load_in_4bit", "load_in_8bit"))


# ------------------------------------------------- FP8


def _dequantised(stored: Checkpoint, settings: Any) -> Checkpoint:
    """A checkpoint in FP8 as one of plain floats, whose config does not say that it is quantised.

    Raises:
        CheckpointError: an FP8 tensor has no scales, or scales of another number or type; or a tensor of scales has no
            FP8 tensor.
    """
    block = _block(stored.folder, settings)
    dtype = DTYPES.get(str(stored.config.get("dtype") or stored.config.get("torch_dtype")), "BF16")
    dropped = {name for name in stored.tensors if name.endswith((SCALE, *ACTIVATIONS))}
    tensors = {
        name: _as_float(info, stored, block, dtype) for name, info in stored.tensors.items() if name not in dropped
    }
    for name in sorted(dropped):
        codes = name.removesuffix(SCALE)
        if name.endswith(SCALE) and stored.tensors.get(codes, stored.tensors[name]).dtype != CODES:
            raise CheckpointError(
                f"{stored.folder} holds '{name}' and no FP8 tensor '{codes}'. Fetch all of its files."
            )
    count = sum(isinstance(info, BlockScaledInfo) for info in tensors.values())
    note = f"{count} tensors are dequantised from FP8 to {dtype} while they are read; the grown config is unquantised."
    config = {key: value for key, value in stored.config.items() if key not in KEYS}
    return replace(stored, config=config, tensors=tensors, notes=(*stored.notes, note), dequantised=dict(settings))


def _block(folder: Path, settings: Any) -> tuple[int, int] | None:
    """The rows and columns of a block; None where a tensor has one scale.

    Raises:
        CheckpointError: config.json states none, or another thing than two sizes.
    """
    stated = settings.get("weight_block_size", "missing") if isinstance(settings, Mapping) else "missing"
    if stated is None:
        return None
    sizes = stated if isinstance(stated, list) else []
    if len(sizes) != 2 or any(type(size) is not int or not SMALLEST_BLOCK <= size < LARGEST_BLOCK for size in sizes):
        raise CheckpointError(
            f"{folder / 'config.json'} has weight_block_size = {stated!r} in its quantization_config; FP8 weights need "
            "the rows and columns of a block, such as [128, 128], or null for one scale per tensor. Restore the file."
        )
    return sizes[0], sizes[1]


def _as_float(info: TensorInfo, stored: Checkpoint, block: tuple[int, int] | None, dtype: str) -> TensorInfo:
    """A stored tensor as one of plain floats."""
    if info.dtype != CODES:
        return info
    scales = stored.tensors.get(f"{info.name}{SCALE}")
    if scales is None or len(info.shape) != 2:
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' is {CODES} {list(info.shape)} "
            f"{'without' if scales is None else 'with'} '{info.name}{SCALE}', and only matrices with their scales are "
            "dequantised. Fetch all files of the checkpoint, or save it dequantised."
        )
    needed = blocks(info.shape, block) if block else (1, 1)
    single = block is None and scales.shape in ((), (1,))
    if scales.dtype not in SCALES or not (single or scales.shape == needed):
        raise CheckpointError(
            f"{scales.path}: tensor '{scales.name}' is {scales.dtype} {list(scales.shape)}; '{info.name}' "
            f"{list(info.shape)} in blocks of {list(block or info.shape)} needs scales of {list(needed)} in "
            f"{', '.join(SCALES)}. Fetch the files of one version again."
        )
    height, width = block or info.shape
    size = max(1, height), max(1, width)
    return BlockScaledInfo(info.name, dtype, info.shape, info.path, codes=info, scales=scales, block=size)
