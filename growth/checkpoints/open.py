"""A checkpoint folder of either format, under the names that files have for its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.dcp import cuts, is_dcp, unstacked
from growth.checkpoints.expert_stacks import offsets
from growth.checkpoints.published import check_repeated, open_published
from growth.checkpoints.safetensors import Checkpoint
from growth.errors import CheckpointError

LARGEST_CUTS = 1 << 19  # pieces of experts: of 60 layers of 256, each cut in two by eight ranks


def open_checkpoint(folder: Path, *, headers_only: bool = False) -> Checkpoint:
    """Opens a folder of safetensors or of torch.distributed.checkpoint, from its headers.

    A tied head that is stored a second time is compared with the embedding, unless `headers_only`.

    The latter holds a model's parameters. Where these are not what files hold (a mixture's class keeps its experts
    in one tensor), each is found within them as transformers lays it there, for which alone torch is needed.

    Raises:
        CheckpointError: what is there is no checkpoint, or broken, or hostile.
        ConfigError: a config that the family cannot have.
    """
    found = as_in_files(open_published(folder))
    if not headers_only:
        check_repeated(found)
    return found


def as_in_files(found: Checkpoint) -> Checkpoint:
    """An opened checkpoint under the names that files have.

    Raises:
        CheckpointError: experts in too many pieces.
        ConfigError: a config that the family cannot have.
    """
    if not is_dcp(found.folder):
        return found
    from growth.architectures import FAMILIES, architecture

    if str(found.config.get("model_type")) not in FAMILIES:
        return found
    named_so = architecture(found.config).named_as_in(found.tensors)
    shapes = named_so.shapes()
    if shapes.keys() <= found.tensors.keys() or len(found.tensors) < named_so.depth:  # whole, or layers are missing
        return found
    from growth.checkpoints.stock_parameters import stock_config, stored_as

    made = stored_as(stock_config(found.folder), [TensorInfo(name, "F32", shape) for name, shape in shapes.items()])
    held = {entry: found.tensors[entry] for entry, (whole, _) in made.items() if _shape(found, entry) == whole}
    stacks = {entry: stored for entry, stored in held.items() if made[entry][1][0].shape != stored.shape}
    pieces = sum(cuts(stored, made[entry][1][0].shape[0]) for entry, stored in stacks.items())
    if pieces > LARGEST_CUTS:
        raise CheckpointError(
            f"{found.folder} holds its experts in {pieces:,} pieces; at most {LARGEST_CUTS:,} are read."
        )
    unnamed, named = dict(found.tensors), dict[str, TensorInfo]()
    for entry, stored in held.items():  # one that is not held is missed under the names that files have
        whole, parts = made[entry]
        if parts[0].name in named:
            continue  # the head of a tied model, where it is another tensor: files do not have it
        del unnamed[entry]
        if entry in stacks:
            places = offsets(len(parts), parts[0].shape, whole)
            named |= unstacked(stored, dict(zip(places, parts, strict=True)))
        else:
            named[parts[0].name] = replace(stored, name=parts[0].name)
    return replace(found, tensors=unnamed | named)


def _shape(checkpoint: Checkpoint, name: str) -> tuple[int, ...] | None:
    return checkpoint.tensors[name].shape if name in checkpoint.tensors else None
