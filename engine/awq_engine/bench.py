"""How fast this machine multiplies with quantized weights, against what its memory allows and against floats.

Every product is compared with float64 before it is timed. Weights take turns so that no cache holds them, as in a
model; the bytes counted are those of integers, scales and zero points, activations and results. The ceiling is how fast
this very machine copies memory, measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from awq_engine.checkpoint import Checkpoint, read_checkpoint
from awq_engine.decoding import prepare_decoding
from awq_engine.errors import AwqError, BadInputError
from awq_engine.formats.stated import read_quantization
from awq_engine.generate import GenerationStats, generate
from awq_engine.runtime import LoadedModel, load_model, pick_backend, pick_device
from awq_engine.sampling_settings import Sampling
from awq_engine.speeds import Product, Speeds, Writing
from awq_engine.tensor_files import open_tensors
from awq_engine.tuned import launches_folder, measured_launches
from awq_kernels import reference, timing
from awq_kernels.dispatch import PreparedLinear, prepare
from awq_kernels.int_weight import IntWeight

SHAPES_8B = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
"""Outputs and inputs of a model of 8 billion parameters, projections that share an input joined."""
SHAPES_1B = ((2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632))
"""Of one of 1 billion: what a CPU can chat with."""
TOKENS_ON_CPU = (1, 8, 128)
TOKENS_ON_GPU = (1, 4, 16, 64, 1024)
CHECKED_OUTPUTS = 256
"""Outputs compared with float64."""
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 1e-2, torch.float32: 1e-2}
"""Relative error that marks a product as wrong; on the CPU few tokens are computed in bfloat16."""


MESSAGES = [{"role": "user", "content": "Tell me a story about a dog that crosses a river."}]
WRITTEN_TOKENS = 32


@dataclass(frozen=True)
class Weight:
    """A weight to measure, and how often it is there."""

    weight: IntWeight
    count: int = 1


def random_weights(device: torch.device, bits: int, group_size: int) -> list[Weight]:
    """Random weights in shapes that suit the device; random, as zeros are multiplied faster on some."""
    shapes = SHAPES_1B if device.type == "cpu" else SHAPES_8B
    return [Weight(random_weight(*shape, bits, shape[1] if group_size == -1 else group_size)) for shape in shapes]


def model_weights(path: Path) -> list[Weight]:
    """One linear of the model in `path` for each shape, bits and group size that it has.

    Raises `BadInputError` when the model is not quantized.
    """
    checkpoint = read_checkpoint(path)
    quantization = read_quantization(checkpoint)
    if quantization is None:
        raise BadInputError(f"{path} is not quantized; give a quantized model, or none to measure usual shapes.")
    alike: dict[tuple[object, ...], list[str]] = {}
    for name in quantization.linears(checkpoint):
        parts = quantization.reader.of(checkpoint.tensors, name)
        key = (quantization.spec_of(name), *((part, info.shape) for part, info in sorted(parts.items())))
        alike.setdefault(key, []).append(name)
    found = []
    for names in alike.values():
        parts = quantization.reader.of(checkpoint.tensors, names[0])
        tensors = {part: _read(checkpoint, info.name) for part, info in parts.items()}
        found.append(Weight(quantization.reader.unpack(tensors, quantization.spec_of(names[0]), names[0]), len(names)))
    return found


def measure(weight: Weight, backend: str, device: torch.device, copy_bandwidth: float) -> Iterator[Product]:
    """Check and time a weight with few and with many tokens. Raises `AwqError` when a product is wrong."""
    integers = weight.weight
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    launches = measured_launches(backend, device)
    ours = [prepare(integers, backend, device, launches) for _ in range(_turns(stored_bytes(integers), device))]
    floats = reference.dequantize(integers.to(device), dtype)
    theirs = [partial(F.linear, weight=floats.clone()) for _ in range(_turns(floats.nbytes, device))]
    for n_tokens in TOKENS_ON_CPU if device.type == "cpu" else TOKENS_ON_GPU:
        x = torch.randn(n_tokens, integers.in_features, dtype=dtype, device=device)
        error = check(ours[0], integers, x)
        time, floats_time = (
            timing.time_calls([partial(call, x) for call in calls], device) for calls in (ours, theirs)
        )
        speed = moved_bytes(integers, x) / time.seconds
        yield Product(
            out_features=integers.out_features,
            in_features=integers.in_features,
            bits=integers.bits,
            group_size=integers.group_size,
            count=weight.count,
            tokens=n_tokens,
            backend=ours[0].backend,
            seconds=time.seconds,
            spread=time.spread,
            bytes_per_second=speed,
            share_of_copy=speed / copy_bandwidth,
            times_floats=floats_time.seconds / time.seconds,
            relative_error=error,
        )


def bench_model(path: Path, backend: str, device: str, on_progress: Callable[[int, int], None]) -> Speeds:
    """The products of the quantized model in `path`, and how fast it writes.

    Args:
        on_progress: told how many steps are done, of how many; raises to end the work.
    """
    place = pick_device(device)
    way = pick_backend(backend, place).name
    weights = model_weights(path)
    steps, bandwidth, products = len(weights) + 1, timing.copy_bandwidth(place), []
    on_progress(0, steps)
    for number, weight in enumerate(weights, start=1):
        with torch.inference_mode():
            products += measure(weight, way, place, bandwidth)
        on_progress(number, steps)
    return Speeds(str(place), way, bandwidth, tuple(products), time_writing(path, backend, device))


def time_writing(path: Path, backend: str, device: str) -> Writing:
    """Let the model in `path` write; it has done so once before it is timed."""
    loaded = prepare_decoding(load_model(path, backend=backend, device=device))
    _write(loaded)
    loaded.kept.clear()
    stats = _write(loaded)
    return Writing(stats.new_tokens, stats.tokens_per_second, stats.seconds_to_first_token, loaded.decoding)


def _write(loaded: LoadedModel) -> GenerationStats:
    *_, stats = generate(loaded, MESSAGES, Sampling(max_tokens=WRITTEN_TOKENS, temperature=0))
    assert isinstance(stats, GenerationStats)
    return stats


def tune(weights: Sequence[Weight], device: torch.device, on_shape: Callable[[str], None]) -> Path:
    """Search the fastest launches for these weights and keep them; returns the file they are in."""
    from awq_kernels import tiles, tuning

    file = tuning.measured_file(launches_folder(), device)
    for weight in weights:
        if tiles.obstacle(weight.weight):
            continue
        packed = tiles.pack_tiles(weight.weight.to(device))
        found = dict(tuning.tune(packed, n_tokens, torch.float16) for n_tokens in TOKENS_ON_GPU if n_tokens <= 64)
        tuning.write_measured(file, found)
        for key in found:
            on_shape(key)
    return file


def stored_bytes(weight: IntWeight) -> int:
    """Bytes of integers, 16-bit scales and, unless symmetric, 16-bit zero points."""
    per_group = 2 if weight.symmetric else 4
    return weight.q.numel() * weight.bits // 8 + weight.scale.numel() * per_group


def moved_bytes(weight: IntWeight, x: torch.Tensor) -> int:
    """Bytes that a product must read and write: weight, x [n_tokens, in_features] and result."""
    return stored_bytes(weight) + x.nbytes + len(x) * weight.out_features * x.element_size()


def check(linear: PreparedLinear, weight: IntWeight, x: torch.Tensor) -> float:
    """The relative error of a product against float64, for some outputs; `AwqError` when it is no rounding error."""
    rows = torch.arange(0, weight.out_features, max(1, weight.out_features // CHECKED_OUTPUTS))
    part = IntWeight(weight.q[rows], weight.scale[rows], weight.zero_point[rows], weight.group_size, weight.bits)
    ordered = x.cpu() if weight.order is None else x.cpu()[:, weight.order]
    expected = ordered.double() @ reference.dequantize(part).double().T
    error = float((linear(x)[:, rows.to(x.device)].cpu().double() - expected).norm() / expected.norm())
    if not error < TOLERANCE[x.dtype]:
        shape = f"{weight.out_features} outputs and {weight.in_features} inputs at {weight.bits} bits"
        raise AwqError(f"A product with {shape} is wrong by {error:.1e} on {x.device}; please report this.")
    return error


def random_weight(out_features: int, in_features: int, bits: int, group_size: int) -> IntWeight:
    """Integers, zero points and scales of the same kind as a model's, the same for the same arguments."""
    generator = torch.Generator().manual_seed(out_features + in_features)
    groups = (out_features, in_features // group_size)
    return IntWeight(
        q=torch.randint(0, 1 << bits, (out_features, in_features), generator=generator, dtype=torch.uint8),
        scale=(torch.rand(groups, generator=generator) * 0.02 + 0.001).to(torch.float16),
        zero_point=torch.randint(0, 1 << bits, groups, generator=generator, dtype=torch.uint8),
        group_size=group_size,
        bits=bits,
    )


def _turns(nbytes: int, device: torch.device) -> int:
    return timing.copies_beyond_cache(nbytes, device)


def _read(checkpoint: Checkpoint, key: str) -> torch.Tensor:
    with open_tensors(checkpoint.tensors[key].file) as file:
        return file.get_tensor(key)
