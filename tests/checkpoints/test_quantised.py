"""FP8 checkpoints are read as the plain floats that they stand for; other quantised ones are refused with a remedy."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, FineGrainedFP8Config, GptOssConfig, GptOssForCausalLM, Mxfp4Config
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from typer.testing import CliRunner

import growth
from growth import CheckpointError, ConfigError
from growth.checkpoints.formats.safetensors import SINGLE
from growth.checkpoints.open import open_checkpoint, open_stored
from growth.checkpoints.tensor_reader import Files, pieces
from growth.cli.app import app
from growth.distributed.grow_reader import GrowReader, empty_model, materialise
from growth.operators import widen
from growth.verification.inspect import inspect_checkpoint
from growth.verification.streaming import load_stock, read_tensor, stream
from tests.support.families import Case, random_model
from tests.support.models import save

SCALE = "_scale_inv"
BLOCK = (32, 48)  # of which no size below is a multiple
SIZES = {
    "vocab_size": 61,
    "hidden_size": 80,
    "intermediate_size": 104,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
WIDER = widen("ffn", factor=2)
UP = "model.layers.1.mlp.up_proj.weight"


def settings(block=BLOCK, **more):
    block = None if block is None else list(block)
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": block, **more}


def quantised(weight, block=BLOCK, scales=torch.float32):
    """FP8 codes and the scale of each block, as published files have them."""
    rows, columns = block or weight.shape
    count = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
    factors = torch.empty(count)
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(count[0]):
        for j in range(count[1]):
            place = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            factors[i, j] = (weight[place].float().abs().max() / 448).to(scales)
            codes[place] = (weight[place].float() / factors[i, j]).to(torch.float8_e4m3fn)
    return codes, (factors if block else factors[0, 0]).to(scales)


def as_floats(codes, scales, block=BLOCK, dtype=torch.bfloat16):
    """The products in float32, rounded once."""
    factors = scales.float()
    if block:
        factors = factors.repeat_interleave(block[0], 0)[: codes.shape[0]]
        factors = factors.repeat_interleave(block[1], 1)[:, : codes.shape[1]]
    return (codes.float() * factors).to(dtype)


def store(folder, tensors, **config):
    """A folder with other tensors and other entries of its config."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})
    stated = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps({key: value for key, value in stated.items() if value is not None}))
    return folder


def in_fp8(plain, folder, block=BLOCK, scales=torch.float32, **more):
    """A folder in FP8, and the tensors that it stands for."""
    shutil.copytree(plain, folder)
    stored, floats = {}, {}
    for name, tensor in load_file(plain / SINGLE).items():
        stored[name] = floats[name] = tensor
        if "proj" in name:
            stored[name], stored[f"{name}{SCALE}"] = quantised(tensor, block, scales)
            floats[name] = as_floats(stored[name], stored[f"{name}{SCALE}"], block)
            if more:
                stored[name.replace("weight", "activation_scale")] = torch.tensor(1.0)
    store(folder, stored, quantization_config=settings(block, **more))
    return folder, floats


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A tiny Qwen3 in bfloat16."""
    model = random_model(Case("qwen3", "", SIZES), torch.float32).bfloat16()
    return save(model, tmp_path_factory.mktemp("plain") / "plain")


@pytest.fixture(scope="module")
def pair(plain, tmp_path_factory):
    """The same model in FP8, and the folder of the plain floats that it stands for."""
    home = tmp_path_factory.mktemp("fp8")
    folder, floats = in_fp8(plain, home / "fp8")
    return folder, store(shutil.copytree(plain, home / "floats"), floats)


def read(folder):
    infos = open_checkpoint(folder, dequantize=True).tensors
    return {name: read_tensor(info) for name, info in infos.items()}


# ------------------------------------------------- values

FORMS = {
    "cut blocks": (BLOCK, torch.float32, {}),
    "blocks of 128, larger than some matrices": ((128, 128), torch.float32, {}),
    "bfloat16 scales": (BLOCK, torch.bfloat16, {}),
    "float16 scales": (BLOCK, torch.float16, {}),
    "one scale per tensor": (None, torch.bfloat16, {"activation_scheme": "static"}),
}


@pytest.mark.parametrize(("block", "scales", "more"), FORMS.values(), ids=FORMS)
def test_a_value_is_its_code_times_the_scale_of_its_block_rounded_once(block, scales, more, plain, tmp_path):
    folder, floats = in_fp8(plain, tmp_path / "fp8", block, scales, **more)
    found = read(folder)
    assert found.keys() == floats.keys()
    assert all(torch.equal(found[name], floats[name]) for name in floats)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_values_have_the_type_that_the_config_states(dtype, pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "fp8")
    stored = load_file(folder / SINGLE)
    store(folder, stored, dtype=dtype)
    expected = as_floats(stored[UP], stored[f"{UP}{SCALE}"], dtype=getattr(torch, dtype))
    assert torch.equal(read(folder)[UP], expected)


def test_every_code_has_the_value_that_torch_gives_it(plain, tmp_path):
    folder, _ = in_fp8(plain, tmp_path / "fp8")
    stored, finite = load_file(folder / SINGLE), torch.tensor([code for code in range(256) if code & 127 != 127])
    codes = finite.to(torch.uint8).repeat(40)[: stored[UP].numel()].reshape(stored[UP].shape)
    stored[UP] = codes.view(torch.float8_e4m3fn)
    stored[f"{UP}{SCALE}"][:] = 1
    store(folder, stored)
    assert torch.equal(read(folder)[UP], stored[UP].to(torch.bfloat16))


def test_whole_blocks_are_dequantised_as_transformers_does(plain, tmp_path):
    folder, _ = in_fp8(plain, tmp_path / "fp8", block=(4, 8))
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=FineGrainedFP8Config(dequantize=True))
    theirs, ours = model.state_dict(), read(folder)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    stored = load_file(folder / SINGLE)
    single = Fp8Dequantize(None).convert({"weight": stored[UP], "weight_scale_inv": stored[f"{UP}{SCALE}"].bfloat16()})
    assert single["weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [1, 7, 32, 33, 104])
def test_any_rows_are_those_of_the_whole_matrix(rows, pair):
    info = open_checkpoint(pair[0], dequantize=True).tensors[UP]
    parts = [bytes(part) for _, part in pieces(Files({UP: info}), info, size=rows * info.row_bytes)]
    whole = load_file(pair[1] / SINGLE)[UP].view(torch.uint8).numpy()
    assert len(parts) == -(-info.shape[0] // rows)
    assert b"".join(parts) == whole.tobytes()


# ------------------------------------------------- what is grown


def test_it_grows_as_the_plain_floats_that_it_stands_for(pair, tmp_path):
    folder, floats = pair
    for name, source, more in (("a", folder, {"dequantize": True}), ("b", floats, {})):
        growth.grow(WIDER, source, tmp_path / name, **more)
    assert (tmp_path / "a" / SINGLE).read_bytes() == (tmp_path / "b" / SINGLE).read_bytes()
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()
    ours, theirs = (json.loads((tmp_path / name / "growth.json").read_text())["source"] for name in "ab")
    assert ours["xxh3_128"] == theirs["xxh3_128"]
    assert ours["dequantized"] == settings()
    assert "quantization_config" not in ours["config"]
    assert "dequantized" not in theirs


def test_the_plan_has_plain_tensors_and_says_so(pair):
    plan = growth.plan(WIDER, pair[0], dequantize=True)
    assert {row.dtype for row in plan.tensors} == {"BF16"}
    assert "quantization_config" not in plan.config
    assert any("dequantised from FP8 to BF16" in note for note in plan.notes)


@pytest.mark.parametrize("name", [UP, f"{UP}{SCALE}"])
def test_the_hash_of_the_source_is_of_codes_and_scales(name, pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "fp8")
    stored = load_file(folder / SINGLE)
    other = stored[name].float()
    other[-1, -1] *= -1
    store(folder, {**stored, name: other.to(stored[name].dtype)})
    for source, output in ((pair[0], "a"), (folder, "b")):
        growth.grow(WIDER, source, tmp_path / output, dequantize=True)
    one, two = (json.loads((tmp_path / output / "growth.json").read_text())["source"]["xxh3_128"] for output in "ab")
    assert one != two


def test_verification_compares_with_the_dequantised_source(pair, tmp_path):
    growth.grow(WIDER, pair[0], tmp_path / "out", dequantize=True)
    report = growth.verify(pair[0], tmp_path / "out", WIDER, tokens=8, generation=True, dequantize=True)
    assert report.status == "PASSED"
    assert growth.verify(pair[1], tmp_path / "out", WIDER, tokens=8).status == "PASSED"
    assert growth.verify_weights(pair[0], tmp_path / "out", WIDER, dequantize=True).passed
    assert "growth.json" in growth.verify_weights(pair[1], tmp_path / "out", WIDER).problems
    model = load_stock(open_checkpoint(pair[0], dequantize=True))
    assert getattr(model.config, "quantization_config", None) is None


def test_it_grows_in_parts_in_memory_and_twice(pair, tmp_path):
    folder, recipe = pair[0], widen("residual", factor=2)
    growth.grow(recipe, folder, tmp_path / "out", dequantize=True)
    for index in (2, 1):
        growth.grow(recipe, folder, tmp_path / "parts", dequantize=True, part=(index, 2), max_shard_size="60KB")
    assert growth.verify_weights(folder, tmp_path / "parts", recipe, dequantize=True).passed
    reader = GrowReader(folder, recipe, dtype="bfloat16", dequantize=True)
    model = materialise(empty_model(reader.config), "cpu")
    state = model.state_dict()
    with warnings.catch_warnings(action="ignore"):  # of one process
        dcp.load(state, storage_reader=reader)
    stored = load_file(tmp_path / "out" / SINGLE)
    assert all(torch.equal(state[name], stored[name]) for name in stored)
    growth.grow("double-depth", tmp_path / "out", tmp_path / "again")
    history = json.loads((tmp_path / "again" / "growth.json").read_text())["history"]
    assert [step["source"]["dequantized"] for step in history] == [settings()]


def test_the_command_line_takes_the_option(pair, tmp_path):
    (tmp_path / "wider.yaml").write_text("description: wider\nsteps:\n- {op: widen, axis: ffn, factor: 2}\n")
    recipe, run = str(tmp_path / "wider.yaml"), CliRunner().invoke
    more = ["--dequantize"]
    assert run(app, ["plan", recipe, "-s", str(pair[0]), *more]).exit_code == 0
    done = run(app, ["grow", recipe, "-s", str(pair[0]), "-o", str(tmp_path / "out"), *more])
    assert done.exit_code == 0
    assert "--dequantize" in done.output.replace("\n", " ")
    check = ["verify", str(pair[0]), str(tmp_path / "out"), "--recipe", recipe, *more]
    assert run(app, [*check, "--tokens", "8", "--report", str(tmp_path / "report.html")]).exit_code == 0
    assert run(app, [*check, "--weights"]).exit_code == 0
    refused = run(app, ["grow", recipe, "-s", str(pair[0]), "-o", str(tmp_path / "other"), "--training", *more])
    assert refused.exit_code == 2


def test_a_recipe_is_derived_from_and_to_configs_in_fp8(pair, tmp_path):
    config = json.loads((pair[0] / "config.json").read_text())
    wider = config | {"intermediate_size": 2 * config["intermediate_size"]}
    plain_one = {key: value for key, value in wider.items() if key != "quantization_config"}
    texts = set()
    for name, target in (("fp8", wider), ("plain", plain_one)):
        (tmp_path / name).write_text(json.dumps(target))
        derived = CliRunner().invoke(app, ["recipe", str(pair[0]), str(tmp_path / name), "--dequantize"])
        assert derived.exit_code == 0
        texts.add(derived.output)
    assert len(texts) == 1
    assert "quantization_config" not in texts.pop()


# ------------------------------------------------- refusals

COMMANDS = {
    "plan": lambda source, out: growth.plan(WIDER, source),
    "grow": lambda source, out: growth.grow(WIDER, source, out),
    "verify, source": lambda source, out: growth.verify(source, out),
    "verify, grown": lambda source, out: growth.verify(out, source),
    "weights": lambda source, out: growth.verify_weights(source, out, WIDER),
    "diagnose": lambda source, out: growth.diagnose(out, source),
    "stream": lambda source, out: stream(source, torch.zeros(1, 4, dtype=int), torch.float32),
    "reader": lambda source, out: GrowReader(source, WIDER),
}


@pytest.fixture(scope="module")
def grown(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown") / "grown"
    growth.grow(WIDER, pair[1], folder)
    return folder


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_without_the_option_every_command_refuses_and_names_it(command, pair, grown, tmp_path):
    out = tmp_path / "out" if command is COMMANDS["grow"] else grown
    with pytest.raises(CheckpointError, match="--dequantize"):
        command(pair[0], out)
    assert list(tmp_path.iterdir()) == []


def test_inspect_shows_it_and_names_the_option(pair):
    found = inspect_checkpoint(pair[0])
    assert "--dequantize" in found.problem
    assert found.dtypes["F8_E4M3"] > 0


def test_the_option_is_refused_where_there_is_nothing_to_dequantise(pair):
    with pytest.raises(CheckpointError, match=r"not quantised.*leave out"):
        growth.plan(WIDER, pair[1], dequantize=True)
    with pytest.raises(ConfigError, match="leave out dequantize"):
        growth.plan(WIDER, random_model(Case("qwen3", "", SIZES), torch.float32), dequantize=True)


def without(name):
    return lambda stored: stored.pop(name)


def replaced(name, value):
    return lambda stored: stored.update({name: value(stored[name])})


DAMAGE = {
    "no scales": (without(f"{UP}{SCALE}"), {}, f"{UP}' is F8_E4M3.*without"),
    "no codes": (without(UP), {}, f"'{UP}{SCALE}' and no FP8 tensor"),
    "too few scales": (replaced(f"{UP}{SCALE}", lambda s: s[:-1]), {}, r"\[3, 2\].*needs scales of \[4, 2\]"),
    "scales of another type": (replaced(f"{UP}{SCALE}", lambda s: s.to(torch.int32)), {}, "is I32.*F32, BF16, F16"),
    "another block": (None, settings((64, 64)), "needs scales of"),
    "blocks of nothing": (None, settings((0, 64)), r"weight_block_size = \[0, 64\]"),
    "no block": (None, {"quant_method": "fp8"}, "weight_block_size = 'missing'"),
    "no settings": (None, None, "weight_block_size = 'missing'"),
    "codes of three dimensions": (replaced(UP, lambda codes: codes[None]), {}, "only matrices"),
}


@pytest.mark.parametrize(("change", "stated", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_by_name(change, stated, message, pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "fp8")
    stored = load_file(folder / SINGLE)
    if change:
        change(stored)
    store(folder, stored, **({} if stated == {} else {"quantization_config": stated}))
    with pytest.raises(CheckpointError, match=message):
        growth.plan(WIDER, folder, dequantize=True)


@pytest.mark.parametrize(("name", "value"), [(UP, 0x7F), (f"{UP}{SCALE}", np.inf), (f"{UP}{SCALE}", 3e38)])
def test_values_that_are_not_finite_are_refused(name, value, pair, tmp_path):
    folder = shutil.copytree(pair[0], tmp_path / "fp8")
    stored = load_file(folder / SINGLE)
    (stored[name].view(torch.uint8) if name == UP else stored[name])[-1, -1] = value
    store(folder, stored)
    with pytest.raises(CheckpointError, match=f"'{UP}'.*NaN or Inf"):
        growth.grow(WIDER, folder, tmp_path / "out", dequantize=True)


# ------------------------------------------------- other kinds

OTHERS = {
    "gptq": ({"quant_method": "gptq", "bits": 4}, "qweight", "GPTQ.*model that it was quantised from"),
    "awq": ({"quant_method": "awq", "bits": 4}, "qweight", "AWQ.*model that it was quantised from"),
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "weight.absmax", r"from_pretrained\(folder\).dequantize\(\)"),
    "older bitsandbytes": ({"load_in_8bit": True}, "SCB", r"from_pretrained\(folder\).dequantize\(\)"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors"},
        "weight_packed",
        r"CompressedTensorsConfig\(dequantize=True\)",
    ),
    "mxfp4": ({"quant_method": "mxfp4"}, "down_proj_blocks", r"Mxfp4Config\(dequantize=True\)"),
    "unknown": ({"quant_method": "quip"}, "codes", "quip.*model that it was quantised from"),
}


@pytest.mark.parametrize(("stated", "mark", "message"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("command", [COMMANDS["plan"], COMMANDS["verify, grown"]])
def test_other_kinds_are_refused_with_the_remedy(command, stated, mark, message, pair, grown, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "other")
    store(folder, load_file(folder / SINGLE) | {f"model.layers.0.mlp.{mark}": torch.ones(2, dtype=torch.int32)})
    store(folder, load_file(folder / SINGLE), quantization_config=stated)
    with pytest.raises(CheckpointError, match=message):
        command(folder, grown)


@pytest.mark.parametrize("kind", ["gptq", "bitsandbytes", "compressed-tensors", "mxfp4"])
def test_they_are_recognised_by_their_tensors_too(kind, pair, tmp_path):
    mark = {"gptq": "up_proj.g_idx"}.get(kind, OTHERS[kind][1])
    folder = shutil.copytree(pair[1], tmp_path / "other")
    store(folder, load_file(folder / SINGLE) | {f"model.layers.0.mlp.{mark}": torch.ones(2, dtype=torch.int32)})
    with pytest.raises(CheckpointError, match=OTHERS[kind][2]):
        growth.plan(WIDER, folder)


def test_a_key_beside_plain_floats_is_to_be_removed(pair, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "other")
    store(folder, load_file(folder / SINGLE), quantization_config={"quant_method": "gptq"})
    with pytest.raises(CheckpointError, match="remove quantization_config from config"):
        growth.plan(WIDER, folder)


def test_a_folder_of_gguf_files_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "model-q8_0.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match=r"gguf_file='model-q8_0.gguf'.*GgufConfig\(dequantize=True\)"):
        growth.plan(WIDER, tmp_path)


def test_a_gguf_file_beside_safetensors_is_not_read(pair, tmp_path):
    folder = shutil.copytree(pair[1], tmp_path / "both")
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF")
    assert growth.plan(WIDER, folder).preserving


# the remedies that need no package of their own, as the messages give them


def test_fp8_saved_by_transformers_needs_the_option_of_the_remedies(pair, plain, tmp_path):
    folder, _ = in_fp8(plain, tmp_path / "fp8", block=(4, 8))
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=FineGrainedFP8Config(dequantize=True))
    model.save_pretrained(tmp_path / "again")  # quantises again
    assert any(name.endswith(SCALE) for name in open_stored(tmp_path / "again").tensors)
    model.save_pretrained(tmp_path / "floats", save_original_format=False)
    assert growth.plan(WIDER, tmp_path / "floats").preserving


def test_the_remedy_of_mxfp4_saves_plain_floats(tmp_path):
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 32, "vocab_size": 61, "num_local_experts": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts_per_tok": 1, "num_hidden_layers": 1}
    folder = save(GptOssForCausalLM(GptOssConfig(**sizes, **heads)).bfloat16(), tmp_path / "mxfp4")
    stored = load_file(folder / SINGLE)
    for name in [name for name in stored if name.endswith("_proj")]:
        experts, read_, written = stored.pop(name).shape
        stored[f"{name}_blocks"] = torch.ones(experts, written, read_ // 32, 16, dtype=torch.uint8)
        stored[f"{name}_scales"] = torch.full((experts, written, read_ // 32), 120, dtype=torch.uint8)
    store(folder, stored, quantization_config={"quant_method": "mxfp4"})
    with pytest.raises(CheckpointError, match="MXFP4"):
        open_checkpoint(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=Mxfp4Config(dequantize=True))
    model.save_pretrained(tmp_path / "floats", save_original_format=False)
    assert {info.dtype for info in open_checkpoint(tmp_path / "floats").tensors.values()} == {"BF16"}
