"""Draw the figures of docs/how-it-works.md from a run's own statistics, as SVG for light and dark pages.

awq-tui demo
python scripts/draw_figures.py ~/.local/share/awq-tui/demo/demo-model-AWQ-W4-G128
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
WIDTH, HEIGHT, MARGIN = 640, 280, 44
"""Pixels; the margin is for the axes' words."""
GREY, COLOURS = "#808080", ("#2a9d8f", "#e08a3c", "#7a6fd0", "#c2577a")
"""To be told from white and from black."""
STEPS = ("rounding", "scale", "clip", "feedback")


@dataclass
class Figure:
    """Lines and bars over values from 0 to `high`, along `labels` of the other axis at shares of its length."""

    title: str
    high: float
    labels: Sequence[tuple[float, str]]
    shapes: list[str] = field(default_factory=list)

    def at(self, along: float, value: float) -> tuple[float, float]:
        """Pixels of a point: `along` is a share of the width."""
        return MARGIN + along * (WIDTH - 2 * MARGIN), HEIGHT - MARGIN - value / self.high * (HEIGHT - 2 * MARGIN)

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.at(*point) for point in points))
        self.shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')

    def dot(self, along: float, value: float, colour: str) -> None:
        x, y = self.at(along, value)
        self.shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')

    def bar(self, along: float, value: float, width: float, colour: str) -> None:
        (x, y), (_, bottom) = self.at(along, value), self.at(along, 0)
        wide = width * (WIDTH - 2 * MARGIN)
        self.shapes.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{bottom - y:.1f}" fill="{colour}"/>'
        )

    def legend(self, names: Sequence[str]) -> None:
        for number, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
            along = (number + 0.5) / len(names)
            self.shapes.append(_text(self.at(along, 0)[0], MARGIN - 6, name, "middle", colour))

    def save(self, path: Path) -> None:
        (left, bottom), (right, _) = self.at(0, 0), self.at(1, 0)
        frame = f'<line x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="{GREY}"/>'
        marks = [_text(self.at(along, 0)[0], bottom + 18, words, "middle") for along, words in self.labels]
        levels = [_text(left - 6, self.at(0, share * self.high)[1] + 4, f"{share * self.high:.3g}", "end")
                  for share in (0, 0.5, 1)]  # fmt: skip
        path.write_text(
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            f'font-size="12">\n{_text(WIDTH / 2, 20, self.title, "middle")}\n'
            + "\n".join([frame, *marks, *levels, *self.shapes])
            + "\n</svg>\n",
            encoding="utf-8",
        )


def _text(x: float, y: float, words: str, anchor: str, colour: str = GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{escape(words)}</text>'


def alpha(layers: list[dict[str, Any]]) -> Figure:
    """The search of alpha for linears of one block, over the loss at alpha 0; the dot is what was chosen."""
    chosen = [layer for layer in layers if layer["block"] == 0 and layer["alpha"] is not None][-len(COLOURS) :]
    curves = [[(a, loss / layer["curve"][0][1]) for a, loss in layer["curve"]] for layer in chosen]
    high = 2.0
    figure = Figure("output loss over that without scales, along alpha", high, [(a, f"{a:g}") for a in (0, 0.5, 1)])
    for layer, curve, colour in zip(chosen, curves, COLOURS, strict=False):
        figure.line([(a, min(value, high)) for a, value in curve], colour)
        figure.dot(*min(curve, key=lambda point: abs(point[0] - layer["alpha"])), colour)
    figure.legend([layer["name"] for layer in chosen])
    return figure


def scales(layers: list[dict[str, Any]]) -> Figure:
    """The channel scales that reach furthest from 1."""
    widest = max((layer for layer in layers if layer["histogram"]["counts"]), key=lambda layer: layer["max_over_mean"])
    histogram = widest["histogram"]
    counts, low, high = histogram["counts"], histogram["low"], histogram["high"]
    figure = Figure(
        f"channels by scale, block {widest['block']} {widest['name']}", max(counts),
        [(share, f"{10 ** (low + share * (high - low)):.2g}x") for share in (0, 0.5, 1)],
    )  # fmt: skip
    for number, count in enumerate(counts):
        figure.bar(number / len(counts), count, 0.8 / len(counts), COLOURS[0])
    return figure


def steps(layers: list[dict[str, Any]]) -> Figure:
    """What is left of the loss of plain rounding after every step, by type of linear."""
    roles = list(dict.fromkeys(layer["role"] for layer in layers))
    middle = [((number + 0.5) / len(roles), role) for number, role in enumerate(roles)]
    figure = Figure("output loss after each step, over plain rounding's", 1.2, middle)
    wide = 0.8 / len(roles) / len(STEPS)
    for (along, role), (number, step) in ((place, each) for place in middle for each in enumerate(STEPS)):
        losses = [layer["losses"] for layer in layers if layer["role"] == role]
        left = sum(each.get(step, each["rounding"]) / each["rounding"] for each in losses) / len(losses)
        figure.bar(along - 0.4 / len(roles) + number * wide, min(left, 1.2), 0.9 * wide, COLOURS[number])
    figure.legend(STEPS)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument("model", type=Path, help="a folder that awq-tui quantized")
    layers = json.loads((parser.parse_args().model / "quantization_report.json").read_text(encoding="utf-8"))["layers"]
    FOLDER.mkdir(exist_ok=True)
    for draw in (alpha, scales, steps):
        draw(layers).save(FOLDER / f"{draw.__name__}.svg")


if __name__ == "__main__":
    main()
