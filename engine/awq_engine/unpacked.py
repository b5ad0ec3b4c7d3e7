"""Quantized linears read back from a checkpoint as floats."""

from __future__ import annotations

import torch
from safetensors import safe_open

from awq_engine.checkpoint import Checkpoint
from awq_engine.pack import TENSORS, unpack_awq
from awq_kernels.reference import dequantize


def read_packed_weight(checkpoint: Checkpoint, linear: str, group_size: int) -> torch.Tensor:
    """The dequantized weight of one linear, float32 [out, in]; `linear` is its name in the checkpoint."""
    tensors = {}
    for part in TENSORS:
        info = checkpoint.tensors[f"{linear}.{part}"]
        with safe_open(str(info.file), "pt") as file:
            tensors[part] = file.get_tensor(info.name)
    return dequantize(unpack_awq(tensors, group_size, linear))
