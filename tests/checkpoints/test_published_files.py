"""A checkpoint is read as what it is, however its publisher stored it, by every command alike.

Names, buffers and a second copy of a tied head differ between publishers; none of them changes what is grown.
"""

import json
import os
import shutil
import warnings

import pytest
import torch
import torch.distributed.checkpoint as dcp
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from typer.testing import CliRunner

import growth
from growth import CheckpointError, ConfigError, GrowthError
from growth.architectures import architecture
from growth.checkpoints.companions import COMPANIONS, MOST
from growth.checkpoints.formats.safetensors import INDEX, SINGLE
from growth.checkpoints.hub import ELSEWHERE, FILES, config_file
from growth.checkpoints.open import open_stored
from growth.checkpoints.published import DERIVED, derived, hash_of_tensor
from growth.checkpoints.untrusted import LARGEST_COMPANION
from growth.cli.app import app
from growth.distributed.grow_reader import GrowReader
from growth.operators import deepen, widen
from growth.verification.inspect import inspect_checkpoint
from growth.verification.streaming import stream
from tests.support.families import Case, all_cases, random_model
from tests.support.models import save
from tests.support.paths import ROOT
from tests.support.selection import first_quick

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
DEEPER = deepen(to=3)
# as Qwen3-0.6B is made, with its vocabulary and sizes divided
QWEN3 = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "sliding_window": None,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory):
    """A tiny Qwen3 as save_pretrained stores it: without a head."""
    return save(random_model(Case("qwen3", "", QWEN3), torch.float32), tmp_path_factory.mktemp("qwen3") / "plain")


def stored_so(source, folder, change):
    """A copy of a folder whose tensors are changed by a function."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / SINGLE)
    tensors = change(tensors) or tensors
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / SINGLE, {"format": "pt"})
    return folder


def with_head(change=lambda head: head):
    return lambda tensors: {**tensors, HEAD: change(tensors[EMBEDDING].clone())}


def flipped(head):
    head.view(-1)[-1] += 1
    return head


def same_weights(one, other):
    ours, theirs = load_file(one / SINGLE), load_file(other / SINGLE)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------------------------- a tied head that is stored a second time


def test_a_stored_tied_head_grows_as_if_it_were_not_there(qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", with_head())
    plan = growth.grow(DEEPER, source, tmp_path / "out")
    growth.grow(DEEPER, qwen3, tmp_path / "plain")
    assert any(HEAD in note for note in plan.notes)
    assert HEAD not in load_file(tmp_path / "out" / SINGLE)
    assert same_weights(tmp_path / "out", tmp_path / "plain")


def test_every_command_takes_a_stored_tied_head(qwen3, tmp_path):
    source, grown = stored_so(qwen3, tmp_path / "source", with_head()), tmp_path / "grown"
    for index in (2, 1):
        growth.grow(DEEPER, source, tmp_path / "parts", part=(index, 2), max_shard_size="20KB")
    growth.grow(DEEPER, source, grown)
    growth.grow(DEEPER, source, grown, resume=True)
    # either side may store it
    stored = stored_so(grown, tmp_path / "stored", with_head())
    assert growth.verify(source, stored, dtype="float32", tokens=8).passed
    assert growth.verify_weights(source, grown, DEEPER).passed
    assert inspect_checkpoint(source).problem is None
    assert growth.diagnose(grown, stored).to_dict()
    assert HEAD in GrowReader(source, DEEPER).read_metadata().state_dict_metadata  # as the class has


COMMANDS = {
    "grow": lambda source, grown, out: growth.grow(DEEPER, source, out),
    "a part": lambda source, grown, out: growth.grow(DEEPER, source, out, part=(1, 2), max_shard_size="20KB"),
    "dcp": lambda source, grown, out: growth.grow(DEEPER, source, out, format="dcp"),
    "verify": lambda source, grown, out: growth.verify(source, grown, dtype="float32", tokens=8),
    "verify, grown": lambda source, grown, out: growth.verify(grown, source, dtype="float32", tokens=8),
    "stream": lambda source, grown, out: stream(source, torch.zeros(1, 4, dtype=int), torch.float32),
    "weights": lambda source, grown, out: growth.verify_weights(source, grown, DEEPER),
    "reader": lambda source, grown, out: GrowReader(source, DEEPER),
}


@pytest.fixture(scope="module")
def other_head(qwen3, tmp_path_factory):
    """A source whose head differs from the embedding in one value, and a growth of the plain one."""
    home = tmp_path_factory.mktemp("other")
    growth.grow(DEEPER, qwen3, home / "grown")
    return stored_so(qwen3, home / "source", with_head(flipped)), home / "grown"


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
def test_a_head_that_is_not_the_embedding_is_refused_with_both_hashes(command, other_head, tmp_path):
    source, grown = other_head
    hashes = [hash_of_tensor(info) for info in headers(source)]
    with pytest.raises(CheckpointError, match="tie_word_embeddings") as refused:
        command(source, grown, tmp_path / "out")
    assert all(digest in str(refused.value) for digest in hashes)
    assert hashes[0] != hashes[1]
    assert list(tmp_path.iterdir()) == []


def headers(folder):
    found = open_stored(folder).tensors
    return found[HEAD], found[EMBEDDING]


def test_inspect_names_a_head_that_is_not_the_embedding(other_head):
    assert HEAD in inspect_checkpoint(other_head[0]).problem


def test_a_plan_reads_headers_and_says_that_the_head_is_compared_later(other_head):
    assert any(HEAD in note and "refused" in note for note in growth.plan(DEEPER, other_head[0]).notes)


OTHER_FORMS = {
    "type": (lambda head: head.bfloat16(), r"\(BF16 \[61, 32\], .*\(F32 \[61, 32\], "),
    "shape": (lambda head: head[:-1], r"\(F32 \[60, 32\], .*\(F32 \[61, 32\], "),
}


@pytest.mark.parametrize(("change", "forms"), OTHER_FORMS.values(), ids=OTHER_FORMS.keys())
def test_a_head_of_another_type_or_shape_is_refused_with_both_hashes(change, forms, qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", with_head(change))
    with pytest.raises(CheckpointError, match=forms) as refused:
        growth.plan(DEEPER, source)  # which headers show
    assert all(hash_of_tensor(info) in str(refused.value) for info in headers(source))


def test_a_tied_head_alone_is_the_embedding(qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", lambda tensors: {HEAD: tensors.pop(EMBEDDING), **tensors})
    plan = growth.grow(DEEPER, source, tmp_path / "out")
    growth.grow(DEEPER, qwen3, tmp_path / "plain")
    assert same_weights(tmp_path / "out", tmp_path / "plain")
    assert any(HEAD in note and EMBEDDING in note for note in plan.notes)


def test_two_heads_without_an_embedding_are_compared(qwen3, tmp_path):
    def change(tensors):
        embedding = tensors.pop(EMBEDDING)
        return {**tensors, HEAD: embedding, "embed_out.weight": flipped(embedding.clone())}

    source = stored_so(qwen3, tmp_path / "source", change)
    with pytest.raises(CheckpointError, match="tie_word_embeddings") as refused:
        growth.grow(DEEPER, source, tmp_path / "out")
    stored = open_stored(source).tensors
    assert all(hash_of_tensor(stored[name]) in str(refused.value) for name in (HEAD, "embed_out.weight"))


def test_an_untied_head_is_a_tensor_of_its_own(qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", with_head(flipped))
    edit_config(source, tie_word_embeddings=False)
    growth.grow(DEEPER, source, tmp_path / "out")
    assert HEAD in load_file(tmp_path / "out" / SINGLE)


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("name", ["qwen3-0.6b-to-1.7b", "qwen3-0.6b-to-moe"])
def test_recipes_for_qwen3_grow_a_file_like_its_own(name, qwen3, tmp_path):
    """The steps of the shipped recipes at a sixteenth of the size, on a source that stores its head as theirs does."""
    source = stored_so(qwen3, tmp_path / "source", with_head())
    recipe = growth.load_recipe(name)
    smaller = {"residual": 64, "ffn": 192}
    steps = [s.model_copy(update={"to": smaller[s.axis]}) if s.op == "widen" else s for s in recipe.steps]
    recipe = recipe.model_copy(update={"expect": {}, "steps": steps})
    growth.grow(recipe, source, tmp_path / "out")
    assert growth.verify(source, tmp_path / "out", dtype="float32", tokens=8).passed


# ------------------------------------------------- buffers that the class computes itself

BUFFERS = {
    "gpt2": ("transformer.h.0.attn.bias", (1, 1, 16, 16)),
    "gpt2, value": ("transformer.h.0.attn.masked_bias", ()),
    "gpt_neox": ("gpt_neox.layers.0.attention.bias", (1, 1, 16, 16)),
    "gpt_neox, value": ("gpt_neox.layers.0.attention.masked_bias", ()),
    "llama": ("model.layers.0.self_attn.rotary_emb.inv_freq", (4,)),
    "opt": ("model.decoder.version", (1,)),
    "megatron-bert": ("bert.embeddings.position_ids", (1, 128)),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A small model of each of some families."""
    home = tmp_path_factory.mktemp("sources")
    cases = {case.family: case for case in reversed(all_cases())}
    names = {name.partition(",")[0] for name in BUFFERS}
    return {name: save(random_model(cases[name], torch.float32), home / name) for name in sorted(names)}


def test_every_derived_buffer_has_a_reason_and_is_tested():
    page = (ROOT / "docs" / "trust.md").read_text()
    assert all(f"`{entry.suffix}`" in page and entry.reason in page for entry in DERIVED)
    tested = {derived(name, shape).suffix for name, shape in BUFFERS.values()}
    assert tested == {entry.suffix for entry in DERIVED}


@pytest.mark.parametrize("case", BUFFERS)
def test_what_grow_leaves_out_no_command_refuses(case, sources, tmp_path):
    name, shape = BUFFERS[case]
    plain = sources[case.partition(",")[0]]
    depth = growth.plan(deepen(to=9), plain).source.depth
    steps = deepen(to=depth + 1)
    source = stored_so(plain, tmp_path / "source", lambda tensors: {**tensors, name: torch.ones(shape)})
    plan = growth.grow(steps, source, tmp_path / "grown")
    assert plan.dropped == (name,)
    assert growth.verify(source, tmp_path / "grown", dtype="float32", tokens=8).passed
    assert growth.verify_weights(source, tmp_path / "grown", steps).passed
    assert inspect_checkpoint(source).problem is None
    assert name in inspect_checkpoint(source).dropped


@pytest.mark.parametrize("copies", [True, False], ids=["both biases", "the decoder's bias"])
def test_an_encoder_is_read_without_its_other_heads_and_with_older_names(copies, tmp_path):
    model = random_model(next(case for case in all_cases() if case.family == "bert"), torch.float32)
    plain = save(model, tmp_path / "plain")

    def older(tensors):
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        head, bias = renamed["bert.embeddings.word_embeddings.weight"].clone(), renamed["cls.predictions.bias"].clone()
        renamed |= {"cls.predictions.decoder.weight": head, "cls.predictions.decoder.bias": bias}
        others = {"bert.pooler.dense.weight": torch.ones(32, 32), "cls.seq_relationship.bias": torch.ones(2)}
        return {name: renamed[name] for name in renamed if copies or name != "cls.predictions.bias"} | others

    source = stored_so(plain, tmp_path / "source", older)
    plan = growth.grow(widen("ffn", to=60), source, tmp_path / "grown")
    growth.grow(widen("ffn", to=60), plain, tmp_path / "expected")
    read = [load_file(folder / "model.safetensors") for folder in (tmp_path / "grown", tmp_path / "expected")]
    assert read[0].keys() == read[1].keys()
    assert all(torch.equal(read[0][name], read[1][name]) for name in read[0])
    assert any("bert.pooler.dense.weight" in note for note in plan.notes)
    assert growth.verify(source, tmp_path / "grown", dtype="float32", tokens=8).passed
    assert growth.verify_weights(source, tmp_path / "grown", widen("ffn", to=60)).passed


@pytest.mark.parametrize("case", BUFFERS)
def test_a_tensor_of_another_shape_is_not_a_derived_buffer(case, sources, tmp_path):
    name, _ = BUFFERS[case]
    plain = sources[case.partition(",")[0]]
    source = stored_so(plain, tmp_path / "source", lambda tensors: {**tensors, name: torch.ones(3, 5)})
    with pytest.raises(CheckpointError, match="does not have"):
        growth.plan(deepen(to=9), source)


def test_no_weight_of_any_family_is_left_out():
    for case in all_cases():
        table = architecture({"model_type": case.family, **case.config})
        assert not [name for name, shape in table.shapes().items() if derived(name, shape)], case.name


# ------------------------------------------------- names

NAMES = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "distributed": lambda name: f"module.{name}",
    "both": lambda name: f"module._orig_mod.{name}",
    "a compiled part": lambda name: name.replace("model.layers.", "model._orig_mod.layers."),
    "FSDP": lambda name: name.replace("model.", "_fsdp_wrapped_module.model.", 1),
    "checkpointed": lambda name: name.replace(".mlp.", "._checkpoint_wrapped_module.mlp."),
    "base model": lambda name: name.removeprefix("model."),
    "base model, compiled": lambda name: f"module._orig_mod.{name.removeprefix('model.')}",
    "a layer of the base model": lambda name: name.removeprefix("model.") if ".1." in name else name,
    "all but the embedding": lambda name: name if name == EMBEDDING else name.removeprefix("model."),
}


@pytest.mark.parametrize("rename", first_quick(NAMES.values(), 5, ids=list(NAMES)))
def test_names_are_read_as_what_they_are(rename, qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", lambda tensors: {rename(name): t for name, t in tensors.items()})
    plan = growth.grow(DEEPER, source, tmp_path / "out")
    growth.grow(DEEPER, qwen3, tmp_path / "plain")
    assert any("other names" in note for note in plan.notes)
    assert same_weights(tmp_path / "out", tmp_path / "plain")
    assert growth.verify(source, tmp_path / "out", dtype="float32", tokens=8, generation=True).passed
    assert inspect_checkpoint(source).problem is None


def test_layers_of_multi_token_prediction_are_left_out(tmp_path):
    """As DeepSeek-V3 stores one behind its last layer; without their projection, tensors there are an error."""
    case = next(case for case in all_cases() if case.name == "deepseek_v3, groups")
    plain = save(random_model(case, torch.float32), tmp_path / "plain")

    def with_prediction(tensors):
        copies = {name.replace(".2.", ".3."): value for name, value in tensors.items() if "layers.2.self" in name}
        return tensors | copies | {"model.layers.3.eh_proj.weight": torch.ones(32, 64)}

    source = stored_so(plain, tmp_path / "source", with_prediction)
    config = json.loads((source / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (source / "config.json").write_text(json.dumps(config))
    plan = growth.grow(deepen(to=4), source, tmp_path / "out")
    growth.grow(deepen(to=4), plain, tmp_path / "plain out")
    assert any("multi-token prediction are left out" in note for note in plan.notes)
    assert plan.config["num_nextn_predict_layers"] == 0
    assert same_weights(tmp_path / "out", tmp_path / "plain out")
    assert growth.verify(source, tmp_path / "out", dtype="float32", tokens=8).passed
    (source / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 0}))
    with pytest.raises(CheckpointError, match=r"holds 8 tensors .*which deepseek_v3 with this config does not have"):
        growth.plan(deepen(to=4), source)


@pytest.mark.parametrize("head", [True, False])
def test_a_base_model_may_store_its_tied_head_too(head, qwen3, tmp_path):
    def change(tensors):
        bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        embedding = bare["embed_tokens.weight"] if head else bare.pop("embed_tokens.weight")
        return {**bare, HEAD: embedding}

    growth.grow(DEEPER, stored_so(qwen3, tmp_path / "source", change), tmp_path / "out")
    growth.grow(DEEPER, qwen3, tmp_path / "plain")
    assert same_weights(tmp_path / "out", tmp_path / "plain")


@pytest.mark.parametrize("other", [f"module.{EMBEDDING}", EMBEDDING.removeprefix("model.")])
def test_names_that_differ_in_a_prefix_alone_are_refused(other, qwen3, tmp_path):
    twice = stored_so(qwen3, tmp_path / "source", lambda tensors: {**tensors, other: tensors[EMBEDDING]})
    with pytest.raises(CheckpointError, match=r"model\.embed_tokens\.weight' twice, as ") as refused:
        growth.plan(DEEPER, twice)
    assert f"'{other}'" in str(refused.value)


@pytest.mark.parametrize("prefix", ["student.", "model.", "base_model.model."])
def test_an_unknown_prefix_is_named(prefix, qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", lambda tensors: {f"{prefix}{n}": t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match=f"begin with '{prefix}'"):
        growth.plan(DEEPER, source)
    assert f"'{prefix}'" in inspect_checkpoint(source).problem


@pytest.mark.parametrize("part", [EMBEDDING, "layers.1.", "model.norm.weight", "q_proj."])
@pytest.mark.parametrize("prefix", ["student.", "base_model.model."])
def test_an_unknown_prefix_of_some_tensors_is_named(prefix, part, qwen3, tmp_path):
    def rename(tensors):
        return {f"{prefix}{name}" if part in name else name: tensor for name, tensor in tensors.items()}

    with pytest.raises(CheckpointError, match=f"begin with '{prefix}'"):
        growth.plan(DEEPER, stored_so(qwen3, tmp_path / "source", rename))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "opt"])
def test_an_unknown_prefix_is_named_in_every_family(family, sources, tmp_path):
    source = stored_so(sources[family], tmp_path / "source", lambda tensors: {f"x.{n}": t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match=r"begin with 'x\.'"):
        growth.plan(deepen(to=9), source)


@pytest.mark.parametrize("prefix", ["language_model.", "model.module."])
def test_an_unknown_prefix_in_place_of_the_base_model_is_named(prefix, qwen3, tmp_path):
    def rename(tensors):
        return {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}

    with pytest.raises(CheckpointError, match=f"begin with '{prefix}'"):
        growth.plan(DEEPER, stored_so(qwen3, tmp_path / "source", rename))


@pytest.mark.parametrize("name", ["_orig_mod._orig_mod", "module.module", "module.", "_orig_mod."])
def test_a_tensor_that_is_named_like_a_wrapper_is_refused(name, qwen3, tmp_path):
    source = stored_so(qwen3, tmp_path / "source", lambda tensors: {**tensors, name: torch.zeros(1)})
    with pytest.raises(CheckpointError, match="does not have"):
        growth.plan(DEEPER, source)


# ------------------------------------------------- which files hold the weights


def sharded(qwen3, folder):
    shutil.copytree(qwen3, folder)
    (folder / SINGLE).unlink()
    AutoModelForCausalLM.from_pretrained(qwen3).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_single_and_sharded_weights_are_never_mixed(qwen3, tmp_path):
    """As from_pretrained: the single file is read, whatever the index says."""
    source = sharded(qwen3, tmp_path / "source")
    values = {name: tensor + 1 for name, tensor in load_file(qwen3 / SINGLE).items()}
    save_file(values, source / SINGLE, {"format": "pt"})
    loaded = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert torch.equal(loaded[EMBEDDING], values[EMBEDDING])
    plan = growth.grow(DEEPER, source, tmp_path / "out")
    assert torch.equal(load_file(tmp_path / "out" / SINGLE)[EMBEDDING], values[EMBEDDING])
    assert INDEX in plan.notes[0]
    for command in (["plan", "double-depth", "-s"], ["inspect"]):
        result = CliRunner().invoke(app, [*command, str(source)])
        assert "Read model.safetensors" in result.output, result.output


def test_weights_beside_the_indexed_ones_are_named(qwen3, tmp_path):
    source = sharded(qwen3, tmp_path / "source")
    shutil.copy(qwen3 / SINGLE, source / "consolidated.safetensors")
    assert "consolidated.safetensors" in growth.plan(DEEPER, source).notes[0]


def reindexed(folder, change):
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": change(index["weight_map"])}))


def renumbered(folder, begin):
    (folder / INDEX).unlink()
    for path in folder.glob("model-*"):
        path.rename(folder / path.name.replace("model-", begin))


REFUSED = {
    "shards without an index": (
        lambda folder: (folder / INDEX).unlink(),
        r"numbered shards .*Fetch model\.safetensors",
    ),
    "a tensor in two shards": (
        lambda folder: sorted(folder.glob("model-*"))[0].write_bytes(sorted(folder.glob("model-*"))[1].read_bytes()),
        r"in two files",
    ),
    "an index that lacks a tensor": (
        lambda folder: reindexed(folder, lambda names: {n: f for n, f in names.items() if n != "model.norm.weight"}),
        r"disagree on tensor 'model\.norm\.weight': the index says nothing, .* write the index anew",
    ),
    "an index with a tensor too many": (
        lambda folder: reindexed(folder, lambda names: {**names, HEAD: names[EMBEDDING]}),
        r"disagree on tensor 'lm_head\.weight': .* the shards say nothing.* write the index anew",
    ),
    "shards of another name without an index": (
        lambda folder: renumbered(folder, "model.safetensors-"),
        r"only \d numbered shards such as model\.safetensors-00001-of-0000\d.*Fetch model\.safetensors\.index",
    ),
    "shards of a third name without an index": (
        lambda folder: renumbered(folder, "model."),
        r"only \d numbered shards such as model\.00001-of-0000\d.*Fetch model\.safetensors\.index",
    ),
    "shards of a variant": (
        lambda folder: renumbered(folder, "model.non-ema-"),
        r"only the variant model\.non-ema-00001-of-0000\d\.safetensors.*variant='non-ema'[^,]*new_folder\)\.$",
    ),
    "a shard is missing": (lambda folder: sorted(folder.glob("model-*"))[0].unlink(), r"holds no model-00001"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_shards_that_do_not_make_a_model_are_refused(change, message, qwen3, tmp_path):
    source = sharded(qwen3, tmp_path / "source")
    change(source)
    with pytest.raises(CheckpointError, match=message):
        growth.plan(DEEPER, source)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.fp16.safetensors", "from_pretrained.folder, variant='fp16'.*or rename"),
        ("consolidated.safetensors", "not a name that transformers loads. Save the model by save_pretrained"),
    ],
)
def test_weights_under_another_name_are_refused_with_the_remedy(name, message, qwen3, tmp_path):
    source = shutil.copytree(qwen3, tmp_path / "source")
    (source / SINGLE).rename(source / name)
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        growth.plan(DEEPER, source)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_safetensors_are_read_beside_a_distributed_checkpoint(qwen3, tmp_path):
    """As from_pretrained does, which knows nothing of the other."""
    source = shutil.copytree(qwen3, tmp_path / "source")
    dcp.save({EMBEDDING: torch.zeros(61, 32)}, checkpoint_id=source, no_dist=True)
    plan = growth.grow(DEEPER, source, tmp_path / "out")
    growth.grow(DEEPER, qwen3, tmp_path / "plain")
    assert same_weights(tmp_path / "out", tmp_path / "plain")
    assert any(".metadata" in note for note in plan.notes)


def test_an_adapter_beside_the_weights_is_refused(qwen3, tmp_path):
    """transformers would load the adapter, and so another model, from such a folder."""
    source = shutil.copytree(qwen3, tmp_path / "source")
    (source / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"PEFT adapter .*merge_and_unload"):
        growth.plan(DEEPER, source)
    (source / SINGLE).rename(source / "adapter_model.safetensors")  # an adapter alone
    with pytest.raises(CheckpointError, match=r"PEFT adapter .*merge_and_unload"):
        growth.plan(DEEPER, source)


@pytest.fixture
def engine_folder(qwen3, tmp_path):
    """The model as torch.distributed.checkpoint stores it, with its config."""
    folder = tmp_path / "engine"
    with warnings.catch_warnings(action="ignore"):  # of one process
        dcp.save(AutoModelForCausalLM.from_pretrained(qwen3).state_dict(), checkpoint_id=folder)
    shutil.copy(qwen3 / "config.json", folder)
    return folder


def test_a_distributed_checkpoint_that_would_load_as_another_model_is_refused(engine_folder):
    edit_config(engine_folder, transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match="transformers_weights"):
        growth.plan(DEEPER, engine_folder)
    edit_config(engine_folder, transformers_weights=None)
    growth.plan(DEEPER, engine_folder)
    (engine_folder / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="PEFT adapter"):
        growth.plan(DEEPER, engine_folder)


def test_generation_is_compared_whatever_the_format(engine_folder, tmp_path):
    growth.grow(DEEPER, engine_folder, tmp_path / "out", format="dcp")
    assert growth.verify(engine_folder, tmp_path / "out", dtype="float32", tokens=8, generation=True).passed


def test_a_config_that_names_its_weights_is_refused(qwen3, tmp_path):
    source = shutil.copytree(qwen3, tmp_path / "source")
    save_file({"weight": torch.zeros(2)}, source / "other.safetensors", {"format": "pt"})
    edit_config(source, transformers_weights="other.safetensors")
    with pytest.raises(CheckpointError, match=r"transformers_weights = 'other\.safetensors'"):
        growth.plan(DEEPER, source)


@pytest.mark.parametrize("key", ["text_config", "decoder", "generator"])
def test_a_config_within_the_config_is_refused(key, qwen3, tmp_path):
    """Transformers would read it in place of the other, and refuse both."""
    source = shutil.copytree(qwen3, tmp_path / "source")
    edit_config(source, **{key: {"num_hidden_layers": 7}})
    with pytest.raises(ConfigError, match=f"a config of another model in it, {key}"):
        growth.grow(DEEPER, source, tmp_path / "out")
    assert key in inspect_checkpoint(source).problem


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt"])
def test_a_file_of_the_base_model_is_read(family, sources, tmp_path):
    """Whether the family's own files come in both forms or not: names without the first prefix are the model's."""
    plain = sources[family]
    roots = ("transformer.", "gpt_neox.", "model.")

    def bare(name):
        return next((name.removeprefix(root) for root in roots if name.startswith(root)), name)

    source = stored_so(plain, tmp_path / "source", lambda tensors: {bare(name): t for name, t in tensors.items()})
    depth = growth.plan(deepen(to=9), plain).source.depth
    growth.grow(deepen(to=depth + 1), source, tmp_path / "out")
    growth.grow(deepen(to=depth + 1), plain, tmp_path / "expected")
    found, expected = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("out", "expected"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert growth.verify(source, tmp_path / "out", dtype="float32", tokens=8).passed
    assert inspect_checkpoint(source).problem is None


# ------------------------------------------------- what travels with the weights

TRAVEL = (
    "LICENSE", "LICENSE.md", "LICENSE-MODEL (Community).txt", "license.txt", "LICENCE", "NOTICE", "NOTICE.txt",
    "USE_POLICY.md", "notice", "Use_Policy.txt", "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "tokenizer_config.json",
    "LICENSES/Apache-2.0.txt", "LICENSES/MIT", "Notices/third party.md",
)  # fmt: skip
STAYS = ("README.md", "modeling_qwen3.py", "pytorch_model.bin", "notes/LICENSE", "additional_chat_templates/run.py")


def test_licences_and_templates_travel_with_the_weights(qwen3, tmp_path):
    source = shutil.copytree(qwen3, tmp_path / "source")
    for name in (*TRAVEL, *STAYS):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}" if name.endswith("json") else name)
    growth.grow(DEEPER, source, tmp_path / "out")
    growth.grow(DEEPER, source, tmp_path / "dcp", format="dcp")
    for grown in (tmp_path / "out", tmp_path / "dcp"):
        for name in TRAVEL:
            assert (grown / name).read_bytes() == (source / name).read_bytes(), name
        assert all(not (grown / name).exists() for name in STAYS if name != "README.md")
        told = json.loads((grown / "growth.json").read_text())["files"]
        assert set(TRAVEL) <= told.keys()
    growth.grow(DEEPER, tmp_path / "out", tmp_path / "again")  # and on
    assert all((tmp_path / "again" / name).read_bytes() == (source / name).read_bytes() for name in TRAVEL)
    assert growth.verify(source, tmp_path / "out", DEEPER, dtype="float32", tokens=8).passed
    assert growth.verify_weights(source, tmp_path / "out", DEEPER).passed


def test_the_hub_gives_what_travels():
    given = filter_repo_objects([*TRAVEL, *COMPANIONS], allow_patterns=FILES, ignore_patterns=ELSEWHERE)
    assert set(given) == {*TRAVEL, *COMPANIONS}


def test_the_hub_gives_no_other_copy_of_the_model():
    others = [f"{folder}/{name}" for folder in ("original", "onnx") for name in (SINGLE, "vocab.txt", "tokenizer.json")]
    assert not list(filter_repo_objects(others, allow_patterns=FILES, ignore_patterns=ELSEWHERE))


def linked(target, name="additional_chat_templates/x.jinja"):
    def store(source):
        (source / name).parent.mkdir()
        (source / name).symlink_to(target)

    return store


def written(name, size=1):
    def store(source):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
        os.truncate(source / name, size)

    return store


def folder_named(name):
    return lambda source: (source / name).mkdir(parents=True)


CANNOT_TRAVEL = {
    "a folder as the tokenizer": (folder_named("tokenizer.json"), "tokenizer.json is a folder"),
    "a folder as a template": (folder_named("additional_chat_templates/x.jinja"), "x.jinja is a folder"),
    "folders of licences": (folder_named("LICENSES/MIT"), "MIT is a folder"),
    "a licence's folder with a name of two lines": (written("LICENSE\nx/MIT"), "cannot be recorded in growth.json"),
    "a link from a folder of licences": (linked("../../secret", "LICENSES/MIT"), "MIT is a link to"),
    "a link to a file of the system": (linked("/etc/passwd"), "x.jinja is a link to"),
    "a link to a file outside": (linked("../../secret"), "x.jinja is a link to"),
    "a link to nowhere": (linked("nowhere"), "x.jinja is a link to"),
    "a name of two lines": (written("LICENSE\nx"), "cannot be recorded in growth.json"),
    "a template's name of two lines": (
        written("additional_chat_templates/a\nb.jinja"),
        "cannot be recorded in growth.json",
    ),
    "too large": (written("tokenizer.json", LARGEST_COMPANION + 1), "at most"),
    "too many": (lambda source: [written(f"NOTICE-{n}")(source) for n in range(MOST + 1)], "at most"),
}
EVERY_COMMAND = COMMANDS | {
    "plan": lambda source, grown, out: growth.plan(DEEPER, source),
    "inspect": lambda source, grown, out: inspect_checkpoint(source),
    "diagnose": lambda source, grown, out: growth.diagnose(grown, source),
    "training": lambda source, grown, out: growth.grow_training(DEEPER, source, out),
}


@pytest.mark.parametrize(("store", "why"), CANNOT_TRAVEL.values(), ids=CANNOT_TRAVEL.keys())
def test_what_cannot_travel_every_command_refuses(store, why, qwen3, tmp_path):
    source = shutil.copytree(qwen3, tmp_path / "source")
    (tmp_path / "secret").write_text("secret")
    growth.grow(DEEPER, source, tmp_path / "grown")
    store(source)
    for name, command in EVERY_COMMAND.items():
        out = tmp_path / name
        with pytest.raises(CheckpointError, match=why):
            command(source, tmp_path / "grown", out)
        assert not out.exists()


# ------------------------------------------------- the hub

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"


@pytest.fixture
def cached(qwen3, tmp_path, monkeypatch):
    """The hub's cache with one repository: the branch main, and the tag old of another commit, which has one layer."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    (repository / "refs").mkdir()
    snapshots = {COMMIT: qwen3, "0" * 40: save(random_model(Case("qwen3", "", QWEN3 | {"num_hidden_layers": 1}),
                                                           torch.float32), tmp_path / "old")}  # fmt: skip
    for commit, folder in snapshots.items():
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for path in (*folder.iterdir(),):
            shutil.copy(path, blobs / f"{commit}{path.name}")
            (snapshot / path.name).symlink_to(f"../../blobs/{commit}{path.name}")
        templates = snapshot / "additional_chat_templates"
        templates.mkdir()
        (blobs / "template").write_text("template")
        (templates / "rag.jinja").symlink_to("../../../blobs/template")
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "old").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_a_hub_source_takes_a_revision(cached, tmp_path):
    assert growth.plan(DEEPER, "someone/tiny").source.depth == 2
    assert growth.plan(DEEPER, f"someone/tiny@{COMMIT}").source.depth == 2
    assert growth.plan(DEEPER, "someone/tiny@old").source.depth == 1
    with pytest.raises(CheckpointError, match="someone/tiny at revision new cannot be downloaded"):
        growth.plan(DEEPER, "someone/tiny@new")


TIED = {case.family: case for case in reversed(all_cases()) if case.table.tied}


@pytest.mark.parametrize("family", ["biogpt", "electra", "git", "llama", "modernbert-decoder", "rwkv"])
def test_a_tied_model_may_hold_its_head_too(family, tmp_path):
    """As engines store it that know of no ties."""
    model = random_model(TIED[family], torch.float32)
    source, grown = save(model, tmp_path / "source"), tmp_path / "grown"
    stored = load_file(source / SINGLE)
    (head,) = [name for name in model.all_tied_weights_keys if name.endswith("weight")]
    embedding = model.get_input_embeddings().weight.detach()
    save_file(stored | {head: embedding.clone()}, source / SINGLE, {"format": "pt"})
    growth.grow(widen("ffn", factor=2), source, grown)
    assert growth.verify_weights(source, grown, widen("ffn", factor=2)).passed
    save_file(stored | {head: embedding + 1}, source / SINGLE, {"format": "pt"})
    with pytest.raises(CheckpointError, match="differ"):
        growth.grow(widen("ffn", factor=2), source, tmp_path / "other")


def test_the_config_of_a_target_is_taken_without_its_weights(cached, monkeypatch):
    from huggingface_hub import snapshot_download

    wanted = []

    def download(name, *, allow_patterns, **options):
        wanted.extend(allow_patterns)
        return snapshot_download(name, allow_patterns=allow_patterns, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert json.loads(config_file("someone/tiny@old").read_text())["num_hidden_layers"] == 1
    assert wanted == ["config.json"]


@pytest.mark.parametrize("name", ["~nosuch/x", "x" * 300, "~nosuch/x.json"])
def test_a_config_that_is_nowhere_is_one_sentence(name):
    with pytest.raises(GrowthError):
        config_file(name)


@pytest.mark.parametrize("error", [TimeoutError(), OSError("no\nroute")])
def test_any_error_of_the_hub_is_one_sentence(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(CheckpointError, match=r"from the hub: (TimeoutError|no)\. Try again, or name a folder\.$"):
        growth.plan(DEEPER, "someone/tiny")


def test_every_command_takes_a_hub_source(cached, tmp_path):
    hub, steps, out = "someone/tiny@old", deepen(to=2), tmp_path / "out"
    growth.grow(steps, hub, out)
    assert growth.verify(hub, out, steps, dtype="float32", tokens=8).passed
    assert growth.verify_weights(hub, out, steps).passed
    assert inspect_checkpoint(hub).sizes["layers"] == 1
    assert GrowReader(hub, steps).plan.target.depth == 2
    with pytest.raises(CheckpointError, match="was not trained from it"):
        growth.diagnose(out, hub)
    with pytest.raises(CheckpointError, match=r"has no optimizer\.pt"):
        growth.grow_training(steps, hub, tmp_path / "training")


def test_the_commit_of_a_hub_source_is_recorded(cached, tmp_path):
    for source, commit in (("someone/tiny", COMMIT), ("someone/tiny@old", "0" * 40)):
        out = tmp_path / commit
        growth.grow(DEEPER, source, out)
        told = json.loads((out / "growth.json").read_text())["source"]
        assert (told["name"], told["commit"]) == ("someone/tiny", commit)
        assert (out / "additional_chat_templates" / "rag.jinja").read_text() == "template"


def test_a_local_source_has_no_commit(qwen3, tmp_path):
    local = shutil.copytree(qwen3, tmp_path / "tiny@v2")  # a name with an @ that is a folder is that folder
    growth.grow(DEEPER, local, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "growth.json").read_text())["source"]
    assert told["name"] == "tiny@v2"
    assert "commit" not in told


@pytest.mark.parametrize(
    "source", ["tiny@v2", "./models/tiny@v2", "someone/tiny@", "@v2", "a/b@c d", "a@b/c", "a/b@../c"]
)
def test_a_mistyped_source_is_one_sentence(source):
    with pytest.raises(CheckpointError, match=r"No checkpoint folder at .*organisation/name@revision"):
        growth.plan(DEEPER, source)


# ------------------------------------------------- training runs


def test_a_training_run_with_a_stored_tied_head_grows(qwen3, tmp_path):
    """The optimizer has one state for head and embedding, however often the file stores them."""
    model = AutoModelForCausalLM.from_pretrained(qwen3)
    trainer = Trainer(model, TrainingArguments(str(tmp_path / "run"), report_to=[], use_cpu=True))
    optimizer = trainer.create_optimizer()
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    folders = {"plain": shutil.copytree(qwen3, tmp_path / "plain")}
    folders["stored"] = stored_so(qwen3, tmp_path / "stored", with_head())
    states = []
    for name, folder in folders.items():
        torch.save(optimizer.state_dict(), folder / "optimizer.pt")
        growth.grow_training(DEEPER, folder, tmp_path / f"{name} grown")
        states.append(torch.load(tmp_path / f"{name} grown" / "optimizer.pt"))
    assert states[0]["param_groups"] == states[1]["param_groups"]
    moments = [state["state"][0]["exp_avg"] for state in states]
    assert torch.equal(*moments)
    refused = stored_so(qwen3, tmp_path / "other", with_head(flipped))
    torch.save(optimizer.state_dict(), refused / "optimizer.pt")
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        growth.grow_training(DEEPER, refused, tmp_path / "refused")
