"""growth.json states a format: this version reads it and all earlier ones, and says what to do about a newer one."""

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import growth
from growth import CheckpointError
from growth.cli.app import app
from growth.planning.manifest import FORMAT, MANIFEST, expansion_from, is_sealed, read_manifest
from growth.planning.recipe import recipe_of
from growth.training.value_kinds import tensor_kinds
from tests.support.paths import ROOT

GOLDEN = sorted((Path(__file__).parent / "golden").glob("growth-*.json"))
RECIPE = Path(__file__).parent / "golden" / "recipe.yaml"


@pytest.fixture(scope="module")
def grown(phi_mini, tmp_path_factory):
    folder = tmp_path_factory.mktemp("versions") / "grown"
    growth.grow(RECIPE, phi_mini, folder, seed=3)
    return folder


@pytest.fixture
def told(grown, tmp_path):
    """A copy of a grown folder, and what gives it another growth.json."""
    folder = shutil.copytree(grown, tmp_path / "grown")

    def tell(text):
        (folder / MANIFEST).write_text(text)
        return folder

    return tell


def test_there_is_a_golden_file_of_every_format():
    assert [path.name for path in GOLDEN] == [f"growth-{number}.json" for number in range(1, FORMAT + 1)]


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda path: path.stem)
def test_every_format_so_far_is_read_by_all_that_read_one(golden, told):
    text = golden.read_text()
    folder = told(text)
    found = read_manifest(folder)
    assert is_sealed(text)
    for name, axis in found["axes"].items():
        expansion = expansion_from(axis)
        assert (expansion.size, len(expansion)) == (found["sizes"]["before"][name], found["sizes"]["after"][name])
    assert len(recipe_of(found["recipe"], MANIFEST).steps) == len(found["steps"])
    assert tensor_kinds(found).keys() == found["tensors"].keys()
    assert growth.diagnose(folder, folder).to_dict()


def test_what_is_written_has_the_keys_that_the_page_explains(grown):
    page = (ROOT / "docs" / "growth-json.md").read_text()
    explained = set(re.findall(r"`(\w+)`", page))
    content = json.loads((grown / MANIFEST).read_text())
    assert explained >= {*content, *content["source"], *(key for entry in content["tensors"].values() for key in entry)}
    assert f"an integer: {FORMAT}" in page


@pytest.mark.parametrize("written_by", ["9.1.0", None])
def test_a_newer_format_is_an_error_with_both_numbers_and_the_remedy(written_by, told, grown):
    content = json.loads((grown / MANIFEST).read_text()) | {"format": 99, "axes": "told otherwise"}
    content["versions"] = {"growth": written_by} if written_by else {}
    with pytest.raises(CheckpointError) as error:
        read_manifest(told(json.dumps(content)))
    said = str(error.value)
    assert f"format 99, and growth {growth.__version__} reads formats up to {FORMAT}" in said
    assert (f"growth {written_by}" if written_by else "A later version of growth") in said
    assert "install that version" in said


@pytest.mark.parametrize(
    "command", [["verify", "{source}", "{grown}", "--weights"], ["diagnose", "{grown}", "{grown}"]]
)
def test_commands_pass_the_error_on(command, told, grown, phi_mini):
    folder = told(json.dumps(json.loads((grown / MANIFEST).read_text()) | {"format": 99}))
    found = CliRunner().invoke(app, [text.format(source=phi_mini, grown=folder) for text in command])
    assert (found.exit_code, "format 99" in found.output) == (2, True)


@pytest.mark.parametrize("stated", ["1", 0, -1, 1.0, True, None, [1]], ids=repr)
def test_a_file_without_a_format_is_malformed_and_not_absent(stated, told, grown):
    content = json.loads((grown / MANIFEST).read_text())
    with pytest.raises(CheckpointError, match=r"its format is .*, and must be a whole number"):
        read_manifest(told(json.dumps(content | {"format": stated})))
    del content["format"]
    with pytest.raises(CheckpointError, match="its format is missing, and must be"):
        read_manifest(told(json.dumps(content)))


def test_keys_that_a_later_version_adds_are_ignored(told, grown):
    content = json.loads((grown / MANIFEST).read_text()) | {"later": {"a": 1}}
    assert read_manifest(told(json.dumps(content))) == content


def test_a_folder_without_the_file_has_none(phi_mini):
    assert read_manifest(phi_mini) is None


@pytest.mark.parametrize(
    "text", ['{"format": 99, "versions": {"growth": "9.1.0"}}', '{"format": true}', '{"unlike": 1}', "{", "[]"]
)
def test_a_source_is_grown_beside_a_file_of_that_name_unless_its_history_would_be_lost(text, phi_mini, tmp_path):
    source = shutil.copytree(phi_mini, tmp_path / "source")
    (source / MANIFEST).write_text(text)
    if "99" in text:
        with pytest.raises(CheckpointError, match=r"growth 9\.1\.0 wrote it"):
            growth.grow(RECIPE, source, tmp_path / "grown", seed=3)
        assert not (tmp_path / "grown").exists()
        return
    growth.grow(RECIPE, source, tmp_path / "grown", seed=3)
    assert json.loads((tmp_path / "grown" / MANIFEST).read_text())["history"] == []
    assert growth.verify(source, tmp_path / "grown", tokens=8, dtype="float32").status == "PASSED"
