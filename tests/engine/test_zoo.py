"""Every architecture that transformers knows as a causal language model goes through the whole pipeline."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig
from zoo import TOLERANCE, Findings, calibration_ids, difference, examine
from zoo_configs import UNHANDLED, VISION_LANGUAGE, causal_types

from awq_engine.config import Format, Preset
from awq_engine.runtime import load_dequantized

UNRELATED = 2**0.5
"""Root mean square difference of logits that have nothing to do with each other, relative to their size."""
USUAL = (
    "llama", "qwen3", "gemma2", "phi3", "falcon", "gpt_neox", "cohere2", "olmo2", "opt", "bloom", "bamba", "stablelm",
)  # fmt: skip
"""Examined in the default run: dense, parallel, sandwich and unit-offset norms, fused projections, state space."""

REAL = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "mixtral", "qwen3_moe", "deepseek_v3", "phi3", "falcon_h1",
    "jamba", "gpt2", "opt", "gpt_neox", "bloom", "gpt_oss", "zamba2",
)  # fmt: skip
"""Examined as real checkpoints are stored, in bfloat16: folded norms are rounded, and their biases."""
FUSED_ONLY = ("gpt2", "gpt_oss")
"""transformers' own reader wants Conv1D, and experts in one tensor; it takes no linears in their place."""

OTHERS = [name for name in (*causal_types(), *VISION_LANGUAGE) if name not in (*UNHANDLED, *USUAL)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))


def check(found: Findings) -> None:
    assert found.linears
    assert found.unlike is None, found
    assert found.quantized < UNRELATED, "4 bits destroyed the model"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", USUAL)
def test_usual_architectures(model_type: str, tmp_path: Path):
    """The families most people quantize, with the simplest preset."""
    check(examine(model_type, tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", USUAL)
def test_usual_architectures_at_their_best(model_type: str, tmp_path: Path):
    """The same with the preset that moves weights most."""
    check(examine(model_type, tmp_path, Preset.BEST))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", OTHERS)
def test_all_other_architectures(model_type: str, tmp_path: Path):
    """All that transformers knows, but for those that are said not to work."""
    check(examine(model_type, tmp_path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [Format.AWQ, Format.COMPRESSED_TENSORS])
@pytest.mark.parametrize("model_type", REAL)
def test_bfloat16_checkpoints(model_type: str, layout: Format, tmp_path: Path):
    """Nothing is lost to bfloat16 that was not lost before, and transformers itself reads compressed-tensors so."""
    symmetric = layout is Format.COMPRESSED_TENSORS  # transformers' own reader loses the zero points of experts
    check(examine(model_type, tmp_path, Preset.BALANCED, torch.bfloat16, format=layout, symmetric=symmetric))
    if layout is Format.COMPRESSED_TENSORS and model_type not in FUSED_ONLY:
        assert difference(*_logits_in_bfloat16(tmp_path / "output")) < TOLERANCE


@torch.no_grad()
def _logits_in_bfloat16(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits by transformers' reader, and by ours with its weights rounded to the dtype that transformers has."""
    dequantized = CompressedTensorsConfig(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=dequantized)
    ours = load_dequantized(folder).model
    for parameter in ours.parameters():
        parameter.copy_(parameter.bfloat16())
    ids = calibration_ids()[:1]
    theirs(input_ids=ids, use_cache=False)  # decompresses
    torch.nn.Module.float(theirs)
    return theirs(input_ids=ids, use_cache=False).logits, ours(input_ids=ids, use_cache=False).logits


def test_bfloat16_norms_with_biases(tmp_path: Path):
    """Every fold is kept."""
    found = examine("gpt2", tmp_path, dtype=torch.bfloat16)

    check(found)
    assert {name: count for name, count in found.folds.items() if "ln_" in name} == {
        "ln_1 -> attn.c_attn": found.blocks, "ln_2 -> mlp.c_fc": found.blocks
    }  # fmt: skip


def test_few_architectures_are_not_handled():
    assert set(UNHANDLED) <= {*causal_types(), *VISION_LANGUAGE}
    assert len(set(causal_types()) - set(UNHANDLED)) >= 140
