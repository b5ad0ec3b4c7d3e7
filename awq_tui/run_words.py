"""What the run screen says, as text: pure functions of a snapshot, the request and the time.

Everything that comes from outside (model names, messages, file names) passes through `one_line` here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from awq_engine import format as fmt
from awq_engine.config import RunConfig
from awq_engine.events import DownloadProgress
from awq_engine.paths import shown_path
from awq_engine.runs import RunStatus
from awq_engine.sanitize import one_line
from awq_engine.state import LayerState, Phase, RunState
from awq_tui.ellipsis import shorten
from awq_tui.run_client import Snapshot
from awq_tui.widgets.glyphs import Glyphs

BLOCK_LINES = 10
"""Layers of a block that are shown at a time."""
GAUGE = 8
"""Bars of a gauge."""


class Tone(StrEnum):
    """How a note is meant; the value is the style it is drawn in."""

    INFO = "dim"
    GOOD = "$text-success"
    WARNING = "$text-warning"
    ERROR = "$text-error"


@dataclass(frozen=True)
class Note:
    """One line under the plots."""

    tone: Tone
    text: str


def title_line(config: RunConfig | None, run_id: str, chars: Glyphs) -> str:
    """`Qwen2.5-0.5B  W4 g128 balanced`."""
    if config is None:
        return one_line(run_id)
    label = fmt.preset_label(
        config.bits, config.group_size, config.preset, method=config.method, symmetric=config.symmetric
    )
    return f"{one_line(Path(config.model).name or config.model)}  {label} {chars.dot} {one_line(config.calibration)}"


def phase_line(snapshot: Snapshot, chars: Glyphs) -> str:
    """What the engine is doing at this moment, with numbers."""
    state = snapshot.state
    if snapshot.cancelling:
        return f"stopping after the present step{chars.ellipsis}"
    if snapshot.status is not RunStatus.RUNNING:
        return str(snapshot.status)
    if state.paused is not None:
        return "paused"
    if snapshot.pausing:
        return f"pausing after the present step{chars.ellipsis}"
    if state.phase is Phase.QUEUED:
        return f"queued behind {state.ahead} other run{'s' if state.ahead > 1 else ''}"
    if state.phase is Phase.QUANTIZING and state.current_block is not None:
        return state.unit(state.current_block)
    progress = state.progress
    if isinstance(progress, DownloadProgress):
        return f"downloading {fmt.size(progress.done_bytes)} of {fmt.size(progress.total_bytes)}"
    if progress is not None and progress.total:
        return f"{one_line(progress.phase)} {progress.done}/{progress.total}"
    return str(state.phase)


def times_line(snapshot: Snapshot, now: float, expected: float | None = None) -> str:
    """`3:12 gone  4:51 left`; the clock of a run without an engine stands still.

    Until the first block is finished, `expected` seconds for all blocks say what is left.
    """
    state, running = snapshot.state, snapshot.status is RunStatus.RUNNING
    parts = [f"{fmt.duration(state.elapsed(now if running else state.updated or now))} gone"]
    if running and (left := state.eta(now)) is not None:
        parts.append(f"{fmt.duration(left)} left")
    elif running and expected is not None and state.n_blocks:
        worked = now - state.block_started if state.block_started else 0.0
        least = expected * (state.n_blocks - 1) / state.n_blocks
        parts.append(f"about {fmt.duration(max(least, expected - worked))} left")
    return "  ".join(parts)


def block_lines(layers: Mapping[str, LayerState], chosen: str, chars: Glyphs) -> list[tuple[str, bool]]:
    """A heading and a line for each layer of a block, and whether it is the chosen one; of many, those around it."""
    names = list(layers)
    first = max(0, min(names.index(chosen) - BLOCK_LINES // 2, len(names) - BLOCK_LINES)) if chosen in layers else 0
    heading = f"{'layer':<10}{chars.alpha:>5}{'rounding':>9}{'final':>8}{'s':>6}"
    shown = names[first : first + BLOCK_LINES]
    return [(heading, False), *((_block_line(layers[name]), name == chosen) for name in shown)]


def _block_line(layer: LayerState) -> str:
    name = shorten(one_line(fmt.short_role(layer.name)), 10)
    if (done := layer.quantized) is None:
        return f"{name:<10}{fmt.number(layer.scale.alpha) if layer.scale else '':>5}"
    losses = list(done.losses.values()) or [None]
    alpha = "" if done.alpha is None else fmt.number(done.alpha)
    return f"{name:<10}{alpha:>5}{fmt.loss(losses[0]):>9}{fmt.loss(losses[-1]):>8}{done.seconds:>6.1f}"


def notes(snapshot: Snapshot, config: RunConfig | None, chars: Glyphs) -> list[Note]:
    """The outcome first, then everything odd that happened."""
    return [*_outcome(snapshot, config, chars), *_oddities(snapshot)]


def _outcome(snapshot: Snapshot, config: RunConfig | None, chars: Glyphs) -> Iterator[Note]:
    state, status = snapshot.state, snapshot.status
    if status is RunStatus.DONE and state.result is not None:
        yield Note(Tone.GOOD, f"{chars.done} {summary_line(state.result, config, chars)}")
        if state.verified is not None:
            difference = fmt.loss(state.verified.max_logit_difference)
            yield Note(
                Tone.GOOD,
                f"{chars.done} read back and compared: logits differ by at most {difference} "
                f"over {state.verified.tokens} tokens",
            )
        yield Note(Tone.INFO, f"in {one_line(shown_path(str(state.result.get('output', ''))))}")
    elif status is RunStatus.FAILED:
        message = state.error.message if state.error else "The engine failed and left no message."
        yield Note(Tone.ERROR, f"{chars.failed} {one_line(message)}")
        yield Note(Tone.INFO, f"{_kept(state)} r tries again from there, l shows the engine's log.")
    elif status is RunStatus.CANCELLED:
        yield Note(Tone.WARNING, f"Stopped as you asked. {_kept(state)} r goes on from there.")
    elif status is RunStatus.INTERRUPTED:
        yield Note(Tone.ERROR, f"{chars.failed} The engine ended without a word (killed, or out of memory).")
        yield Note(Tone.INFO, f"{_kept(state)} r goes on from there, l shows the engine's log.")


def summary_line(result: dict[str, Any], config: RunConfig | None, chars: Glyphs) -> str:
    """Size before and after, bits per weight, seconds, peak memory."""
    number = {key: value for key, value in result.items() if isinstance(value, int | float)}
    before, after = number.get("bytes_before"), number.get("bytes_after")
    parts = [
        f"{fmt.size(before)} {chars.arrow} {fmt.size(after)}",
        f"{fmt.number(number.get('bits_per_weight'))} bits/weight",
        f"took {fmt.duration(number.get('seconds'))}",
        f"peak {fmt.size(number.get('peak_host_bytes'))} host",
    ]
    if number.get("peak_device_bytes"):
        parts.append(f"{fmt.size(number['peak_device_bytes'])} device")
    return f" {chars.dot} ".join(parts)


def _oddities(snapshot: Snapshot) -> Iterator[Note]:
    state = snapshot.state
    for item in state.fallbacks:
        losses = f"{fmt.loss(item.loss_quantized)} against {fmt.loss(item.loss_rounding)}"
        unit = "the head" if state.n_blocks <= item.block else f"block {item.block}"
        yield Note(Tone.WARNING, f"! {unit} fell back to plain rounding: {one_line(item.reason)} ({losses})")
    for message in state.warnings:
        yield Note(Tone.WARNING, f"! {one_line(message)}")
    if snapshot.unreadable:
        text = f"! {snapshot.unreadable} lines of the journal could not be read; another version wrote them."
        yield Note(Tone.WARNING, text)


def _kept(state: RunState) -> str:
    done = len(state.blocks)
    blocks = "1 finished block is" if done == 1 else f"{done or 'No'} finished blocks are"
    return f"{blocks} kept."


def memory_line(state: RunState, chars: Glyphs) -> str:
    """`GPU 3.4/24.0 GB ▃▅▆  host 6.0/64.0 GB ▂▂▃`: what the engine holds, of what there is, and how it went lately.

    Before the first linear is done, what was estimated.
    """
    if state.plan is None:
        return ""
    if not state.memory:
        return f"about {fmt.size(state.plan.peak_host_bytes)} host"
    host, device = zip(*state.memory, strict=True)
    gauges = [_gauge("GPU", device, state.plan.device_total_bytes, chars)] if any(device) else []
    return "  ".join([*gauges, _gauge("host", host, state.plan.host_total_bytes, chars)])


def _gauge(name: str, held: Sequence[int], total: int, chars: Glyphs) -> str:
    """The lowest bar is nothing, the highest all that there is, or the most that was held where that is unknown."""
    whole = max(total, *held)
    bars = "".join(chars.eighths[max(1, round(8 * part / whole))] for part in held[-GAUGE:])
    return f"{name} {fmt.size_of(held[-1], total) if total else fmt.size(held[-1])} {bars}"
