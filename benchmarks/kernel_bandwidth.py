"""How near to the memory's speed the Triton kernels read weights, and how they stand to others, on a GPU.

    python -m benchmarks.kernel_bandwidth [--quick] [--bits 4] [--dtype float16|bfloat16]

For every shape, group size and number of tokens: results are checked against float64 in memory filled with NaN before,
weights take turns beyond four times the last cache, fifty launches or more are captured in one graph, the median of its
replays counts, and every kernel is timed twice, before and after the others. Ceilings (a copy, a sum) are measured in
the same run. Rows go to `results/kernel_bandwidth.csv` and the screen. Others: the vendor's product in 16 bits, torch's
tinygemm (bfloat16), and gemlite where it is installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
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

Call = Callable[[torch.Tensor], torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_bandwidth", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three shapes, five numbers of tokens")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("benchmarks.kernel_bandwidth needs a GPU; on a CPU run awq-tui bench.", file=sys.stderr)
        return 2
    device = torch.device("cuda", torch.cuda.current_device())
    ceilings = {"copy_GBps": timing.copy_bandwidth(device) / 1e9, "read_GBps": timing.read_bandwidth(device) / 1e9}
    print(f"{torch.cuda.get_device_name()}: " + ", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))
    for out_features, in_features, group_size in _cases(args.quick):
        weight = random_weight(out_features, in_features, args.bits, group_size)
        tokens = QUICK_TOKENS if args.quick else TOKENS
        append_rows("kernel_bandwidth", list(_rows(weight, getattr(torch, args.dtype), tokens, device, ceilings)))
    return 0


def _cases(quick: bool) -> Iterator[tuple[int, int, int]]:
    for shape in QUICK_SHAPES if quick else SHAPES:
        yield (*shape, 128)
    for shape in QUICK_SHAPES[:2]:
        for group_size in OTHER_GROUPS:
            yield (*shape, group_size)


@torch.inference_mode()
def _rows(
    weight: IntWeight, dtype: torch.dtype, tokens: tuple[int, ...], device: torch.device, ceilings: dict[str, float]
) -> Iterator[dict[str, Any]]:
    turns = timing.copies_beyond_cache(stored_bytes(weight), device)
    launches = measured_launches("triton", device)
    ours = [prepare(weight, "triton", device, launches) for _ in range(turns)]
    others = dict(_others(weight, dtype, device))
    for n_tokens in tokens:
        x = torch.randn(n_tokens, weight.in_features, dtype=dtype, device=device)
        poison = torch.full((n_tokens, weight.out_features), float("nan"), dtype=dtype, device=device)
        del poison  # torch hands this memory to the first result: what no kernel wrote is NaN
        error = check(ours[0], weight, x)
        assert torch.equal(ours[0](x), ours[0](x)), "the same call gave different bits"
        before = timing.time_calls([partial(call, x) for call in ours], device)
        peers = {
            name: timing.time_calls([partial(call, x) for call in calls], device) for name, calls in others.items()
        }
        after = timing.time_calls([partial(call, x) for call in ours], device)
        speed = moved_bytes(weight, x) / min(before.seconds, after.seconds) / 1e9
        row: dict[str, Any] = {
            "triton": triton.__version__, "kernels": kernel_version(), "dtype": str(dtype).removeprefix("torch."),
            "out_features": weight.out_features, "in_features": weight.in_features, "bits": weight.bits,
            "group_size": weight.group_size, "tokens": n_tokens, "us": f"{1e6 * before.seconds:.2f}",
            "us_again": f"{1e6 * after.seconds:.2f}", "spread": f"{before.spread:.3f}", "GBps": f"{speed:.0f}",
            "of_copy": f"{speed / ceilings['copy_GBps']:.3f}", "of_read": f"{speed / ceilings['read_GBps']:.3f}",
            "relative_error": f"{error:.2e}",
        }  # fmt: skip
        for name in ("floats", "tinygemm", "gemlite"):
            found = peers.get(name)
            row[f"{name}_us"] = f"{1e6 * found.seconds:.2f}" if found else ""
        print(" ".join(str(row[key]) for key in list(row)[3:]), flush=True)
        yield row


def _others(weight: IntWeight, dtype: torch.dtype, device: torch.device) -> Iterator[tuple[str, list[Call]]]:
    floats = reference.dequantize(weight.to(device), dtype)
    turns = timing.copies_beyond_cache(floats.nbytes, device)
    yield "floats", [partial(F.linear, weight=floats.clone()) for _ in range(turns)]
    turns = timing.copies_beyond_cache(stored_bytes(weight), device)
    if weight.bits == 4 and dtype == torch.bfloat16:
        yield "tinygemm", [_tinygemm(weight.to(device)) for _ in range(turns)]
    if weight.bits in (2, 4, 8) and (make := _gemlite()) is not None:
        yield "gemlite", [make(weight.to(device), dtype) for _ in range(turns)]


def _tinygemm(weight: IntWeight) -> Call:
    """torch's own kernel: w = (q - 8) * scale + zero, integers in pairs, the even one in the high bits."""
    scale = weight.scale.float()
    zero = (8 - weight.zero_point.float()) * scale
    packed = torch.ops.aten._convert_weight_to_int4pack((weight.q[:, ::2] << 4) | weight.q[:, 1::2], 8)
    scale_and_zero = torch.stack([scale.T, zero.T], dim=2).to(torch.bfloat16).contiguous()
    return lambda x: torch.ops.aten._weight_int4pack_mm(x, packed, weight.group_size, scale_and_zero)


def _gemlite() -> Callable[[IntWeight, torch.dtype], Call] | None:
    try:
        import gemlite  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None

    def make(weight: IntWeight, dtype: torch.dtype) -> Call:
        kind = gemlite.DType.FP16 if dtype == torch.float16 else gemlite.DType.BF16
        layer = gemlite.GemLiteLinear(
            weight.bits, weight.group_size, weight.in_features, weight.out_features, input_dtype=kind, output_dtype=kind
        )
        layer.pack(weight.q, weight.scale.to(dtype), weight.zero_point.to(dtype), bias=None)
        return layer

    return make


if __name__ == "__main__":
    sys.exit(main())
