"""The integers, scales and zero points of one quantized linear, free of any file format or kernel layout.

Everything meets here: the quantizer produces an `IntWeight`, the codecs of the file formats write and read one, and the
kernels prepare their own layout from one. It is never rounded or repacked on the way, so a conversion is lossless.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

SCALE_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class IntWeight:
    """One weight as `(q - zero_point) * scale`, each group of `group_size` inputs with its own scale and zero point."""

    q: torch.Tensor
    """uint8 [out_features, in_features], values 0..2**bits - 1."""
    scale: torch.Tensor
    """float16, bfloat16 or float32 [out_features, n_groups]: the quantization step."""
    zero_point: torch.Tensor
    """uint8 [out_features, n_groups], values 0..2**bits - 1; 2**(bits - 1) everywhere when symmetric."""
    group_size: int
    """Inputs per group; in_features when there is one scale per output (never -1)."""
    bits: int = 4
    """Bits per integer, 1..8."""
    order: torch.Tensor | None = None
    """int64 [in_features]: the input that each column of `q` multiplies, where other tools put inputs into groups in
    another order than they stand in (act-order); None when the groups are consecutive inputs."""

    def __post_init__(self) -> None:
        """Raises ValueError when shapes or dtypes do not belong together (a caller's bug: codecs check files first)."""
        if not 1 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits}, expected 1..8")
        if self.q.ndim != 2 or self.group_size <= 0 or self.q.shape[1] % self.group_size:
            raise ValueError(f"q has shape {list(self.q.shape)}; groups of {self.group_size} inputs do not divide it")
        expected = (self.out_features, self.n_groups)
        for field, tensor in (("scale", self.scale), ("zero_point", self.zero_point)):
            if tuple(tensor.shape) != expected:
                raise ValueError(f"{field} has shape {list(tensor.shape)}, expected {list(expected)}")
        if self.order is not None and tuple(self.order.shape) != (self.in_features,):
            raise ValueError(f"order has shape {list(self.order.shape)}, expected [{self.in_features}]")
        if self.q.dtype != torch.uint8 or self.zero_point.dtype != torch.uint8 or self.scale.dtype not in SCALE_DTYPES:
            raise ValueError(
                f"q, zero_point, scale are {self.q.dtype}, {self.zero_point.dtype}, {self.scale.dtype}; "
                "expected uint8, uint8 and a float type"
            )

    @property
    def out_features(self) -> int:
        return self.q.shape[0]

    @property
    def in_features(self) -> int:
        return self.q.shape[1]

    @property
    def n_groups(self) -> int:
        return self.in_features // self.group_size

    @property
    def symmetric(self) -> bool:
        """Whether every zero point sits in the middle, which is how symmetric weights are stored."""
        return bool((self.zero_point == 1 << (self.bits - 1)).all())

    def to(self, device: torch.device | str) -> IntWeight:
        """The same weight with its tensors on `device`."""
        return replace(
            self,
            q=self.q.to(device),
            scale=self.scale.to(device),
            zero_point=self.zero_point.to(device),
            order=None if self.order is None else self.order.to(device),
        )
