"""Checkpoint: a folder of safetensors, its headers read without a tensor library, its output written whole.

The safetensors format is eight bytes of little-endian header length, a JSON header
{name: {dtype, shape, data_offsets}} and the tensors' bytes, row-major, without gaps
(https://github.com/huggingface/safetensors#format). Offsets are known before the first byte is written,
so any part of any tensor can be written at any time.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo
from growth.checkpoints.untrusted import LARGEST_JSON, check_folder, parse_json, read_file
from growth.errors import CheckpointError

_RANK = {dtype: rank for rank, dtype in enumerate(ITEM_SIZE)}
MOST_DIMENSIONS = 64  # PyTorch's own limit
FLOATS = ("F16", "BF16", "F32", "F64")
LARGEST_CONFIG = 1 << 20  # configs have some kilobytes, with labels of classes some hundred
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
CHOSEN = "transformers_weights"  # the config key by which transformers is told another file
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
NUMBERED = re.compile(r".*-\d+-of-\d+\.safetensors")  # a shard of several
VARIANT = re.compile(r"model\.[\w\-]+(-\d+-of-\d+)?\.safetensors")  # such as model.fp16.safetensors
COMMIT = re.compile(r"[0-9a-f]{40}")
CACHED = "models--"  # how a repository's folder in huggingface_hub's cache begins; "--" stands for "/"


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint folder, by name; nothing but headers has been read.

    notes: sentences for users on how the folder was read: files and names that were chosen or left out.
    dropped: tensors that the folder holds and the model class computes itself.
    repeated: pairs of stored tensors that the model ties, of which only the second is in `tensors`: both must hold
        the same bytes.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    repeated: tuple[tuple[TensorInfo, TensorInfo], ...] = ()

    @property
    def name(self) -> str:
        """The hub id of a snapshot in the hub's cache, else the folder's name; a text that can be written."""
        found = hub_snapshot(self.folder)
        return (found[0] if found else self.folder.name).encode(errors="replace").decode()

    @property
    def origin(self) -> dict[str, str]:
        """What growth.json says of where it is from: its name and, of a hub snapshot, the commit."""
        found = hub_snapshot(self.folder)
        return {"name": self.name, **({"commit": found[1]} if found else {})}

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Reads config.json and every safetensors header of a folder, refusing what is unsafe or broken.

        Raises:
            CheckpointError: no such folder, no config, no weights under the names that transformers loads, a hostile
                or truncated header, an index or a link that points outside the folder, a tensor that two files hold.
        """
        if not folder.is_dir():
            raise CheckpointError(f"No checkpoint folder at {folder}.")
        check_folder(folder)
        config = read_config(folder / "config.json")
        refuse_others(folder, config)
        tensors, notes = _headers(folder)
        return cls(folder, config, tensors, notes)


def hub_snapshot(folder: Path) -> tuple[str, str] | None:
    """The hub id and the commit of a folder in huggingface_hub's cache, None for any other folder.

    >>> hub_snapshot(Path("hub/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a04d12100db370d81485cdf75e47ca"))
    ('Qwen/Qwen3-0.6B', 'c1899de289a04d12100db370d81485cdf75e47ca')
    """
    folder = folder.resolve()
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not (repository.startswith(CACHED) and COMMIT.fullmatch(folder.name)):
        return None
    return repository.removeprefix(CACHED).replace("--", "/"), folder.name


def read_config(path: Path) -> dict[str, Any]:
    """The JSON object in a config.json.

    Raises:
        CheckpointError: missing, malformed, or no object.
    """
    config = read_json(path, LARGEST_CONFIG)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object.")
    return config


def read_json(path: Path, largest: int = LARGEST_JSON) -> Any:
    """The plain content of a JSON file of at most `largest` bytes; duplicate keys are refused.

    Raises:
        CheckpointError: missing, malformed, or too large.
    """
    try:
        return parse_json(read_file(path, largest))
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing. Name a folder that holds a checkpoint, with its {path.name}, or restore the file."
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from None


def refuse_others(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuses what would have transformers load other weights than those of the standard names.

    Raises:
        CheckpointError: a PEFT adapter, or a config that names another file.
    """
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds a PEFT adapter ({ADAPTER}), which transformers would load on top of the weights. Merge it "
            "first (merge_and_unload, then save_pretrained to a new folder), or remove the adapter's files."
        )
    if config.get(CHOSEN) is not None:
        raise CheckpointError(
            f"{folder / 'config.json'} has {CHOSEN} = {config[CHOSEN]!r}, which transformers would load in place of "
            f"{SINGLE}. Give that file the name {SINGLE} or {INDEX}, and remove the key."
        )


def _headers(folder: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
    """The tensors of the files that transformers loads, and notes on those that it leaves alone."""
    there = {path.name for path in folder.iterdir() if path.is_file()}
    weight_map = _weight_map(folder / INDEX) if INDEX in there and SINGLE not in there else None
    if weight_map is None and SINGLE not in there:
        raise CheckpointError(_no_weights(folder, there))
    tensors: dict[str, TensorInfo] = {}
    names = [SINGLE] if weight_map is None else sorted(set(weight_map.values()))
    for name in names:
        if name not in there:
            raise CheckpointError(f"{folder} holds no {name}, which {INDEX} names. Fetch the missing file.")
        for info in read_header(folder / name):
            if info.name in tensors:
                raise CheckpointError(
                    f"Tensor '{info.name}' is in two files, {tensors[info.name].path} and {info.path}: keep one."
                )
            tensors[info.name] = info
    if weight_map is not None:
        _agree(folder / INDEX, weight_map, tensors)
    return tensors, _left_out(names, there)


def _left_out(names: Sequence[str], there: set[str]) -> tuple[str, ...]:
    """A note on weights that are not read."""
    others = sorted(name for name in there - set(names) if name.endswith(".safetensors"))
    others = [INDEX, *others] if INDEX in there and names == [SINGLE] else others
    if not others:
        return ()
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    files = names[0] if len(names) == 1 else f"the {len(names)} files that {INDEX} names"
    return (f"Read {files}, as transformers does, and not {', '.join(others[:3])}{more}.",)


def _no_weights(folder: Path, there: set[str]) -> str:
    """Why a folder has no weights to be read, and what to do."""
    stored = sorted(name for name in there if name.endswith(".safetensors"))
    variants = [name for name in stored if VARIANT.fullmatch(name)]
    shards = [name for name in stored if NUMBERED.fullmatch(name)]
    pickles = sorted(name for name in there if name.endswith(PICKLES))
    lacks = f"holds no {SINGLE} and no {INDEX}"
    if variants:
        return (
            f"{folder} {lacks}, only the variant {variants[0]}. Transformers loads it only by name: save it again, "
            f"AutoModelForCausalLM.from_pretrained(folder, variant={variants[0].split('.')[1].split('-')[0]!r})"
            ".save_pretrained(new_folder), or rename it."
        )
    if shards:
        return (
            f"{folder} {lacks}, which says what belongs together, only {len(shards)} numbered shards such as "
            f"{shards[0]}. Fetch {INDEX} too, or write it."
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
    return f"{folder} {lacks}: it is not a checkpoint of safetensors."


def _weight_map(index: Path) -> dict[str, str]:
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' of tensor names to files.")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.\-]{1,200}\.safetensors", name, re.ASCII):
            raise CheckpointError(
                f"{index} sends tensor '{tensor}' to {name!r}: only a .safetensors file of the same folder is read."
            )
    return weight_map


def _agree(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    found = {name: info.path.name for name, info in tensors.items() if info.path is not None}
    for name in sorted(weight_map.keys() | found.keys()):
        if weight_map.get(name) != found.get(name):
            raise CheckpointError(
                f"{index} and the shards disagree on tensor '{name}': the index says "
                f"{weight_map.get(name, 'nothing')}, the shards say {found.get(name, 'nothing')}."
            )


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of one safetensors file, checked as strictly as the reference implementation does.

    Raises:
        CheckpointError: truncated, oversized, malformed, overlapping or out-of-range.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(LARGEST_JSON, size - 8):
            raise CheckpointError(
                f"{path} is not a whole safetensors file: its header claims {length:,} bytes, the file has {size:,}."
            )
        text = file.read(length)
    try:
        header = parse_json(text)
        _check_metadata(header.get("__metadata__", {}))
        entries = sorted(
            (_entry(name, fields) for name, fields in header.items() if name != "__metadata__"),
            key=lambda entry: entry[3],
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} has a malformed header: {error}.") from None
    return _contiguous(path, entries, 8 + length, size)


def _check_metadata(metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is no object of texts")


def _entry(name: str, fields: dict[str, Any]) -> tuple[str, str, tuple[int, ...], int, int]:
    dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
    if set(fields) != {"dtype", "shape", "data_offsets"} or dtype not in ITEM_SIZE:
        raise ValueError(f"tensor '{name}' has an unknown field or the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"tensor '{name}' has a shape that is no list of at most {MOST_DIMENSIONS} sizes")
    numbers = [*shape, begin, end]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise ValueError(f"tensor '{name}' has a size or offset that is no natural number: {numbers}")
    return name, dtype, tuple(shape), begin, end


def _contiguous(
    path: Path, entries: Iterable[tuple[str, str, tuple[int, ...], int, int]], data: int, size: int
) -> list[TensorInfo]:
    at, tensors = 0, []
    for name, dtype, shape, begin, end in entries:
        info = TensorInfo(name, dtype, shape, path, data + begin)
        if begin != at or end - begin != info.bytes:
            raise CheckpointError(
                f"{path}: tensor '{name}' {list(shape)} {dtype} needs {info.bytes:,} bytes from offset {at:,}; "
                f"the header gives {begin:,} to {end:,}."
            )
        at = end
        tensors.append(info)
    if data + at != size:
        raise CheckpointError(
            f"{path} is truncated or has foreign bytes: its header describes {data + at:,} bytes, it has {size:,}."
        )
    return tensors


# ------------------------------------------------- writing


def header_bytes(tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The header of a file of (name, dtype, shape), in this order, byte for byte as `save_file` writes it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, dtype, shape in tensors:
        end = at + ITEM_SIZE[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def layout(path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, list[TensorInfo]]:
    """The header of a file and the places of its tensors, in the reference order: largest type first, then name."""
    ordered = sorted(tensors, key=lambda tensor: (-_RANK[tensor[1]], tensor[0]))
    header = header_bytes(ordered)
    at, places = len(header), []
    for name, dtype, shape in ordered:
        places.append(TensorInfo(name, dtype, shape, path, at))
        at += places[-1].bytes
    return header, places


def shards(tensors: Sequence[tuple[str, str, tuple[int, ...]]], largest: int | None) -> dict[str, list[int]]:
    """File names and the positions of the tensors that each holds; no file above `largest` bytes.

    A tensor above the limit has a file of its own. Without a limit there is one file.
    """
    groups: list[list[int]] = [[]]
    filled = 0
    for position, (_, dtype, shape) in enumerate(tensors):
        size = ITEM_SIZE[dtype] * math.prod(shape)
        if largest is not None and groups[-1] and filled + size > largest:
            groups.append([])
            filled = 0
        groups[-1].append(position)
        filled += size
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    return {f"model-{n:05d}-of-{len(groups):05d}.safetensors": group for n, group in enumerate(groups, 1)}


def refuse_output(output: Path, needed: int) -> None:
    """Raises CheckpointError where `output` exists or its file system has less than `needed` bytes free."""
    if output.exists() or output.is_symlink():
        raise CheckpointError(f"{output} exists already. Choose another --output, or remove it first.")
    home = next(parent for parent in output.absolute().parents if parent.exists())
    if not home.is_dir():
        raise CheckpointError(f"{output} cannot be made: {home}: Not a directory. Choose another --output.")
    if not os.access(home, os.W_OK):
        raise CheckpointError(f"{home} is not writable, so {output} cannot be made.")
    free = shutil.disk_usage(home).free
    if free < needed:
        raise CheckpointError(
            f"{output} needs {needed / 1e9:.2f} GB and {home} has {free / 1e9:.2f} GB free. "
            "Free some, or choose a smaller --dtype."
        )
