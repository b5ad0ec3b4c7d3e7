"""What llama.cpp must know about a model beside its tensors, from config.json.

Each family is one line: llama.cpp's own name of the architecture, and how it pairs the inputs of the rotary embedding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from awq_engine.errors import BadInputError
from awq_engine.shapes import check_of

Json = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """One of llama.cpp's architectures."""

    arch: gguf.MODEL_ARCH
    side_by_side: bool
    """Rotary embedding turns neighbouring inputs (not those half a head apart): rows of q and k are reordered."""

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.arch]


FAMILIES = {
    "llama": Family(gguf.MODEL_ARCH.LLAMA, True),
    "mistral": Family(gguf.MODEL_ARCH.LLAMA, True),
    "qwen2": Family(gguf.MODEL_ARCH.QWEN2, False),
    "qwen3": Family(gguf.MODEL_ARCH.QWEN3, False),
}
"""By `model_type` of config.json."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, as config.json states them."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    eps: float


def family_of(config: Json, folder: Path) -> Family:
    """`BadInputError` for an architecture that cannot be written."""
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise BadInputError(f"{folder} is of type {model_type}; a GGUF file can be written for {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def read_shape(config: Json, folder: Path) -> Shape:
    """`BadInputError` when a size is missing, or none."""
    try:
        heads = _size(config["num_attention_heads"])
        hidden = _size(config["hidden_size"])
        return Shape(
            hidden=hidden, layers=_size(config["num_hidden_layers"]), intermediate=_size(config["intermediate_size"]),
            heads=heads, kv_heads=_size(config.get("num_key_value_heads") or heads),
            head_dim=_size(config.get("head_dim") or hidden // heads), context=_context(config),
            eps=_number(config["rms_norm_eps"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"config.json in {folder} lacks a size or states it wrongly ({error}).") from error


def _size(value: Any) -> int:
    if not check_of(int)(value) or not 0 < value < 1 << 31:
        raise ValueError(f"{str(value)[:40]} is no size")
    return value


def _number(value: Any) -> float:
    if not check_of(float)(value) or not math.isfinite(value):
        raise ValueError(f"{str(value)[:40]} is no number")
    return float(value)


def _context(config: Json) -> int:
    """Tokens; no more than the sliding window, which llama.cpp does not apply to these families."""
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    context = _size(config["max_position_embeddings"])
    return min(context, _size(window)) if window else context


def add_metadata(writer: gguf.GGUFWriter, config: Json, shape: Shape, name: str, n_vocab: int) -> None:
    """Write name and sizes, and how positions are turned."""
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(n_vocab)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.eps)
    writer.add_rope_dimension_count(shape.head_dim)
    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if original := rope.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(int(original))


def rope_factors(config: Json, shape: Shape) -> np.ndarray | None:
    """Divisors of the rotary frequencies, float32 [head_dim / 2]; None when there are none.

    Llama 3's scaling ("The Llama 3 Herd of Models", 3.2): long wavelengths are stretched by `factor`, short ones kept,
    those between blended.
    """
    rope = _rope(config)
    if rope["type"] != "llama3":
        return None
    factor, low, high = (rope[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope["original_max_position_embeddings"]
    wavelength = (
        2 * math.pi * rope["rope_theta"] ** (np.arange(0, shape.head_dim, 2, dtype=np.float64) / shape.head_dim)
    )
    keep = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return (1 / (keep + (1 - keep) / factor)).astype(np.float32)


_NEEDED = {
    "default": (), "linear": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}  # fmt: skip
"""Rules of stretching positions -> the numbers that each needs."""


def _rope(config: Json) -> Json:
    """The rotary settings, numbers all, with their `type`, from where transformers 4 or 5 keeps them."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    try:
        kind = str(found.get("rope_type") or found.get("type") or "default")
        base = found.get("rope_theta") or config.get("rope_theta") or 10000.0
        numbers = {"rope_theta": base, **{name: found[name] for name in _NEEDED.get(kind, ())}}
        if original := found.get("original_max_position_embeddings"):
            numbers["original_max_position_embeddings"] = _size(original)
        settings = {name: _number(value) for name, value in numbers.items()}
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadInputError(f"config.json states its rotary embedding wrongly ({error}).") from error
    if kind not in _NEEDED:
        raise BadInputError(
            f"The model scales its rotary embedding by the rule {kind}, which cannot be written as GGUF."
        )
    return {**settings, "type": kind}
