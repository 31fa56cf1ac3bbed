"""Hostile input, made by mutating valid input: the properties that tests/robustness/test_hostile.py and make fuzz both hold.

A target reads one mutated input. It may return or raise a GrowthError; anything else is a bug.
"""

import io
import json
import math
import os
import pickle
import pickletools
import random
import shutil
import struct
import tempfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML

from growth.api import grow, plan
from growth.architectures import FAMILIES, architecture
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.chunks import chunks
from growth.checkpoints.formats.safetensors import INDEX, SINGLE, layout, read_header
from growth.checkpoints.open import open_checkpoint, open_stored
from growth.checkpoints.untrusted import read_config
from growth.errors import GrowthError
from growth.operators import chain, deepen, widen
from growth.operators.base import Growth
from growth.planning.derive import derive_recipe, recipe_text
from growth.planning.manifest import MANIFEST, dump, expansion_from, read_manifest
from growth.planning.plan import make_plan
from growth.planning.recipe import parse_recipe, recipe_of, shipped_recipes
from growth.verification.inspect import inspect_checkpoint
from tests.support.families import Case, all_cases, random_model
from tests.support.paths import PHI_MINI

SECONDS, BYTES = 2.0, 300 << 20  # of one case, on a busy machine
NASTY: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 7, 63, 64, 2047, 2048, 2049, 2**20, 2**21 + 1, 2**31 - 1, 2**31, 2**53, 2**63,
    2**64, 10**30, 10**4000, -(2**63), 0.0, -0.0, 0.5, 1.5, -2.5, 1e-320, 1e308, math.nan, math.inf, -math.inf,
    "", "x", "1", "[/red]", "\x1b[2J", "\x00", "a\nb", "\ud800", "../../x", "/etc/passwd", "default", "yarn", "llama3",
    "full_attention", "{layer}", "%s{0}", "é" * 300, [], [None], [1], [0] * 3, [1.5], ["x"] * 3, [[]], [{}], [2**62] * 3,
    ["full_attention"] * 3, ["sliding_attention"] * 3, list(range(3000)), {}, {"": 0}, {"a": {}}, {"rope_theta": "x"},
    {"rope_type": []}, {"rope_type": "linear", "factor": -1}, {"full_attention": 3}, {"full_attention": {"rope_theta": 0}},
    {"rope_theta": 1e308}, {"x": [{"y": [{}]}]},
)  # fmt: skip


@contextmanager
def in_time(seconds: float = SECONDS) -> Iterator[None]:
    """Fails where what is within takes above so much processor time."""
    began = time.process_time()
    yield
    took = time.process_time() - began
    assert took < seconds, f"it takes {took:.1f} s"


@contextmanager
def in_memory() -> Iterator[None]:
    """Fails where what is within takes above BYTES of memory; counting them makes it four times as slow."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BYTES, f"it takes {peak:,} bytes"


@contextmanager
def bounded(seconds: float = SECONDS) -> Iterator[None]:
    """Both, the time with memory counted."""
    with in_memory(), in_time(seconds):
        yield


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
    for info in open_stored(folder).tensors.values():
        assert info.path is not None
        assert info.path.parent == folder


def config(folder: Path, rng: random.Random) -> None:
    """A config of any family, its table, and a growth by it."""
    (folder / "config.json").write_bytes(as_json(mutated(rng.choice(CONFIGS), rng, KEYS), rng))
    built = architecture(read_config(folder / "config.json"))
    tensors = {name: TensorInfo(name, "F32", shape) for name, shape in built.shapes().items()}
    axis = rng.choice(list(built.axes))
    operator = chain(widen(axis, factor=2, init="tile"), deepen(to=built.depth + 1, init="copy"))
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
    from growth.verification.tokens import choose_tokens

    (folder / "tokenizer.json").write_bytes(as_json(mutated(TOKENIZER, rng), rng))
    choose_tokens(folder, 1024, None, 64, 0)


# ------------------------------------------------- whole folders

Files = dict[str, bytes]
SMALL = "description: d\nsteps: [{op: widen, axis: ffn, factor: 1.5}, {op: deepen, factor: 2}]"
CASES = {case.family: case for case in reversed(all_cases())}  # the first of each family
NAMES = (
    "", ".", "..", "/", "../secret", "/etc/passwd", "a/b", "a\\b", "~", "$HOME", "-rf", "\x00", "\n", "\r", "\x1b[2J",
    "\u202e", "\ufeff", "\ud800", "[/red]", "%s{0}", "{layer}", "é" * 300, "x" * 5000, "__metadata__", "__class__",
    "model.layers.-1.mlp.fc1.weight", "model.layers.00.mlp.fc1.weight", "model.layers.٣.mlp.fc1.weight",
    f"model.layers.{'9' * 5000}.mlp.fc1.weight", "model" + ".layers.0" * 500, "*", "config.json", "growth.json",
    "model.safetensors", "../secret.safetensors", "/secret.safetensors", "two.safetensors\n", ".safetensors",
)  # fmt: skip


def small(family: str) -> Case:
    """A model of one layer."""
    config = CASES[family].config
    return Case(family, "", {**config, **{key: 1 for key in ("num_hidden_layers", "n_layer") if key in config}})


def saved(family: str, shards: int) -> Files:
    """The files of a small model, by name."""
    config = {"model_type": family, **small(family).config}
    files = {"config.json": json.dumps(config).encode(), "generation_config.json": b'{"eos_token_id": 1}'}
    tensors = [(name, "F32", shape) for name, shape in architecture(config).shapes().items()]
    generator, weight_map = np.random.default_rng(0), {}
    for number in range(shards):
        file = SINGLE if shards == 1 else f"shard-{number}.safetensors"
        head, places = layout(Path(file), tensors[number::shards])
        files[file] = head + generator.standard_normal(sum(p.bytes for p in places) // 4, np.float32).tobytes()
        weight_map |= {place.name: file for place in places}
    return files if shards == 1 else files | {INDEX: json.dumps({"weight_map": weight_map}).encode()}


@cache
def saved_by_engine(family: str) -> Files:
    """The files of torch.distributed.checkpoint of a small model whose tensors are in two chunks each."""
    from tests.support.sharded import save_cut

    with tempfile.TemporaryDirectory() as home:
        save_cut(random_model(small(family), torch.float32).state_dict(), Path(home) / "dcp", 0, 2)
        files = {path.name: path.read_bytes() for path in (Path(home) / "dcp").iterdir()}
    files[".metadata"] = pickle.dumps(pickle.loads(files[".metadata"]), 2)  # without frames, whose lengths would tell
    return files | {"config.json": json.dumps({"model_type": family, **small(family).config}).encode()}


@cache
def checkpoints() -> list[Files]:
    """Small ones of several families and every layout."""
    return [
        saved("phi", 1), saved("phi", 2), saved("llama", 1), saved("gpt2", 1), saved("mixtral", 2),
        saved_by_engine("llama"), saved_by_engine("mixtral"),
    ]  # fmt: skip


def lay(folder: Path, files: Files) -> None:
    """Makes a folder of these files alone, as far as a file system takes their names."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in files.items():
        if "/" not in name:
            with suppress(OSError, ValueError):
                (folder / name).write_bytes(content)


def with_header(content: bytes, header: Any) -> bytes:
    """A safetensors file with another header before the same values."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + struct.unpack("<Q", content[:8])[0] :]


def header_of(content: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    return found


def bombs(flag: Path) -> list[bytes]:
    """Pieces of pickles, each of which would make the folder `flag` where it were run."""
    text = b"X" + struct.pack("<I", len(str(flag))) + str(flag).encode()
    command = b"X" + struct.pack("<I", len(f"mkdir {flag}")) + f"mkdir {flag}".encode()
    return [
        b"cposix\nmkdir\n" + text + b"\x85R",
        b"(" + text + b"iposix\nmkdir\n",
        b"(cposix\nmkdir\n" + text + b"o",
        b"\x8c\x05posix\x8c\x05mkdir\x93" + text + b"\x85R",
        b"cos\nsystem\n" + command + b"\x85R",
        b"cbuiltins\ngetattr\ncposix\nmkdir\n\x8c\x08__call__\x86R" + text + b"\x85R",
        b"ctorch.serialization\nos.mkdir\n" + text + b"\x85R",
        b"cbuiltins\neval\n\x8c\x01x\x85R",
    ]


PIECES = [pickle.dumps(value, 2)[2:-1] for value in NASTY]
PIECES += [
    b"h\x00", b"h\x05", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x03", b"q\x00", b"0", b"1", b"2", b"(", b")", b"]", b"}", b"t",
    b"\x85", b"\x86", b"\x87", b"a", b"e", b"s", b"u", b"b", b"R", b"\x81", b"\x82\x01", b"Px\n", b"Q", b".", b"\x8f", b"\x91",
    b"\x93", b"\x95\xff\xff\xff\xff\xff\xff\xff\x7f", b"B\xff\xff\xff\x7f", b"\x8a\xff" + b"\x7f" * 255,
    b"\x8b\xff\xff\xff\x7f", b"\x8e" + b"\xff" * 7 + b"\x7f", b"ctorch\nfloat32\n", b"ctorch\nSize\n",
    b"ctorch\nFloatStorage\n", b"cpathlib\nPosixPath\n", b"ccollections\nOrderedDict\n)R", b")q\x00" + b"h\x00h\x00\x86q\x00" * 60,
    b"]q\x00" + b"0]q\x00(h\x00h\x00e" * 30, b"(" * 1000,
]  # fmt: skip


def mutated_pickle(content: bytes, rng: random.Random, flag: Path) -> bytes:
    """One to four of its codes changed, left out, repeated, or with others before them; once in eight times bytes."""
    starts = [at for _, _, at in pickletools.genops(content)]
    codes = [content[a:b] for a, b in zip(starts, [*starts[1:], len(content)], strict=True)]
    values = [n for n, code in enumerate(codes) if code[:1] in b"KMJXN\x88\x89)}]hj\x8c"]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(1, len(codes))
        match rng.randrange(8):
            case 0:
                codes[at] = b""
            case 1:
                codes[at] *= rng.choice((2, 50))
            case 2:
                codes[at] = rng.choice(PIECES) + codes[at]
            case 3:
                codes[at] = rng.choice(bombs(flag)) + codes[at]
            case 4:
                codes[at] = rng.choice(codes)
            case 5:
                codes[rng.choice(values)] = codes[rng.choice(values)]
            case _:
                codes[rng.choice(values)] = rng.choice(PIECES[: len(NASTY)])
    return scrambled(b"".join(codes), rng)


def with_payload(files: Files, rng: random.Random, flag: Path) -> Files:
    """One chunk is an archive behind the others, of a changed pickle or other members."""
    metadata = pickle.loads(files[".metadata"])
    place = rng.choice(list(metadata.storage_data.values()))
    content = files[place.relative_path]
    kind = rng.choice((zipfile.ZIP_STORED,) * 7 + (zipfile.ZIP_DEFLATED,))
    archive = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content[place.offset : place.offset + place.length])) as old,
        zipfile.ZipFile(archive, "w", kind) as new,
    ):
        for number, name in enumerate(old.namelist()):
            member = old.read(name)
            if name.endswith("data.pkl"):
                member = mutated_pickle(member, rng, flag)
            elif not rng.randrange(8):
                member = rng.choice((b"", b"big", member * 2, member[:-1], scrambled(member, rng)))
            if rng.randrange(40):
                new.writestr(name if rng.randrange(40) else f"{number}/../x", member)
    added = scrambled(archive.getvalue(), rng)
    place.offset, place.length = len(content), len(added)
    return files | {place.relative_path: content + added, ".metadata": pickle.dumps(metadata, 2)}


def damaged(files: Files, rng: random.Random, flag: Path) -> Files:
    """The files of a checkpoint with one of them changed, missing, cut short or in place of another."""
    name = rng.choice(list(files))
    content = files[name]
    changed = scrambled(content, rng)
    match rng.randrange(12):
        case 0:
            return {other: content for other, content in files.items() if other != name}
        case 1:
            return files | {name: files[rng.choice(list(files))]}
        case 2:
            return files | {name: content[: rng.randrange(len(content))]}
        case 3:  # infinities, and numbers of any size
            at = 4 * rng.randrange(max(1, len(content) // 4))
            changed = content[:at] + rng.choice((b"\0\0\x80\x7f", b"\xff" * 4, rng.randbytes(4))) + content[at + 4 :]
        case _ if name.endswith(".json"):
            changed = as_json(mutated(json.loads(content), rng, KEYS if name == "config.json" else ()), rng)
        case _ if name.endswith(".safetensors"):
            changed = scrambled(with_header(content, mutated(header_of(content), rng)), rng)
        case 4 | 5 | 6 | 7 if ".metadata" in files:
            return with_payload(files, rng, flag)
        case _ if name == ".metadata":
            changed = mutated_pickle(content, rng, flag)
    return files | {name: changed}


def dcp(folder: Path, rng: random.Random) -> None:
    """A folder of torch.distributed.checkpoint: every byte of an accepted one is there, and nothing is run."""
    home, flag = folder / "dcp", folder / "ran"
    files = saved_by_engine(rng.choice(("llama", "llama", "mixtral")))
    if rng.randrange(3):
        files = files | {".metadata": mutated_pickle(files[".metadata"], rng, flag)}
    else:
        files = damaged(files, rng, flag)
    lay(home, files)
    try:
        found = open_checkpoint(home)
    finally:
        assert not flag.exists()
    for info in found.tensors.values():
        for chunk in chunks(info):
            assert chunk.info.path is not None
            assert chunk.info.path.parent == home
            assert chunk.info.begin + chunk.info.bytes <= chunk.info.path.stat().st_size


def names(folder: Path, rng: random.Random) -> None:
    """Tensors and files under names that mean something elsewhere."""
    files = dict(checkpoints()[1])
    weight_map: dict[str, str] = json.loads(files[INDEX])["weight_map"]
    for _ in range(rng.choice((1, 1, 2, 4))):
        old = rng.choice(list(weight_map))
        file = weight_map[old]
        word = rng.choice(NAMES)
        at = rng.randrange(len(old) + 1)
        new = word if rng.randrange(2) else old[:at] + word + old[at:]
        kind = rng.randrange(5)
        if kind < 2 and file in files:  # in the file
            found = {new if name == old else name: entry for name, entry in header_of(files[file]).items()}
            files[file] = with_header(files[file], found)
        if 0 < kind < 3:  # in the index
            weight_map = {new if name == old else name: shard for name, shard in weight_map.items()}
        if kind > 2:  # of the file
            new = word if rng.randrange(2) else word + ".safetensors"
            weight_map = {n: new if f == file and (kind == 3 or n == old) else f for n, f in weight_map.items()}
            files[new] = files.get(file, b"")
    files[INDEX] = as_json({"weight_map": weight_map}, rng)
    home = folder / "model"
    lay(home, files)
    (folder / "secret.safetensors").write_bytes(checkpoints()[0][SINGLE])
    found = open_stored(home)
    assert all(info.path is not None and info.path.parent == home for info in found.tensors.values())
    inspect_checkpoint(home)
    plan(parse_recipe(SMALL, "r.yaml"), home)


def end_to_end(folder: Path, rng: random.Random) -> None:
    """A folder that is to grow: where it is refused nothing is left, and where it is not the result opens."""
    home, flag = folder / "home", folder / "ran"
    lay(home / "source", damaged(rng.choice(checkpoints()), rng, flag))
    shutil.rmtree(home / "out", ignore_errors=True)
    try:
        grow(parse_recipe(SMALL, "r.yaml"), home / "source", home / "out")
    except GrowthError:
        assert os.listdir(home) == ["source"]
        raise
    finally:
        assert not flag.exists()
    assert sorted(os.listdir(home)) == ["out", "source"]
    found = open_checkpoint(home / "out")
    assert {name: info.shape for name, info in found.tensors.items()} == architecture(found.config).shapes()
    assert read_manifest(home / "out") is not None


TARGETS: Mapping[str, Callable[[Path, random.Random], None]] = {
    target.__name__: target
    for target in (header, index, config, derivation, recipe, manifest, tokenizer, dcp, names, end_to_end)
}
