"""How near to the memory's speed the Triton kernels read weights, and how they stand to others, on a GPU.

    python -m benchmarks.kernel_bandwidth [--quick] [--bits 4] [--dtype float16|bfloat16]

For every shape, group size and number of tokens: results are checked against float64 in memory filled with NaN before,
weights take turns beyond four times the last cache, fifty launches or more are captured in one graph, the median of its
replays counts, and every kernel is timed twice, before and after the others. Ceilings (a copy, a sum) are measured in
the same run. Rows go to `results/kernel_bandwidth.csv` and the screen. Others: the vendor's product in 16 bits, torch's
tinygemm (bfloat16), and, where they are installed, gemlite and AutoAWQ's Triton kernel. One that fails, or whose result
is wrong, is said and left empty; the rest goes on.

With TRITON_INTERPRET=1 and no GPU this is a rehearsal: tiny weights, every line run, nothing kept.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton

from awq_engine.bench import check, moved_bytes, random_weight, stored_bytes
from awq_engine.errors import first_line
from awq_engine.formats import awq
from awq_engine.spec import QuantSpec
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
OTHERS = ("floats", "tinygemm", "gemlite", "autoawq")
WRONG = 0.05
"""Relative error from which on a peer's result is no rounding error."""

Call = Callable[[torch.Tensor], torch.Tensor]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernel_bandwidth", description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="three shapes, five numbers of tokens")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not INTERPRETED:
        print("benchmarks.kernel_bandwidth needs a GPU; on a CPU run awq-tui bench.", file=sys.stderr)
        return 2
    device = torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())
    ceilings = {"copy_GBps": timing.copy_bandwidth(device) / 1e9, "read_GBps": timing.read_bandwidth(device) / 1e9}
    name = "a rehearsal" if INTERPRETED else torch.cuda.get_device_name()
    print(f"{name}: " + ", ".join(f"{name} {value:.0f}" for name, value in ceilings.items()))
    for out_features, in_features, group_size in REHEARSED if INTERPRETED else _cases(args.quick):
        weight = random_weight(out_features, in_features, args.bits, group_size)
        tokens = (1, 70) if INTERPRETED else QUICK_TOKENS if args.quick else TOKENS
        rows = list(_rows(weight, getattr(torch, args.dtype), tokens, device, ceilings))
        if not INTERPRETED:
            append_rows("kernel_bandwidth", rows)
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
    turns = _turns(stored_bytes(weight), device)
    launches = measured_launches("triton", device)
    ours = [prepare(weight, "triton", device, launches) for _ in range(turns)]
    others = _others(weight, dtype, device)
    for n_tokens in tokens:
        x = torch.randn(n_tokens, weight.in_features, dtype=dtype, device=device)
        poison = torch.full((n_tokens, weight.out_features), float("nan"), dtype=dtype, device=device)
        del poison  # torch hands this memory to the first result: what no kernel wrote is NaN
        error = check(ours[0], weight, x)
        assert torch.equal(ours[0](x), ours[0](x)), "the same call gave different bits"
        before = timing.time_calls([partial(call, x) for call in ours], device)
        peers = {name: _time_other(name, calls, weight, x) for name, calls in others.items()}
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
        for name in OTHERS:
            found = peers.get(name)
            row[f"{name}_us"] = f"{1e6 * found.seconds:.2f}" if found else ""
        print(" ".join(str(row[key]) for key in list(row)[3:]), flush=True)
        yield row


def _turns(nbytes: int, device: torch.device) -> int:
    return 2 if INTERPRETED else timing.copies_beyond_cache(nbytes, device)


def _others(weight: IntWeight, dtype: torch.dtype, device: torch.device) -> dict[str, list[Call]]:
    """As many calls of each as take its weights beyond the cache; without those that are not here or cannot be made."""
    makers = {
        "floats": lambda: _floats,
        "tinygemm": lambda: _tinygemm if weight.bits == 4 and dtype == torch.bfloat16 else None,
        "gemlite": lambda: _gemlite() if weight.bits in (2, 4, 8) else None,
        "autoawq": lambda: _autoawq() if weight.bits == 4 and dtype == torch.float16 else None,
    }
    found: dict[str, list[Call]] = {}
    for name, maker in makers.items():
        turns = _turns(weight.q.numel() * 2 if name == "floats" else stored_bytes(weight), device)
        try:
            if (make := maker()) is not None:
                found[name] = [make(weight.to(device), dtype) for _ in range(turns)]
        except Exception as error:  # somebody else's code: whatever it raises must not end the measurement
            _say_failed(name, error)
    return found


def _time_other(name: str, calls: list[Call], weight: IntWeight, x: torch.Tensor) -> timing.Timing | None:
    """None where it fails, or gives something else."""
    try:
        expected = x.cpu().double() @ reference.dequantize(weight).double().T
        error = float((calls[0](x).cpu().double() - expected).norm() / expected.norm())
        if not error < WRONG:
            raise ArithmeticError(f"its result is wrong by {error:.1e}")
        return timing.time_calls([partial(call, x) for call in calls], x.device)
    except Exception as error:
        _say_failed(name, error)
        return None


def _say_failed(name: str, error: Exception) -> None:
    print(f"{name} is left out: {type(error).__name__}: {first_line(error)}", file=sys.stderr, flush=True)


def _floats(weight: IntWeight, dtype: torch.dtype) -> Call:
    return partial(F.linear, weight=reference.dequantize(weight, dtype))


def _tinygemm(weight: IntWeight, dtype: torch.dtype) -> Call:
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


def _autoawq() -> Callable[[IntWeight, torch.dtype], Call] | None:
    """Its Triton kernel, read from its file: the package itself does not load beside transformers of today."""
    found = importlib.util.find_spec("awq")
    if found is None or found.origin is None:
        return None

    def make(weight: IntWeight, dtype: torch.dtype) -> Call:
        assert found.origin
        spec = importlib.util.spec_from_file_location("awq_gemm", Path(found.origin).parent / "modules/triton/gemm.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        packed = awq.pack(weight, QuantSpec(4, weight.group_size, symmetric=False), "peer")
        q, zeros, scales = (packed[part].to(weight.q.device) for part in ("qweight", "qzeros", "scales"))
        return lambda x: module.awq_gemm_triton(x, q, scales.to(dtype), zeros, 8)

    return make


if __name__ == "__main__":
    sys.exit(main())
