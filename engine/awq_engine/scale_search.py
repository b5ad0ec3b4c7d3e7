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
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from awq_engine.folds import Fold
from awq_engine.quantize import ELEMENTS, round_to_nearest, row_slices
from awq_engine.spec import QuantSpec
from awq_engine.statistics import InputStatistics
from awq_engine.workers import ALONE, Workers

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


@dataclass(frozen=True)
class ScaleSearch:
    """A fold whose channel scale is wanted."""

    fold: Fold
    weights: list[torch.Tensor]
    """The consumers' weights, [out_i, in_features] of any float dtype."""
    statistics: InputStatistics
    """Of the tensor they all read."""
    specs: list[QuantSpec]
    """How finely each of them will be rounded."""


def choose_scales(searches: Iterable[ScaleSearch], count: int, workers: Workers) -> Iterator[ScaleChoice]:
    """The scales of `count` folds, in order: some folds at a time, or for a single one some grid points."""
    if count == 1:
        return (choose_scale(search, workers) for search in searches)
    return workers.map(choose_scale, searches)


def choose_scale(search: ScaleSearch, workers: Workers = ALONE) -> ScaleChoice:
    """Pick the channel scale that changes the consumers' outputs least once they are rounded."""
    fold, statistics = search.fold, search.statistics
    parts = list(_parts(search.weights, search.specs))
    act_mean = fold.reduce(statistics.act_mean).clamp(min=float(statistics.act_mean.mean()) * DEAD_CHANNEL)
    w_mean = fold.reduce(relative_magnitude(parts))
    grid = [(step / N_GRID, duo) for step in range(N_GRID + 1) for duo in (False, True)]
    scales = [candidate_scale(act_mean, w_mean, alpha, duo) for alpha, duo in grid]
    scales = [torch.exp2(scale.log2().round()) if fold.powers_of_two else scale for scale in scales]
    losses = list(workers.map(_Loss(parts, fold, statistics), scales))
    loss_before = losses[0]  # alpha 0 of the plain form is the identity
    best = min(range(len(grid)), key=lambda point: losses[point] if math.isfinite(losses[point]) else math.inf)
    best = best if losses[best] < loss_before else 0
    curve = [[alpha, min(losses[point : point + 2])] for point, (alpha, duo) in enumerate(grid) if not duo]
    return ScaleChoice(scales[best], *grid[best], curve, loss_before, losses[best])


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


@dataclass(frozen=True)
class _Loss:
    """Of a scale: MSE summed over the consumers' outputs."""

    parts: list[_Part]
    fold: Fold
    statistics: InputStatistics

    def __call__(self, scale: torch.Tensor) -> float:
        columns = self.fold.expand(scale)
        return self.statistics.output_mse(
            round_to_nearest(weight * columns, spec).div_(columns).sub_(weight) for spec, weight in self.parts
        )
