"""Folders of torch.distributed.checkpoint as source and as output, and hostile ones."""

import io
import itertools
import json
import os
import pickle
import resource
import shutil
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    MetadataIndex,
    TensorProperties,
)

import growth
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.chunks import Chunk, ChunkedInfo
from growth.checkpoints.expert_stacks import count_pieces, offsets, unstacked
from growth.checkpoints.open import open_checkpoint, open_stored
from growth.cli.app import app
from growth.errors import CheckpointError, ConfigError
from growth.verification.html_report import write_html
from growth.verification.inspect import inspect_checkpoint
from growth.verification.streaming import load_stock, read_tensor
from tests.support.families import Case, all_cases, random_model
from tests.support.sharded import CASES, SIZES, UNTIED, WIDER, save_cut

MIXTURES = {
    "qwen3-moe": Case(
        "qwen3_moe", "", SIZES | UNTIED | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    ),
}
WIDER_STREAM = """
description: wider and deeper
steps:
  - {op: widen, axis: residual, to: 80, init: tile, shares: random}
  - {op: deepen, to: 3, order: interleave, init: identity}
"""
pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(WIDER)
    return tmp_path / "recipe.yaml"


def saved(case, folder, dtype=torch.float32):
    """A model as transformers saves it, and its state dict as the checkpoint engine does."""
    model = random_model((CASES | MIXTURES)[case], dtype)
    model.save_pretrained(folder / "safetensors")
    dcp.save(model.state_dict(), checkpoint_id=folder / "dcp", no_dist=True)
    shutil.copy(folder / "safetensors" / "config.json", folder / "dcp")
    return folder / "safetensors", folder / "dcp"


@pytest.mark.parametrize("case", ["phi", "llama", "llama-tied", "qwen3", "gemma2"])
def test_a_folder_grows_as_its_safetensors_do(tmp_path, recipe, case):
    plain, folder = saved(case, tmp_path, torch.bfloat16)
    growth.grow(recipe, plain, tmp_path / "expected")
    growth.grow(recipe, folder, tmp_path / "found")
    assert (tmp_path / "found" / "model.safetensors").read_bytes() == (
        tmp_path / "expected" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("axis", [0, 1])
def test_what_several_ranks_saved_grows_as_one_file(tmp_path, recipe, axis):
    plain, _ = saved("phi", tmp_path)
    folder = tmp_path / "cut"
    save_cut(load_file(plain / "model.safetensors"), folder, axis)
    shutil.copy(plain / "config.json", folder)
    assert isinstance(open_stored(folder).tensors["model.embed_tokens.weight"], ChunkedInfo)
    back = {name: torch.empty_like(t) for name, t in load_file(plain / "model.safetensors").items()}
    dcp.load(back, checkpoint_id=folder, no_dist=True)  # the engine reads it too
    growth.grow(recipe, plain, tmp_path / "expected")
    growth.grow(recipe, folder, tmp_path / "found")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "found"))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("case", ["mixtral", "qwen3-moe"])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_experts_are_found_in_the_parameters_that_hold_them(tmp_path, case, axis):
    (recipe := tmp_path / "recipe.yaml").write_text(WIDER_STREAM)
    plain, folder = saved(case, tmp_path, torch.bfloat16)
    if axis is not None:
        save_cut(load_stock(plain).state_dict(), tmp_path / "cut", axis)
        shutil.copy(plain / "config.json", tmp_path / "cut")
        folder = tmp_path / "cut"
    growth.grow(recipe, plain, tmp_path / "expected")
    growth.grow(recipe, folder, tmp_path / "found")
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("expected", "found"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert inspect_checkpoint(folder).problem is None


@pytest.mark.parametrize("experts", [1, 3])
def test_stacks_are_cut_as_slicing_does(tmp_path, experts):
    """Chunks cut along any axes, tensors that lie beside one another in them."""
    generator = np.random.default_rng(experts)
    for number in range(30):
        beside, high, width = (int(n) for n in generator.integers(1, 5, 3))
        values = torch.arange(experts * beside * high * width, dtype=torch.float32).view(experts, beside * high, width)
        boxes = list(_boxes([np.unique([0, *generator.integers(0, n, 2), n]) for n in values.shape]))
        cut = [np.ix_(*map(np.arange, a, b)) for a, b in boxes]
        (path := tmp_path / f"{number}.bin").write_bytes(b"".join(values.numpy()[at].tobytes() for at in cut))
        begin, found = 0, []
        for a, b in boxes:
            info = TensorInfo("stack", "F32", tuple(y - x for x, y in zip(a, b, strict=True)), path, begin)
            begin += info.bytes
            found.append(Chunk(a, info))
        stack = ChunkedInfo("stack", "F32", tuple(values.shape), path, 0, tuple(found))
        places = offsets(experts * beside, (high, width), tuple(values.shape))
        parts = {at: TensorInfo(f"part.{n}", "F32", (high, width)) for n, at in enumerate(places)}
        assert count_pieces(stack, (high, width)) >= len(parts)
        for (expert, low, _), part in parts.items():
            info = unstacked(stack, parts)[part.name]
            assert torch.equal(read_tensor(info), values[expert, low : low + high])


def _boxes(edges):
    """Every box between edges of each axis: where it begins and ends."""
    for box in itertools.product(*map(itertools.pairwise, edges)):
        yield tuple(int(a) for a, _ in box), tuple(int(b) for _, b in box)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "falcon"])
def test_a_tied_head_is_left_out_whatever_it_is_called(tmp_path, family):
    config = next(case for case in all_cases() if case.family == family).config | {"tie_word_embeddings": True}
    model = random_model(Case(family, "", config), torch.float32)
    model.save_pretrained(tmp_path / "plain")
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    shutil.copy(tmp_path / "plain" / "config.json", tmp_path / "dcp")
    for name in ("plain", "dcp"):
        growth.grow(growth.deepen(factor=2), tmp_path / name, tmp_path / f"{name}-grown")
    expected, found = (load_file(tmp_path / f"{name}-grown" / "model.safetensors") for name in ("plain", "dcp"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    growth.grow(growth.deepen(factor=2), tmp_path / "dcp", tmp_path / "again", format="dcp")
    assert growth.verify(tmp_path / "plain", tmp_path / "again", tokens=8).passed
    assert inspect_checkpoint(tmp_path / "again").problem is None


@pytest.mark.parametrize("wrong", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 704 vs 598")])
def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path, recipe, monkeypatch, wrong):
    plain, _ = saved("llama", tmp_path)

    def fails(*arguments):
        raise wrong

    monkeypatch.setattr("growth.distributed.dcp_writer.grow_box", fails)
    with pytest.raises(CheckpointError, match=r"cannot be written: (No space left|unexpected pos)"):
        growth.grow(recipe, plain, tmp_path / "grown", format="dcp")
    assert not [name for name in os.listdir(tmp_path) if "grown" in name]


@pytest.mark.parametrize("number", [1, 4])
def test_a_tied_head_is_the_embedding_or_refused(tmp_path, recipe, number):
    sizes = SIZES | {"tie_word_embeddings": True, "num_local_experts": number, "num_experts_per_tok": 1}
    model = random_model(Case("mixtral", "", sizes), torch.float32)
    model.save_pretrained(tmp_path / "plain")
    for name in ("tied", "alone", "other"):
        state = {key: value.clone() for key, value in model.state_dict().items()}
        state["lm_head.weight"] += name == "other"
        if name == "alone":
            del state["model.embed_tokens.weight"]
        dcp.save(state, checkpoint_id=tmp_path / name, no_dist=True)
        shutil.copy(tmp_path / "plain" / "config.json", tmp_path / name)
    growth.grow(recipe, tmp_path / "plain", tmp_path / "expected")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    for name in ("tied", "alone"):
        growth.grow(recipe, tmp_path / name, tmp_path / f"{name}-grown")
        found = load_file(tmp_path / f"{name}-grown" / "model.safetensors")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        growth.grow(recipe, tmp_path / "other", tmp_path / "refused")


def test_experts_in_too_many_pieces_are_refused(tmp_path, monkeypatch):
    plain, _ = saved("mixtral", tmp_path)
    save_cut(load_stock(plain).state_dict(), tmp_path / "cut", 2)
    shutil.copy(plain / "config.json", tmp_path / "cut")
    monkeypatch.setattr(
        "growth.checkpoints.open.LARGEST_PIECES", 2 * 4 * 3 * 3
    )  # layers, experts, tensors of each, ranks
    open_checkpoint(tmp_path / "cut")
    monkeypatch.setattr("growth.checkpoints.open.LARGEST_PIECES", 2 * 4 * 3 * 3 - 1)
    with pytest.raises(CheckpointError, match="72 pieces, and at most 71"):
        open_checkpoint(tmp_path / "cut")


def test_an_expert_that_is_missing_is_named_as_in_files(tmp_path, recipe):
    plain, _ = saved("mixtral", tmp_path)
    state = load_stock(plain).state_dict()
    del state["model.layers.1.mlp.experts.down_proj"]
    save_cut(state, tmp_path / "cut", 0)
    shutil.copy(plain / "config.json", tmp_path / "cut")
    with pytest.raises(CheckpointError, match=r"lacks .*model\.layers\.1\.block_sparse_moe\.experts\.0\.w2"):
        growth.plan(recipe, tmp_path / "cut")


@pytest.mark.parametrize(
    "case", [pytest.param("phi", marks=pytest.mark.slow), pytest.param("llama-tied", marks=pytest.mark.slow), "mixtral"]
)
def test_folders_are_verified_and_inspected(tmp_path, recipe, case):
    plain, folder = saved(case, tmp_path)
    shutil.copy(plain / "generation_config.json", folder)
    growth.grow(recipe, plain, tmp_path / "expected")
    growth.grow(recipe, folder, tmp_path / "grown", format="dcp")
    for source in (plain, folder):
        found = growth.verify_weights(source, tmp_path / "grown", recipe)
        assert found.passed
        assert bool(found.warnings) is (source is plain)  # growth.json calls the source by its folder's name
        expected = growth.verify(source, tmp_path / "expected", dtype="float32", tokens=16)
        report = growth.verify(source, tmp_path / "grown", dtype="float32", tokens=16)
        assert report.layers
        assert (report.layers, report.logits, report.floor) == (expected.layers, expected.logits, expected.floor)
    found, other = (inspect_checkpoint(tmp_path / name) for name in ("grown", "expected"))
    assert found.problem is None
    assert (found.parameters, found.sizes) == (other.parameters, other.sizes)
    write_html(report, folder, tmp_path / "grown", tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().count("<img") >= 2  # errors by layer, and weights


def test_a_flipped_bit_is_found_and_its_tensor_named(tmp_path, recipe):
    plain, _ = saved("mixtral", tmp_path)
    growth.grow(recipe, plain, tmp_path / "grown", format="dcp")
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight"
    info = open_checkpoint(tmp_path / "grown").tensors[name]
    with info.path.open("r+b") as file:
        file.seek(info.begin + info.bytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    assert growth.verify_weights(plain, tmp_path / "grown").problems.keys() == {name, info.path.name}


@pytest.mark.parametrize("case", ["phi", "llama-tied", "gemma2", "mixtral"])
def test_what_is_written_is_what_the_engine_loads(tmp_path, recipe, case):
    plain, _ = saved(case, tmp_path)
    growth.grow(recipe, plain, tmp_path / "expected")
    growth.grow(recipe, plain, tmp_path / "grown", format="dcp")
    assert {".metadata", "config.json", "growth.json"} <= set(os.listdir(tmp_path / "grown"))
    expected = load_stock(tmp_path / "expected").state_dict()
    state = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
    dcp.load(state, checkpoint_id=tmp_path / "grown", no_dist=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    told, other = (json.loads((tmp_path / name / "growth.json").read_text()) for name in ("grown", "expected"))
    assert told["axes"] == other["axes"]
    assert told["tensors"] == other["tensors"]  # the hash of each one's bytes too
    assert told["files"]["config.json"] == other["files"]["config.json"]
    assert set(told["files"]) == set(os.listdir(tmp_path / "grown")) - {"growth.json"}


def test_what_is_written_grows_again(tmp_path, recipe):
    plain, _ = saved("llama-tied", tmp_path)
    growth.grow(recipe, plain, tmp_path / "once", format="dcp")
    growth.grow(recipe, plain, tmp_path / "plain")
    deeper = growth.deepen(to=4)
    growth.grow(deeper, tmp_path / "once", tmp_path / "twice")
    growth.grow(deeper, tmp_path / "plain", tmp_path / "expected")
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("twice", "expected"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_command_writes_a_folder(tmp_path, recipe):
    plain, _ = saved("llama", tmp_path)
    arguments = ["grow", recipe, "-s", plain, "-o", tmp_path / "grown", "--format", "dcp", "--verify"]
    app(list(map(str, arguments)), standalone_mode=False)
    assert len(open_stored(tmp_path / "grown").tensors) == len(open_stored(plain).tensors) + 9


@pytest.mark.parametrize("wrong", [{"format": "pickle"}, {"format": "dcp", "max_shard_size": "1MB"}])
def test_what_a_format_cannot_do_is_refused(tmp_path, recipe, wrong):
    with pytest.raises(ConfigError, match=r"pickle|max_shard_size"):
        growth.grow(recipe, tmp_path, tmp_path / "grown", **wrong)


# ------------------------------------------------- hostile and broken folders


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.fixture
def folder(tmp_path):
    state = {"a": torch.arange(24.0).view(6, 4), "b": torch.ones(3, dtype=torch.bfloat16)}
    save_cut(state, tmp_path / "dcp", 0)
    (tmp_path / "dcp" / "config.json").write_text("{}")
    return tmp_path / "dcp"


def change(folder, edit):
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def test_an_intact_folder_opens(folder):
    tensors = open_stored(folder).tensors
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {"a": ("F32", (6, 4)), "b": ("BF16", (3,))}


@pytest.mark.parametrize(
    "call", [(os.system, "touch ran"), (eval, "open('ran', 'w')"), (getattr, {}, "get"), (print, 1)]
)
def test_no_code_is_run(folder, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    change(folder, lambda metadata: setattr(metadata, "planner_data", Runs(*call)))
    with pytest.raises(
        CheckpointError, match=rf"asks for (posix|builtins)\.{call[0].__name__}.*nothing of this one was"
    ):
        open_stored(folder)
    assert not (tmp_path / "ran").exists()


def test_no_code_in_a_payload_is_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Runs(os.system, "touch ran"), protocol=2))
        archive.writestr("archive/data/0", bytes(32))
    (folder / "__0_0.distcp").write_bytes(file.getvalue())
    place = _StorageInfo("__0_0.distcp", 0, len(file.getvalue()))
    change(folder, lambda metadata: metadata.storage_data.update({MetadataIndex("a", [0, 0]): place}))
    with pytest.raises(CheckpointError, match=r"asks for posix\.system"):
        open_stored(folder)
    assert not (tmp_path / "ran").exists()


def overlap(metadata):
    chunks = metadata.state_dict_metadata["a"].chunks
    chunks[1] = chunks[0]


def outside(metadata):
    for index, place in metadata.storage_data.items():
        metadata.storage_data[index] = _StorageInfo("../" + place.relative_path, place.offset, place.length)


def foreign(metadata):
    metadata.state_dict_metadata["a"].properties = TensorProperties(torch.int32)


def beyond(metadata):
    for index, place in metadata.storage_data.items():
        metadata.storage_data[index] = _StorageInfo(place.relative_path, place.offset + 10**6, place.length)


DAMAGE = {
    "overlapping": (overlap, "do not make up its shape"),
    "outside": (outside, "only .distcp files of the same folder"),
    "integers": (foreign, "only floats"),
    "truncated": (beyond, "truncated"),
    "missing": (lambda metadata: metadata.storage_data.clear(), "does not say where"),
    "another type": (
        lambda metadata: setattr(metadata.state_dict_metadata["a"], "properties", TensorProperties(torch.float64)),
        "is stored as F32",
    ),
    "not tensors": (lambda metadata: metadata.state_dict_metadata.update(a=None), "is not metadata"),
    "no metadata": (lambda metadata: metadata.__dict__.clear(), "is not metadata"),
}


@pytest.mark.parametrize(("edit", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_broken_folder_is_refused(folder, edit, message):
    change(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        open_stored(folder)


def test_bytes_that_are_no_pickle_are_refused(folder):
    (folder / ".metadata").write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_stored(folder)


def test_transposed_tensors_are_refused(tmp_path):
    dcp.save({"a": torch.ones(3, 4).T}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="only contiguous tensors are read"):
        open_stored(tmp_path)


def test_what_is_no_state_dict_of_a_model_is_refused(tmp_path):
    dcp.save({"a": torch.ones(3), "step": 7}, checkpoint_id=tmp_path, no_dist=True)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="'step' is not a tensor"):
        open_stored(tmp_path)


def test_a_place_in_the_memo_is_not_allocated(folder):
    (folder / ".metadata").write_bytes(b"\x80\x02]r\xff\xff\xff\x03.")  # a list, called number 2 ** 26 - 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        open_stored(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KB


def test_tuples_in_tuples_are_not_hashed_for_ever(folder):
    doubled = b"h\x00h\x00\x86q\x000"  # the last one twice
    (folder / ".metadata").write_bytes(b"\x80\x02)q\x000" + doubled * 60 + b"}h\x00K\x01s.")
    with pytest.raises(CheckpointError, match="a tuple holds more than"):
        open_stored(folder)


def test_lists_in_lists_are_not_written_out(folder):
    shape = []
    for _ in range(60):
        shape = [shape, shape]
    change(folder, lambda metadata: setattr(metadata.state_dict_metadata["a"], "size", shape))
    with pytest.raises(CheckpointError, match="not natural numbers"):
        open_stored(folder)


def test_compressed_pickles_are_not_unpacked(folder):
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**8))
    (folder / "__0_0.distcp").write_bytes(file.getvalue())
    place = _StorageInfo("__0_0.distcp", 0, len(file.getvalue()))
    change(folder, lambda metadata: metadata.storage_data.update({MetadataIndex("a", [0, 0]): place}))
    with pytest.raises(CheckpointError, match="is compressed"):
        open_stored(folder)


@pytest.mark.parametrize("flag", [0x01, 0x20])  # encrypted, patched: what zipfile does not read
def test_members_that_are_no_plain_bytes_are_refused(folder, flag):
    path = folder / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    for header, flags in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        at = -1
        while (at := content.find(header, at + 1)) >= 0:
            content[at + flags] |= flag
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read: "):
        open_stored(folder)


def test_no_class_is_built_of_layers_that_are_not_there(tmp_path, monkeypatch):
    plain, _ = saved("mixtral", tmp_path)
    save_cut(load_stock(plain).state_dict(), tmp_path / "cut", 0)
    config = json.loads((plain / "config.json").read_text()) | {"num_hidden_layers": 2000}
    (tmp_path / "cut" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("growth.checkpoints.stock_parameters.stored_as", pytest.fail)
    assert "model.layers.1.mlp.experts.down_proj" in open_checkpoint(tmp_path / "cut").tensors  # refused by the plan


def test_links_lead_nowhere(folder):
    (folder / "tokenizer.json").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
        open_stored(folder)
