"""Forgeries: changes to a grown folder whose growth.json is rewritten to match, as somebody would who wants to deceive.

    python -m tests.support.forgeries [SEEDS]

makes every kind of them, has `verify_weights` look at each, and prints how many were made and how many were found.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

import growth
from growth.checkpoints.formats.safetensors import read_header
from growth.planning.manifest import MANIFEST, hash_of, sealed

RECIPE = """\
description: of every kind
steps:
  - {op: widen, axis: residual, to: 24, shares: random}
  - {op: widen, axis: ffn, to: 28, init: pad}
  - {op: deepen, to: 2}
"""
PLANTED = (
    "modeling_phi.py", "pytorch_model.bin", "adapter_config.json", "adapter_model.safetensors", "tf_model.h5",
    "consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin.index.json", "chat_template.jinja",
    "preprocessor_config.json", "custom_generate/generate.py", "original/params.json", ".env", "notes.txt",
    "additional_chat_templates/evil.jinja", "tokenizer.model",
)  # fmt: skip
CONFIG: dict[str, Any] = {
    "layer_norm_eps": 0.1,
    "hidden_act": "relu",
    "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"},
    "rope_theta": 500.0,
    "auto_map": {"AutoModelForCausalLM": "modeling_phi.PhiForCausalLM"},
    "eos_token_id": 7,
    "max_position_embeddings": 32,
    "architectures": ["EvilForCausalLM"],
    "model_type": "gpt2",
    "quantization_config": {"quant_method": "bitsandbytes"},
}


def make(folder: Path) -> tuple[Path, Path, Path]:
    """A small source, its recipe, and what it grows into: in shards, with a tokenizer and a generation config."""
    from tests.support.models import random_phi, save

    sizes = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    source = save(random_phi(vocab_size=31, **sizes), folder / "source")
    (source / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    (folder / "recipe.yaml").write_text(RECIPE)
    growth.grow(folder / "recipe.yaml", source, folder / "grown", max_shard_size="8KB", dtype="float32")
    return source, folder / "recipe.yaml", folder / "grown"


def account(folder: Path) -> dict[str, Any]:
    """The content of growth.json without its seal."""
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    content.pop("itself", None)
    return content


def reseal(folder: Path) -> None:
    """Rewrites growth.json so that it agrees with whatever the folder holds now."""
    content = account(folder)
    content["files"], content["headers"] = {}, {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, data = str(path.relative_to(folder)), path.read_bytes()
        if path.suffix == ".safetensors" and name.startswith("model-"):
            content["headers"][name] = hash_of(data[: 8 + int.from_bytes(data[:8], "little")])
            _tell_hashes(content, path, data)
        elif name != MANIFEST:
            content["files"][name] = hash_of(data)
    (folder / MANIFEST).write_text(sealed(content))


def _tell_hashes(content: dict[str, Any], path: Path, data: bytes) -> None:
    try:
        infos = read_header(path)
    except growth.GrowthError:
        return
    for info in infos:
        entry = content["tensors"].setdefault(info.name, {"source": None, "axes": [], "new_layer": False})
        entry["xxh3_128"] = xxhash.xxh3_128_hexdigest(data[info.begin : info.begin + info.bytes])


@dataclass(frozen=True)
class Forgery:
    """A change to a folder.

    kind: for the table. what: what is changed, for people. culprit: what must be named, a file or a tensor.
    apply: makes the change, growth.json included.
    """

    kind: str
    what: str
    culprit: str
    apply: Callable[[Path], None]

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


def _and_reseal(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        change(folder)
        reseal(folder)

    return apply


def _write_json(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def config_forgeries() -> Iterator[Forgery]:
    """Values of config.json that change what the model computes, or what code computes it."""
    for key, value in CONFIG.items():

        def change(folder: Path, key: str = key, value: Any = value) -> None:
            _write_json(folder, "config.json", json.loads((folder / "config.json").read_text()) | {key: value})
            if key == "auto_map":
                (folder / "modeling_phi.py").write_text("raise SystemExit\n")

        yield Forgery("a value of config.json", key, "config.json", _and_reseal(change))


def planted() -> Iterator[Forgery]:
    """Files that a loader may pick up."""
    for name in PLANTED:

        def change(folder: Path, name: str = name) -> None:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"{}")

        yield Forgery("a file added", name, name.split("/")[0], _and_reseal(change))

    def whole(folder: Path) -> None:
        """transformers loads model.safetensors before any shard."""
        shutil.copy(min(folder.glob("model-*.safetensors")), folder / "model.safetensors")

    yield Forgery("a file added", "model.safetensors", "model.safetensors", _and_reseal(whole))


def _other(value: Any) -> Any:
    """Another value of the same type, as far as there is one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, list):
        return value[:-1] if value else [0]
    return {} if value else {"x": 0} if isinstance(value, dict) else 0


def _paths(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys of all values of a JSON document, from the top."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*at, key)
        yield from _paths(value, (*at, key))


def _changed(content: Any, at: tuple[Any, ...], change: Callable[[Any, Any], None]) -> Any:
    result = json.loads(json.dumps(content))
    inner = result
    for key in at[:-1]:
        inner = inner[key]
    change(inner, at[-1])
    return result


def _replace(inner: Any, key: Any) -> None:
    inner[key] = _other(inner[key])


def _remove(inner: Any, key: Any) -> None:
    del inner[key]


def key_forgeries(folder: Path, name: str, few: int | None = None) -> Iterator[Forgery]:
    """Every key of a JSON file, replaced and removed; of growth.json under a seal that fits.

    few: only so many of the tensors and axes of growth.json, which are alike.
    """
    content = account(folder) if name == MANIFEST else json.loads((folder / name).read_text())
    seen: dict[Any, set[Any]] = {}
    for at in _paths(content):
        if few is not None and at[0] in ("tensors", "axes") and len(at) > 1:
            same = seen.setdefault(at[0], set())
            if at[1] not in same and len(same) == few:
                continue
            same.add(at[1])
        for verb, change in (("replaced", _replace), ("removed", _remove)):

            def apply(folder: Path, at: tuple[Any, ...] = at, change: Callable[[Any, Any], None] = change) -> None:
                forged = _changed(content, at, change)
                if name == MANIFEST:
                    (folder / name).write_text(sealed(forged))
                else:
                    _write_json(folder, name, forged)
                    reseal(folder)

            yield Forgery(f"a key of {name} {verb}", ".".join(map(str, at)), name, apply)


def flips(folder: Path, seed: int) -> Iterator[Forgery]:
    """A random bit of every file; growth.json is rewritten to match, but where it is the one."""
    draw = random.Random(seed)
    for path in sorted(folder.iterdir()):
        bit = draw.randrange(8 * path.stat().st_size)

        def change(folder: Path, name: str = path.name, bit: int = bit) -> None:
            data = bytearray((folder / name).read_bytes())
            data[bit // 8] ^= 1 << bit % 8
            (folder / name).write_bytes(data)

        apply = change if path.name == MANIFEST else _and_reseal(change)
        yield Forgery("a bit flipped at random", f"{path.name}, bit {bit}", _owner(path, bit // 8), apply)


def _owner(path: Path, byte: int) -> str:
    """The tensor whose byte it is, or the file."""
    if path.suffix == ".safetensors":
        for info in read_header(path):
            if info.begin <= byte < info.begin + info.bytes:
                return info.name
    return path.name


def removals(folder: Path) -> Iterator[Forgery]:
    """Every file removed."""
    for path in sorted(folder.iterdir()):

        def change(folder: Path, name: str = path.name) -> None:
            (folder / name).unlink()
            if name != MANIFEST:
                reseal(folder)

        yield Forgery("a file removed", path.name, path.name, change)


def replaced() -> Iterator[Forgery]:
    """Files beside the tensors, with other content."""
    for name, text in {
        "README.md": "# The best model\n",
        "tokenizer.json": '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
        "generation_config.json": '{"eos_token_id": 3, "temperature": 9.0}',
    }.items():

        def change(folder: Path, name: str = name, text: str = text) -> None:
            (folder / name).write_text(text)

        yield Forgery("a file replaced", name, name, _and_reseal(change))


def shard_forgeries() -> Iterator[Forgery]:
    """Shards that still agree with the index and hold the right values, and that no growth writes."""

    def rewrite(folder: Path, change: Callable[[dict[str, dict[str, Any]]], None]) -> None:
        from safetensors.torch import load_file, save_file

        files = {path.name: load_file(path) for path in sorted(folder.glob("model-*.safetensors"))}
        change(files)
        for name, tensors in files.items():
            save_file(tensors, folder / name, {"format": "pt"})
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        index["weight_map"] = {tensor: name for name, tensors in files.items() for tensor in tensors}
        index["weight_map"] = dict(sorted(index["weight_map"].items()))
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
        reseal(folder)

    def moved(files: dict[str, dict[str, Any]]) -> None:
        first, *_, last = files
        name = min(files[first])
        files[last][name] = files[first].pop(name)

    def extra(files: dict[str, dict[str, Any]]) -> None:
        name = min(next(iter(files.values())))
        next(iter(files.values()))["model.extra.weight"] = next(iter(files.values()))[name].clone()

    def dropped(files: dict[str, dict[str, Any]]) -> None:
        next(iter(files.values())).pop("model.embed_tokens.weight")

    def retyped(files: dict[str, dict[str, Any]]) -> None:
        tensors = next(iter(files.values()))
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].double()

    def metadata(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        path = min(folder.glob("model-*.safetensors"))
        save_file(load_file(path), path, {"format": "pt", "note": "x"})
        reseal(folder)

    first = "model-00001-of-"
    yield Forgery("shards laid out otherwise", "a tensor in another shard", "", lambda f: rewrite(f, moved))
    yield Forgery("shards laid out otherwise", "an extra tensor", "model.extra.weight", lambda f: rewrite(f, extra))
    yield Forgery(
        "shards laid out otherwise", "a tensor less", "model.embed_tokens.weight", lambda f: rewrite(f, dropped)
    )
    yield Forgery(
        "shards laid out otherwise",
        "a tensor of another type",
        "model.embed_tokens.weight",
        lambda f: rewrite(f, retyped),
    )
    yield Forgery("shards laid out otherwise", "further metadata", first, metadata)


def forgeries(folder: Path, seeds: int, few: int | None = None) -> Iterator[Forgery]:
    """Every kind of forgery of a grown folder."""
    yield from config_forgeries()
    yield from replaced()
    yield from planted()
    yield from removals(folder)
    yield from shard_forgeries()
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        yield from key_forgeries(folder, name)
    yield from key_forgeries(folder, MANIFEST, few)
    for seed in range(seeds):
        yield from flips(folder, seed)


def verdict(source: Path, folder: Path, recipe: Path) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The problems and the warnings of a folder."""
    report = growth.verify_weights(source, folder, recipe, dtype="float32")
    return report.problems, report.warnings


def main(seeds: int) -> int:
    """Prints the table; returns how many forgeries were not found."""
    home = Path(tempfile.mkdtemp())
    source, recipe, grown = make(home)
    assert not any(verdict(source, grown, recipe)), "the folder is not right to begin with"
    made: dict[str, list[int]] = {}
    missed = []
    for forgery in forgeries(grown, seeds):
        forged = shutil.copytree(grown, home / "forged")
        forgery.apply(forged)
        problems, warnings = verdict(source, forged, recipe)
        counts = made.setdefault(forgery.kind, [0, 0, 0, 0])
        named = any(forgery.culprit in name for name in problems)
        for at, one in enumerate((True, bool(problems), named, not problems and bool(warnings))):
            counts[at] += one
        if not problems:
            missed.append(f"{forgery} {dict(warnings)}")
        shutil.rmtree(forged)
    print("| forgery | made | failed | culprit named | passed with a warning |\n|---|---|---|---|---|")
    for kind, counts in made.items():
        print(f"| {kind} | {' | '.join(f'{count:,}' for count in counts)} |")
    print(f"| all | {' | '.join(f'{sum(c):,}' for c in zip(*made.values(), strict=True))} |")
    print(*missed, sep="\n", file=sys.stderr)
    return len(missed)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
