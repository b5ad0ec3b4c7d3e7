"""How long calls take on a device: their own time, without what launching them from Python costs.

Calls take turns, each with tensors of its own, so that nothing is found in a cache where it would not be in a model. On
a GPU they are captured in a graph, and its replays are timed; on the CPU each call is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

LAUNCHES = 50
"""Fewest calls in a graph: the clock is read once per replay."""
REPLAYS = 30
ROUNDS = 5
"""Fewest timings of each call on the CPU."""


@dataclass(frozen=True)
class Timing:
    """Of one call."""

    seconds: float
    """The median."""
    spread: float
    """Between the quartiles, relative to the median."""


def time_calls(calls: Sequence[Callable[[], object]], device: torch.device, at_least: float = 0.2) -> Timing:
    """The time of one of `calls`, which do the same with different tensors; measures for `at_least` seconds."""
    for call in calls:  # compiles what is compiled, and reads what is read once
        call()
    return _on_cpu(calls, at_least) if device.type == "cpu" else _in_graph(calls, device, at_least)


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written in a second where a large tensor is copied."""
    size = 1 << (26 if device.type == "cpu" else 30)
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / time_calls([lambda: target.copy_(source)], device).seconds


def read_bandwidth(device: torch.device) -> float:
    """Bytes read in a second where a large tensor is summed up."""
    size = 1 << (26 if device.type == "cpu" else 30)
    source = torch.zeros(size // 4, dtype=torch.int32, device=device)
    return size / time_calls([lambda: torch.sum(source)], device).seconds


def copies_beyond_cache(nbytes: int, device: torch.device) -> int:
    """How many tensors of `nbytes` take turns so that none stays in the last cache: four times its size."""
    if device.type == "cpu":
        cache = 16 << 20
    else:
        cache = getattr(torch.get_device_module(device).get_device_properties(device), "L2_cache_size", 64 << 20)
    return max(1, -(-4 * cache // nbytes))


def _on_cpu(calls: Sequence[Callable[[], object]], at_least: float) -> Timing:
    taken: list[float] = []
    start = time.perf_counter()
    while len(taken) < ROUNDS * len(calls) or time.perf_counter() - start < at_least:
        for call in calls:
            before = time.perf_counter()
            call()
            taken.append(time.perf_counter() - before)
    return _timing(taken)


def _in_graph(calls: Sequence[Callable[[], object]], device: torch.device, at_least: float) -> Timing:
    module = torch.get_device_module(device)
    module.synchronize(device)
    rounds = -(-LAUNCHES // len(calls))
    graph = module.CUDAGraph()
    with module.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    taken: list[float] = []
    while len(taken) < REPLAYS or sum(taken) < at_least:
        before, after = (module.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        after.synchronize()
        taken.append(before.elapsed_time(after) / 1e3)
    return _timing([seconds / (rounds * len(calls)) for seconds in taken])


def _timing(taken: Sequence[float]) -> Timing:
    quarter, median, three_quarters = torch.tensor(taken, dtype=torch.float64).quantile(
        torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    )
    return Timing(float(median), float((three_quarters - quarter) / median))
