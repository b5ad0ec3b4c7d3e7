"""Every architecture that transformers knows as a causal language model goes through the whole pipeline."""

from pathlib import Path

import pytest
from zoo import Findings, examine

TOLERANCE = 1e-4
"""Largest difference of a logit, relative to the largest logit; float32 noise is about 1e-6."""
USUAL = (
    "llama", "qwen3", "gemma2", "phi3", "falcon", "gpt_neox", "cohere2", "olmo2", "opt", "bloom", "bamba", "stablelm",
)  # fmt: skip
"""Examined in the default run: dense, parallel, sandwich and unit-offset norms, fused projections, state space."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWQ_TUI_HOME", str(tmp_path / "home"))


def check(found: Findings) -> None:
    assert found.linears
    assert found.stream < TOLERANCE, "the captured arguments do not give the original model"
    assert found.folded < TOLERANCE, "a fold changed the function"
    assert found.reloaded < TOLERANCE, "the written checkpoint computes something else"
    assert found.reference < TOLERANCE
    assert found.quantized < 1, "4 bits destroyed the model"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", USUAL)
def test_usual_architectures(model_type: str, tmp_path: Path):
    """The families most people quantize, with the simplest preset."""
    check(examine(model_type, tmp_path))
