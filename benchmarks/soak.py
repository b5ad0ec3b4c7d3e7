"""Does anything grow that should not?

    python -m benchmarks.soak [--runs 1000] [--turns 10000] [--engines 20] [--blocks 500]

    runs      so many small quantizations in this process, as somebody who uses the engine as a library would start them
    engines   so many as processes of their own, spawned as the app spawns them
    turns     so many turns of chat with one chat process, in conversations of ten
    blocks    one run of a model with so many blocks

Memory, open files, threads and child processes are looked at twenty times along the way. The row tells them after a
tenth of the way, when everything has been imported and every cache has its size, and at the end.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from awq_engine.config import Preset, RunConfig
from awq_engine.runs import RunStatus, create_run, spawn_engine
from tests.engine.tiny_model import write_tiny_model
from tests.engine.tiny_run import tiny_request

LOOKS = 20
TURNS_EACH = 10


@dataclass(frozen=True)
class Look:
    """What a process holds at a moment."""

    resident: int
    """Bytes."""
    files: int
    threads: int
    children: int


def look_at(pid: int) -> Look:
    """From /proc (Linux)."""
    folder = Path("/proc") / str(pid)
    status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    children = (folder / "task" / str(pid) / "children").read_text().split()
    files = len(list((folder / "fd").iterdir()))
    return Look(int(status["VmRSS"].split()[0]) << 10, files, int(status["Threads"]), len(children))


def _give_back_memory() -> None:
    """What this process's allocator keeps for later is no leak (glibc)."""
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def soak(what: str, times: int, once: Callable[[int], None], pid: int) -> dict[str, Any]:
    """Do something many times; a row with what the process `pid` held early on and at the end."""
    started, looks = time.perf_counter(), []
    every = max(1, times // LOOKS)
    for number in range(times):
        once(number)
        if (number + 1) % every == 0:
            _give_back_memory()
            looks.append(look_at(pid))
            print(f"{what} {number + 1}: {looks[-1]}", flush=True)
    early, late = looks[min(1, len(looks) - 1)], looks[-1]
    return {
        "what": what, "times": times, "seconds": round(time.perf_counter() - started),
        "early_mb": f"{early.resident / 1e6:.1f}", "late_mb": f"{late.resident / 1e6:.1f}",
        "early_files": early.files, "late_files": late.files, "early_threads": early.threads,
        "late_threads": late.threads, "late_children": late.children,
    }  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a soak works: a tiny model, a text, and the request of one run."""

    folder: Path
    config: RunConfig


@contextmanager
def place(**shape: int) -> Iterator[Place]:
    """A home of its own, which goes away at the end."""
    before = os.environ.get("AWQ_TUI_HOME")
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        os.environ["AWQ_TUI_HOME"] = str(folder / "home")
        model = write_tiny_model(folder / "model", **shape)
        try:
            yield Place(folder, tiny_request(folder, model, preset=Preset.FAST, overwrite=True))
        finally:
            os.environ.pop("AWQ_TUI_HOME")
            os.environ.update({"AWQ_TUI_HOME": before} if before else {})


def soak_runs(times: int) -> dict[str, Any]:
    """Presets take turns."""
    from awq_engine.journal import Journal
    from awq_engine.pipeline import execute

    with place() as at:

        def once(number: int) -> None:
            run = create_run(replace(at.config, preset=list(Preset)[number % len(Preset)]))
            lock = run.take_lock()
            with Journal(run.journal_path) as emit:
                execute(run, emit)
            assert {"linear_quantized", "run_finished"} <= {record.event.kind() for record in run.records()}
            os.close(lock)
            run.remove()

        return soak("runs in one process", times, once, os.getpid())


def soak_engines(times: int) -> dict[str, Any]:
    with place() as at:

        def once(number: int) -> None:
            run = create_run(at.config)
            code = spawn_engine(run).wait()
            assert (code, run.status()) == (0, RunStatus.DONE), run.log_path.read_text()
            run.remove()

        return soak("runs as processes", times, once, os.getpid())


def soak_turns(times: int) -> dict[str, Any]:
    with place(max_position_embeddings=2048) as at, _chat_process(at) as worker:
        messages: list[dict[str, str]] = []

        def once(number: int) -> None:
            if number % TURNS_EACH == 0:
                messages.clear()
            messages.append({"role": "user", "content": f"Question {number}?"})
            messages.append({"role": "assistant", "content": _answer(worker, number, messages)})

        return soak("turns of chat", times, once, worker.pid)


@contextmanager
def _chat_process(at: Place) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "awq_engine.chat_worker", at.config.model, "--device", "cpu"]
    with (at.folder / "log").open("wb") as log:
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    with worker:
        yield worker


def _answer(worker: subprocess.Popen[bytes], number: int, messages: list[dict[str, str]]) -> str:
    assert worker.stdin is not None
    assert worker.stdout is not None
    request = {"type": "chat", "id": number, "messages": messages, "max_tokens": 4, "seed": number}
    worker.stdin.write(json.dumps(request).encode() + b"\n")
    worker.stdin.flush()
    text = ""
    for line in worker.stdout:
        found = json.loads(line)
        if found["type"] == "text":
            text += found["text"]
        elif found["type"] in ("done", "error") and found["id"] == number:
            assert found["type"] == "done", found
            break
    return text


def soak_blocks(blocks: int) -> dict[str, Any]:
    """The engine's peak and its journal; whatever grows faster than the blocks shows against a smaller number."""
    with place(num_hidden_layers=blocks, hidden_size=32, intermediate_size=64) as at:
        run = create_run(at.config)
        started = time.perf_counter()
        engine = spawn_engine(run)
        _, status, usage = os.wait4(engine.pid, 0)
        engine.returncode = os.waitstatus_to_exitcode(status)
        assert status == 0, run.log_path.read_text()
        row = {
            "blocks": blocks, "seconds": round(time.perf_counter() - started), "peak_mb": usage.ru_maxrss // 1000,
            "journal_kb": run.journal_path.stat().st_size // 1000, "events": len(run.records()),
        }  # fmt: skip
        shutil.rmtree(run.path)
        return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--engines", type=int, default=20)
    parser.add_argument("--turns", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=500)
    options = parser.parse_args()
    from benchmarks.results_file import append_rows

    jobs = {"engines": soak_engines, "turns": soak_turns, "runs": soak_runs}
    for name, job in jobs.items():
        if times := getattr(options, name):
            append_rows("soak", [job(times)])
    if options.blocks:
        append_rows("soak_blocks", [soak_blocks(number) for number in (options.blocks // 10, options.blocks)])


if __name__ == "__main__":
    main()
