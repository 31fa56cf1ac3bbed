"""Grow a model while torch.distributed.checkpoint loads it, without a grown checkpoint on disk.

A `GrowReader` presents the grown model to `torch.distributed.checkpoint.load`. The engine asks each rank for the boxes
(offsets and sizes) of parameters that the rank's shards need. Only these are grown, from the rows and columns of the
source that they copy. Every value equals, bit for bit, what `growth.grow` writes.

Some boxes require statistics of a whole source tensor (the size of random values, means over rows). The ranks measure
them in equal shares beforehand, and exchange them with the engine's load plans.
"""

from __future__ import annotations

import io
import warnings  # noqa: F401 (the example)
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp  # noqa: F401 (the example)
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future
from transformers import PreTrainedModel

from growth.arrays.casting import Array
from growth.arrays.torch_interop import as_tensor
from growth.checkpoints.stock_parameters import auto_class, class_config
from growth.checkpoints.tensor_reader import Files
from growth.distributed.column_means import has_column_means, joined, measure_rows
from growth.distributed.optimizer_parameters import UnknownGroup, moment_parameters, plain_entries, refuse_negative
from growth.distributed.parameter_boxes import (
    Box,
    BoxSource,
    Parameter,
    grow_box,
    is_measured,
    parameters,
    reads_whole_rows,
)
from growth.engine.grow_tensor import Statistics, measure
from growth.errors import OptimizerError
from growth.output.contents import with_dtype
from growth.planning.prepare import planned
from growth.planning.recipe import RecipeLike
from growth.planning.tensor_map import TensorMap
from growth.runtime.balance import even_shares
from growth.training.moments import Fresh
from growth.training.stored_state import grown_state


@dataclass(frozen=True)
class Measured:
    """What ranks measured of whole source tensors, by the name of the grown tensor.

    Attributes:
        statistics: as the engine needs them.
        means: along columns, of ranges of rows.
    """

    statistics: dict[str, Statistics] = field(default_factory=dict)
    means: dict[str, list[tuple[int, Array]]] = field(default_factory=dict)

    def add(self, other: Measured) -> None:
        """Add what another rank measured."""
        self.statistics.update(other.statistics)
        for name, found in other.means.items():
            self.means.setdefault(name, []).extend(found)

    def means_of(self, tensor_map: TensorMap) -> Array | None:
        """The means along columns of all rows of a tensor's source; None if not all are known."""
        return joined(self.means.get(tensor_map.target, ()), tensor_map.source.shape[0] if tensor_map.shape else 0)


class GrowReader(StorageReader):
    """A storage reader whose checkpoint is the grown model: `dcp.load(state_dict, storage_reader=reader)`.

    The state dict is that of the grown model's stock class, sharded in any way (FSDP2, tensor parallel).

    Args:
        source: a checkpoint folder or a hub id; None for the recipe's.
        recipe: as for `growth.grow`.
        dtype: of the values; by default the source's. Parameters of another type are filled by conversion, so pass
            "float32" where parameters are float32 and the source is not: values are then rounded once.
        seed: the random seed; by default the recipe's.
        dequantize: as for `growth.grow`.
        optimizer: the stored state of the source's optimizer, to grow that too: a file that torch.save wrote (the
            Trainer's optimizer.pt), or a folder of torch.distributed.checkpoint. `dcp.load` then accepts the names of
            `torch.distributed.checkpoint.state_dict.get_optimizer_state_dict` too.
        fresh: as for `growth.grow_optimizer`. With "zero" and "reset", the entries of new layers are zero, at step 0.

    Attributes:
        plan: what `growth.plan` returns.
        config: the config of the grown model, with its dtype;
            `growth.distributed.grow_reader.empty_model(reader.config)` builds the model without allocating its weights.
        bytes_read: bytes that this rank has read from the source.

    Raises:
        GrowthError: the recipe cannot be applied.

    >>> reader = GrowReader("examples/phi-mini", "phi-mini", dtype="float32")
    >>> model = materialise(empty_model(reader.config), "cpu")
    >>> state = model.state_dict()
    >>> with warnings.catch_warnings(action="ignore"):  # of one process
    ...     dcp.load(state, storage_reader=reader)
    >>> model.lm_head.weight.shape
    torch.Size([2048, 160])
    """

    def __init__(
        self,
        source: str | Path | None,
        recipe: RecipeLike,
        *,
        dtype: str | None = None,
        seed: int | None = None,
        dequantize: bool = False,
        optimizer: str | Path | None = None,
        fresh: Fresh = "mean",
    ):
        self.plan, _, _ = planned(recipe, source, dtype, seed, dequantize=dequantize)
        self.config = with_dtype(self.plan.config, {tensor_map.dtype for tensor_map in self.plan.tensors})
        self.bytes_read = 0
        self._parameters = parameters(self.plan)
        self._values: dict[str, Any] = {}
        self._moments: dict[str, str] = {}  # which moment a tensor is, by its name
        self._unsigned: frozenset[str] = frozenset()
        self._optimizer = optimizer
        if optimizer is not None:
            state = grown_state(Path(optimizer), self.plan, fresh)
            self._values = plain_entries(self._parameters, state)
            moments = moment_parameters(self._parameters, state)
            self._moments = {
                t.target: name.rpartition(".")[2] for name, one in moments.items() for t in one.tensors.values()
            }
            self._unsigned = state.unsigned
            self._parameters |= moments
        entries = self._parameters.values()
        self._tensors = {tensor_map.target: tensor_map for entry in entries for tensor_map in entry.tensors.values()}
        self._sources = {
            target: tensor_map.source
            for target, tensor_map in self._tensors.items()
            if tensor_map.source.path is not None
        }

    def reset(self, checkpoint_id: Any = None) -> None:
        """Begin a load; a checkpoint id has no meaning for this reader."""
        self.bytes_read = 0

    def read_metadata(self) -> Metadata:
        """The grown model's parameters as metadata of a checkpoint."""
        tensors = {name: _described(parameter) for name, parameter in self._parameters.items()}
        return Metadata({**tensors, **{name: _described_value(value) for name, value in self._values.items()}})

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool) -> None:
        """Do nothing: the source was opened with the reader."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Compute this rank's part of the statistics that need whole source tensors (means and standard deviations)."""
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        measured = Measured()
        self._refuse_unknown_groups(plan)
        boxes = [self._box(item) for item in plan.items if item.storage_index.fqn in self._parameters]
        moments = {
            self._moments.get(tensor_map.target) for tensor_map, _ in boxes
        }  # the same on all ranks, unlike boxes
        wide = [t for name, t in self._tensors.items() if is_measured(t) and self._moments.get(name) in moments]
        own = even_shares(wide, lambda tensor_map: tensor_map.source.bytes, ranks)[rank]
        source = BoxSource(Files(self._sources))
        for tensor_map in own:
            measured.statistics[tensor_map.target] = measure(tensor_map, source)
        for tensor_map, box in boxes:
            if has_column_means(tensor_map) and not reads_whole_rows(tensor_map, box, means_given=True):
                rows = tensor_map.source.shape[0]
                start, stop = (rows * n // ranks for n in (rank, rank + 1))
                measured.means[tensor_map.target] = [(start, measure_rows(tensor_map, source, start, stop))]
        self.bytes_read += source.bytes_read
        return replace(plan, storage_data=measured)

    def _refuse_unknown_groups(self, plan: LoadPlan) -> None:
        """Refuse to load more groups than a flattened state has of different options."""
        if any(isinstance(self._values.get(item.storage_index.fqn), UnknownGroup) for item in plan.items):
            raise OptimizerError(
                f"{self._optimizer} was saved with flatten_optimizer_state_dict, which does not say which parameters "
                "with equal options are in one group, and the optimizer that it is loaded into has several such groups."
                " Load it with StateDictOptions(flatten_optimizer_state_dict=True), too."
            )

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Give every rank the statistics that all ranks measured."""
        measured = Measured()
        for plan in plans:
            measured.add(plan.storage_data)
        return [replace(plan, storage_data=measured) for plan in plans]

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Grow every block of values that this rank requests.

        Raises:
            CheckpointError: values are not finite, or the source was changed while it was read.
        """
        files = Files(self._sources)
        for item in plan.items:
            if item.type is LoadItemType.BYTE_IO:
                planner.load_bytes(item, _saved(self._values[item.storage_index.fqn]))
                continue
            target = planner.resolve_tensor(item).detach()
            if item.storage_index.fqn in self._values:
                target.copy_(self._values[item.storage_index.fqn])
            else:
                self._fill(target, *self._box(item), files, plan.storage_data)
            planner.commit_tensor(item, target)
        files.check_unchanged()
        future: Future[None] = Future()
        future.set_result(None)
        return future

    def _fill(self, target: Tensor, tensor_map: TensorMap, box: Box, files: Files, measured: Measured) -> None:
        """Grow a box into a tensor."""
        means = measured.means_of(tensor_map)
        source = BoxSource(files, tensor_map, box, means_given=means is not None)
        statistics = measured.statistics.get(tensor_map.target) or measure(tensor_map, BoxSource(files))
        place = target[(0,) * (target.ndim - len(box[0]))]
        for start, values in grow_box(tensor_map, source, statistics, self.plan.seed, box, means):
            block = as_tensor(values, tensor_map.dtype)
            if self._moments.get(tensor_map.target) in self._unsigned:
                refuse_negative(tensor_map, block)
            place[start : start + len(values)].copy_(block)
        self.bytes_read += source.bytes_read

    def _box(self, item: ReadItem) -> tuple[TensorMap, Box]:
        """The tensor of the plan from which a block of values is requested, and the block's box in it."""
        tensor_map = self._parameters[item.storage_index.fqn].tensors[tuple(item.storage_index.offset or ())]
        drop = len(item.lengths) - len(tensor_map.shape)  # a tensor of a stack lacks its first dimension
        return tensor_map, (tuple(item.storage_offsets)[drop:], tuple(item.lengths)[drop:])

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        """Return False: a reader is made for one source."""
        return False


def _described_value(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    """A step count or an option of a group as the engine describes it."""
    if not isinstance(value, Tensor):
        return BytesStorageMetadata()
    whole = ChunkStorageMetadata(torch.Size([0] * value.ndim), value.shape)
    return TensorStorageMetadata(TensorProperties(dtype=value.dtype), value.shape, [whole])


def _saved(value: Any) -> io.BytesIO:
    """A value as the engine stores it."""
    torch.save(value, stream := io.BytesIO())
    stream.seek(0)
    return stream


def _described(parameter: Parameter) -> TensorStorageMetadata:
    """A parameter as the engine describes it, with one chunk for each tensor of the plan."""
    boxes = [
        ChunkStorageMetadata(torch.Size(offsets), torch.Size(parameter.sizes(offsets))) for offsets in parameter.tensors
    ]
    return TensorStorageMetadata(TensorProperties(dtype=parameter.dtype), torch.Size(parameter.shape), boxes)


# ------------------------------------------------- models to load into


def empty_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """The stock model of a config, with parameters on the meta device in the config's dtype, and real buffers."""
    stock = class_config(config)
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class(stock).from_config(stock, dtype=stock.dtype, trust_remote_code=False)
    return model


def materialise(model: nn.Module, device: torch.device | str) -> Any:
    """Give an empty model (sharded or not) memory on a device, and return it.

    Buffers, such as rotary frequencies, keep their values, and tied parameters stay tied; `to_empty` alone loses both.
    """
    buffers = dict(model.named_buffers())
    model.to_empty(device=device)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if isinstance(model, PreTrainedModel):
        model.tie_weights()
    return model
