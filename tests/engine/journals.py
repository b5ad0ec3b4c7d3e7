"""A run's life as records, for tests of everything that reads a journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from awq_engine import events as e

LINEARS = ("self_attn.q_proj", "mlp.down_proj")
RESULT: dict[str, Any] = {
    "run_id": "r", "output": "/out", "bits": 4, "group_size": 128, "format": "awq", "bytes_before": 7_300_000,
    "bytes_after": 2_700_000, "bits_per_weight": 4.15625, "seconds": 21.0, "peak_host_bytes": 900_000_000,
    "peak_device_bytes": 0, "blocks": 2, "folds": 2, "fallbacks": 1,
}  # fmt: skip


CALIBRATION_SOURCE = {
    "source": "builtin", "sequences": 128, "tokens": 32768, "documents": 90, "documents_used": 80, "documents_cut": 7,
    "dropped_tokens": 100, "weighted_tokens": 32768, "detail": "a sample",
}  # fmt: skip


def records(events: Iterable[e.Event], start: float = 100.0, step: float = 1.0) -> list[e.Record]:
    """Number the events and let `step` seconds pass between two."""
    return [e.Record(number + 1, start + number * step, event) for number, event in enumerate(events)]


def started(resumed_blocks: int = 0) -> e.RunStarted:
    return e.RunStarted("r", {"model": "m"}, {"torch": "2.13.0"}, 42, "host", "cpu", resumed_blocks)


def planned(blocks: int = 2) -> e.PlanReady:
    linears = [
        {"block": block, "name": name, "out_features": 128, "in_features": 256, "bits": 4, "group_size": 128}
        for block in range(blocks)
        for name in LINEARS
    ]
    skipped = [["lm_head", "tied to the embedding"]]
    return e.PlanReady(
        "m", "llama", 3_700_000, blocks, linears, skipped, 7_300_000, 2_700_000, 4.15625, 1 << 30, "/out"
    )


def scaled(block: int, name: str, max_over_mean: float = 3.0) -> e.ScaleChosen:
    statistics = {
        "mean": 1.1, "max": 3.3, "min": 0.3, "std": 0.4, "max_over_mean": max_over_mean, "share_above_2x": 0.04,
        "share_above_5x": 0.0, "share_below_half": 0.1,
    }  # fmt: skip
    histogram = {"low": -1.0, "high": 1.0, "counts": [1, 6, 1]}
    return e.ScaleChosen(
        block, "norm", [name], 0.5, True, [[0.0, 4e-4], [0.5, 2e-4]], 4e-4, 2e-4, statistics, histogram
    )


def quantized(block: int, name: str, rounding: float = 4e-4) -> e.LinearQuantized:
    losses = {"rounding": rounding, "scale": 2e-4, "clip": 1.5e-4, "feedback": 1e-4}
    return e.LinearQuantized(block, name, 128, 256, losses, 1e-5, 1.2e-5, 0.25, 0.5, alpha=0.5)


def block(index: int, seconds: float = 10.0) -> list[e.Event]:
    """Everything said while one block is worked on."""
    work: list[e.Event] = [e.BlockStarted(index, f"model.layers.{index}")]
    work.append(e.FoldTested(index, "norm", [LINEARS[0]], accepted=True, error=1e-6))
    work.append(e.FoldTested(index, "v_proj", [LINEARS[1]], accepted=False, error=0.5, reason="the output changed"))
    work += [scaled(index, LINEARS[0]), *(quantized(index, name) for name in LINEARS)]
    return [*work, e.BlockFinished(index, 4e-3, 1e-3, seconds, f"blocks/{index:05d}", "0" * 64, 800_000_000)]


def whole_run() -> list[e.Event]:
    """A run of two blocks from its first word to its last."""
    return [
        started(),
        planned(),
        e.CalibrationReady("builtin", 128, 256, 32768, 100, "a sample", [CALIBRATION_SOURCE]),
        e.PhaseProgress("calibrating", 1, 4),
        *block(0),
        e.BlockFellBack(1, "it was better off", 4e-3, 5e-3),
        *block(1),
        e.Warned("something odd"),
        e.PhaseProgress("writing", 1, 2),
        e.Verified(0.0, 64),
        e.RunFinished(RESULT),
    ]
