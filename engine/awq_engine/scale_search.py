"""The AWQ scale search (arXiv:2306.00978, section 3.2) on Gram matrices.

    s      = act_mean**alpha                           plain
    s      = act_mean**alpha / w_mean**(1 - alpha)     duo, AutoAWQ's default
    s     /= sqrt(max(s) * min(s))
    loss   = mean((Q(W * s) @ (x / s) - W @ x)**2),    alpha on a grid

Both forms are tried, alpha reaches 1, and the identity is always a candidate (AutoAWQ tries only the duo form, which
has no identity, and can be forced into a scale worse than none).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from awq_engine.folds import Fold
from awq_engine.quantize import ELEMENTS, round_to_nearest, row_slices
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics

N_GRID = 20
DEAD_CHANNEL = 1e-3
"""Channels quieter than this share of the mean count as this loud: silent ones would stretch the scale's range."""

_Part = tuple[QuantSpec, torch.Tensor]
"""Rows that are rounded alike, [rows, in_features] of any float dtype, few enough to be worked on together."""


@dataclass(frozen=True)
class ScaleChoice:
    """The scale that won, and how the search went."""

    channel_scale: torch.Tensor
    """float32 [width], in the producer's channels."""
    alpha: float
    duo: bool
    curve: list[list[float]]
    """[alpha, loss], the better form at each alpha."""
    loss_before: float
    """Of the identity: MSE summed over the consumers' outputs."""
    loss_after: float


def choose_scale(
    fold: Fold, weights: list[torch.Tensor], statistics: InputStatistics, specs: list[QuantSpec]
) -> ScaleChoice:
    """Pick the channel scale that changes the consumers' outputs least once they are rounded.

    Args:
        weights: the consumers' weights, [out_i, in_features] of any float dtype.
        statistics: of the tensor they all read.
        specs: how finely each of them will be rounded.
    """
    parts = list(_parts(weights, specs))
    act_mean = fold.reduce(statistics.act_mean).clamp(min=float(statistics.act_mean.mean()) * DEAD_CHANNEL)
    w_mean = fold.reduce(relative_magnitude(parts))
    identity = torch.ones_like(act_mean)
    loss_before = best_loss = _loss(parts, identity, fold, statistics)
    best, best_alpha, best_duo = identity, 0.0, False
    curve: list[list[float]] = []
    for step in range(N_GRID + 1):
        alpha = step / N_GRID
        losses = []
        for duo in (False, True):
            scale = candidate_scale(act_mean, w_mean, alpha, duo)
            scale = torch.exp2(scale.log2().round()) if fold.powers_of_two else scale
            loss = loss_before if step == 0 and not duo else _loss(parts, scale, fold, statistics)
            losses.append(loss)
            if math.isfinite(loss) and loss < best_loss:
                best, best_loss, best_alpha, best_duo = scale, loss, alpha, duo
        curve.append([alpha, min(losses)])
    return ScaleChoice(best, best_alpha, best_duo, curve, loss_before, best_loss)


def candidate_scale(act_mean: torch.Tensor, w_mean: torch.Tensor, alpha: float, duo: bool) -> torch.Tensor:
    """One grid point, float32 [width], centred so that its largest and smallest value are reciprocal."""
    scale = act_mean.pow(alpha)
    if duo:
        scale = scale / (w_mean.pow(1 - alpha) + 1e-4)
    scale = scale.clamp(min=1e-4)
    scale = scale / (scale.max() * scale.min()).sqrt()
    return torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))


def relative_magnitude(parts: list[_Part]) -> torch.Tensor:
    """Mean over the rows of |w| relative to the largest of its group: float32 [in_features]."""
    total = torch.zeros(parts[0][1].shape[1], device=parts[0][1].device)
    for spec, weight in parts:
        groups = spec.grouped(weight.float().abs())
        relative = groups / (groups.amax(-1, keepdim=True) + 1e-6)  # [out, n_groups, group_size]
        total += relative.sum(0).reshape(-1)
    return total / sum(len(weight) for _, weight in parts)


def _parts(weights: list[torch.Tensor], specs: list[QuantSpec]) -> Iterator[_Part]:
    """Small weights that are rounded alike together, and large ones in pieces."""
    alike: dict[QuantSpec, list[torch.Tensor]] = {}
    for weight, spec in zip(weights, specs, strict=True):
        alike.setdefault(spec, []).append(weight)
    for spec, together in alike.items():
        whole = [torch.cat(together)] if sum(weight.numel() for weight in together) <= ELEMENTS else together
        for weight in whole:
            yield from ((spec, weight[rows]) for rows in row_slices(weight))


def _loss(parts: list[_Part], scale: torch.Tensor, fold: Fold, statistics: InputStatistics) -> float:
    columns = fold.expand(scale)
    return statistics.output_mse(
        round_to_nearest(weight * columns, spec).div_(columns).sub_(weight) for spec, weight in parts
    )
