"""How near to the memory's speed the Triton kernels read weights, next to the vendor's product in 16 bits, on a GPU.

    python -m benchmarks.kernel_bandwidth [--quick] [--bits 4] [--dtype float16|bfloat16]

For every shape, group size and number of tokens: results are checked against float64 in memory filled with NaN before,
weights take turns beyond four times the last cache, fifty launches or more are captured in one graph, the median of its
replays counts, and every kernel is timed twice, before and after the vendor's. Ceilings (a copy, a sum) are measured in
the same run. Rows go to `results/kernel_bandwidth.csv` and the screen; `benchmarks.kernel_peers` has other kernels.

With TRITON_INTERPRET=1 and no GPU this is a rehearsal: tiny weights, every line run, nothing kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
import triton

from awq_engine.bench import check, moved_bytes, random_weight, stored_bytes
from awq_engine.tuned import measured_launches
from awq_kernels import reference, timing
from awq_kernels.dispatch import prepare
from awq_kernels.int_weight import IntWeight
from awq_kernels.plane import INTERPRETED
from awq_kernels.tuning import kernel_version
from benchmarks.results_file import append_rows

SHAPES = (
    (4096, 4096), (6144, 4096), (12288, 4096), (28672, 4096), (22016, 4096), (4096, 14336), (4096, 11008), (3584, 3584),
    (4608, 3584), (37888, 3584), (3584, 18944), (8192, 8192), (57344, 8192), (8192, 28672),
)  # fmt: skip
"""Outputs and inputs of Llama 7B, 8B and 70B and Qwen 7B, projections that share an input joined."""
QUICK_SHAPES = ((4096, 4096), (28672, 4096), (4096, 14336))
TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)
QUICK_TOKENS = (1, 8, 16, 64, 1024)
OTHER_GROUPS = (64, 32)
"""Measured for two shapes only."""
REHEARSED = ((64, 128, 64), (64, 128, 32))
"""Outputs, inputs and group of a rehearsal."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three shapes, five numbers of tokens")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    args = parser.parse_args()
    if (device := given_device("benchmarks.kernel_bandwidth")) is None:
        return 2
    ceilings = {"copy_GBps": timing.copy_bandwidth(device) / 1e9, "read_GBps": timing.read_bandwidth(device) / 1e9}
    name = "a rehearsal" if INTERPRETED else torch.cuda.get_device_name()
    print(f"{name}: " + ", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))
    for out_features, in_features, group_size in weights(args.quick):
        weight = random_weight(out_features, in_features, args.bits, group_size)
        tokens = (1, 70) if INTERPRETED else QUICK_TOKENS if args.quick else TOKENS
        rows = list(_rows(weight, getattr(torch, args.dtype), tokens, device, ceilings))
        if not INTERPRETED:
            append_rows("kernel_bandwidth", rows)
    return 0


def given_device(module: str) -> torch.device | None:
    """The GPU, or the CPU for a rehearsal; None, and a sentence, where there is neither."""
    if INTERPRETED:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    print(f"{module} needs a GPU; on a CPU run awq-tui bench.", file=sys.stderr)
    return None


def weights(quick: bool) -> Iterator[tuple[int, int, int]]:
    """Outputs, inputs and group of what is measured."""
    if INTERPRETED:
        yield from REHEARSED
        return
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield (*shape, 128)
    for shape in QUICK_SHAPES[:2]:
        for group_size in OTHER_GROUPS:
            yield (*shape, group_size)


@torch.inference_mode()
def _rows(
    weight: IntWeight, dtype: torch.dtype, tokens: tuple[int, ...], device: torch.device, ceilings: dict[str, float]
) -> Iterator[dict[str, Any]]:
    launches = measured_launches("triton", device)
    ours = [prepare(weight, "triton", device, launches) for _ in range(turns(stored_bytes(weight), device))]
    floats = reference.dequantize(weight.to(device), dtype)
    theirs = [partial(F.linear, weight=floats.clone()) for _ in range(turns(floats.nbytes, device))]
    for n_tokens in tokens:
        x = torch.randn(n_tokens, weight.in_features, dtype=dtype, device=device)
        poison(n_tokens, weight.out_features, x)
        error = check(ours[0], weight, x)
        assert torch.equal(ours[0](x), ours[0](x)), "the same call gave different bits"
        before, vendor, after = (
            timing.time_calls([partial(call, x) for call in calls], device) for calls in (ours, theirs, ours)
        )
        speed = moved_bytes(weight, x) / min(before.seconds, after.seconds) / 1e9
        row = circumstances(weight, dtype, n_tokens) | {
            "us": f"{1e6 * before.seconds:.2f}", "us_again": f"{1e6 * after.seconds:.2f}",
            "spread": f"{before.spread:.3f}", "GBps": f"{speed:.0f}",
            "of_copy": f"{speed / ceilings['copy_GBps']:.3f}", "of_read": f"{speed / ceilings['read_GBps']:.3f}",
            "relative_error": f"{error:.2e}", "floats_us": f"{1e6 * vendor.seconds:.2f}",
        }  # fmt: skip
        print(" ".join(str(value) for value in list(row.values())[3:]), flush=True)
        yield row


def circumstances(weight: IntWeight, dtype: torch.dtype, n_tokens: int) -> dict[str, Any]:
    """What every row begins with."""
    return {
        "triton": triton.__version__, "kernels": kernel_version(), "dtype": str(dtype).removeprefix("torch."),
        "out_features": weight.out_features, "in_features": weight.in_features, "bits": weight.bits,
        "group_size": weight.group_size, "tokens": n_tokens,
    }  # fmt: skip


def poison(n_tokens: int, out_features: int, x: torch.Tensor) -> None:
    """torch hands the memory of this to the next result of its size: what no kernel writes is NaN."""
    torch.full((n_tokens, out_features), float("nan"), dtype=x.dtype, device=x.device)


def turns(nbytes: int, device: torch.device) -> int:
    """How many weights of so many bytes take turns."""
    return 2 if INTERPRETED else timing.copies_beyond_cache(nbytes, device)


if __name__ == "__main__":
    sys.exit(main())
