"""How much sooner is a model quantized when several processes, or the workers of a Ray cluster, share the work?

    python -m benchmarks.sharing [MODEL | SHAPE] [--blocks 2] [--samples 64] [--seq-len 512] [--preset balanced]
        [--workers 2] [--ray] [--work FOLDER]

SHAPE is one of `benchmarks.synthetic.SHAPES`, written first with `--blocks` blocks; MODEL is a folder. Every process
has one thread. The engine runs alone, then with so many processes, and with `--ray` on Ray clusters of 1 and of so many
on this machine; the same bytes must come out every time before a figure is told. Seconds are those of the blocks, first
to last, so the start of processes and the reading of text are not in them; `wall` has everything.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from awq_engine.config import Preset, RunConfig
from awq_engine.events import BlockFinished, BlockStarted
from awq_engine.runs import create_run, spawn_engine
from benchmarks.memory import prepare
from benchmarks.results_file import append_rows

PORT, CLIENT_PORT = 26380, 20089


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="tinyllama-1.1b")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--preset", type=Preset, default=Preset.BALANCED)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--work", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        os.environ["AWQ_TUI_HOME"] = f"{folder}/home"
        model, _ = prepare(args.model, args.blocks, Path(folder))
        config = RunConfig(
            str(model), f"{folder}/out", preset=args.preset, samples=args.samples, seq_len=args.seq_len, device="cpu",
            threads=1, overwrite=True,
        )  # fmt: skip
        measured = {"alone": measure(config)}
        measured[f"{args.workers} processes"] = measure(replace(config, workers=args.workers))
        for count in (1, args.workers) if args.ray else ():
            with cluster(count) as address:
                measured[f"Ray, {count}"] = measure(replace(config, on=address))
    report(args, measured)


def measure(config: RunConfig) -> dict[str, Any]:
    """Quantize once, in an engine of its own."""
    started, run = time.perf_counter(), create_run(config)
    if spawn_engine(run).wait() != 0:
        raise SystemExit(f"the run failed:\n{run.log_path.read_text()}")
    wall = time.perf_counter() - started
    times = [record.time for record in run.records() if isinstance(record.event, BlockStarted | BlockFinished)]
    digest = hashlib.sha256()
    for shard in sorted(Path(config.output).glob("*.safetensors")):
        digest.update(shard.read_bytes())
    figures = {"blocks_s": times[-1] - times[0], "wall_s": wall, "sha256": digest.hexdigest()}
    print(figures, flush=True)
    return figures


@contextlib.contextmanager
def cluster(count: int) -> Iterator[str]:
    """A Ray cluster of `count` processors on this machine."""
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        command = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--disable-usage-stats",
            f"--num-cpus={count}", f"--port={PORT}", f"--ray-client-server-port={CLIENT_PORT}",
            "--include-dashboard=false", f"--temp-dir={folder}",
        ]  # fmt: skip
        with subprocess.Popen(
            command, cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as head:
            time.sleep(20)
            yield f"ray://127.0.0.1:{CLIENT_PORT}"
            os.killpg(head.pid, signal.SIGTERM)


def report(args: argparse.Namespace, measured: dict[str, dict[str, Any]]) -> None:
    alone = measured["alone"]
    different = [who for who, figures in measured.items() if figures["sha256"] != alone["sha256"]]
    if different:
        raise SystemExit(f"other bytes than alone: {', '.join(different)}")
    rows = []
    for who, figures in measured.items():
        speedup = alone["blocks_s"] / figures["blocks_s"]
        print(f"{who:14} blocks {figures['blocks_s']:6.1f} s  x{speedup:.2f}   wall {figures['wall_s']:6.1f} s")
        rows.append(
            {
                "model": f"{Path(args.model).name} {args.blocks} blocks", "preset": args.preset.value,
                "tokens": args.samples * args.seq_len, "who": who, "blocks_s": round(figures["blocks_s"], 1),
                "wall_s": round(figures["wall_s"], 1), "speedup": round(speedup, 2),
            }
        )  # fmt: skip
    print(append_rows("sharing", rows))


if __name__ == "__main__":
    main()
