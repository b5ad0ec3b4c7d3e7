"""Everything an engine says while it works: one frozen dataclass per event.

The journal stores each event as one JSON object per line, `{"seq": 7, "time": 1.5e9, "kind": "block_started", ...}`;
`kind` is the class name in snake case. Readers skip kinds they do not know, so a newer engine does not break an older
screen. Losses are mean squared errors of a linear's (or block's) output. Standard library only: the app imports this.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict

from awq_engine.shapes import check_of, field_checks


@dataclass(frozen=True)
class Event:
    """Base of all events. `durable` events are flushed to disk before the engine goes on."""

    durable: ClassVar[bool] = True

    @classmethod
    def kind(cls) -> str:
        """The event's name in the journal: `BlockStarted` -> `block_started`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True)
class RunStarted(Event):
    """An engine process took the run's lock; a resumed run has several of these."""

    run_id: str
    config: dict[str, Any]
    versions: dict[str, str]
    pid: int
    host: str
    device: str
    resumed_blocks: int = 0
    """Blocks that earlier processes had finished."""


@dataclass(frozen=True)
class Queued(Event):
    """The engine waits until no other run is at work."""

    durable: ClassVar[bool] = False
    ahead: int
    """Runs that come first."""


@dataclass(frozen=True)
class Paused(Event):
    """The engine lies still, as it was asked to."""


@dataclass(frozen=True)
class Continued(Event):
    """The pause is over."""


@dataclass(frozen=True)
class DownloadProgress(Event):
    durable: ClassVar[bool] = False
    done_bytes: int
    total_bytes: int
    file: str = ""


class LinearShape(TypedDict):
    """Which linear, and how large."""

    block: int
    name: str
    """Inside the block."""
    out_features: int
    in_features: int


class PlannedLinear(LinearShape, total=False):
    """One linear of a plan; journals of older versions have only its shape."""

    bits: int
    group_size: int
    marlin_refuses: list[int]
    """Tensor parallel sizes at which vLLM's Marlin kernel does not take it."""


class TextUse(TypedDict):
    """One source of a calibration's text: `calibration.SourceUse`."""

    source: str
    sequences: int
    documents: int
    documents_used: int
    documents_cut: int
    dropped_tokens: int
    detail: str
    tokens: int
    weighted_tokens: int


class Bins(TypedDict):
    """A histogram of a channel scale."""

    low: float
    """log10; so is `high`."""
    high: float
    counts: list[int]
    """In equal bins."""


@dataclass(frozen=True)
class PlanReady(Event):
    """What will be quantized, what not and why, before any work."""

    model: str
    model_type: str
    parameters: int
    n_blocks: int
    linears: list[PlannedLinear]
    """Of every block."""
    skipped: list[list[str]]
    """[name, reason] of linears that stay as they are."""
    bytes_before: int
    bytes_after: int
    """Estimated size of the output's weights."""
    bits_per_weight: float
    """Of the linears that are quantized or left out by an override, scales and zero points included."""
    peak_host_bytes: int
    """Estimated."""
    output: str
    warnings: list[str] = field(default_factory=list)
    """Sentences on what works here, but not everywhere."""
    host_total_bytes: int = 0
    """Memory of the machine; 0 where it does not say."""
    device_total_bytes: int = 0
    """Of the GPU that works; 0 on a CPU."""


@dataclass(frozen=True)
class CalibrationReady(Event):
    source: str
    sequences: int
    seq_len: int
    tokens: int
    dropped_tokens: int = 0
    """Tokens of the text that were not used."""
    detail: str = ""
    sources: list[TextUse] = field(default_factory=list)
    """For each source of the text, what of it was read, used, cut and dropped."""
    weighted_tokens: int | None = None
    """Tokens that count, when only answers do."""


@dataclass(frozen=True)
class PhaseProgress(Event):
    """Work inside a phase: `calibrating`, `measuring`, `replaying`, `writing`, `verifying`."""

    durable: ClassVar[bool] = False
    phase: str
    done: int
    total: int


@dataclass(frozen=True)
class BlockStarted(Event):
    block: int
    name: str
    """Its name in the model, e.g. `model.layers.3`."""


@dataclass(frozen=True)
class FoldTested(Event):
    """A producer and the linears that read it were probed: does folding a channel scale keep the function?"""

    block: int
    producer: str
    consumers: list[str]
    accepted: bool
    error: float
    """What is left of the disturbance that scaling only the consumers causes; 0 is a perfect fold, 1 is none."""
    reason: str = ""


@dataclass(frozen=True)
class ScaleChosen(Event):
    """The AWQ search picked the channel scale of one fold."""

    block: int
    producer: str
    consumers: list[str]
    alpha: float
    duo: bool
    """Whether the weights' own magnitude divides the scale."""
    curve: list[list[float]]
    """[alpha, loss] for each grid point, the better of both forms; loss as MSE of the consumers' outputs."""
    loss_before: float
    """With the identity scale."""
    loss_after: float
    statistics: dict[str, float]
    """mean, max, min, std, max_over_mean, share_above_2x, share_above_5x, share_below_half (of the mean)."""
    histogram: Bins


@dataclass(frozen=True)
class LinearQuantized(Event):
    block: int
    name: str
    out_features: int
    in_features: int
    losses: dict[str, float]
    """Output MSE after each step in order: rounding, scale, clip, then later steps; the last is what was written."""
    weight_mse_rounding: float
    weight_mse_final: float
    clipped_share: float
    """Share of groups whose range was shrunk."""
    seconds: float
    alpha: float | None = None
    """None when no fold reaches this linear."""
    tokens: int | None = None
    """Calibration tokens that this linear read: an expert's are those sent to it."""
    host_bytes: int = 0
    """Memory that the engine held at this moment; so is `device_bytes`."""
    device_bytes: int = 0


@dataclass(frozen=True)
class BlockFellBack(Event):
    """The block was better off with plain rounding."""

    block: int
    reason: str
    loss_rounding: float
    loss_quantized: float


@dataclass(frozen=True)
class BlockFinished(Event):
    """The block's tensors are on disk."""

    block: int
    loss_rounding: float
    """MSE of the block's output under plain rounding of the original weights."""
    loss_final: float
    seconds: float
    file: str
    sha256: str
    peak_host_bytes: int
    peak_device_bytes: int = 0


@dataclass(frozen=True)
class Warned(Event):
    message: str


@dataclass(frozen=True)
class Verified(Event):
    """The written checkpoint was read back and gave the logits it should."""

    max_logit_difference: float
    tokens: int


@dataclass(frozen=True)
class RunFinished(Event):
    """The output folder is complete under its final name."""

    result: dict[str, Any]
    """What `quantize --json` prints."""


@dataclass(frozen=True)
class RunCancelled(Event):
    blocks_done: int


@dataclass(frozen=True)
class RunFailed(Event):
    message: str
    exit_code: int


LATEST = 1e11
"""Unix time in seconds, some 3,000 years from now."""
EVENTS: dict[str, type[Event]] = {cls.kind(): cls for cls in Event.__subclasses__()}


@dataclass(frozen=True)
class Record:
    """An event as journalled."""

    seq: int
    """Counts from 1 without gaps over the whole life of the run."""
    time: float
    """Unix time in seconds."""
    event: Event = field()

    def to_json(self) -> dict[str, Any]:
        fields = {f.name: getattr(self.event, f.name) for f in dataclasses.fields(self.event)}
        return {"seq": self.seq, "time": round(self.time, 3), "kind": self.event.kind(), **fields}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Record | None:
        """Read a journal line; None for kinds or fields this version cannot read."""
        event_class = EVENTS.get(str(data.get("kind")))
        seq, time = data.get("seq"), data.get("time")
        if event_class is None or type(seq) is not int or not _is_time(time):
            return None
        checks = field_checks(event_class)
        fields = {key: value for key, value in data.items() if key in checks}
        if not all(checks[key](value) for key, value in fields.items()):
            return None
        try:
            return cls(seq, float(data["time"]), event_class(**fields))
        except TypeError:  # a field is missing
            return None


def _is_time(value: Any) -> bool:
    return check_of(float)(value) and math.isfinite(value) and 0 <= value < LATEST
