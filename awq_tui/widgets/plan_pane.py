"""What pressing start will give and cost, and what stands in its way."""

from __future__ import annotations

from textual.content import Content
from textual.widgets import Static

from awq_engine.format import duration, size
from awq_engine.sanitize import one_line, plain
from awq_tui.draft import Review
from awq_tui.machine import Machine


class PlanPane(Static):
    """Drawn from one `Review`."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)

    def show(self, review: Review, machine: Machine | None) -> None:
        self.update(Content("\n").join([*_forecast(review, machine), *_verdict(review)]))


def _forecast(review: Review, machine: Machine | None) -> list[Content]:
    forecast = review.forecast
    if forecast is None:
        text = "Size, memory and time are known once the model is here; the run downloads it first."
        return [Content.styled(text, "dim"), *_output(review)] if review.config else []
    host = f" of {size(machine.host.total)}" if machine else ""
    return [
        Content(f"{forecast.n_linears} linears in {forecast.n_blocks} blocks; all other tensors are kept"),
        _figure("size", f"{size(forecast.bytes_before)} → {size(forecast.bytes_after)}"),
        _figure("weights", f"{forecast.bits_per_weight:.2f} bits each"),
        _figure("memory", f"about {size(forecast.peak_host_bytes)} at the peak{host}"),
        _figure("time", f"about {duration(forecast.seconds)}"),
        Content.styled(f"         {plain(forecast.speed.source)}", "dim"),
        *_output(review),
    ]


def _output(review: Review) -> list[Content]:
    return [_figure("output", one_line(review.config.output))] if review.config else []


def _figure(name: str, value: str) -> Content:
    return Content.assemble((f"{name:<9}", "dim"), (value, "bold"))


def _verdict(review: Review) -> list[Content]:
    lines = [Content.styled(f"⚠ {plain(warning)}", "$text-warning") for warning in review.warnings]
    lines += [Content.styled(f"✗ {plain(problem)}", "$text-error") for problem in review.problems.values()]
    if review.ready:
        lines.append(Content.styled("✓ Ready: ctrl+s starts it.", "$text-success bold"))
    return lines
