"""One layer in full: the search's curve, the channel scales' histogram, their statistics and the loss after each step.

The run screen shows a `LayerState` that may still be in the making, the inspect screen a `LayerRow` from a report; both
become a `LayerView`, so there is one way to draw a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Static

from awq_engine.report import LayerRow, layer_row
from awq_engine.sanitize import plain
from awq_engine.state import LayerState
from awq_engine import format as fmt
from awq_tui.widgets.alpha_curve import AlphaCurve
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.histogram import Histogram


@dataclass(frozen=True)
class LayerView:
    """What the detail shows of one layer."""

    title: str
    curve: Sequence[Sequence[float]] = ()
    histogram: Mapping[str, Any] | None = None
    statistics: Mapping[str, float | None] = field(default_factory=dict)
    """Named as in `LayerRow`; empty when no channel scale was chosen."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """Output MSE by step; empty while the layer waits."""
    weight_change: float | None = None
    output_change: float | None = None
    note: str = ""
    """Why something is missing."""

    @classmethod
    def of_state(cls, layer: LayerState) -> LayerView:
        """A layer of a run, whatever is known of it so far."""
        if (row := layer_row(layer)) is not None:
            return cls.of_row(row)
        title = _title(layer.block, layer.name, layer.out_features, layer.in_features)
        if layer.scale is None:
            return cls(title, note="Not quantized yet.")
        scale = layer.scale
        note = "Channel scale chosen; the weights are being rounded."
        return cls(title, scale.curve, scale.histogram, scale.statistics, note=note)

    @classmethod
    def of_row(cls, row: LayerRow) -> LayerView:
        """A finished layer."""
        names = ("mean", "max", "min", "std", "max_over_mean", "share_above_2x", "share_above_5x", "share_below_half")
        statistics = {} if row.mean is None else {name: getattr(row, name) for name in names}
        note = "" if statistics else "No fold reaches this layer, so its channels keep their scale."
        title = _title(row.block, row.name, row.out_features, row.in_features)
        return cls(title, row.curve, row.histogram, statistics, row.losses, row.weight_change, row.output_change, note)


class LayerDetail(Vertical):
    """The pane that shows a `LayerView`."""

    DEFAULT_CSS = """
    LayerDetail {
        & > #layer-title { height: 1; text-style: bold; text-wrap: nowrap; text-overflow: ellipsis; }
        & > #layer-plots { height: 1fr; }
        & > #layer-statistics, & > #layer-losses { height: auto; }
        & AlphaCurve { margin-right: 1; }
    }
    """

    def compose(self) -> ComposeResult:
        yield Static(id="layer-title", markup=False)
        with Horizontal(id="layer-plots"):
            yield AlphaCurve(id="layer-curve")
            yield Histogram(id="layer-histogram")
        yield Static(id="layer-statistics", markup=False)
        yield Static(id="layer-losses", markup=False)

    def show(self, view: LayerView) -> None:
        """Draw a layer."""
        self.query_one("#layer-title", Static).update(view.title)
        self.query_one(AlphaCurve).show(view.curve)
        self.query_one(Histogram).show(view.histogram)
        self.query_one("#layer-statistics", Static).update(statistics_line(view))
        self.query_one("#layer-losses", Static).update(losses_line(view))


def statistics_line(view: LayerView) -> str:
    """`mean 1.09  max 6.87 ...`, and the note when there is one."""
    known = view.statistics
    if not known:
        return view.note
    numbers = [f"{name} {fmt.number(known.get(name))}" for name in ("mean", "max", "min", "std")]
    shares = [
        f"max/mean {fmt.times(known.get('max_over_mean'))}",
        f">2x {fmt.share(known.get('share_above_2x'))}",
        f">5x {fmt.share(known.get('share_above_5x'))}",
        f"<0.5x {fmt.share(known.get('share_below_half'))}",
    ]
    return "  ".join([*numbers, *shares, view.note]).rstrip()


def losses_line(view: LayerView) -> Content:
    """`rounding 4.1e-4 → scale 2.6e-4 → clip 2.4e-4 (0.58x)`, with what happened to weights and output."""
    steps = list(view.losses.items())
    if not steps:
        return Content("")
    chars = glyphs()
    chain = f" {chars.arrow} ".join(f"{plain(name)} {fmt.loss(loss)}" for name, loss in steps)
    first, last = steps[0][1], steps[-1][1]
    ratio = last / first if first > 0 else None
    style = "$text-success" if ratio is not None and ratio < 1 else "$text-warning"
    errors = (
        f"  {chars.delta}weight {fmt.change(view.weight_change)}  {chars.delta}output {fmt.change(view.output_change)}"
    )
    return Content.assemble("output loss: ", chain, (f"  ({fmt.times(ratio)})", style), errors)


def _title(block: int, name: str, out_features: int, in_features: int) -> str:
    return f"block {block} {glyphs().dot} {plain(name)}  {out_features} x {in_features}"
