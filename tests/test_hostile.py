"""Whatever a stranger hands over gives a result or an error of ours, in bounded time and memory."""

import ast
import json
import os
import pickle
import random
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import growth
from growth import CheckpointError, ConfigError, GrowthError, RecipeError
from growth.architectures import architecture
from growth.checkpoint import Checkpoint, read_config, read_header
from growth.cli import app
from growth.errors import printable
from growth.foreign import DEEPEST, check_plain, parse_json
from growth.manifest import MANIFEST, read_manifest
from growth.operators import deepen
from growth.recipe import LARGEST_FILE, load_recipe, parse_recipe
from tests.hostile import CONFIGS, PHI_MINI, TARGETS, nested
from tests.test_checkpoint import file_of, tensor

SECONDS, BYTES = 2.0, 300 << 20  # of one case, on a busy machine


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=100)
@given(seed=st.integers(0, 2**64))
def test_mutations_give_a_result_or_an_error_of_ours(target, tmp_path_factory, seed):
    folder = tmp_path_factory.getbasetemp() / target
    folder.mkdir(exist_ok=True)
    began = time.process_time()
    try:
        TARGETS[target](folder, random.Random(seed))
    except GrowthError as error:
        assert printable(str(error)) == str(error)  # noqa: PT017
    assert time.process_time() - began < SECONDS


HEADERS = {
    "thousands of digits": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}',
    "NaN": b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
    "infinite": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}',
    "half a character": b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "metadata of numbers": b'{"__metadata__": {"a": 1}}',
    "metadata a list": b'{"__metadata__": []}',
    "shape a text": json.dumps({"a": {"dtype": "F32", "shape": "", "data_offsets": [0, 4]}}).encode(),
    "dtype a list": json.dumps({"a": tensor(0, 8, dtype=[])}).encode(),
    "hundreds of dimensions": json.dumps({"a": tensor(0, 8, (1,) * 999)}).encode(),
    "nested": json.dumps(nested(500)).encode(),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_headers(header, tmp_path):
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(file_of(tmp_path / "model.safetensors", header, bytes(8)))


def test_odd_headers_that_the_format_allows(tmp_path):
    header = {"s": tensor(0, 4, ()), "z": tensor(4, 4, (0, 3)), "\x00\x1b[2J\n": tensor(4, 8, (1,))}
    (tmp_path / "config.json").write_text('{"model_type": ["phi"]}')
    file_of(tmp_path / "model.safetensors", header, bytes(8))
    result = CliRunner().invoke(app, ["inspect", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output


def model(folder, **config):
    """phi-mini's files, with other config values."""
    folder.mkdir()
    content = json.loads((PHI_MINI / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(content))
    for name in ("model.safetensors", "tokenizer.json"):
        if (PHI_MINI / name).exists():
            (folder / name).write_bytes((PHI_MINI / name).read_bytes())
    return folder


def test_links_stay_in_the_folder(tmp_path):
    folder = model(tmp_path / "model")
    for target in ("/etc/passwd", "../secret.json"):
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / "generation_config.json").symlink_to(target)
        with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
            Checkpoint.open(folder)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("config.json")
    Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json", "merges.txt"])
def test_pipes_are_not_waited_for(name, tmp_path):
    folder = model(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="neither a file nor a folder"):
        growth.plan(deepen(to=7), folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_folders_are_no_files(name, tmp_path):
    folder = model(tmp_path / "model")
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(CheckpointError):
        growth.plan(deepen(to=7), folder)


def bounded(call, error):
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(error):
            call()
        assert tracemalloc.get_traced_memory()[1] < BYTES
        assert time.process_time() - began < SECONDS
    finally:
        tracemalloc.stop()


FAMILY = {config["model_type"]: config for config in CONFIGS}


@pytest.mark.parametrize("family", FAMILY)
def test_sizes_that_make_an_enormous_table_are_refused(family):
    config = FAMILY[family]
    for key in (key for key in config if key in ("num_hidden_layers", "n_layer", "vocab_size") or "experts" in key):
        if key != "num_experts_per_tok":
            for value in (2**31 - 1, 10**9, 2**31, 10**400):
                bounded(lambda changed={**config, key: value}: architecture(changed), ConfigError)


@pytest.mark.parametrize("value", [3, "x", [1], [None] * 3, ["full_attention"] * 999, {"a": 1}])
@pytest.mark.parametrize(
    "family", ["qwen2", "qwen3", "ministral", "cohere2", "gemma2", "olmo3", "smollm3", "qwen2_moe"]
)
def test_layer_lists_have_an_entry_a_layer(family, value):
    with pytest.raises(ConfigError, match="layer_types"):
        architecture({**FAMILY[family], "layer_types": value})


RECIPES = {
    "aliases": "a: &a [x]\nb: *a",
    "tags": "description: !!binary aGk=\nsteps: []",
    "python": "description: !!python/object/apply:os.system [x]\nsteps: []",
    "nested": "steps: " + "[" * 1000,
    "dates": "description: d\nexpect: {a: 2001-01-01}\nsteps: [{op: deepen, to: 7}]",
    "number keys": "description: d\n1: 2\nsteps: [{op: deepen, to: 7}]",
    "infinite": "description: d\nexpect: {a: .inf}\nsteps: [{op: deepen, to: 7}]",
    "merge": "description: d\n<<: {seed: 3}\nsteps: [{op: deepen, to: 7}]",
    "a million steps": "description: d\nsteps:\n" + "- {}\n" * 50_000,
    "long lists": "description: d\nsteps: [{op: deepen, order: [" + "0," * 20_000 + "]}]",
    "digits": "description: d\nsteps: [{op: deepen, to: " + "9" * 5000 + "}]",
}


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES.keys())
def test_recipes(text):
    began = time.process_time()
    with pytest.raises(RecipeError):
        parse_recipe(text, "r.yaml")
    assert time.process_time() - began < 2 * SECONDS


@pytest.mark.parametrize(
    "step",
    ["op: deepen, to: 2147483647", "op: widen, axis: ffn, to: 2147483647", "op: widen, axis: vocab, factor: 2e9"]
    + ["op: reuse, to: {ffn: 2147483647}", "op: upcycle, experts: 2147483647, top_k: 1"],
)
def test_steps_to_enormous_models(step):
    recipe = parse_recipe(f"description: d\nsteps: [{{{step}}}]", "r.yaml")
    bounded(lambda: growth.plan(recipe, PHI_MINI), RecipeError)


def test_recipe_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"#" * (LARGEST_FILE + 1))
    for name in ("pipe", "bytes", "large", "."):
        with pytest.raises(RecipeError, match="cannot be read"):
            load_recipe(tmp_path / name)


@pytest.mark.parametrize(
    "change",
    [{"layers": []}, {"layers": 3}, {"axes": {"residual": {"before": 1, "after": 10**12, "runs": []}}}]
    + [{"axes": {"residual": {"before": 2, "after": 2, "runs": [[0, 2, 1, 1, 1]]}}}, {"levels": {"residual": "x"}}],
)
def test_growth_json(change, tmp_path):
    content = {"format": 1, "preserving": True, "levels": {}, "tensors": {}, "steps": [], "axes": {}}
    content |= {"sizes": {"before": {}, "after": {}}, "layers": [{"source": 0, "silent": False}]}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    assert read_manifest(tmp_path) == content
    (tmp_path / MANIFEST).write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=r"growth\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}}', json.dumps(nested(500)).encode()]
)
def test_tokenizers(content, tmp_path):
    folder = model(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(content)
    result = CliRunner().invoke(app, ["verify", str(folder), str(folder)])
    assert result.exit_code == 2, result.output
    assert "tokenizer.json" in result.output


def test_messages_do_not_steer_the_terminal():
    error = GrowthError("a\x1b[2J\x00\ud800" + "x" * 10**6)
    assert str(error).isprintable()
    assert len(str(error)) < 5000


def test_plain_data():
    check_plain(nested(DEEPEST - 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        check_plain(nested(DEEPEST + 1))
    with pytest.raises(ValueError, match="beyond 64 bits"):
        parse_json(b"[18446744073709551616]")


# ------------------------------------------------- no code is run


def test_no_code_of_the_package_opens_pickles():
    for path in (Path(growth.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & set(names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in ("eval", "exec", "np.load", "numpy.load"), path
                assert called != "torch.load" or keywords.get("weights_only") == "True", path
                assert keywords.get("trust_remote_code", "False") == "False", path
                loads = called.endswith((".from_pretrained", ".from_config")) and called.startswith("Auto")
                assert not loads or "trust_remote_code" in keywords, path


class _Bomb:
    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return (os.mkdir, (self.flag,))


def test_code_and_pickles_of_a_checkpoint_are_not_run(tmp_path):
    flag = tmp_path / "ran"
    maps = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
    folder = model(tmp_path / "model", auto_map=maps)
    (folder / "modeling_evil.py").write_text(f"import os\nos.mkdir({str(flag)!r})\n")
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt"):
        (folder / name).write_bytes(pickle.dumps(_Bomb(str(flag))))
    recipe = tmp_path / "r.yaml"
    recipe.write_text("description: d\nsteps: [{op: deepen, to: 7}]")
    for command in (
        ["inspect", folder],
        ["plan", recipe, "-s", folder],
        ["grow", recipe, "-s", folder, "-o", tmp_path / "out"],
        ["verify", folder, tmp_path / "out"],
        ["recipe", folder, tmp_path / "out" / "config.json"],
    ):
        result = CliRunner().invoke(app, [str(part) for part in command])
        assert result.exit_code == 0, result.output
        assert not flag.exists()
    assert not (tmp_path / "out" / "modeling_evil.py").exists()
    assert "auto_map" not in read_config(tmp_path / "out" / "config.json")
    pickle.loads((folder / "model.pt").read_bytes())
    assert flag.exists()
