"""AutoAWQ and GPTQModel, each in an environment of its own, read what we write, and we read what they write.

Weights are compared as the other program computes with them, in float16: equal to ours rounded once. Logits differ
from ours by no more than twice what computing in float16 (in bfloat16, where torch's int4 kernel does) changes in ours.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_environment import run_in
from safetensors.torch import load_file
from test_other_loaders import assert_chats, quantize
from tiny_model import write_tiny_model

from awq_engine.config import Format
from awq_engine.runtime import load_dequantized

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
IDS = torch.arange(3, 35).view(1, -1)
ROUNDING = {"exact": 0.0, "int4 kernel": 2.0**-10}
"""Of a weight relative to the largest: torch's int4 kernel takes a step and a minimum instead of a zero point."""


def check_agreement(
    folder: Path, environment: str, loader: str, tmp_path: Path, kernel: str, linears: int = 14
) -> None:
    """The loader's weights and logits are those of our own reader."""
    run_in(environment, "read_model.py", loader, folder, tmp_path / "theirs.safetensors")
    theirs = load_file(tmp_path / "theirs.safetensors")
    ours, found = load_dequantized(folder, device="cpu").model, theirs.pop("logits")
    assert len(theirs) == linears
    for name, weight in theirs.items():
        own = ours.get_parameter(name).half().float()
        assert float((weight - own).abs().max()) <= ROUNDING[kernel] * float(own.abs().max()), name
    computed_in = torch.float16 if kernel == "exact" else torch.bfloat16
    expected, rounded = logits(ours, torch.float32), logits(ours, computed_in)
    assert float((found - expected).abs().max()) <= 2 * float((rounded - expected).abs().max())


def logits(model: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
    """As float32, of the model computing in `dtype`."""
    with torch.no_grad():
        return torch.nn.Module.to(model, dtype)(IDS).logits.float()


@pytest.mark.parametrize(
    ("environment", "loader", "kernel"),
    [
        ("autoawq", "autoawq", "exact"),
        ("gptqmodel", "gptqmodel", "exact"),
        ("gptqmodel", "transformers", "int4 kernel"),
    ],
)
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
def test_they_read_our_awq(environment: str, loader: str, kernel: str, symmetric: bool, tmp_path: Path):
    check_agreement(quantize(tmp_path, torch.float16, symmetric=symmetric), environment, loader, tmp_path, kernel)


@pytest.mark.parametrize("loader", ["gptqmodel", "transformers"])
@pytest.mark.parametrize(
    "options",
    [
        {"format": Format.GPTQ, "symmetric": True},
        {"format": Format.GPTQ_V2},
        {"format": Format.GPTQ_V2, "bits": 3},
        {"format": Format.GPTQ_V2, "bits": 8, "group_size": -1, "symmetric": True},
    ],
    ids=str,
)
def test_they_read_our_gptq(loader: str, options: dict[str, Any], tmp_path: Path):
    kernel = "exact" if loader == "gptqmodel" or options.get("bits", 4) != 4 else "int4 kernel"
    check_agreement(quantize(tmp_path, torch.float16, **options), "gptqmodel", loader, tmp_path, kernel)


def test_transformers_reads_asymmetric_gptq(tmp_path: Path):
    """The first version; GPTQModel's own loader takes asymmetric weights in it only from itself."""
    folder = quantize(tmp_path, torch.float16, format=Format.GPTQ)
    check_agreement(folder, "gptqmodel", "transformers", tmp_path, "int4 kernel")


@pytest.mark.parametrize("options", [{}, {"format": Format.GPTQ_V2}], ids=str)
def test_gptqmodel_reads_a_quantized_head(options: dict[str, Any], tmp_path: Path):
    folder = quantize(tmp_path, torch.float16, lm_head=True, **options)
    check_agreement(folder, "gptqmodel", "gptqmodel", tmp_path, "exact", linears=15)


def test_gptqmodel_reads_linears_that_differ(tmp_path: Path):
    """By its `dynamic` rules; transformers' loader for GPTQ does not look at them."""
    overrides = ("*.layers.1.self_attn.*=bits:8", "*.layers.0.mlp.*=skip")
    folder = quantize(tmp_path, torch.float16, format=Format.GPTQ_V2, overrides=overrides)
    check_agreement(folder, "gptqmodel", "gptqmodel", tmp_path, "exact", linears=11)


@pytest.mark.parametrize(
    ("environment", "kind", "loader"),
    [
        ("autoawq", "autoawq", "autoawq"),
        ("gptqmodel", "awq", "gptqmodel"),
        ("gptqmodel", "gptq", "gptqmodel"),
        ("gptqmodel", "gptq_act_order", "gptqmodel"),
    ],
)
def test_we_read_theirs(environment: str, kind: str, loader: str, tmp_path: Path):
    source = write_tiny_model(tmp_path / "source", dtype=torch.float16, num_key_value_heads=4)
    run_in(environment, "write_model.py", kind, source, tmp_path / "theirs")
    check_agreement(tmp_path / "theirs", environment, loader, tmp_path, "exact")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(source / file, tmp_path / "theirs" / file)
    assert_chats(tmp_path / "theirs")
