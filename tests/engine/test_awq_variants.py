"""AutoAWQ's GEMV, GEMV-fast and Marlin layouts, read from tensors that AutoAWQ itself packed.

`files/autoawq-0.2.9.safetensors` holds what the `from_linear` of its three classes made of the same integers `q`
[64, 128] in groups of 64 (`marlin_row`: one group), and the steps and zero points they were given.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rounded_checkpoint import edit_config, write_awq_folder, write_float_folder
from safetensors.torch import load_file, save_file

from awq_engine.errors import BadInputError
from awq_engine.formats.awq_variants import unpack_gemv, unpack_gemv_fast, unpack_marlin
from awq_engine.runtime import load_dequantized
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

PACKED = load_file(Path(__file__).parent / "files/autoawq-0.2.9.safetensors")
CASES = {
    "gemv": (unpack_gemv, 64),
    "gemv_fast": (unpack_gemv_fast, 64),
    "marlin": (unpack_marlin, 64),
    "marlin_row": (unpack_marlin, -1),
}


def parts_of(case: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{case}."): tensor for key, tensor in PACKED.items() if key.startswith(f"{case}.")}


@pytest.mark.parametrize("case", CASES)
def test_what_autoawq_packed_is_read_exactly(case: str) -> None:
    unpack, group_size = CASES[case]
    weight = unpack(parts_of(case), QuantSpec(4, group_size, symmetric=False), "linear")
    assert torch.equal(weight.q, PACKED["q"])
    assert torch.equal(weight.zero_point, PACKED[f"{case}.expected.zero_point"])
    assert torch.equal(weight.scale, PACKED[f"{case}.expected.scale"])


@pytest.mark.parametrize(
    ("unpack", "case", "change", "message"),
    [
        (unpack_gemv, "gemv", {"qzeros": None}, "linear.qzeros is missing"),
        (unpack_gemv, "gemv", {"scales": torch.ones(64, 1)}, "linear.scales has room for 1 groups.*describes 2"),
        (unpack_gemv_fast, "gemv_fast", {"qweight": torch.ones(16, 64)}, "linear.qweight is torch.float32"),
        (unpack_gemv_fast, "gemv_fast", {"scales": torch.ones(1, 64)}, "linear.scales has room for 1 groups"),
        (unpack_marlin, "marlin", {"scales": torch.ones(1, 64)}, r"linear.scales has shape \[1, 64\], expected \[2"),
    ],
)
def test_broken_tensors_are_named(
    unpack: Callable[..., IntWeight], case: str, change: dict[str, torch.Tensor | None], message: str
) -> None:
    parts = {part: tensor for part, tensor in (parts_of(case) | change).items() if tensor is not None}
    with pytest.raises(BadInputError, match=message):
        unpack(parts, QuantSpec(4, 64, symmetric=False), "linear")


def test_a_whole_gemv_model_is_run(tmp_path: Path) -> None:
    """One projection replaced by AutoAWQ's tensors; `version` in config.json picks the reader."""
    shape = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 1}
    folder = write_awq_folder(write_float_folder(tmp_path / "float", **shape), tmp_path / "awq", 64)
    tensors = load_file(folder / "model.safetensors")
    projections = {key.rpartition(".")[0] for key in tensors if key.endswith(".qweight")}
    kept = {key: tensor for key, tensor in tensors.items() if key.rpartition(".")[0] not in projections}
    floats = load_file(tmp_path / "float/model.safetensors")
    key_proj = "model.layers.0.self_attn.k_proj"
    kept |= {f"{name}.weight": floats[f"{name}.weight"] for name in projections if name != key_proj}
    kept |= {f"{key_proj}.{part}": parts_of("gemv")[part] for part in ("qweight", "qzeros", "scales")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"})

    found = load_dequantized(folder, device="cpu").model.get_parameter(f"{key_proj}.weight")
    zeros, scale = (
        PACKED[f"gemv.expected.{part}"].float().repeat_interleave(64, 1) for part in ("zero_point", "scale")
    )
    assert torch.equal(found, (PACKED["q"].float() - zeros) * scale)
