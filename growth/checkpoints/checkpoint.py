"""A checkpoint folder as it was opened, and the formats in which such folders store tensors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.hub import hub_snapshot


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a checkpoint folder by name; only headers have been read.

    Attributes:
        stock_names: as for the format that it was read in (`SourceFormat`).
        notes: sentences for users on how the folder was read: which files and names were chosen or left out.
        dropped: tensors that the folder holds and the model class computes itself.
        repeated: pairs of stored tensors that the model ties, of which only the second is in `tensors`: both must
            hold the same bytes.
        dequantised: the quantization_config of a folder whose tensors are dequantised while they are read.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    stock_names: bool = False
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    repeated: tuple[tuple[TensorInfo, TensorInfo], ...] = ()
    dequantised: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The hub id of a snapshot in the hub's cache, else the folder's name; text that can be encoded."""
        found = hub_snapshot(self.folder)
        return (found[0] if found else self.folder.name).encode(errors="replace").decode()

    @property
    def origin(self) -> dict[str, str]:
        """The source as growth.json identifies it: its name and, for a hub snapshot, the commit."""
        found = hub_snapshot(self.folder)
        return {"name": self.name, **({"commit": found[1]} if found else {})}


class SourceFormat(ABC):
    """A format of checkpoint folders.

    To add one, put a subclass into a module of its own in `growth/checkpoints/formats/`: every command then reads it.
    Tensors must lie in files as plain row-major bytes (`TensorInfo`), or be made of such tensors (`ComposedInfo`).

    Attributes:
        title: what messages call the format's files.
        stock_names: whether tensors have the names and shapes of the stock class's parameters, experts stacked, where
            published files hold a tensor for each expert.
    """

    title: ClassVar[str]
    stock_names: ClassVar[bool] = False

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """Whether a folder holds files of this format."""

    @abstractmethod
    def headers(self, folder: Path) -> tuple[dict[str, TensorInfo], tuple[str, ...]]:
        """The tensors of a folder by the names that it stores, and notes for users on how it was read.

        Raises:
            CheckpointError: the content is missing, damaged or unsafe to read.
        """
