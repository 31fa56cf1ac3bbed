"""Models of sizes that ranks can share, and folders of torch.distributed.checkpoint that several ranks write."""

import io
import pickle

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from tests.support.families import Case

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}

TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}

CASES = {
    "phi": Case("phi", "", SIZES | UNTIED | {"partial_rotary_factor": 0.5}),
    "llama": Case("llama", "", SIZES | UNTIED),
    "llama-tied": Case("llama", "", SIZES | TIED),
    "qwen3": Case("qwen3", "", SIZES | TIED),
    "gemma2": Case("gemma2", "", SIZES | TIED | {"query_pre_attn_scalar": 16, "sliding_window": 4}),
    "mixtral": Case("mixtral", "", SIZES | UNTIED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
}

MANY_TENSORS = {"intermediate_size": 128, "num_hidden_layers": 8}  # of which each rank measures its share
DEEP = {
    "deep-phi": Case("phi", "", CASES["phi"].config | MANY_TENSORS),
    "deep-llama": Case("llama", "", CASES["llama"].config | MANY_TENSORS),
}

WIDER = """
description: wider and deeper
steps:
  - {op: widen, axis: residual, to: 80, init: tile, shares: random}
  - {op: widen, axis: ffn, to: 128, init: tile, shares: random}
  - {op: deepen, to: 3, order: interleave, init: identity}
"""

QUARTER = """
description: a quarter wider
steps:
  - {op: widen, axis: residual, to: 80, init: tile, shares: random}
  - {op: widen, axis: ffn, to: 160, init: tile, shares: random}
"""


def cut(tensor, axis, parts):
    """Boxes (offsets, values) of a tensor cut along an axis."""
    at = 0
    for values in tensor.tensor_split(parts, axis):
        yield [at if a == axis else 0 for a in range(tensor.ndim)], values.clone()
        at += values.shape[axis]


def save_cut(state, folder, axis, parts=3):
    """A state dict as several ranks save it, a chunk each, written as the engine writes."""
    folder.mkdir()
    described, stored, files = {}, {}, [io.BytesIO() for _ in range(parts)]
    for name, tensor in state.items():
        chunks = []
        for rank, (at, values) in enumerate(cut(tensor, min(axis, tensor.ndim - 1), parts)):
            begin = files[rank].tell()
            torch.save(values, whole := io.BytesIO())
            files[rank].write(whole.getvalue())
            length = files[rank].tell() - begin
            chunks.append(ChunkStorageMetadata(torch.Size(at), values.shape))
            stored[MetadataIndex(name, at)] = _StorageInfo(f"__{rank}_0.distcp", begin, length)
        described[name] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, chunks)
    for rank, file in enumerate(files):
        (folder / f"__{rank}_0.distcp").write_bytes(file.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata(described, storage_data=stored)))
