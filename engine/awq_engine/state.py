"""`RunState`, what every screen and every progress line shows: a pure function of the journal.

    state = reduce(state, record)

Nothing here reads a clock, a file or a process, so a recorded journal replays any screen. Standard library only: the
app and the command line both import this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import singledispatch
from typing import Any

from awq_engine import events as e

REMEMBERED = 24
"""How many of the newest figures of memory are kept."""


class Phase(StrEnum):
    """What the engine is doing."""

    QUEUED = "queued"
    """Waiting until no other run is at work."""
    STARTING = "starting"
    DOWNLOADING = "downloading"
    CALIBRATING = "calibrating"
    QUANTIZING = "quantizing"
    WRITING = "writing"
    VERIFYING = "verifying"
    DONE = "done"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True)
class LayerState:
    """One linear, from planned to written."""

    block: int
    name: str
    """Inside the block, e.g. `self_attn.q_proj`."""
    out_features: int
    in_features: int
    scale: e.ScaleChosen | None = None
    """The search of the fold that reaches this linear, once it ran."""
    quantized: e.LinearQuantized | None = None
    bits: int | None = None
    """Of its integers; None in journals of older versions."""
    group_size: int | None = None

    @property
    def role(self) -> str:
        """The last part of the name (`q_proj`): what `by type` groups on."""
        return self.name.rsplit(".", 1)[-1]

    @property
    def loss_ratio(self) -> float | None:
        """Final output loss over the loss of plain rounding; below 1 is a gain."""
        if self.quantized is None:
            return None
        losses = list(self.quantized.losses.values())
        return losses[-1] / losses[0] if losses and losses[0] > 0 else None


class Layers(Mapping[tuple[int, str], LayerState]):
    """Layers by (block, name), in the order of the plan. Never changed: what differs is a new one that shares the rest.

    A mixture has tens of thousands of linears, and each has an event of its own: only its block is copied.
    """

    def __init__(self, layers: Iterable[LayerState] = ()) -> None:
        self._blocks: dict[int, dict[str, LayerState]] = {}
        for layer in layers:
            self._blocks.setdefault(layer.block, {})[layer.name] = layer
        self._quantized = {block: _quantized(layers) for block, layers in self._blocks.items()}

    def __getitem__(self, key: tuple[int, str]) -> LayerState:
        if not isinstance(key, tuple):  # a screen where nothing is chosen asks with None
            raise KeyError(key)
        block, name = key
        return self._blocks[block][name]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return ((block, name) for block, layers in self._blocks.items() for name in layers)

    def __len__(self) -> int:
        return sum(map(len, self._blocks.values()))

    @property
    def quantized(self) -> int:
        """How many are done."""
        return sum(self._quantized.values())

    def of_block(self, block: int) -> Mapping[str, LayerState]:
        """The layers of one block by their names inside it."""
        return self._blocks.get(block, {})

    def changed(self, block: int, layers: Iterable[LayerState]) -> Layers:
        """With `layers`, all of `block`, in the place of their namesakes or after the others."""
        new = Layers()
        changed = {**self.of_block(block), **{layer.name: layer for layer in layers}}
        new._blocks = {**self._blocks, block: changed}
        new._quantized = {**self._quantized, block: _quantized(changed)}
        return new

    def forgetting(self, block: int) -> Layers:
        """Without what was found in `block`."""
        layers = self.of_block(block).values()
        return self.changed(block, [replace(layer, scale=None, quantized=None) for layer in layers])


def _quantized(layers: Mapping[str, LayerState]) -> int:
    return sum(layer.quantized is not None for layer in layers.values())


@dataclass(frozen=True)
class RunState:
    """All that is known of a run so far."""

    phase: Phase = Phase.STARTING
    run: e.RunStarted | None = None
    plan: e.PlanReady | None = None
    calibration: e.CalibrationReady | None = None
    layers: Layers = field(default_factory=Layers)
    current_block: int | None = None
    blocks: dict[int, e.BlockFinished] = field(default_factory=dict)
    block_started: float | None = None
    """Unix time the current block started."""
    block_folds: dict[int, tuple[e.FoldTested, ...]] = field(default_factory=dict)
    """By block; accepted folds only."""
    fallbacks: tuple[e.BlockFellBack, ...] = ()
    warnings: tuple[str, ...] = ()
    progress: e.PhaseProgress | e.DownloadProgress | None = None
    ahead: int = 0
    """Runs that a queued one waits for."""
    verified: e.Verified | None = None
    result: dict[str, Any] | None = None
    error: e.RunFailed | None = None
    started: float | None = None
    """Unix time the present engine process started."""
    earlier_seconds: float = 0.0
    """Time that earlier engine processes of this run worked."""
    paused: float | None = None
    """Unix time since which the engine lies still because it was asked to."""
    updated: float | None = None
    """Unix time of the newest event."""
    memory: tuple[tuple[int, int], ...] = ()
    """(host, device) bytes that the engine held lately, the newest last."""
    last_seq: int = 0

    @property
    def folds(self) -> tuple[e.FoldTested, ...]:
        """Accepted folds only."""
        return tuple(fold for folds in self.block_folds.values() for fold in folds)

    @property
    def finished(self) -> bool:
        return self.phase in (Phase.DONE, Phase.CANCELLED, Phase.FAILED)

    @property
    def n_blocks(self) -> int:
        return self.plan.n_blocks if self.plan else 0

    def unit(self, index: int) -> str:
        """`block 3/12`, or `head` for what comes after the last block."""
        return "head" if self.n_blocks and index >= self.n_blocks else f"block {index + 1}/{self.n_blocks}"

    @property
    def blocks_done(self) -> int:
        return min(len(self.blocks), self.n_blocks)  # the head is none

    def fraction(self) -> float:
        """Share of the work done, 0 to 1, counted in linears; writing and verifying are the last 2 %."""
        if self.phase is Phase.DONE:
            return 1.0
        total = len(self.layers)
        return 0.98 * self.layers.quantized / total if total else 0.0

    def elapsed(self, now: float) -> float:
        """Seconds worked so far; `now` is Unix time."""
        end = self.updated if self.finished and self.updated else self.paused or now
        return self.earlier_seconds + (max(0.0, end - self.started) if self.started else 0.0)

    def eta(self, now: float) -> float | None:
        """Seconds left, from the median time of the finished blocks; None before the first."""
        if not self.blocks or self.finished:
            return None
        times = sorted(block.seconds for block in self.blocks.values())
        typical = times[len(times) // 2]
        left = (self.n_blocks - len(self.blocks)) * typical
        now = self.paused or now
        running = now - self.block_started if self.block_started and self.current_block not in self.blocks else 0.0
        return max(0.0, left - min(running, typical))


def replay(records: Iterable[e.Record]) -> RunState:
    """The state after all of `records`."""
    state = RunState()
    for record in records:
        state = reduce(state, record)
    return state


def at_a_glance(last: e.Record | None) -> RunState | None:
    """What a list shows of a run that is done, from the last line of its journal alone; None for any other."""
    if last is None or not isinstance(last.event, e.RunFinished):
        return None
    seconds = last.event.result.get("seconds")
    worked = float(seconds) if isinstance(seconds, int | float) else 0.0
    return reduce(RunState(earlier_seconds=worked), last)


def reduce(state: RunState, record: e.Record) -> RunState:
    """The state after one more record."""
    return replace(_apply(record.event, state, record.time), updated=record.time, last_seq=record.seq)


@singledispatch
def _apply(event: e.Event, state: RunState, time: float) -> RunState:
    return state


@_apply.register
def _(event: e.RunStarted, state: RunState, time: float) -> RunState:
    last = state.paused or state.updated
    worked = last - state.started if state.started and last else 0.0
    earlier = state.earlier_seconds + max(0.0, worked)
    return replace(
        state, run=event, started=time, earlier_seconds=earlier, phase=Phase.STARTING, error=None, current_block=None,
        paused=None,
    )  # fmt: skip


@_apply.register
def _(event: e.Queued, state: RunState, time: float) -> RunState:
    return replace(state, phase=Phase.QUEUED, ahead=event.ahead, error=None)


@_apply.register
def _(event: e.Paused, state: RunState, time: float) -> RunState:
    return replace(state, paused=time)


@_apply.register
def _(event: e.Continued, state: RunState, time: float) -> RunState:
    """The clocks go on where they stood."""
    if state.paused is None:
        return state
    still = time - state.paused
    started, block_started = state.started, state.block_started
    return replace(
        state, paused=None, started=started + still if started is not None else None,
        block_started=block_started + still if block_started is not None else None,
    )  # fmt: skip


@_apply.register
def _(event: e.DownloadProgress, state: RunState, time: float) -> RunState:
    return replace(state, phase=Phase.DOWNLOADING, progress=event)


@_apply.register
def _(event: e.PlanReady, state: RunState, time: float) -> RunState:
    layers = []
    for linear in event.linears:
        key = (int(linear["block"]), str(linear["name"]))
        shape = int(linear["out_features"]), int(linear["in_features"])
        layer = state.layers.get(key) or LayerState(*key, *shape)
        layers.append(replace(layer, bits=linear.get("bits"), group_size=linear.get("group_size")))
    return replace(state, plan=event, layers=Layers(layers), phase=Phase.CALIBRATING, progress=None)


@_apply.register
def _(event: e.CalibrationReady, state: RunState, time: float) -> RunState:
    return replace(state, calibration=event)


@_apply.register
def _(event: e.PhaseProgress, state: RunState, time: float) -> RunState:
    phases = {"writing": Phase.WRITING, "verifying": Phase.VERIFYING, "calibrating": Phase.CALIBRATING}
    return replace(state, phase=phases.get(event.phase, state.phase), progress=event)


@_apply.register
def _(event: e.BlockStarted, state: RunState, time: float) -> RunState:
    """A block begun anew after a crash forgets what the dead process had found in it."""
    fallbacks = tuple(item for item in state.fallbacks if item.block != event.block)
    return replace(
        state, phase=Phase.QUANTIZING, current_block=event.block, block_started=time, progress=None,
        layers=state.layers.forgetting(event.block), block_folds={**state.block_folds, event.block: ()},
        fallbacks=fallbacks,
    )  # fmt: skip


@_apply.register
def _(event: e.FoldTested, state: RunState, time: float) -> RunState:
    """A later refusal takes back an earlier proof: the fold was undone."""
    others = tuple(fold for fold in state.block_folds.get(event.block, ()) if fold.consumers != event.consumers)
    folds = (*others, event) if event.accepted else others
    return replace(state, block_folds={**state.block_folds, event.block: folds})


@_apply.register
def _(event: e.ScaleChosen, state: RunState, time: float) -> RunState:
    known = [layer for name in event.consumers if (layer := state.layers.get((event.block, name)))]
    layers = state.layers.changed(event.block, [replace(layer, scale=event) for layer in known])
    return replace(state, layers=layers)


@_apply.register
def _(event: e.LinearQuantized, state: RunState, time: float) -> RunState:
    key = (event.block, event.name)
    layer = state.layers.get(key) or LayerState(*key, event.out_features, event.in_features)
    memory = state.memory
    if event.host_bytes or event.device_bytes:
        memory = (*memory, (event.host_bytes, event.device_bytes))[-REMEMBERED:]
    layers = state.layers.changed(event.block, [replace(layer, quantized=event)])
    return replace(state, layers=layers, memory=memory)


@_apply.register
def _(event: e.BlockFellBack, state: RunState, time: float) -> RunState:
    """The block starts over with plain rounding: what was found in it no longer holds."""
    return replace(state, fallbacks=(*state.fallbacks, event), layers=state.layers.forgetting(event.block))


@_apply.register
def _(event: e.BlockFinished, state: RunState, time: float) -> RunState:
    return replace(state, blocks={**state.blocks, event.block: event})


@_apply.register
def _(event: e.Warned, state: RunState, time: float) -> RunState:
    known = event.message in state.warnings
    return state if known else replace(state, warnings=(*state.warnings, event.message))


@_apply.register
def _(event: e.Verified, state: RunState, time: float) -> RunState:
    return replace(state, verified=event)


@_apply.register
def _(event: e.RunFinished, state: RunState, time: float) -> RunState:
    return replace(state, phase=Phase.DONE, result=event.result, error=None)


@_apply.register
def _(event: e.RunCancelled, state: RunState, time: float) -> RunState:
    return replace(state, phase=Phase.CANCELLED)


@_apply.register
def _(event: e.RunFailed, state: RunState, time: float) -> RunState:
    return replace(state, phase=Phase.FAILED, error=event)
