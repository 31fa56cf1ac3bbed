"""What a grown folder holds: the name of every file, and the bytes of all that is not a tensor.

Everything here follows from the plan, the source, the recipe and the layout of the shards. A growth writes it and
`verify --weights` compares with it, so that the two cannot drift apart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import Checkpoint
from growth.checkpoints.companions import kept_files
from growth.checkpoints.formats.safetensors import INDEX, layout, shards
from growth.errors import ConfigError
from growth.planning.manifest import MANIFEST, hash_of, history_of, manifest, model_card, sealed, versions
from growth.planning.plan import Plan
from growth.planning.tensor_map import TensorMap

CONFIG, CARD = "config.json", "README.md"
DTYPE_NAMES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
FILES, SMALL, LARGE = 16, 1_000_000_000, 5_000_000_000  # of a model by default, and bytes of one


@dataclass(frozen=True, eq=False)
class Shard:
    """One output file: its rows, its header, and where each tensor's bytes stand."""

    name: str
    rows: tuple[TensorMap, ...]

    @cached_property
    def _layout(self) -> tuple[bytes, list[TensorInfo]]:
        return layout(Path(self.name), [(row.target, row.dtype, row.shape) for row in self.rows])

    @property
    def header(self) -> bytes:
        """What the file begins with."""
        return self._layout[0]

    @cached_property
    def places(self) -> dict[str, TensorInfo]:
        """The place of every tensor in the file."""
        return {place.name: place for place in self._layout[1]}

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(row.bytes for row in self.rows)


def shards_of(plan: Plan, largest: int | None) -> list[Shard]:
    """The output files of a plan, none above `largest` bytes of tensors.

    By default there are some for several processes to write at a time, if the model is not small: those that write to
    one file wait for each other.
    """
    if largest is None:
        largest = min(max(plan.bytes // FILES, SMALL), LARGE)
    files = shards([(row.target, row.dtype, row.shape) for row in plan.tensors], largest)
    return [Shard(name, tuple(plan.tensors[position] for position in positions)) for name, positions in files.items()]


def sources_of(rows: Iterable[TensorMap]) -> dict[str, TensorInfo]:
    """The source tensors that some rows are made from."""
    return {row.source.name: row.source for row in rows if row.drawn is None}


@dataclass(frozen=True, eq=False)
class FolderContents:
    """All that a grown folder holds beside the values of its tensors.

    recipe: as growth.json records it.
    shards: the safetensors files; none where the tensors are stored in another format.
    versions: the versions of packages that growth.json names.
    named: what growth.json calls the source, by default its `origin`.
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
        """What growth.json says of where the source is from."""
        return self.checkpoint.origin if self.named is None else self.named

    @cached_property
    def _account(self) -> dict[str, Any]:
        """growth.json, but for what the values of the tensors decide."""
        source = {**self.origin, "config": dict(self.checkpoint.config)}
        history = history_of(self.checkpoint.folder)
        return manifest(self.plan, dict(self.recipe), source, self.versions, history)

    @cached_property
    def names(self) -> list[str]:
        """The name of every shard and text of the folder."""
        index = [INDEX] if len(self.shards) > 1 else []
        kept = kept_files(self.checkpoint.folder)
        return [*(shard.name for shard in self.shards), *kept, CONFIG, CARD, *index, MANIFEST]

    @cached_property
    def fingerprint(self) -> str:
        """What two runs have in common if one can resume the other, beside the source's values."""
        layouts = [[shard.name, hash_of(shard.header)] for shard in self.shards]
        source = [[name, info.dtype, list(info.shape)] for name, info in sorted(self._sources.items())]
        return hash_of(json.dumps([self._account, layouts, source], sort_keys=True))

    def source_hash(self, read: Mapping[str, str]) -> str:
        """One hash of the source's tensors by name, type, shape and bytes, wherever they are stored.

        read: the hash of each tensor's bytes.
        """
        infos = self._sources
        lines = [f"{name} {infos[name].dtype} {list(infos[name].shape)} {read[name]}" for name in sorted(infos)]
        return hash_of("\n".join(lines))

    def texts(self, read: Mapping[str, str], digests: Mapping[str, str], others: Mapping[str, str]) -> dict[str, bytes]:
        """Every file that is neither a shard nor one of the `others`, growth.json last: it has the hashes of all.

        read, digests: the hash of the bytes of each tensor of the source, and of the output.
        others: the hash of each further file.
        """
        found = self.described()
        account = dict(self._account)
        tensors = {
            name: {**entry, "xxh3_128": digests[name]} if name in digests else entry
            for name, entry in account["tensors"].items()
        }
        hashes = {**others, **{name: hash_of(text) for name, text in found.items()}}
        account |= {
            "source": {**account["source"], "xxh3_128": self.source_hash(read)},
            "tensors": tensors,
            "fingerprint": self.fingerprint,
            "files": {name: hashes[name] for name in sorted(hashes)},
            "headers": {shard.name: hash_of(shard.header) for shard in self.shards},
        }
        return found | {MANIFEST: sealed(account).encode()}

    def described(self) -> dict[str, bytes]:
        """Every text but growth.json."""
        found = kept_files(self.checkpoint.folder)
        config = with_dtype(self.plan.config, {row.dtype for row in self.plan.tensors})
        found[CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
        found[CARD] = model_card(self.plan, self.recipe, self.origin["name"]).encode()
        if len(self.shards) > 1:
            weight_map = {row.target: shard.name for shard in self.shards for row in shard.rows}
            index = {"metadata": {"total_size": self.plan.bytes}, "weight_map": dict(sorted(weight_map.items()))}
            found[INDEX] = (json.dumps(index, indent=2) + "\n").encode()
        return found


def with_dtype(config: dict[str, Any], dtypes: set[str]) -> dict[str, Any]:
    """The config with the type that its tensors have, under the keys of the source's transformers version."""
    if len(dtypes) != 1:
        return config
    keys = [key for key in ("dtype", "torch_dtype") if config.get(key) is not None] or ["dtype"]
    return {**config, **dict.fromkeys(keys, DTYPE_NAMES[next(iter(dtypes))])}


def shard_size(text: int | str | None) -> int | None:
    """Bytes of "5GB", "200MB", "1GiB" or a number.

    Raises:
        ConfigError: anything else.

    >>> shard_size("200MB"), shard_size("1GiB")
    (200000000, 1073741824)
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?i?)B?", str(text).strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"max_shard_size '{text}' is not a size such as 5GB or 200MB.")
    unit = match[2].lower()
    base = 1024 if unit.endswith("i") else 1000
    size = int(float(match[1]) * base ** " kmgt".index(unit[:1] or " "))
    if size < 1:
        raise ConfigError(f"max_shard_size {text} is below one byte.")
    return size
