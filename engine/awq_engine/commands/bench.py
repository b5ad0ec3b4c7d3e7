"""`bench`: how fast this machine multiplies with quantized weights."""

from __future__ import annotations

import argparse
from dataclasses import asdict

import torch

from awq_engine.bench import measure, model_weights, random_weights, time_writing, tune
from awq_engine.commands.console import note, result, result_json, table
from awq_engine.config import SUPPORTED_BITS
from awq_engine.errors import ExitCode, UsageError
from awq_engine.models import resolve_model
from awq_engine.runtime import pick_backend, pick_device
from awq_engine.speeds import Product, Speeds
from awq_kernels.timing import copy_bandwidth

HEADER = ("outputs", "inputs", "bits", "group", "tokens", "backend", "time", "GB/s", "of copy", "vs floats", "error")


def bench(args: argparse.Namespace) -> int:
    """Measure and print one line per product, or one JSON object."""
    device = pick_device(args.device)
    status = pick_backend(args.backend, device)
    _check(args)
    with torch.inference_mode():
        weights = (
            model_weights(resolve_model(args.model).path)
            if args.model
            else random_weights(device, args.bits, args.group_size)
        )
        if args.tune:
            if status.name != "triton" or device.type == "cpu":
                raise UsageError(
                    f"--tune searches how to launch kernels on a GPU; on {device} there is nothing to tune."
                )
            note(f"kept in {tune(weights, device, lambda shape: note(f'tuned {shape}'))}")
        bandwidth = copy_bandwidth(device)
        products: list[Product] = []
        for number, weight in enumerate(weights, start=1):
            products += measure(weight, status.name, device, bandwidth)
            note(f"measured {number} of {len(weights)} shapes")
    writing = time_writing(resolve_model(args.model).path, args.backend, args.device) if args.model else None
    if args.json:
        result_json(asdict(Speeds(str(device), status.name, bandwidth, tuple(products), writing)))
    else:
        result(table(HEADER, [_cells(product) for product in products], right=" ".join(HEADER)))
        if writing is not None:
            first = f"the first of {writing.tokens} after {writing.seconds_to_first_token:.2f} s"
            result(f"writes {writing.tokens_per_second:.1f} tokens/s, {first}, by {writing.decoding}")
        result(
            f"{device} copies {bandwidth / 1e9:.1f} GB/s; floats are {'float32' if device.type == 'cpu' else 'float16'}"
        )
    return ExitCode.OK


def _check(args: argparse.Namespace) -> None:
    if args.bits not in SUPPORTED_BITS:
        raise UsageError(f"--bits is {args.bits}; it must be one of {', '.join(map(str, SUPPORTED_BITS))}.")
    if args.group_size != -1 and (args.group_size < 8 or 2048 % args.group_size):
        raise UsageError(f"--group-size is {args.group_size}; it must be -1 or a power of two from 8 to 2048.")


def _cells(product: Product) -> tuple[str, ...]:
    return (
        str(product.out_features), str(product.in_features), str(product.bits), str(product.group_size),
        str(product.tokens), product.backend,
        f"{1e6 * product.seconds:.1f} us", f"{product.bytes_per_second / 1e9:.1f}",
        f"{100 * product.share_of_copy:.0f} %", f"{product.times_floats:.2f}x", f"{product.relative_error:.1e}",
    )  # fmt: skip
