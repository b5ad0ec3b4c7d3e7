"""Every architecture that transformers knows as a causal language model goes through the whole pipeline."""

from pathlib import Path

import pytest
from zoo import Findings, examine
from zoo_configs import UNHANDLED, VISION_LANGUAGE, causal_types

from awq_engine.config import Preset

UNRELATED = 2**0.5
"""Root mean square difference of logits that have nothing to do with each other, relative to their size."""
USUAL = (
    "llama", "qwen3", "gemma2", "phi3", "falcon", "gpt_neox", "cohere2", "olmo2", "opt", "bloom", "bamba", "stablelm",
)  # fmt: skip
"""Examined in the default run: dense, parallel, sandwich and unit-offset norms, fused projections, state space."""

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
@pytest.mark.parametrize(
    "model_type", [*(t for t in causal_types() if t not in (*UNHANDLED, *USUAL)), *VISION_LANGUAGE]
)
def test_all_other_architectures(model_type: str, tmp_path: Path):
    """All that transformers knows, but for those that are said not to work."""
    check(examine(model_type, tmp_path))


def test_few_architectures_are_not_handled():
    assert set(UNHANDLED) <= {*causal_types(), *VISION_LANGUAGE}
    assert len(set(causal_types()) - set(UNHANDLED)) >= 140
