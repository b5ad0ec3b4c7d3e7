"""Launches measured on this machine, and where they are kept.

The table that ships is there at once; a search is run only when a person asks for it (`awq-tui bench --tune`), and what
it finds is kept in a file by device, Triton and version of the kernels, as each of them changes what is best.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
import triton

from awq_kernels.launches import Launch, Launches, device_of, shape_key, token_block
from awq_kernels.product import fused
from awq_kernels.tiles import PlaneTiles
from awq_kernels.timing import copies_beyond_cache, time_calls

SOURCES = ("product.py", "plane.py", "tiles.py", "unpack_asm.py")
"""The files that decide what a launch compiles to."""
SEARCH_SECONDS = 0.02
"""Spent on timing a candidate, after compiling it."""


def kernel_version() -> str:
    """Changes whenever the kernels do."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:12]


def measured_file(folder: Path, device: torch.device) -> Path:
    """Where what was measured on `device` is kept."""
    name = torch.get_device_module(device).get_device_name(device)
    safe = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return folder / f"{safe}-triton-{triton.__version__}-kernels-{kernel_version()}.json"


def read_measured(file: Path) -> Launches:
    """What was measured; nothing where the file is missing or damaged, as it can be made again."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return Launches({key: Launch(**launch) for key, launch in stored.items()})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return Launches()


def write_measured(file: Path, measured: Mapping[str, Launch]) -> None:
    """Keep what was measured beside what was before."""
    file.parent.mkdir(parents=True, exist_ok=True)
    merged = {**read_measured(file).measured, **measured}
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps({key: asdict(launch) for key, launch in sorted(merged.items())}, indent=1))
    fresh.replace(file)


def candidates(tiles: PlaneTiles, block: int) -> list[Launch]:
    """At most two dozen launches that may be best: more or fewer programs, each with more or less in flight."""
    launches = Launches()
    first = launches.pick(tiles, block, torch.float16)
    sliced = [
        Launch(block, outputs, slices, slices, stages)
        for outputs in (16, 32, 64)
        for slices in (2, 4, 8)
        for stages in (2, 3, 4)
        if slices <= tiles.in_tiles and block <= 32 and outputs * block * tiles.bits <= 16 * 64 * 4
    ]
    whole = [Launch(block, outputs, 1, warps, stages) for outputs in (32, 64) for warps in (4, 8) for stages in (2, 4)]
    found = [first, *sliced, *(whole if block >= 16 else [])]
    return list(dict.fromkeys(found))[:24]


def tune(tiles: PlaneTiles, n_tokens: int, dtype: torch.dtype) -> tuple[str, Launch]:
    """The key and the fastest launch of a weight for a number of tokens, measured.

    A launch that does not fit the device (too much shared memory, say) is passed over.
    """
    device = tiles.words.device
    block = token_block(n_tokens, device_of(device))
    copies = [tiles, *(_copy(tiles) for _ in range(copies_beyond_cache(tiles.nbytes, device) - 1))]
    x = torch.randn(n_tokens, tiles.in_features, dtype=dtype, device=device)
    times = {launch: _seconds(copies, x, launch) for launch in candidates(tiles, block)}
    return shape_key(tiles, block, dtype), min(times, key=lambda launch: times[launch])


def _seconds(copies: Iterable[PlaneTiles], x: torch.Tensor, launch: Launch) -> float:
    calls = [lambda tiles=tiles: fused(x, tiles, None, launch) for tiles in copies]
    try:
        return time_calls(calls, x.device, SEARCH_SECONDS).seconds
    except triton.runtime.OutOfResources:
        return float("inf")


def _copy(tiles: PlaneTiles) -> PlaneTiles:
    return replace(tiles, words=tiles.words.clone(), groups=tiles.groups.clone())
