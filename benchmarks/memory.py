"""How much memory does quantizing take, where is the peak, and does the time grow linearly with the blocks?

    python -m benchmarks.memory [MODEL | SHAPE ...] [--blocks 3] [--presets fast,balanced,best] [--samples 8]
        [--seq-len 512] [--quick] [--work FOLDER]

SHAPE is one of `benchmarks.synthetic.SHAPES`, written first with `--blocks` blocks; MODEL is a folder. With `--quick`
it runs as `benchmarks.quick_engine`, its long loops cut short: the peak is the same, the time is not. The engine's
process is watched from outside: its peak is what the kernel tells at its end (what `/usr/bin/time -v` prints), and the
phase of the peak comes from a sample of /proc every few milliseconds beside the newest line of the journal.

    bound = 3 x largest block as stored + hidden states + 1.5 GB
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.config import Preset, RunConfig
from awq_engine.detached import RETURNED_MEMORY
from awq_engine.estimate import block_linears, estimate
from awq_engine.runs import Run, create_run, spawn_engine
from awq_engine.state import replay

ALLOWANCE = 1_500_000_000
SAMPLE_SECONDS = 0.01


class Watch:
    """The largest resident size seen of a process, and what its run was doing then."""

    def __init__(self, run: Run, pid: int) -> None:
        self.peak, self.anonymous, self.phase = 0, 0, ""
        self._run, self._pid = run, pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        reader = self._run.reader()
        doing = "starting"
        while not self._done.wait(SAMPLE_SECONDS):
            for record in reader.read():
                doing = _describe(record.event, doing)
            resident, anonymous = _resident(self._pid)
            if resident > self.peak:
                self.peak, self.anonymous, self.phase = resident, anonymous, doing


def _describe(event: Any, before: str) -> str:
    where = getattr(event, "phase", None) or getattr(event, "name", None) or getattr(event, "producer", None)
    block = getattr(event, "block", None)
    return f"after {event.kind()} {'' if block is None else block} {where or ''}".strip()


def _resident(pid: int) -> tuple[int, int]:
    """Bytes resident in all and of them not backed by a file; zeros once the process has ended."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return int(lines["VmRSS"].split()[0]) * 1024, int(lines["RssAnon"].split()[0]) * 1024
    except (OSError, KeyError):
        return 0, 0


def measure(folder: Path, name: str, preset: Preset, options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Quantize the model in `folder` in an engine of its own: one row of figures."""
    config = RunConfig(
        model=str(folder), output=str(output), preset=preset, samples=options.samples, seq_len=options.seq_len,
        threads=options.threads, overwrite=True, device=options.device,
    )  # fmt: skip
    checkpoint = read_checkpoint(folder)
    run = create_run(config)
    engine = spawn_quick_engine(run) if options.quick else spawn_engine(run)
    watch = Watch(run, engine.pid)
    _, status, usage = os.wait4(engine.pid, 0)
    watch.stop()
    state = replay(run.records())
    if status or state.result is None:
        raise SystemExit(state.error.message if state.error else f"the engine failed; see {run.log_path}")
    peak, forecast = usage.ru_maxrss * 1024, estimate(checkpoint, config)
    seconds = [block.seconds for _, block in sorted(state.blocks.items())]
    bound = 3 * block_bytes(checkpoint) + hidden_bytes(checkpoint, config) + ALLOWANCE
    return {
        "model": name, "blocks": len(seconds), "preset": preset.value, "quick": options.quick,
        "samples": config.samples, "seq_len": config.seq_len, "threads": options.threads,
        "block_mb": round(block_bytes(checkpoint) / 1e6),
        "peak_mb": round(peak / 1e6), "bound_mb": round(bound / 1e6), "peak_over_bound": f"{peak / bound:.2f}",
        "anonymous_mb": round(watch.anonymous / 1e6), "peak_phase": watch.phase,
        "estimate_mb": round(forecast.peak_host_bytes / 1e6),
        "estimate_over_peak": f"{forecast.peak_host_bytes / peak:.2f}", "user_cpu_s": f"{usage.ru_utime:.1f}",
        "block_s": f"{statistics.median(seconds):.2f}", "block_s_first": f"{seconds[0]:.2f}",
        "block_s_last": f"{seconds[-1]:.2f}",
    }  # fmt: skip


def spawn_quick_engine(run: Run) -> subprocess.Popen[bytes]:
    """As `spawn_engine`, but with its loops cut short."""
    descriptor = run.take_lock()
    with run.log_path.open("ab") as log:
        command = [sys.executable, "-m", "benchmarks.quick_engine", str(run.path), str(descriptor)]
        return subprocess.Popen(
            command, stdout=log, stderr=log, pass_fds=[descriptor], env={**RETURNED_MEMORY, **os.environ}
        )


def block_bytes(checkpoint: Checkpoint) -> int:
    """Of the largest block, as stored."""
    sizes: dict[int, int] = {}
    for linear in block_linears(checkpoint):
        sizes[linear.block] = sizes.get(linear.block, 0) + linear.tensor.nbytes
    return max(sizes.values())


def hidden_bytes(checkpoint: Checkpoint, config: RunConfig) -> int:
    """Of one stream of float32 hidden states."""
    return 4 * config.samples * config.seq_len * int(checkpoint.config["hidden_size"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tinyllama-1.1b", "llama2-7b"])
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--presets", default=",".join(Preset))
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--work", type=Path, help="where synthetic models are kept between calls")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            folder, label = prepare(name, options.blocks, options.work or Path(temporary))
            for preset in options.presets.split(","):
                started = time.perf_counter()
                row = measure(folder, label, Preset(preset), options, Path(temporary) / "output")
                record(row)
                print(f"{row} wall {time.perf_counter() - started:.0f} s", flush=True)


def prepare(name: str, blocks: int, work: Path) -> tuple[Path, str]:
    """The folder of a model, written first if `name` is a shape, and what to call it."""
    if Path(name).is_dir():
        return Path(name), Path(name).name
    from benchmarks.synthetic import SHAPES, write_synthetic

    folder = work / f"{name}-{blocks}"
    if not folder.is_dir():
        write_synthetic(folder, SHAPES[name].shortened(blocks))
    return folder, name


def record(row: dict[str, Any]) -> None:
    from benchmarks.results_file import append_rows

    append_rows("memory", [row])


if __name__ == "__main__":
    main()
