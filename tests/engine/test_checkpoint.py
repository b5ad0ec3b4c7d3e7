"""A model folder is described without trusting it: damage becomes a sentence, never an exception of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from awq_engine.checkpoint import read_checkpoint, read_header
from awq_engine.errors import BadInputError
from tests.engine.safetensors_files import llama_shapes, model_folder, safetensors

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    weight_map = {}
    for number, shard in enumerate(SHARDS):
        (path / shard).write_bytes(safetensors({f"t{number}": (4, 4)}))
        weight_map[f"t{number}"] = shard
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


def set_header(file: Path, header: bytes, data: bytes = b"") -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)


def test_single_file_is_described(tmp_path: Path) -> None:
    found = read_checkpoint(model_folder(tmp_path, {"a": (3, 5), "b": ()}))
    assert (found.model_type, found.parameters, found.nbytes, found.main_dtype) == ("llama", 16, 32, "F16")
    assert found.tensors["a"].shape == (3, 5)
    assert found.tensors["b"].numel == 1
    assert found.quantization is None


def test_shards_are_described_together(tmp_path: Path) -> None:
    found = read_checkpoint(sharded_folder(tmp_path / "m"))
    assert [(tensor.name, tensor.file.name) for tensor in found.tensors.values()] == [
        ("t0", SHARDS[0]),
        ("t1", SHARDS[1]),
    ]


def test_offsets_point_at_the_bytes(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"a": (2,), "b": (2,)})
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-4:] = b"abcd"
    (folder / "model.safetensors").write_bytes(data)
    tensor = read_checkpoint(folder).tensors["b"]
    assert (folder / "model.safetensors").read_bytes()[tensor.start : tensor.start + tensor.nbytes] == b"abcd"


def test_one_shard_with_an_odd_name_is_enough(tmp_path: Path) -> None:
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert read_checkpoint(folder).parameters > 0


def refused(folder: Path, part: str) -> None:
    with pytest.raises(BadInputError, match=part):
        read_checkpoint(folder)


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    refused(tmp_path, r"it has no config\.json")
    refused(tmp_path / "absent", "is not a folder")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path, r"model\.safetensors is missing")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    refused(tmp_path, r"only pickled weights \(pytorch_model\.bin\)")


@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe"])
def test_damaged_config(tmp_path: Path, content: bytes) -> None:
    folder = model_folder(tmp_path)
    (folder / "config.json").write_bytes(content)
    refused(folder, r"config\.json")


def test_missing_shard_is_named(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "m")
    (folder / SHARDS[1]).unlink()
    refused(folder, f"lacks the shard {SHARDS[1]}")


def test_index_that_names_an_absent_tensor(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "m")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["ghost"] = SHARDS[0]
    index.write_text(json.dumps(data))
    refused(folder, "names 1 tensors that no shard holds, first 'ghost'")


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_index_cannot_reach_outside_the_folder(tmp_path: Path, shard: str) -> None:
    folder = sharded_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"t0": shard}}))
    with pytest.raises(BadInputError, match=r"no file of its own folder|lacks the shard"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"weight_map": {"t": 1}}', b'{"weight_map": []}'])
def test_damaged_index(tmp_path: Path, content: bytes) -> None:
    folder = sharded_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").write_bytes(content)
    refused(folder, r"model\.safetensors\.index\.json|are empty")


def test_several_shards_without_an_index(tmp_path: Path) -> None:
    folder = sharded_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, "has 2 safetensors files but no model.safetensors.index.json")


def test_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"a": (4, 4)})
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        refused(folder, r"model\.safetensors")


def test_truncated_tensor_says_how_many_bytes_are_missing(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, {"a": (4, 4)})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    refused(folder, "tensor 'a' ends 5 bytes past its end")


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [],
        None,
        {"dtype": "F16", "shape": [2], "data_offsets": [0, 3]},
        {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2.0], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "F4", "shape": [2], "data_offsets": [4, 0]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0]},
        {"dtype": 5, "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [True], "data_offsets": [0, 2]},
    ],
)
def test_impossible_entry_is_refused_by_name(tmp_path: Path, entry: object) -> None:
    file = tmp_path / "x.safetensors"
    set_header(file, json.dumps({"bad": entry}).encode(), bytes(16))
    with pytest.raises(BadInputError, match="'bad'"):
        read_header(file)


def test_header_that_claims_to_be_huge_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    with pytest.raises(BadInputError, match="truncated or no safetensors file"):
        read_header(file)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
def test_any_bytes_are_a_header_or_bad_input(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "x.safetensors"
    set_header(file, header)
    with pytest.raises(BadInputError):
        read_header(file)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F16", "I32", "F4", ""]) | JSON,
        "shape": st.lists(st.integers(-1, 4) | JSON, max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-1, 70), min_size=2, max_size=2) | JSON,
    },
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=5), ENTRIES | JSON, max_size=3) | JSON)
def test_any_json_header_is_read_or_bad_input(tmp_path: Path, header: object) -> None:
    file = tmp_path / "x.safetensors"
    set_header(file, json.dumps(header).encode(), bytes(64))
    try:
        tensors = read_header(file)
    except BadInputError:
        return
    size = file.stat().st_size
    assert all(tensor.start >= 0 and tensor.start + tensor.nbytes <= size for tensor in tensors.values())
    assert all(tensor.nbytes >= 0 for tensor in tensors.values())


def test_llama_folder_has_every_tensor(tmp_path: Path) -> None:
    assert list(read_checkpoint(model_folder(tmp_path)).tensors) == list(llama_shapes())
