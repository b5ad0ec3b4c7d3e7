"""What pressing start will give and cost, and what stands in its way."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from awq_engine.estimate import Estimate
from awq_engine.format import duration, size
from awq_engine.paths import shown_path
from awq_engine.sanitize import one_line, plain
from awq_tui.draft import Review
from awq_tui.ellipsis import shorten
from awq_tui.machine import Machine

NAME_WIDTH = 9


class PlanPane(Static):
    """Drawn from one `Review`."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)
        self._shown: tuple[Review, Machine | None] | None = None

    def show(self, review: Review, machine: Machine | None) -> None:
        """The verdict first, because a low terminal shows only the first lines."""
        self._shown = review, machine
        self.on_resize()

    def on_resize(self) -> None:
        if self._shown is not None:
            review, machine = self._shown
            self.update(Content("\n").join([*_verdict(review), *_forecast(review, machine, self.size.width)]))


def _forecast(review: Review, machine: Machine | None, width: int) -> list[Content]:
    forecast = review.forecast
    room = max(1, width - NAME_WIDTH)
    output = [_figure("output", shorten(one_line(shown_path(review.config.output)), room))] if review.config else []
    if forecast is None:
        text = "Size, memory and time are known once the model is here; the run downloads it first."
        return [Content.styled(text, "dim"), *output] if review.config else []
    time, source = f"about {duration(forecast.seconds)}", one_line(forecast.speed.source)
    head = " and the head" if review.config and review.config.lm_head else ""
    fits = len(time) + 2 + len(source) <= room
    return [
        Content(f"{forecast.n_linears} linears in {forecast.n_blocks} blocks{head}; the rest is kept"),
        _figure("size", f"{size(forecast.bytes_before)} → {size(forecast.bytes_after)}"),
        _figure("weights", f"{forecast.bits_per_weight:.2f} bits each"),
        _figure("memory", f"about {size(forecast.peak_host_bytes)}", f", {_host(machine)}"),
        *_of_gpu(forecast, review, machine),
        _figure("time", time, f", {source}" if fits else ""),
        *([] if fits else [_figure("", "", shorten(source, room))]),
        *output,
    ]


def _of_gpu(forecast: Estimate, review: Review, machine: Machine | None) -> list[Content]:
    if machine is None or machine.gpu is None or (review.config and review.config.device == "cpu"):
        return []
    free = size(machine.gpu.memory.free)
    return [_figure("GPU", f"about {size(forecast.device_bytes)}", f", {free} are free")]


def _host(machine: Machine | None) -> str:
    return f"{size(machine.host.free)} are free" if machine else "host unknown"


def _figure(name: str, value: str, note: str = "") -> Content:
    return Content.assemble((f"{name:<{NAME_WIDTH}}", "dim"), (value, "bold"), (note, "dim"))


def _verdict(review: Review) -> list[Content]:
    lines = [Content.styled(f"✗ {plain(problem)}", "$text-error") for problem in review.problems.values()]
    if review.ready:
        lines.append(Content.styled("✓ Ready: ctrl+s starts it.", "$text-success bold"))
    return [*lines, *(Content.styled(f"⚠ {plain(warning)}", "$text-warning") for warning in review.warnings)]
