"""Which model types have a family: ours, those of installed packages, and for all others the reason why not."""

import subprocess
import sys

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from growth import ConfigError
from growth.architectures import FAMILIES, architecture, find_family
from growth.architectures.unsupported import REASONS, why_not

UNSUPPORTED = " ".join(REASONS.values()).split()
LLAMA = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TABLE = """
from growth.architectures.base import family
from growth.architectures.decoder import decoder

@family
def {name}(config):
    return decoder(config)
"""


def test_every_causal_model_type_is_a_family_or_says_why_not():
    assert len(UNSUPPORTED) == len(set(UNSUPPORTED))
    assert not FAMILIES.keys() & set(UNSUPPORTED), "a family was added: take it out of unsupported.py"
    assert set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) <= FAMILIES.keys() | set(UNSUPPORTED)
    assert set(UNSUPPORTED) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("model_type", UNSUPPORTED)
def test_the_error_says_why_not(model_type):
    assert find_family(model_type) is None
    with pytest.raises(ConfigError) as refused:
        architecture({"model_type": model_type})
    assert f"model_type {model_type!r}. {why_not(model_type)} " in str(refused.value)


# ------------------------------------------------- families of other packages


def installed(folder, package, source, *model_types, module="families", function=None):
    """A package that is installed in a folder, as pip leaves it there."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    named = (f"{name} = {package}.{module}:{function or name}" for name in model_types)
    (info / "entry_points.txt").write_text("[growth.families]\n" + "\n".join(named) + "\n")
    (folder / package).mkdir()
    (folder / package / "__init__.py").write_text("")
    (folder / package / "families.py").write_text(source)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A folder on the path; the families that it registers are forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    ours = dict(FAMILIES)
    yield tmp_path
    FAMILIES.clear()
    FAMILIES.update(ours)


def built(model_type):
    return architecture({"model_type": model_type, **LLAMA})


def test_a_package_brings_a_family(outside):
    installed(outside, "one_family", TABLE.format(name="private"), "private")
    assert built("private").shapes() == built("llama").shapes()
    assert built("private").with_depth(3).depth == 3
    assert "private" in FAMILIES


def test_the_command_finds_it_without_an_import(outside, tmp_path):
    installed(outside, "another_family", TABLE.format(name="secret"), "secret")
    code = f"from growth.architectures import architecture; print(architecture({ {'model_type': 'secret', **LLAMA}!r}).depth)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(outside)}
    )
    assert found.stdout == "2\n", found.stderr


def test_nothing_is_loaded_for_a_family_of_ours(outside):
    installed(outside, "loud", "raise SystemExit('imported')", "llama", "other")
    assert built("llama").depth == 2
    with pytest.raises(ConfigError, match="'nobody'"):
        built("nobody")
    assert "loud.families" not in sys.modules


def test_a_broken_package_is_named_and_breaks_no_other(outside):
    installed(outside, "fine", TABLE.format(name="fine"), "fine")
    installed(outside, "broken", TABLE.format(name="other") + "1 / 0\n", "other", "broken")
    installed(outside, "missing", "", "gone", module="elsewhere")
    for model_type in ("broken", "other"):
        with pytest.raises(ConfigError, match=r"package broken \(broken\.families:.*ZeroDivisionError.*Correct"):
            built(model_type)
    with pytest.raises(ConfigError, match=r"package missing \(missing\.elsewhere:gone\).*No module named"):
        built("gone")
    assert built("fine").depth == 2


def test_a_family_that_fails_later_is_named_too(outside):
    installed(
        outside, "late", TABLE.format(name="late").replace("decoder(config)", "decoder(config['nothing'])"), "late"
    )
    with pytest.raises(ConfigError, match=r"package late \(late\.families:late\) fails with KeyError: 'nothing'"):
        built("late")


def test_a_package_cannot_replace_a_family_of_ours(outside):
    before = FAMILIES["llama"]
    installed(outside, "thief", TABLE.format(name="llama") + TABLE.format(name="thief"), "thief", "llama")
    with pytest.raises(ConfigError, match=r"package thief.*model_type 'llama' has a family already"):
        built("thief")
    assert FAMILIES["llama"] is before
    with pytest.raises(ConfigError, match="'llama' has a family already"):
        exec(TABLE.format(name="llama"))


def test_an_entry_point_needs_a_family_of_its_name(outside):
    installed(outside, "plain", "def plain(config): ...", "plain")
    with pytest.raises(ConfigError, match=r"package plain \(plain\.families:plain\).*Decorate"):
        built("plain")


def test_two_packages_with_one_family_are_both_named(outside):
    for package in ("first", "second"):
        installed(outside, package, TABLE.format(name="shared"), "shared")
    with pytest.raises(ConfigError, match=r"'shared': first \(.*, second \(.*Uninstall all but one"):
        built("shared")
