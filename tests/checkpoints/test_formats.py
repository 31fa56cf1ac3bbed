"""A format of checkpoint folders is one class: every command reads a folder of a format that is added here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import growth
from growth.arrays.casting import NUMPY_DTYPES
from growth.arrays.tensor_info import TensorInfo
from growth.checkpoints.checkpoint import SourceFormat
from growth.checkpoints.open import format_of, open_checkpoint
from growth.verification.inspect import inspect_checkpoint

SOURCE = Path(__file__).parents[2] / "examples" / "phi-mini"
SUFFIX = ".toy.npy"


class Toy(SourceFormat):
    """One .npy file for each tensor; bfloat16 is not among them."""

    title = "toy .npy files"

    def recognises(self, folder):
        return any(folder.glob(f"*{SUFFIX}"))

    def headers(self, folder):
        return dict(map(self._info, folder.glob(f"*{SUFFIX}"))), ()

    @staticmethod
    def _info(path):
        name, (dtype,) = path.name.removesuffix(SUFFIX), {"F32"}
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, kind = np.lib.format.read_array_header_1_0(file)
            assert kind == NUMPY_DTYPES[dtype]
            return name, TensorInfo(name, dtype, shape, path, file.tell())


@pytest.fixture
def toy(tmp_path):
    folder = tmp_path / "toy"
    folder.mkdir()
    config = json.loads((SOURCE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32", "dtype": "float32"}))
    for name, tensor in load_file(SOURCE / "model.safetensors").items():
        np.save(folder / f"{name}{SUFFIX}", tensor.float().numpy())
    return folder


def test_every_command_reads_it(toy, tmp_path):
    assert isinstance(format_of(toy), Toy)
    assert growth.plan("phi-mini", toy).preserving
    growth.grow("phi-mini", toy, tmp_path / "grown")
    growth.grow("phi-mini", SOURCE, tmp_path / "same", dtype="float32")
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("grown", "same"))
    assert {name: value.tolist() for name, value in ours.items()} == {n: value.tolist() for n, value in theirs.items()}
    found = inspect_checkpoint(toy)
    assert (found.problem, found.dtypes.keys()) == (None, {"F32"})
    assert growth.verify(toy, tmp_path / "grown", tokens=8).passed
    assert growth.verify_weights(toy, tmp_path / "grown").passed


def test_safetensors_files_come_first(toy):
    shutil.copy(SOURCE / "model.safetensors", toy)
    found = open_checkpoint(toy)
    assert found.notes == ("Read the safetensors files, as transformers does, and not the toy .npy files.",)
