"""Channel scales as numbers and as a histogram: the engine bins, the screen draws."""

from __future__ import annotations

import torch

from awq_engine.events import Bins

N_BINS = 64


def scale_statistics(channel_scale: torch.Tensor) -> dict[str, float]:
    """Shape of the distribution of a channel scale, float32 [in_features]; shares are of all channels."""
    mean = channel_scale.mean()
    return {
        "mean": float(mean),
        "max": float(channel_scale.max()),
        "min": float(channel_scale.min()),
        "std": float(channel_scale.std(correction=0)),
        "max_over_mean": float(channel_scale.max() / mean),
        "share_above_2x": _share(channel_scale > 2 * mean),
        "share_above_5x": _share(channel_scale > 5 * mean),
        "share_below_half": _share(channel_scale < 0.5 * mean),
    }


def histogram(channel_scale: torch.Tensor) -> Bins:
    """Equal bins of log10(channel_scale) between its smallest and largest value: low, high and counts."""
    logs = channel_scale.log10()
    low, high = float(logs.min()), float(logs.max())
    if low == high:  # the identity: one bin around it
        low, high = low - 0.5, high + 0.5
    counts = torch.histc(logs.float().cpu(), N_BINS, low, high)
    return {"low": low, "high": high, "counts": [int(count) for count in counts]}


def _share(mask: torch.Tensor) -> float:
    return float(mask.float().mean())
