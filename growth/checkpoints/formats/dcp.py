"""Folders of torch.distributed.checkpoint: the bytes of their tensors are located, and no pickle is run.

Such a folder holds a pickle, `.metadata`, which says where each chunk of each tensor is, and `*.distcp` files of
chunks. A chunk is what `torch.save` makes of a tensor: a zip of uncompressed members, among them a pickle of the shape
and strides, and the bytes. Both kinds of pickle are read with an unpickler that replaces the few classes that such
files need by inert records and refuses all others by name. The bytes are then read in place, as those of safetensors.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import reprlib
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, ClassVar

import numpy as np

from growth.arrays.tensor_info import DTYPES, FLOATS, TensorInfo
from growth.checkpoints.checkpoint import SourceFormat
from growth.checkpoints.chunks import Chunk, joined
from growth.checkpoints.untrusted import LARGEST_JSON, read_file
from growth.errors import CheckpointError

METADATA = ".metadata"
WRITTEN = ("__0_0.distcp", METADATA)  # the files that a single process writes
LARGEST_PICKLE = 1 << 20  # bytes of the pickle of one chunk, which has some hundred
LARGEST_TUPLE = 1000  # values in a tuple and the tuples within it; shapes and storages have about ten
TYPES = (  # of torch, that metadata may name; the first four can grow
    "float16", "bfloat16", "float32", "float64",
    "bool", "uint8", "int8", "int16", "int32", "int64", "float8_e5m2", "float8_e4m3fn",
)  # fmt: skip
STORAGES = {"HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32", "DoubleStorage": "F64"}
LARGEST_CHUNKS = 1 << 14  # of one tensor, one per rank


class DistributedCheckpoint(SourceFormat):
    """A folder that `torch.distributed.checkpoint.save` wrote, with a config.json."""

    title = f"torch.distributed.checkpoint ({METADATA})"
    stock_names = True

    def recognises(self, folder: Path) -> bool:
        """Whether the metadata file exists."""
        return (folder / METADATA).is_file()

    def headers(self, folder: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
        """Read the metadata and the pickle of every chunk.

        The folder must hold a model's state dict: names are those of parameters, with a tied head under its own.

        Raises:
            CheckpointError: a pickle names a class that such folders do not need; chunks are missing, truncated,
                overlapping or not contiguous; a value is not a tensor.
        """
        path = folder / METADATA
        try:
            found = _InertUnpickler(read_file(path, LARGEST_JSON), str(path), IN_METADATA).load()
            described, places = found.state["state_dict_metadata"], found.state["storage_data"].items()
            stored = {(key.state["fqn"], tuple(key.state.get("offset") or ())): place.state for key, place in places}
            if any(not isinstance(name, str) for name in described):
                raise ValueError("the name of a tensor is not a string")
            return {name: _tensor(folder, name, entry.state, stored) for name, entry in described.items()}, ()
        except CheckpointError:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not metadata of torch.distributed.checkpoint: {error!r}. Save the checkpoint again."
            ) from None


# ------------------------------------------------- pickles, read without running anything


class _Record:
    """An inert object in place of one that a pickle describes: it keeps the arguments and the state."""

    arguments: tuple[Any, ...] = ()
    state: Any = MappingProxyType({})

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _natural(values: Any) -> tuple[int, ...]:
    """Values as a tuple of natural numbers.

    Raises:
        ValueError: they are anything else.
    """
    if not isinstance(values, tuple | list) or any(type(n) is not int or not 0 <= n < 2**63 for n in values):
        raise ValueError(f"{reprlib.repr(values)} are not natural numbers")  # their full repr may be endless
    return tuple(values)


class _InertUnpickler(pickle._Unpickler):
    """An unpickler that replaces the names in `known` by inert objects and refuses all others.

    It is the one in Python: that in C allocates any memo index that a pickle names. The total size of nested tuples is
    bounded, because those that repeat each other take exponential time to hash.
    """

    stack: list[Any]  # of the base class
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes, where: str, known: Mapping[str, Any]):
        super().__init__(io.BytesIO(content))
        self._where, self._known = where, known
        self._sizes: dict[int, tuple[int, Any]] = {}  # by id, with the tuple, whose id then stays its own

    def load_tuple_of(self, load: Callable[[Any], None]) -> None:
        """Load a tuple, by the base class's function for an opcode, and bound its size."""
        load(self)
        made = self.stack[-1]
        size = 1 + sum(self._sizes.get(id(item), (1, None))[0] for item in made)
        if size > LARGEST_TUPLE:
            raise ValueError(f"a tuple holds more than {LARGEST_TUPLE:,} values")
        self._sizes[id(made)] = size, made

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self._known:
            raise CheckpointError(
                f"{self._where} asks for {module}.{name}, which no checkpoint of tensors needs. Pickles can run code: "
                "nothing of this one was run. Save the model's state dict by itself."
            )
        return self._known[f"{module}.{name}"]

    def persistent_load(self, saved: Any) -> Any:
        return saved

    def load(self) -> Any:
        try:
            return super().load()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle raises almost anything
            raise CheckpointError(f"{self._where} cannot be read: {error!r}.") from None


for (_code,) in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _InertUnpickler.dispatch[_code] = partial(_InertUnpickler.load_tuple_of, load=_InertUnpickler.dispatch[_code])

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
    **dict.fromkeys(_INERT, _Record),
    **{f"torch.{name}": DTYPES.get(name, name) for name in TYPES},
    "torch.Size": _natural,
    "collections.OrderedDict": dict,
}
IN_CHUNK: Mapping[str, Any] = {
    **{f"torch.{name}": code for name, code in STORAGES.items()},
    "torch._utils._rebuild_tensor_v2": _Record,
    "collections.OrderedDict": dict,
}


# ------------------------------------------------- where the bytes are


def _tensor(
    folder: Path, name: str, entry: Mapping[str, Any], stored: Mapping[tuple[str, tuple[int, ...]], Any]
) -> TensorInfo:
    if entry.get("size") is None:
        raise CheckpointError(
            f"{folder}: '{name}' is not a tensor. Only a model's state dict can grow: save it by itself, "
            "dcp.save(model.state_dict(), checkpoint_id=folder)."
        )
    dtype, shape = entry["properties"].state[0], _natural(entry["size"])
    if dtype not in FLOATS:
        raise CheckpointError(
            f"{folder}: tensor '{name}' holds {dtype}, and only floats of 16 to 64 bits can grow. Leave it out."
        )
    chunks = []
    for box in entry["chunks"]:
        offsets, sizes = _natural(box.state["offsets"]), _natural(box.state["sizes"])
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
    relative, (offset, length) = place["relative_path"], _natural((place["offset"], place["length"]))
    if not isinstance(relative, str) or not re.fullmatch(r"\w[\w.\-]{,200}\.distcp", relative):
        raise CheckpointError(
            f"{folder}: {METADATA} places tensor '{name}' in {reprlib.repr(relative)}, and only .distcp files of the "
            "same folder are read."
        )
    if place.get("transform_descriptors"):
        raise CheckpointError(f"{folder}: tensor '{name}' is compressed. Save it without transform extensions.")
    path = folder / relative
    try:
        with path.open("rb") as file, zipfile.ZipFile(_Slice(file, offset, length)) as archive:
            info = TensorInfo(name, dtype, sizes, path, offset)
            member = _member(archive, info)
            file.seek(offset + member.header_offset + 26)  # of a local header: the lengths of a name and extra fields
            begin = offset + member.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        if begin + info.bytes > offset + length:
            raise ValueError("its bytes lie outside its archive")
    except CheckpointError:
        raise
    except (OSError, zipfile.BadZipFile, RuntimeError, KeyError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: tensor '{name}' cannot be read: {error}. Save the checkpoint again.") from None
    return replace(info, begin=begin)


def _member(archive: zipfile.ZipFile, info: TensorInfo) -> zipfile.ZipInfo:
    """The member of an archive that holds the bytes of a saved tensor.

    Raises:
        ValueError: the archive is damaged, or not one of a tensor.
        CheckpointError: the tensor is another one than `info` describes, or is not contiguous.
    """
    root = archive.namelist()[0].split("/")[0]
    where = f"{info.path}, tensor '{info.name}'"
    record = _InertUnpickler(_small(archive, f"{root}/data.pkl"), where, IN_CHUNK).load()
    saved = record.arguments[:4] if isinstance(record, _Record) else ()
    if not (len(saved) == 4 and isinstance(saved[0], tuple) and len(saved[0]) == 5 and saved[0][1] in FLOATS):
        raise ValueError("it is not what torch.save makes of a tensor of a known type")
    if f"{root}/byteorder" in archive.namelist() and _small(archive, f"{root}/byteorder") != b"little":
        raise ValueError("it was saved on a big-endian machine, and must be saved on a little-endian one")
    (kind, dtype, key, _, count), at, shape, strides = saved
    shape, strides = _natural(shape), _natural(strides)
    plain = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    dense = all(stride == p or size == 1 for stride, p, size in zip(strides, plain, shape, strict=True))
    expected = "storage", info.dtype, info.shape, 0, math.prod(info.shape)
    if (kind, dtype, shape, at, count) != expected or not dense:
        raise CheckpointError(
            f"{info.path}: tensor '{info.name}' is stored as {dtype} {list(shape)} with strides {list(strides)}; "
            f"{METADATA} says {info.dtype} {list(info.shape)}, and only contiguous tensors are read. Save contiguous "
            "tensors."
        )
    member = archive.getinfo(f"{root}/data/{key}")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    if member.file_size != info.bytes:
        raise ValueError(f"it has {member.file_size:,} bytes where its pickle says {count:,} values")
    return member


def _small(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of a small, uncompressed member.

    Raises:
        ValueError: it is compressed or large.
    """
    member = archive.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED or member.file_size > LARGEST_PICKLE:
        raise ValueError(f"{reprlib.repr(name)} is compressed, or has more than {LARGEST_PICKLE:,} bytes")
    return archive.read(member)


class _Slice(io.RawIOBase):
    """A range of a file's bytes as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int):
        size = file.seek(0, io.SEEK_END)
        if offset + length > size:
            raise ValueError(f"it is truncated: {offset + length:,} bytes are needed and it has {size:,}")
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._length)[whence])
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._offset + self._at)
        found = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(found)
        return found
