"""A run as plain lines of text, for terminals without the app, log files and pipes.

`ProgressLines` is a pure function of the records it is given: how often a phase may speak is decided by the records'
own times, so a journal replayed tomorrow gives the same lines as the live run did.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from subprocess import Popen

from awq_engine import events as e
from awq_engine.format import count, duration, loss, size, times
from awq_engine.runs import Run
from awq_engine.sanitize import one_line
from awq_engine.state import RunState, reduce

INTERVAL = 5.0
"""Seconds between two lines of the same phase."""
POLL = 0.1
"""Seconds between two looks at a growing journal."""


def follow(run: Run, engine: Popen[bytes] | None = None) -> Iterator[e.Record | None]:
    """Every record of the run's journal, and None at every look that found nothing, until no engine works on it.

    The lock is looked at before the journal, so what a dead engine still wrote is not missed. `engine` is
    waited for at the end, to spare a zombie.
    """
    reader = run.reader()
    while True:
        running = run.is_locked()
        yield from reader.read()
        if not running:
            if engine is not None:
                engine.wait()
            return
        yield None
        time.sleep(POLL)


class ProgressLines:
    """Turns records into lines, and keeps the state they lead to."""

    def __init__(self) -> None:
        self.state = RunState()
        self._spoke: tuple[str, float] = ("", float("-inf"))

    def lines(self, record: e.Record) -> list[str]:
        """What to print now that `record` came; often nothing."""
        self.state = reduce(self.state, record)
        return [one_line(line) for line in self._describe(record)]

    def _describe(self, record: e.Record) -> list[str]:
        match record.event:
            case e.Paused():
                return ["paused"]
            case e.Continued():
                return ["going on"]
            case e.Queued() as event:
                return [f"queued behind {event.ahead} other run{'s' if event.ahead > 1 else ''}"]
            case e.RunStarted() as event:
                return [_started(event)]
            case e.PlanReady() as event:
                return [_plan(event)]
            case e.CalibrationReady() as event:
                return _calibration(event)
            case e.DownloadProgress() as event:
                return self._throttled("downloading", record.time, _download(event))
            case e.PhaseProgress() as event:
                return self._throttled(event.phase, record.time, _phase(event))
            case e.BlockFinished() as event:
                return [self._block(event, record.time)]
            case e.BlockFellBack() as event:
                unit = self.state.unit(event.block).partition("/")[0]
                return [f"{unit} keeps plain rounding: {event.reason}"]
            case e.Warned() as event:
                return [f"warning: {event.message}"]
            case e.Verified() as event:
                difference = loss(event.max_logit_difference)
                return [f"verified on {event.tokens} tokens: logits read back differ by at most {difference}"]
            case _:
                return []

    def _throttled(self, phase: str, now: float, line: str) -> list[str]:
        spoken, when = self._spoke
        if spoken == phase and now - when < INTERVAL:
            return []
        self._spoke = (phase, now)
        return [line]

    def _block(self, event: e.BlockFinished, now: float) -> str:
        total = self.state.n_blocks
        ratio = times(event.loss_final / event.loss_rounding) if event.loss_rounding > 0 else "-"
        left = self.state.eta(now)
        eta = f"  {duration(left)} left" if left is not None and len(self.state.blocks) < total else ""
        return (
            f"{self.state.unit(event.block)}  loss {loss(event.loss_rounding)} -> {loss(event.loss_final)} ({ratio})  "
            f"{event.seconds:.1f} s{eta}"
        )


def _started(event: e.RunStarted) -> str:
    torch = event.versions.get("torch", "?")
    resumed = f", {event.resumed_blocks} blocks done before" if event.resumed_blocks else ""
    return f"run {event.run_id}  engine {event.pid} on {event.device}, torch {torch}{resumed}"


def _plan(event: e.PlanReady) -> str:
    skipped = f", {len(event.skipped)} kept as they are" if event.skipped else ""
    head = " and the head" if any(linear["block"] == event.n_blocks for linear in event.linears) else ""
    return (
        f"{event.model_type} with {count(event.parameters)} parameters: {len(event.linears)} linears in "
        f"{event.n_blocks} blocks{head}{skipped}; {size(event.bytes_before)} -> {size(event.bytes_after)}, "
        f"{event.bits_per_weight:.2f} bits per weight"
    )


def _calibration(event: e.CalibrationReady) -> list[str]:
    """A line for the whole, and one for each source when there are several."""
    counting = "" if event.weighted_tokens is None else f", {event.weighted_tokens} of them in answers"
    whole = f"calibration {event.source}: {event.sequences} x {event.seq_len} tokens{counting}"
    if len(event.sources) < 2:
        return [f"{whole}{_use(event.sources[0]) if event.sources else ''}"]
    return [whole, *(f"  {use['source']}: {use['sequences']} sequences{_use(use)}" for use in event.sources)]


def _use(use: e.TextUse) -> str:
    """What of a source was used, and what was not."""
    cut = f", {use['documents_cut']} of them cut" if use["documents_cut"] else ""
    dropped = f"; {use['dropped_tokens']} tokens not used" if use["dropped_tokens"] else ""
    detail = f"; {use['detail']}" if use["detail"] else ""
    return f" from {use['documents_used']} of {use['documents']} documents{cut}{dropped}{detail}"


def _phase(event: e.PhaseProgress) -> str:
    written = size if event.phase == "writing" else str
    return f"{event.phase} {written(event.done)} of {written(event.total)}"


def _download(event: e.DownloadProgress) -> str:
    percent = f" ({event.done_bytes * 100 // event.total_bytes} %)" if event.total_bytes else ""
    return f"downloading {event.file} {size(event.done_bytes)} of {size(event.total_bytes)}{percent}"
