"""A grown model loaded by torch.distributed.checkpoint: the file's values, the source's function, few bytes read."""

import json
import os
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

import growth
from growth.arrays.torch_interop import as_tensor
from growth.checkpoints.open import open_stored
from growth.checkpoints.tensor_reader import Files
from growth.distributed.grow_reader import GrowReader, empty_model, materialise
from growth.distributed.parameter_boxes import BoxSource, grow_box
from growth.engine.grow_tensor import measure
from growth.errors import CheckpointError, GrowthError
from growth.verification.streaming import load_stock
from tests.distributed.load_sharded import difference, memory, trainer_optimizer
from tests.support.families import random_model
from tests.support.ranks import torchrun
from tests.support.sharded import CASES, DEEP, QUARTER, WIDER

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")

RANDOM = """
description: fresh units and noise
steps:
  - {op: widen, axis: residual, to: 80, init: pad}
  - {op: widen, axis: ffn, to: 128, init: tile}
  - {op: break_symmetry}
"""
RECIPES = {
    "wider": WIDER,
    "random": RANDOM,
    "quarter": QUARTER,
    "padded": QUARTER.replace("tile, shares: random", "pad"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Source, recipe file and grown folder of a case, which is grown in float32 whatever the source is stored in."""
    home, done = tmp_path_factory.mktemp("distributed"), {}

    def make(case, recipe="wider", stored="float32"):
        if (case, recipe, stored) not in done:
            folder = home / f"{case}-{recipe}-{stored}"
            model = random_model((CASES | DEEP)[case], getattr(torch, stored))
            model.save_pretrained(folder / "source")
            (folder / "recipe.yaml").write_text(RECIPES[recipe])
            growth.grow(folder / "recipe.yaml", folder / "source", folder / "grown", dtype="float32")
            torch.save(optimizer_state(model), folder / "source" / "optimizer.pt")
            growth.grow_training(folder / "recipe.yaml", folder / "source", folder / "trained")
            shutil.copy(folder / "trained" / "optimizer.pt", folder / "grown")
            done[case, recipe, stored] = folder
        return done[case, recipe, stored]

    return make


def optimizer_state(model):
    """What AdamW keeps after two steps on random gradients."""
    optimizer, draws = trainer_optimizer(model), torch.Generator().manual_seed(0)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws).to(parameter.dtype)
        optimizer.step()
    return optimizer.state_dict()


def loaded(reader):
    model = materialise(empty_model(reader.config), "cpu")
    state = model.state_dict()
    dcp.load(state, storage_reader=reader)
    return model.eval()


@pytest.mark.parametrize("recipe", ["wider", "random"])
@pytest.mark.parametrize("case", CASES)
def test_a_loaded_model_is_that_of_the_file(made, case, recipe):
    folder = made(case, recipe)
    model = loaded(GrowReader(folder / "source", folder / "recipe.yaml"))
    expected = load_stock(folder / "grown")
    found = model.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
    assert all(map(torch.equal, model.buffers(), expected.buffers()))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


def test_an_upcycled_model_is_that_of_the_file(made, tmp_path):
    source = made("qwen3") / "source"
    operator = growth.upcycle(experts=4, top_k=2)
    growth.grow(operator, source, tmp_path / "grown")
    found = loaded(GrowReader(source, operator)).state_dict()
    expected = load_stock(tmp_path / "grown").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def box_of(data, shape):
    edges = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in shape]
    return tuple(a for a, _ in edges), tuple(b - a for a, b in edges)


@pytest.mark.parametrize(("case", "recipe"), [("phi", "wider"), ("llama", "random"), ("phi", "random")])
def test_every_box_is_that_of_the_file(made, case, recipe):
    folder = made(case, recipe)
    plan = growth.plan(folder / "recipe.yaml", folder / "source")
    expected = load_file(folder / "grown" / "model.safetensors")
    files = Files(open_stored(folder / "source").tensors)
    statistics = {tensor_map.target: measure(tensor_map, BoxSource(files)) for tensor_map in plan.tensors}

    @given(data=st.data())
    def check(data):
        tensor_map = data.draw(st.sampled_from(plan.tensors))
        box = box_of(data, tensor_map.shape)
        found = [
            values
            for _, values in grow_box(
                tensor_map, BoxSource(files, tensor_map, box), statistics[tensor_map.target], plan.seed, box
            )
        ]
        place = tuple(slice(o, o + n) for o, n in zip(*box, strict=True))
        assert torch.equal(as_tensor(np.concatenate(found), tensor_map.dtype), expected[tensor_map.target][place])

    check()


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_bytes_read_fall_with_the_number_of_shards(made, axis, ranks):
    """Of a matrix, to the byte but for old indices that two shards copy."""
    folder = made("llama")
    plan = growth.plan(folder / "recipe.yaml", folder / "source")
    files = Files(open_stored(folder / "source").tensors)

    def read(tensor_map, box):
        part = BoxSource(files, tensor_map, box)
        list(grow_box(tensor_map, part, measure(tensor_map, BoxSource(files)), 0, box))
        return part.bytes_read

    for tensor_map in plan.tensors:
        if len(tensor_map.shape) < 2 or tensor_map.zero:
            continue
        edges = np.linspace(0, tensor_map.shape[axis], ranks + 1, dtype=int)
        dimension = tensor_map.dimensions[axis]
        for a, b in pairwise(edges):
            offsets, sizes = [0, 0], list(tensor_map.shape)
            offsets[axis], sizes[axis] = int(a), int(b - a)
            others = tensor_map.dimensions[1 - axis]
            # a row is read as often as it is copied, its columns once
            rows, columns = (b - a, others.size) if axis == 0 else (len(others), len(set(dimension.source[a:b])))
            assert read(tensor_map, (offsets, sizes)) <= 4 * rows * columns


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_rounded_once(made, tmp_path, dtype):
    folder = made("llama")
    random_model(CASES["llama"], dtype).save_pretrained(tmp_path / "source")
    growth.grow(folder / "recipe.yaml", tmp_path / "source", tmp_path / "grown", dtype="float32")
    reader = GrowReader(tmp_path / "source", folder / "recipe.yaml", dtype="float32")
    assert reader.config["dtype"] == "float32"
    found = loaded(reader).state_dict()
    expected = load_file(tmp_path / "grown" / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_parameters_of_another_type_hold_the_files_values(made, tmp_path):
    folder = made("llama")
    random_model(CASES["llama"], torch.bfloat16).save_pretrained(tmp_path / "source")
    growth.grow(folder / "recipe.yaml", tmp_path / "source", tmp_path / "grown")
    reader = GrowReader(tmp_path / "source", folder / "recipe.yaml")
    state = {name: torch.empty(p.shape) for name, p in empty_model(reader.config).state_dict().items()}
    dcp.load(state, storage_reader=reader)
    expected = load_file(tmp_path / "grown" / "model.safetensors")
    assert all(torch.equal(state[name], tensor.float()) for name, tensor in expected.items())


def folder_of(state, folder, *, flat):
    """A folder of torch.distributed.checkpoint that holds an optimizer's state under a prefix, as accelerate saves it."""
    model = load_stock(state.parent, torch.float32)
    optimizer, options = trainer_optimizer(model), StateDictOptions(flatten_optimizer_state_dict=flat)
    optimizer.load_state_dict(torch.load(state, weights_only=True))
    dcp.save({"optimizer": get_optimizer_state_dict(model, optimizer, options=options)}, checkpoint_id=folder)
    return folder


def by_name(state, path):
    """The file that accelerate writes of a whole state: parameters have names."""
    model = load_stock(state.parent, torch.float32)
    optimizer = trainer_optimizer(model)
    optimizer.load_state_dict(torch.load(state, weights_only=True))
    torch.save(get_optimizer_state_dict(model, optimizer), path)
    return path


STORED = {
    "optimizer.pt": lambda state, home: state,
    "optimizer.bin": lambda state, home: by_name(state, home / "optimizer.bin"),
    "folder": lambda state, home: folder_of(state, home / "optimizer_0", flat=False),
    "flat folder": lambda state, home: folder_of(state, home / "optimizer_0", flat=True),
}


@pytest.mark.parametrize("store", STORED.values(), ids=STORED)
def test_the_optimizers_state_is_read_however_it_is_stored(made, tmp_path, store):
    folder = made("phi")
    stored = store(folder / "source" / "optimizer.pt", tmp_path)
    reader = GrowReader(folder / "source", folder / "recipe.yaml", dtype="float32", optimizer=stored)
    assert difference(loaded(reader), reader, folder / "grown") == []


def test_new_layers_start_at_step_0_unless_they_get_the_mean(made):
    folder = made("llama")
    reader = GrowReader(folder / "source", folder / "recipe.yaml", optimizer=folder / "source", fresh="zero")
    state, _ = memory(loaded(reader), reader)
    growth.grow_training(folder / "recipe.yaml", folder / "source", folder / "zero", fresh="zero")
    expected = torch.load(folder / "zero" / "optimizer.pt", weights_only=True)["state"]
    assert expected.keys() < state.keys()
    for number, entry in state.items():
        for key, value in entry.items():
            assert torch.equal(value, expected[number][key] if number in expected else torch.zeros_like(value))


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN or Inf"), (-1.0, "negative")])
def test_a_damaged_second_moment_is_refused(made, tmp_path, value, said):
    folder = made("llama")
    state = torch.load(folder / "source" / "optimizer.pt", weights_only=True)
    state["state"][3]["exp_avg_sq"][5, 5] = value
    torch.save(state, tmp_path / "optimizer.pt")
    reader = GrowReader(folder / "source", folder / "recipe.yaml", optimizer=tmp_path / "optimizer.pt")
    with pytest.raises(dcp.api.CheckpointException) as caught:
        memory(loaded(reader), reader)
    (failure, _), *_ = caught.value.failures.values()
    assert isinstance(failure, GrowthError)
    assert said in str(failure)


def test_a_source_that_is_not_finite_is_refused(made, tmp_path):
    folder = made("llama")
    random_model(CASES["llama"], torch.float32).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(dcp.api.CheckpointException) as caught:
        loaded(GrowReader(tmp_path, folder / "recipe.yaml"))
    (failure, _), *_ = caught.value.failures.values()
    assert isinstance(failure, CheckpointError)
    assert "holds NaN or Inf" in str(failure)


# ------------------------------------------------- under torchrun

SHARDED = [  # case, recipe, the type that the source is stored in, placement
    ("phi", "wider", "float32", "rows"),
    ("llama", "wider", "float32", "columns"),
    ("llama-tied", "wider", "float32", "rows"),
    ("qwen3", "wider", "float32", "columns"),
    ("gemma2", "wider", "float32", "rows"),
    ("mixtral", "wider", "float32", "rows"),
    ("phi", "wider", "bfloat16", "columns"),
    ("phi", "random", "bfloat16", "rows"),
    ("llama", "random", "float32", "rows"),
    ("llama", "random", "bfloat16", "columns"),
]
WITH_OPTIMIZER = [SHARDED[5], SHARDED[6], SHARDED[8]]  # on two ranks; on more, all
MESHES = [  # of two by two ranks, whose pairs share matrices (tensor parallelism): FSDP2 as well, or alone
    ("llama", "wider", "float32", "mesh"),
    ("phi", "random", "float32", "mesh"),
    ("phi", "wider", "float32", "tensor"),
]
MEASURED = [
    ("deep-phi", "quarter", "float32", "rows"),
    ("deep-phi", "quarter", "float32", "columns"),
    ("deep-llama", "padded", "float32", "rows"),
    ("deep-llama", "padded", "float32", "columns"),
]
MOST = {"rows": 1.2, "columns": 1.5}  # what a rank reads of deep models, over an equal share of what one process reads


@pytest.fixture(scope="module")
def ranks_saw(made, tmp_path_factory):
    """By number of ranks: the folder of logits, and what each rank saw."""
    home = tmp_path_factory.mktemp("ranks")

    def case_of(sharded, ranks):
        folder = made(*sharded[:3])
        paths = {name: str(folder / name) for name in ("source", "grown", "recipe.yaml")}
        is_grown = ranks > 2 or sharded in (*WITH_OPTIMIZER, *MEASURED)
        return paths | {"placement": sharded[3], "optimizer": paths["source"] if is_grown else None}

    def run(ranks, chosen):
        output = home / f"{ranks}-{'-'.join(chosen[0])}"
        if not output.exists():
            output.mkdir()
            (output / "cases.json").write_text(
                json.dumps({"-".join(sharded): case_of(sharded, ranks) for sharded in chosen})
            )
            torchrun(ranks, "-m", "tests.distributed.load_sharded", output / "cases.json", output)
        return output, [json.loads((output / f"rank{rank}.json").read_text()) for rank in range(ranks)]

    return run


def check_shards(made, ranks_saw, ranks, chosen):
    """Check the values of shards and what the model computes; return what each rank saw."""
    output, seen = ranks_saw(ranks, chosen)
    ids = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(1))
    for sharded in chosen:
        folder, name = made(*sharded[:3]), "-".join(sharded)
        config = json.loads((folder / "grown" / "config.json").read_text())
        for rank in seen:
            assert rank[name]["different"] == rank[name]["unknown"] == rank[name].get("memory", []) == [], name
            assert rank[name]["tied"] == bool(config["tie_word_embeddings"])
            assert rank[name]["bytes"] == rank[name]["read"], name
        with torch.no_grad():
            expected = load_stock(folder / "source", torch.float32)(input_ids=ids).logits
        logits = load_file(output / f"{name}.safetensors")["logits"]
        assert logits.dtype == torch.float32
        assert (logits - expected).norm() < 1e-5 * expected.norm(), name
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_shards_of_weights_and_of_the_optimizer_are_the_files(made, ranks_saw, ranks):
    check_shards(made, ranks_saw, ranks, SHARDED if ranks == 2 else SHARDED + MESHES)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_each_rank_reads_its_share_of_weights_and_of_the_optimizer(made, ranks_saw, ranks):
    seen = check_shards(made, ranks_saw, ranks, MEASURED)
    factors = {}
    for sharded in MEASURED:
        folder, name = made(*sharded[:3]), "-".join(sharded)
        state = folder / "source" / "optimizer.pt"
        alone = GrowReader(folder / "source", folder / "recipe.yaml", dtype="float32", optimizer=state)
        model = loaded(alone)
        weights = alone.bytes_read
        memory(model, alone)
        for kind, one in (("bytes", weights), ("memory_bytes", alone.bytes_read)):
            factors[name, kind] = max(rank[name][kind] for rank in seen) * ranks / one
    print(factors)
    assert all(factor <= MOST[name.rpartition("-")[2]] for (name, _), factor in factors.items()), factors


def test_a_launcher_starts_the_command_once_a_rank(phi_mini, tmp_path):
    command = [Path(sys.executable).with_name("growth"), "grow", "phi-mini", "-s", phi_mini, "--max-shard-size", "1MB"]
    said = torchrun(2, "--no-python", *command, "-o", tmp_path / "shared")
    assert said.count("Wrote") == 2
    growth.grow("phi-mini", phi_mini, tmp_path / "alone", max_shard_size="1MB")
    shared, alone = ({f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("shared", "alone"))
    assert shared == alone
    assert sorted(os.listdir(tmp_path)) == ["alone", "shared"]


@pytest.mark.slow
def test_the_example_runs(phi_mini):
    said = torchrun(2, "examples/grow_on_load.py", phi_mini, "phi-mini")
    assert said.count(" bytes") == 2
    assert "one step taken" in said


@pytest.mark.parametrize("bits", [0xFFFFFFFF, 0x7FFFFFFF, 0x7FC00000, 0xFF800000])
def test_values_that_are_not_finite_are_refused_whatever_their_bits(bits, made, tmp_path):
    """Before they are converted: a NaN of all ones narrows to a zero on some processors."""
    shutil.copytree(made("llama") / "source", tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("o_proj.weight"))
    tensors[name] = tensors[name].float()
    tensors[name].view(torch.int32)[0, 0] = bits - (1 << 32) if bits >> 31 else bits
    save_file(tensors, path)
    with pytest.raises(dcp.api.CheckpointException) as caught:
        loaded(GrowReader(tmp_path / "source", made("llama") / "recipe.yaml", dtype="bfloat16"))
    (failure, _), *_ = caught.value.failures.values()
    assert isinstance(failure, CheckpointError)
    assert "holds NaN or Inf" in str(failure)
