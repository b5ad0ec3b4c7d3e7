"""Small safetensors files and model folders for tests, written without any library."""

from __future__ import annotations

import json
import math
from pathlib import Path

from awq_engine.checkpoint import DTYPE_BYTES


def safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "F16") -> bytes:
    """A file of zeros."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + DTYPE_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + bytes(end)


def model_folder(path: Path, shapes: dict[str, tuple[int, ...]] | None = None, **config: object) -> Path:
    """A model folder with one shard; two Llama-like blocks unless `shapes` says otherwise."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    (path / "model.safetensors").write_bytes(safetensors(llama_shapes() if shapes is None else shapes))
    return path


def llama_shapes(
    blocks: int = 2, hidden: int = 128, mlp: int = 256, vocabulary: int = 64
) -> dict[str, tuple[int, ...]]:
    """Tensor shapes of a Llama with grouped-query attention and a tied embedding."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
    }
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (hidden // 2, hidden),
            f"{prefix}.self_attn.v_proj.weight": (hidden // 2, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (mlp, hidden),
            f"{prefix}.mlp.up_proj.weight": (mlp, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, mlp),
        }
    return shapes
