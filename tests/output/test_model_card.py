"""The model card of a grown folder: its metadata are those that the hub knows, inherited from the source's card."""

import shutil

import pytest
from huggingface_hub import ModelCard

import growth

COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
STATED = """---
language: en
license: other
license_name: research-license
license_link: https://example.org/LICENSE
base_model: someone/earlier
---
# A card
"""


def grown_card(source, folder):
    growth.grow("double-depth", source, folder)
    return ModelCard.load(folder / "README.md")


def test_a_hub_snapshot_is_the_base_model(phi_mini, tmp_path):
    source = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT
    shutil.copytree(phi_mini, source)
    (source / "README.md").write_text(STATED)
    found = grown_card(source, tmp_path / "grown")
    metadata = found.data.to_dict()
    assert metadata == {
        "base_model": "acme/tiny",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "license": "other",
        "license_name": "research-license",
        "license_link": "https://example.org/LICENSE",
        "pipeline_tag": "text-generation",
        "tags": ["growth", "model-growth"],
    }
    assert COMMIT in found.text
    assert growth.verify_weights(source, tmp_path / "grown", "double-depth").passed

    again = grown_card(tmp_path / "grown", tmp_path / "again").data.to_dict()
    assert again == metadata, "a folder that is no snapshot passes on what its own card states"


@pytest.mark.parametrize(
    "front",
    [
        "license: '<b>'",
        "license: mit # no\nlicense: [a, b]",
        "base_model: ../../etc",
        "license:\n  - x\n  - y: z",
        "\0",
    ],
)
def test_what_a_card_should_not_hold_is_left_out(phi_mini, tmp_path, front):
    source = shutil.copytree(phi_mini, tmp_path / "source")
    (source / "README.md").write_text(f"---\n{front}\n---\n")
    metadata = grown_card(source, tmp_path / "grown").data.to_dict()
    assert metadata.keys() <= {"license", "library_name", "pipeline_tag", "tags"}
    assert metadata.get("license") in (None, "x")


def test_a_card_that_cannot_be_read_is_none(phi_mini, tmp_path):
    source = shutil.copytree(phi_mini, tmp_path / "source")
    (source / "README.md").write_bytes(b"---\nlicense: mit\n\xff---\n")
    assert grown_card(source, tmp_path / "grown").data.license is None
