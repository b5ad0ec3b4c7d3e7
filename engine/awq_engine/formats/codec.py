"""What every format on disk offers: its tensors from a weight, and a weight from its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from awq_engine.formats.parts import Parts
from awq_engine.spec import QuantSpec
from awq_kernels.int_weight import IntWeight

T = TypeVar("T")


@dataclass(frozen=True)
class Reader:
    """A format that can be read."""

    parts: tuple[str, ...]
    """The last parts of the names of a linear's tensors; some formats leave out some of them."""
    unpack: Callable[[Parts, QuantSpec, str], IntWeight]
    """From a linear's tensors, what config.json says about it, and its name for errors."""

    @property
    def marker(self) -> str:
        """The part that is always there, and that nothing but a quantized linear has."""
        return self.parts[0]

    def of(self, tensors: Mapping[str, T], linear: str) -> dict[str, T]:
        """What belongs to `linear` among `tensors`, by part."""
        return {part: tensors[key] for part in self.parts if (key := f"{linear}.{part}") in tensors}


@dataclass(frozen=True)
class Kept:
    """What a quantized checkpoint has in floats."""

    linears: tuple[str, ...] = ()
    """Names in the checkpoint."""
    parts: tuple[str, ...] = ()
    """Paths in the model of parts in which nothing is quantized: vision towers, projectors."""


@dataclass(frozen=True)
class Codec(Reader):
    """A format that can be written too."""

    pack: Callable[[IntWeight, QuantSpec, str], dict[str, torch.Tensor]]
    """From a weight, what config.json will say about it, and its name for errors; `unpack` gives back exactly the same
    integers and steps."""
    settings: Callable[[Mapping[str, QuantSpec], Kept], dict[str, Any]]
    """From every quantized linear's spec by its name in the checkpoint, and what stays as it is, to the
    `quantization_config` that readers of this format expect."""
