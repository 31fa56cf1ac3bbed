"""Folders of safetensors files: their headers read, checked and written without a tensor library.

The safetensors format is eight bytes of little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}} and the tensors' bytes, row-major, without gaps
(https://github.com/huggingface/safetensors#format). Offsets are known before the first byte is written,
so any part of any tensor can be written at any time.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo
from growth.checkpoints.checkpoint import SourceFormat
from growth.checkpoints.untrusted import LARGEST_JSON, parse_json, read_json
from growth.errors import CheckpointError

_RANK = {dtype: rank for rank, dtype in enumerate(ITEM_SIZE)}
MOST_DIMENSIONS = 64  # the limit of PyTorch
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
NUMBERED = re.compile(r".*[.\-]\d+-of-\d+\.safetensors")  # one of several shards
# such as model.fp16.safetensors; model.safetensors-00001-of-00002.safetensors is a shard
VARIANT = re.compile(r"model\.(?!safetensors-)(?!\d+-of-)(?P<variant>[\w\-]+?)(-\d+-of-\d+)?\.safetensors")


class Safetensors(SourceFormat):
    """A folder of safetensors files under the names that transformers loads."""

    title = "safetensors files"

    def recognises(self, folder: Path) -> bool:
        """Whether there is a model.safetensors or an index of several files."""
        return any((folder / name).is_file() for name in (SINGLE, INDEX))

    def headers(self, folder: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
        """Read the header of every file that transformers would load.

        Raises:
            CheckpointError: there are no weights under these names, a header is unsafe or truncated, the index points
                outside the folder, or a tensor is in two files.
        """
        files = {path.name for path in folder.iterdir() if path.is_file()}
        if SINGLE in files:
            return {info.name: info for info in read_header(folder / SINGLE)}, _ignored([SINGLE], files)
        if INDEX not in files:
            raise CheckpointError(_no_weights(folder, files))
        weight_map = _weight_map(folder / INDEX)
        names = sorted(set(weight_map.values()))
        missing = next((name for name in names if name not in files), None)
        if missing is not None:
            raise CheckpointError(f"{folder} holds no {missing}, which {INDEX} names. Fetch the missing file.")
        return _indexed(folder / INDEX, weight_map), _ignored(names, files)


def _indexed(index: Path, weight_map: Mapping[str, str]) -> dict[str, TensorInfo]:
    """The tensors of the shards that an index names.

    Raises:
        CheckpointError: a tensor is in two shards, or in another one than the index says.
    """
    tensors: dict[str, TensorInfo] = {}
    found: dict[str, str] = {}
    for file in sorted(set(weight_map.values())):
        for info in read_header(index.parent / file):
            if info.name in tensors:
                raise CheckpointError(
                    f"Tensor '{info.name}' is in two files, {tensors[info.name].path} and {info.path}: keep one."
                )
            tensors[info.name], found[info.name] = info, file
    for name in sorted(weight_map.keys() | found.keys()):
        if weight_map.get(name) != found.get(name):
            raise CheckpointError(
                f"{index} and the shards disagree on tensor '{name}': the index says "
                f"{weight_map.get(name, 'nothing')}, the shards say {found.get(name, 'nothing')}. Fetch the files "
                "of one version again, or write the index anew."
            )
    return tensors


def _ignored(names: Sequence[str], files: set[str]) -> tuple[str, ...]:
    """A note on weight files that are not read."""
    others = sorted(name for name in files - set(names) if name.endswith(".safetensors"))
    others = [INDEX, *others] if INDEX in files and names == [SINGLE] else others
    if not others:
        return ()
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    read = names[0] if len(names) == 1 else f"the {len(names)} files that {INDEX} names"
    return (f"Read {read}, as transformers does, and not {', '.join(others[:3])}{more}.",)


def _no_weights(folder: Path, files: set[str]) -> str:
    """The message for a folder without readable weights, with the remedy."""
    stored = sorted(name for name in files if name.endswith(".safetensors"))
    variants = [found for name in stored if (found := VARIANT.fullmatch(name))]
    shards = [name for name in stored if NUMBERED.fullmatch(name)]
    pickles = sorted(name for name in files if name.endswith(PICKLES))
    lacks = f"holds no {SINGLE} and no {INDEX}"
    if variants:
        return (
            f"{folder} {lacks}, only the variant {variants[0][0]}. Transformers loads a variant only by name: save it "
            f"again, AutoModelForCausalLM.from_pretrained(folder, variant={variants[0]['variant']!r})"
            f".save_pretrained(new_folder){'' if variants[0][2] else f', or rename it to {SINGLE}'}."
        )
    if shards:
        return (
            f"{folder} {lacks}, only {len(shards)} numbered shards such as {shards[0]}, which the index would list. "
            f"Fetch {INDEX} too, or write it."
        )
    if stored:
        return (
            f"{folder} {lacks}, and {stored[0]} is not a name that transformers loads. Save the model by "
            f"save_pretrained, or rename the file to {SINGLE} if it is one that save_pretrained wrote."
        )
    if pickles:
        return (
            f"{folder} holds {pickles[0]} but no {SINGLE}. Pickle files can run code when they are opened and are "
            "not read. Convert once: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)."
        )
    return f"{folder} {lacks}. Name a folder that holds a checkpoint of safetensors."


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' of tensor names to files.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]{1,200}\.safetensors", name, re.ASCII):
            raise CheckpointError(
                f"{index} places tensor '{tensor}' in {name!r}: only a .safetensors file of the same folder is read."
            )
    return weight_map


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of one safetensors file, checked as strictly as by the reference implementation.

    Raises:
        CheckpointError: the file is truncated, or its header is oversized or malformed, or tensors overlap.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LARGEST_JSON, size - 8):
            raise CheckpointError(
                f"{path} is not a whole safetensors file: its header claims {length:,} bytes, the file has {size:,}. "
                "Fetch it again."
            )
        text = file.read(length)
    try:
        header = parse_json(text)
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("__metadata__ is not an object of strings")
        entries = sorted((_entry(path, *item) for item in header.items()), key=lambda entry: entry[0].begin)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} has a malformed header: {error}.") from None
    return _contiguous(entries, path, 8 + length, size)


def _entry(path: Path, name: str, fields: dict[str, Any]) -> tuple[TensorInfo, int]:
    """A tensor that begins at an offset behind the header, and the offset at which it ends."""
    dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if set(fields) != {"dtype", "shape", "data_offsets"} or dtype not in ITEM_SIZE:
        raise ValueError(f"tensor '{name}' has an unknown field or the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor '{name}' has a shape that is not a list of at most {MOST_DIMENSIONS} sizes")
    numbers = [*shape, begin, end]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"tensor '{name}' has a size or offset that is not a natural number: {numbers}")
    return TensorInfo(name, dtype, tuple(shape), path, begin), end


def _contiguous(entries: Iterable[tuple[TensorInfo, int]], path: Path, header: int, size: int) -> list[TensorInfo]:
    """The tensors at their offsets in a file of `size` bytes, which they fill behind a header of so many bytes."""
    at, tensors = 0, []
    for info, end in entries:
        if (info.begin, end) != (at, at + info.bytes):
            raise CheckpointError(
                f"{path}: tensor '{info.name}' {list(info.shape)} {info.dtype} needs {info.bytes:,} bytes from offset "
                f"{at:,}; the header gives {info.begin:,} to {end:,}."
            )
        at = end
        tensors.append(replace(info, begin=header + info.begin))
    if header + at != size:
        raise CheckpointError(
            f"{path} is truncated or has extra bytes: its header describes {header + at:,} bytes, and it has {size:,}. "
            "Fetch it again."
        )
    return tensors


# ------------------------------------------------- writing


def layout(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, list[TensorInfo]]:
    """The header of a file, byte for byte as `save_file` writes it, and the place of each tensor (name, dtype, shape).

    The tensors follow one another as in `save_file`: largest type first, then by name.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, places = 0, []
    for name, dtype, shape in sorted(tensors, key=lambda tensor: (-_RANK[tensor[1]], tensor[0])):
        info = TensorInfo(name, dtype, shape, path, at)
        at += info.bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [info.begin, at]}
        places.append(info)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, [replace(info, begin=8 + len(text) + info.begin) for info in places]
