"""Hashes of what `grow` writes for every shipped recipe and every case of every family, to compare two commits.

    python -m tests.support.outputs before.json                    # in a checkout of the one
    python -m tests.support.outputs after.json                     # in a checkout of the other
    python -m tests.support.outputs after.json --against before.json

Shipped recipes grow random sources of the sizes that they are meant for, one after another: some 15 GB of disk and ten
minutes. `--small` leaves these out. The cases of the families are widened by copies and by fresh units on every axis
that they can grow, and deepened. What is compared is the SHA-256 of each file of tensors and of config.json.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

import growth
from growth.architectures import architecture
from growth.arrays.casting import NUMPY_DTYPES, cast
from growth.errors import GrowthError
from growth.operators import chain, deepen, widen
from growth.planning.recipe import load_recipe, shipped_recipes
from tests.support.configs import SOURCES
from tests.support.families import all_cases, axes_of, random_model, widths
from tests.support.paths import PHI_MINI

SHARD = 1 << 30  # bytes of a source's file


def write_source(config, folder):
    """A checkpoint of random bf16 numbers with the shapes of a config."""
    shapes, generator = architecture(config).shapes(), np.random.default_rng(0)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    weight_map, files = {}, [{}]
    for name, shape in shapes.items():
        if sum(int(np.prod(s)) * 2 for s in files[-1].values()) > SHARD:
            files.append({})
        files[-1][name] = shape
        weight_map[name] = f"model-{len(files):05d}.safetensors"
    for number, tensors in enumerate(files, 1):
        begin, header = 0, {}
        for name, shape in tensors.items():
            end = begin + int(np.prod(shape)) * 2
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(header).encode()
        with (folder / f"model-{number:05d}.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for shape in tensors.values():
                values = generator.standard_normal(shape, np.float32) * np.float32(0.02)
                file.write(cast(values, np.empty(shape, NUMPY_DTYPES["BF16"])).tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map, "metadata": {}}))


def hashes(folder):
    """The hash of each file of tensors and of config.json."""
    found = {}
    for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def shipped(place):
    """What every shipped recipe makes of a source of the size that it is meant for."""
    recipes = sorted((load_recipe(path) for path in shipped_recipes()), key=lambda recipe: str(recipe.source))
    made = ""
    for recipe in recipes:
        config = SOURCES.get(recipe.source)
        source = place / "source" if config else PHI_MINI
        if config and recipe.source != made:
            shutil.rmtree(source, ignore_errors=True)
            write_source(config, source)
            made = recipe.source
        yield f"shipped: {recipe.description}", recipe, source


def operators(case):
    """By name: growths of a case of a family."""
    for axis in axes_of(case):
        for init in ("tile", "sample", "pad"):
            steps = [widen(name, to=to, init=chosen, seed=3) for name, to, chosen in widths(case, axis, init)]
            yield f"{axis}, {init}", chain(*steps)
    yield "deeper", deepen(factor=2)


def families(place):
    """Growths of every case of every family, one at a time."""
    for case in all_cases():
        source = place / "source"
        shutil.rmtree(source, ignore_errors=True)
        random_model(case, growth_dtype()).save_pretrained(source)
        for name, operator in operators(case):
            yield f"{case.name}: {name}", operator, source


def growth_dtype():
    """The type of the families' sources."""
    import torch

    return torch.bfloat16


def record(place, *, small):
    """Name -> file -> hash; of a growth that is refused, that it is."""
    found = {}
    for part in [families] if small else [families, shipped]:
        for name, recipe, source in part(place):
            grown = place / "grown"
            try:
                growth.grow(recipe, source, grown)
                found[name] = hashes(grown)
            except GrowthError as error:
                found[name] = {"refused": type(error).__name__}
            shutil.rmtree(grown, ignore_errors=True)
            print(f"\r{len(found)} {name[:100]:100}", end="", file=sys.stderr)
    return found


def main():
    """Writes the hashes, or compares them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--against", type=Path)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    if arguments.against is None:
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as place:
            arguments.output.write_text(json.dumps(record(Path(place), small=arguments.small), indent=1))
        return
    one, other = (json.loads(path.read_text()) for path in (arguments.against, arguments.output))
    differ = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    refused = sum("refused" in files for files in other.values())
    print(f"{len(other)} growths, {refused} of them refused by both or either; {len(differ)} differ")
    print("\n".join(differ))
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
