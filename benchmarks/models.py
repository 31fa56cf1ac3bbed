"""The models that are grown, with their recipes; sources are made once and kept."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

DEEPER = """\
description: identity layers on top, exact
steps:
  - {op: deepen, to: 32, order: stack, init: identity}
"""
WIDER = """\
description: a quarter wider, exact
steps:
  - {op: widen, axis: residual, factor: 1.25, init: tile, shares: random}
  - {op: widen, axis: ffn, factor: 1.25, init: tile, shares: random}
  - {op: widen, axis: head_dim, factor: 1.25, init: tile, shares: random}
"""
# two layers of Phi-1.5 into three of Phi-2's geometry
WIDER_AND_DEEPER = WIDER + "  - {op: deepen, factor: 1.5, order: interleave, init: identity}\n"


@dataclass(frozen=True)
class Case:
    """A growth that is measured.

    model: the source, one of those of random_checkpoint.py.
    recipe: the name of a shipped recipe, or the text of another.
    deepens: the numbers of layers before and after, if the recipe does nothing else (as mergekit can).
    files: the number of files of the source; sparse: whether they have no content.
    """

    model: str
    recipe: str
    deepens: tuple[int, int] | None = None
    files: int = 1
    sparse: bool = False


PARTS = ("startup", "phi", "llama-depth", "llama-width", "sweep", "verify", "exactness", "sharing")
GROWN = {
    "phi": Case("phi-1.5", "phi-1.5-to-phi-2"),
    "llama-depth": Case("tinyllama-1.1b", DEEPER, (22, 32)),
    "llama-width": Case("tinyllama-12-layers", "double-width"),
}
SWEEP = {
    "0.1 B": Case("phi-0.1b", WIDER),
    "0.3 B": Case("phi-0.3b", WIDER),
    "1.4 B": Case("phi-1.5", WIDER),
    "two tensors of 2 GB": Case("phi-large-vocab", WIDER),
}
EXACTNESS = Case("phi-1.5-two-layers", WIDER_AND_DEEPER)
PLANNED = {
    "llama of 405 B": Case("llama-405b", "double-depth", files=1000, sparse=True),
    "mixture of 1 T": Case("mixture-1t", "double-depth", files=1000, sparse=True),
}
# tiny models, to test the program itself
TINY_GROWN = {
    "phi": Case("tiny-phi", WIDER_AND_DEEPER),
    "llama-depth": Case("tiny-llama", DEEPER.replace("32", "5"), (3, 5)),
    "llama-width": Case("tiny-llama", "double-width"),
}
TINY_SWEEP = {"tiny": Case("tiny-phi", WIDER), "larger": Case("tiny-phi-vocab", WIDER)}
TINY_EXACTNESS = Case("tiny-phi", WIDER_AND_DEEPER)
TINY_PLANNED = {"tiny": Case("tiny-llama", "double-depth", files=7, sparse=True)}


@dataclass(frozen=True)
class Bench:
    """The options of a run of the benchmark.

    output: the folder of sources and figures.
    place: the folder of grown models while they are needed; None for memory, if it has room.
    rounds: the number of pairs of each comparison; None for the default of each part.
    """

    output: Path
    place: Path | None = None
    rounds: int | None = None
    tiny: bool = False

    @property
    def grown(self) -> dict[str, Case]:
        """Return the growths that are compared with other programs."""
        return TINY_GROWN if self.tiny else GROWN

    @property
    def sweep(self) -> dict[str, Case]:
        """Return growths of sources of several sizes."""
        return TINY_SWEEP if self.tiny else SWEEP

    @property
    def exactness(self) -> Case:
        """Return the growth that is verified in float64."""
        return TINY_EXACTNESS if self.tiny else EXACTNESS

    @property
    def planned(self) -> dict[str, Case]:
        """Return growths of large models of which only headers exist."""
        return TINY_PLANNED if self.tiny else PLANNED

    def source(self, case: Case) -> Path:
        """Return the folder of a source; if it is missing, another process makes it, so that our memory stays small."""
        folder = self.output / f"{case.model}{'-sparse' * case.sparse}"
        if not folder.exists():
            print(f"Writing {folder}", flush=True)
            self.output.mkdir(parents=True, exist_ok=True)
            begun = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=self.output)) / folder.name
            script = Path(__file__).with_name("random_checkpoint.py")
            options = ["--files", case.files, *["--sparse"] * case.sparse]
            words = [sys.executable, script, begun, "--model", case.model, *options]
            subprocess.run([str(word) for word in words], check=True)
            begun.rename(folder)
            begun.parent.rmdir()
        return folder

    def recipe(self, case: Case) -> str:
        """Return the name of a shipped recipe, or the file that holds another."""
        if "\n" not in case.recipe:
            return case.recipe
        path = self.output / f"{case.model}-{'deeper' if case.deepens else f'{len(case.recipe):x}'}.yaml"
        path.write_text(case.recipe)
        return str(path)

    def working_place(self, needed: int) -> Path:
        """Yield a new folder for grown models: in memory if it has room for `needed` bytes twice and loaded."""
        memory, home = Path("/dev/shm"), self.place
        if home is None:
            fits = memory.is_dir() and shutil.disk_usage(memory).free > 2.1 * needed and available() > 3.2 * needed
            home = memory if fits else self.output
        home.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="growth-bench-", dir=home))


def available() -> int:
    """Return the bytes of memory that are available."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def machine() -> dict[str, object]:
    """Describe the machine that the figures were measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": model, "cores": len(os.sched_getaffinity(0)), "memory_gb": round(memory / 1e9, 1)}


def file_system(folder: Path) -> str:
    """Return the type of the file system of a folder, such as tmpfs or ext4."""
    here = folder.resolve()
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(where, kind) for where, kind in mounts if here.is_relative_to(where)]
    return max(holding, key=lambda mount: len(mount[0]))[1]
