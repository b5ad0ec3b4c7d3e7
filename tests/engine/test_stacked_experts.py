"""Mixtures that multiply their experts together give what transformers' loop gives: interpreted, or on a GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from awq_engine.runtime import load_model
from awq_engine.stacked_experts import Stack
from tests.engine.rounded_checkpoint import write_awq_folder, write_float_folder

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"
MIXTURES: dict[str, dict[str, Any]] = {
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 16},
}


def write_mixture(tmp_path: Path, kind: str, **settings: Any) -> Path:
    floats = write_float_folder(tmp_path / "floats", model_type=kind, num_hidden_layers=1, **MIXTURES[kind] | settings)
    return write_awq_folder(floats, tmp_path / "awq")


def stacked(model: torch.nn.Module) -> list[torch.nn.Module]:
    return [module for module in model.modules() if "forward" in vars(module)]


@pytest.mark.parametrize(
    ("kind", "n_tokens"),
    [
        ("qwen3_moe", 12),
        pytest.param("qwen3_moe", 1, marks=pytest.mark.slow),
        pytest.param("olmoe", 1, marks=pytest.mark.slow),
        pytest.param("olmoe", 12, marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_the_loop(kind: str, n_tokens: int, tmp_path: Path) -> None:
    folder = write_mixture(tmp_path, kind)
    tokens = torch.arange(n_tokens)[None] % 90
    expected = load_model(folder, backend="reference", device=DEVICE).model(tokens.to(DEVICE)).logits
    loaded = load_model(folder, backend="triton", device=DEVICE)
    assert len(stacked(loaded.model)) == 1
    found = loaded.model(tokens.to(DEVICE)).logits
    assert float((found - expected).norm() / expected.norm()) < (1e-5 if INTERPRETED else 1e-2)


def test_experts_share_the_memory_of_their_stack(tmp_path: Path) -> None:
    (module,) = stacked(load_model(write_mixture(tmp_path, "olmoe"), backend="triton", device=DEVICE).model)
    stacks = [part for part in vars(module)["forward"].args if isinstance(part, Stack)]
    assert len(stacks) == 2
    memory = {stack.tiles.words.untyped_storage().data_ptr() for stack in stacks}
    experts = [linear.prepared.packed.words for linear in module.modules() if hasattr(linear, "prepared")]
    assert len(experts) == 12
    assert {words.untyped_storage().data_ptr() for words in experts} == memory


@pytest.mark.slow
def test_experts_that_do_not_fill_tiles_stay_with_the_loop(tmp_path: Path) -> None:
    folder = write_mixture(tmp_path, "olmoe", intermediate_size=96)
    loaded = load_model(folder, backend="triton", device=DEVICE)
    assert stacked(loaded.model) == []
    assert loaded.model(torch.zeros(1, 2, dtype=torch.long, device=DEVICE)).logits.isfinite().all()
