"""What the processes that write an output record of their work, so that a killed one can be run again."""

from __future__ import annotations

import json
from threading import Lock

from growth.errors import CheckpointError
from growth.output.writer_rank import WriterRank
from growth.runtime.directory import Directory


class Journal:
    """The records of one process in the staging folder, and what the records of all say together."""

    def __init__(self, folder: Directory, rank: WriterRank):
        self._folder, self._rank = folder, rank
        self._name = f"done-{rank}.jsonl"
        self._lock = Lock()

    @property
    def exists(self) -> bool:
        """Whether any tensor is recorded."""
        return self._folder.has(self._name)

    def tensors(self) -> dict[str, str]:
        """The tensors that earlier runs of this process recorded as written, with the xxh3_128 of each.

        Raises:
            CheckpointError: the file is damaged.
        """
        text = self._read(self._name)
        lines = [] if text is None else text.split("\n")[:-1]  # a last line without an end was cut short
        try:
            return {str(name): str(digest) for name, digest in map(json.loads, lines)}
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{self._folder.path / self._name} is damaged. Remove {self._folder.path} and grow again."
            ) from None

    def add(self, name: str, digest: str) -> None:
        """Record that a tensor is written."""
        with self._lock:
            self._folder.append(self._name, f"{json.dumps([name, digest])}\n".encode())

    def keep_only(self, tensors: dict[str, str]) -> None:
        """Remove the records of all other tensors."""
        if self.exists:
            self._write(self._name, "".join(json.dumps(item) + "\n" for item in tensors.items()))

    def begin(self, source: dict[str, str]) -> None:
        """Record the xxh3_128 of each source tensor that this process reads.

        Raises:
            CheckpointError: an earlier run of this process read other values.
        """
        name, text = f"source-{self._rank}", json.dumps(source, sort_keys=True)
        if self._read(name) not in (None, text):
            raise CheckpointError(
                f"{self._folder.path} was left by another run, in which the source's tensors had other values. Restore "
                "that source, or remove the folder."
            )
        self._write(name, text)

    def reopen(self) -> None:
        """Remove the record that this process has finished."""
        self._folder.remove(f"finished-{self._rank}")

    def finish(self, digests: dict[str, str]) -> None:
        """Record that all tensors of this process are written and on disk, with the xxh3_128 of each."""
        self._write(f"finished-{self._rank}", json.dumps(digests))

    @property
    def all_have_finished(self) -> bool:
        """Whether every process has finished."""
        return all(self._folder.has(f"finished-{rank}") for rank in WriterRank.all(self._rank.count))

    def combined(self, kind: str) -> dict[str, str]:
        """The hashes that all processes recorded, of the "source" or of what they "finished".

        Raises:
            CheckpointError: two processes read other values of one source tensor.
        """
        found: dict[str, str] = {}
        for rank in WriterRank.all(self._rank.count):
            for name, digest in json.loads(self._read(f"{kind}-{rank}") or "{}").items():
                if found.setdefault(name, digest) != digest:
                    raise CheckpointError(
                        f"Parts have read other values of tensor '{name}': the source was changed between them. "
                        f"Remove {self._folder.path} and grow again."
                    )
        return found

    def _read(self, name: str) -> str | None:
        content = self._folder.read(name, -1)
        return None if content is None else content.decode()

    def _write(self, name: str, text: str) -> None:
        self._folder.write_whole(name, text.encode())
