"""A network that breaks, lies or stalls while a model is fetched from a Hub on loopback."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from argparse import Namespace
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from awq_engine.downloads import folder_of, forget, list_downloads, spawn_download
from tests.engine.fake_hub import COMMIT, FakeHub, fake_hub
from tests.faults.bench import Bench

Tried = Iterator[tuple[str, object, str | None]]
Hinder = Callable[[BaseHTTPRequestHandler, bytes], None]
SPEC = "org/tiny"
LONGEST = 120
"""Seconds until a download has to have ended by itself."""
WEIGHTS = bytes(range(256)) * 4096
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"}


def _answer(handler: BaseHTTPRequestHandler, body: bytes, length: int, status: int = 200) -> None:
    handler.send_response(status)
    handler.send_header("Content-Length", str(length))
    handler.send_header("ETag", '"abc"')
    handler.send_header("X-Repo-Commit", COMMIT)
    handler.end_headers()
    if handler.command != "HEAD":
        with contextlib.suppress(OSError):
            handler.wfile.write(body)
    handler.close_connection = True


def _stall(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    _answer(handler, body[: len(body) // 2], len(body))
    handler.close_connection = False  # and nothing more comes


def _hang_up(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.close_connection = True


NETWORKS: dict[str, Hinder] = {
    "hangs up": _hang_up,
    "is cut in the middle": lambda handler, body: _answer(handler, body[: len(body) // 2], len(body)),
    "stalls in the middle": _stall,
    "delivers other bytes": lambda handler, body: _answer(handler, body[:-1] + b"?", len(body)),
    "delivers too little": lambda handler, body: _answer(handler, body[: len(body) // 2], len(body) // 2),
    "delivers too much": lambda handler, body: _answer(handler, body * 2, len(body) * 2),
    "delivers nothing": lambda handler, body: _answer(handler, b"", 0),
    "shows a login page": lambda handler, body: _answer(handler, b"<html>Log in</html>", 19),
    "has trouble": lambda handler, body: _answer(handler, b"{}", 2, 503),
    "limits requests": lambda handler, body: _answer(handler, b"{}", 2, 429),
}
WITHOUT_BODY = ("hangs up", "has trouble", "limits requests")


def bad_networks(bench: Bench, asked: Namespace) -> Tried:
    """Every answer of a kind is hindered, then none: what was said, and what is in the cache in the end."""
    places = {
        "listing": ("GET", "/tree/"), "sizes": ("HEAD", "model.safetensors"), "small file": ("GET", "config.json"),
        "weights": ("GET", "model.safetensors"),
    }  # fmt: skip
    with fake_hub(FILES) as hub:
        for place, (command, part) in places.items():
            for name in NETWORKS if command == "GET" else WITHOUT_BODY:
                with _machine(bench.root / f"{place} {name}", hub) as cache:
                    yield "network", f"{name}: {place}", _problem(hub, cache, command, part, NETWORKS[name])
        with _machine(bench.root / "killed", hub) as cache:
            yield "network", "the process that fetches is killed", _after_kill(hub, cache)


@contextlib.contextmanager
def _machine(folder: Path, hub: FakeHub) -> Iterator[Path]:
    """Another home and cache, and no other Hub."""
    settings = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hf"), "AWQ_TUI_HOME": str(folder / "home"),
        "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_ETAG_TIMEOUT": "1",
    }  # fmt: skip
    before = dict(os.environ)
    os.environ.update(settings)
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        os.environ.pop(name, None)
    try:
        yield folder / "hf"
    finally:
        os.environ.clear()
        os.environ.update(before)


def _problem(hub: FakeHub, cache: Path, command: str, part: str, hinder: Hinder) -> str | None:
    def hindered(handler: BaseHTTPRequestHandler, path: str, body: bytes) -> bool:
        meant = handler.command == command and part in path
        if meant:
            hinder(handler, body)
        return meant

    hub.hinder = hindered
    code, said = _fetch()
    hub.hinder = lambda handler, path, body: False
    if code not in (2, 4) or not said.endswith((".", "?")) or len(said) > 300 or "A bug" in said:
        return f"ended with {code}: {said}"
    return _whole(cache)


def _whole(cache: Path) -> str | None:
    """What another attempt leaves."""
    code, said = _fetch()
    found = {file.name: file.read_bytes() for file in cache.rglob("snapshots/*/*") if file.name in FILES}
    forget(SPEC)
    if code:
        return f"the second attempt ended with {code}: {said}"
    return None if found == FILES else f"the cache holds {sorted(found)}, or other bytes"


def _fetch() -> tuple[int, str]:
    process = spawn_download(SPEC)
    assert process is not None
    try:
        code = process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    return code, next((download.error for download in list_downloads()), "")


def _after_kill(hub: FakeHub, cache: Path) -> str | None:
    """In the middle of the weights."""

    def kill(handler: BaseHTTPRequestHandler, path: str, body: bytes) -> bool:
        if "model.safetensors" not in path or handler.command == "HEAD":
            return False
        process.send_signal(signal.SIGKILL)
        return True

    hub.hinder = kill
    process = spawn_download(SPEC)
    assert process is not None
    process.wait(LONGEST)
    hub.hinder = lambda handler, path, body: False
    said = [download.error for download in list_downloads()]
    if folder_of(SPEC).exists() and "without a word" not in said[0]:
        return f"it is said that {said}"
    return _whole(cache)
