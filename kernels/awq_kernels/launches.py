"""How a product is laid out over a device: the table that ships, and what was measured on this machine.

Nobody waits for a search: the table has a launch for every device, block of tokens and width of weight, chosen so that
registers and shared memory let enough programs be resident (`docs/kernels.md` has the counts). What was measured on the
machine at hand comes first.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from awq_kernels.tiles import PlaneTiles


@dataclass(frozen=True)
class Launch:
    """One way to lay out a product; every number is a power of two, but for the stages."""

    tokens: int
    """Tokens a program works on."""
    outputs: int
    """Outputs a program works on, at most those of a tile."""
    slices: int
    """Parts of the inputs that a program's warps share; 1 lets all warps share the outputs instead."""
    warps: int
    stages: int
    """Steps of the loop whose loads are in flight."""


@dataclass(frozen=True)
class Device:
    """What of a device decides how to launch."""

    family: str
    """A key of `TABLE`."""
    processors: int
    """Multiprocessors, compute units or (Intel) groups of execution units."""
    assembly: str | None
    """Whose assembly it takes: `nvidia`, `amd` or None."""


Widths = tuple[Launch, Launch, Launch]
"""For weights whose programs of 32 outputs are fewer than the processors, fewer than four times as many, and more."""


def _sliced(tokens: int, *shapes: tuple[int, int, int]) -> Widths:
    """Launches with a warp per slice; shapes are (outputs, slices, stages)."""
    narrow, middle, wide = (Launch(tokens, outputs, slices, slices, stages) for outputs, slices, stages in shapes)
    return narrow, middle, wide


def _whole(tokens: int, outputs: int, warps: int, stages: int) -> Widths:
    """The same launch for every width, the warps sharing the outputs."""
    launch = Launch(tokens, outputs, 1, warps, stages)
    return launch, launch, launch


TABLE: dict[str, dict[int, Widths]] = {
    "sm_80": {
        8: _sliced(8, (16, 8, 4), (32, 8, 3), (32, 4, 4)),
        16: _sliced(16, (16, 8, 3), (32, 4, 3), (32, 4, 3)),
        32: _whole(32, 64, 4, 4),
        64: _whole(64, 64, 4, 3),
    },
    "sm_86": {
        8: _sliced(8, (16, 8, 2), (32, 4, 3), (32, 4, 3)),
        16: _sliced(16, (16, 4, 3), (32, 4, 2), (32, 4, 2)),
        32: _whole(32, 64, 4, 3),
        64: _whole(64, 64, 4, 2),
    },
    "sm_90": {
        8: _sliced(8, (16, 8, 4), (32, 8, 3), (32, 4, 4)),
        16: _sliced(16, (16, 4, 4), (32, 4, 3), (32, 4, 3)),
        32: _whole(32, 64, 4, 4),
        64: _whole(64, 64, 4, 4),
    },
    "gfx9": {
        16: _sliced(16, (16, 4, 2), (32, 4, 2), (32, 4, 2)),
        32: _whole(32, 64, 4, 2),
        64: _whole(64, 64, 4, 2),
    },
    "gfx11": {
        16: _sliced(16, (16, 4, 2), (16, 4, 2), (16, 4, 2)),
        32: _whole(32, 32, 4, 2),
    },
}
"""Device families to blocks of tokens to launches. A family's smallest block is what its tensor cores take, its largest
what its registers hold. NVIDIA's consumer parts share `sm_86` (100 KB of shared memory), AMD's `gfx11`."""


def on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device, which must be the tensors' own."""
    return contextlib.nullcontext() if device.type == "cpu" else torch.get_device_module(device).device(device)


@functools.cache
def device_of(device: torch.device) -> Device:
    """What `device` is; anything unknown is launched as the most modest family, without assembly."""
    if device.type == "cpu":
        return Device("sm_80", 1, None)
    properties = torch.get_device_module(device).get_device_properties(device)
    processors = getattr(properties, "multi_processor_count", None) or properties.max_compute_units
    if device.type != "cuda":
        return Device("gfx11", processors, None)
    if torch.version.hip is not None:
        return Device("gfx9" if properties.gcnArchName.startswith("gfx9") else "gfx11", processors, "amd")
    return Device(family_of(10 * properties.major + properties.minor), processors, "nvidia")


def family_of(capability: int) -> str:
    """The NVIDIA family of a compute capability such as 89."""
    if capability in (90, 100, 103):
        return "sm_90"
    return "sm_80" if capability == 80 else "sm_86"


def token_block(n_tokens: int, device: Device) -> int:
    """The smallest block of the device's family that holds `n_tokens`, at most the largest."""
    blocks = sorted(TABLE[device.family])
    return next((block for block in blocks if block >= n_tokens), blocks[-1])


def shipped(tiles: PlaneTiles, out_features: int, block: int, device: Device) -> Launch:
    """The table's launch for a weight of so many outputs that is laid out as `tiles`.

    There are no more slices than tiles to share. The tiles of 3 bits are twice as long, so one stage less is as much
    in flight. Where a tile lies in several groups, what each group costs is not spread over narrow programs.
    """
    programs = -(-out_features // 32)
    narrow = programs < device.processors and tiles.groups_per_tile == 1
    launch = TABLE[device.family][block][0 if narrow else 1 if programs < 4 * device.processors else 2]
    while launch.slices > tiles.in_tiles:
        launch = replace(launch, slices=launch.slices // 2, warps=launch.warps // 2)
    return replace(launch, stages=max(2, launch.stages - (tiles.bits == 3)))


def shape_key(tiles: PlaneTiles, block: int, dtype: torch.dtype) -> str:
    """What a measured launch is filed under."""
    shape = f"{tiles.out_features}x{tiles.in_features}"
    return f"{tiles.bits} bits, group {tiles.group_size}, {shape}, {block} tokens, {str(dtype).removeprefix('torch.')}"


@dataclass(frozen=True)
class Launches:
    """Chooses launches: those measured here first, then the table's."""

    measured: Mapping[str, Launch] = field(default_factory=dict)
    """By `shape_key`."""

    def pick(self, tiles: PlaneTiles, n_tokens: int, dtype: torch.dtype) -> Launch:
        device = device_of(tiles.words.device)
        block = token_block(n_tokens, device)
        if self.measured and (found := self.measured.get(shape_key(tiles, block, dtype))):
            return found
        return shipped(tiles, tiles.out_features, block, device)
