"""Whatever a stranger hands over gives a result or an error of ours, in bounded time and memory."""

import ast
import json
import os
import pickle
import random
import shutil
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import growth
from growth import CheckpointError, ConfigError, GrowthError, RecipeError
from growth.architectures import architecture
from growth.checkpoints.companions import kept_files
from growth.checkpoints.formats.safetensors import INDEX, read_header
from growth.checkpoints.open import open_stored
from growth.checkpoints.stock_parameters import stock_config
from growth.checkpoints.untrusted import (
    DEEPEST,
    LARGEST_COMPANION,
    LARGEST_COUNT,
    check_plain,
    parse_json,
    read_config,
)
from growth.cli.app import app
from growth.errors import printable
from growth.operators import deepen
from growth.planning.closed_yaml import LARGEST_FILE
from growth.planning.manifest import MANIFEST, read_manifest
from growth.planning.recipe import load_recipe, parse_recipe
from growth.verification import html_report as report
from growth.verification.bitwise import verify_weights
from tests.support.hostile import (
    CONFIGS,
    PHI_MINI,
    SECONDS,
    SMALL,
    TARGETS,
    bounded,
    in_memory,
    in_time,
    lay,
    nested,
    saved,
)
from tests.support.safetensors_files import file_of, tensor
from tests.support.selection import examples

STEP = {"op": "deepen", "to": 7}


@cache
def ready(target, folder):
    """A folder for a target that has read a case before: what it imports and keeps is no case's."""
    (folder / target).mkdir(exist_ok=True)
    with suppress(GrowthError):
        TARGETS[target](folder / target, random.Random(0))
    return folder / target


@pytest.mark.parametrize("target", TARGETS)
@examples(25, 100)
@given(seed=st.integers(0, 2**64))
def test_mutations_give_a_result_or_an_error_of_ours(target, tmp_path_factory, seed):
    folder = ready(target, tmp_path_factory.getbasetemp())
    for bound in (in_time, in_memory):
        with bound():
            try:
                TARGETS[target](folder, random.Random(seed))
            except GrowthError as error:
                assert all(printable(line) == line for line in error.args)  # noqa: PT017


HEADERS = {
    "thousands of digits": b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 8]}}',
    "NaN": b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}',
    "infinite": b'{"a": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 8]}}',
    "half a character": b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    "metadata of numbers": json.dumps({"__metadata__": {"a": 1}, "a": tensor(0, 8)}).encode(),
    "metadata a list": json.dumps({"__metadata__": [], "a": tensor(0, 8)}).encode(),
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
            open_stored(folder)
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to("config.json")
    open_stored(folder)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "inner", "../outside/{name}"])
@pytest.mark.parametrize(
    ("shards", "name"),
    [(1, "config.json"), (1, "model.safetensors"), (2, "config.json"), (2, INDEX), (2, "shard-0.safetensors")],
)
def test_files_that_are_links_to_other_folders_are_refused(shards, name, target, tmp_path):
    folder = tmp_path / "model"
    for home in (folder, tmp_path / "outside"):
        lay(home, saved("phi", shards))
    (tmp_path / "secret").write_bytes((folder / name).read_bytes())
    (folder / "inner").symlink_to("../secret")  # a link to a link
    if target != "inner":
        (folder / "inner").unlink()
    (folder / name).unlink()
    (folder / name).symlink_to(target.format(name=name))
    before = sorted(tmp_path.iterdir())
    for call in (open_stored, lambda path: growth.grow(parse_recipe(SMALL, "r"), path, tmp_path / "out")):
        with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
            call(folder)
    assert sorted(tmp_path.iterdir()) == before


def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--o--m" / "snapshots" / "0"
    snapshot.parent.mkdir(parents=True)
    blobs = model(tmp_path / "models--o--m" / "blobs")
    snapshot.mkdir()
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    assert "tokenizer.json" in kept_files(snapshot)
    assert len(open_stored(snapshot).tensors) > 0
    (snapshot / "vocab.json").symlink_to("../../../secret")
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
        open_stored(snapshot)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret"])
def test_what_stands_beside_the_tensors_is_the_folders_own(target, tmp_path):
    folder = model(tmp_path / "model")
    checkpoint = open_stored(folder)
    (tmp_path / "secret").write_text("secret")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(target)  # since it was opened
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
        kept_files(checkpoint.folder)
    with pytest.raises(CheckpointError, match="outside the checkpoint's folder"):
        growth.grow(deepen(to=7), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_companion_of_any_size_is_not_copied(tmp_path):
    folder = model(tmp_path / "model")
    os.truncate(folder / "tokenizer.json", LARGEST_COMPANION + 1)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has 134,217,729 bytes"):
        growth.grow(deepen(to=7), folder, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


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


def refused(call, error):
    with bounded(), pytest.raises(error):
        call()


FAMILY = {config["model_type"]: config for config in reversed(CONFIGS)}  # the first of each


# Left out: max_position_embeddings and the ids of tokens, of which no tensor's shape and no result depends.
SIZES = {
    "llama": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim",
    ),
    "phi": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads",
    ),
    "gpt2": ("vocab_size", "n_embd", "n_inner", "n_layer", "n_head", "n_positions"),
    "mixtral": (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "num_local_experts", "num_experts_per_tok",
    ),
}  # fmt: skip
# null stands for the stock class's own value, and that is the value here, or one that no tensor's shape tells apart
NULLS = {
    ("llama", "head_dim"),
    ("mixtral", "head_dim"),
    ("phi", "num_key_value_heads"),
    ("mixtral", "num_experts_per_tok"),
}


@pytest.mark.parametrize(("family", "key"), [(family, key) for family, keys in SIZES.items() for key in keys])
def test_sizes_that_are_none(family, key, tmp_path):
    folder = tmp_path / "model"
    lay(folder, saved(family, 1))
    config = json.loads((folder / "config.json").read_text())
    assert key in config
    recipe = parse_recipe(SMALL, "r.yaml")
    assert growth.plan(recipe, folder).tensors
    for value in (-1, 0, float("nan"), 1.5, "x", None):
        (folder / "config.json").write_text(json.dumps({**config, key: value}))
        if value is None and (family, key) in NULLS:
            assert growth.plan(recipe, folder).tensors
        else:
            refused(lambda: growth.plan(recipe, folder), GrowthError)


@pytest.mark.parametrize("family", FAMILY)
def test_sizes_that_make_an_enormous_table_are_refused(family):
    built = architecture(FAMILY[family])
    counted = {key for key, axes in built.sizes.items() if {"vocab", "experts", "shared_experts"} & {*axes.split()}}
    for key in {*built.depth_keys, *counted}:
        for value in (2**31 - 1, 10**9, 2**31, 10**400):
            changed = replace(built, config={**built.config, key: value}).whole_config
            refused(lambda changed=changed: architecture(changed), ConfigError)


@pytest.mark.parametrize(("family", "key"), [("mixtral", "num_local_experts"), ("qwen3_moe", "num_experts")])
def test_experts_that_are_no_large_axis_can_make_an_enormous_table(family, key):
    config = {**FAMILY[family], key: 2**20}
    refused(lambda: architecture(config), ConfigError)


@pytest.mark.parametrize("value", [3, "x", [1], [None] * 3, ["full_attention"] * 999, {"a": 1}])
@pytest.mark.parametrize(
    "family", ["qwen2", "qwen3", "ministral", "cohere2", "gemma2", "olmo3", "smollm3", "qwen2_moe"]
)
def test_layer_lists_have_an_entry_a_layer(family, value):
    with pytest.raises(ConfigError, match="layer_types"):
        architecture({**FAMILY[family], "layer_types": value})


def test_smollm3s_list_may_be_longer_than_its_layers_as_in_the_stock_class():
    config = FAMILY["smollm3"]
    depth = config["num_hidden_layers"]
    turns = [1, 0] * depth
    exact, longer = (architecture({**config, "no_rope_layers": turns[:n]}) for n in (depth, 2 * depth))
    assert exact.shapes() == longer.shapes()
    assert exact.axes == longer.axes
    for value in ([1] * (depth - 1), "x", [None] * depth):
        with pytest.raises(ConfigError, match="no_rope_layers"):
            architecture({**config, "no_rope_layers": value})


@pytest.mark.parametrize("value", ["x", [], [0.5], {}, True, 10**400, 2, -1])
@pytest.mark.parametrize("key", ["partial_rotary_factor", "short_factor", "long_factor"])
def test_phi3s_factors_are_numbers_and_lists_of_them(key, value):
    with pytest.raises(ConfigError, match=key):
        architecture({**FAMILY["phi3"], "rope_parameters": {"rope_theta": 1e4, key: value}})


RECIPES = {
    "aliases": "description: &a d\nsource: *a\nsteps: [{op: deepen, to: 7}]",
    "tags": "description: !!binary aGk=\nsteps: []",
    "python": "description: !!python/object/apply:os.system [x]\nsteps: []",
    "nested": "steps: " + "[" * 1000,
    "dates": "description: d\nexpect: {a: 2001-01-01}\nsteps: [{op: deepen, to: 7}]",
    "number keys": "description: d\n1: 2\nsteps: [{op: deepen, to: 7}]",
    "infinite": "description: d\nexpect: {a: .inf}\nsteps: [{op: deepen, to: 7}]",
    "merge": "description: d\n<<: {seed: 3}\nsteps: [{op: deepen, to: 7}]",
    "many steps": "description: d\nsteps:\n" + "- {}\n" * 50_000,
    "long lists": "description: d\nsteps: [{op: deepen, order: [" + "0," * 20_000 + "]}]",
    "digits": "description: d\nsteps: [{op: deepen, to: " + "9" * 5000 + "}]",
}


@pytest.mark.parametrize("text", RECIPES.values(), ids=RECIPES.keys())
def test_recipes(text):
    with bounded(4 * SECONDS), pytest.raises(RecipeError):
        parse_recipe(text, "r.yaml")


STEPS = (
    "op: deepen, to: 2147483647",
    "op: widen, axis: ffn, to: 2147483647",
    "op: widen, axis: vocab, factor: 2e9",
    "op: reuse, to: {ffn: 2147483647}",
    "op: upcycle, experts: 2147483647, top_k: 1",
)


@pytest.mark.parametrize("step", STEPS)
def test_steps_to_enormous_models(step):
    recipe = parse_recipe(f"description: d\nsteps: [{{{step}}}]", "r.yaml")
    refused(lambda: growth.plan(recipe, PHI_MINI), RecipeError)


def test_recipe_files_that_are_none(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "large").write_bytes(b"#" * (LARGEST_FILE + 1))
    for name in ("pipe", "bytes", "large"):
        with pytest.raises(RecipeError, match="cannot be read"):
            load_recipe(tmp_path / name)
    with pytest.raises(RecipeError, match="is a folder, and a recipe is a YAML file"):
        load_recipe(tmp_path)


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown") / "out"
    growth.grow("phi-mini", PHI_MINI, folder)
    return folder


@pytest.fixture
def told(grown, tmp_path):
    """growth.json of a copy of a grown folder, and what writes it there with other values."""
    for path in grown.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def tell(change):
        (tmp_path / MANIFEST).write_text(json.dumps(json.loads((grown / MANIFEST).read_text()) | change))
        return tmp_path

    return tell


CHANGES = (
    {"layers": []},
    {"layers": 3},
    {"levels": {"residual": "x"}},
    {"axes": {"residual": {"before": 128, "after": 10**12, "runs": []}}},
    {"axes": {"residual": {"before": 128, "after": 160, "runs": [[0, 160, 1, 1, 1]]}}},
    {"axes": {"residual": {"before": 3, "after": 4, "runs": [[0, 4, None, 1, 1]]}}},  # the sizes say 128 and 160
    {"tensors": {"lm_head.weight": []}},
    {"files": {"../../secret": "0"}},
    {"headers": {"/dev/zero": "0"}},
    {"seed": "0"},
    {"seed": -1},
    {"recipe": []},
)


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_growth_json(change, told):
    assert read_manifest(told({})) is not None
    with pytest.raises(CheckpointError, match=r"growth\.json"):
        read_manifest(told(change))


@pytest.mark.parametrize(
    "recipe",
    [{"steps": 3}, {"description": "d", "steps": [{"op": "x"}]}, {"description": "d", "steps": [], "name": "n"}]
    + [{"description": "d", "steps": [{"op": "deepen", "to": n}]} for n in (1, 7, 2**31 - 1)]
    + [{"description": "d", "steps": [{"op": "widen", "axis": "ffn", "to": 10**6}], "expect": {"a": 1}}, {}],
)  # fmt: skip
def test_a_recipe_in_growth_json_is_no_more_trusted_than_a_file(recipe, told):
    try:
        report = verify_weights(PHI_MINI, told({"recipe": recipe}))
    except GrowthError as error:
        refusal = str(error)
    else:
        refusal = " ".join(report.problems)
    assert MANIFEST in refusal


def test_a_report_draws_no_strips_of_sizes_that_growth_json_invents(told, grown):
    tensors = json.loads((grown / MANIFEST).read_text())["tensors"]
    info = open_stored(grown).tensors["model.layers.0.mlp.fc1.weight"]
    assert [len(origin) for origin in report.origins_of(read_manifest(grown), info)] == list(info.shape)
    for axes in ([["residual"] * 20] * 2, [["x"], ["y"]], [], [["residual"]]):
        change = {"tensors": {name: entry | {"axes": axes} for name, entry in tensors.items()}}
        assert report.origins_of(read_manifest(told(change)), info) == ()
    assert report.weight_figures(read_manifest(told({"tensors": {}})), PHI_MINI, grown) == ""


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"\xff", b'{"model": {"type": "BPE"}}', json.dumps(nested(500)).encode()]
)
def test_tokenizers(content, tmp_path):
    folder = model(tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(content)
    copy = shutil.copytree(folder, tmp_path / "copy")
    result = CliRunner().invoke(app, ["verify", str(folder), str(copy)])
    assert result.exit_code == 2, result.output
    assert "tokenizer.json" in result.output


def test_a_folder_does_not_hide_a_shipped_recipe(tmp_path, monkeypatch):
    (tmp_path / "phi-mini").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_recipe("phi-mini").steps


def test_names_that_no_file_system_takes(tmp_path):
    for name in ("x" * 5000, "x/" + "y" * 5000, "\x00"):
        with pytest.raises(RecipeError):
            load_recipe(name)
        with pytest.raises(CheckpointError):
            growth.plan(parse_recipe(json.dumps({"description": "d", "source": name, "steps": [STEP]}), "r"))


@pytest.mark.parametrize("config", [{"hidden_size": 2**20}, {"intermediate_size": 2**20}, {"num_hidden_layers": 2000}])
def test_verify_builds_no_model_without_tensors_behind_it(config, tmp_path):
    folder = model(tmp_path / "model", **config)
    refused(lambda: growth.verify(folder, folder), GrowthError)


def test_a_folder_without_floats_is_not_runnable(tmp_path):
    folder = model(tmp_path / "model")
    file_of(folder / "model.safetensors", {"a": tensor(0, 8, (1,), dtype="I64")}, bytes(8))
    with pytest.raises(CheckpointError, match="no tensor in a dtype that can be run"):
        growth.verify(folder, folder)


@pytest.mark.parametrize("depth", [2049, 10**9])
def test_stock_classes_have_no_more_layers_than_any_model(depth, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gptj", "n_layer": depth}))
    refused(lambda: stock_config(tmp_path), ConfigError)


def test_messages_do_not_steer_the_terminal():
    error = GrowthError("a\x1b[2J\x00\ud800" + "x" * 10**6)
    assert str(error).isprintable()
    assert len(str(error)) < 5000


def test_plain_data():
    check_plain(nested(DEEPEST - 1))
    with pytest.raises(ValueError, match="nested too deeply"):
        check_plain(nested(DEEPEST + 1))
    with pytest.raises(ValueError, match="exceeds 64 bits"):
        parse_json(b"[18446744073709551616]")


@pytest.mark.parametrize("part", [b"0,", b"[],", b"[[", b'{"":'])
def test_the_memory_of_json_is_bounded_by_its_values(part):
    refused(lambda: parse_json(b"[" + part * LARGEST_COUNT), ValueError)


# ------------------------------------------------- no code is run


def test_no_code_of_the_package_opens_pickles():
    for path in (Path(growth.__file__).parent).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in getattr(node, "names", [])] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if path.name == "inert_pickle.py":  # its unpickler makes no object: tests/checkpoints/test_dcp.py
                names = [name for name in names if name != "pickle"]
            assert not {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"} & set(names), path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert called not in ("eval", "exec", "np.load", "numpy.load", "pickle.load", "pickle.loads"), path
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
