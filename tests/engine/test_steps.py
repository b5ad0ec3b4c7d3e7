"""Our decoder with what lies between its products in few launches: the logits of transformers all the same.

On a GPU where there is one, otherwise in Triton's interpreter (`tests/kernels/test_interpreted.py` starts a process).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_model import TINY, write_tiny_model

pytest.importorskip("triton")
from awq_engine.decoding import prepare_decoding
from awq_engine.fast_model import FastDecoder
from awq_engine.graph_decoder import GraphDecoder
from awq_engine.runtime import load_model
from awq_engine.steps import TritonSteps
from awq_kernels.plane import INTERPRETED

if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a GPU or TRITON_INTERPRET=1", allow_module_level=True)
DEVICE = "cpu" if INTERPRETED else "cuda"
TEXT = [(37 * n * n + 11) % 2000 + 3 for n in range(8)]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "window": ("MistralConfig", {"sliding_window": 5, "num_key_value_heads": 1}),
    "head-norms": ("Qwen3Config", {"head_dim": 32}),
    "another-activation": ("LlamaConfig", {"hidden_act": "gelu"}),
}


@pytest.mark.parametrize(("name", "kind"), [*((name, FastDecoder) for name in MODELS), ("window", GraphDecoder)])
def test_logits_are_those_of_transformers(
    name: str, kind: type[FastDecoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, changes = MODELS[name]
    folder = write_tiny_model(tmp_path / "model", getattr(transformers, config)(**{**TINY, **changes}))
    loaded = prepare_decoding(load_model(folder, device=DEVICE))
    assert loaded.fast is not None
    if INTERPRETED:
        monkeypatch.setattr(GraphDecoder, "capture", lambda self: self.step)
    decoder = kind(replace(loaded.fast, steps=TritonSteps()))
    found = torch.cat([decoder.read(TEXT[:6], keep=6), *(decoder.read([token]) for token in TEXT[6:])])
    model: Any = loaded.model
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([TEXT], device=DEVICE)).logits[0].float().cpu()
    assert (found - expected).norm() < (1e-5 if INTERPRETED else 1e-3) * expected.norm()
