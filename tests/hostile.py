"""Hostile input, made by mutating valid input: the properties that tests/test_hostile.py and make fuzz both hold.

A target reads one mutated input. It may return or raise a GrowthError; anything else is a bug.
"""

import json
import math
import random
import struct
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from growth.architectures import FAMILIES, architecture
from growth.checkpoint import Checkpoint, TensorInfo, read_config, read_header
from growth.derivation import derive_recipe, recipe_text
from growth.growth import Growth
from growth.manifest import MANIFEST, dump, expansion_from, read_manifest
from growth.operators import chain, deepen, widen
from growth.planning import make_plan
from growth.recipe import parse_recipe, recipe_of, shipped_recipes
from tests.families import all_cases

ROOT = Path(__file__).parent.parent
PHI_MINI = ROOT / "examples" / "phi-mini"
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 63, 64, 2047, 2048, 2049, 2**20, 2**21 + 1, 2**31 - 1, 2**31, 2**53, 2**63,
    2**64, 10**30, 10**4000, -(2**63), 0.0, -0.0, 0.5, 1.5, -2.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
    "", "x", "1", "[/red]", "\x1b[2J", "\x00", "a\nb", "\ud800", "../../x", "/etc/passwd", "default", "yarn", "llama3",
    "full_attention", "{layer}", "%s{0}", "é" * 300, [], [None], [1], [0] * 3, [1.5], ["x"] * 3, [[]], [{}], [2**62] * 3,
    ["full_attention"] * 3, ["sliding_attention"] * 3, list(range(3000)), {}, {"": 0}, {"a": {}}, {"rope_theta": "x"},
    {"rope_type": []}, {"rope_type": "linear", "factor": -1}, {"full_attention": 3}, {"full_attention": {"rope_theta": 0}},
    {"rope_theta": 1e308}, {"x": [{"y": [{}]}]},
)  # fmt: skip


def nested(levels: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(levels):
        value = [value]
    return value


def mutated(value: Any, rng: random.Random, keys: tuple[str, ...] = ()) -> Any:
    """A copy with one to four changes, each somewhere in it."""
    value = deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        holder, key = rng.choice(list(places(value)) or [([value], 0)])
        match rng.randrange(8):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice(keys) if keys else str(rng.choice(NASTY))[:40]] = deepcopy(rng.choice(NASTY))
            case 2 if isinstance(holder, dict):
                holder[str(rng.choice(NASTY))[:40]] = holder.pop(key)
            case 3 if type(holder[key]) is float or (type(holder[key]) is int and abs(holder[key]) < 10**300):
                holder[key] = rng.choice((-1, 1, 2, 3, 0.5, 10**6)) * holder[key] + rng.choice((-1, 0, 1))
            case 4:
                holder[key] = nested(rng.choice((1, 2, 31, 33, 100)))
            case 5 if isinstance(holder[key], list) and holder[key]:
                holder[key] = holder[key] * rng.choice((2, 50))
            case _:
                holder[key] = deepcopy(rng.choice(NASTY))
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a value with each of its keys."""
    todo = [value]
    while todo:
        holder = todo.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            yield holder, key
            if isinstance(holder[key], dict | list):
                todo.append(holder[key])


def scrambled(content: bytes, rng: random.Random) -> bytes:
    """Once in eight times with a few bytes changed, left out or repeated."""
    if rng.randrange(8) or not content:
        return content
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        match rng.randrange(3):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del changed[at : at + rng.choice((1, 3, 50))]
            case 2:
                changed[at:at] = changed[at : at + rng.choice((1, 20))]
    return bytes(changed)


def as_json(value: Any, rng: random.Random) -> bytes:
    return scrambled(json.dumps(value).encode(), rng)


CONFIGS = [{"model_type": case.family, **case.config} for case in all_cases()]
KEYS = tuple(sorted({key for config in CONFIGS for key in config} | {"rope_parameters", "rope_scaling", "layer_types"}))
assert {config["model_type"] for config in CONFIGS} == set(FAMILIES)


# ------------------------------------------------- one target an entrance


def header(folder: Path, rng: random.Random) -> None:
    """A safetensors file."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in (("a", [2, 3]), ("b", []), ("c", [0, 5]), ("d", [4])):
        size = 4 * math.prod(shape)
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = as_json(mutated(entries, rng), rng)
    length = len(text) if rng.randrange(8) else rng.choice((0, 1, 7, len(text) + 1, 2**31, 2**63, 2**64 - 1))
    path = folder / "file.safetensors"
    path.write_bytes(scrambled(struct.pack("<Q", length) + text + bytes(at), rng))
    for info in read_header(path):
        assert info.bytes <= path.stat().st_size


def index(folder: Path, rng: random.Random) -> None:
    """An index over two shards."""
    for shard in ("one", "two"):
        text = json.dumps({shard: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
        (folder / f"{shard}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    (folder / "config.json").write_text('{"model_type": "phi"}')
    content = {"metadata": {"total_size": 2}, "weight_map": {"one": "one.safetensors", "two": "two.safetensors"}}
    (folder / "model.safetensors.index.json").write_bytes(as_json(mutated(content, rng), rng))
    for info in Checkpoint.open(folder).tensors.values():
        assert info.path is not None
        assert info.path.parent == folder


def config(folder: Path, rng: random.Random) -> None:
    """A config of any family, its table, and a growth by it."""
    (folder / "config.json").write_bytes(as_json(mutated(rng.choice(CONFIGS), rng, KEYS), rng))
    built = architecture(read_config(folder / "config.json"))
    tensors = {name: TensorInfo(name, "F32", shape) for name, shape in built.shapes().items()}
    axis = rng.choice(list(built.axes))
    operator = chain(widen(axis, factor=2), deepen(to=built.depth + 1, init="copy"))
    make_plan(built, operator(Growth.start(built)), tensors)


def derivation(folder: Path, rng: random.Random) -> None:
    """The recipe between a config and a mutated one."""
    start = rng.choice(CONFIGS)
    (folder / "target.json").write_bytes(as_json(mutated(start, rng, KEYS), rng))
    target = read_config(folder / "target.json")
    pair = (start, target) if rng.randrange(2) else (target, start)
    recipe_text(*derive_recipe(*pair))


RECIPES = [YAML(typ="safe", pure=True).load(path.read_text()) for path in shipped_recipes()]
RECIPES += [
    {"description": "d", "steps": [{"op": "deepen", "order": [0, 1, 1, 2, 3, 4, 5], "init": "identity"}]},
    {
        "description": "d",
        "steps": [{"op": "reuse", "to": {"ffn": 600, "residual": 160}, "layers": 8, "method": "tile"}],
    },
    {"description": "d", "steps": [{"op": "upcycle", "experts": 4, "top_k": 2, "router_std": 0.02}]},
    {
        "description": "d",
        "steps": [{"op": "widen", "axis": "vocab", "multiple": 64, "init": "mean", "logit_bias": -2.5}],
    },
]
TEXTS = (
    "&a",
    "*a",
    "<<: {a: 1}",
    "!!binary x",
    "!!python/object:os.system x",
    "? [1]\n: 2",
    "2001-01-01",
    ".nan",
    "%TAG",
)
PHI = architecture(json.loads((PHI_MINI / "config.json").read_text()))
PHI_TENSORS = {name: TensorInfo(name, "F32", shape) for name, shape in PHI.shapes().items()}


def recipe(folder: Path, rng: random.Random) -> None:
    """A recipe, applied to phi-mini."""
    text = as_json(mutated(rng.choice(RECIPES), rng), rng).decode("utf-8", "replace")  # JSON is YAML
    if not rng.randrange(6):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(TEXTS) + text[at:]
    parsed = parse_recipe(text, "r.yaml")
    plan = make_plan(PHI, parsed.grow(PHI, 0), PHI_TENSORS)
    parsed.check(plan.config)
    json.dumps(parsed.to_dict())


def manifest(folder: Path, rng: random.Random) -> None:
    """growth.json as verify and report read it."""
    content = {
        "format": 1, "source": {"config": {}}, "recipe": RECIPES[0], "seed": 0, "preserving": True, "levels": {"residual": 0.5},
        "tensors": {"a": {"source": "a", "axes": [["ffn"]], "xxh3_128": "0" * 32}},
        "steps": [{"operator": "o", "preserving": True, "why": "w"}],
        "sizes": {"before": {"residual": 2}, "after": {"residual": 3}},
        "axes": {"residual": {"before": 2, "after": 3, "runs": [[0, 2, 0, 1.0, 1.0], [2, 3, None, 0, 0.5]]}},
        "layers": [{"source": 0, "silent": False}, {"source": 0, "silent": True}],
        "fingerprint": "0" * 32, "files": {"config.json": "0" * 32}, "headers": {"model.safetensors": "0" * 32},
        "itself": "0" * 32,
    }  # fmt: skip
    (folder / MANIFEST).write_bytes(as_json(mutated(content, rng), rng))
    found = read_manifest(folder)
    if found is not None:
        for axis in found["axes"].values():
            assert len(expansion_from(axis)) == axis["after"]
        recipe_of(found["recipe"], MANIFEST)
        assert json.loads(dump(found)) == found


TOKENIZER = json.loads((PHI_MINI / "tokenizer.json").read_text())
TOKENIZER["model"]["vocab"] = dict(list(TOKENIZER["model"]["vocab"].items())[:40])
TOKENIZER["model"]["merges"] = []


def tokenizer(folder: Path, rng: random.Random) -> None:
    """tokenizer.json as verify reads it."""
    from growth.tokens import choose_tokens

    (folder / "tokenizer.json").write_bytes(as_json(mutated(TOKENIZER, rng), rng))
    choose_tokens(folder, 1024, None, 64, 0)


TARGETS: Mapping[str, Callable[[Path, random.Random], None]] = {
    target.__name__: target for target in (header, index, config, derivation, recipe, manifest, tokenizer)
}
