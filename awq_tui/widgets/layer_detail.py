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
from textual.widgets import Static

from awq_engine import format as fmt
from awq_engine.report import LayerRow, layer_row
from awq_engine.sanitize import one_line
from awq_engine.state import LayerState
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
        note = "" if statistics else "Its channels keep their scale: no fold reaches it, or its block fell back."
        title = _title(row.block, row.name, row.out_features, row.in_features)
        return cls(title, row.curve, row.histogram, statistics, row.losses, row.weight_change, row.output_change, note)


class LayerDetail(Vertical):
    """The pane that shows a `LayerView`."""

    DEFAULT_CSS = """
    LayerDetail {
        & > #layer-title { height: 1; text-style: bold; text-wrap: nowrap; text-overflow: ellipsis; }
        & > #layer-plots { height: 1fr; }
        & > #layer-numbers { height: auto; }
        & AlphaCurve { margin-right: 1; }
    }
    """

    _view: LayerView | None = None

    def compose(self) -> ComposeResult:
        yield Static(id="layer-title", markup=False)
        with Horizontal(id="layer-plots"):
            yield AlphaCurve(id="layer-curve")
            yield Histogram(id="layer-histogram")
        yield Static(id="layer-numbers", markup=False)

    def show(self, view: LayerView) -> None:
        """Draw a layer."""
        if view == self._view:
            return
        self._view = view
        self.query_one("#layer-title", Static).update(view.title, layout=False)
        self.query_one(AlphaCurve).show(view.curve)
        self.query_one(Histogram).show(view.histogram)
        self.query_one("#layer-plots").visible = bool(view.losses or view.curve)  # before, there is nothing to miss
        self._show_numbers()

    def on_resize(self) -> None:
        self._show_numbers()

    def _show_numbers(self) -> None:
        if self._view is not None:
            lines = [*fit_parts(statistics(self._view), self.content_size.width), *self._loss_lines(self._view)]
            numbers = self.query_one("#layer-numbers", Static)
            numbers.update("\n".join(lines), layout=len(lines) != numbers.size.height)

    def _loss_lines(self, view: LayerView) -> list[str]:
        return fit_parts(loss_chain(view), self.content_size.width, " ")


def statistics(view: LayerView) -> list[str]:
    """`mean 1.09`, `max 6.87`, ..., and the note when there is one."""
    known = view.statistics
    note = [view.note] if view.note else []
    if not known:
        return note
    return [
        *(f"{name} {fmt.number(known.get(name))}" for name in ("mean", "max", "min", "std")),
        f"max/mean {fmt.times(known.get('max_over_mean'))}",
        f">2x {fmt.share(known.get('share_above_2x'))}",
        f">5x {fmt.share(known.get('share_above_5x'))}",
        f"<0.5x {fmt.share(known.get('share_below_half'))}",
        *note,
    ]


def loss_chain(view: LayerView) -> list[str]:
    """`rounding 4.1e-4`, `→ scale 2.6e-4`, ..., the ratio of the last to the first, and what weights and output got."""
    steps = [(one_line(name), loss) for name, loss in view.losses.items()]
    if not steps:
        return []
    chars = glyphs()
    first, last = steps[0][1], steps[-1][1]
    return [
        f"{steps[0][0]} {fmt.loss(first)}",
        *(f"{chars.arrow} {name} {fmt.loss(loss)}" for name, loss in steps[1:]),
        f"({fmt.times(last / first if first > 0 else None)})",
        f" {chars.delta}weight {fmt.change(view.weight_change)}",
        f" {chars.delta}output {fmt.change(view.output_change)}",
    ]


def fit_parts(parts: Sequence[str], width: int, gap: str = "  ") -> list[str]:
    """Lines of at most `width` cells where no part is broken, unless it is longer than a line by itself."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(gap) + len(part) <= width:
            lines[-1] += gap + part
        else:
            lines.append(part.lstrip())
    return lines


def _title(block: int, name: str, out_features: int, in_features: int) -> str:
    return f"block {block} {glyphs().dot} {one_line(name)}  {out_features}x{in_features}"
