"""Small random models with the shapes of real ones, written as real checkpoints."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig

TINY: dict[str, Any] = {
    "vocab_size": 2048, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "tie_word_embeddings": True,
}  # fmt: skip


def write_tiny_model(
    folder: Path,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **shape: Any,
) -> Path:
    """A random causal LM with loud channels, tokenizer and safetensors weights; a Llama unless `config` is given."""
    torch.manual_seed(seed)
    config = config or LlamaConfig(**{**TINY, **shape})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
                parameter[:2] *= 8
            elif parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * 0.15)
    model.to(dtype).save_pretrained(folder)
    demo = files("awq_engine") / "data" / "demo-model"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(str(demo / name), folder / name)
    return folder
