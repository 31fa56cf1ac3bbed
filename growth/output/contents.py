"""The files of a grown folder: the name of each, and the bytes of all that hold no tensors.

Everything here follows from the plan, the source, the recipe and the shards. `grow` writes it and `verify --weights`
compares with it, so that the two cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.companions import kept_files
from growth.checkpoints.formats.safetensors import INDEX
from growth.checkpoints.source_card import CARD, source_metadata
from growth.output.model_card import model_card
from growth.output.shards import Shard, sources_of
from growth.planning.manifest import MANIFEST, hash_of, history_of, manifest, sealed, versions
from growth.planning.plan import Plan

CONFIG = "config.json"
DEQUANTISED = "dequantized"  # key of a source in growth.json: the quantization_config that it had
DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


@dataclass(frozen=True, eq=False)
class FolderContents:
    """What a grown folder holds beside the values of its tensors.

    Attributes:
        plan, checkpoint, recipe: what is made, of which source, and the recipe as growth.json records it.
        shards: the safetensors files; none where tensors are stored in another format.
        versions: the versions of packages that growth.json records.
        named: the source as growth.json identifies it; by default the checkpoint's `origin`.
    """

    plan: Plan
    checkpoint: Checkpoint
    recipe: Mapping[str, Any]
    shards: Sequence[Shard]
    versions: Mapping[str, str] = field(default_factory=versions)
    named: Mapping[str, str] | None = None

    @cached_property
    def _sources(self) -> dict[str, TensorInfo]:
        return sources_of(self.plan.tensors)

    @property
    def origin(self) -> Mapping[str, str]:
        """The source as growth.json identifies it."""
        return self.checkpoint.origin if self.named is None else self.named

    @cached_property
    def _account(self) -> dict[str, Any]:
        """The content of growth.json that does not depend on the values of tensors."""
        found = self.checkpoint.dequantised
        dequantised = {} if found is None else {DEQUANTISED: dict(found)}
        source = {**self.origin, **dequantised, "config": dict(self.checkpoint.config)}
        history = history_of(self.checkpoint.folder)
        return manifest(self.plan, dict(self.recipe), source, self.versions, history)

    @cached_property
    def names(self) -> list[str]:
        """The names of all files."""
        index = [INDEX] if len(self.shards) > 1 else []
        kept = kept_files(self.checkpoint.folder)
        return [*(shard.name for shard in self.shards), *kept, CONFIG, CARD, *index, MANIFEST]

    @cached_property
    def fingerprint(self) -> str:
        """A hash that two runs share if one can resume the other, given the same values in the source."""
        layouts = [[shard.name, hash_of(shard.header)] for shard in self.shards]
        source = [[name, info.dtype, list(info.shape)] for name, info in sorted(self._sources.items())]
        return hash_of(json.dumps([self._account, layouts, source], sort_keys=True))

    def source_hash(self, digests: Mapping[str, str]) -> str:
        """One hash of the source's tensors by name, type, shape and bytes, wherever they are stored.

        Args:
            digests: the xxh3_128 of each source tensor's bytes.
        """
        infos = self._sources
        lines = [f"{name} {infos[name].dtype} {list(infos[name].shape)} {digests[name]}" for name in sorted(infos)]
        return hash_of("\n".join(lines))

    def metadata_files(
        self, source: Mapping[str, str], digests: Mapping[str, str], others: Mapping[str, str]
    ) -> dict[str, bytes]:
        """Every file that holds no tensors and is not one of `others`; growth.json, with the hashes of all, is last.

        Args:
            source, digests: the xxh3_128 of each tensor of the source, and of the output.
            others: the xxh3_128 of each further file.
        """
        found = self.files_before_manifest()
        account = dict(self._account)
        tensors = {
            name: {**entry, "xxh3_128": digests[name]} if name in digests else entry
            for name, entry in account["tensors"].items()
        }
        hashes = {**others, **{name: hash_of(text) for name, text in found.items()}}
        account |= {
            "source": {**account["source"], "xxh3_128": self.source_hash(source)},
            "tensors": tensors,
            "fingerprint": self.fingerprint,
            "files": {name: hashes[name] for name in sorted(hashes)},
            "headers": {shard.name: hash_of(shard.header) for shard in self.shards},
        }
        return found | {MANIFEST: sealed(account).encode()}

    def files_before_manifest(self) -> dict[str, bytes]:
        """The files that hold no tensors, without growth.json."""
        found = kept_files(self.checkpoint.folder)
        config = with_dtype(self.plan.config, {tensor.dtype for tensor in self.plan.tensors})
        found[CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        stated = source_metadata(self.checkpoint.folder)
        found[CARD] = model_card(self.plan, self.recipe, self.origin, stated).encode()
        if len(self.shards) > 1:
            weight_map = {tensor.target: shard.name for shard in self.shards for tensor in shard.tensors}
            index = {"metadata": {"total_size": self.plan.bytes}, "weight_map": dict(sorted(weight_map.items()))}
            found[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
        return found


def with_dtype(config: dict[str, Any], dtypes: set[str]) -> dict[str, Any]:
    """A config that states the type of its tensors, if it is one, under the keys that the source's config has."""
    if len(dtypes) != 1:
        return config
    keys = [key for key in ("dtype", "torch_dtype") if config.get(key) is not None] or ["dtype"]
    return {**config, **dict.fromkeys(keys, DTYPE_NAMES[next(iter(dtypes))])}
