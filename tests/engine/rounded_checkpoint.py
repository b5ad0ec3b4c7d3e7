"""Writes small models in floats and as AWQ GEMM checkpoints by plain rounding, with arithmetic of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from awq_engine.formats.awq import pack as pack_awq
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight


def demo_model() -> Path:
    """The small trained model inside the package."""
    import awq_engine

    return Path(awq_engine.__file__).parent / "data/demo-model"


def write_float_folder(path: Path, seed: int = 0, **config: Any) -> Path:
    """A tiny random Llama (or `model_type`) in float16 that transformers saved itself."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings = {"model_type": "llama", "vocab_size": 96, "num_key_value_heads": 2, **sizes, **config}
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float16)
    model.save_pretrained(path)
    return path


def round_plainly(weight: torch.Tensor, group_size: int, symmetric: bool = False) -> IntWeight:
    """Round to nearest with the range of each group; symmetric keeps the zero point at 8."""
    groups = weight.float().unflatten(1, (-1, group_size))
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    step = torch.maximum(-low / 8, high / 7) if symmetric else (high - low) / 15
    scale = step.clamp(min=1e-6).to(torch.float16)
    zero = torch.full_like(low, 8) if symmetric else (-low / scale.float()).round().clamp(0, 15)
    q = ((groups / scale.float()[:, :, None]).round() + zero[:, :, None]).clamp(0, 15)
    return IntWeight(q.flatten(1).to(torch.uint8), scale, zero.to(torch.uint8), group_size)


def write_awq_folder(
    source: Path, target: Path, group_size: int = 32, symmetric: bool = False, shards: int = 1
) -> Path:
    """Round every linear of the decoder blocks of `source` and write what AutoAWQ would: tensors, index, config."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            packed = pack_awq(round_plainly(tensor, group_size, symmetric), QuantSpec(4, group_size, symmetric), name)
            tensors |= {f"{name.removesuffix('.weight')}.{key}": value for key, value in packed.items()}
        else:
            tensors[name] = tensor
    _write_shards(target, tensors, shards)
    edit_config(target, quantization_config=awq_settings(group_size))
    return target


def awq_settings(group_size: int) -> dict[str, Any]:
    return {
        "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["lm_head"],
    }  # fmt: skip


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replace or (None) remove tensors of a folder with one shard."""
    tensors: dict[str, torch.Tensor | None] = {**load_file(folder / "model.safetensors"), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


def _write_shards(target: Path, tensors: dict[str, torch.Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, target / "model.safetensors", {"format": "pt"})
        return
    names, where = list(tensors), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, target / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
