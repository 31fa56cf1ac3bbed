"""Files of torch.save: where the bytes of their tensors are; no pickle is run and no value is read.

Such a file is a zip of uncompressed members, among them a pickle of the saved object, in which each tensor names the
member that holds its bytes, its shape and its strides.
"""

from __future__ import annotations

import io
import math
import reprlib
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

from growth.arrays.tensor_info import ITEM_SIZE, TensorInfo
from growth.checkpoints.inert_pickle import InertUnpickler, Record, natural
from growth.errors import CheckpointError

STORAGES = {
    "HalfStorage": "F16", "BFloat16Storage": "BF16", "FloatStorage": "F32", "DoubleStorage": "F64",
    "ByteStorage": "U8",
}  # fmt: skip
KNOWN: Mapping[str, Any] = {  # what replaces each name that a pickle may ask for
    **{f"torch.{name}": code for name, code in STORAGES.items()},
    "torch._utils._rebuild_tensor_v2": Record,
    "collections.OrderedDict": dict,
}
# what a damaged archive raises
UNREADABLE = (OSError, zipfile.BadZipFile, RuntimeError, KeyError, IndexError, ValueError, struct.error)


@dataclass(frozen=True)
class Described:
    """A tensor as a pickle describes it.

    key: the member that holds its storage, of `storage_size` values.
    storage_offset: of its first value, in values.
    """

    key: str
    dtype: str
    storage_size: int
    storage_offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def is_dense(self) -> bool:
        """Whether its values follow one another in row-major order."""
        plain = (math.prod(self.shape[axis + 1 :]) for axis in range(len(self.shape)))
        return all(s == p or size == 1 for s, p, size in zip(self.strides, plain, self.shape, strict=True))


def described(record: Any) -> Described:
    """What a record in place of a tensor says of it.

    Raises:
        ValueError: it is not one of a tensor of a known type.
    """
    saved = record.arguments[:4] if isinstance(record, Record) else ()
    storage = saved[0] if len(saved) == 4 else None
    if not (isinstance(storage, tuple) and len(storage) == 5 and storage[0] == "storage"):
        raise ValueError("it is not what torch.save makes of a tensor of a known type")
    (_, dtype, key, _, count), (at, shape, strides) = storage, saved[1:]
    if dtype not in STORAGES.values():
        raise ValueError(f"it holds {reprlib.repr(dtype)}, which is not a known type")
    count, at = natural((count, at))
    return Described(str(key), dtype, count, at, natural(shape), natural(strides))


class Archive:
    """An open file of torch.save, which may be a range of bytes of another."""

    def __init__(self, path: Path, offset: int = 0, length: int | None = None):
        self._path, self._offset, self._length = path, offset, length

    def __enter__(self) -> Self:
        self._file = self._path.open("rb")
        try:
            length = self._file.seek(0, io.SEEK_END) - self._offset if self._length is None else self._length
            self._end = self._offset + length
            self._zip = zipfile.ZipFile(_Slice(self._file, self._offset, length))
        except BaseException:
            self._file.close()
            raise
        self._root = self._zip.namelist()[0].split("/")[0]
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()
        self._file.close()

    def content(self, where: str, largest: int) -> Any:
        """The saved object, with a record in place of each tensor.

        where: for messages. largest: bytes that the pickle may have.

        Raises:
            UNREADABLE: the archive is damaged, or of a big-endian machine.
            CheckpointError: the pickle needs other classes than tensors do.
        """
        found = InertUnpickler(self._small(f"{self._root}/data.pkl", largest), where, KNOWN).load()
        if (
            f"{self._root}/byteorder" in self._zip.namelist()
            and self._small(f"{self._root}/byteorder", 10) != b"little"
        ):
            raise ValueError("it was saved on a big-endian machine, and must be saved on a little-endian one")
        return found

    def located(self, tensor: Described, name: str) -> TensorInfo:
        """Where the bytes of a dense tensor are.

        Raises:
            UNREADABLE: they are compressed, or fewer than the pickle says.
        """
        member = self._zip.getinfo(f"{self._root}/data/{tensor.key}")
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError("it is compressed")
        item, count = ITEM_SIZE[tensor.dtype], math.prod(tensor.shape)
        inside = tensor.storage_offset + count <= tensor.storage_size
        if member.file_size != item * tensor.storage_size or not inside:
            raise ValueError(f"it has {member.file_size:,} bytes where its pickle says {tensor.storage_size:,} values")
        self._file.seek(self._offset + member.header_offset + 26)  # of the lengths of a name and extra fields
        begin = self._offset + member.header_offset + 30 + sum(struct.unpack("<HH", self._file.read(4)))
        begin += item * tensor.storage_offset
        if begin + item * count > self._end:
            raise ValueError("its bytes lie outside its archive")
        return TensorInfo(name, tensor.dtype, tensor.shape, self._path, begin)

    def _small(self, name: str, largest: int) -> bytes:
        """The content of a small, uncompressed member.

        Raises:
            ValueError: it is compressed or large.
        """
        member = self._zip.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED or member.file_size > largest:
            raise ValueError(f"{reprlib.repr(name)} is compressed, or has more than {largest:,} bytes")
        return self._zip.read(member)


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


def read_saved(path: Path, largest: int) -> Any:
    """The object that torch.save wrote to a file, with a `TensorInfo` in place of each tensor.

    largest: bytes that the pickle may have.

    Raises:
        CheckpointError: the file is damaged, or holds more than tensors and plain values.
    """
    try:
        with Archive(path) as archive:
            return _with_infos(archive, archive.content(str(path), largest), "")
    except CheckpointError:
        raise
    except UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Save it again.") from None


def _with_infos(archive: Archive, value: Any, name: str) -> Any:
    """Plain values with a located tensor in place of each record; names are those of the keys on the way to it."""
    if isinstance(value, Record):
        tensor = described(value)
        if not tensor.is_dense:
            raise ValueError(f"the tensor '{name}' is not contiguous")
        return archive.located(tensor, name)
    if isinstance(value, dict):
        return {key: _with_infos(archive, item, f"{name}.{key}" if name else str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_infos(archive, item, f"{name}.{n}") for n, item in enumerate(value))
    return value
