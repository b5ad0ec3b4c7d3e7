"""The recipe for one decoder block, top to bottom.

    group the linears by the tensor they read          folds.input_groups
    find and prove the folds                           folds.find_fold
    one pass over the calibration tokens               statistics.collect_statistics
    for each fold: choose a channel scale, apply it,   scale_search.choose_scale
        check that the block's function is unchanged
    for each linear: choose the clip, round            clip_search, error_feedback
    compare with plain rounding; keep the better

`fast` takes all statistics from the original block. `balanced` takes them again before each group is rounded, when the
groups before it are rounded already, moves the weights first, so that on these inputs they give what the original gave
on the original inputs (drift correction), and rounds with error feedback. `best` gives the feedback along rows and
columns, weighing outputs by the gradients of the model's prediction (sensitivity).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from awq_engine import events as e
from awq_engine.capture import BlockInputs
from awq_engine.clip_search import choose_clip
from awq_engine.drift import collect_cross_statistics, correct_drift
from awq_engine.error_feedback import round_with_feedback
from awq_engine.experts import ExpertLinear, expert_linears
from awq_engine.families import Family, families, few_tokens, folds_like, held_at_once, settle_few, stand_in
from awq_engine.folds import (
    Fold,
    FoldKind,
    InputGroup,
    Probe,
    divide_producer,
    find_fold,
    input_groups,
    restore,
    save,
    scale_consumers,
)
from awq_engine.histogram import histogram, scale_statistics
from awq_engine.journal import EventSink
from awq_engine.originals import Originals
from awq_engine.quantize import (
    QParams,
    choose_qparams,
    group_ranges,
    round_to_grid,
    round_to_nearest,
    to_int_weight,
)
from awq_engine.readers import find_readers, norms_before
from awq_engine.recipe import Recipe
from awq_engine.routing import collect_expert_cross_statistics
from awq_engine.scale_search import ScaleChoice, choose_scale
from awq_engine.sensitivity import Sensitivity
from awq_engine.spec import QuantSpec
from awq_engine.spill import Batches, copied
from awq_engine.statistics import ROWS, InputStatistics, Tap, collect_output_statistics, collect_statistics
from awq_engine.two_sided_feedback import round_with_two_sided_feedback
from awq_engine.uncalled import read_past_module, uncalled
from awq_kernels.int_weight import IntWeight

INVARIANCE_TOLERANCE = 1e-4
"""Allowed change of the block's update by a fold, relative RMS; float32 noise is about 1e-6."""
SEARCH_ROWS = 1 << 14
"""Rows of weights on which the scale of a norm with many readers is searched."""
CHECK_TOKENS = 8192
"""Calibration tokens on which a block is compared with plain rounding."""


@dataclass
class BlockJob:
    """One block with its weights loaded, and all that is needed to quantize it."""

    index: int
    block: nn.Module
    specs: dict[str, QuantSpec]
    """The linears to quantize, by their names inside the block, and how finely each is rounded."""
    inputs: BlockInputs
    """What the block reads: from the original model (`fast`) or from the quantized blocks before it."""
    original: BlockInputs | None
    """What the original block reads, where drift is to be corrected."""
    sensitivity: Sensitivity | None
    """Gradients of the model's prediction at this block's output; only for `best`."""
    probe: BlockInputs
    """One short sequence that has passed through the quantized blocks."""
    recipe: Recipe
    seed: int
    """Of the random scales that folds are probed with."""
    head_dim: int
    stored_dtype: Callable[[str], torch.dtype | None]
    """Parameter inside the block -> dtype it is stored in; None when it cannot be rewritten."""
    emit: EventSink
    checkpoint_cancel: Callable[[], None]
    """Raises when the run is to stop; called between steps."""


@dataclass
class BlockResult:
    """What comes out of a block."""

    weights: dict[str, IntWeight]
    """By linear name inside the block."""
    changed: dict[str, torch.Tensor]
    """Other parameters that folds changed, in the dtype they are stored in."""
    outputs: Batches
    """Of the original block: the next block's inputs for `fast`, its original inputs where drift is corrected."""
    loss_rounding: float
    """MSE of the block's output under plain rounding."""
    loss_final: float


@dataclass
class _Bench:
    """The block on the workbench: original weights, and what has been folded so far."""

    originals: Originals
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """By linear: what its input columns were multiplied by, [in]."""
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    """By linear: what its output rows were divided by, [out]."""
    output_grams: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    """By linear: E[g g^T] of the gradients at its original outputs, in diagonal blocks."""
    alphas: dict[str, float] = field(default_factory=dict)
    folds: list[Fold] = field(default_factory=list)


@torch.no_grad()
def quantize_block(job: BlockJob) -> BlockResult:
    """Quantize one block; the block is left holding the dequantized weights."""
    bench = _Bench(Originals(job.block))
    traced = input_groups(job.block, list(job.specs), lambda: _probe_forward(job))
    job, sites = _settle_uncalled(job, families(job.block, traced, job.specs))
    if job.sensitivity is not None:
        bench.output_grams = job.sensitivity.output_grams(job.block, job.index, list(job.specs))
    statistics, targets = _observe(job, [group for family in sites for group in next(held_at_once(family))])
    loss_rounding = _loss_of_plain_rounding(job, bench, targets)
    if job.recipe.scales:
        _fold_sites(job, bench, sites, statistics)
    if job.recipe.sequential:
        statistics.clear()  # they are taken again, site by site
    weights: dict[str, IntWeight] = {}
    for family in sites:
        for groups in held_at_once(family):
            weights |= _round_groups(job, bench, groups, statistics)
    loss_final = _check_loss(job, targets)
    if not loss_final <= loss_rounding:
        reason = "plain rounding changes the block's output less"
        job.emit(e.BlockFellBack(job.index, reason, loss_rounding, loss_final))
        weights, loss_final = _fall_back(job, bench, sites), loss_rounding
    return BlockResult(weights, _changed_parameters(job, bench), targets, loss_rounding, loss_final)


def _observe(job: BlockJob, groups: list[InputGroup]) -> tuple[dict[str, InputStatistics], Batches]:
    """What the groups read in the original block, by their first linear, and of its outputs as many as will be read."""
    outputs = job.inputs.store()
    enough = len(job.inputs.first(CHECK_TOKENS)) if job.recipe.sequential else len(job.inputs)

    def forward() -> None:
        for output in job.inputs.outputs(job.block, job.index):
            if job.original is None and len(outputs) < enough:
                outputs.append(output)

    statistics = _collect(job, groups, forward)
    if job.original is not None:
        outputs = copied(job.original.outputs(job.block, job.index), job.inputs.store)
    return statistics, outputs


def _collect(
    job: BlockJob, groups: Sequence[InputGroup], run: Callable[[], None] | None = None
) -> dict[str, InputStatistics]:
    """Statistics of what the groups read now, by their first linear; `run` sends all calibration tokens through."""
    firsts = [group.consumers[0] for group in groups]
    linears = [_linear(job, name) for name in firsts]
    found = collect_statistics(linears, run or (lambda: _run_through(job)), job.inputs.token_weights)
    return dict(zip(firsts, found, strict=True))


def _settle_uncalled(job: BlockJob, sites: list[Family]) -> tuple[BlockJob, list[Family]]:
    """Linears that never run get groups of their own, or leave the job where they have to stay in floats."""
    idle = uncalled(job.specs, [group for family in sites for group in family])
    floats = read_past_module(job.block, idle, lambda: _handed_on(job))
    unseen = [name for name in idle if name not in floats]
    if floats:
        job.emit(
            e.Warned(f"block {job.index}: {', '.join(floats)} stays in floats; its weight is read past the module")
        )
    if unseen:
        job.emit(e.Warned(f"block {job.index}: calibration never calls {', '.join(unseen)}; rounded without data"))
    specs = {name: spec for name, spec in job.specs.items() if name not in floats}
    alone: list[Family] = [(InputGroup((name,), _linear(job, name).in_features, ()),) for name in unseen]
    return replace(job, specs=specs), sites + alone


def _loss_of_plain_rounding(job: BlockJob, bench: _Bench, targets: Batches) -> float:
    """Block loss when nothing but rounding is done; the block is left as it was."""
    for name, spec in job.specs.items():
        weight = _linear(job, name).weight.data
        for rows in weight.split(ROWS):
            rows.copy_(round_to_nearest(rows, spec))
    loss = _check_loss(job, targets)
    bench.originals.restore()
    return loss


def _check_loss(job: BlockJob, targets: Batches) -> float:
    """MSE of the present block's output against `targets` on the leading calibration batches."""
    check = job.inputs.first(CHECK_TOKENS)
    squares = [
        (output - target).square().mean()
        for output, target in zip(check.outputs(job.block, job.index), targets, strict=False)
    ]
    return float(torch.stack(squares).mean())


def _fall_back(job: BlockJob, bench: _Bench, sites: list[Family]) -> dict[str, IntWeight]:
    """Start the block over with plain rounding."""
    bench.originals.restore()
    bench.columns.clear()
    bench.rows.clear()
    bench.alphas.clear()
    bench.folds.clear()
    plain = replace(job, recipe=Recipe())
    weights: dict[str, IntWeight] = {}
    for family in sites:
        for groups in held_at_once(family):
            weights |= _round_groups(plain, bench, groups, {})
    return weights


def _changed_parameters(job: BlockJob, bench: _Bench) -> dict[str, torch.Tensor]:
    """What folds changed besides the weights that were quantized, as it will be stored."""
    quantized = {f"{name}.weight" for name in job.specs}
    changed: dict[str, torch.Tensor] = {}
    for touched in dict.fromkeys(name for fold in bench.folds for name in (fold.producer, *fold.passive)):
        for name, parameter in job.block.get_submodule(touched).named_parameters(prefix=touched, recurse=False):
            dtype = job.stored_dtype(name)
            if name not in quantized and dtype is not None:
                changed[name] = parameter.data.to(dtype).cpu()
    return changed


def _probe_forward(job: BlockJob) -> torch.Tensor:
    return next(job.probe.outputs(job.block, job.index))


def _handed_on(job: BlockJob) -> torch.Tensor:
    """All that later blocks get from this one on the probe."""
    return job.probe.handed_on(job.block, job.index)


def _ones(like: torch.Tensor) -> torch.Tensor:
    return torch.ones(like.shape, device=like.device)


def _linear(job: BlockJob, name: str) -> nn.Linear:
    linear = job.block.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear


def _fold_sites(job: BlockJob, bench: _Bench, sites: list[Family], statistics: dict[str, InputStatistics]) -> None:
    """Find the folds of all sites, choose their scales and apply them; keep only what leaves the function unchanged."""
    experts = expert_linears(job.block)
    left: list[tuple[Family, Probe]] = []
    for family in sites:
        job.checkpoint_cancel()
        probe = find_fold(
            job.block, _storable_producers(job, family[0], experts), lambda: _handed_on(job), job.head_dim, job.seed,
            lambda fold, family=family: folds_like(fold, family, experts),
        )  # fmt: skip
        if probe.fold is None:
            left.append((family, probe))
        else:
            folds = folds_like(probe.fold, family, experts)
            _fold_alike(job, bench, folds, probe.error, _statistics_of(job, family, statistics, experts))
    for family, probe in left:
        if not any(set(family[0].consumers) <= set(fold.consumers) for fold in bench.folds):
            _fold_shared_norm(job, bench, sites, family, probe)


def _statistics_of(
    job: BlockJob, family: Family, held: dict[str, InputStatistics], experts: Mapping[str, ExpertLinear]
) -> Iterator[InputStatistics]:
    """Of each group of a family, from what is held or from new passes."""
    for groups in held_at_once(family):
        found = held if groups[0].consumers[0] in held else _collect(job, groups)
        yield from settle_few(groups, [found[group.consumers[0]] for group in groups], experts)


def _fold_alike(
    job: BlockJob, bench: _Bench, folds: list[Fold], error: float, statistics: Iterable[InputStatistics]
) -> None:
    """Choose the scale of each of these folds and apply them together."""
    scales: list[torch.Tensor] = []
    for fold, stats in zip(folds, statistics, strict=True):
        job.emit(e.FoldTested(job.index, fold.producer, list(fold.consumers), True, error, ""))
        weights = [bench.originals[f"{name}.weight"] for name in fold.consumers]
        choice = choose_scale(fold, weights, stats, [job.specs[name] for name in fold.consumers])
        job.emit(_scale_event(job, fold, choice))
        scales.append(choice.channel_scale)
        bench.alphas |= dict.fromkeys(fold.consumers, choice.alpha)
    if not _apply_folds(job, bench, folds, scales):
        for name in (name for fold in folds for name in fold.consumers):
            del bench.alphas[name]


def _fold_shared_norm(job: BlockJob, bench: _Bench, sites: list[Family], family: Family, probe: Probe) -> None:
    """Fold one scale into a norm that feeds several sites, or a site and modules that stay in floats (routers)."""
    for fold in _shared_norms(job, sites, family[0]):
        norm = job.block.get_submodule(fold.producer)
        moments = collect_output_statistics(norm, fold.width, lambda: _run_through(job), job.inputs.token_weights)
        sample = _sampled_rows(bench, fold.consumers)
        choice = choose_scale(fold, sample, moments, [job.specs[name] for name in fold.consumers])
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
            readers = find_readers(job.block, norm, kind, lambda: _handed_on(job), job.seed)
            fed = [site for site in sites if any(name in readers for g in site for name in g.consumers)]
            consumers = tuple(name for site in fed for g in site for name in g.consumers)
            passive = tuple(name for name in readers if name not in consumers)
            if not set(group.consumers) <= set(consumers) or not all(_storable(job, n) for n in (norm, *passive)):
                continue
            if kind is FoldKind.NORM or all(job.stored_dtype(f"{name}.weight") is torch.float32 for name in passive):
                yield Fold(norm, consumers, kind, group.in_features, passive=passive)


def _sampled_rows(bench: _Bench, names: Sequence[str]) -> list[torch.Tensor]:
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


def _scale_event(job: BlockJob, fold: Fold, choice: ScaleChoice) -> e.ScaleChosen:
    channels = fold.expand(choice.channel_scale)
    return e.ScaleChosen(
        job.index, fold.producer, list(fold.consumers), choice.alpha, choice.duo, choice.curve, choice.loss_before,
        choice.loss_after, scale_statistics(channels), histogram(channels),
    )  # fmt: skip


def _apply_folds(job: BlockJob, bench: _Bench, folds: list[Fold], scales: list[torch.Tensor]) -> bool:
    """Fold the scales in; undo it, and say so, if the block's function changed."""
    saved = [item for fold in folds for item in save(job.block, fold)]
    before = _probe_forward(job)
    effective: list[torch.Tensor] = []
    for fold, scale in zip(folds, scales, strict=True):
        dtype = None if fold.kind is FoldKind.ROWS else job.stored_dtype(f"{fold.producer}.weight")
        effective.append(divide_producer(job.block, fold, scale, dtype))
        scale_consumers(job.block, fold, effective[-1])
    error = _relative_change(before, _probe_forward(job), job.probe.hidden[0])
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


def _note_fold(job: BlockJob, bench: _Bench, fold: Fold, effective: torch.Tensor) -> None:
    columns = fold.expand(effective)
    for name in fold.consumers:
        bench.columns[name] = bench.columns[name] * columns if name in bench.columns else columns
    if fold.kind is FoldKind.ROWS:
        rows = bench.rows.setdefault(fold.producer, _ones(_linear(job, fold.producer).weight[:, 0]))
        rows[fold.row_offset : fold.row_offset + fold.width] *= effective
    bench.folds.append(fold)


def _relative_change(before: torch.Tensor, after: torch.Tensor, hidden: torch.Tensor) -> float:
    """Change of the block's update of the residual stream, relative to the update."""
    return float((after - before).norm() / (before - hidden).norm().clamp(min=1e-12))


def _round_groups(
    job: BlockJob, bench: _Bench, groups: Family, held: dict[str, InputStatistics]
) -> dict[str, IntWeight]:
    """Clip and round the linears of some groups; the block gets the rounded weights.

    Args:
        held: what groups read in the original block; what is not there is taken from the block as it is now.
    """
    experts = expert_linears(job.block)
    found = [_scaled(bench, name, held) for name in (group.consumers[0] for group in groups)]
    if None in found:
        found = _present_statistics(job, groups)
    statistics = [stats for stats in found if stats is not None]
    _warn_of_few(job, groups, statistics, experts)
    statistics = settle_few(groups, statistics, experts)
    crosses = _cross_statistics(job, bench, groups, statistics)
    weights = {}
    for group, stats, cross in zip(groups, statistics, crosses, strict=True):
        for name in group.consumers:
            job.checkpoint_cancel()
            if name in experts and few_tokens(stats):
                bench.output_grams.pop(name, None)  # as few gradients say as little
            weights[name] = _round_linear(job, bench, name, stats, cross)
    return weights


def _scaled(bench: _Bench, first: str, held: dict[str, InputStatistics]) -> InputStatistics | None:
    """What a group reads now that folds were applied; given up by `held`, where memory is short."""
    stats = held.pop(first, None)
    columns = bench.columns.get(first)
    return stats if stats is None or columns is None else stats.scaled(columns)


def _cross_statistics(
    job: BlockJob, bench: _Bench, groups: Family, statistics: list[InputStatistics]
) -> list[torch.Tensor | None]:
    """E[x_present x_original^T] for each group where drift is to be corrected and can be told, else None."""
    nothing: list[torch.Tensor | None] = [None] * len(groups)
    if not job.recipe.drift or job.original is None:
        return nothing
    firsts = [group.consumers[0] for group in groups]
    if len(groups) == 1 and firsts[0] not in expert_linears(job.block):
        if not statistics[0].n_tokens:
            return nothing
        first = _linear(job, firsts[0])
        return [collect_cross_statistics(job.block, bench.originals, first, job.inputs, job.original, job.index)]
    found = collect_expert_cross_statistics(job.block, bench.originals, firsts, job.inputs, job.original, job.index)
    return [None if few_tokens(stats) else cross for stats, cross in zip(statistics, found, strict=True)]


def _warn_of_few(
    job: BlockJob, groups: Family, found: list[InputStatistics], experts: Mapping[str, ExpertLinear]
) -> None:
    """Say which experts saw too few tokens, and what their linears are rounded by."""
    few = {experts[g.consumers[0]].number: s.n_tokens for g, s in zip(groups, found, strict=True) if few_tokens(s)}
    if groups[0].consumers[0] not in experts or not few:
        return
    roles = " and ".join(experts[name].name for name in groups[0].consumers)
    numbers = ", ".join(map(str, list(few)[:8])) + (", ..." if len(few) > 8 else "")
    job.emit(
        e.Warned(
            f"block {job.index}: {len(few)} of {len(groups)} experts ({numbers}) read only {min(few.values())} to "
            f"{max(few.values())} calibration tokens; their {roles} {stand_in(groups, experts)}"
        )
    )


def _run_through(job: BlockJob) -> None:
    for _ in job.inputs.outputs(job.block, job.index):
        pass


def _present_statistics(job: BlockJob, groups: Family) -> list[InputStatistics]:
    """Of what the groups read in the block as it is now; for one group, passes go no further than it."""
    first, *others = groups
    if others:
        return list(_collect(job, groups).values())
    tap = Tap(_linear(job, first.consumers[0]))

    def forward() -> None:
        for batch in range(len(job.inputs)):
            tap.read(lambda batch=batch: job.inputs.output(job.block, job.index, batch))

    return list(_collect(job, groups, forward).values())


def _round_linear(
    job: BlockJob, bench: _Bench, name: str, stats: InputStatistics, cross: torch.Tensor | None
) -> IntWeight:
    """Round one linear and report every step's loss.

    Args:
        stats: of the linear's present inputs (folded).
        cross: E[x_present x_original^T] where drift is to be corrected.
    """
    started = time.perf_counter()
    linear, spec = _linear(job, name), job.specs[name]
    folded = linear.weight.data.clone()
    original = bench.originals[f"{name}.weight"]
    columns = bench.columns.get(name, _ones(linear.weight[0]))
    rows = bench.rows.get(name, _ones(linear.weight[:, 0]))
    target = folded if cross is None else correct_drift(folded, original / rows[:, None], stats, cross)

    def loss(rounded: torch.Tensor) -> float:
        return stats.output_mse((rounded - folded) * rows[:, None])

    plain = round_to_nearest(original, spec) - original
    losses = {"rounding": stats.output_mse(plain * columns)}
    qparams, clipped = choose_qparams(*group_ranges(target, spec), spec), 0.0
    if job.recipe.scales:
        losses["scale"] = loss(round_to_nearest(folded, spec))
    if job.recipe.clips:
        qparams, clipped = choose_clip(target, stats, spec)
    rounded = round_to_grid(target, qparams, spec)
    if job.recipe.clips:
        losses["clip"] = loss(rounded)
    if job.recipe.feedback:
        rounded = _feed_back(target, stats, _folded_grams(bench, name, rows), qparams, spec)
        losses["feedback"] = loss(rounded)
    linear.weight.data.copy_(rounded)
    error = (rounded - folded) * rows[:, None] / columns
    job.emit(
        e.LinearQuantized(
            job.index, name, linear.out_features, linear.in_features, losses, float(plain.square().mean()),
            float(error.square().mean()), clipped, time.perf_counter() - started, bench.alphas.get(name),
            stats.n_tokens,
        )
    )  # fmt: skip
    return to_int_weight(rounded, qparams, spec)


def _folded_grams(bench: _Bench, name: str, rows: torch.Tensor) -> list[torch.Tensor] | None:
    """The linear's output gradients' Gram matrix now that its rows are divided by `rows`."""
    if name not in bench.output_grams:
        return None
    grams = bench.output_grams.pop(name)
    blocks = rows.split([len(gram) for gram in grams])
    return [gram * block[:, None] * block for gram, block in zip(grams, blocks, strict=True)]


def _feed_back(
    target: torch.Tensor, stats: InputStatistics, grams: list[torch.Tensor] | None, qparams: QParams, spec: QuantSpec
) -> torch.Tensor:
    if grams is None:
        return round_with_feedback(target, stats, qparams, spec)
    return round_with_two_sided_feedback(target, stats, grams, qparams, spec)
