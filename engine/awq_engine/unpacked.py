"""Quantized linears read back from a checkpoint, one at a time."""

from __future__ import annotations

import torch

from awq_engine.checkpoint import Checkpoint
from awq_engine.formats.stated import Quantization
from awq_engine.tensor_files import open_tensors
from awq_kernels.int_weight import IntWeight
from awq_kernels.reference import dequantize


def read_weight(checkpoint: Checkpoint, quantization: Quantization, linear: str) -> IntWeight:
    """The integers of one linear; `linear` is its name in the checkpoint."""
    parts = {}
    for part, info in quantization.reader.of(checkpoint.tensors, linear).items():
        with open_tensors(info.file) as file:
            parts[part] = file.get_tensor(info.name)
    return quantization.reader.unpack(parts, quantization.spec_of(linear), linear)


def read_dequantized(checkpoint: Checkpoint, quantization: Quantization, linear: str) -> torch.Tensor:
    """The dequantized weight of one linear, float32 [out, in]."""
    return dequantize(read_weight(checkpoint, quantization, linear))
