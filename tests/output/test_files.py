"""From folder to folder: the same values as in memory, the same bytes each time, nothing half done."""

import errno
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import growth
from growth import CheckpointError
from growth.architectures import architecture
from growth.checkpoints.formats.safetensors import layout
from growth.operators import break_symmetry, chain, deepen, widen
from growth.output.shards import shard_size, shards_of
from growth.output.tensor_writer import Writer
from growth.output.write_jobs import WriteJob, interleave_files
from growth.runtime.directory import Directory
from growth.runtime.workers import WorkerPool
from tests.support.folders import bytes_of
from tests.support.models import EXACT, random_phi, relative_error, save

ALL = chain(
    widen("residual", to=40, shares="random", init="tile"),
    widen("ffn", factor=1.25, init="pad"),
    widen("heads", to=5, init="sample", shares="equal"),
    widen("head_dim", to=10, init="tile", shares="equal"),
    break_symmetry(),
    deepen(to=5),
)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shard", [None, "30KB"])
def test_files_hold_what_memory_does(dtype, shard, tmp_path):
    model = random_phi(dtype)
    source = save(model, tmp_path / "source")
    growth.grow(ALL, source, tmp_path / "out", max_shard_size=shard, seed=7)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True, dtype="auto")
    assert not any(info.values())
    in_memory = growth.grow_model(model, ALL, seed=7)
    assert loaded.dtype == dtype
    for name, tensor in in_memory.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_by_default_a_large_model_has_files_for_many_processes(phi_folder, tmp_path, monkeypatch):
    plan = growth.grow(ALL, phi_folder, tmp_path / "one")
    assert (tmp_path / "one" / "model.safetensors").exists()
    whole = plan.bytes
    for smallest, largest, expected in [
        (whole // 3, whole, whole // 3),
        (1, whole, whole // 16),
        (1, whole // 20, whole // 20),
    ]:
        monkeypatch.setattr("growth.output.shards.SMALL", smallest)
        monkeypatch.setattr("growth.output.shards.LARGE", largest)
        files = [(shard.name, shard.header) for shard in shards_of(plan, None)]
        assert files == [(shard.name, shard.header) for shard in shards_of(plan, expected)]
    growth.grow(ALL, phi_folder, tmp_path / "many")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) == len(files) > 8
    assert growth.verify_weights(phi_folder, tmp_path / "many", ALL).passed


def test_files_are_writteninterleave_files(phi_folder):
    """The largest tensors first; of as large ones, one of each file after another."""
    plan = growth.plan(widen(axis="ffn", factor=2), phi_folder)
    shards = shards_of(plan, plan.bytes // 3)
    tasks = [
        WriteJob([(tensor_map, shard.places[tensor_map.target])]) for shard in shards for tensor_map in shard.tensors
    ]
    turns = interleave_files(tasks)
    assert sorted(map(id, turns)) == sorted(map(id, tasks))
    sizes = [task.bytes for task in turns]
    assert sizes == sorted(sizes, reverse=True)
    for size in set(sizes):
        files = [task.identical[0][1].path for task in turns if task.bytes == size]
        last = {file: n for n, file in enumerate(files)}
        rounds = [files.index(file) for file in last]
        assert max(rounds) < len(last), "each file has its turn before one has its second"


@pytest.mark.parametrize("forks", [False, True])
@pytest.mark.parametrize("init", ["copy", "identity"])
def test_many_hands_may_share_a_tensor(init, forks, phi_folder, tmp_path, monkeypatch, alone):
    """Whatever is made of it: copies of it too, random values, and means of what was read."""
    operator = chain(
        widen("residual", to=40, init="tile", shares="equal"),
        widen("ffn", factor=1.25, init="pad"),
        deepen(to=5, init=init),
    )
    growth.grow(operator, phi_folder, tmp_path / "plain")
    monkeypatch.setattr("growth.engine.grow_tensor.BLOCK_BYTES", 1 << 10)
    monkeypatch.setattr("growth.output.tensor_writer.LARGEST_JOB", 3 << 10)
    monkeypatch.setattr("growth.output.tensor_writer.cores", lambda: 1 << 20)
    tasks = []
    monkeypatch.setattr(
        "growth.output.write_jobs.interleave_files", lambda found: tasks.extend(found) or interleave_files(found)
    )
    plan = growth.grow(operator, phi_folder, tmp_path / "shared", forks=forks)
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "shared")
    shared = [task for task in tasks if task.blocks is not None]
    assert {tensor_map.target for task in shared for tensor_map, _ in task.identical} == {
        tensor_map.target
        for tensor_map in plan.tensors
        if tensor_map.bytes > 3 << 10 and not (tensor_map.is_copy or tensor_map.zero)
    }
    assert sum(task.bytes for task in tasks) == plan.bytes
    assert all(task.bytes <= len(task.identical) * 3 << 9 or len(task.blocks) == 1 for task in shared)


def test_a_reloaded_growth_computes_the_same_and_generates_the_same(phi_folder, tmp_path):
    growth.grow(ALL, phi_folder, tmp_path / "out")
    small = AutoModelForCausalLM.from_pretrained(phi_folder, dtype="auto")
    large = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    ids = torch.randint(1, 61, (2, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0  # left padding
    options = {"attention_mask": mask, "max_new_tokens": 32, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(ids, **options), large.generate(ids, **options))


def test_the_same_seed_gives_the_same_bytes(phi_folder, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        growth.grow(ALL, phi_folder, tmp_path / name, seed=seed)
    a, b, c = (bytes_of(tmp_path / name) for name in "abc")
    assert a == b
    assert a["model.safetensors"] != c["model.safetensors"]


def test_sharded_and_single_sources_grow_alike(tmp_path):
    model = random_phi()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    for name in ("whole", "parts"):
        growth.grow(ALL, tmp_path / name, tmp_path / f"{name}-grown")
    assert load_file(tmp_path / "whole-grown" / "model.safetensors").keys()
    assert (
        bytes_of(tmp_path / "whole-grown")["model.safetensors"]
        == bytes_of(tmp_path / "parts-grown")["model.safetensors"]
    )


def test_a_larger_type_keeps_the_function_to_its_own_precision(tmp_path):
    source = save(random_phi(torch.float16), tmp_path / "source")
    growth.grow(ALL, source, tmp_path / "out", dtype="float64")
    small = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float64, attn_implementation="eager")
    large = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto", attn_implementation="eager")
    assert large.dtype == torch.float64
    assert relative_error(small, large) <= EXACT


def test_how_the_work_is_divided_does_not_show(tmp_path, monkeypatch):
    model = random_phi(torch.float32, intermediate_size=300, vocab_size=200)
    source = save(model, tmp_path / "source")
    growth.grow(ALL, source, tmp_path / "whole")
    monkeypatch.setattr("growth.engine.grow_tensor.BLOCK_BYTES", 1)  # the least: a row, or 64 where any are random
    monkeypatch.setattr("growth.engine.gather_scale.MANY_RUNS", 0)
    growth.grow(ALL, source, tmp_path / "blocks")
    assert bytes_of(tmp_path / "whole") == bytes_of(tmp_path / "blocks")


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_neither_order_nor_number_of_workers_shows(workers, phi_folder, tmp_path, monkeypatch):
    growth.grow(ALL, phi_folder, tmp_path / "plain", max_shard_size="30KB")
    run, draw = WorkerPool.run, random.Random(workers)

    def shuffled(self, jobs, meter):
        order = draw.sample(range(len(jobs)), len(jobs))
        results = dict(zip(order, run(self, [jobs[place] for place in order], meter), strict=True))
        return [results[place] for place in range(len(jobs))]

    monkeypatch.setattr(WorkerPool, "run", shuffled)
    monkeypatch.setattr("growth.runtime.workers.cores", lambda: workers)
    for name in ("one", "two"):
        growth.grow(ALL, phi_folder, tmp_path / name, max_shard_size="30KB")
        assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / name)


def test_tensors_are_whole_however_little_is_read_at_a_time(phi_folder, tmp_path, monkeypatch):
    growth.grow(ALL, phi_folder, tmp_path / "plain")
    sizes = []

    def read(descriptor, views, offset, real=os.preadv):
        (view,) = views
        sizes.append(len(view))
        few = view[: -(-len(view) // 2)] if len(sizes) % 3 else view[:1]
        return real(descriptor, [few], offset)

    monkeypatch.setattr(os, "preadv", read)
    growth.grow(ALL, phi_folder, tmp_path / "short")
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "short")
    assert len(sizes) > 1000


@pytest.mark.parametrize("init", ["copy", "identity"])
@pytest.mark.parametrize("together", [1, 2, 16])
def test_tensors_of_the_same_values_are_grown_once(together, init, phi_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("growth.output.write_jobs.MAX_OPEN", together)
    grown = []
    original = Writer.write
    monkeypatch.setattr(Writer, "write", lambda self, alike: grown.append(alike) or original(self, alike))
    operator = chain(
        widen("residual", to=40, init="tile", shares="equal"),
        widen("ffn", factor=1.25, init="tile", shares="equal"),
        deepen(order=[0, 0, 0, 1, 2], init=init),
    )
    plan = growth.grow(operator, phi_folder, tmp_path / "out", max_shard_size="30KB")
    entries = json.loads((tmp_path / "out" / "growth.json").read_text())["tensors"]
    made = {}
    for tensor_map in plan.tensors:
        made.setdefault(tensor_map.value_key, []).append(tensor_map.target)
        assert entries[made[tensor_map.value_key][0]]["xxh3_128"] == entries[tensor_map.target]["xxh3_128"]
    assert {
        len(made[tensor_map.value_key])
        for tensor_map in plan.tensors
        if "layers.0.self_attn.q_proj.weight" in tensor_map.target
    } == {3}
    assert {
        len(made[tensor_map.value_key])
        for tensor_map in plan.tensors
        if tensor_map.is_copy or "layers.4" in tensor_map.target
    } == {1}
    assert len(grown) == sum(-(-len(names) // together) for names in made.values())
    assert growth.verify_weights(phi_folder, tmp_path / "out", operator).passed  # each by itself


def test_tensors_in_one_file_are_grown_together_by_one_descriptor(phi_folder, tmp_path, monkeypatch):
    opened, jobs = [], []
    write, opening = Writer.write, Directory.opened

    def recording(folder, name, flags):
        if jobs and flags == os.O_WRONLY:
            opened.append(name)
        return opening(folder, name, flags)

    monkeypatch.setattr(Directory, "opened", recording)
    monkeypatch.setattr(Writer, "write", lambda self, alike: jobs.append(alike) or write(self, alike))
    operator = chain(widen("residual", to=40, init="tile", shares="equal"), deepen(order=[0, 0, 0, 1, 2], init="copy"))
    plan = growth.grow(operator, phi_folder, tmp_path / "out")
    assert len(opened) == len(jobs) < len(plan.tensors)


def test_companions_come_along_and_code_does_not(phi_folder, tmp_path):
    source = tmp_path / "source"
    save(random_phi(), source)
    (source / "tokenizer.json").write_text("{}")
    (source / "modeling_phi.py").write_text("raise SystemExit")
    (source / "notes.bin").write_bytes(b"x")
    growth.grow(deepen(to=4), source, tmp_path / "out")
    assert set(os.listdir(tmp_path / "out")) == {
        "README.md",
        "config.json",
        "generation_config.json",
        "growth.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_provenance_of_every_value(phi_folder, tmp_path):
    plan = growth.grow("double-both", phi_folder, tmp_path / "out")
    content = json.loads((tmp_path / "out" / "growth.json").read_text())
    assert content["preserving"] is True
    assert content["seed"] == plan.seed
    assert [layer["silent"] for layer in content["layers"]] == [False, True] * 3
    assert content["axes"]["residual"]["before"] == 32
    assert content["axes"]["heads"]["runs"][0][:3] == [0, 4, 0]
    fresh = content["tensors"]["model.layers.1.mlp.fc1.weight"]
    assert fresh["new_layer"] is True
    assert fresh["axes"] == [["ffn"], ["residual"]]
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert content["tensors"].keys() == tensors.keys()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "computes the same function" in card


def test_the_source_hash_is_of_its_values(phi_folder, tmp_path):
    tensors = load_file(phi_folder / "model.safetensors")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_bytes((phi_folder / "config.json").read_bytes())
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt", "written": "elsewhere"})
    tensors["lm_head.bias"][3] += 1
    changed = tmp_path / "changed"
    changed.mkdir()
    (changed / "config.json").write_bytes((phi_folder / "config.json").read_bytes())
    save_file(tensors, changed / "model.safetensors")

    def digest(source, name):
        growth.grow(deepen(to=4), source, tmp_path / name)
        return json.loads((tmp_path / name / "growth.json").read_text())["source"]["xxh3_128"]

    assert digest(phi_folder, "a") == digest(other, "b") != digest(changed, "c")


# ------------------------------------------------- bad sources leave nothing behind


def broken(folder, tmp_path, name, value):
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = value
    out = tmp_path / "broken"
    out.mkdir()
    save_file(tensors, out / "model.safetensors")
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    return out


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(value, phi_folder, tmp_path):
    source = broken(phi_folder, tmp_path, "model.layers.2.mlp.fc2.weight", value)
    with pytest.raises(CheckpointError, match=r"'model.layers.2.mlp.fc2.weight' .* NaN or Inf"):
        growth.grow(ALL, source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["broken"]


def test_overflow_in_a_smaller_type_is_refused(phi_folder, tmp_path):
    source = broken(phi_folder, tmp_path, "model.layers.2.mlp.fc2.weight", 1e6)
    with pytest.raises(CheckpointError, match=r"overflows F16 .* bfloat16"):
        growth.grow(ALL, source, tmp_path / "out", dtype="float16")
    assert sorted(os.listdir(tmp_path)) == ["broken"]


def test_fresh_values_that_overflow_are_refused(tmp_path):
    """Drawn to the size of old ones that do not, in rows of their own."""
    model = random_phi(torch.float16)
    weight = model.get_parameter("model.layers.1.mlp.fc1.weight")
    with torch.no_grad():
        weight.copy_(torch.where(weight < 0, -6e4, 6e4))
    with pytest.raises(CheckpointError, match=r"'model.layers.1.mlp.fc1.weight' overflows F16"):
        growth.grow(widen("ffn", factor=1.25, init="pad"), save(model, tmp_path / "source"), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["source"]


def test_an_existing_output_is_kept(phi_folder, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        growth.grow(ALL, phi_folder, tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_a_truncated_source_is_refused(phi_folder, tmp_path):
    source = tmp_path / "short"
    source.mkdir()
    (source / "config.json").write_bytes((phi_folder / "config.json").read_bytes())
    (source / "model.safetensors").write_bytes((phi_folder / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or has extra bytes"):
        growth.grow(ALL, source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["short"]


def test_a_source_that_shrinks_underway_is_refused(tmp_path):
    source = save(random_phi(), tmp_path / "source")
    path = source / "model.safetensors"

    def truncate(phase, done, total):
        if phase == "grow":
            os.truncate(path, 1000)

    with pytest.raises(CheckpointError, match="changed meanwhile"):
        growth.grow(ALL, source, tmp_path / "out", progress=truncate)
    assert os.listdir(tmp_path) == ["source"]


def test_progress_counts_every_byte_once(phi_folder, tmp_path):
    seen = {}
    lock = threading.Lock()

    def progress(phase, done, total):
        with lock:
            assert done >= seen.get(phase, (0, total))[0]
            seen[phase] = done, total

    growth.grow(ALL, phi_folder, tmp_path / "out", progress=progress)
    assert list(seen) == ["check source", "grow"]
    assert all(done == total for done, total in seen.values())


def kernel_copies(monkeypatch, accepted):
    """How many bytes the kernel copied, 1000 at most at a time, until it had `accepted` as many times."""
    copied, copy = [], os.copy_file_range

    def copy_file_range(source, target, count, at, to):
        if len(copied) >= accepted:
            raise OSError(errno.EXDEV, "not between these files")
        copied.append(copy(source, target, count, at, to))
        return copied[-1]

    monkeypatch.setattr("growth.output.tensor_writer.COPY_CHUNK", 1000)
    monkeypatch.setattr(os, "copy_file_range", copy_file_range)
    return copied


@pytest.fixture
def kernel_can_copy(tmp_path):
    """Skips where the kernel or the file system copies nothing."""
    with (tmp_path / "from").open("wb+") as old, (tmp_path / "to").open("wb+") as new:
        old.write(bytes(10))
        old.flush()
        try:
            os.copy_file_range(old.fileno(), new.fileno(), 10)
        except (AttributeError, OSError):
            pytest.skip("the kernel copies nothing here")


@pytest.mark.usefixtures("kernel_can_copy")
def test_what_stays_is_copied_by_the_kernel(phi_folder, tmp_path, monkeypatch):
    copied = kernel_copies(monkeypatch, accepted=10**9)
    plan = growth.grow(deepen(to=5), phi_folder, tmp_path / "out")
    assert sum(copied) == sum(tensor_map.bytes for tensor_map in plan.tensors if tensor_map.is_copy) > plan.bytes / 2
    assert growth.verify_weights(phi_folder, tmp_path / "out", deepen(to=5)).passed


@pytest.mark.usefixtures("kernel_can_copy")
@pytest.mark.parametrize("accepted", [0, 1, 2, 30])
def test_a_kernel_that_stops_copying_does_not_show(accepted, phi_folder, tmp_path, monkeypatch):
    growth.grow(deepen(to=5), phi_folder, tmp_path / "plain")
    kernel_copies(monkeypatch, accepted)
    told = []
    growth.grow(deepen(to=5), phi_folder, tmp_path / "out", progress=lambda *step: told.append(step))
    assert bytes_of(tmp_path / "plain") == bytes_of(tmp_path / "out")
    counts = [done for phase, done, _ in told if phase == "grow"]
    assert counts == sorted(counts)
    assert counts[-1] == told[-1][2]


def test_the_callers_threads_are_left_alone(phi_folder, tmp_path):
    before = torch.get_num_threads()
    growth.grow(ALL, phi_folder, tmp_path / "out")
    assert torch.get_num_threads() == before


def test_a_hub_id_is_found_in_the_local_cache(phi_folder, tmp_path, monkeypatch):
    digest = hashlib.sha1(b"revision").hexdigest()
    snapshot = tmp_path / "hub" / "models--someone--phi" / "snapshots" / digest
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "hub" / "models--someone--phi" / "blobs"
    blobs.mkdir()
    for path in phi_folder.iterdir():  # as the hub's client stores them: links to blobs
        (blobs / path.name).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blobs / path.name)
    refs = tmp_path / "hub" / "models--someone--phi" / "refs"
    refs.mkdir()
    (refs / "main").write_text(digest)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert growth.plan(deepen(to=4), "someone/phi").target.depth == 4
    with pytest.raises(
        CheckpointError, match=r"someone/else cannot be downloaded from the hub: .* Check the connection"
    ):
        growth.plan(deepen(to=4), "someone/else")
    with pytest.raises(CheckpointError, match="not a hub id"):
        growth.plan(deepen(to=4), "no/such/folder")


def test_the_shipped_model_grows_with_its_tokenizer(phi_mini, tmp_path):
    growth.grow("phi-mini", phi_mini, tmp_path / "out")
    text = "def main():\n    return 0"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text) == AutoTokenizer.from_pretrained(phi_mini)(text)


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5KiB", 1536), (7, 7), (None, None), ("300", 300)])
def test_shard_sizes(text, size):
    assert shard_size(text) == size


@pytest.mark.parametrize("text", ["many", "-5GB", "5 PB", "0", ""])
def test_shard_sizes_that_are_none(text):
    with pytest.raises(growth.ConfigError, match=r"max_shard_size"):
        shard_size(text)


IMPORTS = """\
import sys
import growth
if sys.argv[4] == "no kernel copy":
    import os
    def refused(*arguments):
        raise OSError
    os.copy_file_range = refused
growth.grow(sys.argv[1], sys.argv[2], sys.argv[3])
sys.exit("torch" in sys.modules)
"""


@pytest.mark.parametrize("copying", ["kernel copy", "no kernel copy"])
def test_what_is_only_copied_needs_no_torch(copying, phi_folder, tmp_path):
    (tmp_path / "deeper.yaml").write_text("description: deeper\nsteps: [{op: deepen, to: 5}]")
    places = [str(tmp_path / "deeper.yaml"), str(phi_folder), str(tmp_path / "grown")]
    done = subprocess.run([sys.executable, "-c", IMPORTS, *places, copying], check=False)
    assert done.returncode == 0
    growth.grow(deepen(to=5), phi_folder, tmp_path / "again")
    weights = bytes_of(tmp_path / "grown")["model.safetensors"]
    assert weights == bytes_of(tmp_path / "again")["model.safetensors"]
    assert growth.verify_weights(phi_folder, tmp_path / "grown").passed


PEAKS = """\
import sys
import growth
recipe, *sources = sys.argv[1:]
for source in sources:
    growth.grow(recipe, source, source + "-grown")
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def zeros(folder, vocab):
    """Writes a tied Llama, nearly all of it the embedding, in no space; returns the bytes of that."""
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": 1024,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = [(name, "BF16", shape) for name, shape in architecture(config).shapes().items()]
    header, places = layout(folder / "model.safetensors", tensors)
    (folder / "model.safetensors").write_bytes(header)
    os.truncate(folder / "model.safetensors", len(header) + sum(place.bytes for place in places))
    return max(place.bytes for place in places)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="nothing tells the peak of memory")
def test_memory_does_not_grow_with_the_largest_tensor(tmp_path):
    (tmp_path / "wider.yaml").write_text("description: d\nsteps: [{op: widen, axis: residual, factor: 1.25}]")
    largest = zeros(tmp_path / "small", 1000), zeros(tmp_path / "large", 200_000)
    assert largest[1] > 400e6 > 100 * largest[0]
    places = [str(tmp_path / name) for name in ("wider.yaml", "small", "large")]
    done = subprocess.run([sys.executable, "-c", PEAKS, *places], stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(tmp_path / "large-grown")
    small, large = map(int, done.stdout.split())
    assert large - small < 120 << 10  # KB


@pytest.mark.parametrize("slow", [-1, 1000])
def test_space_is_kept_as_long_as_that_takes_no_time(slow, phi_mini, tmp_path, monkeypatch):
    asked, kept = [], os.posix_fallocate
    monkeypatch.setattr("growth.output.preallocate.PREALLOC_TIMEOUT", slow)
    monkeypatch.setattr("growth.output.preallocate.PREALLOC_STEP", 1 << 10)
    monkeypatch.setattr(
        "os.posix_fallocate", lambda file, start, size: asked.append((start, size)) or kept(file, start, size)
    )
    growth.grow("phi-mini", phi_mini, tmp_path / "out")
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    expected = [0, 1 << 10, *((1 << 10) * (2**n - 1) for n in range(2, 30))]
    assert [start for start, _ in asked] == (expected[:1] if slow < 0 else [at for at in expected if at < size])
    assert sum(length for _, length in asked) == (1 << 10 if slow < 0 else size)
    assert json.loads((tmp_path / "out" / "growth.json").read_text())["tensors"]
    assert growth.verify_weights(phi_mini, tmp_path / "out").passed
