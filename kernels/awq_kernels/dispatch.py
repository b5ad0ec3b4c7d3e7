"""Which backends there are, which one to take, and one way to call them all.

    triton      CUDA, ROCm and XPU devices, 2, 3, 4 and 8 bits   product.py
    cpu         torch's int4 kernel in bfloat16                  cpu.py
    reference   plain torch in float32, any device, any bits     reference.py

`prepare` repacks a weight once, at load; the object it returns is called with activations. A backend that cannot take
a weight (an odd group size, say) does not fail: that one weight is computed by the reference, and `note` says why.
Triton is imported only when it is asked for, so this package works where it is not installed.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from awq_kernels import cpu, reference
from awq_kernels.int_weight import IntWeight
from awq_kernels.launches import Launches
from awq_kernels.tiles import PlaneTiles, join_tiles, obstacle, pack_tiles, split_tiles

NAMES = ("triton", "cpu", "reference")
"""Every backend, in the order of preference."""
TRITON_DEVICES = ("cuda", "xpu")
"""ROCm devices are called `cuda` in torch."""


@dataclass(frozen=True)
class BackendStatus:
    """Whether a backend can be used on a device."""

    name: str
    available: bool
    reason: str
    """A clause that says why it is available, or why not."""


@dataclass(frozen=True)
class PreparedLinear:
    """A weight in the layout of its backend; call it with activations."""

    backend: str
    """The backend that computes, `reference` also where the one asked for could not take this weight."""
    in_features: int
    out_features: int
    compute: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
    note: str | None = None
    """Why the backend asked for was not taken, as a clause; None when it was."""
    packed: cpu.CpuWeight | PlaneTiles | None = None
    """What `join` can join."""
    launches: Launches | None = None
    """How its kernels are launched; None takes the table that ships."""

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """`x @ W.T + bias` for x [..., in_features]; the result has the dtype of `x`."""
        return self.compute(x, bias)


def backends(device: torch.device | str) -> list[BackendStatus]:
    """Every backend with its state on `device`, the preferred one first."""
    device = torch.device(device)
    return [_triton_status(device), _cpu_status(device), BackendStatus("reference", True, "plain torch in float32")]


def choose(requested: str, device: torch.device | str) -> BackendStatus:
    """The backend to use on `device`.

    Args:
        requested: one of `NAMES`, or `auto` for the first available one. `auto` never takes Triton's interpreter.
    Raises:
        ValueError: there is no such backend, or it is not available there; the message says why.
    """
    statuses = {status.name: status for status in backends(device)}
    if requested == "auto":
        interpreted = torch.device(device).type not in TRITON_DEVICES
        return next(s for s in statuses.values() if s.available and not (s.name == "triton" and interpreted))
    if requested not in statuses:
        raise ValueError(f"There is no backend {requested!r}; choose one of auto, {', '.join(NAMES)}.")
    if not statuses[requested].available:
        raise ValueError(f"The backend {requested} does not run on {device}: {statuses[requested].reason}.")
    return statuses[requested]


def prepare(
    weight: IntWeight, backend: str, device: torch.device | str, launches: Launches | None = None
) -> PreparedLinear:
    """Put `weight` on `device` in the layout of `backend` (one of `NAMES`; see `choose`).

    `launches` is what was measured on this device, for backends that launch kernels.
    """
    weight = weight.to(device)
    unordered = replace(weight, order=None)
    if backend == "triton":
        prepared = _prepare_triton(unordered, launches)
    else:
        prepared = _prepare_cpu(unordered) if backend == "cpu" else _prepare_reference(unordered)
    if (order := weight.order) is None:
        return prepared
    return replace(prepared, compute=lambda x, bias: prepared.compute(x[..., order], bias), packed=None)


def join(linears: Sequence[PreparedLinear]) -> tuple[PreparedLinear, list[PreparedLinear]] | None:
    """One linear for the outputs of all `linears` in a row, and each of them anew, reading its part of the same memory.

    None when they cannot be joined: weights of one backend can that read the same inputs in the same groups.
    """
    packed = [linear.packed for linear in linears]
    if on_cpu := [weight for weight in packed if isinstance(weight, cpu.CpuWeight)]:
        whole = cpu.join(on_cpu) if len(on_cpu) == len(packed) else None
        return whole and (_computed_on_cpu(whole), [_computed_on_cpu(part) for part in cpu.split(whole, on_cpu)])
    tiles = [weight for weight in packed if isinstance(weight, PlaneTiles)]
    if not tiles or len(tiles) != len(packed) or (joined := join_tiles(tiles)) is None:
        return None
    parts = split_tiles(joined, [weight.out_features for weight in tiles])
    launches = linears[0].launches
    return _computed_by_triton(joined, launches), [_computed_by_triton(part, launches) for part in parts]


def _prepare_triton(weight: IntWeight, launches: Launches | None) -> PreparedLinear:
    if reason := obstacle(weight):
        return _prepare_reference(weight, reason)
    return _computed_by_triton(pack_tiles(weight), launches)


def _computed_by_triton(packed: PlaneTiles, launches: Launches | None) -> PreparedLinear:
    from awq_kernels import product

    return PreparedLinear(
        "triton",
        packed.in_features,
        packed.out_features,
        lambda x, bias: product.matmul(x, packed, bias, launches),
        packed=packed,
        launches=launches,
    )


def _prepare_cpu(weight: IntWeight) -> PreparedLinear:
    if reason := cpu.obstacle(weight):
        return _prepare_reference(weight, reason)
    return _computed_on_cpu(cpu.pack_cpu(weight))


def _computed_on_cpu(packed: cpu.CpuWeight) -> PreparedLinear:
    rows, half = packed.halves.shape
    return PreparedLinear("cpu", 2 * half, rows, lambda x, bias: cpu.matmul(x, packed, bias), packed=packed)


def _prepare_reference(weight: IntWeight, note: str | None = None) -> PreparedLinear:
    return PreparedLinear(
        "reference",
        weight.in_features,
        weight.out_features,
        lambda x, bias: reference.matmul(x, weight, bias),
        note,
    )


def _triton_status(device: torch.device) -> BackendStatus:
    if importlib.util.find_spec("triton") is None:
        return BackendStatus("triton", False, "the package triton is not installed")
    if device.type in TRITON_DEVICES:
        return BackendStatus("triton", True, f"Triton kernels run on {device.type} devices")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return BackendStatus("triton", True, "Triton's interpreter, for tests: very slow")
    return BackendStatus("triton", False, f"Triton kernels need a GPU, and the device is {device.type}")


def _cpu_status(device: torch.device) -> BackendStatus:
    if device.type != "cpu":
        return BackendStatus("cpu", False, f"it runs on the CPU, and the device is {device.type}")
    if not hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu"):
        return BackendStatus("cpu", False, f"torch {torch.__version__} has no int4 kernel for the CPU")
    return BackendStatus("cpu", True, "torch's int4 kernel in bfloat16")
