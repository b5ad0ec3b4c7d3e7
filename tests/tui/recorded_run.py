"""A journal as an engine would have written it, built from the event dataclasses: what the screens are tested on.

The figures are invented but behave like real ones: log-normal channel scales, a loss that has its minimum inside the
grid, one outlying layer, one fold that did not hold, one block that fell back.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from awq_engine import events as e
from awq_engine.config import RunConfig
from awq_engine.evaluations import store_evaluation
from awq_engine.journal import Journal
from awq_engine.runs import Run, create_run

SHAPES = {
    "self_attn.q_proj": (896, 896), "self_attn.k_proj": (128, 896), "self_attn.v_proj": (128, 896),
    "self_attn.o_proj": (896, 896), "mlp.gate_proj": (4864, 896), "mlp.up_proj": (4864, 896),
    "mlp.down_proj": (896, 4864),
}  # fmt: skip
FOLDS = (
    ("input_layernorm", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    ("self_attn.v_proj", ["self_attn.o_proj"]),
    ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"]),
    ("mlp.up_proj", ["mlp.down_proj"]),
)
OUTLIER = (1, "mlp.down_proj")
FALLBACK_BLOCK = 2
START = 1_700_000_000.0
BINS = 64


def opening(n_blocks: int, output: Path, config: RunConfig) -> list[e.Event]:
    """From the engine's start to the end of calibration."""
    linears = [
        {"block": block, "name": name, "out_features": out, "in_features": inn}
        for block in range(n_blocks)
        for name, (out, inn) in SHAPES.items()
    ]
    return [
        e.RunStarted("run", config.to_json(), {"awq-tui": "0.1.0", "torch": "2.13.0"}, 4242, "box", "cpu"),
        e.PlanReady(
            config.model, "qwen2", 494_032_768, n_blocks, linears, [["lm_head", "the output head is kept"]],
            988_065_536, 457_000_000, 4.16, 1_900_000_000, str(output), [], 64_000_000_000,
        ),
        e.PhaseProgress("calibrating", 1, 2),
        e.CalibrationReady("builtin", config.samples, config.seq_len, config.samples * config.seq_len),
    ]  # fmt: skip


def block(index: int) -> Iterator[e.Event]:
    """Every event of one block."""
    random = Random(index)
    yield e.BlockStarted(index, f"model.layers.{index}")
    for producer, consumers in FOLDS:
        bad = index == 0 and producer == "self_attn.v_proj"
        reason = "the fold changed the block's output" if bad else ""
        yield e.FoldTested(index, producer, consumers, not bad, 0.4 if bad else 1e-6, reason)
        if bad:
            yield e.Warned(f"block {index} {producer} -> {consumers[0]}: {reason}, undone")
            continue
        scale = scale_chosen(index, producer, consumers, random)
        yield scale
        yield from (linear_quantized(scale, name, random) for name in consumers)
    if index == 0:
        yield linear_quantized(None, "self_attn.o_proj", random, index)
    if index == FALLBACK_BLOCK:
        yield e.BlockFellBack(index, "the block lost less under plain rounding", 4.0e-4, 4.4e-4)
        yield from (linear_quantized(None, name, random, index) for name in SHAPES)
    digest = hashlib.sha256(str(index).encode()).hexdigest()
    yield e.BlockFinished(index, 5e-4, 2e-4, 6.4, f"blocks/{index:05}", digest, 1_200_000_000, 0)


def scale_chosen(index: int, producer: str, consumers: list[str], random: Random) -> e.ScaleChosen:
    """A search whose best alpha lies inside the grid, and the channel scale it chose."""
    best, base = random.uniform(0.3, 0.7), random.uniform(2e-4, 9e-4)
    curve = [[step / 20, base * (0.45 + 2.2 * (step / 20 - best) ** 2)] for step in range(20)]
    alpha, loss = min(curve, key=lambda point: point[1])
    outlying = (index, consumers[0]) == OUTLIER
    counts = [round(70 * math.exp(-(((i - 20) / 7) ** 2))) + (i > 30 and i % 9 == 0) for i in range(BINS)]
    largest = 41.0 if outlying else random.uniform(4, 9)
    statistics = {
        "mean": 1.09, "max": largest, "min": 0.31, "std": 0.42, "max_over_mean": largest / 1.09,
        "share_above_2x": 0.039, "share_above_5x": 0.015, "share_below_half": 0.081,
    }  # fmt: skip
    histogram = {"low": math.log10(0.31), "high": math.log10(largest), "counts": counts}
    return e.ScaleChosen(
        index, producer, consumers, alpha, index % 2 == 0, curve, curve[0][1], loss, statistics, histogram
    )


def linear_quantized(scale: e.ScaleChosen | None, name: str, random: Random, index: int = 0) -> e.LinearQuantized:
    """The steps of one linear, each a little better than the one before; without a scale, plain rounding only."""
    rounding = random.uniform(2e-4, 9e-4)
    losses = {"rounding": rounding}
    if scale is not None:
        for step, factor in (("scale", 0.6), ("clip", 0.92), ("feedback", random.uniform(0.25, 1.2))):
            losses[step] = list(losses.values())[-1] * factor
    out_features, in_features = SHAPES[name]
    block, alpha, weight = (scale.block, scale.alpha, 2.3e-6) if scale else (index, None, 2e-6)
    return e.LinearQuantized(
        block, name, out_features, in_features, losses, 2e-6, weight, 0.31, 0.8, alpha, None, 1_100_000_000
    )


def ending(output: Path) -> list[e.Event]:
    """From the last block to the finished folder."""
    result = {
        "run_id": "run", "output": str(output), "bits": 4, "group_size": 128, "format": "awq",
        "bytes_before": 988_065_536, "bytes_after": 457_123_456, "bits_per_weight": 4.16, "seconds": 31.2,
        "peak_host_bytes": 1_400_000_000, "peak_device_bytes": 0, "blocks": 4, "folds": 15, "fallbacks": 1,
    }  # fmt: skip
    return [
        e.PhaseProgress("writing", 1, 1),
        e.PhaseProgress("verifying", 1, 1),
        e.Verified(3e-3, 64),
        e.RunFinished(result),
    ]


def whole_run(n_blocks: int, output: Path, config: RunConfig) -> list[e.Event]:
    """All events of a run that went well."""
    blocks = [event for index in range(n_blocks) for event in block(index)]
    return [*opening(n_blocks, output, config), *blocks, *ending(output)]


def new_run(home: Path, model: str = "Qwen/Qwen2.5-0.5B") -> Run:
    """A run directory under `home` (which `AWQ_TUI_HOME` must name) that only holds the request."""
    return create_run(RunConfig(model=model, output=str(home / "out-AWQ")))


def append(run: Run, events: Iterable[e.Event], clock: Callable[[], float] | None = None) -> None:
    """Write events into the run's journal, a second apart unless `clock` says otherwise."""
    ticking = iter(range(1_000_000))
    with Journal(run.journal_path, clock or (lambda: START + next(ticking))) as journal:
        for event in events:
            journal(event)


def recorded_run(home: Path, n_blocks: int = 4, finished_blocks: int | None = None) -> Run:
    """A run as it looks when it is done, or after `finished_blocks` blocks with the engine gone."""
    run = new_run(home)
    output = Path(run.config().output)
    if finished_blocks is None:
        append(run, whole_run(n_blocks, output, run.config()))
    else:
        done = [event for index in range(finished_blocks) for event in block(index)]
        append(run, [*opening(n_blocks, output, run.config()), *done])
    return run


def measured_run(home: Path, kl: float | None, recipe: dict[str, Any] | None = None, n_bytes: int = 457_123_456) -> Run:
    """A finished run whose output folder is there, measured with this KL unless it is None."""
    run = create_run(RunConfig(model="Qwen/Qwen2.5-0.5B", output=str(home / "out-AWQ"), **(recipe or {})))
    output = Path(run.config().output)
    output.mkdir(parents=True, exist_ok=True)
    *before, last = whole_run(1, output, run.config())
    assert isinstance(last, e.RunFinished)
    append(run, [*before, e.RunFinished({**last.result, "bytes_after": n_bytes, "bits_per_weight": n_bytes / 1.1e8})])
    if kl is not None:
        found = {
            "text": "builtin", "tokens": 16352, "seq_len": 512, "perplexity": 11.9 + 9 * kl,
            "perplexity_original": 11.9, "kl": kl, "kl_error": kl / 20, "top1_agreement": 1 - kl,
        }  # fmt: skip
        store_evaluation(run, {"text": "builtin"}, found)
    return run
