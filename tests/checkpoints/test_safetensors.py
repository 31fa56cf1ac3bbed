"""The file format, against the reference implementation, and against hostile files."""

import contextlib
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from growth import CheckpointError
from growth.checkpoints.formats.safetensors import layout, read_header
from growth.checkpoints.open import open_stored
from growth.output.mark import Mark
from growth.output.preallocate import refuse_output
from growth.output.shards import group_by_size
from growth.output.staging import Staging
from growth.output.writer_rank import WriterRank
from tests.support.hostile import bounded
from tests.support.safetensors_files import file_of, tensor

TYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
entries = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda n: n != "__metadata__"),
    st.tuples(st.sampled_from(list(TYPES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    min_size=1,
    max_size=6,
)


@given(entries)
def test_layout_is_byte_for_byte_that_of_the_reference(tmp_path_factory, entries):
    folder = tmp_path_factory.mktemp("layout")
    tensors = {name: torch.ones(shape, dtype=TYPES[dtype]) for name, (dtype, shape) in entries.items()}
    save_file(tensors, folder / "theirs", metadata={"format": "pt"})
    header, places = layout(folder / "ours", [(name, *entry) for name, entry in entries.items()])
    ours = bytearray(header)
    for place in places:
        assert len(ours) == place.begin
        ours += tensors[place.name].reshape(-1).view(torch.uint8).numpy().tobytes()
    assert bytes(ours) == (folder / "theirs").read_bytes()


@given(entries)
def test_headers_are_read_as_the_reference_reads_them(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("read") / "file.safetensors"
    save_file({n: torch.zeros(shape, dtype=TYPES[dtype]) for n, (dtype, shape) in entries.items()}, path)
    ours = {info.name: (info.dtype, info.shape) for info in read_header(path)}
    with safe_open(path, "np") as file:
        theirs = {n: (file.get_slice(n).get_dtype(), tuple(file.get_slice(n).get_shape())) for n in file.keys()}  # noqa: SIM118
    assert ours == theirs


HOSTILE = {
    "empty": (b"", b"", 0),
    "huge header": (b"{}", b"", 2**62),
    "header past the end": (b"{}", b"", 100),
    "no JSON": (b"hello", b"", None),
    "no object": (b"[1]", b"", None),
    "not UTF-8": (b'{"\xff": 1}', b"", None),
    "deep nesting": (b"[" * 100_000, b"", None),
    "duplicate keys": (
        b'{"a":' + json.dumps(tensor(0, 8)).encode() + b',"a":' + json.dumps(tensor(0, 8)).encode() + b"}",
        bytes(8),
        None,
    ),
    "overlap": ({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12), None),
    "gap": ({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20), None),
    "past the end": ({"a": tensor(0, 8, (2,))}, bytes(4), None),
    "foreign bytes": ({"a": tensor(0, 8)}, bytes(16), None),
    "wrong size": ({"a": tensor(0, 8, (3,))}, bytes(8), None),
    "overflowing shape": ({"a": tensor(0, 8, (2**40, 2**40))}, bytes(8), None),
    "negative shape": ({"a": tensor(0, 8, (-2,))}, bytes(8), None),
    "negative offset": ({"a": tensor(-8, 0)}, bytes(8), None),
    "float offset": ({"a": tensor(0.0, 8)}, bytes(8), None),
    "bool shape": ({"a": tensor(0, 4, (True,))}, bytes(4), None),
    "three offsets": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4, 8]}}, bytes(8), None),
    "unknown dtype": ({"a": tensor(0, 8, dtype="F31")}, bytes(8), None),
    "unknown field": ({"a": tensor(0, 8, code="x")}, bytes(8), None),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), None),
    "no fields": ({"a": 3}, bytes(8), None),
}


@pytest.mark.parametrize("case", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_headers_are_refused(case, tmp_path):
    header, data, length = case
    path = file_of(tmp_path / "model.safetensors", header, data, length)
    with bounded(), pytest.raises(CheckpointError, match=r"model\.safetensors"):
        read_header(path)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_file_or_an_error_of_ours(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(content)
    with bounded(), contextlib.suppress(CheckpointError):
        read_header(path)


def folder_with(tmp_path, index=None, **files):
    (tmp_path / "config.json").write_text('{"model_type": "phi"}')
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    if index is not None:
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


ONE = {"a": torch.zeros(2)}
INDEXES = {
    "traversal": ({"weight_map": {"a": "../secret.safetensors"}}, "only a .safetensors file of the same folder"),
    "absolute": ({"weight_map": {"a": "/etc/passwd"}}, "only a .safetensors file of the same folder"),
    "no text": ({"weight_map": {"a": 3}}, "only a .safetensors file of the same folder"),
    "no map": ({"metadata": {}}, "has no 'weight_map'"),
    "a list": ([], "has no 'weight_map'"),
    "missing shard": ({"weight_map": {"a": "shard-2.safetensors"}}, "holds no shard-2.safetensors"),
    "missing tensor": ({"weight_map": {"a": "shard.safetensors", "b": "shard.safetensors"}}, "disagree on tensor 'b'"),
    "extra tensor": ({"weight_map": {"b": "shard.safetensors"}}, "disagree on tensor 'a'"),
}


@pytest.mark.parametrize(("index", "message"), INDEXES.values(), ids=INDEXES.keys())
def test_indexes_are_held_to_their_folder(index, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        open_stored(folder_with(tmp_path, index, shard=ONE))


def test_shards_are_read_as_one(tmp_path):
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    found = open_stored(folder_with(tmp_path, index, one=ONE, two={"b": torch.zeros(3)}))
    assert {name: info.shape for name, info in found.tensors.items()} == {"a": (2,), "b": (3,)}


def test_pickles_are_named_and_not_opened(tmp_path):
    folder_with(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin .*can run code.*save_pretrained"):
        open_stored(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "does not contain a JSON object"),
        ('{"a": 1, "a": 2}', "duplicate keys"),
    ],
)
def test_broken_configs_are_refused(content, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        open_stored(tmp_path)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="No checkpoint folder"):
        open_stored(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"config.json is missing"):
        open_stored(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds no model.safetensors"):
        open_stored(folder_with(tmp_path))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(1, 120))
def test_shards_hold_every_tensor_once_and_keep_the_limit(sizes, limit):
    files = group_by_size(sizes, limit)
    assert sorted(position for group in files.values() for position in group) == list(range(len(sizes)))
    for group in files.values():
        assert sum(sizes[position] for position in group) <= limit or len(group) == 1


# ------------------------------------------------- whole or not at all


@contextlib.contextmanager
def published(output, needed):
    refuse_output(output, needed)
    with Staging(output, Mark("plan", 1, ("file",)), WriterRank()).opened() as work:
        work.journal.begin({})
        yield work.checkpoint
        work.journal.finish({})
        work.publish(lambda read, written: None)


def test_output_appears_whole(tmp_path):
    output = tmp_path / "made" / "here"
    with published(output, 10) as work:
        work.write("file", b"content")
        assert not output.exists()
    assert [path.name for path in output.parent.iterdir()] == ["here"]
    assert (output / "file").read_text() == "content"


def test_a_failure_leaves_nothing(tmp_path):
    def interrupted():
        with published(tmp_path / "out", 10) as work:
            work.write("file", b"content")
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match="cannot be written: No space left on device"):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="exists already"), published(tmp_path / "out", 10):
        pytest.fail("the block must not run")


def test_an_output_that_appears_underway_is_kept(tmp_path):
    output = tmp_path / "out"
    with pytest.raises(CheckpointError, match="appeared while"), published(output, 10):
        output.mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_too_little_disk_is_found_before_anything_is_written(tmp_path):
    with (
        pytest.raises(CheckpointError, match=r"needs 1000000000.00 GB and .* GB free"),
        published(tmp_path / "o", 10**18),
    ):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_the_reference_reads_what_is_laid_out(tmp_path):
    path = tmp_path / "x.safetensors"
    header, places = layout(path, [("b", "F32", (2, 3)), ("a", "F64", (2,))])
    values = {"b": np.arange(6, dtype=np.float32), "a": np.arange(2, dtype=np.float64)}
    path.write_bytes(header + b"".join(values[place.name].tobytes() for place in places))
    assert load_file(path)["b"].tolist() == [[0, 1, 2], [3, 4, 5]]
