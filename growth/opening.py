"""A checkpoint folder of either format, under the names that files have for its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from growth.architectures import FAMILIES, architecture
from growth.checkpoint import Checkpoint, TensorInfo
from growth.dcp import is_dcp, open_folder, piece
from growth.stacks import stack


def open_checkpoint(folder: Path) -> Checkpoint:
    """Opens a folder of safetensors or of torch.distributed.checkpoint; nothing but headers is read.

    The latter holds a model's parameters. Where these are not what files hold (a mixture's class keeps its experts
    in one tensor), each is found within them as transformers lays it there, for which alone torch is needed.

    Raises:
        CheckpointError: what is there is no checkpoint, or broken, or hostile.
        ConfigError: a config that the family cannot have.
    """
    found = open_folder(folder)
    if not is_dcp(folder) or str(found.config.get("model_type")) not in FAMILIES:
        return found
    shapes = architecture(found.config).named_as_in(found.tensors).shapes()
    if shapes.keys() <= found.tensors.keys():
        return found
    from growth.streaming import stock_config, stored_as

    tensors = dict(found.tensors)
    for entry, parts in stored_as(
        stock_config(folder), [TensorInfo(name, "F32", shape) for name, shape in shapes.items()]
    ).items():
        names = [part.name for part in parts]
        whole, offsets = stack(names, parts[0].shape)
        if entry not in found.tensors or found.tensors[entry].shape != whole:
            continue  # it is missed under the names that files have
        stored = tensors.pop(entry)
        if len(parts) == 1:
            tensors[names[0]] = replace(stored, name=names[0])
        else:
            tensors |= {
                part.name: piece(stored, part.name, at, part.shape) for part, at in zip(parts, offsets, strict=True)
            }
    return replace(found, tensors=tensors)
