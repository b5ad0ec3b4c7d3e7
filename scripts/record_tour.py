"""Record the README's tour: the real app at work, as one SVG that plays by itself.

    python scripts/record_tour.py [FILE, by default assets/tour.svg]

The steps are those of `take_screenshots.py`: an engine quantizes the bundled model in its own process, a chat process
answers. Pictures are taken meanwhile and shown one after the other: what takes a minute passes in seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from take_screenshots import ASSETS, QUESTION, SIZE, at_home, chat_ready, configured, text, until
from textual.pilot import Pilot

from awq_tui.app import AwqApp
from awq_tui.screens.inspect import InspectScreen

EVERY = 0.4
"""Seconds between pictures of what moves."""
STILL = "#f0 { visibility: visible }"
"""Where nothing moves, the first picture stands."""
FONTS = re.compile(r"\s*@font-face \{.*?\n    \}", re.DOTALL)
"""Of every picture; the viewer's own monospace does as well, and nothing is fetched."""


@dataclass
class Film:
    """Pictures, and the seconds each is shown."""

    pictures: list[tuple[str, float]] = field(default_factory=list)

    async def take(self, pilot: Pilot[None], seconds: float) -> None:
        pilot.app.clear_notifications()
        await pilot.pause(0.1)
        self.pictures.append((_picture(pilot), seconds))

    @contextlib.asynccontextmanager
    async def rolling(self, pilot: Pilot[None], count: int, seconds: float) -> AsyncIterator[None]:
        """Inside, the camera runs; `count` of its pictures are kept, each to be shown for `seconds`."""
        taken: list[str] = []

        async def roll() -> None:
            while True:
                taken.append(_picture(pilot))
                await asyncio.sleep(EVERY)

        rolling = asyncio.create_task(roll())
        try:
            yield
        finally:
            rolling.cancel()
        kept = {round(n * (len(taken) - 1) / (count - 1)) for n in range(count)}
        self.pictures += [(taken[n], seconds) for n in sorted(kept)]

    def svg(self) -> str:
        """All of them in one, each visible in its turn."""
        total, start = sum(seconds for _, seconds in self.pictures), 0.0
        rules, frames = [f".frame {{ visibility: hidden; animation: {total:.1f}s step-end infinite }}", STILL], []
        for number, (picture, seconds) in enumerate(self.pictures):
            first, last = (f"{100 * moment / total:.2f}%" for moment in (start, start + seconds))
            hidden = "" if number == 0 else "0% { visibility: hidden } "
            rules.append(
                f"@keyframes k{number} {{ {hidden}{first} {{ visibility: visible }} {last} {{ visibility: hidden }} }} "
                f"#f{number} {{ animation-name: k{number} }}"
            )
            frames.append(f'<g class="frame" id="f{number}">{picture}</g>')
            start += seconds
        size = re.search(r'viewBox="([^"]+)"', self.pictures[0][0])
        assert size is not None
        style = "\n".join(rules)
        return (
            f'<svg viewBox="{size.group(1)}" xmlns="http://www.w3.org/2000/svg">\n<style>\n{style}\n</style>\n'
            + "\n".join(frames)
            + "\n</svg>\n"
        )


def _picture(pilot: Pilot[None]) -> str:
    return FONTS.sub("", pilot.app.export_screenshot(title="awq-tui"))


async def tour(film: Film) -> None:
    app = AwqApp()
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await pilot.pause(1)
        await film.take(pilot, 2.5)
        await configured(pilot)
        await film.take(pilot, 3)
        await pilot.press("ctrl+s")
        async with film.rolling(pilot, 9, 0.8):
            await until(pilot, lambda: "read back and compared" in text(pilot), "the end of the run")
        await film.take(pilot, 3)
        await pilot.press("i")
        await until(
            pilot, lambda: isinstance(pilot.app.screen, InspectScreen) and "28 layers" in text(pilot), "the layers"
        )
        for _ in range(3):
            await pilot.press("down")
            await film.take(pilot, 1)
        await chat_ready(pilot)
        await film.take(pilot, 1.5)
        await pilot.press(*("space" if letter == " " else letter for letter in QUESTION), "enter")
        async with film.rolling(pilot, 6, 0.6):
            await until(pilot, lambda: "KL " in text(pilot), "both replies, compared")
        await film.take(pilot, 5)


def main() -> None:
    file = Path(sys.argv[1]).absolute() if len(sys.argv) > 1 else ASSETS / "tour.svg"
    film = Film()
    with at_home():
        asyncio.run(tour(film))
    file.write_text(film.svg(), encoding="utf-8")
    print(f"{file}  {len(film.pictures)} pictures, {file.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
