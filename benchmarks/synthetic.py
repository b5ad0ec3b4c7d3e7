"""Checkpoints with the shapes of real models and random weights, to measure memory and time on.

Written shard by shard with one matrix in memory at a time; nothing is downloaded and no model is built. Weights have
the spread that training leaves (the standard deviation falls with the width, a few input channels are loud), so that
no search meets values it would never see. The vocabulary is the bundled demo model's, in an embedding of full size.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file

from awq_engine.formats import awq
from awq_engine.formats.codec import Kept
from awq_engine.quantize import choose_qparams, group_ranges, round_to_grid, to_int_weight
from awq_engine.spec import QuantSpec

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LOUD_CHANNELS = 0.004
"""Share of the input channels whose norm gain is `LOUD_GAIN` times the others'."""
LOUD_GAIN = 12.0


@dataclass(frozen=True)
class Shape:
    """A Llama-shaped model, or a Mixtral-shaped one."""

    hidden: int
    mlp: int
    blocks: int
    heads: int
    kv_heads: int
    vocabulary: int = 32000
    experts: int = 0
    """0 for none; each is `mlp` wide."""
    active: int = 0
    """Experts a token goes to."""

    def shortened(self, blocks: int) -> Shape:
        return replace(self, blocks=blocks)


SHAPES = {
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4),
    "llama2-7b": Shape(4096, 11008, 32, 32, 32),
    "llama3-8b": Shape(4096, 14336, 32, 32, 8, 128256),
    "qwen2.5-7b": Shape(3584, 18944, 28, 28, 4, 152064),
    "mixture-8": Shape(1024, 2048, 2, 16, 4, 8192, 8, 2),
    "mixture-32": Shape(1024, 512, 2, 16, 4, 8192, 32, 2),
    "mixture-128": Shape(1024, 128, 2, 16, 4, 8192, 128, 2),
    "narrow": Shape(128, 256, 64, 4, 2, 2048),
}


def write_synthetic(
    folder: Path, shape: Shape, seed: int = 0, rounded: QuantSpec | None = None, head: bool = False
) -> Path:
    """Write the checkpoint as bfloat16, one shard for each block and one for the rest.

    With `rounded` the linears of the blocks, with `head` the output head too, are rounded plainly to that spec and
    written as AutoAWQ would.
    """
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weight_map: dict[str, str] = {}
    specs: dict[str, QuantSpec] = {}
    for shard, tensors in _shards(shape, generator):
        if rounded is not None:
            specs |= dict.fromkeys(_round(tensors, rounded, head), rounded)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    kept = Kept(() if head else ("lm_head",))
    quantization = {} if rounded is None else {"quantization_config": awq.settings(specs, kept)}
    (folder / "config.json").write_text(json.dumps(_config(shape) | quantization))
    demo = files("awq_engine") / "data" / "demo-model"
    for name in TOKENIZER_FILES:
        shutil.copyfile(str(demo / name), folder / name)
    return folder


def _shards(shape: Shape, generator: torch.Generator) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    hidden, kv = shape.hidden, shape.hidden * shape.kv_heads // shape.heads
    matrices = {
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, hidden), **_mlp(shape),
    }  # fmt: skip
    for block in range(shape.blocks):
        prefix = f"model.layers.{block}."
        tensors = {f"{prefix}{name}.weight": _matrix(size, generator) for name, size in matrices.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = _gain(hidden, generator)
        yield f"block-{block:05d}.safetensors", tensors
    yield (
        "outer.safetensors",
        {
            "model.embed_tokens.weight": _matrix((shape.vocabulary, hidden), generator),
            "lm_head.weight": _matrix((shape.vocabulary, hidden), generator),
            "model.norm.weight": _gain(hidden, generator),
        },
    )


def _round(tensors: dict[str, torch.Tensor], spec: QuantSpec, head: bool) -> list[str]:
    """Put packed tensors in the place of linears' weights; returns the linears' names."""
    weights = [name for name in tensors if name.endswith("proj.weight") or (head and name == "lm_head.weight")]
    for name in weights:
        weight = tensors.pop(name).float()
        qparams = choose_qparams(*group_ranges(weight, spec), spec)
        packed = awq.pack(to_int_weight(round_to_grid(weight, qparams, spec), qparams, spec), spec, name)
        tensors |= {f"{name.removesuffix('.weight')}.{part}": tensor for part, tensor in packed.items()}
    return [name.removesuffix(".weight") for name in weights]


def _mlp(shape: Shape) -> dict[str, tuple[int, int]]:
    wide, narrow = (shape.mlp, shape.hidden), (shape.hidden, shape.mlp)
    if not shape.experts:
        return {"mlp.gate_proj": wide, "mlp.up_proj": wide, "mlp.down_proj": narrow}
    moe = "block_sparse_moe"
    experts = {
        f"{moe}.experts.{expert}.{name}": size
        for expert in range(shape.experts)
        for name, size in (("w1", wide), ("w2", narrow), ("w3", wide))
    }
    return {f"{moe}.gate": (shape.experts, shape.hidden), **experts}


def _matrix(size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(size, generator=generator).div_(math.sqrt(2 * size[1])).bfloat16()


def _gain(width: int, generator: torch.Generator) -> torch.Tensor:
    gain = 0.5 + 0.1 * torch.randn(width, generator=generator)
    loud = torch.randperm(width, generator=generator)[: math.ceil(LOUD_CHANNELS * width)]
    gain[loud] *= LOUD_GAIN
    return gain.bfloat16()


def _config(shape: Shape) -> dict[str, object]:
    mixture = {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": shape.experts,
        "num_experts_per_tok": shape.active,
    }  # fmt: skip
    kind = mixture if shape.experts else {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    return kind | {
        "dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.mlp, "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
