"""Conversion between formats changes no integer, step or zero point, and nothing else in the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rounded_checkpoint import edit_config, edit_tensors, write_awq_folder, write_float_folder
from safetensors.torch import load_file

from awq_engine.checkpoint import read_checkpoint
from awq_engine.cli import main
from awq_engine.convert import convert
from awq_engine.errors import BadInputError, UsageError
from awq_engine.formats.limits import Format
from awq_engine.runtime import load_dequantized

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def awq(tmp_path: Path) -> Path:
    """An asymmetric AWQ model without zero points at 0, which every format can hold."""
    folder = write_awq_folder(write_float_folder(tmp_path / "float"), tmp_path / "awq")
    (folder / "tokenizer.model").write_bytes(b"\x00bytes")
    return folder


def quietly(source: Path, output: Path, layout: Format, overwrite: bool = False) -> Path:
    convert(source, output, layout, overwrite=overwrite, progress=lambda phase, done, total: None)
    return output


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: p.data for name, p in load_dequantized(folder, device="cpu").model.named_parameters()}


def stored(folder: Path) -> dict[str, bytes]:
    """Every tensor as dtype, shape and bytes."""
    return {k: bytes(v.view(torch.uint8).numpy()) for k, v in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@pytest.mark.parametrize("layout", [Format.COMPRESSED_TENSORS, Format.GPTQ, Format.GPTQ_V2])
def test_there_and_back_is_the_same_file(tmp_path: Path, layout: Format, symmetric: bool) -> None:
    source = write_awq_folder(write_float_folder(tmp_path / "float"), tmp_path / "awq", symmetric=symmetric)
    there = quietly(source, tmp_path / "there", layout)
    assert weights(there).keys() == weights(source).keys()
    assert all(torch.equal(weight, weights(source)[name]) for name, weight in weights(there).items())
    back = quietly(there, tmp_path / "back", Format.AWQ)
    assert stored(back) == stored(source)
    assert read_checkpoint(back).quantization == read_checkpoint(source).quantization


def test_everything_else_is_copied_byte_for_byte(awq: Path, tmp_path: Path) -> None:
    output = quietly(awq, tmp_path / "out", Format.COMPRESSED_TENSORS)
    assert (output / "tokenizer.model").read_bytes() == b"\x00bytes"
    name = "model.embed_tokens.weight"
    assert stored(output)[name] == stored(awq)[name]
    config, before = (json.loads((folder / "config.json").read_text()) for folder in (output, awq))
    assert config.pop("quantization_config")["format"] == "pack-quantized"
    before.pop("quantization_config")
    assert config == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["awq", "float", "out"]


def test_symmetric_weights_lose_their_zero_points(tmp_path: Path) -> None:
    source = write_awq_folder(write_float_folder(tmp_path / "float"), tmp_path / "awq", symmetric=True)
    output = read_checkpoint(quietly(source, tmp_path / "out", Format.COMPRESSED_TENSORS))
    assert f"{Q_PROJ}.weight_zero_point" not in output.tensors
    assert output.quantization is not None
    assert output.quantization["config_groups"]["group_0"]["weights"]["symmetric"] is True


def test_steps_that_float16_cannot_hold_stay_where_they_are(awq: Path, tmp_path: Path) -> None:
    between = quietly(awq, tmp_path / "between", Format.COMPRESSED_TENSORS)
    scale = load_file(between / "model.safetensors")[f"{Q_PROJ}.weight_scale"].to(torch.bfloat16)
    edit_tensors(between, {f"{Q_PROJ}.weight_scale": torch.full_like(scale, 1e-9)})
    with pytest.raises(BadInputError, match=rf"{Q_PROJ} has \d+ of \d+ scales that float16 does not hold exactly"):
        quietly(between, tmp_path / "out", Format.AWQ)
    assert not (tmp_path / "out").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["awq", "between", "float"]


def test_inputs_in_an_order_of_their_own_are_refused(awq: Path, tmp_path: Path) -> None:
    gptq = quietly(awq, tmp_path / "gptq", Format.GPTQ_V2)
    order = torch.arange(64, dtype=torch.int32).flip(0) // 32
    edit_tensors(gptq, {f"{Q_PROJ}.g_idx": order})
    with pytest.raises(BadInputError, match=rf"{Q_PROJ} groups its inputs in an order of its own"):
        quietly(gptq, tmp_path / "out", Format.AWQ)


def test_models_in_floats_and_formats_too_narrow_are_refused(tmp_path: Path, awq: Path) -> None:
    with pytest.raises(BadInputError, match="is not quantized"):
        quietly(tmp_path / "float", tmp_path / "out", Format.AWQ)
    between = quietly(awq, tmp_path / "between", Format.COMPRESSED_TENSORS)
    stated = read_checkpoint(between).quantization
    assert stated is not None
    stated["config_groups"]["group_0"]["weights"]["num_bits"] = 3
    edit_config(between, quantization_config=stated)
    with pytest.raises(BadInputError, match="holds only a bit width of 4, not 3"):
        quietly(between, tmp_path / "out", Format.AWQ)


def test_an_output_in_the_way_is_replaced_on_request_only(awq: Path, tmp_path: Path) -> None:
    quietly(awq, tmp_path / "out", Format.GPTQ_V2)
    with pytest.raises(UsageError, match="exists already"):
        quietly(awq, tmp_path / "out", Format.COMPRESSED_TENSORS)
    quietly(awq, tmp_path / "out", Format.COMPRESSED_TENSORS, overwrite=True)
    assert f"{Q_PROJ}.weight_packed" in read_checkpoint(tmp_path / "out").tensors
    with pytest.raises(UsageError, match="would replace the model itself"):
        quietly(awq, awq, Format.GPTQ_V2, overwrite=True)


def test_the_command_prints_one_json_object(awq: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", str(awq), "-o", str(tmp_path / "out"), "--format", "gptq_v2", "--json"]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "gptq_v2"
    assert found["linears"] == 14
    assert found["bytes_after"] == read_checkpoint(tmp_path / "out").nbytes
    assert main(command) == 2
