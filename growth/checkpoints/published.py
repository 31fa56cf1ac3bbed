"""Normalise the tensor names of published checkpoints to those of the family's table.

Files of one model differ in the prefix of names, in the buffers that older classes stored, and in whether a head that
is tied to the embedding is stored a second time. All of this is decided here, for every command.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from growth.architectures import architecture, find_family
from growth.architectures.base import Architecture
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.tensor_reader import Files, pieces
from growth.errors import CheckpointError

Shape = tuple[int, ...]
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")  # of torch, anywhere in a name
PARALLEL = "module"  # prefix of DataParallel and DistributedDataParallel
# what classes call the matrix of their head
HEADS = (
    "lm_head.weight", "embed_out.weight", "lm_head.decoder.weight", "cls.predictions.decoder.weight", "decoder.weight",
    "generator_lm_head.weight", "head.weight", "output.weight", "output_projection.weight",
)  # fmt: skip
# parts of an encoder that predict something else than tokens: its sentence's class, whether another sentence follows
OTHER_HEADS = (".pooler.dense.", "cls.seq_relationship.", "discriminator_predictions.")
LEGACY_NAMES = "older files call a LayerNorm's weight gamma and its bias beta"
LEGACY = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}  # transformers renames them, too


@dataclass(frozen=True)
class Derived:
    """A buffer that some files store although the model class computes it; it is not read.

    Attributes:
        suffix: the end of its name.
        is_one: whether it can have a shape; a tensor of this name and another shape is read.
        reason: why nothing is lost.
    """

    suffix: str
    is_one: Callable[[Shape], bool]
    reason: str


def _is_mask(shape: Shape) -> bool:
    """Whether a shape is (1, 1, T, T)."""
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _is_scalar(shape: Shape) -> bool:
    return shape in ((), (1,))


def _is_vector(shape: Shape) -> bool:
    return len(shape) == 1


def _is_row(shape: Shape) -> bool:
    """Whether a shape is (1, T)."""
    return len(shape) == 2 and shape[0] == 1


DERIVED = (
    Derived("rotary_emb.inv_freq", _is_vector, "frequencies of the rotary embedding, computed from config.json"),
    Derived(".attn.bias", _is_mask, "the causal mask, which follows from the positions"),
    Derived(".attention.bias", _is_mask, "the causal mask, which follows from the positions"),
    Derived(".attn.masked_bias", _is_scalar, "the score of a masked position, a constant of the class"),
    Derived(".attention.masked_bias", _is_scalar, "the score of a masked position, a constant of the class"),
    Derived(".embeddings.position_ids", _is_row, "the numbers of the positions"),
    Derived("decoder.version", _is_scalar, "the version of fairseq's file format"),
)


def as_published(found: Checkpoint) -> Checkpoint:
    """An opened checkpoint without wrappers in names, derived buffers, and the second copy of a tied embedding.

    Raises:
        CheckpointError: names have an unknown prefix, or two differ only in their prefix.
        ConfigError: the family cannot have this config.
    """
    found = _renamed(found, _unwrapped, "wrappers of torch leave their names in a state dict")
    if not find_family(found.config.get("model_type")):
        return _without_derived(found)
    table = architecture(found.config)
    found = _without_other_heads(_without_derived(_with_prefix(_renamed(found, _current, LEGACY_NAMES), table)), table)
    return _with_one_bias(_with_one_embedding(_without_prediction(found, table), table), table)


def check_repeated(checkpoint: Checkpoint) -> None:
    """Compare the bytes of tensors that are stored twice.

    Raises:
        CheckpointError: they differ, so that the checkpoint is not of the model that its config describes.
    """
    for one, other in checkpoint.repeated:
        if hash_of_tensor(one) != hash_of_tensor(other):
            raise _two_heads(checkpoint.folder, one, other)


def _two_heads(folder: Path, head: TensorInfo, embedding: TensorInfo) -> CheckpointError:
    stored, tied = (
        f"'{info.name}' ({info.dtype} {list(info.shape)}, xxh3_128 {hash_of_tensor(info)})"
        for info in (head, embedding)
    )
    return CheckpointError(
        f"{folder} ties its head to its embedding in config.json, and stores two that differ: {stored} and {tied}. "
        "If the head is a matrix of its own, set tie_word_embeddings to false in config.json; else remove it from the "
        "file."
    )


def hash_of_tensor(info: TensorInfo) -> str:
    """The xxh3_128 of a stored tensor's bytes."""
    digest = xxhash.xxh3_128()
    for _, part in pieces(Files({info.name: info}), info):
        digest.update(part)
    return digest.hexdigest()


# ------------------------------------------------- names


def _unwrapped(name: str) -> str:
    """A name without what torch.compile, FSDP and (Distributed)DataParallel put into it."""
    *modules, own = name.split(".")
    modules = [module for module in modules if module not in WRAPPERS]
    while modules[:1] == [PARALLEL]:
        del modules[0]
    return ".".join([*modules, own])


def _current(name: str) -> str:
    """A name as transformers reads it."""
    return next((name.removesuffix(old) + new for old, new in LEGACY.items() if name.endswith(old)), name)


def _with_prefix(found: Checkpoint, table: Architecture) -> Checkpoint:
    """Add the prefix of the base model, which files lack that were saved from the base model alone.

    Raises:
        CheckpointError: a tensor's name has another prefix.
    """
    named = table.named_as_in(found.tensors)
    prefix = table.weights[0].name.partition(".")[0]
    roots = {weight.name.partition(".")[0] for weight in named.weights}
    inner = {weight.name.split(".")[1] for weight in table.weights if weight.name.startswith(f"{prefix}.")} - roots
    found = _renamed(
        found,
        lambda name: f"{prefix}.{name}" if name.partition(".")[0] in inner else name,
        f"files of the base model leave out '{prefix}.'",
    )
    _refuse_prefix(found, table.named_as_in(found.tensors), prefix)
    return found


def _refuse_prefix(found: Checkpoint, table: Architecture, root: str) -> None:
    """Raise CheckpointError where a tensor that the table needs is stored under a longer name.

    root: the prefix of the base model, with and without which such a name is recognised.
    """
    needed = table.shapes().keys()
    missing = needed - found.tensors.keys()
    bare = {name.removeprefix(f"{root}.") for name in missing}
    endings = missing | bare | {f"{root}.{name}" for name in bare}
    longest = max((ending.count(".") for ending in endings), default=-1) + 1
    for name in found.tensors if missing else ():
        modules = name.rsplit(".", longest)
        for length in range(len(modules) - 1, 0, -1):
            ending = ".".join(modules[-length:])
            if name not in needed and ending in endings:
                raise CheckpointError(
                    f"{found.folder}: names of tensors begin with '{name.removesuffix(ending)}', as in '{name}', and "
                    f"those of a {table.model_type} do not. If the rest is the model's, save it without that prefix."
                )


def _renamed(found: Checkpoint, rename: Callable[[str], str], why: str) -> Checkpoint:
    """Rename tensors, with a note for users if any name changes.

    Raises:
        CheckpointError: two tensors would have the same name.
    """
    names = {name: rename(name) for name in found.tensors}
    changed = [name for name, new in names.items() if new != name]
    if not changed:
        return found
    stored: dict[str, str] = {}
    for name, new in names.items():
        if new in stored:
            raise CheckpointError(
                f"{found.folder} holds '{new}' twice, as '{stored[new]}' and as '{name}': remove one of the two."
            )
        stored[new] = name
    tensors = {new: replace(found.tensors[name], name=new) for new, name in stored.items()}
    note = f"{len(changed)} tensors are read under other names ({why}): '{changed[0]}' as '{names[changed[0]]}'."
    return replace(found, tensors=tensors, notes=(*found.notes, note))


# ------------------------------------------------- tensors that are not read


def _without_derived(found: Checkpoint) -> Checkpoint:
    kept = {name: info for name, info in found.tensors.items() if derived(name, info.shape) is None}
    return replace(found, tensors=kept, dropped=(*found.dropped, *(name for name in found.tensors if name not in kept)))


def _without_prediction(found: Checkpoint, table: Architecture) -> Checkpoint:
    """Leave out the layers of multi-token prediction, with a note for users."""
    ends = tuple(
        prefix
        for prefix, end in table.prediction.items()
        if any(name.startswith(prefix) and name.endswith(end) for name in found.tensors)
    )
    kept = {name: info for name, info in found.tensors.items() if not name.startswith(ends)}
    if len(kept) == len(found.tensors):
        return found
    first = next(name for name in found.tensors if name not in kept)
    note = (
        f"{len(found.tensors) - len(kept)} tensors of multi-token prediction are left out, as the stock class does "
        f"('{first}'): what they predict is no part of its logits, and a grown model has none."
    )
    return replace(found, tensors=kept, notes=(*found.notes, note))


def derived(name: str, shape: Shape) -> Derived | None:
    """The derived buffer that a stored tensor is; None for a tensor of the model.

    >>> derived("transformer.h.0.attn.bias", (1, 1, 8, 8)).reason
    'the causal mask, which follows from the positions'
    """
    return next((entry for entry in DERIVED if name.endswith(entry.suffix) and entry.is_one(shape)), None)


def _without_other_heads(found: Checkpoint, table: Architecture) -> Checkpoint:
    """Leave out the heads of an encoder that its class for tokens does not have."""
    needed = table.shapes().keys()
    others = [name for name in found.tensors if name not in needed and any(part in name for part in OTHER_HEADS)]
    if not others:
        return found
    note = (
        f"{len(others)} tensors are left out, because the class that predicts tokens has none of them: "
        f"{', '.join(sorted(others))}."
    )
    kept = {name: info for name, info in found.tensors.items() if name not in others}
    return replace(found, tensors=kept, notes=(*found.notes, note))


def _with_one_bias(found: Checkpoint, table: Architecture) -> Checkpoint:
    """Keep the bias of a tied head once, where a class has it under two names, and a file holds both."""
    own = [weight.name for weight in table.weights if weight.is_head_bias]
    second = [head.removesuffix("weight") + "bias" for head in HEADS]
    for name in (name for name in second if name in found.tensors and name not in own and len(own) == 1):
        stored, kept = found.tensors[name], found.tensors.get(own[0])
        tensors = {other: info for other, info in found.tensors.items() if other != name}
        if kept is None:
            found = replace(found, tensors={**tensors, own[0]: replace(stored, name=own[0])})
        elif (stored.dtype, stored.shape) == (kept.dtype, kept.shape):
            found = replace(found, tensors=tensors, repeated=(*found.repeated, (stored, kept)))
    return found


def _with_one_embedding(found: Checkpoint, table: Architecture) -> Checkpoint:
    """Keep the embedding of a tied checkpoint only, whether it stores the embedding, the head, or both."""
    if any(weight.name in HEADS for weight in table.weights):
        return found
    embedding = table.named_as_in(found.tensors).embedding
    tensors: Mapping[str, TensorInfo] = found.tensors
    for head in (name for name in HEADS if name in found.tensors):
        stored = tensors[head]
        tensors = {name: info for name, info in tensors.items() if name != head}
        if embedding not in tensors:
            tensors = {**tensors, embedding: replace(stored, name=embedding)}
            note = f"'{head}' is read as '{embedding}', to which config.json ties it."
            found = replace(found, tensors=tensors, notes=(*found.notes, note))
            continue
        if (stored.dtype, stored.shape) != (tensors[embedding].dtype, tensors[embedding].shape):
            raise _two_heads(found.folder, stored, tensors[embedding])
        note = (
            f"'{head}' is stored beside '{embedding}', to which config.json ties it: the two are read as one, and "
            "refused where their bytes differ."
        )
        pair = (stored, tensors[embedding])
        found = replace(found, tensors=tensors, notes=(*found.notes, note), repeated=(*found.repeated, pair))
    return found
