"""How the Triton kernels stand to other people's kernels, on a GPU, in the same run.

    python -m benchmarks.kernel_peers [--quick] [--dtype float16|bfloat16] [--peers gemlite,autoawq,...]

The protocol is that of `benchmarks.kernel_bandwidth`: every result is checked against float64 before it is timed,
weights take turns beyond the last cache, CUDA graphs are replayed, and ours is timed before and after the others. Peers
are those of `benchmarks.peers`. One that is not installed, fails, or computes something else is said and left out; the
rest goes on. Rows, one for each peer, go to `results/kernel_peers.csv`, and at the end the geometric means over shapes.

With TRITON_INTERPRET=1 and no GPU this is a rehearsal: tiny weights, every line run, nothing kept.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from awq_engine.bench import check, random_weight, stored_bytes
from awq_engine.errors import first_line
from awq_engine.tuned import measured_launches
from awq_kernels import reference, timing
from awq_kernels.dispatch import prepare
from awq_kernels.int_weight import IntWeight
from awq_kernels.plane import INTERPRETED
from benchmarks.kernel_bandwidth import QUICK_TOKENS, TOKENS, circumstances, given_device, poison, turns, weights
from benchmarks.peers import PEERS, Call
from benchmarks.results_file import append_rows

WRONG = 0.05
"""Relative error from which on a peer's result is no rounding error."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three shapes, five numbers of tokens")
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--peers", default=",".join(PEERS))
    args = parser.parse_args()
    if (device := given_device("benchmarks.kernel_peers")) is None:
        return 2
    ratios: dict[tuple[str, int], list[float]] = defaultdict(list)
    for shape in weights(args.quick):
        weight = random_weight(*shape[:2], 4, shape[2])
        tokens = (1, 70) if INTERPRETED else QUICK_TOKENS if args.quick else TOKENS
        rows = list(_rows(weight, getattr(torch, args.dtype), tokens, device, args.peers.split(",")))
        for row in rows:
            ratios[row["peer"], row["tokens"]].append(float(row["time_over_ours"]))
        if rows and not INTERPRETED:
            append_rows("kernel_peers", rows)
    for (name, n_tokens), found in ratios.items():
        mean = math.exp(statistics.fmean(map(math.log, found)))
        print(f"{name} takes {mean:.2f} times as long as ours at {n_tokens} tokens, over {len(found)} shapes")
    return 0


@torch.inference_mode()
def _rows(
    weight: IntWeight, dtype: torch.dtype, tokens: tuple[int, ...], device: torch.device, names: list[str]
) -> Iterator[dict[str, Any]]:
    count = turns(stored_bytes(weight), device)
    launches = measured_launches("triton", device)
    ours = [prepare(weight, "triton", device, launches) for _ in range(count)]
    on_device = weight.to(device)
    peers = {name: calls for name in names if (calls := _made(name, on_device, dtype, count))}
    for n_tokens in tokens:
        x = torch.randn(n_tokens, weight.in_features, dtype=dtype, device=device)
        poison(n_tokens, weight.out_features, x)
        error = check(ours[0], weight, x)
        before = timing.time_calls([partial(call, x) for call in ours], device)
        found = {name: _time(name, calls, weight, x) for name, calls in peers.items()}
        after = timing.time_calls([partial(call, x) for call in ours], device)
        for name, peer in found.items():
            if peer is None:
                continue
            time, peer_error = peer
            row = circumstances(weight, dtype, n_tokens) | {
                "us": f"{1e6 * before.seconds:.2f}", "us_again": f"{1e6 * after.seconds:.2f}",
                "relative_error": f"{error:.2e}", "peer": name, "peer_us": f"{1e6 * time.seconds:.2f}",
                "peer_spread": f"{time.spread:.3f}", "peer_relative_error": f"{peer_error:.2e}",
                "time_over_ours": f"{2 * time.seconds / (before.seconds + after.seconds):.3g}",
            }  # fmt: skip
            print(" ".join(str(value) for value in list(row.values())[3:]), flush=True)
            yield row


def _made(name: str, weight: IntWeight, dtype: torch.dtype, count: int) -> list[Call]:
    """As many calls of a peer as take its weights beyond the cache; none where it cannot be had."""
    try:
        return [PEERS[name](weight, dtype) for _ in range(count)]
    except Exception as error:  # somebody else's code: whatever it raises must not end the measurement
        _say_failed(name, error)
        return []


def _time(name: str, calls: list[Call], weight: IntWeight, x: torch.Tensor) -> tuple[timing.Timing, float] | None:
    """Its time and its error; None where it fails, or gives something else."""
    try:
        expected = x.cpu().double() @ reference.dequantize(weight).double().T
        error = float((calls[0](x).cpu().double() - expected).norm() / expected.norm())
        if not error < WRONG:
            raise ArithmeticError(f"its result is wrong by {error:.1e}")
        return timing.time_calls([partial(call, x) for call in calls], x.device), error
    except Exception as error:
        _say_failed(name, error)
        return None


def _say_failed(name: str, error: Exception) -> None:
    print(f"{name} is left out: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
