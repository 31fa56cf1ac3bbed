"""An output that is there already: whether it is the result of this run, unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from growth.errors import CheckpointError
from growth.output.contents import FolderContents
from growth.output.tensor_writer import stored_hashes
from growth.planning.manifest import MANIFEST, is_sealed, read_manifest
from growth.runtime.directory import Directory
from growth.runtime.workers import Progress, ProgressCounter, WorkerPool


def check_finished(
    pool: WorkerPool, output: Path, contents: FolderContents, source_hash: str, progress: Progress | None
) -> None:
    """Check that an output is the result of a run, and that nothing in it has changed since.

    Args:
        pool: the workers that hash the tensors.
        output: the folder.
        contents: what the run would write.
        source_hash: the hash of the source's tensors, as growth.json records it.
        progress: called with the bytes checked.

    Raises:
        CheckpointError: the output belongs to another run, or a tensor or a file differs from what growth.json records.
    """
    account = read_manifest(output) or {}
    if (account.get("fingerprint"), account.get("source", {}).get("xxh3_128")) != (contents.fingerprint, source_hash):
        raise CheckpointError(
            f"{output} exists already, and was not written by a run with this source and these arguments. Choose "
            "another --output."
        )
    counter = ProgressCounter("check output", contents.plan.bytes, progress)
    with Directory.at(output) as folder:
        for difference in _differences(pool, folder, contents, account, counter):
            raise CheckpointError(
                f"{output} was changed after it was grown: {difference}. Nothing was written: choose another --output, "
                "or remove it first."
            )


def _differences(
    pool: WorkerPool, folder: Directory, contents: FolderContents, account: dict[str, Any], counter: ProgressCounter
) -> Iterator[str]:
    if not is_sealed((folder.read(MANIFEST, -1) or b"").decode()):
        yield f"{MANIFEST} does not end with the hash of its content"
    for shard in contents.shards:
        status = folder.status(shard.name)
        if status is None:
            yield f"{shard.name} is missing"
        elif not shard.is_in(folder):
            yield f"{shard.name} has {status.st_size:,} bytes or a header other than the {shard.size:,} bytes written"
    places = [place for shard in contents.shards for place in shard.places.values()]
    for name, found in stored_hashes(pool, folder, places, counter).items():
        recorded = account["tensors"].get(name, {}).get("xxh3_128")
        if found != recorded:
            yield f"tensor '{name}' has the xxh3_128 {found}, and {MANIFEST} records {recorded}"
    for name, recorded in account["files"].items():
        if not folder.has(name):
            yield f"{name} is missing"
        elif (found := hash_of_file(folder.through / name)) != recorded:
            yield f"{name} has the xxh3_128 {found}, and {MANIFEST} records {recorded}"


def hash_of_file(path: Path) -> str:
    """The xxh3_128 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
