"""How finely a linear is rounded: its bits, its group size and whether its zero points are free.

Every linear of a run carries its own `QuantSpec`. Standard library only: the app's forecasts use it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from awq_engine.config import RunConfig
from awq_engine.formats.limits import LIMITS, step_dtype
from awq_engine.overrides import deciding_override

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class QuantSpec:
    """How finely to round."""

    bits: int
    group_size: int
    """Inputs per group; -1 for the whole row."""
    symmetric: bool
    step_dtype: str = "float16"
    """The dtype steps are stored in: float16 or bfloat16."""
    lowest_zero: int = 0
    """The smallest zero point that the format on disk can hold."""

    @property
    def levels(self) -> int:
        """The largest integer: 15 for 4 bits."""
        return 2**self.bits - 1

    def group_of(self, in_features: int) -> int:
        """Inputs per group for a row of `in_features`."""
        return in_features if self.group_size == -1 else self.group_size

    def grouped(self, weight: torch.Tensor) -> torch.Tensor:
        """View [out, in] as [out, n_groups, group_size]."""
        out_features, in_features = weight.shape
        return weight.reshape(out_features, -1, self.group_of(in_features))


def spec_of(config: RunConfig, key: str, stored: str = "") -> QuantSpec | None:
    """What `config` asks for on the linear that the checkpoint calls `key`; None when it is to stay as it is.

    Args:
        stored: the dtype of its weight in the original, as safetensors spells it.
    """
    override = deciding_override(config.overrides, key)
    if override is not None and override.skip:
        return None
    bits, group_size = (override.bits, override.group_size) if override else (None, None)
    return QuantSpec(
        bits or config.bits, group_size or config.group_size, config.symmetric,
        step_dtype(config.format, stored), LIMITS[config.format].lowest_zero,
    )  # fmt: skip
