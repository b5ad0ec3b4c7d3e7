"""The module that stands where an `nn.Linear` stood, holding a prepared 4-bit weight."""

from __future__ import annotations

import torch
from torch import nn

from awq_kernels.dispatch import PreparedLinear


class QuantizedLinear(nn.Module):
    """`y = x @ dequantize(weight).T + bias`, computed by the backend the weight was prepared for.

    The weight is no parameter: it cannot be trained, moved or cast, so `model.to(...)` leaves it where it was prepared.
    """

    bias: torch.Tensor | None

    def __init__(self, weight: PreparedLinear, bias: torch.Tensor | None = None) -> None:
        """`bias` is [out_features] on the device of `weight`."""
        super().__init__()
        if bias is not None and tuple(bias.shape) != (weight.out_features,):
            raise ValueError(f"bias has shape {list(bias.shape)}, expected [{weight.out_features}]")
        self.prepared = weight
        self.register_buffer("bias", bias)

    @property
    def in_features(self) -> int:
        return self.prepared.in_features

    @property
    def out_features(self) -> int:
        return self.prepared.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in_features] to [..., out_features], in the dtype of `x`."""
        return self.prepared(x, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.out_features}, bias={self.bias is not None}, {self.prepared.backend}"
