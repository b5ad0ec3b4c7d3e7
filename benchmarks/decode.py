"""How fast does a person get tokens, next to the same model in floats and next to llama.cpp?

    python -m benchmarks.decode [--shape tinyllama-1.1b] [--blocks N] [--threads 2] [--tokens 32] [--rounds 7]
        [--peers float32,bfloat16,Q4_1,Q4_K_S] [--head] [--work FOLDER] [--note TEXT]

Ours is what `awq-tui chat` runs: `generate` on a W4 g128 checkpoint, greedy; `forward` is the same with transformers'
forward pass around our linears, `quick head` the same with `--quick-head`. `float32` and `bfloat16` are the very same
weights dequantized, under transformers `generate`; that ours gives their logits is checked before anything is timed.
`Q4_...` is llama.cpp in a process of its own, on a model of the same shape (its head as it rounds it by default; ours
stays in floats unless `--head`), from an environment that is built on first use, which takes long on few cores.

All take turns (`benchmarks.turns`). Appends to `benchmarks/results/decode.csv`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from awq_engine.decoding import open_decoder, prepare_decoding
from awq_engine.doctor import processor
from awq_engine.generate import GenerationStats, generate
from awq_engine.runtime import LoadedModel, load_dequantized, load_model
from awq_engine.sampling_settings import Sampling
from awq_engine.spec import QuantSpec
from benchmarks.results_file import append_rows
from benchmarks.synthetic import SHAPES, Shape, write_synthetic
from benchmarks.turns import as_the_chat_worker_runs, compared, take_turns

MESSAGES = [{"role": "user", "content": "Tell me about a dog."}]
PROMPT = list(range(3, 19))
TOLERANCE = 0.05
"""Relative difference of logits that activations in bfloat16 explain over some dozens of blocks."""
ENVIRONMENT = Path("build") / "llama-cpp"
PEER = Path(__file__).with_name("llama_cpp_peer.py")

Measure = Callable[[int], float]
"""Seconds for each of so many tokens after the first."""


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    shape = shape.shortened(options.blocks or shape.blocks)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        ways, decoding = _ways(options, shape, work)
        measured = {name: partial(measure, options.tokens) for name, measure in ways.items()}
        rows = list(_rows(options, shape, take_turns(measured, options.rounds), decoding))
    for row in rows:
        print(f"{row['way']:<10} {row['ms_per_token']:>8} ms/token, {row['time_over_ours']} x ours ({row['spread']})")
    append_rows("decode", rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=list(SHAPES))
    parser.add_argument("--blocks", type=int, help="fewer than the shape has")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", default="float32,bfloat16", help="float32, bfloat16, Q4_0, Q4_1, Q4_K_S, Q4_K_M")
    parser.add_argument("--head", action="store_true", help="round the output head too")
    parser.add_argument("--work", type=Path, help="where models are kept between calls")
    parser.add_argument("--note", default="", help="what is measured, for the results file")
    return parser.parse_args()


def _ways(options: argparse.Namespace, shape: Shape, work: Path) -> tuple[dict[str, Measure], str]:
    """What is measured, by name, ours first; and which decoder ours is."""
    folder, ours = synthetic_model(work, options.shape, shape, "cpu", options.head)
    others = {"forward": replace(ours, fast=None)}
    if not options.head:
        others["quick head"] = prepare_decoding(ours, quick_head=True)
    ways: dict[str, Measure] = {"ours": lambda tokens: _ours(ours, tokens)}
    ways |= {name: (lambda tokens, way=way: _ours(way, tokens)) for name, way in others.items()}
    for peer in filter(None, options.peers.split(",")):
        if peer in ("float32", "bfloat16"):
            floats = load_dequantized(folder, device="cpu", dtype=getattr(torch, peer))
            check(ours, floats)
            ways[peer] = lambda tokens, floats=floats: _transformers(floats, tokens)
        else:
            ways[peer] = llama_cpp(work / f"{options.shape}-{shape.blocks}-{peer}.gguf", shape, peer, options.threads)
    return ways, ours.decoding


def synthetic_model(work: Path, name: str, shape: Shape, device: str, head: bool = False) -> tuple[Path, LoadedModel]:
    """A W4 g128 checkpoint of random weights in `work`, written when it is not there, and the same ready to chat."""
    folder = work / f"{name}-{shape.blocks}-w4{'-head' if head else ''}"
    if not folder.is_dir():
        write_synthetic(folder, shape, rounded=QuantSpec(4, 128, symmetric=False), head=head)
    return folder, prepare_decoding(load_model(folder, device=device))


def check(ours: LoadedModel, floats: LoadedModel) -> None:
    """Both must find the same tokens likely before either is timed."""
    expected = open_decoder(floats).read(PROMPT, keep=len(PROMPT))
    found = open_decoder(ours).read(PROMPT, keep=len(PROMPT))
    difference = float((found - expected).norm() / (expected - expected.mean(-1, keepdim=True)).norm())
    print(f"logits differ by {difference:.1e} from those in {floats.dtype}", flush=True)
    if not difference < TOLERANCE:
        raise SystemExit("that is no rounding error: nothing is timed")


def _ours(loaded: LoadedModel, tokens: int) -> float:
    *_, stats = generate(loaded, MESSAGES, Sampling(max_tokens=tokens + 1, temperature=0))
    assert isinstance(stats, GenerationStats)
    assert stats.new_tokens == tokens + 1
    return 1 / stats.tokens_per_second


class Clock(BaseStreamer):
    """When each token came; the prompt comes first."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def _transformers(loaded: LoadedModel, tokens: int) -> float:
    model: Any = loaded.model
    clock = Clock()
    with torch.inference_mode():
        model.generate(
            torch.tensor([PROMPT]),
            max_new_tokens=tokens + 1,
            min_new_tokens=tokens + 1,
            do_sample=False,
            streamer=clock,
        )
    return (clock.times[-1] - clock.times[1]) / tokens


def llama_cpp(file: Path, shape: Shape, kind: str, threads: int) -> Measure:
    """llama.cpp in a process of its own, ready to be asked."""
    python = _environment()
    if not file.is_file():
        subprocess.run([python, PEER, file, "--write", json.dumps(asdict(shape)), kind], check=True)
    process = subprocess.Popen(
        [python, PEER, file, str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    send, receive = process.stdin, process.stdout
    if receive.readline().strip() != "ready":
        raise SystemExit("llama.cpp did not start")

    def measure(tokens: int) -> float:
        send.write(f"{tokens}\n")
        send.flush()
        return float(receive.readline())

    return measure


def _environment() -> Path:
    """The Python of an environment with llama-cpp-python, built from its source package when it is not there yet."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        command = [python, "-m", "pip", "install", "--no-binary", "llama-cpp-python", "llama-cpp-python", "gguf"]
        subprocess.run(command, check=True, env={**os.environ, "CMAKE_BUILD_PARALLEL_LEVEL": "1"})
    return python


def _rows(
    options: argparse.Namespace, shape: Shape, rounds: list[dict[str, float]], decoding: str
) -> Iterator[dict[str, Any]]:
    for facts in compared(rounds, "ms_per_token"):
        yield {
            "processor": f"{processor()} {torch.backends.cpu.get_cpu_capability()}",
            "transformers": version("transformers"), "python": platform.python_version(),
            "shape": options.shape, "blocks": shape.blocks, "head": options.head,
            "threads": options.threads, "tokens": options.tokens, **facts,
            "decoding": decoding, "note": options.note,
        }  # fmt: skip


if __name__ == "__main__":
    as_the_chat_worker_runs("benchmarks.decode")
    main()
