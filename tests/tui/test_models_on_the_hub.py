"""The models screen before a Hub on loopback: what it finds, what it refuses, what is fetched."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler

import huggingface_hub.constants
import pytest
from textual.pilot import Pilot

from awq_engine.downloads import list_downloads
from tests.engine.fake_hub import FakeHub, answer
from tests.engine.safetensors_files import llama_shapes, safetensors
from tests.tui.hosting import screen_text, until
from tests.tui.test_models_screen import cursor_to, models, names

WEIGHTS = safetensors(llama_shapes())
CONFIG = {"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 128, "max_position_embeddings": 256}
FOUND = [
    {"id": "org/tiny", "downloads": 2_100_000, "config": {"model_type": "llama"}, "tags": ["license:mit"],
     "safetensors": {"parameters": {"F16": 270_000}, "total": 270_000}},
    {"id": "gated/model", "gated": "manual", "safetensors": {"parameters": {"BF16": 9}, "total": 9}},
]  # fmt: skip
Hindrance = Callable[[BaseHTTPRequestHandler, str, bytes], bool]


@pytest.fixture(autouse=True)
def filled(hub: FakeHub) -> None:
    hub.files |= {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": WEIGHTS}
    hub.found = FOUND


async def search(pilot: Pilot[None], words: str = "tiny") -> None:
    await pilot.press("slash", *words)


async def pick(pilot: Pilot[None], name: str) -> None:
    """Search, and put the cursor on a model that was found."""
    await search(pilot)
    await until(pilot, lambda: name in names(pilot))
    await pilot.press("down")
    await cursor_to(pilot, name)


async def test_a_model_is_found_and_looked_into_without_its_weights(hub: FakeHub) -> None:
    async with models() as pilot:
        await search(pilot)
        assert "searching the Hub" in screen_text(pilot)
        await until(pilot, lambda: "reading its shapes" in screen_text(pilot))
        assert names(pilot) == ["org/tiny", "gated/model"]
        await until(pilot, lambda: "14 linears" in screen_text(pilot))
        text = screen_text(pilot)
        for words in ("2 on the Hub", "↓2.1M", "270 K", "⊘gated", "licence mit", "blocks 2", "context 256", "✓"):
            assert words in text
        assert not list_downloads()


def _too_many(handler: BaseHTTPRequestHandler, path: str, body: bytes) -> bool:
    return answer(handler, 429, Retry_After="37")


REFUSALS: dict[str, Hindrance] = {
    "wait 37 seconds": _too_many,
    "trouble of its own": lambda handler, path, body: answer(handler, 503),
    "cannot be understood": lambda handler, path, body: answer(handler, 200, b"<html>Hotel network</html>"),
    "reply about the model search": lambda handler, path, body: answer(handler, 200, b'{"models": []}'),
}


@pytest.mark.parametrize("words", REFUSALS)
async def test_a_refused_search_says_why_at_once_and_leaves_the_local_list(hub: FakeHub, words: str) -> None:
    hub.hinder = REFUSALS[words]
    async with models() as pilot:
        started = time.monotonic()
        await search(pilot, "demo")
        await until(pilot, lambda: "without the Hub" in screen_text(pilot) and words in screen_text(pilot))
        assert names(pilot) == ["demo stories (bundled)"]
        assert time.monotonic() - started < 10, "nothing waits for a Hub to be in a better mood"
        hub.hinder = lambda handler, path, body: False
        await pilot.press("space")
        await until(pilot, lambda: "2 on the Hub" in screen_text(pilot) and "⚠" not in screen_text(pilot))


async def test_nothing_found_is_said_after_the_search_and_a_hub_out_of_reach_is_told(hub: FakeHub) -> None:
    held = threading.Event()

    def slowly(handler: BaseHTTPRequestHandler, path: str, body: bytes) -> bool:
        held.wait(30)
        return False

    hub.found, hub.hinder = [], slowly
    async with models() as pilot:
        await search(pilot, "zz")
        await until(pilot, lambda: hub.requests)
        assert "Searching the Hub…" in screen_text(pilot)
        held.set()
        await until(pilot, lambda: "0 on the Hub" in screen_text(pilot) and "No model fits" in screen_text(pilot))
        huggingface_hub.constants.ENDPOINT = "http://127.0.0.1:9"
        await search(pilot, "z")
        await until(pilot, lambda: "cannot be reached" in screen_text(pilot) and "No model fits" in screen_text(pilot))


async def test_a_gated_model_explains_itself_once(hub: FakeHub) -> None:
    async with models() as pilot:
        await pick(pilot, "gated/model")
        await until(pilot, lambda: "is gated: accept" in screen_text(pilot))
        await pilot.press("d")
        await until(pilot, lambda: any(found.error for found in pilot.app.downloads), "the download is refused")  # pyright: ignore[reportAttributeAccessIssue]
        await pilot.pause(0.1)
        assert screen_text(pilot).count("hf auth login") == 1
        await pilot.press("x")
        await until(pilot, lambda: not list_downloads())


async def test_a_model_is_fetched_stopped_and_fetched(hub: FakeHub) -> None:
    held = threading.Event()

    def half(handler: BaseHTTPRequestHandler, path: str, body: bytes) -> bool:
        """Of the weights, until somebody lets the rest go."""
        if held.is_set() or handler.command == "HEAD" or len(body) != len(WEIGHTS) or handler.headers["Range"]:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2])
        held.wait(30)
        return True

    hub.hinder = half
    async with models() as pilot:
        seen = partial(screen_text, pilot)
        await pick(pilot, "org/tiny")
        await pilot.press("d")
        await until(pilot, lambda: "↓ 0%" in seen() and "0 B of 609 kB" in seen(), "the total is known at once")
        await pilot.press("slash", "ctrl+u")
        await until(pilot, lambda: "org/tiny" in names(pilot) and "demo stories (bundled)" in names(pilot))
        await pilot.press("down")
        await cursor_to(pilot, "org/tiny")
        await pilot.press("x")
        await until(pilot, lambda: "✗ 0%" in seen() and "Stopped" in seen())
        held.set()
        await pilot.press("d")
        await until(pilot, lambda: "org/tiny is here now." in seen() and "cache" in seen())
        await until(pilot, lambda: list_downloads() == [] and "hub " not in seen())
