"""Folders of torch.distributed.checkpoint: the bytes of their tensors are located, and no pickle is run.

Such a folder holds a pickle, `.metadata`, which says where each chunk of each tensor is, and `*.distcp` files of
chunks. A chunk is what `torch.save` makes of a tensor: a zip of uncompressed members, among them a pickle of the shape
and strides, and the bytes. Both kinds of pickle are read with an unpickler that replaces the few classes that such
files need by inert records and refuses all others by name. The bytes are then read in place, as those of safetensors.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from growth.arrays.tensor_info import DTYPES, FLOATS, TensorInfo
from growth.checkpoints.checkpoint import SourceFormat
from growth.checkpoints.chunks import Chunk, joined
from growth.checkpoints.inert_pickle import InertUnpickler, Record, natural
from growth.checkpoints.torch_archive import UNREADABLE, Archive, described
from growth.checkpoints.untrusted import LARGEST_JSON, check_folder, read_file
from growth.errors import CheckpointError, GrowthError

METADATA = ".metadata"
RUN_MODEL, RUN_OPTIMIZER = "pytorch_model_fsdp_0", "optimizer_0"  # folders of a run that accelerate shards by FSDP
PREFIX = "model."  # of names in the first of them
WRITTEN = ("__0_0.distcp", METADATA)  # the files that a single process writes
LARGEST_PICKLE = 1 << 20  # bytes of the pickle of one chunk, which has some hundred
TYPES = (  # of torch, that metadata may name; the first four can grow
    "float16", "bfloat16", "float32", "float64",
    "bool", "uint8", "int8", "int16", "int32", "int64", "float8_e5m2", "float8_e4m3fn",
)  # fmt: skip
LARGEST_CHUNKS = 1 << 14  # of one tensor, one per rank


class DistributedCheckpoint(SourceFormat):
    """A folder that `torch.distributed.checkpoint.save` wrote, with a config.json; or a run's that accelerate saved."""

    title = f"torch.distributed.checkpoint ({METADATA})"
    stock_names = True

    def recognises(self, folder: Path) -> bool:
        """Whether the metadata file exists."""
        return any((folder / home / METADATA).is_file() for home in ("", RUN_MODEL))

    def headers(self, folder: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
        """Read the metadata and the pickle of every chunk.

        The folder must hold a model's state dict: names are those of parameters, with a tied head under its own.

        Raises:
            CheckpointError: a pickle names a class that such folders do not need; chunks are missing, truncated,
                overlapping or not contiguous; a value is not a tensor.
        """
        if (folder / METADATA).is_file():
            return {name: _as_weight(folder, name, value) for name, value in entries(folder).items()}, ()
        check_folder(folder / RUN_MODEL, home=folder)
        found = {name.removeprefix(PREFIX): value for name, value in entries(folder / RUN_MODEL).items()}
        weights = {name: _as_weight(folder / RUN_MODEL, name, value) for name, value in found.items()}
        return {name: replace(info, name=name) for name, info in weights.items()}, ()


def entries(folder: Path, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """The entries of a folder by name: a `TensorInfo` for each tensor, and other objects as their values.

    wanted: the names of the entries that are read.

    Raises:
        CheckpointError: a pickle names a class that such folders do not need; chunks are missing, truncated,
            overlapping or not contiguous.
    """
    path = folder / METADATA
    try:
        found = InertUnpickler(read_file(path, LARGEST_JSON), str(path), IN_METADATA).load()
        listed, places = found.state["state_dict_metadata"], found.state["storage_data"].items()
        stored = {(key.state["fqn"], tuple(key.state.get("offset") or ())): place.state for key, place in places}
        if any(not isinstance(name, str) for name in listed):
            raise ValueError("the name of a tensor is not a string")
        return {name: _entry(folder, name, entry.state, stored) for name, entry in listed.items() if wanted(name)}
    except GrowthError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{path} is not metadata of torch.distributed.checkpoint: {error!r}. Save the checkpoint again."
        ) from None


def _as_weight(folder: Path, name: str, value: Any) -> TensorInfo:
    if not isinstance(value, TensorInfo):
        raise CheckpointError(
            f"{folder}: '{name}' is not a tensor. Only a model's state dict can grow: save it by itself, "
            "dcp.save(model.state_dict(), checkpoint_id=folder)."
        )
    return value


_ENGINE = "torch.distributed.checkpoint"
_METADATA_CLASSES = (
    "Metadata TensorStorageMetadata BytesStorageMetadata TensorProperties ChunkStorageMetadata MetadataIndex "
    "StorageMeta _MEM_FORMAT_ENCODING"
)
_INERT = (
    *(f"{_ENGINE}.metadata.{name}" for name in _METADATA_CLASSES.split()),
    f"{_ENGINE}.filesystem._StorageInfo", "torch.serialization._get_layout",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath",
)  # fmt: skip
IN_METADATA: Mapping[str, Any] = {  # what replaces each name that a pickle may ask for
    **dict.fromkeys(_INERT, Record),
    **{f"torch.{name}": DTYPES.get(name, name) for name in TYPES},
    "torch.Size": natural,
    "collections.OrderedDict": dict,
}


# ------------------------------------------------- where the bytes are


def _entry(folder: Path, name: str, entry: Mapping[str, Any], stored: Mapping[tuple[str, tuple[int, ...]], Any]) -> Any:
    if entry.get("size") is None:
        place = stored[name, ()]
        with Archive(_file(folder, name, place), *natural((place["offset"], place["length"]))) as archive:
            return archive.content(f"{folder}, '{name}'", LARGEST_PICKLE)
    dtype, shape = entry["properties"].state[0], natural(entry["size"])
    if dtype not in FLOATS:
        raise CheckpointError(
            f"{folder}: tensor '{name}' holds {dtype}, and only floats of 16 to 64 bits can grow. Leave it out."
        )
    chunks = []
    for box in entry["chunks"]:
        offsets, sizes = natural(box.state["offsets"]), natural(box.state["sizes"])
        place = stored.get((name, offsets)) or stored.get((name, ()))
        if place is None:
            raise CheckpointError(
                f"{folder}: {METADATA} does not say where the chunk of tensor '{name}' at {list(offsets)} is stored. "
                "Save the checkpoint again."
            )
        if 0 not in sizes:  # else a rank without rows
            chunks.append(Chunk(offsets, _chunk(folder, name, dtype, sizes, place)))
    _cover(folder, name, shape, chunks)
    return joined(name, dtype, shape, chunks)


def _cover(folder: Path, name: str, shape: tuple[int, ...], chunks: list[Chunk]) -> None:
    """Check that chunks cover a tensor: they lie inside it, do not overlap, and have its size in total."""
    if len(chunks) > LARGEST_CHUNKS:
        raise CheckpointError(
            f"{folder}: tensor '{name}' is in {len(chunks):,} chunks, and at most {LARGEST_CHUNKS:,} are read. Save it "
            "from fewer processes."
        )
    inside = all(
        len(c.offsets) == len(c.info.shape) == len(shape)
        and all(part.stop <= size for part, size in zip(c.box, shape, strict=True))
        for c in chunks
    )
    whole = sum(math.prod(c.info.shape) for c in chunks) == math.prod(shape)
    if not (whole and inside) or _overlap(chunks):
        raise CheckpointError(
            f"{folder}: the chunks of tensor '{name}' do not make up its shape {list(shape)}. Save it again."
        )


def _overlap(chunks: list[Chunk]) -> bool:
    """Whether any two chunks share an index of the tensor."""
    begin = np.array([c.offsets for c in chunks], np.int64)
    end = begin + np.array([c.info.shape for c in chunks], np.int64)
    return any(bool(((begin[:n] < end[n]) & (begin[n] < end[:n])).all(axis=1).any()) for n in range(1, len(chunks)))


def _chunk(folder: Path, name: str, dtype: str, sizes: tuple[int, ...], place: Any) -> TensorInfo:
    path, (offset, length) = _file(folder, name, place), natural((place["offset"], place["length"]))
    try:
        with Archive(path, offset, length) as archive:
            return _located(archive, TensorInfo(name, dtype, sizes, path, offset))
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"{path}: tensor '{name}' cannot be read: {error}. Save the checkpoint again.") from None


def _file(folder: Path, name: str, place: Any) -> Path:
    """The file of an entry.

    Raises:
        CheckpointError: it is outside the folder, or compressed.
    """
    relative = place["relative_path"]
    if not isinstance(relative, str) or not re.fullmatch(r"\w[\w.\-]{,200}\.distcp", relative):
        raise CheckpointError(
            f"{folder}: {METADATA} places tensor '{name}' in {reprlib.repr(relative)}, and only .distcp files of the "
            "same folder are read."
        )
    if place.get("transform_descriptors"):
        raise CheckpointError(f"{folder}: tensor '{name}' is compressed. Save it without transform extensions.")
    return folder / relative


def _located(archive: Archive, info: TensorInfo) -> TensorInfo:
    """A tensor where its archive holds it.

    Raises:
        UNREADABLE: the archive is damaged, or not one of a tensor.
        CheckpointError: the tensor is another one than `info` describes, or is not contiguous.
    """
    record = archive.content(f"{info.path}, tensor '{info.name}'", LARGEST_PICKLE)
    found = described(record)
    whole = found.storage_offset == 0 and found.storage_size == math.prod(info.shape)
    if (found.dtype, found.shape) != (info.dtype, info.shape) or not (whole and found.is_dense):
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' is stored as {found.dtype} {list(found.shape)} with strides "
            f"{list(found.strides)}; {METADATA} says {info.dtype} {list(info.shape)}, and only contiguous tensors are "
            "read. Save contiguous tensors."
        )
    return archive.located(found, info.name)
