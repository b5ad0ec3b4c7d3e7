"""Fetching models in a process of their own: exact bytes, stopping, going on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awq_engine.downloads import Download, folder_of, forget, list_downloads, request_stop, spawn_download
from tests.engine import fake_hub as hub_module
from tests.engine.fake_hub import FakeHub, fake_hub

WEIGHTS = os.urandom(1 << 20) * 24
"""More than twice what the Hub's client writes at once."""
CONFIG = json.dumps({"model_type": "llama"}).encode()
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "bad.bin": b"x" * 99}
TO_FETCH = len(CONFIG) + len(WEIGHTS)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(FILES) as hub:
        settings = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "AWQ_TUI_HOME": str(tmp_path / "home"),
            "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        yield hub


def state(spec: str) -> Download:
    return next(download for download in list_downloads() if download.spec == spec)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, list_downloads()
        time.sleep(0.02)


def test_a_model_is_fetched_with_exact_bytes(hub: FakeHub) -> None:
    process = spawn_download("org/tiny")
    assert process is not None
    assert state("org/tiny").going_on
    assert spawn_download("org/tiny") is None, "one process per model"
    assert process.wait(60) == 0
    assert state("org/tiny") == Download("org/tiny", TO_FETCH, TO_FETCH, finished=True)
    assert hub.downloaded() == {"config.json", "model.safetensors"}
    forget("org/tiny")
    assert list_downloads() == []


def test_a_stopped_download_keeps_whole_files_and_fetches_the_others(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.files = {**FILES, "more.safetensors": WEIGHTS[:-1]}
    hindered = threading.Event()
    send = hub_module._Handler._send

    def send_half(self: hub_module._Handler, body: bytes, *args: Any) -> None:
        """Half of the second file, and the rest when nobody hinders it."""
        if self.command == "HEAD" or len(body) != len(WEIGHTS) - 1 or hindered.is_set():
            return send(self, body, *args)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        hindered.wait(30)
        return None

    monkeypatch.setattr(hub_module._Handler, "_send", send_half)
    process = spawn_download("org/tiny")
    assert process is not None
    cache = Path(os.environ["HF_HOME"])
    until(lambda: state("org/tiny").done > len(WEIGHTS) and list(cache.rglob("model.safetensors")))
    assert state("org/tiny").total == TO_FETCH + len(WEIGHTS) - 1
    request_stop("org/tiny")
    assert process.wait(60) == 130
    hindered.set()
    assert state("org/tiny").error.startswith("Stopped")
    assert not state("org/tiny").going_on
    assert list(cache.rglob("*.incomplete")) == []
    again = spawn_download("org/tiny")
    assert again is not None
    assert again.wait(60) == 0
    rest = len(WEIGHTS) - 1
    assert state("org/tiny") == Download("org/tiny", rest, rest, finished=True)
    (found,) = cache.rglob("more.safetensors")
    assert found.read_bytes() == WEIGHTS[:-1]


@pytest.mark.parametrize(
    ("spec", "words"), [("gated/model", "is gated: accept its licence"), ("unknown/model", "There is no unknown/model")]
)
def test_a_refusal_is_a_sentence(hub: FakeHub, spec: str, words: str) -> None:
    process = spawn_download(spec)
    assert process is not None
    assert process.wait(60) == 4
    assert words in state(spec).error


def test_a_killed_download_is_told(hub: FakeHub) -> None:
    process = spawn_download("org/tiny")
    assert process is not None
    process.kill()
    process.wait(60)
    assert "without a word" in state("org/tiny").error
    (folder_of("org/tiny") / "state.json").write_bytes(b"[]")
    assert list_downloads() == []


def test_the_module_needs_nothing_heavy() -> None:
    code = "import sys, awq_engine.downloads; print([m for m in ('torch', 'huggingface_hub') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
