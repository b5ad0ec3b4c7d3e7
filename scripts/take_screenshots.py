"""Take the pictures of the README: every screen of the real app, on the bundled model, as SVG.

The app is driven by its keys and works for real: an engine quantizes in its own process, and a chat process answers.
It has a home and a folder of its own, which are gone afterwards. The whole takes a few minutes. With `--looks` every
picture is taken at three sizes and in two themes, to look for what is cramped or unclear:

    python scripts/take_screenshots.py [--looks] [FOLDER, by default assets]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from textual.pilot import Pilot

from awq_engine import demo
from awq_engine.config import Preset, RunConfig
from awq_engine.runs import create_run, spawn_engine
from awq_engine.sampling_settings import Sampling
from awq_tui.app import AwqApp
from awq_tui.screens.chat import ChatScreen
from awq_tui.screens.configure import ConfigureScreen
from awq_tui.screens.evaluate import EvaluateModal
from awq_tui.screens.inspect import InspectScreen
from awq_tui.screens.models import ModelsScreen
from awq_tui.screens.pick import PickModal

ASSETS = Path(__file__).parent.parent / "assets"
SIZE = (120, 36)
THEME = "awq-dark"
LOOKS = [(size, theme) for size in ((80, 24), (120, 40), (200, 60)) for theme in ("awq-dark", "awq-light")]
MODEL = "stories-3.7M"
"""The bundled model under the name of a model of one's own, in a folder of one's own."""
QUESTION = "Tell me a story about a dragon."
SEED = 6
"""Of the reply, so that the picture does not change from time to time."""
PATIENCE = 600
"""Seconds the slowest step may take."""

Shown = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description="Take pictures of every screen.")
    parser.add_argument("folder", nargs="?", type=Path, default=ASSETS)
    parser.add_argument("--looks", action="store_true", help="at three sizes and in two themes")
    options = parser.parse_args()
    camera = Camera(options.folder.absolute(), LOOKS if options.looks else [])
    camera.folder.mkdir(parents=True, exist_ok=True)
    with at_home():
        asyncio.run(take_all(camera))


@contextlib.contextmanager
def at_home() -> Iterator[None]:
    """Inside, this process works in a folder with the bundled model and a home of its own; both go at the end."""
    with tempfile.TemporaryDirectory(prefix="awq-tui-") as place:
        here = Path(place) / "models"
        shutil.copytree(demo.MODEL, here / MODEL)
        os.chdir(here)
        os.environ |= {"HOME": place, "AWQ_TUI_HOME": f"{place}/home", "HF_HOME": f"{place}/hf", "HF_HUB_OFFLINE": "1"}
        yield
        os.chdir("/")


@dataclass(frozen=True)
class Camera:
    """Where pictures go, and the sizes and themes of each; by default one, as the app is."""

    folder: Path
    looks: list[tuple[tuple[int, int], str]]

    async def take(self, pilot: Pilot[None], name: str) -> None:
        """Write pictures of the screen as it is, but for the toasts."""
        pilot.app.clear_notifications()
        if not self.looks:
            await self._shoot(pilot, self.folder / f"{name}.svg")
            return
        for size, theme in self.looks:
            pilot.app.theme = theme
            await pilot.resize_terminal(*size)
            await self._shoot(pilot, self.folder / f"{name}-{size[0]}x{size[1]}-{theme}.svg")
        pilot.app.theme = THEME
        await pilot.resize_terminal(*SIZE)

    @staticmethod
    async def _shoot(pilot: Pilot[None], file: Path) -> None:
        await pilot.pause(0.3)
        file.write_text(pilot.app.export_screenshot(title="awq-tui"), encoding="utf-8")
        print(f"{file}  {file.stat().st_size // 1000} kB", flush=True)


async def take_all(camera: Camera) -> None:
    """Walk through the app as a person would, with a picture at every stop."""
    app = AwqApp()
    async with app.run_test(size=SIZE, notifications=True) as pilot:
        await configure(pilot, camera)
        await watch(pilot, camera)
        await inspect(pilot, camera)
        await chat(pilot, camera)
        await compare(pilot, camera)
        await look_back(pilot, camera)


async def configure(pilot: Pilot[None], camera: Camera) -> None:
    await configured(pilot)
    await camera.take(pilot, "configure")


async def configured(pilot: Pilot[None]) -> None:
    """Pick the model and come to the form."""
    await until(pilot, lambda: MODEL in text(pilot), "the model in the list")
    await pilot.press("down", "enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, ConfigureScreen) and "Ready" in text(pilot), "the form")


async def watch(pilot: Pilot[None], camera: Camera) -> None:
    """Start, and take the picture while the third block is worked on."""
    await pilot.press("ctrl+s")

    def in_third_block() -> bool:
        shown = text(pilot)
        return "block 3/4" in shown and "block 2 · mlp." in shown and "rounding " in shown and "scale " in shown

    await until(pilot, in_third_block, "the third block")
    await camera.take(pilot, "run")
    await until(pilot, lambda: "read back and compared" in text(pilot), "the end of the run")


async def inspect(pilot: Pilot[None], camera: Camera) -> None:
    await pilot.press("i")
    await until(pilot, lambda: isinstance(pilot.app.screen, InspectScreen) and "28 layers" in text(pilot), "the layers")
    await pilot.press("down", "down")
    await camera.take(pilot, "inspect")


async def chat(pilot: Pilot[None], camera: Camera) -> None:
    await chat_ready(pilot)
    await pilot.press(*("space" if letter == " " else letter for letter in QUESTION), "enter")
    await until(pilot, lambda: "KL " in text(pilot), "both replies, compared")
    await camera.take(pilot, "chat")


async def chat_ready(pilot: Pilot[None]) -> None:
    """Load the result and, beside it, the original."""
    await pilot.press("c")
    await until(pilot, lambda: isinstance(pilot.app.screen, ChatScreen) and pilot.app.screen.ready, "the chat model")
    screen = pilot.app.screen
    assert isinstance(screen, ChatScreen)
    screen.chat = replace(screen.chat, sampling=Sampling(seed=SEED))
    await pilot.press("f7")
    await until(pilot, lambda: isinstance(pilot.app.screen, PickModal), "the other models")
    await pilot.press("enter")
    await until(pilot, lambda: len(screen.sides) == 2 and screen.sides[1].ready, "the original")


async def compare(pilot: Pilot[None], camera: Camera) -> None:
    """Two more runs, and all three measured; takes as long as the rest together."""
    for preset in (Preset.FAST, Preset.BEST):
        config = RunConfig(str(Path.cwd() / MODEL), str(Path.cwd() / f"{MODEL}-{preset}"), preset=preset, samples=32)
        await asyncio.to_thread(lambda config=config: spawn_engine(create_run(config)).wait())
    while pilot.app.current_mode != "compare":
        await pilot.press("f6")
        await pilot.pause(0.2)
    await until(pilot, lambda: "3 finished runs" in text(pilot), "three runs")
    await pilot.press("E")
    await until(pilot, lambda: isinstance(pilot.app.screen, EvaluateModal), "the question what to measure with")
    await pilot.press("enter")
    await until(pilot, lambda: "3 measured" in text(pilot), "three measurements")
    await camera.take(pilot, "compare")


async def look_back(pilot: Pilot[None], camera: Camera) -> None:
    """The first screen again, now that there is a result beside the model."""
    while not isinstance(pilot.app.screen, ModelsScreen):
        await pilot.press("f6")
        await pilot.pause(0.2)
        while len(pilot.app.screen_stack) > 1:
            await pilot.app.pop_screen()
    await pilot.press("r")
    await until(pilot, lambda: "result" in text(pilot) and "measured" in text(pilot), "the result in the list")
    await camera.take(pilot, "models")


async def until(pilot: Pilot[None], shown: Shown, what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not shown():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}\n{text(pilot)}")
        await pilot.pause(0.05)


def text(pilot: Pilot[None]) -> str:
    """What is on the screen, without colours."""
    strips = pilot.app.screen._compositor.render_strips()
    return "\n".join("".join(segment.text for segment in strip) for strip in strips)


if __name__ == "__main__":
    main()
