"""How long until the first token of a prompt, next to the same model in floats?

    python -m benchmarks.prefill [--shape tinyllama-1.1b] [--blocks N] [--prompts 128,512] [--rounds 5] [--threads 2]
        [--device auto] [--peers float32,bfloat16] [--work FOLDER] [--note TEXT]

Ours is what `awq-tui chat` does with a prompt, in its chunks, on a W4 g128 checkpoint of random weights; `forward` is
the same with transformers' forward pass around our linears. `float32`, `bfloat16` and `float16` are the same weights
dequantized under transformers, the prompt as a whole; that ours gives their logits is checked before anything is timed.
All take turns (`benchmarks.turns`). Appends to `benchmarks/results/prefill.csv`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from awq_engine.decoding import lent_reader
from awq_engine.generate import read_prompt
from awq_engine.runtime import LoadedModel, load_dequantized
from benchmarks.decode import check, synthetic_model
from benchmarks.results_file import append_rows
from benchmarks.synthetic import SHAPES
from benchmarks.turns import as_the_chat_worker_runs, compared, take_turns

Measure = Callable[[list[int]], float]
"""Seconds from a prompt to the logits after it."""


def main() -> None:
    options = _parse()
    torch.set_num_threads(options.threads)
    shape = SHAPES[options.shape]
    shape = shape.shortened(options.blocks or shape.blocks)
    with tempfile.TemporaryDirectory() as temporary:
        folder, ours = synthetic_model(options.work or Path(temporary), options.shape, shape, options.device)
        ways: dict[str, Measure] = {"ours": partial(_ours, ours), "forward": partial(_ours, replace(ours, fast=None))}
        for peer in filter(None, options.peers.split(",")):
            floats = load_dequantized(folder, device=str(ours.device), dtype=getattr(torch, peer))
            check(ours, floats)
            ways[peer] = partial(_transformers, floats)
        for length in map(int, options.prompts.split(",")):
            prompt = [(7919 * n + 13) % shape.vocabulary for n in range(length)]
            rounds = take_turns({name: partial(measure, prompt) for name, measure in ways.items()}, options.rounds)
            rows = list(_rows(options, shape.blocks, length, rounds, ours.decoding))
            for row in rows:
                print(f"{length} tokens, {row['way']}: {row['ms']} ms, {row['time_over_ours']} x ours", flush=True)
            append_rows("prefill", rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=list(SHAPES))
    parser.add_argument("--blocks", type=int, help="fewer than the shape has")
    parser.add_argument("--prompts", default="128,512", help="lengths in tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--peers", default="float32,bfloat16", help="float32, bfloat16, float16")
    parser.add_argument("--work", type=Path, help="where models are kept between calls")
    parser.add_argument("--note", default="", help="what is measured, for the results file")
    return parser.parse_args()


def _ours(loaded: LoadedModel, prompt: list[int]) -> float:
    started = time.perf_counter()
    with lent_reader(replace(loaded)) as reader:  # nothing is known of an earlier prompt
        *_, logits = read_prompt(reader, prompt, lambda: False)
    assert isinstance(logits, torch.Tensor)
    return time.perf_counter() - started


@torch.inference_mode()
def _transformers(loaded: LoadedModel, prompt: list[int]) -> float:
    model: Any = loaded.model
    started = time.perf_counter()
    model(input_ids=torch.tensor([prompt], device=loaded.device), use_cache=True, logits_to_keep=1).logits.cpu()
    return time.perf_counter() - started


def _rows(
    options: argparse.Namespace, blocks: int, length: int, rounds: list[dict[str, float]], decoding: str
) -> Iterator[dict[str, Any]]:
    for facts in compared(rounds, "ms"):
        yield {
            "shape": options.shape, "blocks": blocks, "threads": options.threads, "prompt": length,
            **facts, "tokens_per_second": f"{1000 * length / float(facts['ms']):.0f}",
            "decoding": decoding, "note": options.note,
        }  # fmt: skip


if __name__ == "__main__":
    as_the_chat_worker_runs("benchmarks.prefill")
    main()
