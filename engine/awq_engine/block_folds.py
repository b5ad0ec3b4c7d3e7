"""The folds of one block: found, proven, given a channel scale, applied, and undone where the function changed.

Sibling experts of a mixture are treated as one family: probed together and folded together. A norm that feeds several
sites, or a router that stays in floats, is folded into all of its readers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from awq_engine import events as e
from awq_engine.block_job import Bench, BlockJob, ones
from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.families import Family, folds_like, held_at_once, settle_few
from awq_engine.folds import (
    Fold,
    FoldKind,
    InputGroup,
    Probe,
    divide_producer,
    find_fold,
    restore,
    save,
    scale_consumers,
)
from awq_engine.histogram import histogram, scale_statistics
from awq_engine.readers import find_readers, norms_before
from awq_engine.scale_search import ScaleChoice, ScaleSearch, choose_scale, choose_scales
from awq_engine.statistics import InputStatistics, Moments, ReadOutputs

INVARIANCE_TOLERANCE = 1e-4
"""Allowed change of the block's update by a fold, relative RMS; float32 noise is about 1e-6."""
SEARCH_ROWS = 1 << 14
"""Rows of weights on which the scale of a norm with many readers is searched."""


def fold_sites(job: BlockJob, bench: Bench, sites: list[Family], statistics: dict[str, InputStatistics]) -> None:
    """Find the folds of all sites, choose their scales and apply them; keep only what leaves the function unchanged."""
    experts = expert_linears(job.block)
    left: list[tuple[Family, Probe]] = []
    for family in sites:
        job.checkpoint_cancel()
        probe = find_fold(
            job.block, _storable_producers(job, family[0], experts), job.handed_on, job.head_dim, job.seed,
            lambda fold, family=family: folds_like(fold, family, experts),
        )  # fmt: skip
        if probe.fold is None:
            left.append((family, probe))
        else:
            fold = replace(probe.fold, float_producer=_rounds_producer(job, probe.fold))
            folds = folds_like(fold, family, experts)
            _fold_alike(job, bench, folds, probe.error, _statistics_of(job, family, statistics, experts))
    for family, probe in left:
        if not any(set(family[0].consumers) <= set(fold.consumers) for fold in bench.folds):
            _fold_shared_norm(job, bench, sites, family, probe)


def _statistics_of(
    job: BlockJob, family: Family, held: dict[str, InputStatistics], experts: Mapping[str, ExpertLinear]
) -> Iterator[InputStatistics]:
    """Of each group of a family, from what is held or from new passes."""
    for groups in held_at_once(family):
        firsts = [group.consumers[0] for group in groups]
        found = held if firsts[0] in held else job.collect(groups)
        yield from settle_few(groups, [found[first] for first in firsts], experts)
        if job.recipe.sequential:  # they will be taken again, when the groups before are rounded
            for first in firsts:
                found.pop(first)


def _fold_alike(
    job: BlockJob, bench: Bench, folds: list[Fold], error: float, statistics: Iterable[InputStatistics]
) -> None:
    """Choose the scale of each of these folds and apply them together."""
    scales: list[torch.Tensor] = []
    searches = (
        ScaleSearch(
            fold, [bench.originals[f"{name}.weight"] for name in fold.consumers], stats,
            [job.specs[name] for name in fold.consumers],
        )
        for fold, stats in zip(folds, statistics, strict=True)
    )  # fmt: skip
    for fold, choice in zip(folds, choose_scales(searches, len(folds), job.workers), strict=True):
        job.emit(e.FoldTested(job.index, fold.producer, list(fold.consumers), True, error, ""))
        job.emit(_scale_event(job, fold, choice))
        scales.append(choice.channel_scale)
        bench.alphas |= dict.fromkeys(fold.consumers, choice.alpha)
    if not _apply_folds(job, bench, folds, scales):
        for name in (name for fold in folds for name in fold.consumers):
            del bench.alphas[name]


def _fold_shared_norm(job: BlockJob, bench: Bench, sites: list[Family], family: Family, probe: Probe) -> None:
    """Fold one scale into a norm that feeds several sites, or a site and modules that stay in floats (routers)."""
    for fold in _shared_norms(job, sites, family[0]):
        norm = job.block.get_submodule(fold.producer)
        outputs = job.passes().add_up(ReadOutputs(fold.producer), Moments())
        moments = outputs.means(fold.width, next(norm.parameters()).device)
        sample = _sampled_rows(bench, fold.consumers)
        specs = [job.specs[name] for name in fold.consumers]
        choice = choose_scale(ScaleSearch(fold, sample, moments, specs), job.workers)
        job.emit(e.FoldTested(job.index, fold.producer, list(fold.consumers), True, 0.0, ""))
        job.emit(_scale_event(job, fold, choice))
        if _apply_folds(job, bench, [fold], [choice.channel_scale]):
            bench.alphas |= dict.fromkeys(fold.consumers, choice.alpha)
            return
    for group in family:
        reason = "no earlier module cancels a channel scale"
        job.emit(e.FoldTested(job.index, probe.producer, list(group.consumers), False, probe.error, reason))


def _shared_norms(job: BlockJob, sites: list[Family], group: InputGroup) -> Iterator[Fold]:
    """Norms that feed `group` and others, as folds with all their readers."""
    for norm in norms_before(job.block, group):
        for kind in (FoldKind.NORM, FoldKind.UNIT_OFFSET_NORM):
            readers = find_readers(job.block, norm, kind, job.handed_on, job.seed)
            fed = [site for site in sites if any(name in readers for g in site for name in g.consumers)]
            consumers = tuple(name for site in fed for g in site for name in g.consumers)
            passive = tuple(name for name in readers if name not in consumers)
            if not set(group.consumers) <= set(consumers) or not all(_storable(job, n) for n in (norm, *passive)):
                continue
            if kind is FoldKind.NORM or all(job.stored_dtype(f"{name}.weight") is torch.float32 for name in passive):
                yield Fold(norm, consumers, kind, group.in_features, passive=passive)


def _sampled_rows(bench: Bench, names: Sequence[str]) -> list[torch.Tensor]:
    """So many rows of the original weights as a scale search needs, evenly from all."""
    weights = [bench.originals[f"{name}.weight"] for name in names]
    step = max(1, sum(len(weight) for weight in weights) // SEARCH_ROWS)
    return [weight[::step] for weight in weights]


def _storable(job: BlockJob, name: str) -> bool:
    """Whether everything a module holds could be written back."""
    parameters = job.block.get_submodule(name).named_parameters(prefix=name, recurse=False)
    return all(job.stored_dtype(parameter) is not None for parameter, _ in parameters)


def _storable_producers(job: BlockJob, group: InputGroup, experts: Mapping[str, ExpertLinear]) -> InputGroup:
    """The group without candidates that could not be written back, or feed more than one expert."""
    own = [name for name in group.earlier if group.consumers[0] not in experts or name in experts]
    return InputGroup(group.consumers, group.in_features, tuple(name for name in own if _storable(job, name)))


def _rounds_producer(job: BlockJob, fold: Fold) -> bool:
    """Whether the producer is a linear in narrow floats, which hold only quotients by powers of two."""
    stays = fold.kind is FoldKind.ROWS and fold.producer not in job.specs
    return stays and job.stored_dtype(f"{fold.producer}.weight") is not torch.float32


def _scale_event(job: BlockJob, fold: Fold, choice: ScaleChoice) -> e.ScaleChosen:
    channels = fold.expand(choice.channel_scale)
    return e.ScaleChosen(
        job.index, fold.producer, list(fold.consumers), choice.alpha, choice.duo, choice.curve, choice.loss_before,
        choice.loss_after, scale_statistics(channels), histogram(channels),
    )  # fmt: skip


def _apply_folds(job: BlockJob, bench: Bench, folds: list[Fold], scales: list[torch.Tensor]) -> bool:
    """Fold the scales in; undo it, and say so, if the block's function changed."""
    saved = [item for fold in folds for item in save(job.block, fold)]
    before = job.probe_forward()
    effective: list[torch.Tensor] = []
    for fold, scale in zip(folds, scales, strict=True):
        vector = "bias" if fold.kind is FoldKind.ROWS else "weight"
        dtype = job.stored_dtype(f"{fold.producer}.{vector}")
        effective.append(divide_producer(job.block, fold, scale, dtype))
        scale_consumers(job.block, fold, effective[-1])
    error = _relative_change(before, job.probe_forward(), job.probe.hidden[0])
    if not error <= INVARIANCE_TOLERANCE:
        restore(saved)
        reason = f"the fold changed the block's output by {error:.1e} and was undone"
        for fold in folds:
            job.emit(e.FoldTested(job.index, fold.producer, list(fold.consumers), False, error, reason))
        job.emit(e.Warned(f"block {job.index} {folds[0].producer}: {reason}"))
        return False
    for fold, scale in zip(folds, effective, strict=True):
        _note_fold(job, bench, fold, scale)
    return True


def _note_fold(job: BlockJob, bench: Bench, fold: Fold, effective: torch.Tensor) -> None:
    columns = fold.expand(effective)
    for name in fold.consumers:
        bench.columns[name] = bench.columns[name] * columns if name in bench.columns else columns
    if fold.kind is FoldKind.ROWS:
        rows = bench.rows.setdefault(fold.producer, ones(job.linear(fold.producer).weight[:, 0]))
        fold.rows_of(rows).mul_(effective.view(fold.rows_of(rows).shape))
    bench.folds.append(fold)


def _relative_change(before: torch.Tensor, after: torch.Tensor, hidden: torch.Tensor) -> float:
    """Change of the block's update of the residual stream, relative to the update."""
    return float((after - before).norm() / (before - hidden).norm().clamp(min=1e-12))
