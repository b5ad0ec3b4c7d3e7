"""How fast a result is on this machine: how it writes, and a line for every product that was timed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.content import Content
from textual.widgets import Static

from awq_engine.sanitize import one_line
from awq_engine.speeds import Product, Speeds
from awq_tui.widgets.glyphs import glyphs
from awq_tui.widgets.progress_bar import bar

if TYPE_CHECKING:
    from awq_tui.results import ResultRow

BAR = 30
HEADING = f"{'outputs':>8}{'inputs':>8}{'bits':>6}{'tokens':>8}{'time':>11}{'GB/s':>8}{'of copy':>9}{'vs floats':>11}"


class SpeedPane(Static):
    """Drawn from one row of the comparison."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, markup=False)

    def show(self, row: ResultRow | None) -> None:
        """What was measured last, under how the measurement stands that goes on now."""
        if row is None:
            self.update("")
            return
        lines = [*_standing(row), *(_found(row.speeds) if row.speeds else [])]
        self.update(Content("\n").join(lines or [Content.styled("b times this result on this machine", "dim")]))


def _standing(row: ResultRow) -> list[Content]:
    now = row.timing
    if now.going_on:
        text = bar(now.done / now.total, BAR, glyphs()) if now.total else f"loading{glyphs().ellipsis}"
        return [Content.assemble("timing  ", (text, "$primary"))]
    return [Content.styled(f"{glyphs().failed} {one_line(now.error)}", "$text-error")] if now.error else []


def _found(speeds: Speeds) -> list[Content]:
    lines = []
    if writing := speeds.writing:
        figure = f"{writing.tokens_per_second:.1f} tokens/s"
        rest = f"  first after {writing.seconds_to_first_token:.2f} s, {one_line(writing.decoding)}"
        lines.append(Content.assemble("writes  ", (figure, "bold $accent"), rest))
    machine = f"{one_line(speeds.device)} copies {speeds.copy_bytes_per_second / 1e9:.1f} GB/s"
    lines.append(Content.styled(f"{one_line(speeds.backend)} on {machine}", "dim"))
    return [*lines, Content.styled(HEADING, "bold"), *(Content(_cells(product)) for product in speeds.products)]


def _cells(product: Product) -> str:
    return (
        f"{product.out_features:>8}{product.in_features:>8}{product.bits:>6}{product.tokens:>8}"
        f"{1e6 * product.seconds:>8.1f} us{product.bytes_per_second / 1e9:>8.1f}"
        f"{100 * product.share_of_copy:>7.0f} %{product.times_floats:>10.2f}x"
    )
