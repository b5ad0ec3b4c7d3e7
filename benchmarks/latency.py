"""How long a key takes to the screen while the app is under load.

    python -m benchmarks.latency [--keys 200] [--events 200] [--tokens 100] [--size 120x40]

The real app runs in a pseudo-terminal, on its chat screen. A process streams `--tokens` tokens a second into the chat,
another appends `--events` events a second to the journal of a run whose screen is open in another section. Letters are
typed, one at a time; measured is from writing the key to the terminal until the app has written a frame that holds the
letter. The letters have accents, which nothing else on the screen has. The share of a core that the app takes while no
key is pressed is measured before: with `--events 0`, of the chat alone. The first paint is timed too, against an app
with a single line of text. Rows go to `benchmarks/results/latency.csv`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pexpect

from awq_engine import events as e
from awq_engine.config import RunConfig
from awq_engine.journal import Journal
from awq_engine.runs import create_run

LETTERS = "àáâãäåæçèéêëìíîïðñòóôõöøùúûüýþ"
WARM_UP = 3.0
"""Seconds under load before anything is measured."""
WATCHED = 10.0
"""Seconds without keys in which processor time is taken."""
PATIENCE = 60.0
SENTENCE = "a salient channel is **far** larger than `the others`, so it keeps more of its bits when it is rounded. "
TEXT = f"## channels\n\n{4 * SENTENCE}\n\n- {SENTENCE}\n- {SENTENCE}\n\n```python\nscale = mean ** alpha\n```\n\n"
STATISTICS = {
    "mean": 1.1, "max": 6.9, "min": 0.3, "std": 0.4, "max_over_mean": 6.3, "share_above_2x": 0.04,
    "share_above_5x": 0.01, "share_below_half": 0.08,
}  # fmt: skip
BARE_APP = (
    "from textual.app import App; from textual.widgets import Static\n"
    "class Bare(App):\n    def compose(self): yield Static('READY')\nBare().run()"
)


def main() -> int:
    options = _parse()
    if options.role:
        return {"app": run_app, "engine": flood, "worker": stream}[options.role](options)
    columns, rows = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as home:
        os.environ |= {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
        first_paint(["-m", "awq_tui"], b"Models", columns, rows)
        os.environ |= {"AWQ_TUI_HOME": home, "HF_HOME": f"{home}/hf", "HF_HUB_OFFLINE": "1", "HOME": home}
        paint = [first_paint(["-m", "awq_tui"], b"Models", columns, rows) for _ in range(options.paints)]
        bare = [first_paint(["-c", BARE_APP], b"READY", columns, rows) for _ in range(options.paints)]
        latencies, share = measure(options, columns, rows)
    row = {
        "size": options.size, "events_per_second": options.events, "tokens_per_second": options.tokens,
        "keys": len(latencies), "p50_ms": percentile(latencies, 50), "p95_ms": percentile(latencies, 95),
        "max_ms": round(1000 * max(latencies), 1), "app_cpu_percent": round(100 * share, 1),
        "first_paint_ms": percentile([wall for wall, _ in paint], 50),
        "first_paint_cpu_ms": percentile([cpu for _, cpu in paint], 50),
        "bare_textual_ms": percentile([wall for wall, _ in bare], 50),
        "bare_textual_cpu_ms": percentile([cpu for _, cpu in bare], 50), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    from benchmarks.results_file import append_rows  # imports torch, which the app must not have

    print(json.dumps(row))
    print(append_rows("latency", [row]))
    return 0


def measure(options: argparse.Namespace, columns: int, rows: int) -> tuple[list[float], float]:
    """Seconds from key to frame, one per key, and the share of a core that the app takes while no key is pressed."""
    run = create_run(RunConfig("bench/model", f"{os.environ['AWQ_TUI_HOME']}/out"))
    me = [sys.executable, "-m", "benchmarks.latency", "--events", str(options.events), "--tokens", str(options.tokens)]
    with _running([*me, "--role", "engine", "--run", str(run.path)]) if options.events else contextlib.nullcontext():
        app = pexpect.spawn(
            me[0], [*me[1:], "--role", "app", "--run", str(run.path)], dimensions=(rows, columns), timeout=60
        )
        terminal = Terminal(app)
        terminal.wait_for(b"tok/s of load")
        terminal.send("STREAM\r")
        time.sleep(WARM_UP)
        before = cpu_seconds(app.pid)
        time.sleep(WATCHED)
        share = (cpu_seconds(app.pid) - before) / WATCHED
        found = [terminal.time_key(letter) for letter in letters(options.keys)]
        app.kill(signal.SIGKILL)
        app.close(force=True)
    return found, share


def letters(count: int) -> Iterator[str]:
    """Each is deleted again before the next one."""
    return itertools.islice(itertools.cycle(LETTERS), count)


class Terminal:
    """The other end of the app's terminal: a thread reads all the time, so the app never waits for us."""

    def __init__(self, process: pexpect.spawn) -> None:
        self._process = process
        self._output = bytearray()
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, words: bytes, after: int = 0) -> float:
        """The time at which `words` were in what was written after the first `after` bytes."""
        deadline = time.monotonic() + 2 * PATIENCE
        with self._news:
            while words not in self._output[after:]:
                if not self._news.wait(PATIENCE) or time.monotonic() > deadline:
                    raise TimeoutError(f"{words!r} never came: {bytes(self._output[-2000:])!r}")
            return time.monotonic()

    def written(self) -> int:
        """Bytes so far."""
        with self._news:
            return len(self._output)

    def send(self, text: str) -> None:
        """Type."""
        os.write(self._process.child_fd, text.encode())

    def time_key(self, letter: str) -> float:
        """Seconds until a frame shows the letter; then it is taken away again."""
        before, started = self.written(), time.monotonic()
        self.send(letter)
        seconds = self.wait_for(letter.encode(), before) - started
        self.send("\x7f")
        time.sleep(0.05 + 0.05 * (ord(letter) % 5))
        return seconds

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the app has ended
            while data := os.read(self._process.child_fd, 1 << 16):
                with self._news:
                    self._output += data
                    self._news.notify_all()


def first_paint(arguments: list[str], words: bytes, columns: int, rows: int) -> tuple[float, float]:
    """Seconds from the start of the process until `words` are on the screen, and of CPU time till then."""
    started = time.monotonic()
    app = pexpect.spawn(sys.executable, arguments, dimensions=(rows, columns), timeout=60)
    app.expect_exact(words)
    seconds = time.monotonic() - started
    cpu = cpu_seconds(app.pid)
    app.kill(signal.SIGKILL)
    app.close(force=True)
    return seconds, cpu


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has taken so far."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


# the processes that are started


def run_app(options: argparse.Namespace) -> int:
    """The app, with the run's screen open, and a chat with our worker in front."""
    import awq_tui
    from awq_engine.runs import Run
    from awq_tui.app import AwqApp
    from awq_tui.chat_client import ChatClient
    from awq_tui.screens.chat import ChatScreen
    from awq_tui.screens.run import RunScreen

    class Loaded(AwqApp):
        CSS_PATH = Path(awq_tui.__file__).parent / "app.tcss"

        async def on_ready(self) -> None:
            await self._show("runs", RunScreen(Run(Path(options.run))))
            command = [sys.executable, "-m", "benchmarks.latency", "--role", "worker", "--tokens", str(options.tokens)]
            await self._show("chat", ChatScreen("load", ChatClient("load", command)))

    Loaded().run()
    return 0


def flood(options: argparse.Namespace) -> NoReturn:
    """An engine that says something `--events` times a second, for as long as it is left alone."""
    from awq_engine.runs import Run

    run = Run(Path(options.run))
    run.take_lock()
    names = [f"mlp.{role}_proj" for role in ("q", "k", "v", "o", "gate", "up", "down")]
    linears = [
        {"block": block, "name": name, "out_features": 4096, "in_features": 4096}
        for block in range(64)
        for name in names
    ]
    with Journal(run.journal_path) as emit:
        emit(e.RunStarted(run.id, run.config().to_json(), {}, os.getpid(), "here", "cpu"))
        emit(e.PlanReady("m", "llama", 1, 64, linears, [], 10, 3, 4.2, 10, "out"))
        number = -1
        while True:
            number += 1
            started = time.monotonic()
            emit(_event(number, names))
            time.sleep(max(0.0, 1 / options.events - (time.monotonic() - started)))


def _event(number: int, names: list[str]) -> e.Event:
    block, name = number // 14 % 64, names[number // 2 % 7]
    if number % 2:
        losses = {"rounding": 4e-4, "scale": 3e-4, "clip": 2e-4, "feedback": 1e-4 + number % 9 * 1e-5}
        return e.LinearQuantized(block, name, 4096, 4096, losses, 2e-6, 2e-6, 0.3, 0.8, 0.5)
    curve = [[step / 20, 4e-4 + 1e-4 * (step / 20 - 0.5) ** 2] for step in range(20)]
    histogram = {"low": -0.5, "high": 0.8, "counts": [number % 50 + step for step in range(64)]}
    return e.ScaleChosen(block, "norm", [name], 0.5, False, curve, 4e-4, 3e-4, STATISTICS, histogram)


def stream(options: argparse.Namespace) -> NoReturn:
    """A chat worker that never ends: Markdown, `--tokens` tokens a second in twenty pieces."""

    def send(kind: str, **fields: object) -> None:
        print(json.dumps({"type": kind, **fields}), flush=True)

    send(
        "ready", model="load", backend="reference", reason=f"{options.tokens} tok/s of load", device="cpu",
        context_length=None, bits_per_weight=4.2, has_chat_template=True, notes=[],
    )  # fmt: skip
    request = json.loads(sys.stdin.readline())
    words = itertools.cycle(TEXT.split(" "))
    while True:
        piece = "".join(f"{next(words)} " for _ in range(max(1, options.tokens // 20)))
        send("text", id=request["id"], text=piece)
        time.sleep(0.05)


@contextlib.contextmanager
def _running(command: list[str]) -> Iterator[None]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def percentile(seconds: list[float], part: int) -> float:
    """Milliseconds."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(len(ordered) - 1, len(ordered) * part // 100)], 1)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Keypress to frame under load.")
    parser.add_argument("--keys", type=int, default=200)
    parser.add_argument("--events", type=int, default=200, help="of the engine, a second")
    parser.add_argument("--tokens", type=int, default=100, help="of the chat, a second")
    parser.add_argument("--size", default="120x40")
    parser.add_argument("--paints", type=int, default=5, help="how often the first paint is timed")
    parser.add_argument("--role", choices=["app", "engine", "worker"], help=argparse.SUPPRESS)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("model", nargs="?", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
