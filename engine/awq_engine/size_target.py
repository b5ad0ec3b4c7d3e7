"""`--target-bpw`: from a size to a shape for every linear, by what rounding it costs the whole model.

The size is that of all linears of the blocks which the format can hold, in bits per weight, steps and zero points
included; a linear may also stay as it is. What a person overrides is not up for choice, and the choice is written as
further overrides, so everything after it knows only those. They are kept in the run's directory: a resumed run goes on
with the same. The output head, where it is quantized too, has the run's own bits and groups and is not counted.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from awq_engine.allocation import Option, allocate
from awq_engine.config import RunConfig
from awq_engine.errors import BadInputError
from awq_engine.formats.limits import LIMITS, Format, misfit, packed_bytes
from awq_engine.fused import by_site, site
from awq_engine.overrides import Override, deciding_override
from awq_engine.plan import LinearPlan, make_plan
from awq_engine.recipe import recipe_of
from awq_engine.rounding_cost import Costs, rounding_costs
from awq_engine.runs import Run
from awq_engine.sensitivity import NoGradientsError, Sensitivity, measure_sensitivity
from awq_engine.skeleton import Skeleton
from awq_engine.spec import QuantSpec, spec_of
from awq_engine.spill import NewBatches
from awq_engine.storage import write_atomically
from awq_engine.streams import hidden_store

GROUPS = (128, 64, 32)
"""Group sizes to choose from, besides the run's own."""
TOLERANCE = 0.01
"""Of the target; a result further below it is warned about."""

Warn = Callable[[str], None]


def meet_target(
    run: Run, config: RunConfig, skeleton: Skeleton, ids: torch.Tensor, progress: Callable[[int, int], None], warn: Warn
) -> RunConfig:
    """`config` with overrides in the place of its target, chosen now or by an earlier process of this run.

    Args:
        ids: int64 [samples, seq_len], the calibration tokens.
        progress: called with (blocks measured, blocks in all).
    Raises:
        BadInputError: the target is out of reach; says what is within.
    """
    path = run.path / "allocation.json"
    if not path.exists():
        chosen = choose_overrides(config, skeleton, ids, run.gradients_dir, progress, warn)
        write_atomically(path, (json.dumps(chosen, indent=2) + "\n").encode())
        if not recipe_of(config).sensitivity:
            shutil.rmtree(run.gradients_dir, ignore_errors=True)
    chosen = json.loads(path.read_bytes())
    return replace(config, target_bpw=0.0, overrides=(*chosen, *config.overrides))


def choose_overrides(
    config: RunConfig, skeleton: Skeleton, ids: torch.Tensor, folder: Path, progress: Callable[[int, int], None],
    warn: Warn,
) -> list[str]:  # fmt: skip
    """Overrides for what is not to be as the config says; deterministic. Gradients wait in `folder`."""
    plan = make_plan(replace(config, target_bpw=0.0), skeleton)
    linears, left = tuple(linear for linear in plan.linears if linear != plan.head), plan.left_out
    store = hidden_store(config, folder.parent, plan.forecast, lambda _: None)  # the blocks' own pass says it
    losses = _measure(linears, skeleton, _sensitivity(config, skeleton, ids, folder, progress, store), config, progress)
    by_key = {linear.key: linear for linear in linears}
    ruled = {
        site(key) for key in (*by_key, *(name for name, _ in plan.skipped)) if deciding_override(config.overrides, key)
    }
    sites = by_site(by_key)
    options = {
        name: _options(config, [by_key[key] for key in keys], losses, ruled=name in ruled)
        for name, keys in sites.items()
    }
    weights = left.weights + sum(linear.out_features * linear.in_features for linear in linears)
    _check_reach(config.target_bpw, options, left.n_bytes, weights)
    chosen = allocate(options, int(config.target_bpw * weights / 8) - left.n_bytes)
    reached = 8 * (left.n_bytes + sum(option.n_bytes for option in chosen.values())) / weights
    if reached < (1 - TOLERANCE) * config.target_bpw:
        warn(f"The target is {config.target_bpw:g} bits per weight; what fits this model and format is {reached:.3f}.")
    return [
        str(_override(key, chosen[name].spec))
        for name, keys in sites.items()
        if chosen[name].spec != _uniform(config) and name not in ruled
        for key in keys
    ]


def candidates(config: RunConfig) -> list[QuantSpec | None]:
    """Every way a linear may be treated: what the format mixes, or else the run's own shape or none."""
    if not config.format.mixes:
        return [_uniform(config), None]
    base, groups = _uniform(config), dict.fromkeys((config.group_size, *GROUPS))
    shapes = [(bits, group) for bits in LIMITS[config.format].bits for group in groups]
    return [None, *(replace(base, bits=bits, group_size=group) for bits, group in shapes)]


def _uniform(config: RunConfig) -> QuantSpec:
    return QuantSpec(config.bits, config.group_size, config.symmetric, lowest_zero=LIMITS[config.format].lowest_zero)


def _measure(
    linears: tuple[LinearPlan, ...], skeleton: Skeleton, sensitivity: Sensitivity, config: RunConfig,
    progress: Callable[[int, int], None],
) -> dict[str, Costs]:  # fmt: skip
    """The losses of every linear by its name in the checkpoint."""
    names: list[list[str]] = [[] for _ in skeleton.blocks]
    for linear in linears:
        names[linear.block].append(linear.name)

    def specs(linear: nn.Linear) -> list[QuantSpec]:
        n_out, n_in = linear.out_features, linear.in_features
        tried = [spec for spec in candidates(config) if spec and n_in % spec.group_of(n_in) == 0]
        return [spec for spec in tried if not misfit(config.format, spec.bits, n_out, n_in)]

    costs: dict[str, Costs] = {}
    for index, present in enumerate(names):
        with skeleton.loaded_block(index) as block:
            found = rounding_costs(block, index, present, specs, sensitivity)
        costs |= {linear.key: found[linear.name] for linear in linears if linear.block == index}
        progress(index + 1, len(names))
    return costs


def _sensitivity(
    config: RunConfig, skeleton: Skeleton, ids: torch.Tensor, folder: Path, progress: Callable[[int, int], None],
    store: NewBatches,
) -> Sensitivity:  # fmt: skip
    try:
        return measure_sensitivity(skeleton, ids, folder, config.seed, progress, store)
    except NoGradientsError as error:
        raise BadInputError(
            f"Gradients cannot be carried through this model ({error}), so what rounding costs cannot be "
            "measured; choose with --override instead of --target-bpw."
        ) from error


def _options(config: RunConfig, linears: list[LinearPlan], losses: dict[str, Costs], *, ruled: bool) -> list[Option]:
    """The ways to treat the linears of one site alike; one where a person's override decides for any of them."""
    if ruled:
        specs = [spec_of(config, linear.key) for linear in linears]
        return [_option(config.format, linears, specs, losses)]
    found = [spec for spec in candidates(config) if all(spec is None or spec in losses[x.key] for x in linears)]
    return [_option(config.format, linears, [spec] * len(linears), losses) for spec in found]


def _option(
    layout: Format, linears: list[LinearPlan], specs: list[QuantSpec | None], losses: dict[str, Costs]
) -> Option:
    n_bytes = sum(
        packed_bytes(layout, spec, linear.out_features, linear.in_features) if spec else linear.stored_bytes
        for linear, spec in zip(linears, specs, strict=True)
    )
    loss = sum(losses[x.key].get(spec, 0.0) for x, spec in zip(linears, specs, strict=True) if spec)
    return Option(specs[0], n_bytes, loss)


def _check_reach(target: float, options: dict[str, list[Option]], left: int, weights: int) -> None:
    low, high = (
        8 * (left + sum(pick(option.n_bytes for option in choices) for choices in options.values())) / weights
        for pick in (min, max)
    )
    if not low <= target <= high:
        raise BadInputError(
            f"A target of {target:g} bits per weight cannot be met: the linears of this model take from {low:.2f} to "
            f"{high:.2f} in this format; choose a size between them."
        )


def _override(key: str, spec: QuantSpec | None) -> Override:
    if spec is None:
        return Override(key, skip=True)
    return Override(key, bits=spec.bits, group_size=spec.group_size)
