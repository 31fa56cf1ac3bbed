"""Open a checkpoint folder of any format, under the names that published files have for its tensors."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

from growth.architectures import architecture, find_family
from growth.architectures.spelling import current_keys
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints import formats
from growth.checkpoints.checkpoint import Checkpoint, SourceFormat
from growth.checkpoints.companions import companions
from growth.checkpoints.expert_stacks import count_pieces, offsets, unstacked
from growth.checkpoints.formats.dcp import RUN_MODEL
from growth.checkpoints.formats.safetensors import INDEX, SINGLE, Safetensors
from growth.checkpoints.published import as_published, check_repeated
from growth.checkpoints.quantised import as_floats, refuse_gguf
from growth.checkpoints.untrusted import read_config
from growth.errors import CheckpointError, ConfigError

LOG = logging.getLogger(__name__)
ADAPTER = "adapter_config.json"
CONFIG = "config.json"
BARE_CONFIG = re.compile(rf"(?<![\w/]){re.escape(CONFIG)}")  # without its folder, in a message
CHOSEN = "transformers_weights"  # the config key by which transformers is told another file
LARGEST_PIECES = 1 << 19  # of experts: 60 layers of 256, each cut in two by eight ranks, make 245,760


def open_checkpoint(
    folder: Path, *, headers_only: bool = False, dequantize: bool = False, config: Path | None = None
) -> Checkpoint:
    """Open a checkpoint folder from its headers, under the names that published files have.

    A tied head that is stored beside the embedding is compared with it, unless `headers_only`.

    dequantize: whether the folder is quantised in FP8, and is to be dequantised while it is read.
    config: the model's config.json, if the folder has none.

    Raises:
        CheckpointError: the folder is not a checkpoint, is damaged or unsafe to read, or is quantised.
        ConfigError: the family cannot have this config.
    """
    stored = as_floats(open_stored(folder, config), dequantize=dequantize)
    with config_at(config or folder / CONFIG):
        found = with_published_names(stored)
    if not headers_only:
        check_repeated(found)
    return found


@contextmanager
def config_at(path: Path) -> Iterator[None]:
    """Name the file of a config in errors that call it config.json."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(*(BARE_CONFIG.sub(lambda _: str(path), line) for line in error.args)) from None


def as_checkpoint(source: Path | Checkpoint) -> Checkpoint:
    """An opened checkpoint; a folder is opened.

    Raises:
        CheckpointError, ConfigError: as for `open_checkpoint`.
    """
    return source if isinstance(source, Checkpoint) else open_checkpoint(source)


def open_stored(folder: Path, config_file: Path | None = None) -> Checkpoint:
    """Open a checkpoint folder from its headers, under the names that it stores.

    config_file: the model's config.json, by default that of the folder.

    Raises:
        CheckpointError: the folder is not a checkpoint, or is damaged or unsafe to read.
    """
    if not folder.is_dir():
        raise CheckpointError(f"No checkpoint folder at {folder}.")
    companions(folder)  # refuses links, pipes and too many files
    if not any(kind.recognises(folder) for kind in _formats()):
        refuse_gguf(folder)  # such folders have no config.json either
    config_file = config_file or folder / CONFIG
    if (folder / RUN_MODEL).is_dir() and not config_file.exists():
        raise CheckpointError(
            f"{folder} has no config.json, as a Trainer under FSDP writes none. Copy the model's own there, or name "
            "it: growth grow --training --config MODEL."
        )
    config = current_keys(read_config(config_file))
    _refuse_other_weights(folder, config)
    chosen, *others = _recognising(folder)
    tensors, notes = chosen.headers(folder)
    LOG.info("%s: %s, %d tensors", folder, chosen.title, len(tensors))
    notes += tuple(f"Read the {chosen.title}, as transformers does, and not the {other.title}." for other in others)
    return Checkpoint(folder, config, tensors, chosen.stock_names, notes)


def _refuse_other_weights(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where transformers would load other weights than those of the standard names."""
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds a PEFT adapter ({ADAPTER}), which transformers would load on top of the weights. Merge it "
            "first (merge_and_unload, then save_pretrained to a new folder), or remove the adapter's files."
        )
    if config.get(CHOSEN) is not None:
        raise CheckpointError(
            f"{folder / CONFIG} has {CHOSEN} = {config[CHOSEN]!r}, which transformers would load in place of "
            f"{SINGLE}. Give that file the name {SINGLE} or {INDEX}, and remove the key."
        )


def format_of(folder: Path) -> SourceFormat:
    """The format in which a folder is read; safetensors, which says what is missing, where none recognises it."""
    return _recognising(folder)[0]


def _recognising(folder: Path) -> list[SourceFormat]:
    """The formats that recognise a folder."""
    return [kind for kind in _formats() if kind.recognises(folder)] or [Safetensors()]


def _formats() -> list[SourceFormat]:
    """All formats, safetensors first: it is what transformers loads."""
    for module in iter_modules(formats.__path__):
        import_module(f"{formats.__name__}.{module.name}")
    return [kind() for kind in sorted(SourceFormat.__subclasses__(), key=lambda kind: kind is not Safetensors)]


def with_published_names(stored: Checkpoint) -> Checkpoint:
    """An opened checkpoint under the names that published files have, without what is not the model's.

    Stacks of experts become the tensors of each expert, which are found within them as transformers lays them out.
    Only this needs torch.

    Raises:
        CheckpointError: names of an unknown prefix, or experts in too many pieces.
        ConfigError: the family cannot have this config.
    """
    found = as_published(stored)
    if not found.stock_names or not find_family(found.config.get("model_type")):
        return found
    table = architecture(found.config).named_as_in(found.tensors)
    shapes = table.shapes()
    if shapes.keys() <= found.tensors.keys() or len(found.tensors) < table.depth:  # whole, or layers are missing
        return found
    return _unstacked(found, shapes)


def _unstacked(found: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """A checkpoint of a stock class's parameters as the tensors of published files, whose shapes are given."""
    from growth.checkpoints.stock_parameters import class_config, stored_as

    parts_of = stored_as(class_config(found.config), [TensorInfo(name, "F32", shape) for name, shape in shapes.items()])
    held = {entry: found.tensors[entry] for entry in parts_of if entry in found.tensors}
    held = {entry: stored for entry, stored in held.items() if stored.shape == parts_of[entry][0]}
    stacks = {entry: stored for entry, stored in held.items() if parts_of[entry][1][0].shape != stored.shape}
    pieces = sum(count_pieces(stored, parts_of[entry][1][0].shape) for entry, stored in stacks.items())
    if pieces > LARGEST_PIECES:
        raise CheckpointError(
            f"{found.folder} holds its experts in {pieces:,} pieces, and at most {LARGEST_PIECES:,} are read. Save it "
            "from fewer processes."
        )
    unnamed, named = dict(found.tensors), dict[str, TensorInfo]()
    for entry, tensor in held.items():  # a missing entry is reported later, under the names of published files
        shape, parts = parts_of[entry]
        del unnamed[entry]
        if entry in stacks:
            places = offsets(len(parts), parts[0].shape, shape)
            named |= unstacked(tensor, dict(zip(places, parts, strict=True)))
        else:
            named[parts[0].name] = replace(tensor, name=parts[0].name)
    return replace(found, tensors=unnamed | named)
